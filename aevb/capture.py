"""``Replayed``: a training step on a GPU, recorded once and replayed: a CUDA graph.

A step of a small network is some hundred kernels of a few microseconds each. Python
takes longer to launch them one by one than the GPU to run them; a recorded step is
launched as a whole. What a recording cannot hold is whatever Python decides: it repeats
what was decided when it was made. So it is compared with the step itself, from the same
state and with the same random numbers, and not trusted where they differ.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aevb.model import restored
from aevb.randomness import Draws, preserved, random_state, set_random_state

PAYS = 5  # steps in a row for which a comparison is worth its time, that of some steps
WARM_UP = 3  # calls before recording, in which libraries allocate what they keep
SAME = 1e-6  # relative difference of two results that may be rounding
SAME_CHANGE = 1e-2  # and of two changes: a GPU may add up in another order


class Unrecordable(RuntimeError):
    """A function does what a recording cannot hold; the message says what."""


class Replayed:
    """A function of tensors that changes others; on a GPU it is recorded and replayed.

    A call gives and changes what a call of ``function`` would, with the same random
    numbers. The first calls are calls of ``function``; then it is recorded, for inputs
    of the shapes of the first call. Inputs of other shapes are handed to ``function``.
    After :meth:`doubt`, the next call is ``function``'s again, and the recording must
    reproduce it. One that does not is made anew; if the new one does not either, or
    none can be made, the log says so, and all calls are calls of ``function``.

    Args:
        function: of tensors, gives a tensor. It is called more often than this is, with
            its changes undone.
        changing: gives the tensors that ``function`` changes; new ones come last.
        device: where the tensors are.
        possible: whether to record at all; only a GPU can.

    Example:
        >>> total = torch.zeros(())
        >>> settings = {"device": total.device, "possible": False}
        >>> add = Replayed(lambda x: total.add_(x), lambda: [total], **settings)
        >>> add(torch.tensor(1.0)).item(), add(torch.tensor(2.0)).item()
        (1.0, 3.0)
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        changing: Callable[[], list[Tensor]],
        device: torch.device,
        possible: bool,
    ):
        self.function, self.changing, self.device = function, changing, device
        self.possible = possible
        self.shapes, self.calls = None, 0
        self.replay, self.trusted = None, False

    def doubt(self) -> None:
        """Compare once more: Python may have changed what the recording repeats."""
        self.trusted = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self.possible:
            return self.function(*inputs)
        shapes = [part.shape for part in inputs]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.function(*inputs)
        if self.calls < WARM_UP:
            self.calls += 1
            return self.function(*inputs)
        return (self.replay if self.trusted else self.compared)(*inputs)

    def compared(self, *inputs: Tensor) -> Tensor:
        """A call of ``function``; the recording is trusted if it does the same."""
        new = self.replay is None
        if new:
            try:
                with self.undone():
                    rehearse(self.function, inputs)
                self.replay = record(self.function, inputs, self.device)
            except Unrecordable as obstacle:
                self.give_up(str(obstacle).partition("\n")[0])
                return self.function(*inputs)
        with self.undone() as start:
            found = self.replay(*inputs)
            end = [tensor.detach().clone() for tensor in self.changing()]
        result = self.function(*inputs)
        differ = [_beyond(found, result, SAME * result.norm())]
        # strict=False: a parameter may take part for the first time, and Adam begin
        for value, true, before in zip(end, self.changing(), start, strict=False):
            change = _distance(true, before)
            differ.append(_beyond(value, true, SAME_CHANGE * change))
        self.trusted = not torch.stack(differ).any()
        if not self.trusted:
            self.replay = None
            if new and result.isfinite().all():
                self.give_up("it does something else each time")
        return result

    def give_up(self, reason: str) -> None:
        self.possible = False
        logging.getLogger(__name__).warning(
            "a training step cannot be recorded for the GPU (%s): launching its"
            " operations one by one, which takes longer",
            reason,
        )

    @contextmanager
    def undone(self) -> Iterator[list[Tensor]]:
        """A context whose changes and random draws are undone at its end.

        Yields the values at its beginning.
        """
        with preserved(self.device), restored(self.changing()) as values:
            yield values


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one.detach().double() - other.detach().double()).norm()


def _beyond(found: Tensor, expected: Tensor, limit: Tensor) -> Tensor:
    """Whether they differ by more than ``limit``; what is not a number does."""
    return ~(_distance(found, expected) <= limit)


class _OwnGenerators(Draws):
    """A context that notices draws from a generator that was given."""

    seen = False

    def draw(self, function, args, kwargs):
        self.seen = self.seen or kwargs.get("generator") is not None
        return function(*args, **kwargs)


def rehearse(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Call ``function``, in a context that notices what a recording cannot hold.

    Raises:
        Unrecordable: it waits for the GPU, as ``.item()`` does, or whatever has a shape
            that depends on values; or it draws from a generator of its own.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(), _OwnGenerators() as own:
            warnings.simplefilter("ignore")  # that not every wait is noticed
            torch.cuda.set_sync_debug_mode("error")
            function(*inputs)
    except RuntimeError as error:
        raise Unrecordable(str(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
    if own.seen:
        raise Unrecordable("it draws from a generator of its own")


def record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: torch.device
) -> Callable[..., Tensor]:
    """``function`` as a CUDA graph, for inputs of these shapes; nothing is computed.

    Raises:
        Unrecordable: the GPU refuses.
    """
    kept = [part.clone() for part in inputs]
    graph, random = torch.cuda.CUDAGraph(), random_state(device)
    try:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            # a loader's thread may copy the next batch at the same time
            with torch.cuda.graph(
                graph, stream=stream, capture_error_mode="thread_local"
            ):
                result = function(*kept)
    except RuntimeError as error:
        _renew_generator(random, device)
        raise Unrecordable(str(error)) from error

    def replay(*inputs: Tensor) -> Tensor:
        for mine, part in zip(kept, inputs, strict=True):
            mine.copy_(part)
        graph.replay()
        return result.clone()  # the next replay writes over it

    return replay


def _renew_generator(random: dict[str, Tensor], device: torch.device) -> None:
    """After a recording that broke off, the generator would still wait for its end."""
    index = torch.cuda.current_device() if device.index is None else device.index
    fresh = torch.Generator(device)
    torch.cuda.default_generators[index].graphsafe_set_state(
        fresh.graphsafe_get_state()
    )
    set_random_state(random, device)
