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

    (1/L) Σ_l log p(x | z_l) - KL(q(z | x) ‖ p(z)),  z_l ~ q(z | x) reparameterised

    (``eq-vae-elbo-estimator``; the second estimator of Kingma and Welling, 2014).

    Args:
        model: its prior and posterior must have a closed-form KL divergence in torch.
        x: (B, D).
        condition: what a conditional model takes behind x.
        num_samples: L.
        generator: for the draws; the global one if None.

    Returns:
        :class:`~aevb.model.ElboTerms`, nats, (B,) each; unbiased.

    Raises:
        ValueError: num_samples < 1.
        NotImplementedError: torch knows no KL divergence for the pair.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (L, B, latent)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (L, B)
    return ElboTerms(log_p.mean(0), kl_divergence(q_z, model.prior(*condition)))


def fully_sampled(
    model: LatentVariableModel,
    x: Tensor,
    *condition: Tensor,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Everything by sampling: needs densities only, no closed-form divergence.

    (1/L) Σ_l [log p(x | z_l) + log p(z_l) - log q(z_l | x)],  z_l ~ q(z | x)

    (``eq-vae-elbo-fully-sampled``; the first estimator of Kingma and Welling, 2014).
    Arguments and result as for :func:`analytic_kl`; ``kl`` is an estimate and can be
    negative.
    """
    check_count("num_samples", num_samples)
    q_z = model.posterior(x, *condition)
    z = rsample(q_z, (num_samples,), generator)  # (L, B, latent)
    log_p = model.likelihood(z, *condition).log_prob(x)  # (L, B)
    kl = q_z.log_prob(z) - model.prior(*condition).log_prob(z)  # (L, B)
    return ElboTerms(log_p.mean(0), kl.mean(0))
