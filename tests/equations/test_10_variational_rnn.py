"""Each numbered equation of chapter 10 against an oracle that shares no code."""

import itertools
import math

import numpy as np
import pytest
import torch
from plain_vrnn import copy_of
from torch.distributions import Bernoulli, Normal, kl_divergence

from aevb import evaluation
from aevb.models import VariationalRNN

SIZES = {"data_dim": 2, "latent_dim": 1, "recurrent": (4,), "hidden": (6,)}
GRID = torch.linspace(-9, 9, 121, dtype=torch.float64)
STEP = 18 / 120
POSTERIORS = ("filtering", "smoothing")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(posterior: str = "filtering", **arguments) -> VariationalRNN:
    """A model with lively random weights, in double precision."""
    torch.manual_seed(2)
    model = VariationalRNN(posterior=posterior, **SIZES | arguments).double().eval()
    for p in model.parameters():
        p.data = 0.45 * torch.randn_like(p)
    return model


def plain(model: VariationalRNN, posterior: str = "filtering"):
    sizes = {**SIZES, "data_dim": model.data_dim, "latent_dim": model.latent_dim}
    return copy_of(model.float(), smoothing=posterior == "smoothing", **sizes).double()


X = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]]]).double()


def grid_terms(network, x, posterior: str):
    """log p(x_{1:2}, z_{1:2}) and log q(z_{1:2} | x) for every pair of grid points.

    By torch's own cells and densities, for L = 1 and T = 2: (P, P) each, one sequence.
    """
    points = len(GRID)
    seen = network.read(x[None])
    h1 = torch.zeros(1, 4, dtype=torch.float64)
    decode = lambda z, h: Bernoulli(  # noqa: E731
        logits=network.decoder(torch.cat([z, h.expand(len(z), -1)], -1))
    )
    z1 = GRID[:, None]
    p1 = network.gaussian(network.prior(h1))
    q1 = network.gaussian(network.posterior(torch.cat([seen[0], h1], -1)))
    log_p = p1.log_prob(z1)[:, 0] + decode(z1, h1).log_prob(x[0]).sum(-1)
    log_q = q1.log_prob(z1)[:, 0]
    h2, _ = network.cells[0](
        torch.cat([x[0].expand(points, -1), z1], -1), (h1.expand(points, -1),) * 2
    )
    p2 = network.gaussian(network.prior(h2))  # (P, 1)
    both = torch.cat([seen[1].expand(points, -1), h2], -1)
    q2 = network.gaussian(network.posterior(both))
    z2 = GRID[None, :]  # (1, P)
    pairs = torch.cat(
        [
            z2.expand(points, -1)[..., None],
            h2[:, None].expand(-1, points, -1),
        ],
        -1,
    )
    log_x2 = Bernoulli(logits=network.decoder(pairs)).log_prob(x[1]).sum(-1)
    log_p = log_p[:, None] + p2.log_prob(z2) + log_x2
    kl1, kl2 = kl_divergence(q1, p1)[0, 0], kl_divergence(q2, p2)[:, 0]
    return log_p, log_q[:, None] + q2.log_prob(z2), (kl1, kl2), log_q


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_eq_vrnn_elbo(posterior):
    """The sum over time is the ELBO of the whole sequence, by quadrature over z."""
    model = tiny(posterior)
    network = plain(model, posterior)
    model = model.double()
    estimates = model.elbo(X, num_samples=20000, generator=seeded())
    for k, x in enumerate(X):
        log_p, log_q, _, _ = grid_terms(network, x, posterior)
        q = log_q.exp() * STEP**2
        assert abs(q.sum() - 1) < 1e-6
        exact = (q * (log_p - log_q)).sum()
        with torch.no_grad():
            terms = model.step_terms(X, num_samples=20000, generator=seeded())
        spread = (terms.reconstruction - terms.kl).sum(0)[:, k].std() / 20000**0.5
        assert abs(estimates.elbo[k] - exact) < 4 * spread


def test_eq_vrnn_later_draws():
    """Steps behind t change no term of step t: cut the sequence, same numbers."""
    for posterior in POSTERIORS:
        model = tiny(posterior)
        x = (torch.rand(3, 6, 2, generator=seeded(1)) < 0.5).double()
        noise = torch.randn(6, 5, 3, 1, generator=seeded(), dtype=torch.float64)
        other = noise.clone()
        other[4:] = 7.0
        one, two = model.walk(x, noise), model.walk(x, other)
        for part in ("h", "z", "mean", "std"):
            first, second = getattr(one, part)[:4], getattr(two, part)[:4]
            torch.testing.assert_close(first, second)
        # and by quadrature: the later factor integrates to 1 for every earlier z
        network = plain(model, posterior)
        _, log_q, _, log_q1 = grid_terms(network, X[0], posterior)
        inner = log_q.exp().sum(1) * STEP
        torch.testing.assert_close(inner, log_q1.exp(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_eq_vrnn_gap(posterior):
    """log p(x) - ELBO is the expected sum of the steps' divergences."""
    network = plain(tiny(posterior), posterior)
    for x in X:
        log_p, log_q, _, log_q1 = grid_terms(network, x, posterior)
        evidence = log_p.flatten().logsumexp(0) + 2 * math.log(STEP)
        q = log_q.exp() * STEP**2
        elbo = (q * (log_p - log_q)).sum()
        # exact posterior factors on the grid: p(z_1 | x), p(z_2 | z_1, x)
        log_p1 = log_p.logsumexp(1) + math.log(STEP) - evidence
        log_p2 = log_p - log_p.logsumexp(1, keepdim=True) - math.log(STEP)
        log_q2 = log_q - log_q1[:, None]
        first = (log_q1.exp() * STEP * (log_q1 - log_p1)).sum()
        second = (log_q2.exp() * STEP * (log_q2 - log_p2)).sum(1)  # given z_1
        total = first + (log_q1.exp() * STEP * second).sum()
        torch.testing.assert_close(evidence - elbo, total, rtol=1e-5, atol=1e-6)
        assert first > 0 and (second > -1e-6).all()


def test_eq_vrnn_generative():
    """Draws of short sequences have the frequencies that quadrature gives."""
    model = tiny()
    network, model = plain(model), model.float()
    drawn = model.sample(40000, 2, generator=seeded()).flatten(1)  # (n, 4)
    total = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=4):
        x = torch.tensor(bits).double()
        log_p, *_ = grid_terms(network, x.view(2, 2), "filtering")
        p = (log_p.flatten().logsumexp(0) + 2 * math.log(STEP)).exp().item()
        share = (drawn == x.float()).all(1).double().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 40000)
        total += p
    assert abs(total - 1) < 1e-4


def test_eq_vrnn_divergence():
    """The closed form, against quadrature over each coordinate."""
    g = np.random.default_rng(0)
    mean, prior_mean = g.normal(size=(2, 3))
    std, prior_std = 0.3 + g.random(size=(2, 3))
    closed = (
        np.log(prior_std / std)
        + (std**2 + (mean - prior_mean) ** 2) / (2 * prior_std**2)
        - 0.5
    ).sum()
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    q = Normal(torch.tensor(mean), torch.tensor(std))
    p = Normal(torch.tensor(prior_mean), torch.tensor(prior_std))
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    assert abs(torch.trapezoid(integrand, z, dim=0).sum() - closed) < 1e-8
    # and it is what the model adds up, given its path
    model = tiny(latent_dim=3)
    noise = torch.randn(2, 1, 2, 3, generator=seeded(), dtype=torch.float64)
    path = model.walk(X, noise)
    prior = model.prior(path.h).base_dist
    m, s = prior.loc, prior.scale
    inside = (s / path.std).log() + (path.std**2 + (path.mean - m) ** 2) / (2 * s**2)
    terms = model.step_terms(X, generator=seeded())
    torch.testing.assert_close(terms.kl, (inside - 0.5).sum(-1))


def test_eq_vrnn_reparameterisation():
    """z_t has the right distribution, and its gradient in μ and σ."""
    model = tiny()
    mean, std = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    mean.requires_grad_(), std.requires_grad_()
    noise = torch.randn(50000, 2, generator=seeded())
    z = model.draw(mean, std, noise)
    error = std / 50000**0.5
    assert ((z.mean(0) - mean).abs() < 4 * error).all()
    assert ((z.std(0) - std).abs() < 4 * error).all()
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((2,), 50000.0))
    torch.testing.assert_close(std.grad, noise.sum(0))
    # through the path: an early mean moves the later states
    noise = torch.randn(2, 1, 2, 1, generator=seeded(), dtype=torch.float64)
    path = model.walk(X, noise)
    grads = torch.autograd.grad(path.h[1].sum(), list(model.inference.parameters()))
    assert all(g.any() for g in grads)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_eq_vrnn_estimator(posterior):
    """Its mean gradient is the gradient of the bound, by finite differences."""
    model = tiny(posterior)
    weight = model.inference.head.mean.bias

    def bound() -> float:
        network = plain(model, posterior)
        model.double()
        log_p, log_q, _, _ = grid_terms(network, X[0], posterior)
        q = log_q.exp() * STEP**2
        return (q * (log_p - log_q)).sum().item()

    x = X[:1]
    with torch.no_grad():
        weight += 1e-3
        high = bound()
        weight -= 2e-3
        low = bound()
        weight += 1e-3
    parts = []
    for k in range(30):
        terms = model.elbo(x.expand(1000, -1, -1), generator=seeded(k))
        parts.append(torch.autograd.grad(terms.elbo.mean(), [weight])[0])
    parts = torch.stack(parts)
    error = parts.std() / 30**0.5
    assert abs(parts.mean() - (high - low) / 2e-3) < 4 * error
    assert error < 0.05 * abs(parts.mean())  # and zero would not have passed


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_eq_vrnn_log_weight(posterior):
    """Many weighted paths give log p(x), by quadrature; and each weight is right."""
    model = tiny(posterior)
    model.inference.head.std.bias.data += 3  # wide draws: weights of little variance
    network = plain(model, posterior)
    model = model.double()
    with torch.no_grad():
        log_w = model.log_weights(X, num_samples=20000, generator=seeded())
    values = evaluation.log_likelihood(model, X, num_samples=20000).values
    for k, x in enumerate(X):
        log_p, *_ = grid_terms(network, x, posterior)
        evidence = log_p.flatten().logsumexp(0) + 2 * math.log(STEP)
        w = (log_w[:, k] - evidence).exp()
        error = w.std() / 20000**0.5
        assert abs(w.mean() - 1) < 4 * error and error < 0.1
        assert abs(values[k] - evidence) < 6 * error
    noise = torch.randn(2, 1, 2, 1, generator=seeded(), dtype=torch.float64)
    *_, expected = network(X, noise[:, 0], weigh=True)
    own = model.log_weights(X, generator=seeded())[0]
    torch.testing.assert_close(own, expected)


def test_eq_vrnn_completion():
    """Completions have the predictive probabilities of z_1 ~ q, then the model."""
    model = tiny()
    network = plain(model)
    x = X[:1, :1]  # the first step of one sequence
    model = model.float()
    drawn = model.complete(x.float(), 40000, 2, generator=seeded())[:, 0, 1]  # (n, 2)
    for bits in itertools.product((0.0, 1.0), repeat=2):
        second = torch.tensor(bits).double()
        whole = torch.stack([x[0, 0], second])
        log_p, _, _, log_q1 = grid_terms(network, whole, "filtering")
        first = log_p_of_first(network, x[0, 0])
        given = log_p.logsumexp(1) + math.log(STEP) - first  # log p(x_2 | x_1, z_1)
        p = (log_q1.exp() * STEP * given.exp()).sum().item()
        share = (drawn == second.float()).all(1).double().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 40000)


def log_p_of_first(network, x1):
    """log p(z_1) p(x_1 | z_1) at every grid point: (P,)."""
    h1 = torch.zeros(1, 4, dtype=torch.float64)
    z1 = GRID[:, None]
    p_x = network.decoder(torch.cat([z1, h1.expand(len(z1), -1)], -1))
    log_x = Bernoulli(logits=p_x).log_prob(x1).sum(-1)
    return network.gaussian(network.prior(h1)).log_prob(z1)[:, 0] + log_x
