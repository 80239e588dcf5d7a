"""How good a model is: bounds, evidence estimates and their standard errors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
)

from aevb import annealing
from aevb.data import Batches
from aevb.distributions import rsample
from aevb.inference import fit_per_point
from aevb.model import (
    ElboTerms,
    LatentVariableModel,
    check_count,
    device_of,
    evaluating,
)

BATCH_SIZE = 1000  # examples at a time; it decides which draws an example gets
STARTS = ("prior", "posterior")  # where annealing may begin
_WEIGHTED = 100  # examples whose weights are drawn at a time; it decides as well
_ROWS = 10_000  # chains of all examples that are annealed at a time
_PILOT = 200, 2  # steps, at most, and chains that find the step sizes
_GRID_NUMBERS = 4_000_000  # that a grid computes at a time; bounds the memory


class Estimate(NamedTuple):
    """A mean over examples, in nats per example.

    Attributes:
        mean: over the examples.
        standard_error: of that mean, from the spread over the examples.
        values: (N,) the examples' own.
    """

    mean: float
    standard_error: float
    values: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From the examples' own values (N,), which become float64."""
        values = values.double()
        spread = values.std().item() if len(values) > 1 else math.nan
        return cls(values.mean().item(), spread / math.sqrt(len(values)), values)

    def __repr__(self) -> str:
        return f"{self.mean:.2f} ± {self.standard_error:.2f} nats"


@contextmanager
def _evaluating(model: LatentVariableModel, seed: int) -> Iterator[torch.Generator]:
    """Evaluation mode, no gradients, and a generator of its own on the device."""
    with evaluating(model), torch.no_grad():
        yield torch.Generator(device_of(model)).manual_seed(seed)


def _batches(model: LatentVariableModel, data, batch_size: int) -> Batches:
    if isinstance(data, Batches):
        return data
    check = model.check
    return Batches(data, model.inputs, batch_size, device_of(model), check=check)


def _check_prior(model: LatentVariableModel, count: int) -> None:
    """Raise unless p(z) can be asked for, given ``count`` conditions.

    Raises:
        TypeError: says which model it is and what is expected.
    """
    signature = inspect.signature(model.prior)
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise TypeError(
            f"model is a {type(model).__name__}, whose prior takes"
            f" ({', '.join(signature.parameters)}); expected one that takes {count}"
            " conditions, for a single z of each example"
        ) from error


def terms(
    model: LatentVariableModel, data, num_samples: int = 1, seed: int = 0
) -> ElboTerms:
    """The terms of the ELBO of each example: (N,) each; see :func:`elbo`."""
    check_count("num_samples", num_samples)
    examples = max(1, min(BATCH_SIZE, 20000 // num_samples))  # bounds the memory
    parts = []
    with _evaluating(model, seed) as generator:
        for batch in _batches(model, data, examples):
            parts.append(
                model.elbo(*batch, num_samples=num_samples, generator=generator)
            )
    return ElboTerms(*(torch.cat(column) for column in zip(*parts, strict=True)))


def elbo(
    model: LatentVariableModel, data, num_samples: int = 1, seed: int = 0
) -> Estimate:
    """Mean ELBO over the examples, with its standard error.

    Args:
        data: a tensor, a tuple of tensors, Examples, a Dataset or a DataLoader.
        num_samples: draws of z for each example.
        seed: of the draws.

    Raises:
        ValueError, TypeError: the data do not suit the model, or num_samples < 1.

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis()
        >>> train, test = data.factor_analysis()
        >>> elbo(model, test).mean < model.evidence(test.x).mean()
        tensor(True)
    """
    return Estimate.of(terms(model, data, num_samples, seed).elbo)


def _log_mean(
    draw: Callable[..., Tensor], num_samples: int, at_a_time: int = 100
) -> Tensor:
    """log (1/K) Σ_k exp(w_k) of K logarithms w_k (K, B), without all of them: (B,).

    Args:
        draw: ``draw(num_samples=k)`` gives k of them, (k, B).
        num_samples: K.
        at_a_time: the most draws that are held in memory.
    """
    total, left = None, num_samples
    while left:
        count = min(left, at_a_time)
        part = draw(num_samples=count).double().logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
        left -= count
    return total - math.log(num_samples)


def log_likelihood(
    model: LatentVariableModel,
    data,
    num_samples: int = 5000,
    seed: int = 0,
    progress: Callable | None = None,
) -> Estimate:
    """Importance-weighted estimate of log p(x), whose mean is a lower bound.

    log (1/K) Σ_k p(x, z_k) / q(z_k | x),  z_k ~ q(z | x)  (``eq-importance-weighted``;
    Burda et al., 2016). It increases with K in expectation; K = 1 is the ELBO.

    Args:
        data: as for :func:`elbo`.
        num_samples: K, draws of z for each example.
        seed: of the draws.
        progress: wraps the iterable of batches (``tqdm``, say).

    Returns:
        :class:`Estimate`; its standard error covers the spread over examples.

    Raises:
        ValueError: num_samples < 1.
    """
    check_count("num_samples", num_samples)
    values = []
    with _evaluating(model, seed) as generator:
        batches = _batches(model, data, _WEIGHTED)
        for batch in progress(batches) if progress else batches:
            values.append(_weighted(model, batch, num_samples, generator))
    return Estimate.of(torch.cat(values))


def _weighted(model, batch, num_samples: int, generator) -> Tensor:
    """The importance-weighted estimate of log p(x) of one batch: (B,), float64."""
    draw = partial(model.log_weights, *batch, generator=generator)
    # 20 x 100 x D numbers stay in a processor's cache; a GPU works best on many
    at_a_time = 1000 if batch[0].is_cuda else 20
    return _log_mean(draw, num_samples, at_a_time)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many of K importance weights count, from 1 to K.

    (Σ_k w_k)² / Σ_k w_k² (``eq-effective-sample-size``): K if all are equal, 1 if one
    outweighs the others. It knows only the weights that were drawn: where q misses a
    part of p(z | x), it can be large and the estimate wrong.

    Args:
        log_weights: (K, …), nats, as ``model.log_weights`` gives.

    Returns:
        (…), float64.

    Example:
        >>> effective_sample_size(torch.tensor([3.0, 3.0, -100.0]))
        tensor(2., dtype=torch.float64)
    """
    log_w = log_weights.double()
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


class ImportanceCurve(NamedTuple):
    """The importance-weighted bound by number of draws: :func:`importance_curve`.

    Attributes:
        counts: K = 1, 2, 4, …
        values: (len(counts), N), estimates of the bound of each example, nats.
        effective: (N,), effective sample size of all draws.
    """

    counts: tuple[int, ...]
    values: Tensor
    effective: Tensor


def importance_curve(
    model: LatentVariableModel, data, most: int = 1024, seed: int = 0
) -> ImportanceCurve:
    """The importance-weighted bound for K = 1, 2, 4, …, from the same draws.

    The draws of an example are cut into groups of K, and log (1/K) Σ_k w_k
    (``eq-importance-weighted``) is averaged over the groups, so that small K is less
    noisy than large K. A group is two groups of half the size: the values of every
    example rise with K, not only their expectations (``eq-iw-monotone``).

    Args:
        data: as for :func:`elbo`.
        most: the largest K, a power of two; all of them are held for 100 examples.
        seed: of the draws.

    Raises:
        ValueError: ``most`` is not a power of two.

    Example:
        >>> from aevb import data, models
        >>> x = data.factor_analysis()[1].x[:20]
        >>> curve = importance_curve(models.FactorAnalysis(), x, most=8)
        >>> curve.counts, bool((curve.values.diff(dim=0) >= 0).all())
        ((1, 2, 4, 8), True)
    """
    if most < 1 or most & (most - 1):
        raise ValueError(f"most is {most}; expected a power of two")
    counts = tuple(2**k for k in range(most.bit_length()))
    values, effective = [], []
    with _evaluating(model, seed) as generator:
        for batch in _batches(model, data, 100):
            draw = partial(model.log_weights, *batch, generator=generator)
            parts = [draw(num_samples=min(most, 128)) for _ in range(0, most, 128)]
            log_w = torch.cat(parts).double()  # (most, B)
            effective.append(effective_sample_size(log_w))
            groups, rows = log_w, [log_w.mean(0)]
            for _ in counts[1:]:  # log-means of pairs, of pairs of pairs, …
                groups = torch.logaddexp(groups[::2], groups[1::2]) - math.log(2)
                rows.append(groups.mean(0))
            values.append(torch.stack(rows))
    return ImportanceCurve(counts, torch.cat(values, 1), torch.cat(effective))


def naive_log_likelihood(
    model: LatentVariableModel, data, num_samples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate of log p(x) from draws of the prior: for few latent dimensions only.

    log (1/S) Σ_s p(x | z_s),  z_s ~ p(z)  (``eq-naive-monte-carlo``). The estimate of
    p(x) is unbiased; its logarithm is too small in expectation, and by far so where
    few of the draws explain x. :func:`log_likelihood` draws where the weights are.

    Args:
        data: as for :func:`elbo`; no conditions.
        num_samples: S, draws of z for each example.
        seed: of the draws.

    Returns:
        :class:`Estimate`; its standard error covers the spread over examples.

    Raises:
        ValueError: num_samples < 1.
        TypeError: a conditional model, or one of many z for each example.

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
        >>> x = data.factor_analysis()[1].x[:5]
        >>> error = naive_log_likelihood(model, x, 20000).values - model.evidence(x)
        >>> bool(error.abs().max() < 0.2)
        True
    """
    check_count("num_samples", num_samples)
    _check_prior(model, 0)
    values = []
    with _evaluating(model, seed) as generator:
        for (x,) in _batches(model, data, 100):

            def log_p(num_samples: int, x: Tensor = x) -> Tensor:
                z = rsample(model.prior(), (num_samples, len(x)), generator)
                return model.likelihood(z).log_prob(x)  # z (S, B, L) -> (S, B)

            values.append(_log_mean(log_p, num_samples))
    return Estimate.of(torch.cat(values))


# --- annealed importance sampling ---


class AnnealedEstimate(NamedTuple):
    """An estimate of log p(x) from annealed chains, nats per example.

    Attributes:
        mean, standard_error, values: as for :class:`Estimate`: the standard error
            covers the spread over examples.
        monte_carlo_error: (N,), standard error of each value, from the spread over the
            chains, to first order: trust it where it is well below 1.
        acceptance: (N,), share of the Hamiltonian proposals that were accepted; NaN if
            there were none.
    """

    mean: float
    standard_error: float
    values: Tensor
    monte_carlo_error: Tensor
    acceptance: Tensor

    __repr__ = Estimate.__repr__


def _annealed(walks: list[annealing.Walk], sign: int) -> AnnealedEstimate:
    """The estimate from the walks of some batches; sign -1 if they estimate 1 / p."""
    log_w = torch.cat([walk.log_weights for walk in walks], 1)  # (C, N)
    values = log_w.logsumexp(0) - math.log(len(log_w))
    w = (log_w - values).exp()  # mean 1
    error = w.std(0) / math.sqrt(len(w)) if len(w) > 1 else math.nan * w[0]
    acceptance = torch.cat([walk.acceptance.double().mean(0) for walk in walks])
    return AnnealedEstimate(*Estimate.of(sign * values), error, acceptance)


class _Path:
    """The way from p(z) or q(z | x) to p(x, z), for one batch.

    It finds its own step sizes, by chains that are thrown away, before any chain that
    counts: adapted sizes would depend on the chains, and the bounds be none.
    """

    def __init__(self, model, batch, steps, leapfrog, chains, start, generator):
        self.x, *condition = batch
        self.shape = chains, len(self.x)
        self.generator, self.leapfrog = generator, leapfrog
        self.betas = annealing.schedule(steps)
        self.prior = model.prior(*condition)
        self.likelihood = lambda z: model.likelihood(z, *condition).log_prob(self.x)
        self.q_z = model.posterior(*batch) if start == "posterior" else None
        self.start = self.prior if self.q_z is None else self.q_z
        self.scale = self.start.stddev  # (L,) or (B, L)
        self.sizes = self.tuned(steps)  # (steps - 1, B)

    def densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p_0(z) and log p(x, z) - log p_0(z): (C, B) each."""
        if self.q_z is None:
            return self.prior.log_prob(z), self.likelihood(z)
        log_q = self.q_z.log_prob(z)
        return log_q, self.likelihood(z) + self.prior.log_prob(z) - log_q

    def draw(self, chains: int) -> Tensor:
        """z ~ p_0: (chains, B, L)."""
        count = () if self.start.batch_shape else (len(self.x),)
        return rsample(self.start, (chains, *count), self.generator)

    def walk(self, z: Tensor, betas: list[float], sizes: Tensor, **options):
        options |= {"scale": self.scale, "leapfrog_steps": self.leapfrog}
        return annealing.anneal(
            self.densities, z, betas, sizes, generator=self.generator, **options
        )

    def tuned(self, steps: int) -> Tensor:
        size = self.scale.new_full((len(self.x),), 0.5)  # in units of the scale
        if steps == 1:
            return size[None, :][:0]  # no transitions
        stages, chains = min(_PILOT[0], 2 * steps), _PILOT[1]
        betas = annealing.schedule(stages)
        pilot = self.walk(self.draw(chains), betas, size, adapt=True)
        share = torch.arange(1, steps) / steps  # of the way, after each step
        nearest = (share * stages).round().long().clamp(1, stages - 1) - 1
        return pilot.sizes[nearest.to(size.device)]

    def up(self, progress=None) -> annealing.Walk:
        """From draws of p_0: weights whose mean is p(x), in expectation."""
        z = self.draw(self.shape[0])
        return self.walk(z, self.betas, self.sizes, progress=progress)

    def down(self, z: Tensor, progress=None) -> annealing.Walk:
        """From a draw z (B, L) of p(z | x): weights whose mean is 1 / p(x)."""
        betas, sizes = self.betas[::-1], self.sizes.flip(0)
        z = z.expand(*self.shape, -1)
        return self.walk(z, betas, sizes, progress=progress)


def _check_annealing(steps, leapfrog, chains, start) -> None:
    for name, count in (("steps", steps), ("leapfrog", leapfrog), ("chains", chains)):
        check_count(name, count)
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; expected one of {STARTS}")


def annealed_importance_sampling(
    model: LatentVariableModel,
    data,
    steps: int = 1000,
    leapfrog: int = 10,
    chains: int = 16,
    start: str = "prior",
    seed: int = 0,
    progress: Callable | None = None,
) -> AnnealedEstimate:
    """log p(x) by annealed importance sampling with Hamiltonian transitions.

    Chains start at p_0(z), the prior or q(z | x), and are led to p(z | x) through

    f_β(z) = p_0(z)^(1 - β) p(x, z)^β,  0 = β_0 < … < β_T = 1,

    by a transition at each β_t that leaves f_{β_t} as it is, and is weighted by
    log w = Σ_t (β_t - β_{t-1}) [log p(x, z_{t-1}) - log p_0(z_{t-1})]. Since
    E[w] = p(x), the log of the mean of w over chains estimates log p(x) from below, in
    expectation, and reaches it as either number grows (Neal, 2001; for decoders Wu et
    al., 2017). One step from ``"posterior"`` is the importance-weighted bound with
    ``chains`` draws, as :func:`log_likelihood` has it. Unlike it, many steps from
    ``"prior"`` owe nothing to q: this estimate judges θ alone.

    Transitions are Hamiltonian Monte Carlo, z continuous. A first, short run finds a
    step size for each example and each β at which 65 % of the proposals are accepted,
    and is thrown away.

    In equations: ``eq-annealing-path``, ``eq-annealing-weight``,
    ``eq-annealing-unbiased``.

    Args:
        data: as for :func:`elbo`.
        steps: T. Each but the last costs ``leapfrog`` gradients of the log-likelihood
            for each chain.
        leapfrog: steps of one Hamiltonian path.
        chains: C, for each example.
        start: p_0, ``"prior"`` or ``"posterior"``: q(z | x), which is nearer, but may
            miss what q misses.
        seed: of the chains.
        progress: wraps the iterable of steps of each batch (``tqdm``, say).

    Raises:
        ValueError: ``steps``, ``leapfrog`` or ``chains`` < 1; unknown ``start``; z is
            discrete, or bounded.

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
        >>> x = data.factor_analysis()[1].x[:20]
        >>> found = annealed_importance_sampling(model, x, steps=200, leapfrog=5)
        >>> bool(abs(found.mean - model.evidence(x).mean()) < 0.2)
        True
    """
    _check_annealing(steps, leapfrog, chains, start)
    _check_prior(model, len(model.inputs) - 1)
    settings = (steps, leapfrog, chains, start)
    walks = []
    with _evaluating(model, seed) as generator:
        for batch in _batches(model, data, max(1, _ROWS // chains)):
            _check_continuous(model.prior(*batch[1:]))
            walks.append(_Path(model, batch, *settings, generator).up(progress))
    return _annealed(walks, +1)


class Sandwich(NamedTuple):
    """log p(x) of simulated data, from both sides: :func:`bidirectional_monte_carlo`.

    Attributes:
        x: (N, D), the data.
        lower, upper: estimates from below and from above, in expectation.
    """

    x: Tensor
    lower: AnnealedEstimate
    upper: AnnealedEstimate

    @property
    def gap(self) -> Estimate:
        """upper - lower of each example, nats: neither is further from the truth."""
        return Estimate.of(self.upper.values - self.lower.values)


def bidirectional_monte_carlo(
    model: LatentVariableModel,
    n: int,
    *condition: Tensor,
    steps: int = 1000,
    leapfrog: int = 10,
    chains: int = 16,
    start: str = "prior",
    seed: int = 0,
    progress: Callable | None = None,
) -> Sandwich:
    """How precise annealing is: log p(x) between two bounds, on simulated data.

    z ~ p(z), x ~ p(x | z): for this x, z is an exact draw of p(z | x). So the chains of
    :func:`annealed_importance_sampling` can also be run backwards, from z at β = 1 to
    p_0. Their weights have the mean 1 / p(x) (``eq-annealing-backward``), and minus the
    log of their mean estimates log p(x) from *above*, in expectation
    (``eq-annealing-sandwich``; Grosse, Ghahramani and Adams, 2015). Both bounds are one
    number where there are enough steps. Real data offer no exact draw; settings that
    are precise on simulated data are trusted on real ones as far as the two are alike.

    Args:
        n: examples to simulate; for a conditional model, for each condition.
        condition: for a conditional model, of batch shape (B,); then N = n B.
        steps, leapfrog, chains, start, seed, progress: as for
            :func:`annealed_importance_sampling`; the data as well come from ``seed``.

    Raises:
        ValueError: as :func:`annealed_importance_sampling`; n < 1.

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
        >>> found = bidirectional_monte_carlo(model, 20, steps=50, leapfrog=5)
        >>> truth = model.evidence(found.x).mean()
        >>> bool(found.lower.mean - 0.1 < truth < found.upper.mean + 0.1)
        True
    """
    check_count("n", n)
    _check_annealing(steps, leapfrog, chains, start)
    _check_prior(model, len(condition))
    settings = (steps, leapfrog, chains, start)
    ups, downs = [], []
    with _evaluating(model, seed) as generator:
        prior = model.prior(*condition)
        _check_continuous(prior)
        z = rsample(prior, (n,), generator)  # (n, L) or (n, B, L)
        x = rsample(model.likelihood(z, *condition), (), generator)
        event = x.ndim - z.ndim + 1
        x, z = x.flatten(0, -1 - event), z.flatten(0, -2)
        condition = [c.expand(n, *c.shape).flatten(0, 1) for c in condition]
        size = max(1, _ROWS // chains)
        parts = (t.split(size) for t in (z, x, *condition))
        for exact, *batch in zip(*parts, strict=True):
            path = _Path(model, batch, *settings, generator)
            ups.append(path.up(progress))
            downs.append(path.down(exact, progress))
    return Sandwich(x, _annealed(ups, +1), _annealed(downs, -1))


def _check_continuous(prior: Distribution) -> None:
    if prior.support.is_discrete:
        raise ValueError("z is discrete; annealing expects a continuous z")
    support = prior.support
    while hasattr(support, "base_constraint"):  # of the coordinates
        support = support.base_constraint
    if support not in (constraints.real, constraints.real_vector):
        raise ValueError(
            f"z is bounded, {support}; annealing moves on the whole real line. Let z be"
            " real, and make the transformation the first step of the likelihood: the"
            " evidence is the same"
        )


# --- what the bound loses, and where ---


class InferenceGap(NamedTuple):
    """log p(x) - ELBO, split in two: :func:`inference_gap`. Nats per example.

    Attributes:
        log_likelihood: log p(x), as estimated or given.
        best: ELBO of the best member of the family, for each example by itself.
        amortised: ELBO of the model's own posterior.
    """

    log_likelihood: Estimate
    best: Estimate
    amortised: Estimate

    @property
    def approximation(self) -> Estimate:
        """log p(x) - ELBO of the best q: what the family cannot do."""
        return Estimate.of(self.log_likelihood.values - self.best.values)

    @property
    def amortisation(self) -> Estimate:
        """ELBO of the best q - ELBO of the model's: what its network does not do."""
        return Estimate.of(self.best.values - self.amortised.values)

    @property
    def total(self) -> Estimate:
        """log p(x) - ELBO."""
        return Estimate.of(self.log_likelihood.values - self.amortised.values)


def inference_gap(
    model: LatentVariableModel,
    data,
    log_p: Tensor | None = None,
    family: str = "diagonal",
    steps: int = 500,
    num_samples: int = 1000,
    seed: int = 0,
) -> InferenceGap:
    """Split log p(x) - ELBO into approximation gap and amortisation gap.

    (``eq-gap-split``; Cremer et al., 2018.) The best q of the family is found for each
    example by :func:`aevb.inference.fit_per_point`, from the model's own q(z | x)
    onwards, so that the amortisation gap has the meaning of its name if the family
    contains that. Both ELBOs are computed from the same noise.

    Args:
        model: with a Gaussian q(z | x).
        data: as for :func:`elbo`.
        log_p: (N,), log p(x) of the examples, in the order in which ``data`` gives
            them, exact or as another method estimates it
            (``annealed_importance_sampling(…).values``); as by :func:`log_likelihood`
            with 5000 draws if None. What it falls short of the truth, the approximation
            gap falls short of the truth as well.
        family: ``"diagonal"`` or ``"full"``.
        steps: of ``fit_per_point``.
        num_samples: pairs of draws z, 2 E_q[z] - z for each ELBO.
        seed: of all draws.

    Returns:
        :class:`InferenceGap`. The standard errors of its differences are those of
        paired differences, from the spread over examples.

    Raises:
        ValueError: ``steps`` or ``num_samples`` < 1; unknown ``family``; ``log_p`` is
            not (N,).

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis(posterior="diagonal")
        >>> x = data.factor_analysis()[1].x[:20]
        >>> found = inference_gap(model, x, model.evidence(x), steps=100)
        >>> bool(found.total.mean > found.approximation.mean > 0)
        True
    """
    check_count("num_samples", num_samples)
    _check_prior(model, len(model.inputs) - 1)
    best, amortised, weighted = [], [], []
    with _evaluating(model, seed) as generator:
        batches = _batches(model, data, BATCH_SIZE)
        if log_p is not None and log_p.shape != (batches.num_examples,):
            raise ValueError(
                f"log_p has shape {tuple(log_p.shape)}; expected"
                f" ({batches.num_examples},), one number for each example"
            )
        draws = torch.Generator(generator.device).manual_seed(seed)  # for log p(x)
        for batch in batches:
            network = model.posterior(*batch)
            options = {"family": family, "start": network, "steps": steps, "seed": seed}
            fitted = fit_per_point(model, *batch, **options)()
            noise = generator.get_state()
            for q_z, values in ((fitted, best), (network, amortised)):
                generator.set_state(noise)
                values.append(_elbo_of(q_z, model, batch, num_samples, generator))
            if log_p is None:
                parts = zip(*(part.split(_WEIGHTED) for part in batch), strict=True)
                weighted += [_weighted(model, part, 5000, draws) for part in parts]
    best, amortised = torch.cat(best), torch.cat(amortised)
    log_p = torch.cat(weighted) if log_p is None else log_p[: len(best)]
    log_p = log_p.detach().to(best)
    return InferenceGap(*map(Estimate.of, (log_p, best, amortised)))


def _elbo_of(q_z, model, batch, num_samples: int, generator) -> Tensor:
    """ELBO of any symmetric q from antithetic pairs of log-weights: (B,), float64.

    Log-weights hardly vary where q is good; log p(x, z) by itself would.
    """
    x, *condition = batch
    at_once = max(1, _ROWS // len(x))
    total, left = 0.0, num_samples
    while left:
        count = min(left, at_once)
        z = rsample(q_z, (count,), generator)
        z = torch.cat([z, 2 * q_z.mean - z])  # (2S, B, L)
        log_p = model.likelihood(z, *condition).log_prob(x)
        log_w = log_p + model.prior(*condition).log_prob(z) - q_z.log_prob(z)
        total = total + log_w.double().sum(0)
        left -= count
    return total / (2 * num_samples)


# --- what the latent coordinates do ---


def kl_per_coordinate(model: LatentVariableModel, data) -> Tensor:
    """KL(q(z_j | x) ‖ p(z_j)) for each latent coordinate j, mean over examples: (L,).

    Nats, float64 (``eq-kl-per-coordinate``). Where q(z | x) and p(z) are products of
    Gaussians it sums to the KL term of the ELBO (``eq-gaussian-kl``); where q has
    correlations, to less than that, since it looks at one coordinate at a time.

    Args:
        model: with a Gaussian q(z | x) and p(z).
        data: as for :func:`elbo`.

    Raises:
        ValueError: another q(z | x) or p(z).

    Example:
        >>> from aevb import data, models
        >>> x = data.factor_analysis()[1].x
        >>> kl_per_coordinate(models.FactorAnalysis(), x).shape
        torch.Size([2])
    """
    _check_prior(model, len(model.inputs) - 1)
    total, count = 0.0, 0
    with _evaluating(model, seed=0):
        for x, *condition in _batches(model, data, BATCH_SIZE):
            q, p = (
                _coordinates(name, distribution)
                for name, distribution in (
                    ("q(z | x)", model.posterior(x, *condition)),
                    ("p(z)", model.prior(*condition)),
                )
            )
            total = total + kl_divergence(q, p).double().sum(0)
            count += len(x)
    return total / count


def _coordinates(name: str, distribution: Distribution) -> Normal:
    """The marginals of a Gaussian: batch shape (…, L)."""
    base = getattr(distribution, "base_dist", distribution)
    if not isinstance(base, Normal | MultivariateNormal):
        raise ValueError(f"{name} is a {type(base).__name__}; expected a Gaussian")
    return Normal(distribution.mean, distribution.stddev, validate_args=False)


def activity(model: LatentVariableModel, data) -> Tensor:
    """How far q's means move from example to example, each coordinate: (L,), float64.

    Var_x(E_q[z_j | x]), for p(z) = N(0, I) (``eq-activity``; Burda et al., 2016). Where
    the prior is another one, the means are measured from its mean, in units of its
    standard deviation, so that a coordinate that only follows p(z | y) is not active.

    Args:
        data: as for :func:`elbo`.

    Example:
        >>> from aevb import data, models
        >>> activity(models.FactorAnalysis(), data.factor_analysis()[1].x).shape
        torch.Size([2])
    """
    _check_prior(model, len(model.inputs) - 1)
    means = []
    with _evaluating(model, seed=0):
        for x, *condition in _batches(model, data, BATCH_SIZE):
            prior = model.prior(*condition)
            mean = model.posterior(x, *condition).mean
            means.append(((mean - prior.mean) / prior.stddev).double())
    return torch.cat(means).var(0, correction=0)


def active_units(model: LatentVariableModel, data, threshold: float = 0.01) -> Tensor:
    """Which latent coordinates carry information about x: (L,), bool.

    Those whose :func:`activity` exceeds the threshold (Burda et al., 2016). On the way
    between p(z) and a narrow q(z | x), most coordinates are clearly one or the other.

    Args:
        data: as for :func:`elbo`.
        threshold: positive.

    Raises:
        ValueError: threshold not positive.

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis()
        >>> _ = model.inference.weights.data[1].zero_()  # collapsed
        >>> active_units(model, data.factor_analysis()[1].x)
        tensor([ True, False])
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; expected a positive number")
    return activity(model, data) > threshold


def bits_per_pixel(elbo: float, pixels: int = 784, levels: int = 256) -> float:
    """Bits that a code built from the model needs for a pixel, at most.

    log2(levels) - ELBO / (pixels · log 2)  (``eq-bits-per-pixel``), for a density of
    dequantised images scaled to [0, 1]. An image without any model takes log2(levels).

    Args:
        elbo: mean ELBO (or log p(x)), nats per image.
        pixels: D.
        levels: grey values of a pixel; 1 where ``elbo`` is the logarithm of a
            probability, not of a density (binary images).

    Example:
        >>> round(bits_per_pixel(1788.41), 2)
        4.71
    """
    return math.log2(levels) - elbo / (pixels * math.log(2))


def match_clusters(predicted: Tensor, y: Tensor) -> Tensor:
    """The one-to-one matching of clusters to classes that agrees with most labels.

    argmax_m Σ_n [m(predicted_n) = y_n] over matchings m (``eq-clustering-accuracy``),
    by the Hungarian algorithm. Where there are more clusters than classes, the clusters
    that are left over match none.

    Args:
        predicted: (N,) int64, the cluster of each example; numbers from 0.
        y: (N,) int64, its class; numbers from 0.

    Returns:
        (K,) int64, the class of each cluster up to the largest number that occurs, -1
        for none.

    Raises:
        TypeError: not tensors of int64.
        ValueError: shapes that differ or are not (N,) with N >= 1; a negative number.

    Example:
        >>> match_clusters(torch.tensor([2, 2, 0, 1]), torch.tensor([0, 0, 1, 1]))
        tensor([ 1, -1,  0])
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    both = (("predicted", predicted), ("y", y))
    for name, numbers in both:
        if not isinstance(numbers, Tensor) or numbers.dtype != torch.int64:
            given = getattr(numbers, "dtype", f"a {type(numbers).__name__}")
            raise TypeError(f"{name} is {given}; expected a tensor of torch.int64")
    for name, numbers in both:
        if numbers.ndim != 1 or len(numbers) == 0 or numbers.shape != y.shape:
            raise ValueError(
                f"{name} has shape {tuple(numbers.shape)}; expected (N,) with N >= 1,"
                " the same for predicted and y"
            )
        if numbers.min() < 0:
            raise ValueError(f"{name} holds {numbers.min()}; expected numbers from 0")
    predicted, y = predicted.cpu(), y.cpu()
    clusters, classes = int(predicted.max()) + 1, int(y.max()) + 1
    pairs = torch.bincount(predicted * classes + y, minlength=clusters * classes)
    table = pairs.view(clusters, classes).numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    matching = torch.full((clusters,), -1)
    matching[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return matching


def clustering_accuracy(predicted: Tensor, y: Tensor) -> float:
    """Share of examples whose cluster is matched to their class, from 0 to 1.

    With the best one-to-one matching (:func:`match_clusters`;
    ``eq-clustering-accuracy``), so it does not depend on how the clusters are numbered.
    With as many clusters as examples it is not 1, as a majority vote in each cluster
    would have it: each class can claim but one cluster.

    Arguments and errors as for :func:`match_clusters`.

    Example:
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> clustering_accuracy(1 - y, y)
        1.0
        >>> clustering_accuracy(torch.arange(4), y)
        0.5
    """
    matching = match_clusters(predicted, y)
    return (matching[predicted.cpu()] == y.cpu()).double().mean().item()


class GridPosterior(NamedTuple):
    """The exact posteriors of some examples on a grid over z: :func:`grid_posterior`.

    Attributes:
        axes: the grid's coordinates, one (P,) for each of the L dimensions.
        points: (P^L, L), all points of the grid.
        log_density: (P^L, B), log p(z | x), nats; the density integrates to 1.
        log_evidence: (B,), log p(x).
        cell: length or area that a point stands for.
    """

    axes: tuple[Tensor, ...]
    points: Tensor
    log_density: Tensor
    log_evidence: Tensor
    cell: float

    @property
    def probabilities(self) -> Tensor:
        """(P^L, B), each column sums to 1."""
        return self.log_density.exp() * self.cell

    @property
    def mean(self) -> Tensor:
        """(B, L)."""
        return self.probabilities.T @ self.points

    @property
    def covariance(self) -> Tensor:
        """(B, L, L)."""
        second = torch.einsum(
            "gb,gi,gj->bij", self.probabilities, self.points, self.points
        )
        return second - self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def edge(self) -> Tensor:
        """(B,), probability of the outermost points: large if the grid is too small."""
        limits = torch.stack([axis[[0, -1]] for axis in self.axes])  # (L, 2)
        outer = (self.points[:, :, None] == limits).any(-1).any(-1)  # (P^L,)
        return self.probabilities[outer].sum(0)

    def _log_prob(self, q: Distribution) -> Tensor:
        """log q at every point: (P^L, B)."""
        points = self.points[:, None, :].to(q.mean.dtype)  # (P^L, 1, L)
        return q.log_prob(points).double()

    def reverse_kl(self, q: Distribution) -> Tensor:
        """KL(q ‖ p(z | x)), the gap of the ELBO of q, nats: (B,).

        By the sum over the grid (``eq-variational-problem``).

        Args:
            q: batch shape (B,), or one that broadcasts with it: many q for one example.

        Raises:
            ValueError: the grid is too narrow or too coarse for q.
        """
        log_q = self._log_prob(q)
        total = log_q.exp().sum(0) * self.cell
        if not ((total - 1).abs() < 1e-3).all():
            worst = total[(total - 1).abs().argmax()].item()
            raise ValueError(
                f"q sums to {worst:.4g} on the grid; expected 1: the grid is too narrow"
                " for q, or too coarse"
            )
        return _mean_under(log_q.exp(), log_q - self.log_density) * self.cell

    def forward_kl(self, q: Distribution) -> Tensor:
        """KL(p(z | x) ‖ q), nats: (B,) (``eq-forward-kl``).

        Args:
            q: as for :meth:`reverse_kl`.
        """
        return _mean_under(self.probabilities, self.log_density - self._log_prob(q))


def _mean_under(p: Tensor, values: Tensor) -> Tensor:
    """Σ p v over the grid, where points of no probability add nothing: (B,)."""
    return torch.where(p > 0, p * values, 0.0).sum(0)  # v may be infinite there


def grid_posterior(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    low: float = -6.0,
    high: float = 6.0,
    points: int = 200,
) -> GridPosterior:
    """Exact posterior and evidence by a sum over a grid, for z of 1 or 2 dimensions.

    p(z | x) = p(x, z) / Σ_g p(x, z_g) Δ (``eq-grid-posterior``). For smooth densities
    that vanish at the grid's edges the sum converges faster than any power of the step;
    a Gaussian as narrow as the step is integrated to eight digits. Check ``edge``, and
    that twice the points change nothing.

    Args:
        model: its own posterior is not used.
        x: (B, D).
        condition: what a conditional model takes behind x.
        low, high: limits of the grid in each dimension.
        points: P, in each dimension.

    Returns:
        :class:`GridPosterior`, in float64, on the CPU or wherever the model is.

    Raises:
        ValueError: the prior is not over 1 or 2 dimensions; fewer than 2 points.

    Example:
        >>> from aevb import models
        >>> model, x = models.FactorAnalysis(), torch.randn(5, 3)
        >>> grid = grid_posterior(model, x)
        >>> torch.allclose(grid.log_evidence, model.evidence(x).double(), atol=1e-3)
        True
    """
    _check_prior(model, len(condition))
    (size,) = model.prior(*condition).event_shape
    if size not in (1, 2):
        raise ValueError(f"z has {size} dimensions; a grid serves 1 or 2")
    if points < 2:
        raise ValueError(f"points is {points}; expected at least 2")
    axis = torch.linspace(low, high, points, dtype=torch.float64, device=x.device)
    grid = torch.cartesian_prod(*[axis] * size).view(-1, size)  # (P^L, L)
    cell = ((high - low) / (points - 1)) ** size
    at_once = max(1, _GRID_NUMBERS // x.numel())
    parts = []
    with _evaluating(model, seed=0):
        for some in grid.split(at_once):
            z = some[:, None, :].to(x.dtype)  # (G, 1, L)
            log_p = model.likelihood(z, *condition).log_prob(x).double()  # (G, B)
            parts.append(log_p + model.prior(*condition).log_prob(z).double())
    log_joint = torch.cat(parts)  # (P^L, B)
    log_evidence = log_joint.logsumexp(0) + math.log(cell)
    return GridPosterior(
        (axis,) * size, grid, log_joint - log_evidence, log_evidence, cell
    )
