"""Factor analysis, trained by gradient: chapter 6."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    kl_divergence,
)
from torch.nn import functional as F

from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel, check_batch, check_count
from aevb.networks import SMALLEST_STD, positive, unconstrained


class LinearGaussian(nn.Module):
    """θ: z ↦ N(W z, Φ) with Φ = diag(σ²)."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.loadings = nn.Parameter(torch.randn(data_dim, latent_dim))  # W
        self.noise = nn.Parameter(torch.randn(data_dim))  # σ before the softplus

    def forward(self, z: Tensor) -> Independent:
        mean = z @ self.loadings.T  # (…, L) -> (…, D)
        return diagonal_normal(mean, positive(self.noise).expand_as(mean))


class LinearPosterior(nn.Module):
    """φ: x ↦ N(V x, Σ) with Σ = C Cᵀ, the same for all x.

    ``kind`` says what C, lower triangular, may be: ``"full"``, ``"diagonal"``, or
    ``"fixed"`` to the identity.
    """

    def __init__(self, data_dim: int, latent_dim: int, kind: str):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(latent_dim, data_dim))  # V
        self.diagonal = nn.Parameter(torch.full((latent_dim,), 0.5413))  # softplus: 1
        self.diagonal.requires_grad_(kind != "fixed")
        below = torch.zeros(latent_dim, latent_dim)
        self.below = nn.Parameter(below, requires_grad=kind == "full")

    def forward(self, x: Tensor) -> MultivariateNormal:
        factor = self.below.tril(-1) + positive(self.diagonal).diag()  # C, (L, L)
        mean = F.linear(x, self.weights)  # (…, D) -> (…, L)
        return MultivariateNormal(mean, scale_tril=factor, validate_args=False)


class FactorAnalysis(LatentVariableModel):
    """z ~ N(0, I);  x | z ~ N(W z, Φ), Φ diagonal;  q(z | x) = N(V x, Σ).

    Evidence and posterior have closed forms (``eq-fa-marginal``,
    ``eq-fa-posterior``), so that everything AEVB does can be compared with the truth.
    With ``posterior="full"`` the family of q contains the exact posterior
    (``eq-fa-optimal-inference``). :meth:`elbo` is the estimator
    ``eq-fa-elbo-estimator``, its ``kl`` the closed form ``eq-fa-kl``.

    Args:
        data_dim: D.
        latent_dim: L.
        posterior: Σ may be ``"full"``, ``"diagonal"``, or ``"fixed"`` to I.

    Raises:
        ValueError: unknown ``posterior``, or a size below 1.

    Example:
        >>> model = FactorAnalysis()
        >>> x = torch.randn(5, 3)
        >>> model.elbo(x).elbo.shape, bool((model.gap(x) > 0).all())
        (torch.Size([5]), True)
    """

    def __init__(
        self, *, data_dim: int = 3, latent_dim: int = 2, posterior: str = "full"
    ):
        super().__init__()
        kinds = ("full", "diagonal", "fixed")
        if posterior not in kinds:
            raise ValueError(f"posterior is {posterior!r}; expected one of {kinds}")
        check_count("data_dim", data_dim)
        check_count("latent_dim", latent_dim)
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.generative = LinearGaussian(data_dim, latent_dim)
        self.inference = LinearPosterior(data_dim, latent_dim, posterior)
        identity = torch.eye(latent_dim)
        self.register_buffer("identity", identity, persistent=False)

    @classmethod
    def from_parameters(
        cls, loadings: Tensor, noise_scale: Tensor, posterior: str = "full"
    ) -> FactorAnalysis:
        """A model with these W (D, L) and σ (D,), and a random q.

        Raises:
            ValueError: shapes that do not fit, or a standard deviation that is too
                small to be represented.

        Example:
            >>> loadings, noise_scale = torch.ones(3, 1), torch.full((3,), 0.5)
            >>> model = FactorAnalysis.from_parameters(loadings, noise_scale)
            >>> model.noise_scale
            tensor([0.5000, 0.5000, 0.5000], grad_fn=<AddBackward0>)
        """
        loadings, noise_scale = torch.as_tensor(loadings), torch.as_tensor(noise_scale)
        if loadings.ndim != 2 or noise_scale.shape != loadings.shape[:1]:
            raise ValueError(
                f"loadings has shape {tuple(loadings.shape)} and noise_scale"
                f" {tuple(noise_scale.shape)}; expected (D, L) and (D,)"
            )
        if not (noise_scale > 2 * SMALLEST_STD).all():
            raise ValueError(f"noise_scale is {noise_scale}; expected positive numbers")
        data_dim, latent_dim = loadings.shape
        model = cls(data_dim=data_dim, latent_dim=latent_dim, posterior=posterior)
        with torch.no_grad():
            model.generative.loadings.copy_(loadings)
            model.generative.noise.copy_(unconstrained(noise_scale.double()))
        return model

    @property
    def loadings(self) -> Tensor:
        """W, (D, L)."""
        return self.generative.loadings

    @property
    def noise_scale(self) -> Tensor:
        """σ, (D,): the standard deviations of the noise; Φ = diag(σ²)."""
        return positive(self.generative.noise)

    def prior(self) -> MultivariateNormal:
        """p(z) = N(0, I)."""
        zero = torch.zeros_like(self.identity[0])
        return MultivariateNormal(zero, scale_tril=self.identity, validate_args=False)

    def likelihood(self, z: Tensor) -> Independent:
        """p(x | z) = N(W z, Φ)."""
        return self.generative(z)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """q(z | x) = N(V x, Σ) (``eq-fa-aevb-posterior``)."""
        return self.inference(x)

    def evidence(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; 0, W Wᵀ + Φ), exact, nats: (B,) (``eq-fa-marginal``).

        Computed in float64, since small σ make it a difference of large numbers.
        """
        noise = self.noise_scale.double().square()
        marginal = LowRankMultivariateNormal(
            torch.zeros_like(noise), self.loadings.double(), noise, validate_args=False
        )
        dtype = torch.promote_types(x.dtype, self.loadings.dtype)
        return marginal.log_prob(x.double()).to(dtype)

    def exact_posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z | x) = N(M⁻¹ Wᵀ Φ⁻¹ x, M⁻¹), M = I + Wᵀ Φ⁻¹ W (``eq-fa-posterior``)."""
        scaled = self.loadings / self.noise_scale.square()[:, None]  # Φ⁻¹ W, (D, L)
        precision = self.identity + self.loadings.T @ scaled  # M, (L, L)
        mean = torch.linalg.solve(precision, scaled.T @ x.T).T  # (B, L)
        return MultivariateNormal(mean, precision_matrix=precision, validate_args=False)

    def gap(self, x: Tensor) -> Tensor:
        """log p(x) - ELBO(x) = KL(q(z | x) ‖ p(z | x)), exact: (B,) (``eq-fa-gap``).

        Nats. The ELBO here is the exact one, that :meth:`elbo` estimates.
        """
        return kl_divergence(self.posterior(x), self.exact_posterior(x))

    def prior_weight_variance(self, x: Tensor) -> Tensor:
        """Variance of p(x | z) / p(x) for z ~ p(z), exact: (B,), float64.

        Divided by S it is the relative variance of an estimate of p(x) from S draws
        of the prior (``eq-prior-weight-variance``). Averaged over the model's own x,
        it is det(I + WᵀΦ⁻¹W) - 1 (``eq-average-weight-variance``).
        """
        noise, w = self.noise_scale.double().square(), self.loadings.double()
        x, zero = x.double(), torch.zeros_like(noise)
        half = LowRankMultivariateNormal(zero, w, noise / 2, validate_args=False)
        full = LowRankMultivariateNormal(zero, w, noise, validate_args=False)
        log_square = half.log_prob(x) - 0.5 * (4 * torch.pi * noise).log().sum()
        return (log_square - 2 * full.log_prob(x)).expm1()  # E[p(x|z)²] / p(x)² - 1

    def check(self, x: Tensor) -> None:
        check_batch(x, self.data_dim, dtype=self.loadings.dtype)
