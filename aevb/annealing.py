"""Annealed importance sampling with Hamiltonian transitions, for any two densities.

From a density p_0 that is known and can be drawn from to a density f that is known up
to a constant, here p(x, z), whose constant is p(x), along the geometric path

f_β(z) = p_0(z)^(1 - β) f(z)^β,  0 = β_0 < … < β_T = 1

(``eq-annealing-path``; Neal, 2001). All chains of all examples move at once: z is
(C, B, L).
:mod:`aevb.evaluation` knows what the densities are for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

TARGET = 0.65  # acceptance that the step sizes aim at
_GAIN = 0.1  # by how much one transition changes the logarithm of a step size
_JITTER = 0.2  # step sizes vary by so much, lest a path be a whole period

Densities = Callable[[Tensor], tuple[Tensor, Tensor]]


class Point(NamedTuple):
    """Where the chains are, and all that the path needs to know there.

    Attributes:
        z: (C, B, L).
        log_start: (C, B), log p_0(z), nats.
        log_ratio: (C, B), log f(z) - log p_0(z), nats.
        d_start, d_ratio: (C, B, L), their gradients in z.
    """

    z: Tensor
    log_start: Tensor
    log_ratio: Tensor
    d_start: Tensor
    d_ratio: Tensor

    @classmethod
    def at(cls, densities: Densities, z: Tensor) -> Point:
        """``densities(z)`` gives log p_0 and log f - log p_0, (C, B) each."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            start, ratio = densities(z)
            (d_start,) = torch.autograd.grad(start.sum(), z, retain_graph=True)
            (d_ratio,) = torch.autograd.grad(ratio.sum(), z)
        return cls(z.detach(), start.detach(), ratio.detach(), d_start, d_ratio)

    def log_density(self, beta: float) -> Tensor:
        """log f_β(z), nats: (C, B)."""
        return self.log_start + beta * self.log_ratio

    def gradient(self, beta: float) -> Tensor:
        """∇ log f_β(z): (C, B, L)."""
        return self.d_start + beta * self.d_ratio


def schedule(steps: int) -> list[float]:
    """β_0 = 0, …, β_T = 1, in small steps near both ends (Wu et al., 2017).

    Sigmoids of T + 1 numbers equally spaced from -4 to 4, stretched to [0, 1].

    Example:
        >>> [round(beta, 3) for beta in schedule(4)]
        [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    beta = torch.linspace(-4, 4, steps + 1, dtype=torch.float64).sigmoid()
    return ((beta - beta[0]) / (beta[-1] - beta[0])).tolist()


def leapfrog(
    densities: Densities,
    point: Point,
    momentum: Tensor,
    beta: float,
    size: Tensor,
    steps: int,
) -> tuple[Point, Tensor]:
    """Follow Hamilton's equations with the energy -log f_β(z) + |momentum|² / 2.

    Half a step of the momentum, whole steps of z and of the momentum in turn, and half
    a step of the momentum (``eq-leapfrog``). Reversible: from the end, with the
    momentum turned round, it leads back.

    Args:
        momentum: (C, B, L).
        size: of the steps; broadcasts with z.
        steps: evaluations of the densities.

    Returns:
        The point and the momentum at the end.
    """
    momentum = momentum + size / 2 * point.gradient(beta)
    for step in range(steps):
        z = (point.z + size * momentum).nan_to_num()  # diverged: will be refused
        point = Point.at(densities, z)
        last = step == steps - 1
        momentum = momentum + (size / 2 if last else size) * point.gradient(beta)
    return point, momentum


def transition(
    densities: Densities,
    point: Point,
    beta: float,
    size: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
) -> tuple[Point, Tensor]:
    """One step of Hamiltonian Monte Carlo, which leaves f_β as it is.

    A proposal by :func:`leapfrog` from a fresh momentum, accepted with the probability
    min(1, exp(-change of the energy)) (``eq-hamiltonian-acceptance``).

    Args:
        size: of the leapfrog steps, (B, L) or of another shape that broadcasts with z.
        steps: of leapfrog.

    Returns:
        The next point, and (C, B) the probability that the proposal had to be accepted.
    """
    options = {"dtype": point.z.dtype, "device": point.z.device, "generator": generator}
    momentum = torch.randn(point.z.shape, **options)
    uniform = torch.rand((2, *point.z.shape[:2]), **options)  # (2, C, B)
    size = size * (1 + _JITTER * (2 * uniform[0] - 1))[..., None]
    there, turned = leapfrog(densities, point, momentum, beta, size, steps)
    kinetic = (momentum.square() - turned.square()).sum(-1) / 2
    log_accept = there.log_density(beta) - point.log_density(beta) + kinetic
    accept = log_accept.exp().clamp(max=1).nan_to_num(0.0)  # NaN: it has diverged
    moved = uniform[1] < accept
    stays = (
        torch.where(moved if new.ndim == 2 else moved[..., None], new, old)
        for new, old in zip(there, point, strict=True)
    )
    return Point(*stays), accept


class Walk(NamedTuple):
    """What :func:`anneal` has found.

    Attributes:
        log_weights: (C, B), float64, nats.
        acceptance: (T - 1, B), mean over the chains.
        sizes: (T - 1, B), the step sizes, in units of ``scale``.
    """

    log_weights: Tensor
    acceptance: Tensor
    sizes: Tensor


def anneal(
    densities: Densities,
    z: Tensor,
    betas: list[float],
    sizes: Tensor,
    *,
    scale: Tensor | float = 1.0,
    leapfrog_steps: int = 10,
    adapt: bool = False,
    generator: torch.Generator | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Walk:
    """Walk along the path, and add up the weights of its steps.

    log w = Σ_t (β_t - β_{t-1}) [log f(z_{t-1}) - log p_0(z_{t-1})]

    (``eq-annealing-weight``), where z_t comes from z_{t-1} by a transition that leaves
    f_{β_t} as it is. With z_0 ~ p_0 and betas from 0 to 1, E[w] is the integral of f
    (``eq-annealing-unbiased``). With z_0 from the normalised f and
    betas from 1 to 0, E[w] is its reciprocal. Both hold for any number of steps and any
    step sizes that were fixed beforehand; with ``adapt`` they hold nearly.

    Args:
        densities: see :meth:`Point.at`.
        z: (C, B, L).
        betas: T + 1 numbers.
        sizes: (T - 1, B), of the leapfrog steps for each transition; with ``adapt``
            (B,), of the first one.
        scale: of the coordinates of z, (…, L), which multiplies the sizes.
        adapt: after each transition, move the sizes of each example towards the
            acceptance ``TARGET``.
        progress: wraps the iterable of steps.
    """
    point = Point.at(densities, z)
    log_weights = torch.zeros_like(point.log_ratio, dtype=torch.float64)
    size, used, accepted = sizes, [], []
    steps = range(1, len(betas))
    for t in progress(steps) if progress else steps:
        log_weights += (betas[t] - betas[t - 1]) * point.log_ratio.double()
        if t == len(betas) - 1:
            continue  # no weight depends on where one more transition would lead
        size = size if adapt else sizes[t - 1]
        point, accept = transition(
            densities, point, betas[t], size[:, None] * scale, leapfrog_steps, generator
        )
        used.append(size)
        accepted.append(accept.mean(0))
        size = size * (_GAIN * (accepted[-1] - TARGET)).exp()
    kept = (torch.stack(part) if part else sizes[:0] for part in (accepted, used))
    return Walk(log_weights, *kept)
