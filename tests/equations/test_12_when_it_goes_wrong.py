"""Each numbered equation of chapter 12 against an oracle that shares no code."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from sklearn.decomposition import PCA
from sklearn.metrics import mutual_info_score
from torch.distributions import Bernoulli, Categorical, kl_divergence

from aevb import data, diagnostics, models
from aevb.model import ElboTerms


def exact_fa() -> models.FactorAnalysis:
    """The true model of the synthetic data, with its exact posterior as q."""
    model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
    w, noise = torch.tensor(data.LOADINGS), torch.tensor(data.NOISE).square()
    precision = torch.eye(2) + w.T @ (w / noise[:, None])
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    with torch.no_grad():
        weights = torch.linalg.solve(precision, (w / noise[:, None]).T)
        model.inference.weights.copy_(weights)
        model.inference.below.copy_(factor.tril(-1))
        model.inference.diagonal.copy_(torch.expm1(factor.diagonal() - 1e-6).log())
    return model


def test_eq_forgotten_gradient():
    """The gradient in φ of the estimator with ``sample`` is minus that of the KL."""
    model, x = models.VAE(data_dim=4, latent_dim=2, hidden=(5,)), torch.rand(6, 4)
    q_z = model.posterior(x)
    log_p = model.likelihood(q_z.sample()).log_prob(x)
    kl = kl_divergence(q_z, model.prior())
    phi = [*model.inference.parameters()]
    both = torch.autograd.grad((log_p - kl).sum(), phi, retain_graph=True)
    alone = torch.autograd.grad(kl.sum(), phi)
    for g, h in zip(both, alone, strict=True):
        torch.testing.assert_close(g, -h)


def test_eq_central_difference():
    """Both slopes are those of a function whose gradient scipy approximates."""
    model = models.FactorAnalysis().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    directions = {}

    def exact(model, x):
        """No draw: the ELBO of factor analysis in closed form."""
        directions.setdefault(
            "start", {k: p.detach().clone() for k, p in model.named_parameters()}
        )
        evidence = model.evidence(x)
        return ElboTerms(evidence, model.gap(x))

    slopes = diagnostics.gradient_check(model, x, estimator=exact, seed=7)
    start = directions["start"]  # the copy, moved by a little noise
    generator = torch.Generator().manual_seed(7)
    for p in start.values():
        torch.randn(p.shape, dtype=p.dtype, generator=generator)
    for name, p in start.items():
        v = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        v /= v.norm()
        twin = models.FactorAnalysis().double()
        twin.load_state_dict(start, strict=False)

        def along(t, name=name, p=p, v=v, twin=twin):
            with torch.no_grad():
                twin.get_parameter(name).copy_(p + t[0] * v)
                return (twin.evidence(x) - twin.gap(x)).mean().item()

        (slope,) = approx_fprime(np.zeros(1), along, 1e-7)
        assert slopes[name].numerical == pytest.approx(slope, abs=1e-4)
        assert slopes[name].automatic == pytest.approx(slope, abs=1e-4)


def test_eq_collapse_threshold():
    """Zero gradient at the principal axes, and the divergences of the exact posterior.

    The noise is β σ²; scikit-learn finds the axes.
    """
    torch.manual_seed(0)
    x = torch.randn(400, 5, dtype=torch.float64) * torch.tensor([2, 1, 0.6, 0.3, 0.1])
    x = x @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    x -= x.mean(0)
    pca = PCA().fit(x.numpy())
    heights = torch.tensor(pca.explained_variance_ * (len(x) - 1) / len(x))
    axes = torch.tensor(pca.components_).T
    for beta in (1.0, 12.0):
        level = beta * 0.05
        lengths = (heights[:4] - level).clamp(min=0).sqrt()
        w = (axes[:, :4] * lengths).requires_grad_()
        cov = w @ w.T + level * torch.eye(5, dtype=torch.float64)
        zero = torch.zeros(5, dtype=torch.float64)
        marginal = torch.distributions.MultivariateNormal(zero, cov)
        (gradient,) = torch.autograd.grad(marginal.log_prob(x).mean(), w)
        assert gradient.abs().max() < 1e-8
        precision = torch.eye(4, dtype=torch.float64) + w.T @ w / level
        variance = 1 / precision.diagonal()
        means = torch.linalg.solve(precision, (x @ w / level).T).T
        kl = 0.5 * (means**2 + variance - 1 - variance.log()).mean(0)
        predicted = (0.5 * (heights[:4] / level).log()).clamp(min=0)
        torch.testing.assert_close(kl, predicted, atol=1e-8, rtol=0)
    assert (predicted > 0).tolist() == [True, True, False, False]


def test_eq_elbo_log_weights():
    """The mean log weight is the evidence minus the gap; an offset is measured."""
    model, x = models.FactorAnalysis(), data.factor_analysis()[1].x[:200]
    with torch.no_grad():
        exact = model.evidence(x) - model.gap(x)
        draws = model.log_weights(x, num_samples=4000).mean(1)  # one for each k
        error = draws.std() / math.sqrt(len(draws))
        assert abs(draws.mean() - exact.mean()) < 4 * error

    def closed_form(model, x):
        return ElboTerms(model.evidence(x) + 0.7, model.gap(x))

    found = diagnostics.value_check(model, x, estimator=closed_form, num_samples=400)
    assert found.mean == pytest.approx(0.7, abs=4 * found.standard_error)


def test_eq_mutual_information():
    """½ log det(I + WᵀΦ⁻¹W) for factor analysis; never above the mean divergence."""
    x = data.factor_analysis(n=2000)[0].x
    model = exact_fa()
    w, noise = torch.tensor(data.LOADINGS), torch.tensor(data.NOISE).square()
    wanted = 0.5 * torch.logdet(torch.eye(2) + w.T @ (w / noise[:, None])).item()
    found = diagnostics.mutual_information(model, x)
    assert found == pytest.approx(wanted, abs=0.1)
    assert found < model.elbo(x).kl.mean() + 0.1


def test_eq_total_mass():
    """Against scipy's quadrature and a sum over all values."""
    logits = torch.tensor([-3.0, 0.5, 8.0])
    p = Bernoulli(logits=logits, validate_args=False)
    grid = (torch.arange(2000) + 0.5) / 2000
    found = diagnostics.total_mass(p, grid, step=1 / 2000)
    for mass, logit in zip(found, logits, strict=True):
        value = 1 / (1 + math.exp(-logit))
        oracle, _ = quad(lambda x, v=value: v**x * (1 - v) ** (1 - x), 0, 1)
        assert mass.item() == pytest.approx(oracle, abs=1e-5)
    counts = torch.distributions.Binomial(6, torch.tensor([0.2, 0.9]))
    found = diagnostics.total_mass(counts, torch.arange(7.0))
    torch.testing.assert_close(found, torch.ones(2))


def test_eq_bernoulli_mass():
    """(2λ - 1) / ℓ by quadrature; at most one half."""
    for value in (0.001, 0.2, 0.4999, 0.7, 0.999):
        oracle, _ = quad(lambda x, v=value: v**x * (1 - v) ** (1 - x), 0, 1)
        logit = math.log(value / (1 - value))
        assert (2 * value - 1) / logit == pytest.approx(oracle, rel=1e-6)
        assert oracle <= 0.5


def test_eq_cluster_information():
    """The mutual information of scikit-learn, where every guess is certain."""
    guesses = torch.randint(4, (300,))
    guesses[:100] = 2
    q_y = Categorical(probs=torch.eye(4)[guesses])
    share = q_y.probs.mean(0)
    found = torch.special.entr(share).sum() - q_y.entropy().mean()
    oracle = mutual_info_score(np.arange(300), guesses.numpy())
    assert found.item() == pytest.approx(oracle, abs=1e-5)
    soft = torch.softmax(torch.randn(300, 4), -1)  # by the joint table of n and y
    joint = (soft / 300).double()
    ratio = joint / (joint.sum(0) * joint.sum(1, keepdim=True))
    oracle = (joint * ratio.log()).sum().item()
    share = soft.mean(0)
    entropies = torch.special.entr(soft).sum(-1).mean()
    found = torch.special.entr(share).sum() - entropies
    assert found.item() == pytest.approx(oracle, abs=1e-5)
