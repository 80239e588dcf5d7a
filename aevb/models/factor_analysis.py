"""Factor analysis, trained by gradient: chapter 6."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
)
from torch.nn import functional as F

from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel, check_batch
from aevb.networks import positive


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
    With ``posterior="full"`` the family of q contains the exact posterior.

    Args:
        data_dim: D.
        latent_dim: L.
        posterior: Σ may be ``"full"``, ``"diagonal"``, or ``"fixed"`` to I.

    Raises:
        ValueError: unknown ``posterior``, or a size below 1.

    Example:
        >>> model = FactorAnalysis()
        >>> x = torch.randn(5, 3)
        >>> bool((model.elbo(x, num_samples=1000).elbo < model.evidence(x) + 1).all())
        True
    """

    def __init__(
        self, *, data_dim: int = 3, latent_dim: int = 2, posterior: str = "full"
    ):
        super().__init__()
        kinds = ("full", "diagonal", "fixed")
        if posterior not in kinds:
            raise ValueError(f"posterior is {posterior!r}; expected one of {kinds}")
        for name, size in (("data_dim", data_dim), ("latent_dim", latent_dim)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.generative = LinearGaussian(data_dim, latent_dim)
        self.inference = LinearPosterior(data_dim, latent_dim, posterior)
        identity = torch.eye(latent_dim)
        self.register_buffer("identity", identity, persistent=False)

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
        """log p(x) = log N(x; 0, W Wᵀ + Φ), exact, nats: (B,) (``eq-fa-marginal``)."""
        zero = torch.zeros_like(self.noise_scale)
        marginal = LowRankMultivariateNormal(
            zero, self.loadings, self.noise_scale.square(), validate_args=False
        )
        return marginal.log_prob(x)

    def exact_posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z | x) = N(M⁻¹ Wᵀ Φ⁻¹ x, M⁻¹), M = I + Wᵀ Φ⁻¹ W (``eq-fa-posterior``)."""
        scaled = self.loadings / self.noise_scale.square()[:, None]  # Φ⁻¹ W, (D, L)
        precision = self.identity + self.loadings.T @ scaled  # M, (L, L)
        mean = torch.linalg.solve(precision, scaled.T @ x.T).T  # (B, L)
        return MultivariateNormal(mean, precision_matrix=precision, validate_args=False)

    def check(self, x: Tensor) -> None:
        check_batch(x, self.data_dim)
