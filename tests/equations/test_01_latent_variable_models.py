"""The numbered equations of chapter 1, each against an independent oracle."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from aevb import em, evaluation, models

NORMAL = stats.multivariate_normal


def linear_gaussian(data_dim=3, latent_dim=1, seed=0):
    """A linear-Gaussian model in float64, and its W and Φ in numpy."""
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((data_dim, latent_dim))
    scale = rng.uniform(0.6, 1.5, data_dim)
    model = models.FactorAnalysis.from_parameters(
        torch.tensor(loadings), torch.tensor(scale)
    ).double()
    with torch.no_grad():  # what float32 left of them
        loadings = model.loadings.numpy().copy()
        scale = model.noise_scale.numpy().copy()
    return model, loadings, np.diag(scale**2)


def test_eq_ancestral_sampling():
    model, loadings, noise = linear_gaussian(latent_dim=2)
    n = 100_000
    x = model.sample(n, generator=torch.Generator().manual_seed(0)).numpy()
    covariance = loadings @ loadings.T + noise
    scale = np.sqrt(np.diag(covariance))
    assert (np.abs(x.mean(0)) < 4 * scale / np.sqrt(n)).all()
    products = x[:, :, None] * x[:, None, :]
    error = np.abs(products.mean(0) - covariance)
    assert (error < 4 * products.std(0) / np.sqrt(n)).all()
    assert stats.kstest(x[:, 0] / scale[0], "norm").pvalue > 1e-3


def test_eq_naive_monte_carlo():
    model, loadings, noise = linear_gaussian()
    x = torch.tensor([[0.3, -0.5, 1.0], [1.5, 0.0, -1.0]]).double()
    draws = 20  # so few that the estimate of p(x) is unbiased only on average
    many = x.repeat_interleave(20_000, 0)
    values = evaluation.naive_log_likelihood(model, many, draws).values.exp()
    for k, row in enumerate(x.numpy()):
        exact, _ = integrate.quad(
            lambda z, row=row: (
                NORMAL(loadings[:, 0] * z, noise).pdf(row) * stats.norm.pdf(z)
            ),
            -9,
            9,
        )
        own = values[20_000 * k : 20_000 * (k + 1)]
        standard_error = own.std() / len(own) ** 0.5
        assert standard_error < 0.005 * exact
        assert abs(own.mean() - exact) < 4 * standard_error
        assert own.log().mean() < np.log(exact)  # too small, by Jensen
    # more draws than fit into one piece of the computation, for one example
    many = x[:1].expand(400, 3)
    values = evaluation.naive_log_likelihood(model, many, 2500).values
    exact = model.evidence(x[:1]).item()
    assert abs(values.exp().mean() / np.exp(exact) - 1) < 0.01
    assert (values - exact).std() < 0.05


def test_eq_prior_weight_variance():
    model, loadings, noise = linear_gaussian()
    x = torch.tensor([[0.3, -0.5, 1.0], [1.5, 0.0, -1.0], [0.0, 0.0, 0.0]]).double()
    found = model.prior_weight_variance(x)
    for value, row in zip(found, x.numpy(), strict=True):

        def moment(power, row=row):
            return integrate.quad(
                lambda z: (
                    NORMAL(loadings[:, 0] * z, noise).pdf(row) ** power
                    * stats.norm.pdf(z)
                ),
                -9,
                9,
                epsabs=1e-14,
            )[0]

        assert value.item() == pytest.approx(moment(2) / moment(1) ** 2 - 1, rel=1e-6)


def test_eq_average_weight_variance():
    model, loadings, noise = linear_gaussian(data_dim=2)
    covariance = loadings @ loadings.T + noise
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    x = grid @ np.linalg.cholesky(covariance).T  # x ~ p(x)
    average = weights @ model.prior_weight_variance(torch.tensor(x)).detach().numpy()
    precision = 1 + loadings.T @ np.linalg.inv(noise) @ loadings  # of the posterior
    assert average == pytest.approx(np.linalg.det(precision) - 1, rel=1e-5)


def test_eq_likelihood_divergence():
    true = stats.norm(1.0, 2.0)
    for mean, scale in ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0)):
        fitted = stats.norm(mean, scale)
        closed = np.log(scale / 2) + (4 + (1 - mean) ** 2) / (2 * scale**2) - 0.5
        average = integrate.quad(
            lambda x, f=fitted: true.pdf(x) * f.logpdf(x), -25, 25
        )[0]
        assert closed == pytest.approx(-true.entropy() - average, abs=1e-8)


def test_eq_fisher_identity():
    x = torch.tensor([[0.3], [-1.0], [2.5]]).double()
    weights = torch.tensor([0.3, 0.7]).double()
    means = torch.tensor([[-1.0], [1.5]]).double().requires_grad_()
    variances = torch.tensor([[0.5], [1.2]]).double().requires_grad_()
    params = em.MixtureParameters(weights, means, variances)
    with torch.no_grad():
        posterior = em.mixture_e_step(x, params).responsibilities
    average = (posterior * em.mixture_log_joint(x, params)).sum()
    found = torch.autograd.grad(average, (means, variances))

    def evidence(m, v):  # by scipy
        parts = [
            w * stats.norm(a, np.sqrt(b)).pdf(x[:, 0])
            for w, a, b in zip(weights.numpy(), m, v, strict=True)
        ]
        return np.log(sum(parts)).sum()

    m, v = (t.detach().numpy().ravel() for t in (means, variances))
    step = 1e-5
    for k in range(2):
        one = step * np.eye(2)[k]
        slope = (evidence(m + one, v) - evidence(m - one, v)) / (2 * step)
        assert found[0][k].item() == pytest.approx(slope, rel=1e-6)
        slope = (evidence(m, v + one) - evidence(m, v - one)) / (2 * step)
        assert found[1][k].item() == pytest.approx(slope, rel=1e-6)
