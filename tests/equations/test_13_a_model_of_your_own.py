"""The numbered equations of chapter 13, each against an independent oracle."""

import math

import numpy as np
import own_model
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Independent, LogNormal, Poisson

from aevb import diagnostics, estimators, models
from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel
from aevb.networks import GaussianHead


@pytest.fixture(scope="module")
def own():
    return own_model.namespace()


class Moved(LatentVariableModel):
    """x ~ Poisson(s), s = exp(z): with z as the latent variable, or with s."""

    def __init__(self, positive):
        super().__init__()
        self.positive = positive
        self.generative, self.inference = nn.Linear(2, 3), GaussianHead(3, 2)

    def latent(self, normal):
        d = normal.base_dist
        return Independent(LogNormal(d.loc, d.scale), 1) if self.positive else normal

    def prior(self):
        return self.latent(diagonal_normal(torch.zeros(2), torch.full((2,), 0.7)))

    def likelihood(self, z):
        s = z if self.positive else z.exp()
        return Independent(Poisson(self.generative(s).exp()), 1)

    def posterior(self, x):
        return self.latent(self.inference(x / 3))


def test_eq_moved_transformation():
    torch.manual_seed(0)
    first, second = Moved(False), Moved(True)
    second.load_state_dict(first.state_dict())
    x = torch.tensor([[0.0, 3, 1], [2, 5, 0]])
    for estimator in (estimators.analytic_kl, estimators.fully_sampled):
        terms = []
        for model in (first, second):
            torch.manual_seed(1)
            terms.append(estimator(model, x, num_samples=10))
        for a, b in zip(*terms, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    weights = []
    for model in (first, second):
        generator = torch.Generator().manual_seed(2)
        weights.append(model.log_weights(x, num_samples=5000, generator=generator))
    evidence = [w.logsumexp(0) - math.log(5000) for w in weights]
    torch.testing.assert_close(*evidence, rtol=0, atol=0.15)


def test_eq_ink_model(own):
    torch.manual_seed(0)
    model = own.Ink(torch.rand(3, 5) * 16, latent_dim=2, hidden=(4,))
    z, x = torch.randn(7, 2), torch.randint(0, 20, (7, 5)).float()
    theta = model.generative
    (w1, b1), (w2, b2) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in (theta.network[0][0], theta.network[1])
    )
    f = np.maximum(z.numpy() @ w1.T + b1, 0) @ w2.T + b2
    s = np.log1p(np.exp(f))
    W = np.log1p(np.exp(theta.raw.detach().numpy()))
    expected = np.zeros(7)
    for n in range(7):
        for d in range(5):
            rate = 16 * sum(s[n, k] * W[k, d] for k in range(3))
            expected[n] += stats.poisson(rate).logpmf(x[n, d].item())
    found = model.likelihood(z).log_prob(x).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    prior = model.prior().log_prob(z)
    np.testing.assert_allclose(prior, stats.norm.logpdf(z.numpy()).sum(1), rtol=1e-5)


def test_eq_rank():
    """Uniform for an exact posterior: compared with the distribution function."""
    torch.manual_seed(0)
    model = models.FactorAnalysis.from_parameters(
        torch.tensor([[1.0], [0.5]]), torch.tensor([0.5, 0.7])
    )
    with torch.no_grad():  # q becomes the exact posterior, eq-fa-optimal-inference
        W, noise = model.loadings, model.noise_scale.square()
        G = 1 / (1 + (W.square() / noise[:, None]).sum())
        model.inference.weights.copy_(G * (W / noise[:, None]).T)
        model.inference.diagonal.copy_((G.sqrt()).expm1().log()[None])
    u = diagnostics.calibration(model, 5000, draws=99)[:, 0]
    ranks = (99 * u).round().long()
    torch.testing.assert_close(u, ranks / 99, rtol=0, atol=1e-5)
    found = torch.bincount(ranks, minlength=100)
    assert stats.chisquare(found.numpy()).pvalue > 1e-3


def test_eq_predictive_p_value(own):
    observed, replicated = 2.0, torch.tensor([1.0, 2.0, 2.0, 3.0, 4.0]).double()
    check = diagnostics.PredictiveCheck(observed, replicated)
    assert check.p_value == pytest.approx((2 + 0.5 * 2) / 5)
    assert check.distance == pytest.approx((2 - 2.4) / np.std([1, 2, 2, 3, 4], ddof=1))
    same = diagnostics.PredictiveCheck(0.0, torch.zeros(4).double())
    assert same.p_value == 0.5 and same.distance == 0
    # x ~ N(0, 1) data, the mean of 25 as the statistic: p is uniform, so here is known
    model = models.FactorAnalysis.from_parameters(torch.zeros(1, 1), torch.ones(1))
    x = torch.full((25, 1), 0.1)
    found = diagnostics.predictive_check(
        model, x, statistics={"mean": torch.mean}, replicates=4000
    )["mean"]
    expected = stats.norm.sf(0.1 * 5)
    assert abs(found.p_value - expected) < 4 * math.sqrt(expected / 4000)


def test_eq_inked_dots(own):
    """Drops that fall on sixteen dots at random, counted."""
    rng = np.random.default_rng(0)
    for r in (0.05, 0.7, 2.5):
        drops = rng.poisson(16 * r, size=20000)
        counts = [len(set(rng.integers(0, 16, n).tolist())) for n in drops]
        found = np.bincount(counts, minlength=17)
        model = own.Dots(torch.ones(1, 1), latent_dim=1, hidden=())
        model.generative.forward = lambda z, r=r: torch.full((*z.shape[:-1], 1), r)
        p = model.likelihood(torch.zeros(1)).base_dist
        expected = p.log_prob(torch.arange(17.0)[:, None]).exp()[:, 0].double().numpy()
        kept = 20000 * expected > 5
        rest = [found[~kept].sum()], [20000 * expected[~kept].sum()]
        first = np.append(found[kept], rest[0])
        second = np.append(20000 * expected[kept], rest[1])
        second *= first.sum() / second.sum()
        assert stats.chisquare(first + 1e-9, second + 1e-9).pvalue > 1e-3


@pytest.mark.parametrize("a, b", [(0.2, 0.3), (3.0, 1.5), (40.0, 7.0)])
def test_eq_beta_binomial(own, a, b):
    """The integral over p, by quadrature; and scipy's."""
    p = own.BetaBinomial(16, torch.tensor(a).double(), torch.tensor(b).double())
    found = p.log_prob(torch.arange(17.0).double()).numpy()
    np.testing.assert_allclose(found, stats.betabinom(16, a, b).logpmf(range(17)))
    if a > 1:
        for k in (0, 5, 16):

            def joint(share, k=k):
                return stats.binom(16, share).pmf(k) * stats.beta(a, b).pdf(share)

            value, _ = integrate.quad(joint, 0, 1, epsabs=1e-12)
            assert found[k] == pytest.approx(math.log(value), abs=1e-6)


@pytest.mark.parametrize("m, c", [(0.1, 0.5), (0.5, 3.0), (0.9, 50.0)])
def test_eq_beta_binomial_variance(own, m, c):
    m, c = torch.tensor(m).double(), torch.tensor(c).double()
    p = own.BetaBinomial(16, c * m, c * (1 - m))
    k = torch.arange(17.0).double()
    prob = p.log_prob(k).exp()
    mean = (k * prob).sum()
    assert mean.item() == pytest.approx(16 * m.item())
    assert p.mean.item() == pytest.approx(16 * m.item())
    variance = (k.square() * prob).sum() - mean.square()
    expected = 16 * m * (1 - m) * (1 + 15 / (c + 1))
    assert variance.item() == pytest.approx(expected.item())
