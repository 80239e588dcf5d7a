"""What every latent variable model has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from aevb.distributions import rsample


class ElboTerms(NamedTuple):
    """The two terms of an estimate of the ELBO, in nats, one entry an example.

    Attributes:
        reconstruction: (B,) estimate of E_q[log p(x | z)].
        kl: (B,) KL(q(z | x) ‖ p(z)), exact or estimated.
    """

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """(B,) reconstruction - kl (``eq-elbo-reconstruction-kl``)."""
        return self.reconstruction - self.kl


class LatentVariableModel(nn.Module):
    """A generative model p(z) p(x | z) and an inference model q(z | x).

    The base class of every model, and of a reader's own. A subclass sets two modules,
    which keep the parameters apart, ``generative`` (θ: prior and likelihood) and
    ``inference`` (φ: posterior), and defines three methods that return distributions,
    :meth:`prior`, :meth:`likelihood` and :meth:`posterior`. Everything else follows
    from them: bounds, training, evaluation, draws.

    * Parameters in neither module are not trained.
    * Log-densities sum over the coordinates of an example: event shapes are (L,) for z
      and (D,), or the shape of one x, for x. ``Independent(…, 1)`` does that.
    * :meth:`likelihood` takes any number of axes in front of z's last one, since
      samples are put there, and x broadcasts against them.
    * Any ``torch.distributions.Distribution`` will do, or a class of your own with
      ``log_prob``, ``sample`` and ``mean``. For the default estimator q(z | x) needs an
      ``rsample`` and a closed-form divergence from the prior
      (``torch.distributions.kl_divergence``); without the divergence pass
      ``estimator=estimators.fully_sampled`` to :func:`aevb.fit`, without the
      ``rsample`` ``estimators.score_function``, or overwrite :meth:`elbo`.
    * Tools that look at coordinates of z, or search for a better q, ask for a Gaussian
      q(z | x) and say so. For a positive or bounded latent variable keep z Gaussian,
      and make the transformation the first step of the likelihood: evidence and ELBO
      are the same (``eq-moved-transformation``).
    * A conditional model takes its condition behind ``x`` or ``z`` in each method, and
      names both in ``inputs``.
    * :meth:`check` may be left out; it is where to refuse data outside the support.

    Attributes:
        inputs: fields of :class:`aevb.data.Examples` that make up one batch.

    Example:
        >>> from torch.distributions import Independent, Poisson
        >>> from aevb import fit
        >>> from aevb.distributions import diagonal_normal
        >>> from aevb.networks import GaussianHead
        >>> class Counts(LatentVariableModel):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.generative = nn.Linear(2, 5)
        ...         self.inference = GaussianHead(5, 2)
        ...
        ...     def prior(self):
        ...         return diagonal_normal(torch.zeros(2), torch.ones(2))
        ...
        ...     def likelihood(self, z):
        ...         return Independent(Poisson(self.generative(z).exp()), 1)
        ...
        ...     def posterior(self, x):
        ...         return self.inference(x)
        >>> x = torch.poisson(torch.ones(20, 5))
        >>> history = fit(Counts(), x, epochs=2, device="cpu", progress=False)
        >>> history.epoch
        [1.0, 2.0]
    """

    inputs: tuple[str, ...] = ("x",)
    generative: nn.Module
    inference: nn.Module

    def prior(self, *condition: Tensor) -> Distribution:
        """p(z): event shape (L,)."""
        raise NotImplementedError

    def likelihood(self, z: Tensor, *condition: Tensor) -> Distribution:
        """p(x | z): z (…, L) gives batch shape (…), event shape (D,)."""
        raise NotImplementedError

    def posterior(self, x: Tensor, *condition: Tensor) -> Distribution:
        """q(z | x): x (B, D) gives batch shape (B,), event shape (L,)."""
        raise NotImplementedError

    def check(self, x: Tensor, *condition: Tensor) -> None:
        """Raise an error if the model cannot take ``x``: called once, before training.

        Raises:
            TypeError: another dtype than the parameters have.
            ValueError: wrong shape, or values outside the likelihood's support.
        """

    def elbo(
        self,
        x: Tensor,
        *condition: Tensor,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """Estimate of the ELBO of each example, by the estimator that fits the model.

        Args:
            x: (B, D).
            num_samples: S, draws of z for each example.
            generator: for the draws; the global one if None.

        Returns:
            :class:`ElboTerms`, nats, differentiable in θ and φ.
        """
        from aevb.estimators import analytic_kl

        return analytic_kl(
            self, x, *condition, num_samples=num_samples, generator=generator
        )

    def log_weights(
        self,
        x: Tensor,
        *condition: Tensor,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x, z) - log q(z | x) for z ~ q(z | x), nats: (K, B).

        Their mean over K estimates the ELBO; the log of the mean of their exponentials
        estimates log p(x) from below (``eq-importance-weighted``).

        Raises:
            ValueError: num_samples < 1.
        """
        check_count("num_samples", num_samples)
        q_z = self.posterior(x, *condition)
        z = rsample(q_z, (num_samples,), generator)  # (K, B, L)
        log_p = self.prior(*condition).log_prob(z)  # (K, B)
        log_p = log_p + self.likelihood(z, *condition).log_prob(x)  # x (B, D) -> (K, B)
        return log_p - q_z.log_prob(z)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *condition: Tensor,
        mean: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws of x from the model: z ~ p(z), then x ~ p(x | z); (n, D).

        The order of the story that the model tells (``eq-ancestral-sampling``).

        Args:
            condition: for a conditional model, of batch shape (B,): then n draws for
                each, (n, B, D).
            mean: return E[x | z] in place of the draw of x.
            generator: on the model's device; the global one if None.

        Raises:
            ValueError: n < 1.
        """
        check_count("n", n)
        z = rsample(self.prior(*condition), (n,), generator)
        p_x_given_z = self.likelihood(z, *condition)
        return p_x_given_z.mean if mean else rsample(p_x_given_z, (), generator)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters lie; the default device if it has none."""
    return next(model.parameters(), torch.empty(0)).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode in which it was.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval())
        >>> with evaluating(model):
        ...     [m.training for m in model]
        [False, False]
        >>> [m.training for m in model]
        [True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def put_back(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Give tensors the values that they had.

    Those that still have them are not written to: a constant may be expanded, and a
    graph may need a parameter as it is.
    """
    for tensor, value in zip(tensors, values, strict=True):
        if not torch.equal(tensor, value):
            tensor.copy_(value)


@contextmanager
def restored(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """A context after which tensors have the values of its beginning, which it yields.

    Example:
        >>> total = torch.zeros(2)
        >>> with restored([total]):
        ...     total += 1
        >>> total
        tensor([0., 0.])
    """
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield values
    finally:
        put_back(tensors, values)


def check_count(name: str, count: int) -> None:
    """Raise unless ``count`` is a whole number, at least 1.

    Raises:
        ValueError: says what was given and what is expected.
    """
    if not is_count(count):
        raise ValueError(f"{name} is {count!r}; expected a whole number, at least 1")


def is_count(number) -> bool:
    """Whether it is a whole number, at least 1."""
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    return whole and number >= 1


def check_network(hidden: Sequence[int], dropout: float, **sizes: int) -> None:
    """Raise unless a network can be built with these hidden widths and this dropout.

    Args:
        sizes: other numbers that must be at least 1, by name.

    Raises:
        ValueError: says what was given and what is expected.

    Example:
        >>> check_network((500, 500), 0.1, data_dim=784, latent_dim=0)
        Traceback (most recent call last):
        ...
        ValueError: latent_dim is 0; expected a whole number, at least 1
    """
    for name, size in sizes.items():
        check_count(name, size)
    if not isinstance(hidden, Sequence) or not all(map(is_count, hidden)):
        raise ValueError(f"hidden is {hidden!r}; expected widths, as in (500, 500)")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; expected at least 0, less than 1")


def check_batch(
    x: Tensor, size: int, head=None, dtype: torch.dtype = torch.float32
) -> None:
    """Raise unless ``x`` is (N, size) of ``dtype`` inside the head's support.

    Raises:
        TypeError, ValueError: say what was given and what is expected.

    Example:
        >>> check_batch(torch.zeros(2, 3), 4)
        Traceback (most recent call last):
        ...
        ValueError: x has shape (2, 3); expected (N, 4) with N >= 1
    """
    if not isinstance(x, Tensor) or x.dtype != dtype:
        given = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(
            f"x is {given}; expected a tensor of {dtype}, as the model's parameters are"
        )
    if x.ndim != 2 or x.shape[1] != size or len(x) == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (N, {size}) with N >= 1"
        )
    parts = x.split(1000)  # of a size that keeps what is computed from it in the cache
    if not all(part.isfinite().all() for part in parts):
        raise ValueError("x holds NaN or infinity; expected finite values")
    if head is not None and not all(map(head.supports, parts)):
        low, high = x.min().item(), x.max().item()
        raise ValueError(
            f"x holds values from {low:g} to {high:g} that {type(head).__name__}"
            f" does not support; expected each to be {head.support}"
        )


def check_labels(
    y: Tensor, num_classes: int, count: int, dtype: torch.dtype = torch.float32
) -> None:
    """Raise unless ``y`` is ``count`` labels, or ``count`` rows of probabilities.

    Labels are (count,) int64 from 0 to num_classes - 1; probabilities are
    (count, num_classes) of ``dtype``, not negative, with rows that sum to 1.

    Raises:
        TypeError, ValueError: say what was given and what is expected.

    Example:
        >>> check_labels(torch.tensor([3, 10]), num_classes=10, count=2)
        Traceback (most recent call last):
        ...
        ValueError: y holds labels from 3 to 10; expected them from 0 to 9
    """
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, dtype):
        given = y.dtype if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise TypeError(
            f"y is {given}; expected a tensor of torch.int64 that holds labels, or of"
            f" {dtype} that holds probabilities of the classes"
        )
    shape = (count, num_classes) if y.is_floating_point() else (count,)
    if y.shape != shape:
        kind = "probabilities" if y.is_floating_point() else "labels"
        raise ValueError(
            f"y has shape {tuple(y.shape)}; expected {kind} of shape {shape},"
            f" for {count} examples"
        )
    low, high = y.min().item(), y.max().item()
    if y.is_floating_point():
        sums = y.sum(-1)
        if not (low >= 0 and ((sums - 1).abs() < 1e-3).all()):
            raise ValueError(
                "y holds rows that are no probabilities; expected numbers of at least"
                f" 0 that sum to 1, found values from {low:g} to {high:g} and sums from"
                f" {sums.min().item():g} to {sums.max().item():g}"
            )
    elif low < 0 or high >= num_classes:
        raise ValueError(
            f"y holds labels from {low} to {high}; expected them from 0 to"
            f" {num_classes - 1}"
        )
