"""Several processes that train one model: who computes what, and what they tell.

Under ``torchrun --nproc-per-node=N`` every process runs the same program with the same
model and data, and computes the terms of its own part of each batch. The parts of the
gradient are added up in one exchange a step, after which all take the same step. The
first process alone evaluates and writes. With one process nothing of this happens.

A batch is still ``batch_size`` examples, of which each process takes about an N-th.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# A process that stops closes its connections, which the others notice at once. This is
# for one that is alive and silent: longer than any evaluation by the first process.
TIMEOUT = timedelta(minutes=30)


class Disconnected(ConnectionError):
    """Another process has stopped; its own message says why."""


def launched() -> bool:
    """Whether this is one of several processes that ``torchrun`` started."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return several and dist.is_available() and dist.is_torchelastic_launched()


def _connected_already() -> bool:
    return dist.is_available() and dist.is_initialized()


def _start(device: torch.device) -> bool:
    """Connect the processes, if there are several and they are not connected."""
    if not launched() or _connected_already():
        return False
    with _exchange():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
    return True


def _stop() -> None:
    if _connected_already():
        dist.destroy_process_group()


@contextmanager
def processes(device: torch.device) -> Iterator[int]:
    """The processes that ``torchrun`` started, connected; yields this one's number.

    :func:`aevb.fit` connects them by itself, until the program ends; a program that
    has more to do connects them earlier by this. Without ``torchrun`` it yields 0.

    Example:
        >>> with processes(torch.device("cpu")) as rank:
        ...     rank
        0
    """
    started = _start(device)
    try:
        yield dist.get_rank() if _connected_already() else 0
    finally:
        if started:
            _stop()


@contextmanager
def _exchange() -> Iterator[None]:
    """Around an exchange: says what it means if another process is not there."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Disconnected(
            f"another process has stopped or does not answer ({reason}); its own"
            " message says why"
        ) from error


class Processes:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: this one's number. Number 0, the first, evaluates and writes.
        count: how many there are.

    Example:
        >>> together = Processes(torch.device("cpu"))
        >>> together.count, together.part(100)
        (1, slice(0, 100, None))
    """

    def __init__(self, device: torch.device):
        if _start(device):
            atexit.register(_stop)
        together = _connected_already()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1
        self._flat = None

    def _limits(self, total: int) -> tuple[int, int]:
        return total * self.rank // self.count, total * (self.rank + 1) // self.count

    def part(self, total: int) -> slice:
        """Which of the ``total`` examples of a batch this process computes.

        If there are too few for all processes, some compute the first example, which
        :meth:`add_up` does not count.
        """
        start, stop = self._limits(total)
        return slice(start, stop) if start < stop else slice(0, 1)

    def add_up(self, parameters: list[nn.Parameter], sums: Tensor, total: int):
        """Add the gradients of all processes' parts of a batch, and their ``sums``.

        Everything travels in one flat tensor. The gradients are put in place; the sums
        are returned.

        Args:
            total: examples of the whole batch.
        """
        if self.count == 1:
            return sums
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        parts = [part.flatten() for part in (*parts, sums)]
        self._flat = torch.cat(parts, out=self._flat)
        start, stop = self._limits(total)
        if start == stop:
            self._flat.zero_()
        with _exchange():
            dist.all_reduce(self._flat)
        *gradients, sums = self._flat.split([len(part) for part in parts])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return sums.clone()  # the flat tensor is used again

    def from_first(self, function: Callable[[], Any]) -> Any:
        """What ``function()`` gives in the first process, in all of them.

        Raises:
            Exception: what it raises in the first process; there, all others raise
                :class:`Disconnected`.
        """
        if self.count == 1:
            return function()
        answer, problem = [None, None], None
        if self.rank == 0:
            try:
                answer[0] = function()
            except Exception as error:
                problem = error
                answer[1] = f"{type(error).__name__}: {error}"
        with _exchange():
            dist.broadcast_object_list(answer)
        if problem is not None:
            raise problem
        if answer[1] is not None:
            raise Disconnected(f"the first process has stopped: {answer[1]}")
        return answer[0]

    def same(self, model: nn.Module, settings: dict[str, Any]) -> None:
        """Give every process the first one's parameters.

        Raises:
            ValueError: the processes were given other settings or shapes.
        """
        if self.count == 1:
            return
        here = settings | {k: tuple(v.shape) for k, v in model.state_dict().items()}
        everywhere = [None] * self.count
        with _exchange():
            dist.all_gather_object(everywhere, here)
        for rank, there in enumerate(everywhere):
            for name in everywhere[0] | there:
                if everywhere[0].get(name) != there.get(name):
                    raise ValueError(
                        f"fit: {name} is {everywhere[0].get(name)!r} in process 0 and"
                        f" {there.get(name)!r} in process {rank}; expected the same in"
                        " all processes"
                    )
        with _exchange():
            for value in model.state_dict().values():
                dist.broadcast(value, 0)
