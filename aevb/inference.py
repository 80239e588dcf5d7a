"""Approximate posteriors without a network: the E-step, one example at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal

from aevb.distributions import diagonal_normal, rsample
from aevb.model import ElboTerms, LatentVariableModel, check_count, evaluating
from aevb.networks import SMALLEST_STD, positive, unconstrained

FAMILIES = ("diagonal", "full")


def elbo_of(
    q_z: Distribution,
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Estimate of the ELBO of any q, not only the model's own.

    E_q[log p(x, z)] + H(q): the expectation from antithetic pairs of draws, the
    entropy in closed form (``eq-elbo-entropy``).

    Args:
        q_z: batch shape (B,), event shape (L,), symmetric about its mean.
        model: its own posterior is not used.
        x: (B, D).
        condition: what a conditional model takes behind x.
        num_samples: pairs of draws z, 2 E_q[z] - z of z for each example.
        generator: for the draws; the global one if None.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each, differentiable in q and θ;
        ``kl`` is an estimate, since only a part of it is in closed form.

    Raises:
        ValueError: num_samples < 1.

    Example:
        >>> from aevb import models
        >>> model, x = models.FactorAnalysis(), torch.randn(5, 3)
        >>> terms = elbo_of(model.exact_posterior(x), model, x, num_samples=1000)
        >>> torch.allclose(terms.elbo, model.evidence(x), rtol=0.1)
        True
    """
    check_count("num_samples", num_samples)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    z = torch.cat([z, 2 * q_z.mean - z])  # (2S, B, L)
    reconstruction = model.likelihood(z, *condition).log_prob(x).mean(0)  # (B,)
    log_prior = model.prior(*condition).log_prob(z).mean(0)  # (B,)
    return ElboTerms(reconstruction, -q_z.entropy() - log_prior)


class PerPointPosterior(nn.Module):
    """φ without a network: a Gaussian of its own for each of N examples.

    q_n(z) = N(μ_n, C_n C_nᵀ), C_n diagonal or lower triangular
    (``eq-per-point-family``). Calling it gives all N, as one distribution of batch
    shape (N,).

    Args:
        mean: (N, L), to start from.
        std: (N, L), to start from.
        family: ``"diagonal"``, 2 N L numbers, or ``"full"``, N L (L + 3) / 2.

    Raises:
        ValueError: unknown ``family``; shapes that do not fit; a standard deviation
            that is too small to be represented.

    Example:
        >>> q = PerPointPosterior(torch.zeros(5, 2), torch.ones(5, 2), "full")
        >>> q().batch_shape, q.num_parameters
        (torch.Size([5]), 25)
    """

    def __init__(self, mean: Tensor, std: Tensor, family: str = "diagonal"):
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}; expected one of {FAMILIES}")
        if mean.ndim != 2 or mean.shape != std.shape:
            raise ValueError(
                f"mean has shape {tuple(mean.shape)} and std {tuple(std.shape)};"
                " expected (N, L) for both"
            )
        if not (std > 2 * SMALLEST_STD).all():
            raise ValueError(f"the smallest std is {std.min()}; expected more than 0")
        self.mean = nn.Parameter(mean.detach().clone())
        self.raw = nn.Parameter(unconstrained(std.detach()))
        self.below = None
        if family == "full":
            count, size = mean.shape
            self.below = nn.Parameter(mean.new_zeros(count, size, size))

    @property
    def num_parameters(self) -> int:
        """The numbers that q needs for its N examples."""
        count, size = self.mean.shape
        correlations = size * (size - 1) // 2 if self.below is not None else 0
        return count * (2 * size + correlations)

    def forward(self) -> Independent | MultivariateNormal:
        if self.below is None:
            return diagonal_normal(self.mean, positive(self.raw))
        factor = self.below.tril(-1) + torch.diag_embed(positive(self.raw))  # C
        return MultivariateNormal(self.mean, scale_tril=factor, validate_args=False)


def fit_per_point(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    family: str = "diagonal",
    start: Distribution | None = None,
    steps: int = 500,
    lr: float = 0.1,
    num_samples: int = 8,
    seed: int = 0,
) -> PerPointPosterior:
    """The best Gaussian for each example by itself, θ fixed: one E-step, no network.

    Adam on the ELBO of each example (``eq-per-point-objective``) with fresh draws at
    each step and a learning rate that falls to zero along a parabola. The examples
    share nothing: none is fitted differently because of the others. The optimum is a
    local one; ``start`` decides which.

    Args:
        model: with a continuous z; in evaluation mode while this runs. Nothing in it is
            changed.
        x: (N, D).
        condition: what a conditional model takes behind x.
        family: of each q, see :class:`PerPointPosterior`.
        start: its mean and standard deviation are where the search begins: batch shape
            (N,), as ``model.posterior(x)`` gives; the prior's if None.
        steps: of Adam.
        lr: the learning rate to begin with.
        num_samples: antithetic pairs of draws, see :func:`elbo_of`.
        seed: of the draws.

    Raises:
        ValueError: ``steps`` or ``num_samples`` < 1; as :class:`PerPointPosterior`.

    Example:
        >>> from aevb import models
        >>> model, x = models.FactorAnalysis(), torch.randn(5, 3)
        >>> q_z = fit_per_point(model, x, steps=20)()
        >>> q_z.mean.shape
        torch.Size([5, 2])
    """
    check_count("steps", steps)
    start = model.prior(*condition) if start is None else start
    shape = (len(x), start.event_shape[0])
    with torch.no_grad():
        mean, std = (t.expand(shape) for t in (start.mean, start.stddev))
        posterior = PerPointPosterior(mean, std, family)
    parameters = list(posterior.parameters())
    # far from the optimum gradients are large; they must be forgotten near it
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    generator = torch.Generator(x.device).manual_seed(seed)
    with evaluating(model), torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps) ** 2
            terms = elbo_of(
                posterior(),
                model,
                x,
                *condition,
                num_samples=num_samples,
                generator=generator,
            )
            gradients = torch.autograd.grad(-terms.elbo.sum(), parameters)
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient
            optimizer.step()
    return posterior.requires_grad_(False)


class MeanFieldPath(NamedTuple):
    """Coordinate ascent on a Gaussian: the means on the way, and where it ends.

    Attributes:
        means: (sweeps + 1, L), the start included.
        variances: (L,), the same after each update.
    """

    means: Tensor
    variances: Tensor


def best_factorised(target: MultivariateNormal) -> Independent:
    """The factorised Gaussian that minimises KL(q ‖ p) to a Gaussian p.

    Same mean; its variances are 1 / Λ_jj, Λ the precision of p
    (``eq-mean-field-gaussian``).

    Example:
        >>> cov = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
        >>> best_factorised(MultivariateNormal(torch.zeros(2), cov)).variance
        tensor([0.6400, 0.6400])
    """
    variances = target.precision_matrix.diagonal(dim1=-2, dim2=-1).reciprocal()
    return diagonal_normal(target.mean, variances.sqrt().expand_as(target.mean))


def coordinate_ascent(
    target: MultivariateNormal, start: Tensor, sweeps: int
) -> MeanFieldPath:
    """Mean field by coordinate ascent where the target is one Gaussian.

    For z_j the update (``eq-mean-field-update``) gives the Gaussian of mean
    μ_j - Σ_{k≠j} Λ_jk (m_k - μ_k) / Λ_jj and variance 1 / Λ_jj.

    Args:
        target: event shape (L,), no batch shape.
        start: (L,), the means to start from.
        sweeps: rounds of L updates each.
    """
    precision, mu = target.precision_matrix, target.mean
    mean = start.to(mu, copy=True)
    path = [mean.clone()]
    for _ in range(sweeps):
        for j in range(len(mean)):
            others = precision[j] @ (mean - mu) - precision[j, j] * (mean[j] - mu[j])
            mean[j] = mu[j] - others / precision[j, j]
        path.append(mean.clone())
    return MeanFieldPath(torch.stack(path), precision.diagonal().reciprocal())
