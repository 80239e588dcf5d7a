"""Estimators of the ELBO of each example, written over distributions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from aevb.distributions import rsample
from aevb.model import ElboTerms, LatentVariableModel, check_count


def analytic_kl(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Reconstruction by sampling, KL divergence in closed form.

    (1/S) Σ_s log p(x | z_s) - KL(q(z | x) ‖ p(z)),  z_s ~ q(z | x) reparameterised

    (``eq-vae-elbo-estimator``; the second estimator of Kingma and Welling, 2014).

    Args:
        model: its prior and posterior must have a closed-form KL divergence in torch.
        x: (B, D).
        condition: what a conditional model takes behind x.
        num_samples: S.
        generator: for the draws; the global one if None.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each; unbiased.

    Raises:
        ValueError: num_samples < 1.
        NotImplementedError: torch knows no KL divergence for the pair.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (S, B)
    return ElboTerms(log_p.mean(0), kl_divergence(q_z, model.prior(*condition)))


def fully_sampled(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Everything by sampling: needs densities only, no closed-form divergence.

    (1/S) Σ_s [log p(x | z_s) + log p(z_s) - log q(z_s | x)],  z_s ~ q(z | x)

    (``eq-vae-elbo-fully-sampled``; the first estimator of Kingma and Welling, 2014).
    Arguments and result as for :func:`analytic_kl`; ``kl`` is an estimate and can be
    negative.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (S, B, L)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (S, B)
    kl = q_z.log_prob(z) - model.prior(*condition).log_prob(z)  # (S, B)
    return ElboTerms(log_p.mean(0), kl.mean(0))
