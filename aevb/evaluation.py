"""How good a model is: bounds, evidence estimates and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.distributions import Distribution

from aevb.data import Batches
from aevb.distributions import rsample
from aevb.model import ElboTerms, LatentVariableModel, check_count

BATCH_SIZE = 1000  # examples at a time; it decides which draws an example gets
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

    def __repr__(self) -> str:
        return f"{self.mean:.2f} ± {self.standard_error:.2f} nats"


def _estimate(values: Tensor) -> Estimate:
    values = values.double()
    spread = values.std().item() if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), spread / math.sqrt(len(values)), values)


@contextmanager
def _evaluating(model: LatentVariableModel, seed: int) -> Iterator[torch.Generator]:
    """Evaluation mode, no gradients, and a generator of its own on the device."""
    device = next(model.parameters(), torch.empty(0)).device  # or has it none?
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield torch.Generator(device).manual_seed(seed)
    finally:
        model.train(training)


def _batches(model: LatentVariableModel, data, batch_size: int) -> Batches:
    if isinstance(data, Batches):
        return data
    device = next(model.parameters()).device
    return Batches(data, model.inputs, batch_size, device, check=model.check)


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
    return _estimate(terms(model, data, num_samples, seed).elbo)


def _log_mean(draw: Callable[..., Tensor], num_samples: int) -> Tensor:
    """log (1/K) Σ_k exp(w_k) of K logarithms w_k (K, B), without all of them: (B,).

    Args:
        draw: ``draw(num_samples=k)`` gives k of them, (k, B).
        num_samples: K.
    """
    total, left = None, num_samples
    while left:
        count = min(left, 100)  # 100 x 100 x D numbers at a time
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
    examples = 100
    values = []
    with _evaluating(model, seed) as generator:
        batches = _batches(model, data, examples)
        for batch in progress(batches) if progress else batches:
            draw = partial(model.log_weights, *batch, generator=generator)
            values.append(_log_mean(draw, num_samples))
    return _estimate(torch.cat(values))


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

    Example:
        >>> from aevb import data, models
        >>> model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
        >>> x = data.factor_analysis()[1].x[:5]
        >>> error = naive_log_likelihood(model, x, 20000).values - model.evidence(x)
        >>> bool(error.abs().max() < 0.2)
        True
    """
    check_count("num_samples", num_samples)
    values = []
    with _evaluating(model, seed) as generator:
        for (x,) in _batches(model, data, 100):

            def log_p(num_samples: int, x: Tensor = x) -> Tensor:
                z = rsample(model.prior(), (num_samples, len(x)), generator)
                return model.likelihood(z).log_prob(x)  # z (S, B, L) -> (S, B)

            values.append(_log_mean(log_p, num_samples))
    return _estimate(torch.cat(values))


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
    for name, numbers in (("predicted", predicted), ("y", y)):
        if not isinstance(numbers, Tensor) or numbers.dtype != torch.int64:
            given = getattr(numbers, "dtype", f"a {type(numbers).__name__}")
            raise TypeError(f"{name} is {given}; expected a tensor of torch.int64")
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
        return (log_q.exp() * (log_q - self.log_density)).sum(0) * self.cell

    def forward_kl(self, q: Distribution) -> Tensor:
        """KL(p(z | x) ‖ q), nats: (B,) (``eq-forward-kl``).

        Args:
            q: as for :meth:`reverse_kl`.
        """
        gap = self.log_density - self._log_prob(q)
        return (self.probabilities * gap).sum(0)


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
