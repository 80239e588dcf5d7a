"""Exact expectation maximisation (EM): Gaussian mixtures and factor analysis.

In these two models the posterior p(z | x) has a closed form, so that the E-step
(``eq-e-step``) makes the evidence lower bound equal to the evidence, and the M-step
(``eq-m-step``) that follows can only raise it (``eq-em-monotone``). Each model is an
immutable record of its parameters and a handful of pure functions over it:

===================  ==========================  =============================
                     Gaussian mixture            factor analysis
===================  ==========================  =============================
parameters           :class:`MixtureParameters`  :class:`FactorParameters`
E-step               :func:`mixture_e_step`      :func:`factor_e_step`
M-step               :func:`mixture_m_step`      :func:`factor_m_step`
ELBO, for any q      :func:`mixture_elbo`        :func:`factor_elbo`
all of it, with fit  :class:`GaussianMixture`    :class:`FactorAnalysis`
===================  ==========================  =============================

Letters in the shapes: N examples, D observed dimensions, K components, L latent
dimensions. The classes compute in float64, the functions in the precision of their
arguments; log-densities are in nats, one for each example. The functions are
differentiable; ``fit`` records no gradients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal

from aevb.model import check_count

__all__ = [
    "FactorAnalysis",
    "FactorParameters",
    "FactorPosterior",
    "GaussianMixture",
    "MixtureParameters",
    "MixturePosterior",
    "factor_e_step",
    "factor_elbo",
    "factor_m_step",
    "merge_components",
    "mixture_e_step",
    "mixture_elbo",
    "mixture_log_joint",
    "mixture_m_step",
]

LOG_2PI = math.log(2 * math.pi)


# --------------------------------------------------------------- Gaussian mixture


class MixtureParameters(NamedTuple):
    """Parameters θ of a Gaussian mixture."""

    weights: Tensor  # π: (K,), non-negative, sum 1
    means: Tensor  # μ: (K, D)
    covariances: Tensor  # Σ: (K, D, D), or the diagonals alone: (K, D)

    @property
    def data_dim(self) -> int:
        """The observed dimensions, D in number."""
        return self.means.shape[-1]


class MixturePosterior(NamedTuple):
    """What the E-step of a Gaussian mixture finds."""

    responsibilities: Tensor  # r = p(z = k | x): (N, K), rows sum to 1
    log_evidence: Tensor  # log p(x), the normaliser of Bayes' rule: (N,)


def mixture_log_joint(x: Tensor, params: MixtureParameters) -> Tensor:
    """log p(x, z = k) = log π_k + log N(x | μ_k, Σ_k), in nats: (N, K).

    Args:
        x: observations, (N, D).
        params: parameters of the mixture; covariances full or diagonal.

    >>> params = MixtureParameters(
    ...     weights=torch.tensor([0.5, 0.5]),
    ...     means=torch.tensor([[0.0], [2.0]]),
    ...     covariances=torch.ones(2, 1),
    ... )
    >>> mixture_log_joint(torch.tensor([[1.0]]), params)
    tensor([[-2.1121, -2.1121]])
    """
    weights, means, covariances = params
    if covariances.dim() == 3:
        factor = torch.linalg.cholesky(covariances)  # (K, D, D), lower
        pairs = zip(means[:, None], factor.expand(len(means), -1, -1), strict=True)
        distance = torch.stack([_distance(x - m, f) for m, f in pairs])  # (K, N)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (K,)
    else:
        centred = x - means[:, None]  # (K, N, D)
        distance = (centred.square() / covariances[:, None]).sum(-1)
        log_det = covariances.log().sum(-1)
    constant = log_det + x.shape[-1] * LOG_2PI
    return weights.log() - 0.5 * (distance + constant[:, None]).mT


def _distance(centred: Tensor, factor: Tensor) -> Tensor:
    """cᵀ Σ⁻¹ c for each row c, where Σ = factor factorᵀ: (N,)."""
    whitened = torch.linalg.solve_triangular(factor, centred.mT, upper=False)  # (D, N)
    return whitened.square().sum(0)


def mixture_e_step(x: Tensor, params: MixtureParameters) -> MixturePosterior:
    """E-step: the exact posterior over components (``eq-responsibilities``).

    Bayes' rule divides the joint by the evidence (``eq-evidence``), so that the
    evidence comes with the responsibilities at no cost.

    Args:
        x: observations, (N, D).
        params: parameters of the mixture.

    Returns:
        Responsibilities (N, K) and log-evidence (N,), in nats.

    >>> params = MixtureParameters(
    ...     weights=torch.tensor([0.5, 0.5]),
    ...     means=torch.tensor([[0.0], [2.0]]),
    ...     covariances=torch.ones(2, 1),
    ... )
    >>> posterior = mixture_e_step(torch.tensor([[1.0], [3.0]]), params)
    >>> posterior.responsibilities
    tensor([[0.5000, 0.5000],
            [0.0180, 0.9820]])
    """
    log_joint = mixture_log_joint(x, params)  # (N, K)
    log_evidence = log_joint.logsumexp(-1)  # (N,)
    return MixturePosterior((log_joint - log_evidence[:, None]).exp(), log_evidence)


def mixture_m_step(
    x: Tensor,
    responsibilities: Tensor,
    covariance: str = "full",
    regularization: float = 0.0,
) -> MixtureParameters:
    """M-step: the parameters that maximise the ELBO (``eq-gmm-m-step``).

    Args:
        x: observations, (N, D).
        responsibilities: q(z = k | x), (N, K), rows sum to 1.
        covariance: ``"full"`` or ``"diagonal"``.
        regularization: smallest variance allowed in any direction, in squared
            units of x. The M-step stays an exact maximum under this constraint,
            so the evidence still never decreases (adding a constant to the
            diagonal instead, as is often done, can make it decrease).

    Returns:
        Weights (K,), means (K, D), covariances (K, D, D) or (K, D), in the precision
        of x.

    Raises:
        ValueError: unknown ``covariance``.

    >>> x = torch.tensor([[0.0], [2.0], [7.0]])
    >>> r = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> weights, means, covariances = mixture_m_step(x, r, "diagonal", 0.01)
    >>> weights, means[:, 0], covariances[:, 0]
    (tensor([0.6667, 0.3333]), tensor([1., 7.]), tensor([1.0000, 0.0100]))
    """
    _check_covariance(covariance)
    responsibilities = responsibilities.to(x.dtype)
    counts = responsibilities.sum(0)  # N_k: (K,)
    share = responsibilities / counts.clamp_min(torch.finfo(x.dtype).tiny)
    means = share.mT @ x  # (K, D)
    if covariance == "full":
        pairs = zip(share.mT[..., None], means, strict=True)  # (N, 1) and (D,)
        spread = torch.stack([(s * (x - m)).mT @ (x - m) for s, m in pairs])
        covariances = _floor(spread, regularization)  # (K, D, D)
    else:
        centred = x - means[:, None]  # (K, N, D)
        spread = (share.mT[..., None] * centred * centred).sum(1)  # (K, D)
        covariances = spread.clamp_min(regularization)
    return MixtureParameters(counts / counts.sum(), means, covariances)


def mixture_elbo(
    x: Tensor, params: MixtureParameters, responsibilities: Tensor
) -> Tensor:
    """The ELBO for any q(z | x), in nats per example (``eq-elbo``).

    Σ_k q_k [log p(x, z = k) - log q_k], with 0 log 0 = 0. It equals the evidence
    where q is the posterior and lies below it everywhere else (``eq-jensen``), by
    the divergence from q to the posterior (``eq-elbo-decomposition``).

    Args:
        x: observations, (N, D).
        params: parameters of the mixture.
        responsibilities: q(z = k | x), (N, K), rows sum to 1.

    Returns:
        (N,)

    >>> params = MixtureParameters(
    ...     weights=torch.tensor([0.5, 0.5]),
    ...     means=torch.tensor([[0.0], [2.0]]),
    ...     covariances=torch.ones(2, 1),
    ... )
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> exact, log_evidence = mixture_e_step(x, params)
    >>> torch.allclose(mixture_elbo(x, params, exact), log_evidence)
    True
    >>> bool((mixture_elbo(x, params, torch.full((2, 2), 0.5)) <= log_evidence).all())
    True
    """
    q = responsibilities
    log_joint = mixture_log_joint(x, params)
    terms = torch.where(q > 0, q * log_joint, 0.0) - torch.special.xlogy(q, q)
    return terms.sum(-1)


def merge_components(responsibilities: Tensor, count: int) -> Tensor:
    """Group the components of a mixture by how much they overlap: (K,) int64.

    Many components describe a crowd of points that is no Gaussian; they share its
    points. The overlap of two, Σ_n r_nj r_nk (``eq-gmvae-overlap``), is the weight of
    an edge between them, and the graph is cut into ``count`` parts of which each
    overlaps little with the others for its size: a normalised cut, found by spectral
    clustering. The columns may come from several fits, side by side: then two
    components of different fits that describe the same points overlap as well.

    Args:
        responsibilities: (N, K), not negative; rows need not sum to 1.
        count: number of groups, at most K.

    Returns:
        The group of each component, numbers from 0 to ``count`` - 1.

    Raises:
        ValueError: another shape, a negative or infinite number, or a ``count`` that
            is not between 1 and K.

    >>> r = torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9]])
    >>> first, second, third = merge_components(r, 2).tolist()
    >>> first == second, first == third
    (True, False)
    """
    from sklearn.cluster import SpectralClustering

    r = _observations(responsibilities, "responsibilities", "(N, K)")
    check_count("count", count)
    if (r < 0).any():
        raise ValueError("responsibilities hold a negative number")
    if count > r.shape[1]:
        raise ValueError(f"count is {count}; expected at most {r.shape[1]} components")
    if count in (1, r.shape[1]):  # nothing to cut, or everything
        return torch.arange(r.shape[1]) % count
    overlap = r.mT @ r  # (K, K)
    overlap = overlap + 1e-12 * overlap.mean()  # in one piece, if only just
    cut = SpectralClustering(
        count, affinity="precomputed", assign_labels="cluster_qr", random_state=0
    )
    return torch.from_numpy(cut.fit_predict(overlap.cpu().numpy())).long()


def _floor(covariances: Tensor, smallest: float) -> Tensor:
    """Raise eigenvalues below ``smallest`` to it: (..., D, D)."""
    values, vectors = torch.linalg.eigh(covariances)
    low = (values[..., 0] < smallest)[..., None, None]
    if not low.any():  # eigenvectors of equal eigenvalues have no gradient
        return covariances
    raised = (vectors * values.clamp_min(smallest)[..., None, :]) @ vectors.mT
    return torch.where(low, raised, covariances)


# ---------------------------------------------------------------- factor analysis


class FactorParameters(NamedTuple):
    """Parameters θ of factor analysis: x ~ N(mean + W z, Φ), z ~ N(0, I)."""

    mean: Tensor  # (D,); zero unless the model learns it
    loadings: Tensor  # W: (D, L)
    noise_variance: Tensor  # the diagonal of the covariance Φ: (D,)

    @property
    def data_dim(self) -> int:
        """The observed dimensions, D in number."""
        return self.mean.shape[-1]

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of the noise, σ = sqrt(diag Φ): (D,)."""
        return self.noise_variance.sqrt()

    @property
    def covariance(self) -> Tensor:
        """Covariance of x, W Wᵀ + Φ (``eq-fa-marginal``): (D, D)."""
        return self.loadings @ self.loadings.mT + self.noise_variance.diag()


class FactorPosterior(NamedTuple):
    """What the E-step of factor analysis finds: p(z | x) = N(mean, covariance)."""

    mean: Tensor  # linear in x: (N, L)
    covariance: Tensor  # the same for every x: (L, L)
    log_evidence: Tensor  # log p(x): (N,)


def factor_e_step(x: Tensor, params: FactorParameters) -> FactorPosterior:
    """E-step: the exact posterior over factors (``eq-fa-posterior``).

    Only an L × L matrix is factorised. The evidence is that of ``eq-fa-marginal``,
    evaluated through the posterior mean m, without a D × D matrix:
    (x - μ)ᵀ(W Wᵀ + Φ)⁻¹(x - μ) = (x - μ - W m)ᵀ Φ⁻¹ (x - μ - W m) + mᵀm.

    Args:
        x: observations, (N, D).
        params: parameters of the model.

    Returns:
        Posterior means (N, L), their common covariance (L, L), and the
        log-evidence (N,), in nats.

    >>> params = FactorParameters(
    ...     mean=torch.zeros(2),
    ...     loadings=torch.tensor([[1.0], [2.0]]),
    ...     noise_variance=torch.tensor([1.0, 0.5]),
    ... )
    >>> posterior = factor_e_step(torch.tensor([[1.0, 3.0]]), params)
    >>> posterior.mean, posterior.covariance  # 1.3 and 0.1: little doubt is left
    (tensor([[1.3000]]), tensor([[0.1000]]))
    >>> exact = MultivariateNormal(params.mean, params.covariance)
    >>> torch.allclose(posterior.log_evidence, exact.log_prob(torch.tensor([1.0, 3.0])))
    True
    """
    loadings, noise = params.loadings, params.noise_variance
    scaled = loadings / noise[:, None]  # Φ⁻¹ W: (D, L)
    identity = torch.eye(loadings.shape[1], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(identity + loadings.mT @ scaled)  # of Σ⁻¹: (L, L)
    centred = x - params.mean  # (N, D)
    mean = torch.cholesky_solve((centred @ scaled).mT, factor).mT  # V x: (N, L)
    covariance = torch.cholesky_inverse(factor)  # Σ: (L, L)
    residual = centred - mean @ loadings.mT  # (N, D)
    distance = (residual.square() / noise).sum(-1) + mean.square().sum(-1)
    log_det = noise.log().sum() + 2 * factor.diagonal().log().sum()
    log_evidence = -0.5 * (distance + log_det + x.shape[-1] * LOG_2PI)
    return FactorPosterior(mean, covariance, log_evidence)


def factor_m_step(
    x: Tensor,
    posterior: FactorPosterior,
    mean: Tensor | float = 0.0,
    regularization: float = 0.0,
) -> FactorParameters:
    """M-step: the parameters that maximise the ELBO (``eq-fa-m-step``).

    Args:
        x: observations, (N, D).
        posterior: means (N, L) and common covariance (L, L) of q(z | x).
        mean: mean of x, held fixed: zero, or the sample mean, which is its
            maximum-likelihood value whatever the other parameters are, (D,).
        regularization: smallest noise variance allowed, in squared units of x;
            the M-step stays an exact maximum under this constraint.

    Returns:
        Mean (D,), loadings (D, L), noise variances (D,).

    >>> x = torch.tensor([[1.0, 3.0], [-1.0, -3.0]])
    >>> q = FactorPosterior(torch.tensor([[1.0], [-1.0]]), torch.zeros(1, 1), None)
    >>> factor_m_step(x, q, regularization=0.01)  # doctest: +NORMALIZE_WHITESPACE
    FactorParameters(mean=tensor([0., 0.]), loadings=tensor([[1.], [3.]]),
                     noise_variance=tensor([0.0100, 0.0100]))
    """
    mean = torch.as_tensor(mean, dtype=x.dtype, device=x.device).expand(x.shape[1])
    centred = x - mean  # (N, D)
    cross = centred.mT @ posterior.mean / len(x)  # average of x E[z]ᵀ: (D, L)
    second = posterior.covariance + posterior.mean.mT @ posterior.mean / len(x)
    loadings = torch.linalg.solve(second, cross.mT).mT  # cross · second⁻¹: (D, L)
    explained = (loadings * cross).sum(1)  # (D,)
    noise = (centred.square().mean(0) - explained).clamp_min(regularization)
    return FactorParameters(mean, loadings, noise)


def factor_elbo(
    x: Tensor, params: FactorParameters, mean: Tensor, covariance: Tensor
) -> Tensor:
    """The ELBO for any Gaussian q(z | x) = N(mean, covariance), in nats per example.

    Reconstruction minus KL divergence from the prior, both in closed form
    (``eq-elbo-reconstruction-kl``).

    Args:
        x: observations, (N, D).
        params: parameters of the model.
        mean: means of q, (N, L).
        covariance: covariance of q, common (L, L) or one per example (N, L, L).

    Returns:
        (N,)

    >>> params = FactorParameters(
    ...     mean=torch.zeros(2),
    ...     loadings=torch.tensor([[1.0], [2.0]]),
    ...     noise_variance=torch.tensor([1.0, 0.5]),
    ... )
    >>> x = torch.tensor([[1.0, 3.0]])
    >>> q = factor_e_step(x, params)
    >>> torch.allclose(factor_elbo(x, params, q.mean, q.covariance), q.log_evidence)
    True
    >>> bool(factor_elbo(x, params, q.mean + 0.1, q.covariance) < q.log_evidence)
    True
    """
    loadings, noise = params.loadings, params.noise_variance
    residual = x - params.mean - mean @ loadings.mT  # (N, D)
    spread = ((loadings @ covariance) * loadings).sum(-1)  # diag(W C Wᵀ): (..., D)
    error = ((residual.square() + spread) / noise).sum(-1)  # (N,)
    reconstruction = -0.5 * (error + noise.log().sum() + x.shape[-1] * LOG_2PI)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    log_det = torch.linalg.slogdet(covariance).logabsdet
    kl = 0.5 * (trace + mean.square().sum(-1) - mean.shape[-1] - log_det)
    return reconstruction - kl


# ------------------------------------------------------------------------- fitting


class _ExactEM:
    """The loop that both models share. Subclasses supply the two steps."""

    parameters: Any = None
    history: list[float]
    converged: bool = False

    def _start(self, x: Tensor, generator: torch.Generator) -> Any:
        raise NotImplementedError

    def _e_step(self, x: Tensor, params: Any) -> Any:
        raise NotImplementedError

    def _m_step(self, x: Tensor, posterior: Any, params: Any) -> Any:
        raise NotImplementedError

    def _check_start(self, params: Any, dim: int) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def fit(
        self,
        x: Any,
        max_iterations: int = 1000,
        tolerance: float = 1e-8,
        seed: int = 0,
        *,
        restarts: int = 1,
        init: Any = None,
    ) -> Any:
        """Alternate E-step and M-step until the evidence stands still.

        Args:
            x: observations, (N, D): a tensor, an array, or ``data.Examples``.
            max_iterations: the most iterations, each an M-step and an E-step.
            tolerance: stop when an iteration gains less than this, in nats per
                example. EM slows down near its optimum (``eq-em-rate``): what is
                still to come may be many times the last gain.
            seed: seed of the starting points.
            restarts: number of starting points; the best end point is kept, of those
                from which the likelihood stayed finite.
            init: parameters to start from, instead of a random starting point.

        Returns:
            The model itself, with ``parameters``; ``history``, the average
            log-evidence in nats per example at the start and after each iteration;
            ``converged``, whether the gain fell below ``tolerance``.

        Raises:
            ValueError, TypeError: an argument is not what is expected.
            ValueError: from every start, the likelihood became infinite.
        """
        x = _observations(x)
        self._check_size(x)
        check_count("max_iterations", max_iterations)
        check_count("restarts", restarts)
        if not (isinstance(tolerance, (int, float)) and tolerance >= 0):
            raise ValueError(f"tolerance is {tolerance!r}; expected a number >= 0")
        if init is not None:
            if restarts != 1:
                raise ValueError(f"restarts is {restarts}, but init fixes the start")
            init = self._check_start(init, x.shape[1])
        generator = torch.Generator().manual_seed(seed)
        best = collapse = None
        for _ in range(restarts):
            start = self._start(x, generator) if init is None else init
            try:
                run = self._climb(x, start, max_iterations, tolerance)
            except ValueError as error:
                collapse = error
                continue
            if best is None or run[1][-1] > best[1][-1]:
                best = run
        if best is None:
            raise collapse
        self.parameters, self.history, self.converged = best
        return self

    def _climb(
        self, x: Tensor, params: Any, max_iterations: int, tolerance: float
    ) -> tuple[Any, list[float], bool]:
        """EM from one starting point: final parameters, history, converged.

        Raises:
            ValueError: the likelihood is not finite.
        """
        history: list[float] = []
        for iteration in range(max_iterations + 1):
            try:
                posterior = self._e_step(x, params)
            except torch.linalg.LinAlgError as error:
                raise ValueError(_COLLAPSE.format(iteration)) from error
            history.append(posterior.log_evidence.mean().item())
            if not math.isfinite(history[-1]):
                raise ValueError(_COLLAPSE.format(iteration))
            if iteration and history[-1] - history[-2] < tolerance:
                return params, history, True
            if iteration < max_iterations:
                params = self._m_step(x, posterior, params)
        return params, history, False

    def _check_size(self, x: Tensor) -> None:
        raise NotImplementedError

    def _known(self) -> Any:
        """The parameters, once there are any."""
        if self.parameters is None:
            raise RuntimeError(f"this {type(self).__name__} has not been fitted yet")
        return self.parameters

    def _fitted(self, x: Any) -> tuple[Tensor, Any]:
        """Checked observations and the parameters, once there are any."""
        params = self._known()
        x = _observations(x)
        if x.shape[1] != params.data_dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this model was fitted to "
                f"{params.data_dim} dimensions"
            )
        return x, params

    def log_likelihood(self, x: Any) -> Tensor:
        """log p(x) under the fitted model, in nats: (N,)."""
        return self._e_step(*self._fitted(x)).log_evidence


_COLLAPSE = (
    "the likelihood is not finite at iteration {}: a variance has shrunk to zero "
    "(or the start was singular); fit with regularization > 0 or another seed"
)


class GaussianMixture(_ExactEM):
    """A mixture of Gaussians, p(x) = Σ_k π_k N(x | μ_k, Σ_k), fitted by EM.

    Args:
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"``.
        regularization: smallest variance allowed in any direction, in squared units
            of x. Without it the likelihood has no maximum: a component that sits on
            one single point can shrink for ever.

    Attributes:
        parameters: :class:`MixtureParameters`, once fitted; also as ``weights``,
            ``means`` and ``covariances``.
        history: log-evidence in nats per example, at the start and after each
            iteration; never decreasing.
        converged: whether the last gain was below the tolerance.

    >>> x = torch.tensor([[-2.1], [-2.0], [-1.9], [2.9], [3.0], [3.1]])
    >>> mixture = GaussianMixture(num_components=2).fit(x, seed=0)
    >>> mixture.means.sort(0).values.round(decimals=3).flatten()
    tensor([-2.,  3.], dtype=torch.float64)
    >>> mixture.predict(x).unique(return_counts=True)[1]
    tensor([3, 3])
    """

    def __init__(
        self,
        num_components: int,
        covariance: str = "full",
        regularization: float = 1e-6,
    ) -> None:
        check_count("num_components", num_components)
        _check_covariance(covariance)
        _check_regularization(regularization)
        self.num_components = num_components
        self.covariance = covariance
        self.regularization = regularization

    @property
    def weights(self) -> Tensor:
        """π: (K,)."""
        return self._known().weights

    @property
    def means(self) -> Tensor:
        """μ: (K, D)."""
        return self._known().means

    @property
    def covariances(self) -> Tensor:
        """Σ: (K, D, D), or (K, D) for diagonal covariances."""
        return self._known().covariances

    def posterior(self, x: Any) -> Categorical:
        """p(z | x) (``eq-responsibilities``): N distributions over K components."""
        return Categorical(probs=self._e_step(*self._fitted(x)).responsibilities)

    def predict(self, x: Any) -> Tensor:
        """The most probable component of each example: (N,), int64."""
        return self._e_step(*self._fitted(x)).responsibilities.argmax(-1)

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw n observations (n, D) and the components (n,) they come from."""
        weights, means, covariances = self._known()
        z = torch.multinomial(weights, n, replacement=True, generator=generator)
        like = {"dtype": means.dtype, "device": means.device}
        noise = torch.randn(n, means.shape[1], generator=generator, **like)
        if covariances.dim() == 3:
            factor = torch.linalg.cholesky(covariances)[z]  # (n, D, D)
            return means[z] + (factor @ noise[..., None])[..., 0], z
        return means[z] + covariances[z].sqrt() * noise, z

    def _check_size(self, x: Tensor) -> None:
        if len(x) < self.num_components:
            raise ValueError(
                f"num_components is {self.num_components}, but x holds only "
                f"{len(x)} examples"
            )

    def _e_step(self, x: Tensor, params: MixtureParameters) -> MixturePosterior:
        return mixture_e_step(x, params)

    def _m_step(
        self, x: Tensor, posterior: MixturePosterior, params: MixtureParameters
    ) -> MixtureParameters:
        return mixture_m_step(
            x, posterior.responsibilities, self.covariance, self.regularization
        )

    def _start(self, x: Tensor, generator: torch.Generator) -> MixtureParameters:
        """Means by k-means++ seeding, one common covariance, equal weights."""
        k = self.num_components
        means = _spread_out(x, k, generator)  # (K, D)
        nearest = torch.cdist(x, means).argmin(-1)  # (N,)
        centred = x - means[nearest]
        pooled = mixture_m_step(
            torch.cat([centred, -centred]),  # so that the mean is zero
            torch.ones(2 * len(x), 1, dtype=x.dtype, device=x.device),
            self.covariance,
            max(self.regularization, 1e-12 * x.var(0, correction=0).max().item()),
        ).covariances
        weights = torch.full((k,), 1 / k, dtype=x.dtype, device=x.device)
        return MixtureParameters(weights, means, pooled.repeat_interleave(k, 0))

    def _check_start(self, params: Any, dim: int) -> MixtureParameters:
        k = self.num_components
        full = self.covariance == "full"
        return _check_record(
            MixtureParameters,
            params,
            [(k,), (k, dim), (k, dim, dim) if full else (k, dim)],
        )


class FactorAnalysis(_ExactEM):
    """Factor analysis, x ~ N(mean + W z, Φ) with z ~ N(0, I), fitted by EM.

    Φ = diag(σ²) is the noise covariance: its entries are variances.

    Args:
        latent_dim: L, at most D.
        learn_mean: the model's mean is zero by default, as in the tutorial that this
            book follows; ``True`` takes the sample mean, the maximum-likelihood value.
        regularization: smallest noise variance allowed, in squared units of x.

    Attributes:
        parameters: :class:`FactorParameters`, once fitted; also as ``mean``,
            ``loadings``, ``noise_variance`` and ``noise_scale``.
        history: log-evidence in nats per example, at the start and after each
            iteration; never decreasing.
        converged: whether the last gain was below the tolerance.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(500, 1, generator=generator) @ torch.tensor([[2.0, 1.0, -1.0]])
    >>> x = x + 0.5 * torch.randn(500, 3, generator=generator)
    >>> model = FactorAnalysis(latent_dim=1).fit(x)
    >>> model.loadings.shape, model.noise_scale.shape, model.converged
    (torch.Size([3, 1]), torch.Size([3]), True)
    """

    def __init__(
        self,
        latent_dim: int,
        learn_mean: bool = False,
        regularization: float = 1e-6,
    ) -> None:
        check_count("latent_dim", latent_dim)
        _check_regularization(regularization)
        self.latent_dim = latent_dim
        self.learn_mean = learn_mean
        self.regularization = regularization

    @property
    def mean(self) -> Tensor:
        """Mean of x, zero unless ``learn_mean``: (D,)."""
        return self._known().mean

    @property
    def loadings(self) -> Tensor:
        """W: (D, L)."""
        return self._known().loadings

    @property
    def noise_variance(self) -> Tensor:
        """Diagonal of Φ: (D,)."""
        return self._known().noise_variance

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of the noise, the square root of diag Φ: (D,)."""
        return self._known().noise_scale

    def posterior(self, x: Any) -> MultivariateNormal:
        """p(z | x) (``eq-fa-posterior``): N Gaussians over R^L."""
        mean, covariance, _ = self._e_step(*self._fitted(x))
        return MultivariateNormal(mean, covariance)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n observations: (n, D)."""
        mean, loadings, _ = self._known()
        dim, latent_dim = loadings.shape
        like = {"dtype": mean.dtype, "device": mean.device}
        z = torch.randn(n, latent_dim, generator=generator, **like)
        noise = torch.randn(n, dim, generator=generator, **like)
        return mean + z @ loadings.mT + self.noise_scale * noise

    def _check_size(self, x: Tensor) -> None:
        if self.latent_dim > x.shape[1]:
            raise ValueError(
                f"latent_dim is {self.latent_dim}, but x has only "
                f"{x.shape[1]} dimensions"
            )
        if len(x) < 2:
            raise ValueError("x holds 1 example; factor analysis needs at least 2")

    def _e_step(self, x: Tensor, params: FactorParameters) -> FactorPosterior:
        return factor_e_step(x, params)

    def _m_step(
        self, x: Tensor, posterior: FactorPosterior, params: FactorParameters
    ) -> FactorParameters:
        return factor_m_step(x, posterior, params.mean, self.regularization)

    def _start(self, x: Tensor, generator: torch.Generator) -> FactorParameters:
        """Half of each variance to the noise, about as much to random loadings."""
        mean = x.mean(0) if self.learn_mean else torch.zeros_like(x[0])
        variance = (x - mean).square().mean(0).clamp_min(2 * self.regularization)
        direction = torch.randn(x.shape[1], self.latent_dim, generator=generator).to(x)
        loadings = (variance / (2 * self.latent_dim)).sqrt()[:, None] * direction
        return FactorParameters(mean, loadings, variance / 2)

    def _check_start(self, params: Any, dim: int) -> FactorParameters:
        return _check_record(
            FactorParameters, params, [(dim,), (dim, self.latent_dim), (dim,)]
        )


# ------------------------------------------------------------------------- helpers


def _spread_out(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next seed is drawn far from those before: (k, D)."""
    first = torch.randint(len(x), (1,), generator=generator)
    seeds = x[first.to(x.device)]
    for _ in range(k - 1):
        distance = torch.cdist(x, seeds).min(-1).values.square().cpu()
        if distance.sum() == 0:  # fewer than k different points
            distance = torch.ones_like(distance)
        following = torch.multinomial(distance, 1, generator=generator)
        seeds = torch.cat([seeds, x[following.to(x.device)]])
    return seeds


def _observations(x: Any, name: str = "x", expected: str = "(N, D)") -> Tensor:
    """Check observations, or such, and give them as a float64 tensor (N, D)."""
    x = getattr(x, "x", x)  # data.Examples
    try:
        x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a {type(x).__name__}; expected numbers of shape {expected}"
        ) from error
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; expected real numbers")
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")
    if x.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(x.shape)}")
    x = x.detach().to(torch.float64)
    bad = int((~x.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{name} holds NaN or infinity in {bad} of its {len(x)} rows")
    return x


def _check_covariance(kind: Any) -> None:
    if kind not in ("full", "diagonal"):
        raise ValueError(f"covariance is {kind!r}; expected 'full' or 'diagonal'")


def _check_regularization(value: Any) -> None:
    if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError(f"regularization is {value!r}; expected a number >= 0")


def _check_record(kind: type, params: Any, shapes: list[tuple[int, ...]]) -> Any:
    """Check the shapes of a parameter record and give it in float64."""
    if not isinstance(params, kind):
        raise TypeError(f"init is a {type(params).__name__}; expected {kind.__name__}")
    for name, value, shape in zip(kind._fields, params, shapes, strict=True):
        if tuple(value.shape) != shape:
            raise ValueError(
                f"init.{name} has shape {tuple(value.shape)}; expected {shape}"
            )
    return kind(*(value.detach().to(torch.float64) for value in params))
