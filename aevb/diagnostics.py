"""What is wrong with a model: checks that tell one failure from another.

Each is a small function of any :class:`~aevb.model.LatentVariableModel`, of a batch,
and of the estimator that trains it (``model.elbo`` if none is given, as for
:func:`aevb.fit`). They leave the model, its gradients and the global random state as
they were; dropout is off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from aevb.distributions import rsample
from aevb.evaluation import Estimate
from aevb.model import (
    ElboTerms,
    LatentVariableModel,
    check_count,
    device_of,
    evaluating,
)
from aevb.randomness import preserved, seed_device


@contextmanager
def _quiet(model: LatentVariableModel, *batch: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Evaluation mode, and the random state of the devices put back afterwards.

    Gives the batch on the model's device.
    """
    device = device_of(model)
    with evaluating(model), preserved(device):
        yield tuple(part.to(device) for part in batch)


def _seed(model: LatentVariableModel, seed: int) -> None:
    seed_device(seed, device_of(model))


def _terms(model, batch, estimator, seed: int) -> ElboTerms:
    _seed(model, seed)
    return (estimator or type(model).elbo)(model, *batch)


def _check_several(name: str, count: int) -> None:
    """Raise unless ``count`` is a whole number of things that can differ."""
    check_count(name, count)
    if count < 2:
        raise ValueError(f"{name} is {count}; expected at least 2, which can differ")


# --- gradients --------------------------------------------------------------------


class TermNorms(NamedTuple):
    """Length of the gradient of each term in one tensor of parameters.

    Attributes:
        reconstruction, kl: of the batch's mean; 0 where no gradient arrives.
    """

    reconstruction: float
    kl: float


def gradient_norms(
    model: LatentVariableModel,
    *batch: Tensor,
    estimator: Callable[..., ElboTerms] | None = None,
    seed: int = 0,
) -> dict[str, TermNorms]:
    """How strongly each term of the ELBO pulls at each tensor of parameters.

    A reconstruction that contains φ only through draws of z pulls at φ only if the
    draws are reparameterised: zeros in the ``inference.`` rows of an *untrained* model
    are a forgotten ``rsample``. Near-zeros that came with training are a posterior
    collapse. NaN says where it started.

    Args:
        batch: what ``model.elbo`` takes.
        estimator: ``estimator(model, *batch)``; ``model.elbo`` if None.
        seed: of the draws.

    Returns:
        By the parameter's name, in the order of ``model.named_parameters()``, without
        those that do not move.

    Example:
        >>> from aevb import models
        >>> model = models.VAE(data_dim=4, latent_dim=2, hidden=(3,))
        >>> norms = gradient_norms(model, torch.rand(5, 4))
        >>> norms["inference.1.mean.weight"].reconstruction > 0
        True
        >>> norms["generative.1.logits.weight"].kl
        0.0
    """
    named = {k: p for k, p in model.named_parameters() if p.requires_grad}
    columns = []
    with _quiet(model, *batch) as batch, torch.enable_grad():
        for part in _terms(model, batch, estimator, seed):
            gradients = [None] * len(named)
            if part.requires_grad:
                gradients = torch.autograd.grad(
                    part.mean(), [*named.values()], retain_graph=True, allow_unused=True
                )
            columns.append([0.0 if g is None else g.norm().item() for g in gradients])
    return dict(zip(named, map(TermNorms, *columns), strict=True))


class Slopes(NamedTuple):
    """The slope of the mean ELBO along a random direction of one tensor.

    Attributes:
        automatic: by automatic differentiation, what the optimiser sees.
        numerical: by finite differences, what the value does.
    """

    automatic: float
    numerical: float


def gradient_check(
    model: LatentVariableModel,
    *batch: Tensor,
    estimator: Callable[..., ElboTerms] | None = None,
    seed: int = 0,
    step: float = 1e-5,
) -> dict[str, Slopes]:
    """Whether the gradient is the gradient of the value, tensor by tensor.

    Along a random direction v of unit length in each tensor of parameters, ⟨∇f, v⟩ is
    compared with (f(w + h v) - f(w - h v)) / 2h (``eq-central-difference``), with the
    same noise in all evaluations and in double precision, on a copy whose parameters
    are moved by a little noise first (a new ReLU network sits on its kinks for x = 0).
    Whatever stands in the way of the gradient and not of the value shows: ``sample``
    for ``rsample``, a ``detach``, an ``argmax``, a wrong ``backward``.

    The draws must be functions of the parameters and of noise: a score-function
    estimator has another gradient for the same value, and fails without being wrong.

    Args:
        batch, estimator, seed: as for :func:`gradient_norms`.
        step: h.

    Returns:
        By the parameter's name, as :func:`gradient_norms`.

    Example:
        >>> from aevb import models
        >>> model = models.VAE(data_dim=4, latent_dim=2, hidden=(3,))
        >>> slopes = gradient_check(model, torch.rand(5, 4))
        >>> all(abs(s.automatic - s.numerical) < 1e-6 for s in slopes.values())
        True
    """
    twin = copy.deepcopy(model).double()
    twin.zero_grad(set_to_none=True)
    batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
    named = {k: p for k, p in twin.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(seed)

    def noise(p: Tensor) -> Tensor:
        return torch.randn(p.shape, dtype=p.dtype, generator=generator).to(p.device)

    def value() -> Tensor:
        return _terms(twin, batch, estimator, seed).elbo.mean()

    with torch.no_grad():
        for p in named.values():
            p.add_(noise(p), alpha=1e-3)
    slopes = {}
    with _quiet(twin, *batch) as batch:
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                value(), [*named.values()], allow_unused=True
            )
        with torch.no_grad():
            for (name, p), g in zip(named.items(), gradients, strict=True):
                v = noise(p)
                v /= v.norm()
                sides = []
                for sign in (1, -1):
                    p.add_(v, alpha=sign * step)
                    sides.append(value().item())
                    p.sub_(v, alpha=sign * step)
                automatic = 0.0 if g is None else (g * v).sum().item()
                slopes[name] = Slopes(automatic, (sides[0] - sides[1]) / (2 * step))
    return slopes


# --- values -----------------------------------------------------------------------


def value_check(
    model: LatentVariableModel,
    *batch: Tensor,
    estimator: Callable[..., ElboTerms] | None = None,
    num_samples: int = 100,
    seed: int = 0,
) -> Estimate:
    """By how much the estimator's ELBO differs from the one of the model's densities.

    The ELBO is the mean of log p(x, z) - log q(z | x), which ``model.log_weights``
    computes from the densities alone (``eq-elbo-log-weights``). An estimator with a
    missing constant, a wrong sign, a mean in place of a sum or a divergence that
    belongs to another q has another mean. It cannot see what is wrong with the
    densities themselves: for that see :func:`total_mass`.

    Args:
        batch, estimator: as for :func:`gradient_norms`.
        num_samples: S, evaluations of both; each of the pair starts from the same
            random state, so that most of the noise is common.
        seed: of the draws.

    Returns:
        :class:`~aevb.evaluation.Estimate` of the difference, nats per example; (B,)
        ``values``. Zero, within a few standard errors, for every unbiased estimator.

    Raises:
        ValueError: num_samples < 1.

    Example:
        >>> from aevb import models
        >>> model = models.VAE(data_dim=4, latent_dim=2, hidden=(3,))
        >>> found = value_check(model, torch.rand(50, 4))
        >>> abs(found.mean) < 4 * found.standard_error
        True
    """
    check_count("num_samples", num_samples)
    total = 0.0
    with _quiet(model, *batch) as batch, torch.no_grad():
        for number in range(num_samples):
            ours = _terms(model, batch, estimator, seed + number).elbo.double()
            _seed(model, seed + number)
            total = total + ours - model.log_weights(*batch)[0].double()
    values = total / num_samples
    return Estimate.of(values)


def total_mass(distribution: Distribution, values: Tensor, step: float = 1.0) -> Tensor:
    """The sum, or integral, of each coordinate's density: 1 if it is one.

    Σ_v p(v) · step over the values v (``eq-total-mass``).

    Args:
        distribution: of one coordinate, or a product of them (``Independent``).
        values: (P,), all that x can be; for an integral, the midpoints of cells that
            cover it.
        step: 1 for a sum, the width of a cell for an integral.

    Returns:
        The distribution's batch shape, then its event shape.

    Example:
        >>> from torch.distributions import Normal, Poisson
        >>> total_mass(Poisson(torch.tensor(3.0)), torch.arange(50.0))
        tensor(1.)
        >>> midpoints = torch.linspace(-9.95, 9.95, 200)
        >>> mass = total_mass(Normal(torch.zeros(2), 1.0), midpoints, step=0.1)
        >>> torch.allclose(mass, torch.ones(2))
        True
    """
    base = distribution.base_dist if isinstance(distribution, Independent) else None
    single = distribution if base is None else base
    shape = single.batch_shape
    values = values.view(-1, *[1] * len(shape)).expand(-1, *shape)
    log_p = single.log_prob(values)  # (P, …)
    return log_p.double().exp().sum(0).mul(step).to(log_p.dtype)


# --- what the code carries --------------------------------------------------------


def mutual_information(model: LatentVariableModel, x: Tensor, seed: int = 0) -> float:
    """How much a draw of z ~ q(z | x) tells which of the examples x it was made from.

    E[log q(z | x_n)] - E[log (1/N) Σ_m q(z | x_m)],  z ~ q(z | x_n), n uniform
    (``eq-mutual-information``; Hoffman and Johnson, 2016), one draw for each n. Zero
    if q is the same for all x, at most log N: choose N so large that it is not the
    limit. The mean divergence from the prior is never smaller, and the excess is what q
    pays without saying anything.

    Args:
        model: a model without a condition.
        x: (N, …), the examples; N² densities are computed.
        seed: of the draws.

    Returns:
        Nats.

    Example:
        >>> from aevb import models
        >>> model = models.FactorAnalysis()
        >>> _ = model.inference.weights.data.zero_()  # q no longer depends on x
        >>> round(mutual_information(model, torch.randn(100, 3)), 4)
        0.0
    """
    rows = []
    with _quiet(model, x) as (x,), torch.no_grad():
        _seed(model, seed)
        q_z = model.posterior(x)
        z = rsample(q_z)  # (N, L)
        own = q_z.log_prob(z)  # (N,)
        for some in z.split(100):
            log_q = q_z.log_prob(some[:, None])  # (100, N)
            rows.append(log_q.logsumexp(1) - math.log(len(x)))
    return (own - torch.cat(rows)).double().mean().item()


# --- all together -----------------------------------------------------------------


class Finding(NamedTuple):
    """One line of a check-up.

    Attributes:
        check: what was looked at.
        found: what was seen, in words and numbers.
        verdict: ``"passed"`` or ``"failed"``.
    """

    check: str
    found: str
    verdict: str


def check_up(
    model: LatentVariableModel,
    *batch: Tensor,
    estimator: Callable[..., ElboTerms] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """The checks that every model trained by reparameterised draws should pass.

    * shape: both terms have one entry for each example;
    * finite: both terms, and their gradients in every parameter;
    * reach: the reconstruction pulls at every tensor of φ (:func:`gradient_norms`);
    * gradient: it is that of the value (:func:`gradient_check`), to one in a thousand;
    * value: it is the ELBO of the densities (:func:`value_check`), within four standard
      errors;
    * bound: it does not exceed the importance-weighted estimate of log p(x) with 100
      draws, by more than four standard errors;
    * code: the divergence is at least a hundredth of a nat.

    Run it on the untrained model and again on the trained one: the last check is meant
    for the latter.

    Args:
        batch, estimator, seed: as for :func:`gradient_norms`, of at least 2 examples.
            100 are enough.

    Returns:
        A :class:`Finding` for each check; for a shape that fails, that one alone.

    Raises:
        ValueError: a single example, which has no standard error.

    Example:
        >>> from aevb import models
        >>> _ = torch.manual_seed(0)
        >>> model = models.VAE(data_dim=4, latent_dim=2, hidden=(3,))
        >>> findings = check_up(model, torch.rand(50, 4))
        >>> {finding.verdict for finding in findings}
        {'passed'}
        >>> findings[0]
        Finding(check='shape', found='(50,) and (50,)', verdict='passed')
    """
    _check_several("the number of examples", len(batch[0]))
    options = {"estimator": estimator, "seed": seed}
    with _quiet(model, *batch) as batch, torch.no_grad():
        terms = _terms(model, batch, estimator, seed)
        shapes = [tuple(part.shape) for part in terms]
        good = all(shape == (len(batch[0]),) for shape in shapes)
        findings = [_finding("shape", "{} and {}".format(*shapes), good)]
        if not good:
            return findings
        kl = terms.kl.mean().item()
    norms = gradient_norms(model, *batch, **options)
    broken = [k for k, n in norms.items() if not all(map(math.isfinite, n))]
    good = not broken and all(part.isfinite().all() for part in terms)
    found = f"not in {broken[0]}" if broken else "terms and gradients"
    findings.append(_finding("finite", found if good or broken else "not all", good))
    phi = [n.reconstruction for k, n in norms.items() if k.startswith("inference.")]
    reached = sum(norm != 0 for norm in phi)
    found = f"{reached} of {len(phi)} tensors of φ"
    findings.append(_finding("reach", found, reached == len(phi)))
    slopes = gradient_check(model, *batch, **options).values()
    scale = max(abs(s.numerical) for s in slopes)
    worst = max(abs(s.automatic - s.numerical) for s in slopes) / (scale or 1.0)
    findings.append(_finding("gradient", f"off by {worst:.1g}", worst < 1e-3))
    gap = value_check(model, *batch, **options)
    found = f"{gap.mean:+.3f} ± {gap.standard_error:.3f} nats"
    good = abs(gap.mean) <= 4 * gap.standard_error + 1e-3
    findings.append(_finding("value", found, good))
    excess = _excess(model, batch, gap, seed)
    found = f"{excess.mean:+.2f} ± {excess.standard_error:.2f} nats"
    good = excess.mean <= 4 * excess.standard_error
    findings.append(_finding("bound", found, good))
    return [*findings, _finding("code", f"{kl:.3f} nats", kl >= 0.01)]


def _excess(model, batch, gap: Estimate, seed: int) -> Estimate:
    """The estimator's ELBO less the importance-weighted estimate of log p(x)."""
    with _quiet(model, *batch) as batch, torch.no_grad():
        _seed(model, seed)
        log_w = model.log_weights(*batch, num_samples=100).double()  # (K, B)
        tighter = log_w.logsumexp(0) - math.log(len(log_w)) - log_w.mean(0)
    return Estimate.of(gap.values - tighter)


def _finding(check: str, found: str, good: bool) -> Finding:
    return Finding(check, found, "passed" if good else "failed")


# --- simulated against simulated, simulated against real ---------------------------


def calibration(
    model: LatentVariableModel,
    n: int,
    *condition: Tensor,
    draws: int = 1000,
    weighted: bool = False,
    seed: int = 0,
) -> Tensor:
    """Where the true z lies among draws of q, on simulated data: uniform if q is right.

    z ~ p(z), x ~ p(x | z): then z is an exact draw of p(z | x). The share of draws
    z_k ~ q(z | x) below it, u_j = Σ_k v_k [z_kj < z_j] with v_k = 1 / K, is uniform in
    each coordinate where q is the posterior (``eq-rank``; Talts et al., 2018). Too
    many values near 0 and 1: q is too narrow; in the middle: too wide; on one side: q
    is biased. With ``weighted`` the v_k are the normalised importance weights, which
    repair what q lacks: uniform for many draws, unless q is so narrow that few of them
    reach where p(z | x) is. If they do not, the code of p or of q is wrong.

    Args:
        n: examples to simulate; for a conditional model, for each condition.
        condition: for a conditional model, of batch shape (B,).
        draws: K, of z for each example.
        seed: of all draws.

    Returns:
        (n, L), or (n, B, L), numbers in [0, 1].

    Raises:
        ValueError: ``n`` or ``draws`` < 1.

    Example:
        >>> from aevb import models
        >>> model = models.FactorAnalysis()
        >>> u = calibration(model, 100, draws=50)
        >>> u.shape, bool((u >= 0).all() and (u <= 1).all())
        (torch.Size([100, 2]), True)
    """
    check_count("n", n)
    check_count("draws", draws)
    with _quiet(model, *condition) as condition, torch.no_grad():
        _seed(model, seed)
        p_z = model.prior(*condition)
        z = rsample(p_z, (n,))  # (n, L)
        x = rsample(model.likelihood(z, *condition))  # (n, D)
        q_z = model.posterior(x, *condition)
        z_k = rsample(q_z, (draws,))  # (K, n, L)
        log_w = torch.zeros(z_k.shape[:-1], device=z.device)  # (K, n)
        if weighted:
            log_w = model.likelihood(z_k, *condition).log_prob(x)
            log_w = log_w + p_z.log_prob(z_k) - q_z.log_prob(z_k)
        v = log_w.softmax(0).unsqueeze(-1)
        return (v * (z_k < z)).sum(0)


class PredictiveCheck(NamedTuple):
    """A statistic of the data beside the same of replicated data.

    Attributes:
        observed: T(x).
        replicated: (R,), T of data sets of the same size, drawn from the model.
    """

    observed: float
    replicated: Tensor

    @property
    def p_value(self) -> float:
        """P(T(x_rep) > T(x)) + P(T(x_rep) = T(x)) / 2 (``eq-predictive-p-value``).

        Near 0 the data's statistic is larger than the model's, near 1 smaller.
        """
        above = (self.replicated > self.observed).double()
        equal = (self.replicated == self.observed).double()
        return (above + equal / 2).mean().item()

    @property
    def distance(self) -> float:
        """(T(x) - mean) / standard deviation of the replicated ones; 0 if all agree.

        Infinite if the replicated ones agree with each other alone.
        """
        if (self.replicated == self.observed).all():
            return 0.0
        off = self.observed - self.replicated.mean().item()
        spread = self.replicated.std().item()
        return off / spread if spread else math.copysign(math.inf, off)


def predictive_check(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    statistics: dict[str, Callable[[Tensor], Tensor | float]],
    replicates: int = 200,
    seed: int = 0,
) -> dict[str, PredictiveCheck]:
    """Does data drawn from the model look like the data, in what you care about?

    Draws data sets of the size of ``x`` from the model, and computes every statistic of
    each of them (``eq-predictive-p-value``; Rubin, 1984; Gelman, Meng and Stern, 1996).
    The parameters are those of the model, a point, not drawn from a posterior of their
    own. A bound or a log-likelihood ranks models; this says what is wrong with one.

    Args:
        x: (N, …); examples that were not trained on are a stricter test.
        condition: what a conditional model takes: one for each example.
        statistics: by name, functions of a data set (N, …) that give one number.
        replicates: R ≥ 2.
        seed: of the draws.

    Returns:
        A :class:`PredictiveCheck` for each statistic.

    Raises:
        ValueError: replicates < 2.

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
        >>> x = data.factor_analysis()[1].x
        >>> found = predictive_check(model, x, statistics={"largest": torch.max})
        >>> 0.01 < found["largest"].p_value < 0.99
        True
    """
    _check_several("replicates", replicates)
    rows = {name: [] for name in statistics}
    with _quiet(model, x, *condition) as (x, *condition), torch.no_grad():
        _seed(model, seed)
        for _ in range(replicates):
            if condition:
                (new,) = model.sample(1, *condition)
            else:
                new = model.sample(len(x))
            for name, statistic in statistics.items():
                rows[name].append(float(statistic(new)))
        return {
            name: PredictiveCheck(
                float(statistic(x)), torch.tensor(rows[name], dtype=torch.float64)
            )
            for name, statistic in statistics.items()
        }
