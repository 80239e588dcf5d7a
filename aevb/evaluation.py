"""How good a model is: bounds, evidence estimates and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from aevb.data import Batches
from aevb.distributions import rsample
from aevb.model import ElboTerms, LatentVariableModel, check_count

BATCH_SIZE = 1000  # examples at a time; it decides which draws an example gets


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
    device = next(model.parameters()).device
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
            total = batch[0].new_full((len(batch[0]),), -math.inf, dtype=torch.float64)
            left = num_samples
            while left:
                count = min(left, 100)  # 100 x 100 x D numbers at a time
                log_w = model.log_weights(
                    *batch, num_samples=count, generator=generator
                )  # (count, B)
                total = torch.logaddexp(total, log_w.double().logsumexp(0))
                left -= count
            values.append(total - math.log(num_samples))
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
            total = x.new_full((len(x),), -math.inf, dtype=torch.float64)
            left = num_samples
            while left:
                count = min(left, 100)  # 100 x 100 x D numbers at a time
                z = rsample(model.prior(), (count, len(x)), generator)  # (S, B, L)
                log_p = model.likelihood(z).log_prob(x)  # (S, B)
                total = torch.logaddexp(total, log_p.double().logsumexp(0))
                left -= count
            values.append(total - math.log(num_samples))
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
