"""The few densities and helpers that ``torch.distributions`` lacks or gets wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import singledispatch

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    constraints,
)
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.distributions.transforms import Transform, _InverseTransform
from torch.nn import functional as F

from aevb.randomness import preserved, seed_device

# Below this size of the logit, Taylor series replace closed forms that cancel; at
# 0.5 the series are off by less than 1e-11 and the closed forms by rounding alone.
_SERIES_BELOW = 0.5


def _polynomial(x: Tensor, *coefficients: float) -> Tensor:
    """c0 + c1 x + c2 x² + …, by Horner's rule."""
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = x * value + c
    return value


def _log_normalizer(logits: Tensor) -> Tensor:
    """log((1 - exp(-|ℓ|)) / |ℓ|), the even part of the log normalizer."""
    size = logits.abs()
    safe = size.clamp(min=_SERIES_BELOW)
    closed = torch.log(-torch.expm1(-safe) / safe)
    square = size.clamp(max=_SERIES_BELOW).square()
    series = _polynomial(square, 0.0, 1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800)
    return torch.where(size < _SERIES_BELOW, series - size / 2, closed)


def _mean(logits: Tensor) -> Tensor:
    """1 / (1 - exp(-ℓ)) - 1 / ℓ, with a Taylor series for small |ℓ|."""
    small = logits.abs() < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(logits), logits)
    # exp(60) is as good as infinite beside 1 / ℓ, and keeps the gradient finite
    closed = -1 / torch.expm1(-safe.clamp(min=-60)) - 1 / safe
    inner = torch.where(small, logits, torch.zeros_like(logits))
    odd = _polynomial(inner.square(), 1 / 12, -1 / 720, 1 / 30240, -1 / 1209600)
    return torch.where(small, 0.5 + inner * odd, closed)


def logit_of_mean(mean: Tensor) -> Tensor:
    """The logit ℓ of the continuous Bernoulli with this mean, by bisection.

    Args:
        mean: any shape, in (0, 1); |ℓ| is at most 1000, reached 1 / 1000 from an end.

    Example:
        >>> ContinuousBernoulli(logit_of_mean(torch.tensor([0.1, 0.5]))).mean
        tensor([0.1000, 0.5000])
    """
    low, high = torch.full_like(mean, -1000.0), torch.full_like(mean, 1000.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = _mean(middle) < mean
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


class _InLogit(torch.autograd.Function):
    """log p(x | ℓ) with natural parameter ℓ: the gradient is x - mean in ℓ, ℓ in x."""

    generate_vmap_rule = True  # torch.func may map over it

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def gradients(ctx, grad: Tensor, mean: Callable[[Tensor], Tensor]):
        value, logits = ctx.saved_tensors
        d_value = grad * logits if ctx.needs_input_grad[0] else None
        d_logits = grad * (value - mean(logits)) if ctx.needs_input_grad[1] else None
        return d_value, d_logits


class _LogDensity(_InLogit):
    """Of the continuous Bernoulli."""

    @staticmethod
    def forward(value: Tensor, logits: Tensor) -> Tensor:
        # ℓ > 0: (x - 1) ℓ, else x ℓ: exact where x ℓ - max(ℓ, 0) would cancel
        return (value - (logits > 0).to(value.dtype)) * logits - _log_normalizer(logits)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _InLogit.gradients(ctx, grad, _mean)


class ContinuousBernoulli(Distribution):
    r"""Continuous Bernoulli on [0, 1], exact for every finite logit.

    The density is :math:`p(x \mid \ell) \propto e^{x\ell}` with the *logit*
    :math:`\ell = \log\frac{\lambda}{1-\lambda}` as its natural parameter:

    .. math:: \log p(x \mid \ell)
        = x\ell - \max(\ell, 0) - \log\frac{1 - e^{-|\ell|}}{|\ell|}.

    It is evaluated without clamping, with Taylor series for small :math:`|\ell|`, so
    that value and gradient are right where ``torch.distributions``' version (which
    clamps :math:`\lambda` to [1.2e-7, 1 - 1.2e-7]) is not. Equations
    ``eq-cb-density``, ``eq-cb-log-normalizer`` and ``eq-cb-mean``; Loaiza-Ganem and
    Cunningham (2019).

    Args:
        logits: any shape, any finite value.
        validate_args: check arguments (``torch.distributions``' convention).

    Example:
        >>> p = ContinuousBernoulli(torch.tensor([-500.0, 0.0, 500.0]))
        >>> p.log_prob(torch.tensor([0.0, 0.3, 1.0]))
        tensor([6.2146, 0.0000, 6.2146])
        >>> p.mean
        tensor([0.0020, 0.5000, 0.9980])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 (torch's convention)
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> ContinuousBernoulli:
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(batch_shape)
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self) -> Tensor:
        """λ = sigmoid(ℓ): the parameter, *not* the mean."""
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 - exp(-ℓ)) - 1 / ℓ (``eq-cb-mean``)."""
        return _mean(self.logits)

    @property
    def variance(self) -> Tensor:
        """Var[x] = 1 / ℓ² - exp(-|ℓ|) / (1 - exp(-|ℓ|))²."""
        size = self.logits.abs()
        safe = size.clamp(min=_SERIES_BELOW)
        closed = safe.pow(-2) - torch.exp(-safe) / torch.expm1(-safe).square()
        square = size.clamp(max=_SERIES_BELOW).square()
        terms = (1 / 12, -1 / 240, 1 / 6048, -1 / 172800, 1 / 5322240)
        return torch.where(size < _SERIES_BELOW, _polynomial(square, *terms), closed)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value`` in [0, 1], nats (``eq-cb-density``)."""
        if self._validate_args:
            self._validate_sample(value)
        value, logits = torch.broadcast_tensors(value, self.logits)
        return _LogDensity.apply(value, logits)

    def cdf(self, value: Tensor) -> Tensor:
        """P(x <= value) = (exp(ℓ v) - 1) / (exp(ℓ) - 1)."""
        if self._validate_args:
            self._validate_sample(value)
        return _cdf(self.logits, value)

    def icdf(self, value: Tensor) -> Tensor:
        """The x with P(X <= x) = ``value``; differentiable in the logits."""
        return _icdf(self.logits, value)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        u = torch.rand(
            self._extended_shape(sample_shape),
            dtype=self.logits.dtype,
            device=self.logits.device,
        )
        return self.icdf(u)

    def entropy(self) -> Tensor:
        """-E[log p(x)], nats: log p is linear in x, so it is -log p(E[x]).

        It is even in ℓ, and computed at -|ℓ|: there E[x] is near 0, and keeps digits
        that it would lose near 1.
        """
        mirrored = ContinuousBernoulli(-self.logits.abs(), validate_args=False)
        return -mirrored.log_prob(mirrored.mean)


# Nearer to 0 than this, cdf and icdf are polynomials in the logit (to the third order),
# since the gradients of their closed forms cancel.
_CUBIC_BELOW = 0.02


def _cdf(logits: Tensor, x: Tensor) -> Tensor:
    tiny = logits.abs() < _CUBIC_BELOW
    safe = torch.where(tiny, torch.ones_like(logits), logits)
    y = 1 - x
    closed = torch.expm1(-safe.abs() * x) / torch.expm1(-safe.abs())
    closed = closed * torch.exp(-safe.clamp(min=0) * y)
    near = torch.where(tiny, logits, torch.zeros_like(logits))
    cubic = x * _cubic(near, 1, -y / 2, y * (1 - 2 * x) / 12, x * y.square() / 24)
    return torch.where(tiny, cubic, closed)


def _icdf(logits: Tensor, u: Tensor) -> Tensor:
    # log(1 - u + u exp(ℓ)) / ℓ in two forms: the first one overflows for large ℓ and
    # takes the logarithm of 0 for u near 1, the second one cancels for small |ℓ|
    size, one = logits.abs(), torch.ones_like(logits)
    tiny, large = size < _CUBIC_BELOW, size > 1
    mild = torch.where(tiny | large, one, logits)
    mild = torch.log1p(u * torch.expm1(mild)) / mild
    wild = torch.where(large, logits, one)
    wild = torch.logaddexp(torch.log1p(-u), torch.log(u) + wild) / wild
    near = torch.where(tiny, logits, torch.zeros_like(logits))
    v = 1 - u
    cubic = u * _cubic(near, 1, v / 2, v * (1 - 2 * u) / 6, v * (1 - 6 * u * v) / 24)
    x = torch.where(tiny, cubic, torch.where(large, wild, mild))
    return x.clamp(0, 1)


def _cubic(x: Tensor, c0, c1, c2, c3) -> Tensor:
    return c0 + x * (c1 + x * (c2 + x * c3))


class _LogProbability(_InLogit):
    """Of the Bernoulli: x ℓ - softplus(ℓ)."""

    @staticmethod
    def forward(value: Tensor, logits: Tensor) -> Tensor:
        return value * logits - F.softplus(logits)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _InLogit.gradients(ctx, grad, torch.sigmoid)


class Bernoulli(torch.distributions.Bernoulli):
    """torch's Bernoulli, with a log-probability at less than half its cost.

    Where a model has Bernoulli pixels, most of the time that matrix products leave goes
    into this one function and its gradient.

    Example:
        >>> Bernoulli(logits=torch.tensor([0.0, 3.0])).log_prob(torch.ones(2))
        tensor([-0.6931, -0.0486])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """x ℓ - log(1 + exp(ℓ)), nats; the shape that ``value`` and ℓ broadcast to."""
        if self._validate_args:
            self._validate_sample(value)
        return _LogProbability.apply(value, self.logits)


def diagonal_normal(mean: Tensor, std: Tensor) -> Independent:
    """N(mean, diag(std²)) over the last dimension; ``log_prob`` sums over it.

    Arguments are not validated: this runs in the inner loop of training.

    Example:
        >>> diagonal_normal(torch.zeros(5, 2), torch.ones(5, 2)).batch_shape
        torch.Size([5])
    """
    return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)


def detached(distribution: Distribution) -> Distribution:
    """The same distribution, as constant: no gradient reaches its parameters.

    Example:
        >>> mean = torch.zeros(2, requires_grad=True)
        >>> q_z = diagonal_normal(mean, torch.ones(2))
        >>> q_z.log_prob(torch.ones(2)).requires_grad
        True
        >>> detached(q_z).log_prob(torch.ones(2)).requires_grad
        False
    """
    return _constant(distribution)


def _constant(value):
    """The tensors in it detached; distributions and their transforms are copied."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(map(_constant, value))
    if isinstance(value, _InverseTransform):
        return _constant(value.inv).inv
    if not (isinstance(value, Transform) or hasattr(value, "log_prob")):
        return value
    new = copy(value)
    for name, part in vars(value).items():
        if name != "_inv":  # a transform's link back from its inverse, made anew there
            setattr(new, name, _constant(part))
    return new


def is_reparameterised(distribution: Distribution) -> bool:
    """Whether draws carry a gradient: ``has_rsample``, False for a class without it.

    Example:
        >>> is_reparameterised(diagonal_normal(torch.zeros(2), torch.ones(2)))
        True
        >>> is_reparameterised(torch.distributions.Poisson(torch.ones(2)))
        False
    """
    return getattr(distribution, "has_rsample", False)


@singledispatch
def rsample(
    distribution: Distribution,
    sample_shape: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw from ``distribution``, reparameterised where it can be, with a generator.

    ``torch.distributions`` draws from the global generator only. This function draws
    from ``generator``, or from the global one where that is None. The gradient of a
    draw is that of ``eq-reparameterised-gradient``; where no reparameterisation exists
    (Bernoulli, Categorical, a mixture) the draw carries none.

    The distributions of this book take their noise from ``generator`` directly. Any
    other one is drawn by its own ``rsample`` or ``sample``, from a global state that
    is seeded by ``generator`` for as long as that takes, and put back: as repeatable,
    and a few microseconds slower.

    Args:
        distribution: any ``torch.distributions.Distribution``, or a class of your own
            with ``sample``, and with ``rsample`` where its ``has_rsample`` is true.
        sample_shape: the shape in front of the distribution's own.
        generator: on the distribution's device.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> rsample(diagonal_normal(torch.zeros(3), torch.ones(3)), (2,), g).shape
        torch.Size([2, 3])
        >>> rsample(torch.distributions.Poisson(torch.ones(3)), (2,), g).shape
        torch.Size([2, 3])
    """
    d = distribution
    draw = d.rsample if is_reparameterised(d) else d.sample
    if generator is None:
        return draw(torch.Size(sample_shape))
    with _seeded_by(generator):
        return draw(torch.Size(sample_shape))


@contextmanager
def _seeded_by(generator: torch.Generator) -> Iterator[None]:
    """The global random state seeded by a draw from ``generator``, then put back."""
    device = generator.device
    seed = torch.randint(2**62, (), device=device, generator=generator).item()
    with preserved(device):
        seed_device(seed, device)
        yield


def _noise(kind, distribution, like: Tensor, sample_shape, generator) -> Tensor:
    shape = distribution._extended_shape(torch.Size(sample_shape))
    return kind(shape, dtype=like.dtype, device=like.device, generator=generator)


@rsample.register
def _(distribution: Independent, sample_shape=(), generator=None) -> Tensor:
    return rsample(distribution.base_dist, sample_shape, generator)


@rsample.register
def _(distribution: Normal, sample_shape=(), generator=None) -> Tensor:
    d = distribution
    return d.loc + d.scale * _noise(torch.randn, d, d.loc, sample_shape, generator)


@rsample.register
def _(distribution: MultivariateNormal, sample_shape=(), generator=None) -> Tensor:
    d = distribution
    noise = _noise(torch.randn, d, d.loc, sample_shape, generator)
    return d.loc + (d._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


@rsample.register
def _(distribution: ContinuousBernoulli, sample_shape=(), generator=None) -> Tensor:
    d = distribution
    return d.icdf(_noise(torch.rand, d, d.logits, sample_shape, generator))


@rsample.register
def _(
    distribution: torch.distributions.Bernoulli, sample_shape=(), generator=None
) -> Tensor:
    d = distribution
    with torch.no_grad():
        uniform = _noise(torch.rand, d, d.probs, sample_shape, generator)
        return (uniform < d.probs).to(d.probs.dtype)


@rsample.register
def _(distribution: Categorical, sample_shape=(), generator=None) -> Tensor:
    d = distribution
    with torch.no_grad():
        count = math.prod(sample_shape)
        flat = d.probs.reshape(-1, d.probs.shape[-1])  # (batch, C)
        draw = torch.multinomial(flat, count, replacement=True, generator=generator)
        return draw.T.reshape((*sample_shape, *d.batch_shape))


@rsample.register
def _(distribution: ExpRelaxedCategorical, sample_shape=(), generator=None) -> Tensor:
    d = distribution
    uniform = _noise(torch.rand, d, d.logits, sample_shape, generator)
    tiny = torch.finfo(uniform.dtype).tiny
    gumbel = -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
    return ((d.logits + gumbel) / d.temperature).log_softmax(-1)


@rsample.register
def _(distribution: MixtureSameFamily, sample_shape=(), generator=None) -> Tensor:
    d = distribution
    with torch.no_grad():
        weights = d.mixture_distribution.expand(d.batch_shape)
        k = rsample(weights, sample_shape, generator)  # (…): which component
        draws = rsample(d.component_distribution, sample_shape, generator)  # (…, K, E)
        index = k.view(*k.shape, *[1] * (1 + len(d.event_shape)))
        index = index.expand(*k.shape, 1, *d.event_shape)
        return draws.gather(k.dim(), index).squeeze(k.dim())
