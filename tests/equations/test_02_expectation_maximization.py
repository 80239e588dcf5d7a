"""The numbered equations of chapter 2, each against an independent oracle."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch.distributions import MultivariateNormal, kl_divergence

from aevb import em

NORMAL = stats.multivariate_normal


@pytest.fixture
def mixture():
    """Seven points in the plane and a mixture of three full Gaussians."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((3, 2, 2))
    params = em.MixtureParameters(
        weights=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
        means=torch.tensor(rng.standard_normal((3, 2))),
        covariances=torch.tensor(factors @ factors.transpose(0, 2, 1) + np.eye(2) / 4),
    )
    return torch.tensor(2 * rng.standard_normal((7, 2))), params


@pytest.fixture
def factors():
    """Seven points in R⁴ and a factor analysis with two factors and a mean."""
    rng = np.random.default_rng(1)
    params = em.FactorParameters(
        mean=torch.tensor(rng.standard_normal(4)),
        loadings=torch.tensor(rng.standard_normal((4, 2))),
        noise_variance=torch.tensor(rng.uniform(0.2, 1.5, 4)),
    )
    return torch.tensor(2 * rng.standard_normal((7, 4))), params


def joint_densities(x, params):
    """p(x, z = k) by scipy: (N, K)."""
    return np.stack(
        [
            weight * NORMAL(mean, covariance).pdf(x)
            for weight, mean, covariance in zip(*map(np.asarray, params), strict=True)
        ],
        axis=1,
    )


def some_q(n, k, seed=0):
    """Random distributions over k values, one of them with zeros: (n, k)."""
    q = np.random.default_rng(seed).dirichlet(np.ones(k), n)
    q[0] = np.eye(k)[0]
    return torch.tensor(q)


def factor_grid(x, params, mean, covariance, function):
    """E_q[function(x, z)] by Gauss-Hermite quadrature, exact for quadratics: (N,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    chol = np.linalg.cholesky(np.asarray(covariance))
    return np.array(
        [
            weights @ [function(row, m + chol @ node) for node in grid]
            for row, m in zip(np.asarray(x), np.asarray(mean), strict=True)
        ]
    )


def test_eq_evidence(mixture, factors):
    x, params = mixture  # the sum over a discrete latent variable
    np.testing.assert_allclose(
        em.mixture_e_step(x, params).log_evidence,
        np.log(joint_densities(x, params).sum(1)),
        rtol=1e-12,
    )
    x, params = factors  # the integral over a continuous one
    mean, loadings, variance = map(np.asarray, params)

    def joint(second, first, row):
        z = np.array([first, second])
        likelihood = NORMAL(mean + loadings @ z, np.diag(variance)).pdf(row)
        return likelihood * NORMAL(np.zeros(2)).pdf(z)

    value, _ = integrate.dblquad(joint, -7, 7, -7, 7, args=(np.asarray(x)[0],))
    assert em.factor_e_step(x, params).log_evidence[0].item() == pytest.approx(
        np.log(value), abs=1e-6
    )


def test_eq_jensen(mixture):
    x, params = mixture
    joint = joint_densities(x, params)
    for seed in range(20):
        q = some_q(7, 3, seed)[1:].numpy()
        ratio = joint[1:] / q  # Y = p(x, z) / q(z)
        average_of_log = (q * np.log(ratio)).sum(1)
        log_of_average = np.log((q * ratio).sum(1))
        assert (average_of_log < log_of_average).all()
        np.testing.assert_allclose(
            em.mixture_elbo(x[1:], params, torch.tensor(q)), average_of_log, rtol=1e-12
        )


def test_eq_elbo(mixture, factors):
    x, params = mixture
    q = some_q(7, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = q.numpy() * (np.log(joint_densities(x, params)) - np.log(q.numpy()))
    np.testing.assert_allclose(
        em.mixture_elbo(x, params, q), np.nansum(terms, 1), rtol=1e-12
    )
    diagonal = params._replace(
        covariances=params.covariances.diagonal(dim1=-2, dim2=-1)
    )
    full = params._replace(covariances=diagonal.covariances.diag_embed())
    np.testing.assert_allclose(
        em.mixture_elbo(x, diagonal, q), em.mixture_elbo(x, full, q), rtol=1e-12
    )

    x, params = factors
    mean, loadings, variance = map(np.asarray, params)
    q_mean = torch.tensor(np.random.default_rng(2).standard_normal((7, 2)))
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])

    def log_joint(row, z):
        return NORMAL(mean + loadings @ z, np.diag(variance)).logpdf(row) + NORMAL(
            np.zeros(2)
        ).logpdf(z)

    expected = factor_grid(x, params, q_mean, covariance, log_joint)
    expected += NORMAL(cov=covariance).entropy()  # minus E_q[log q]
    np.testing.assert_allclose(
        em.factor_elbo(x, params, q_mean, torch.tensor(covariance)),
        expected,
        rtol=1e-10,
    )


def test_eq_elbo_decomposition(mixture, factors):
    x, params = mixture
    q = some_q(7, 3)
    joint = joint_densities(x, params)
    exact = joint / joint.sum(1, keepdims=True)
    gap = em.mixture_e_step(x, params).log_evidence - em.mixture_elbo(x, params, q)
    np.testing.assert_allclose(gap, stats.entropy(q.numpy(), exact, axis=1))
    without_log = (q.numpy() ** 2 / exact).sum(1)  # E_q[q / p], a misprint
    assert not np.allclose(gap, without_log)

    x, params = factors
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    q = MultivariateNormal(torch.zeros(7, 2, dtype=torch.float64), covariance)
    posterior = em.factor_e_step(x, params)
    exact = MultivariateNormal(posterior.mean, posterior.covariance)
    gap = posterior.log_evidence - em.factor_elbo(x, params, q.loc, covariance)
    np.testing.assert_allclose(gap, kl_divergence(q, exact), rtol=1e-10)


def test_eq_elbo_reconstruction_kl(factors):
    x, params = factors
    mean, loadings, variance = map(np.asarray, params)
    q_mean = torch.tensor(np.random.default_rng(3).standard_normal((7, 2)))
    covariance = torch.tensor([[0.4, -0.1], [-0.1, 0.6]], dtype=torch.float64)

    def log_likelihood(row, z):
        return NORMAL(mean + loadings @ z, np.diag(variance)).logpdf(row)

    reconstruction = factor_grid(x, params, q_mean, covariance, log_likelihood)
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    kl = kl_divergence(MultivariateNormal(q_mean, covariance), prior)
    np.testing.assert_allclose(
        em.factor_elbo(x, params, q_mean, covariance), reconstruction - kl.numpy()
    )


def test_eq_e_step(mixture, factors):
    """A numerical search over q finds what Bayes' rule gives."""
    x, params = mixture

    def negative_elbo(q):
        q = torch.tensor(q, requires_grad=True)
        loss = -em.mixture_elbo(x, params, q.reshape(7, 3)).mean()
        loss.backward()
        return loss.item(), q.grad.numpy()

    found = optimize.minimize(
        negative_elbo,
        np.full(21, 1 / 3),
        jac=True,
        bounds=[(1e-9, 1)] * 21,
        constraints={"type": "eq", "fun": lambda q: q.reshape(7, 3).sum(1) - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    exact, log_evidence = em.mixture_e_step(x, params)
    np.testing.assert_allclose(found.x.reshape(7, 3), exact, atol=1e-4)
    assert -found.fun == pytest.approx(log_evidence.mean().item(), abs=1e-7)

    x, params = factors
    mean, covariance, log_evidence = em.factor_e_step(x, params)
    tight = em.factor_elbo(x, params, mean, covariance)
    np.testing.assert_allclose(tight, log_evidence, atol=1e-12)
    for shift, scale in [(0.1, 1.0), (0.0, 1.1), (0.0, 0.9), (-0.2, 1.3)]:
        worse = em.factor_elbo(x, params, mean + shift, scale * covariance)
        assert (worse < tight).all()


def test_eq_m_step(mixture, factors):
    """At the M-step's parameters the gradient of the bound is zero, and it falls."""
    x, _ = mixture
    q = some_q(7, 3)[[1, 2, 3, 4, 5, 6, 1]]
    params = em.mixture_m_step(x, q)
    logits = params.weights.log().requires_grad_()
    means = params.means.clone().requires_grad_()
    chol = torch.linalg.cholesky(params.covariances).requires_grad_()

    def bound(logits, means, chol):
        theta = em.MixtureParameters(
            logits.softmax(-1), means, chol.tril() @ chol.tril().mT
        )
        return em.mixture_elbo(x, theta, q).mean()

    for gradient in torch.autograd.grad(
        bound(logits, means, chol), (logits, means, chol)
    ):
        np.testing.assert_allclose(gradient, 0, atol=1e-10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = [
            p.detach() + 0.05 * torch.randn(p.shape, generator=generator).double()
            for p in (logits, means, chol)
        ]
        assert bound(*moved) < bound(logits, means, chol)

    x, params = factors
    posterior = em.factor_e_step(x, params)
    new = em.factor_m_step(x, posterior, params.mean)
    loadings = new.loadings.clone().requires_grad_()
    variance = new.noise_variance.clone().requires_grad_()
    theta = em.FactorParameters(new.mean, loadings, variance)
    value = em.factor_elbo(x, theta, posterior.mean, posterior.covariance).mean()
    for gradient in torch.autograd.grad(value, (loadings, variance)):
        np.testing.assert_allclose(gradient, 0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_eq_em_monotone(seed):
    """evidence(new) >= bound(new, q) >= bound(old, q) = evidence(old)."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.standard_normal((40, 3)) @ rng.standard_normal((3, 3)))
    start = em.mixture_m_step(x, some_q(40, 4, seed)[torch.arange(40).clamp_min(1)])
    params = start
    for _ in range(30):
        q, before = em.mixture_e_step(x, params)
        new = em.mixture_m_step(x, q)
        bound = em.mixture_elbo(x, new, q).mean().item()
        after = em.mixture_e_step(x, new).log_evidence.mean().item()
        tight = em.mixture_elbo(x, params, q).mean().item()
        assert tight == pytest.approx(before.mean().item(), abs=1e-11)
        assert after + 1e-11 >= bound >= tight - 1e-11
        params = new

    params = em.FactorParameters(
        torch.zeros(3).double(), torch.tensor(rng.standard_normal((3, 1))), x.var(0)
    )
    evidence = []
    for _ in range(100):
        posterior = em.factor_e_step(x, params)
        evidence.append(posterior.log_evidence.mean().item())
        params = em.factor_m_step(x, posterior, params.mean)
    assert np.diff(evidence).min() > -1e-9
    assert evidence[-1] > evidence[0] + 0.01


@pytest.mark.parametrize("distance", [1.0, 3.0])
def test_eq_em_rate(distance):
    """The share of the second of two known Gaussians, by EM and by calculus."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    x[:90] += distance
    first, second = stats.norm(0, 1).pdf(x), stats.norm(distance, 1).pdf(x)

    def step(share):
        params = em.MixtureParameters(
            torch.tensor([1 - share, share], dtype=torch.float64),
            torch.tensor([[0.0], [distance]], dtype=torch.float64),
            torch.ones(2, 1, dtype=torch.float64),
        )
        r = em.mixture_e_step(torch.tensor(x)[:, None], params).responsibilities
        return r[:, 1].mean().item()

    path = [0.9]
    for _ in range(500):
        path.append(step(path[-1]))
    best = path[-1]
    curvature = -np.mean(((second - first) / ((1 - best) * first + best * second)) ** 2)
    rate = 1 - curvature / (-1 / (best * (1 - best)))
    small = np.abs(np.array(path) - best)
    n = int((small > 1e-6).sum())
    assert small[n] / small[n - 1] == pytest.approx(rate, rel=1e-3)


def test_eq_responsibilities(mixture):
    x, params = mixture
    joint = joint_densities(x, params)
    r = em.mixture_e_step(x, params).responsibilities
    np.testing.assert_allclose(r, joint / joint.sum(1, keepdims=True), rtol=1e-11)
    # far away all densities underflow; their ratios must not
    far = em.mixture_e_step(x + 1e3, params).responsibilities
    np.testing.assert_allclose(far.sum(1), 1)


def test_eq_gmm_m_step(mixture):
    x, _ = mixture
    q = some_q(7, 3)
    weights, means, covariances = em.mixture_m_step(x, q)
    diagonal = em.mixture_m_step(x, q, "diagonal").covariances
    np.testing.assert_allclose(weights, q.mean(0))
    for k in range(3):
        np.testing.assert_allclose(means[k], np.average(x, axis=0, weights=q[:, k]))
        expected = np.cov(x.mT, aweights=q[:, k], bias=True)
        np.testing.assert_allclose(covariances[k], expected, rtol=1e-10)
        np.testing.assert_allclose(diagonal[k], np.diag(expected), rtol=1e-10)


def test_eq_fa_marginal(factors):
    x, params = factors
    mean, loadings, variance = map(np.asarray, params)
    covariance = loadings @ loadings.T + np.diag(variance)
    np.testing.assert_allclose(params.covariance, covariance)
    np.testing.assert_allclose(params.noise_scale, np.sqrt(variance))
    np.testing.assert_allclose(
        em.factor_e_step(x, params).log_evidence,
        NORMAL(mean, covariance).logpdf(x),
        rtol=1e-12,
    )


def test_eq_fa_posterior(factors):
    """Condition the joint Gaussian of (z, x), whose covariance is 6 by 6."""
    x, params = factors
    mean, loadings, variance = map(np.asarray, params)
    gain = loadings.T @ np.linalg.inv(loadings @ loadings.T + np.diag(variance))
    posterior = em.factor_e_step(x, params)
    np.testing.assert_allclose(posterior.mean, (np.asarray(x) - mean) @ gain.T)
    np.testing.assert_allclose(posterior.covariance, np.eye(2) - gain @ loadings)


def test_eq_fa_m_step(factors):
    """Least squares on points that carry the posterior's first two moments."""
    x, params = factors
    posterior = em.factor_e_step(x, params)
    chol = np.linalg.cholesky(posterior.covariance)
    offsets = np.sqrt(2) * np.concatenate([chol.T, -chol.T])  # 4 points in R²
    z = (posterior.mean.numpy()[:, None] + offsets).reshape(-1, 2)  # (28, 2)
    centred = np.repeat(np.asarray(x - params.mean), 4, 0)  # (28, 4)
    expected, residual, *_ = np.linalg.lstsq(z, centred, rcond=None)
    new = em.factor_m_step(x, posterior, params.mean)
    np.testing.assert_allclose(new.loadings, expected.T, rtol=1e-9)
    np.testing.assert_allclose(new.noise_variance, residual / 28, rtol=1e-9)
    assert torch.equal(new.mean, params.mean)
