"""The numbered equations of chapter 5, each against an independent oracle."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import MultivariateNormal, Normal, Uniform
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from aevb import estimators, fit, models
from aevb.distributions import rsample
from aevb.model import ElboTerms

NORMAL = stats.multivariate_normal
S = 4


@pytest.fixture
def model():
    """A factor analyser in float64, none of its parameters at a special value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = models.FactorAnalysis(data_dim=3, latent_dim=2).double()
        with torch.no_grad():
            model.inference.below.copy_(0.5 * torch.randn(2, 2))
            model.inference.diagonal.copy_(torch.randn(2))
        return model


@pytest.fixture
def x():
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(4)).double()


def draws(model, x, seed=0):
    """The draws that an estimator makes with this seed: (S, B, L)."""
    with torch.no_grad():
        g = torch.Generator().manual_seed(seed)
        return rsample(model.posterior(x), (S,), g).numpy()


def run(estimator, model, x, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    return estimator(model, x, num_samples=S, generator=g, **options)


def phi(model):
    """φ as one vector of numpy: V, the diagonal of C and what is below it."""
    return torch.cat([p.detach().flatten() for p in model.inference.parameters()])


def log_q(vector, x, z):
    """log N(z; V x, C Cᵀ) by scipy, from the vector of parameters: (S, B)."""
    weights, diagonal, below = np.split(np.asarray(vector), [6, 8])
    factor = np.tril(below.reshape(2, 2), -1)
    factor += np.diag(np.log1p(np.exp(diagonal)) + 1e-6)
    means = x.numpy() @ weights.reshape(2, 3).T
    covariance = factor @ factor.T
    return np.stack(
        [NORMAL(m, covariance).logpdf(z[:, i]) for i, m in enumerate(means)], 1
    )


def log_p(model, x, z):
    """log p(x | z) by scipy: (S, B)."""
    loadings = model.loadings.detach().numpy()
    sigma = model.noise_scale.detach().numpy()
    return stats.norm.logpdf(x.numpy(), z @ loadings.T, sigma).sum(-1)


def log_prior(z):
    return stats.norm.logpdf(z).sum(-1)


def gradient(value, module):
    """Of a sum of numbers, in the parameters of a module, flattened."""
    parts = torch.autograd.grad(
        value.sum(), list(module.parameters()), retain_graph=True
    )
    return torch.cat([part.flatten() for part in parts]).numpy()


def slope(function, vector, step=1e-6):
    """Derivatives of a function of a vector, by central differences: (P, …)."""
    vector = np.asarray(vector)
    return np.stack(
        [
            (function(vector + e) - function(vector - e)) / (2 * step)
            for e in step * np.eye(len(vector))
        ]
    )


def normal_mean(function):
    """E[function(e)] for a standard normal e, by quadrature."""
    return integrate.quad(lambda e: function(e) * stats.norm.pdf(e), -12, 12)[0]


# --- the three ways to write the estimator ------------------------------------


def test_eq_sgvb_fully_sampled(model, x):
    z, terms = draws(model, x), run(estimators.fully_sampled, model, x)
    wanted = log_p(model, x, z) + log_prior(z) - log_q(phi(model), x, z)
    np.testing.assert_allclose(terms.elbo.detach(), wanted.mean(0), rtol=1e-9)
    np.testing.assert_allclose(
        terms.reconstruction.detach(), log_p(model, x, z).mean(0), rtol=1e-9
    )


def test_eq_sgvb_analytic_kl(model, x):
    """The divergence by Gauss-Hermite quadrature of scipy's densities."""
    z, terms = draws(model, x), run(estimators.analytic_kl, model, x)
    np.testing.assert_allclose(
        terms.reconstruction.detach(), log_p(model, x, z).mean(0), rtol=1e-9
    )
    nodes, weights = quadrature(model, x)
    divergence = weights @ (log_q(phi(model), x, nodes) - log_prior(nodes))
    np.testing.assert_allclose(terms.kl.detach(), divergence, rtol=1e-9)


def test_eq_sgvb_entropy(model, x):
    z, terms = draws(model, x), run(estimators.analytic_entropy, model, x)
    nodes, weights = quadrature(model, x)
    entropy = -weights @ log_q(phi(model), x, nodes)
    wanted = (log_p(model, x, z) + log_prior(z)).mean(0) + entropy
    np.testing.assert_allclose(terms.elbo.detach(), wanted, rtol=1e-9)
    np.testing.assert_allclose(
        terms.reconstruction.detach(), log_p(model, x, z).mean(0), rtol=1e-9
    )


def quadrature(model, x, order=8):
    """Nodes (n, B, L) and weights (n,) that integrate polynomials under q exactly."""
    with torch.no_grad():
        q = model.posterior(x)
    points, mass = np.polynomial.hermite_e.hermegauss(order)
    grid = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
    weights = np.outer(mass, mass).ravel() / mass.sum() ** 2
    nodes = q.mean.numpy() + (grid @ q.scale_tril[0].numpy().T)[:, None]
    return nodes, weights


def test_eq_location_scale_density(model, x):
    """Hence the estimators with sampled and with exact entropy share a gradient."""
    z = draws(model, x)
    q = model.posterior(x)
    factor = q.scale_tril[0].detach().numpy()
    eps = np.linalg.solve(factor, (z - q.mean.detach().numpy()).reshape(-1, 2).T).T
    wanted = np.log(np.linalg.det(factor)) - log_prior(eps).reshape(S, -1)
    np.testing.assert_allclose(-log_q(phi(model), x, z), wanted, rtol=1e-9)
    one, two = (
        gradient(run(e, model, x).elbo, model)
        for e in (estimators.fully_sampled, estimators.analytic_entropy)
    )
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


def test_eq_constant_weight(model, x):
    """With q at the posterior, every draw gives the evidence."""
    covariance = (model.loadings @ model.loadings.T).detach().numpy()
    covariance = covariance + np.diag(model.noise_scale.detach().numpy() ** 2)
    evidence = NORMAL(np.zeros(3), covariance).logpdf(x.numpy())
    model.posterior = model.exact_posterior
    terms = run(estimators.fully_sampled, model, x)
    np.testing.assert_allclose(terms.elbo.detach(), evidence, rtol=1e-9)
    weights = model.log_weights(x, num_samples=5).detach()
    np.testing.assert_allclose(weights, np.broadcast_to(evidence, (5, 3)), rtol=1e-9)


# --- the two gradients ----------------------------------------------------------


def test_eq_aevb_gradient_theta(model, x):
    """For fixed draws: the mean gradient of log p(x, z), by central differences."""
    z = draws(model, x)
    start = np.r_[
        model.loadings.detach().numpy().ravel(), model.generative.noise.detach().numpy()
    ]

    def mean_log_p(vector):
        loadings, sigma = vector[:6].reshape(3, 2), np.log1p(np.exp(vector[6:])) + 1e-6
        means = z @ loadings.T
        return stats.norm.logpdf(x.numpy(), means, sigma).sum(-1).mean(0).sum()

    wanted = slope(mean_log_p, start)
    for estimator in (
        estimators.fully_sampled,
        estimators.analytic_kl,
        estimators.analytic_entropy,
        estimators.score_function,
    ):
        got = gradient(run(estimator, model, x).elbo, model.generative)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_eq_score_zero_mean():
    """For the mean and the standard deviation of a Gaussian, and three logits."""
    for k in range(2):
        mean = normal_mean(lambda e, k=k: [e / 0.7, (e**2 - 1) / 0.7][k])
        assert mean == pytest.approx(0, abs=1e-9)
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    scores = [torch.autograd.grad(v, logits, retain_graph=True)[0] for v in p.log()]
    total = sum(pk.detach() * score for pk, score in zip(p, scores, strict=True))
    assert total.abs().max() < 1e-12
    m = torch.tensor(0.4, requires_grad=True)
    score = torch.autograd.grad(Normal(m, 0.7).log_prob(torch.tensor(1.1)), m)[0]
    assert score.item() == pytest.approx((1.1 - 0.4) / 0.49)


def test_eq_product_rule():
    """The part that moves the distribution is the derivative; the other is zero."""
    sigma = 0.7

    def f(z, m):
        return -((z - 2) ** 2) - stats.norm.logpdf(z, m, sigma)

    def elbo(m):
        return normal_mean(lambda e: f(m + sigma * e, m))

    m, step = 0.3, 1e-4
    derivative = (elbo(m + step) - elbo(m - step)) / (2 * step)
    density, function = (
        integrate.quad(part, m - 10, m + 10)[0]
        for part in (
            lambda z: f(z, m) * stats.norm.pdf(z, m, sigma) * (z - m) / sigma**2,
            lambda z: stats.norm.pdf(z, m, sigma) * -(z - m) / sigma**2,
        )
    )
    assert density == pytest.approx(derivative, rel=1e-6)
    assert function == pytest.approx(0, abs=1e-9)


def score_of_draws(model, x, z):
    """∇φ log q(z_s | x_i), by central differences of scipy's density: (P, S, B)."""
    return slope(lambda vector: log_q(vector, x, z), phi(model))


def test_eq_score_function_gradient(model, x):
    z = draws(model, x)
    terms = run(estimators.score_function, model, x)
    score = score_of_draws(model, x, z)
    one, two = log_p(model, x, z), log_q(phi(model), x, z) - log_prior(z)
    for term, f in ((terms.elbo, one - two), (terms.reconstruction, one)):
        wanted = (f * score).mean(1).sum(1)
        np.testing.assert_allclose(
            gradient(term, model.inference), wanted, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(term.detach(), f.mean(0), rtol=1e-9)
    wanted = (two * score).mean(1).sum(1)
    np.testing.assert_allclose(
        gradient(terms.kl, model.inference), wanted, rtol=1e-5, atol=1e-6
    )


def test_eq_leave_one_out(model, x):
    z = draws(model, x)
    terms = run(estimators.score_function, model, x, baseline="leave-one-out")
    score = score_of_draws(model, x, z)
    f = log_p(model, x, z) + log_prior(z) - log_q(phi(model), x, z)
    wanted = 0
    for s in range(S):
        baseline = np.delete(f, s, axis=0).mean(0)
        wanted = wanted + ((f[s] - baseline) * score[:, s]).sum(1) / S
    np.testing.assert_allclose(
        gradient(terms.elbo, model.inference), wanted, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(terms.elbo.detach(), f.mean(0), rtol=1e-9)


def test_eq_baseline(model, x):
    """A constant in f changes no gradient in expectation: by quadrature under q."""
    nodes, weights = quadrature(model, x)
    score = score_of_draws(model, x, nodes)
    assert np.abs(np.einsum("s,psb->pb", weights, score)).max() < 1e-7


def test_eq_best_baseline():
    """The parabola's minimum, by a search over baselines."""

    def f(e):
        return math.sin(e) + e**2

    def second_moment(b):
        return normal_mean(lambda e: ((f(e) - b) * e) ** 2)

    best = normal_mean(lambda e: f(e) * e**2) / normal_mean(lambda e: e**2)
    mean = normal_mean(f)
    assert abs(best - mean) > 1  # the mean of f is another number
    for other in (best - 0.1, best + 0.1, mean):
        assert second_moment(best) < second_moment(other)


def test_eq_reparameterised_gradient(model, x):
    """With the noise fixed: the derivative of the estimate, by central differences."""
    q = model.posterior(x)
    factor = q.scale_tril[0].detach().numpy()
    eps = np.linalg.solve(
        factor, (draws(model, x) - q.mean.detach().numpy()).reshape(-1, 2).T
    ).T.reshape(S, -1, 2)

    def estimate(vector):
        weights, diagonal, below = np.split(vector, [6, 8])
        factor = np.tril(below.reshape(2, 2), -1)
        factor += np.diag(np.log1p(np.exp(diagonal)) + 1e-6)
        z = x.numpy() @ weights.reshape(2, 3).T + eps @ factor.T
        f = log_p(model, x, z) + log_prior(z) - log_q(vector, x, z)
        return f.mean(0).sum()

    wanted = slope(estimate, phi(model))
    got = gradient(run(estimators.fully_sampled, model, x).elbo, model.inference)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_eq_path_and_score(model, x):
    """Path and score, each by itself, add up to the derivative of the estimate."""
    g = torch.Generator().manual_seed(0)
    q = model.posterior(x)
    z = rsample(q, (S,), g)
    frozen = MultivariateNormal(q.mean.detach(), scale_tril=q.scale_tril.detach())
    log_joint = model.likelihood(z).log_prob(x) + model.prior().log_prob(z)
    path = gradient((log_joint - frozen.log_prob(z)).mean(0), model.inference)
    score = score_of_draws(model, x, z.detach().numpy()).mean(1).sum(1)
    whole = gradient(run(estimators.fully_sampled, model, x).elbo, model.inference)
    np.testing.assert_allclose(whole, path - score, rtol=1e-5, atol=1e-6)
    assert np.abs(score).max() > 0.1


# --- variances -------------------------------------------------------------------

QUADRATICS = [  # a, b, d, sigma
    (1.0, 0.0, 1.0, 0.5),
    (2.0, 3.0, -0.4, 1.5),
    (0.7, -1.0, 0.0, 0.9),
]


def quadratic_moments(a, b, d, sigma, dim, baseline):
    """Mean and variance of the score-function gradient, exactly by quadrature."""
    points, mass = np.polynomial.hermite_e.hermegauss(8)
    mass = mass / mass.sum()
    grid = np.stack(np.meshgrid(*[points] * dim), -1).reshape(-1, dim)
    weights = np.stack(np.meshgrid(*[mass] * dim), -1).reshape(-1, dim).prod(1)
    f = b - a / 2 * ((d + sigma * grid) ** 2).sum(1)
    estimates = (f - baseline) * grid[:, 0] / sigma
    mean = weights @ estimates
    return mean, weights @ (estimates - mean) ** 2


@pytest.mark.parametrize("case", QUADRATICS)
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_eq_score_function_variance(case, dim):
    a, b, d, sigma = case
    rest = a**2 * ((dim + 1) * d**2 + (dim + 2) / 2 * sigma**2)
    bracket = b - a / 2 * dim * (d**2 + sigma**2) - a * sigma**2
    mean, variance = quadratic_moments(a, b, d, sigma, dim, baseline=0.0)
    assert mean == pytest.approx(-a * d, abs=1e-9)
    assert variance == pytest.approx(bracket**2 / sigma**2 + rest, rel=1e-9)
    mean, variance = quadratic_moments(a, b, d, sigma, dim, baseline=bracket)
    assert mean == pytest.approx(-a * d, abs=1e-9)
    assert variance == pytest.approx(rest, rel=1e-9)  # the best one leaves the rest


@pytest.mark.parametrize("case", QUADRATICS)
def test_eq_reparameterised_variance(case):
    """By automatic differentiation of f(m + σ ε) at the nodes of a quadrature."""
    a, b, d, sigma = case
    points, mass = np.polynomial.hermite_e.hermegauss(6)
    mass = mass / mass.sum()
    m = torch.full((6,), d, dtype=torch.float64, requires_grad=True)  # c = 0
    f = b - a / 2 * (m + sigma * torch.as_tensor(points)) ** 2
    (slopes,) = torch.autograd.grad(f.sum(), m)
    mean = mass @ slopes.numpy()
    assert mean == pytest.approx(-a * d, abs=1e-9)
    variance = mass @ (slopes.numpy() - mean) ** 2
    assert variance == pytest.approx(a**2 * sigma**2, rel=1e-9)


def test_eq_aevb_update(model, x):
    """Three steps of fit against Adam by hand, with one gradient for θ and φ.

    The gradient is a central difference of the exact mean ELBO in all parameters; a
    second half that moved only after the first one would be off by lr² in step two.
    """

    def exact(model, x):
        return ElboTerms(model.evidence(x), model.gap(x))

    twin = copy.deepcopy(model)
    parameters = list(twin.parameters())
    start = parameters_to_vector(parameters).detach()

    def objective(vector):
        vector_to_parameters(vector, parameters)
        with torch.no_grad():
            return exact(twin, x).elbo.mean()

    def slope(vector, width=1e-5):
        rows = width * torch.eye(len(vector)).double()
        pairs = [(objective(vector + r), objective(vector - r)) for r in rows]
        return torch.stack([up - down for up, down in pairs]) / (2 * width)

    place, first, second, lr = start, 0, 0, 0.05
    for t in range(1, 4):
        g = slope(place)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        scale = (second / (1 - 0.999**t)).sqrt() + 1e-8
        place = place + lr * first / (1 - 0.9**t) / scale
    how = {"steps": 3, "batch_size": len(x), "lr": lr, "estimator": exact}
    fit(model, x, progress=False, device="cpu", **how)
    reached = parameters_to_vector(model.parameters()).detach()
    free = slope(start).abs() > 1e-6  # what is above a triangle never moves
    assert free.sum() >= 16
    assert (reached - start)[free].abs().min() > lr / 10
    assert torch.allclose(reached[free], place[free], atol=1e-6)
    assert torch.equal(reached[~free], start[~free])


def test_eq_variance_at_cost():
    """A made-up G(x, e) = x + (1 + x²) e, whose two variances are known."""
    g = torch.Generator().manual_seed(0)
    n, batch, samples = 200_000, 5, 3
    x = Uniform(0, 1).icdf(torch.rand(n, batch, 1, generator=g).double())
    e = torch.randn(n, batch, samples, generator=g).double()
    estimates = (x + (1 + x**2) * e).mean((1, 2))
    between, within = 1 / 12, 1 + 2 / 3 + 1 / 5  # Var[x], E[(1 + x²)²]
    cost = batch * samples
    wanted = (samples * between + within) / cost
    assert estimates.var().item() == pytest.approx(wanted, rel=0.015)


def test_eq_aevb_objective(model, x):
    """The mean over examples of what quadrature gives for each; fit's loss."""
    nodes, weights = quadrature(model, x)
    f = log_p(model, x, nodes) + log_prior(nodes) - log_q(phi(model), x, nodes)
    wanted = (weights @ f).mean()
    exact = (model.evidence(x) - model.gap(x)).mean().item()
    assert wanted == pytest.approx(exact, rel=1e-9)

    def terms(model, x):
        return ElboTerms(model.evidence(x), model.gap(x))

    how = {"steps": 1, "batch_size": len(x), "progress": False, "device": "cpu"}
    history = fit(model, x, estimator=terms, **how)  # measured before the step
    assert history.train_elbo == [pytest.approx(wanted, rel=1e-6)]
