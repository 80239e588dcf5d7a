"""Where random numbers come from: states of generators, and noise that is shared out.

Where several processes compute parts of one batch, each draws the noise of the *whole*
batch from the same stream, and keeps the part of its own examples. Their result is then
that of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the CPU and this device; ``torch.manual_seed`` would seed all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_state(
    device: torch.device, generators: Iterable[torch.Generator] = ()
) -> dict[str, Tensor]:
    """The state of the CPU's global generator, the device's, and some others."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state | {str(i): g.get_state() for i, g in enumerate(generators)}


def set_random_state(
    state: dict[str, Tensor],
    device: torch.device,
    generators: Iterable[torch.Generator] = (),
) -> None:
    """Put back what :func:`random_state` gave; what it lacks is left as it is."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    for i, generator in enumerate(generators):
        if str(i) in state:
            generator.set_state(state[str(i)].cpu())


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """A context that leaves the global generators as it found them."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


# --- the noise of a whole batch ---

RANDOM = {
    torch.rand,
    torch.randn,
    torch.randint,
    torch.randint_like,
    torch.rand_like,
    torch.randn_like,
    torch.normal,
    torch.bernoulli,
    torch.multinomial,
    functional.dropout,
    functional.gumbel_softmax,
    torch.Tensor.bernoulli,
    torch.Tensor.bernoulli_,
    torch.Tensor.cauchy_,
    torch.Tensor.exponential_,
    torch.Tensor.geometric_,
    torch.Tensor.log_normal_,
    torch.Tensor.multinomial,
    torch.Tensor.normal_,
    torch.Tensor.random_,
    torch.Tensor.uniform_,
}
# These take as many numbers from the stream as the data make them take, or give what
# they draw only mixed with the data.
REJECTING = {
    functional.alpha_dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.feature_alpha_dropout,
    functional.rrelu,
    torch.binomial,
    torch.poisson,
    torch._standard_gamma,
    torch._sample_dirichlet,
}
DRAWING = RANDOM | REJECTING
OWN = "own"  # in place of a dimension: each process draws for itself


class Draws(TorchFunctionMode):
    """A context that hands every call of a random function to :meth:`draw`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in DRAWING or _is_certain(kwargs):
            return function(*args, **kwargs)
        return self.draw(function, args, kwargs)

    def draw(self, function: Callable, args: tuple, kwargs: dict) -> Tensor:
        raise NotImplementedError


def _is_certain(kwargs: dict) -> bool:
    """Dropout in evaluation mode, or that drops nothing, draws nothing."""
    return "training" in kwargs and not (kwargs["training"] and kwargs.get("p", 1))


def _size_at(args: tuple) -> int | None:
    """Where in the arguments the size stands: ``rand((2, 3))`` but ``rand(2, 3)``."""
    return next((i for i, a in enumerate(args) if isinstance(a, tuple | list)), None)


def _shape(args: tuple, kwargs: dict) -> tuple[int, ...]:
    """Of what is drawn: its size, or the shape of the tensors that say how."""
    tensors = [a.shape for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if tensors:
        return tuple(torch.broadcast_shapes(*tensors))
    if "size" in kwargs:
        return tuple(kwargs["size"])
    at = _size_at(args)
    return tuple(args if at is None else args[at])


class _Trial(Draws):
    """Notes the shape of every draw, and the generators that were given."""

    def __init__(self):
        super().__init__()
        self.shapes, self.states = [], {}

    def draw(self, function, args, kwargs):
        generator = kwargs.get("generator")
        if generator is not None:
            self.states.setdefault(generator, generator.get_state())
        self.shapes.append(
            OWN if function in REJECTING else tuple(_shape(args, kwargs))
        )
        return function(*args, **kwargs)


def batch_dimensions(
    estimate: Callable[[int], object], device: torch.device
) -> list[tuple]:
    """How each draw depends on the number of examples, from a trial with 2 and with 3.

    Args:
        estimate: computes what is to be computed, with so many examples.

    Returns:
        For each draw, in their order, its shape and the dimension that runs over the
        examples: None if there is none, ``OWN`` if that cannot be told. No generator
        has moved.
    """
    trials = []
    for count in (2, 3):
        with preserved(device), _Trial() as trial:
            estimate(count)
        for generator, state in trial.states.items():
            generator.set_state(state)
        trials.append(trial.shapes)
    if len(trials[0]) != len(trials[1]):
        return []
    return [(two, _grown(two, three)) for two, three in zip(*trials, strict=True)]


def _grown(two: tuple[int, ...], three: tuple[int, ...]) -> int | str | None:
    if OWN in (two, three) or len(two) != len(three):
        return OWN
    grown = [d for d in range(len(two)) if two[d] != three[d]]
    if not grown:
        return None
    (d, *others) = grown
    return d if not others and (two[d], three[d]) == (2, 3) else OWN


class WholeBatch(Draws):
    """A context that draws for the whole batch and keeps what this process needs.

    Draws whose shape is not as expected come from a stream that only this process has,
    which is right, but not what one process would draw.

    Args:
        dimensions: what :func:`batch_dimensions` found.
        part: the examples of this process.
        total: examples of the whole batch.
        key: whole numbers that are this step's and this process's own.
    """

    def __init__(
        self,
        dimensions: list[tuple],
        part: slice,
        total: int,
        key: tuple[int, ...],
        device: torch.device,
    ):
        super().__init__()
        self.dimensions, self.part, self.total = iter(dimensions), part, total
        self.key, self.device, self.count = key, device, part.stop - part.start

    def draw(self, function, args, kwargs):
        expected, at = next(self.dimensions, ((), OWN))
        shape = _shape(args, kwargs)
        if at != OWN:
            known = list(expected)
            if at is not None:
                known[at] = self.count
            if shape != tuple(known):
                at = OWN
        if at == OWN:
            return self._own(function, args, kwargs)
        if at is None:  # the same for all examples
            return function(*args, **kwargs)
        if function is functional.dropout:  # by a mask: nothing to differentiate
            ones = args[0].new_ones((*shape[:at], self.total, *shape[at + 1 :]))
            mask = functional.dropout(ones, kwargs["p"])
            return args[0] * self._kept(mask, at)
        drawn = self._kept(self._whole(function, args, kwargs, shape, at), at)
        if function.__name__.endswith("_"):  # in place
            return args[0].copy_(drawn)
        return drawn

    def _kept(self, drawn: Tensor, at: int) -> Tensor:
        return drawn.narrow(at, self.part.start, self.count)

    def _whole(self, function, args, kwargs, shape, at) -> Tensor:
        """The call, for all examples of the batch."""
        size = (*shape[:at], self.total, *shape[at + 1 :])
        if "size" in kwargs:
            return function(*args, **kwargs | {"size": size})
        if not any(isinstance(a, Tensor) for a in (*args, *kwargs.values())):
            given = _size_at(args)
            if given is None:
                return function(size, **kwargs)
            return function(*args[:given], size, *args[given + 1 :], **kwargs)
        index = torch.zeros(self.total, dtype=torch.int64)  # others repeat the first
        index[self.part] = torch.arange(self.count)

        def wide(argument):
            """``argument`` for all examples, if it has one entry for each of ours."""
            d = at - len(shape)  # from the right, as shapes are broadcast
            is_ours = isinstance(argument, Tensor) and argument.ndim >= -d
            if not is_ours or argument.shape[d] != self.count:
                return argument
            return argument.index_select(d, index.to(argument.device))

        return function(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})

    def _own(self, function, args, kwargs):
        if kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        with preserved(self.device):
            self.key = (*self.key, 0)  # another stream for the next one
            seed_device(hash(self.key) % 2**63, self.device)
            return function(*args, **kwargs)
