"""Tests of aevb/annealing.py, on Gaussians whose integrals are known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from aevb import annealing
from aevb.annealing import Point, anneal, leapfrog, schedule, transition

START = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
TARGET = MultivariateNormal(
    torch.tensor([0.6, -0.3]).double(), torch.tensor([[0.9, 0.2], [0.2, 0.8]]).double()
)
LOG_Z = -3.0


def densities(z):
    """From N(0, I) to a Gaussian that integrates to exp(-3)."""
    start = START.log_prob(z)
    return start, LOG_Z + TARGET.log_prob(z) - start


def around_target(chains, examples=1, seed=0):
    torch.manual_seed(seed)
    return TARGET.sample((chains, examples))


# --- the path -----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_schedule_goes_from_0_to_1(steps):
    betas = torch.tensor(schedule(steps), dtype=torch.float64)
    assert len(betas) == steps + 1
    assert betas[0] == 0 and betas[-1] == 1
    assert (betas.diff() > 0).all()
    torch.testing.assert_close(betas, 1 - betas.flip(0))  # the same both ways


def test_point_knows_densities_and_gradients():
    z = around_target(3, 4)
    point = Point.at(densities, z)
    beta, step = 0.3, 1e-6
    start, ratio = densities(z)
    torch.testing.assert_close(point.log_density(beta), start + beta * ratio)
    for j, unit in enumerate(step * torch.eye(2).double()):
        up, down = (
            Point.at(densities, z + s * unit).log_density(beta) for s in (1, -1)
        )
        torch.testing.assert_close((up - down) / 2 / step, point.gradient(beta)[..., j])


# --- Hamiltonian transitions ----------------------------------------------------------


def energy(point, momentum, beta):
    return momentum.square().sum(-1) / 2 - point.log_density(beta)


def test_leapfrog_leads_back():
    z, momentum = around_target(5, 3), torch.randn(5, 3, 2).double()
    how = {"beta": 0.7, "size": torch.tensor(0.2).double(), "steps": 9}
    there, turned = leapfrog(densities, Point.at(densities, z), momentum, **how)
    back, again = leapfrog(densities, there, -turned, **how)
    assert (there.z - z).abs().mean() > 0.1
    torch.testing.assert_close(back.z, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(-again, momentum, rtol=0, atol=1e-12)


def test_leapfrog_keeps_volumes():
    """The Jacobian of (z, momentum), by differences, has the determinant 1."""
    here, step = torch.tensor([0.3, -0.2, 0.7, 0.5]).double(), 1e-5
    moved = here + step * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    z, momentum = moved[:, None].split(2, -1)
    size = torch.tensor([0.5, 0.3]).double()
    point, turned = leapfrog(
        densities, Point.at(densities, z), momentum, 0.6, size, steps=3
    )
    ends = torch.cat([point.z, turned], -1)[:, 0]
    jacobian = (ends[:4] - ends[4:]) / 2 / step
    assert torch.linalg.det(jacobian) == pytest.approx(1, abs=1e-8)
    assert (jacobian - torch.eye(4)).abs().max() > 0.5


def test_energy_error_falls_with_the_square_of_the_step():
    z, momentum = around_target(200), torch.randn(200, 1, 2).double()
    point = Point.at(densities, z)
    errors = []
    for size, steps in ((0.1, 8), (0.05, 16), (0.025, 32)):
        size = torch.tensor(size).double()
        there, turned = leapfrog(densities, point, momentum, 1.0, size, steps)
        change = energy(there, turned, 1.0) - energy(point, momentum, 1.0)
        errors.append(change.abs().mean())
    assert errors[0] < 0.05
    assert 3.7 < errors[0] / errors[1] < 4.3 and 3.8 < errors[1] / errors[2] < 4.2


@pytest.mark.parametrize("size", [0.9, 1.4])
def test_transition_leaves_the_target_as_it_is(size):
    """Also with steps so large that many proposals are refused."""
    n = 20_000
    z = around_target(n)
    size = torch.full((1, 1), size).double()
    point, accept = transition(densities, Point.at(densities, z), 1.0, size, steps=3)
    moved = (point.z != z).any(-1)
    assert abs(moved.double().mean() - accept.mean()) < 4 * 0.5 / n**0.5
    assert 0.1 < accept.mean() < 0.99
    mean = point.z[:, 0].mean(0)
    assert ((mean - TARGET.mean).abs() < 4 * (TARGET.variance / n).sqrt()).all()
    variance = TARGET.covariance_matrix.diagonal()
    error = (
        variance[:, None] * variance + TARGET.covariance_matrix.square()
    ) / n  # of an entry of the sample covariance
    found = torch.cov(point.z[:, 0].T)
    assert ((found - TARGET.covariance_matrix).abs() < 4 * error.sqrt()).all()
    again = Point.at(densities, point.z)
    for kept, fresh in zip(point, again, strict=True):
        torch.testing.assert_close(kept, fresh)


def test_diverging_paths_are_refused():
    z = around_target(10).float()
    point = Point.at(lambda z: tuple(t.float() for t in densities(z)), z)
    after, accept = transition(densities, point, 1.0, torch.full((1, 1), 1e30), 3)
    assert torch.equal(after.z, z) and (accept == 0).all()


def test_generator_decides():
    point, size = Point.at(densities, around_target(4)), torch.ones(1, 1).double() / 5
    one, two, other = (
        transition(densities, point, 0.5, size, 2, torch.Generator().manual_seed(s))[0]
        for s in (0, 0, 1)
    )
    assert torch.equal(one.z, two.z) and not torch.equal(one.z, other.z)


# --- annealing ----------------------------------------------------------------------


def test_one_step_is_importance_sampling():
    z = around_target(7, 2)
    walk = anneal(densities, z, [0.0, 1.0], torch.ones(0, 2))
    torch.testing.assert_close(walk.log_weights, densities(z)[1])
    assert walk.acceptance.shape == walk.sizes.shape == (0, 2)


@pytest.mark.parametrize("size", [0.05, 0.8])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_weights_are_unbiased(direction, size):
    """E[w] is the integral, or its reciprocal, whatever the steps: few, short, long."""
    n, betas = 20_000, [0.0, 0.1, 0.4, 1.0]
    sizes = torch.full((3, 1), size).double() * torch.tensor([[1.5], [1.0], [0.5]])
    if direction == "up":
        z, expected = START.sample((n, 1)), LOG_Z
    else:
        z, expected, betas = around_target(n), -LOG_Z, betas[::-1]
    scale = torch.tensor([1.0, 0.7]).double()
    walk = anneal(densities, z, betas, sizes[:2], scale=scale, leapfrog_steps=2)
    w = (walk.log_weights[:, 0] - expected).exp()
    error = w.std() / n**0.5
    assert abs(w.mean() - 1) < 4 * error and error < 0.05
    assert walk.log_weights.mean() < expected  # Jensen's inequality


def test_more_steps_lead_to_the_integral():
    torch.manual_seed(0)
    spread = []
    for steps in (4, 64):
        z, sizes = START.sample((200, 1)), torch.full((steps - 1, 1), 0.3).double()
        walk = anneal(densities, z, schedule(steps), sizes, leapfrog_steps=5)
        assert abs(walk.log_weights.exp().mean().log() - LOG_Z) < 0.15
        spread.append(walk.log_weights.std())
    assert spread[1] < 0.4 * spread[0]


def test_sizes_adapt_to_each_example():
    """Two examples whose targets differ in width by a factor of 100."""
    width = torch.tensor([1.0, 0.01]).double()[:, None]

    def densities(z):
        target = Normal(torch.zeros(1).double(), width)
        log_f = target.log_prob(z).sum(-1)
        return log_f, 0 * log_f

    z = width * torch.randn(20, 2, 3).double()
    start = torch.full((2,), 0.1).double()
    walk = anneal(densities, z, [1.0] * 202, start, leapfrog_steps=2, adapt=True)
    assert walk.sizes.shape == walk.acceptance.shape == (200, 2)
    late = walk.acceptance[100:].mean(0)
    assert ((late - annealing.TARGET).abs() < 0.05).all()
    ratio = walk.sizes[100:].log().mean(0).diff().exp().item()
    assert math.isclose(ratio, 0.01, rel_tol=0.15)


def test_weights_add_up_in_double_precision():
    single = lambda z: tuple(part.float() for part in densities(z.double()))  # noqa: E731
    walk = anneal(
        single, around_target(3).float(), schedule(3), torch.full((2, 1), 0.2)
    )
    assert walk.log_weights.dtype == torch.float64


def test_progress_wraps_the_steps():
    seen = []

    def progress(steps):
        seen.append(len(steps))
        return steps

    how = {"progress": progress, "leapfrog_steps": 1}
    anneal(densities, around_target(2), schedule(5), torch.full((4, 1), 0.1), **how)
    assert seen == [5]
