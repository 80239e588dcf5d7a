"""Each equation of chapter 3 against an oracle that shares no code with it."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch.distributions import Independent, MultivariateNormal, Normal

from aevb import data, evaluation, fit, inference, models
from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel

READING = torch.tensor([[2.0]], dtype=torch.float64)


class Squared(LatentVariableModel):
    """The model of Section 3.1, in float64."""

    def prior(self):
        quarter = torch.tensor([0.25], dtype=torch.float64)
        return diagonal_normal(quarter, torch.ones_like(quarter))

    def likelihood(self, z):
        return diagonal_normal(z.square(), torch.full_like(z, 0.5))


def joint(z, x=2.0):
    """p(x, z) of the same model, by scipy."""
    return stats.norm.pdf(z, 0.25, 1.0) * stats.norm.pdf(x, z**2, 0.5)


def integral(f):
    points = [-1.4, 0.0, 1.4]
    return integrate.quad(f, -9, 9, points=points, epsabs=1e-13, limit=200)[0]


def gaussian(m, s):
    where = torch.tensor([[m]], dtype=torch.float64)
    return diagonal_normal(where, torch.full_like(where, s))


@pytest.fixture(scope="module")
def exact():
    return evaluation.grid_posterior(Squared(), READING, low=-9, high=9, points=901)


@pytest.fixture
def truth():
    """Factor analysis with the true parameters, in float64."""
    model = models.FactorAnalysis.from_parameters(
        torch.tensor(data.LOADINGS), torch.tensor(data.NOISE)
    )
    return model.double().requires_grad_(False)


@pytest.fixture
def x():
    return data.factor_analysis(n=20, seed=3)[0].x.double()


@pytest.fixture
def target():
    """A correlated Gaussian in three dimensions."""
    mean = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    factor = torch.tensor(
        [[1.0, 0.0, 0.0], [-0.7, 0.5, 0.0], [0.4, 0.6, 0.8]], dtype=torch.float64
    )
    return MultivariateNormal(mean, scale_tril=factor)


def gaussian_kl(m, s, mu, sigma):
    """KL(N(m, s) ‖ N(mu, sigma)) in numpy."""
    precision = np.linalg.inv(sigma)
    d = mu - m
    logs = np.linalg.slogdet(sigma)[1] - np.linalg.slogdet(s)[1]
    return 0.5 * (np.trace(precision @ s) + d @ precision @ d - len(m) + logs)


# --- the grid ------------------------------------------------------------------


def test_eq_grid_posterior(exact):
    evidence = integral(joint)
    assert exact.log_evidence.item() == pytest.approx(np.log(evidence), abs=1e-9)
    z = exact.points[:, 0].numpy()
    density = exact.log_density[:, 0].exp().numpy()
    np.testing.assert_allclose(density, joint(z) / evidence, rtol=1e-8, atol=1e-12)
    mean = integral(lambda z: z * joint(z)) / evidence
    second = integral(lambda z: z * z * joint(z)) / evidence
    assert exact.mean.item() == pytest.approx(mean, abs=1e-8)
    assert exact.covariance.item() == pytest.approx(second - mean**2, abs=1e-8)


def test_eq_grid_posterior_in_the_plane(truth, x):
    grid = evaluation.grid_posterior(truth, x, low=-6, high=6, points=161)
    scale = np.array(data.LOADINGS) @ np.array(data.LOADINGS).T
    scale += np.diag(np.square(data.NOISE))
    evidence = stats.multivariate_normal(np.zeros(3), scale).logpdf(x.numpy())
    np.testing.assert_allclose(grid.log_evidence, evidence, rtol=1e-6)
    posterior = truth.exact_posterior(x)
    np.testing.assert_allclose(grid.mean, posterior.mean, atol=1e-6)
    np.testing.assert_allclose(grid.covariance, posterior.covariance_matrix, atol=1e-6)


# --- the variational problem ---------------------------------------------------


@pytest.mark.parametrize(("m", "s"), [(1.3, 0.2), (-1.0, 0.5), (0.2, 1.2)])
def test_eq_variational_problem(exact, m, s):
    log_evidence = np.log(integral(joint))
    q = stats.norm(m, s)

    def log_ratio(z):  # log p(x, z) - log q(z), without underflow
        log_p = stats.norm.logpdf(z, 0.25, 1.0) + stats.norm.logpdf(2.0, z**2, 0.5)
        return log_p - q.logpdf(z)

    bound = integral(lambda z: q.pdf(z) * log_ratio(z))
    divergence = exact.reverse_kl(gaussian(m, s)).item()
    assert log_evidence - bound == pytest.approx(divergence, abs=1e-6)


def test_eq_variational_problem_has_one_solution(exact):
    """The minimiser of the divergence maximises the ELBO, which knows no evidence."""

    z = np.linspace(-9, 9, 4001)
    log_p = stats.norm.logpdf(z, 0.25) + stats.norm.logpdf(2.0, z**2, 0.5)

    def negative_elbo(parameters):
        log_q = stats.norm.logpdf(z, parameters[0], np.exp(parameters[1]))
        return -integrate.simpson(np.exp(log_q) * (log_p - log_q), x=z)

    def divergence(parameters):
        return exact.reverse_kl(gaussian(parameters[0], np.exp(parameters[1]))).item()

    how = {"x0": [1.2, -1.5], "method": "Nelder-Mead", "options": {"xatol": 1e-5}}
    by_bound = optimize.minimize(negative_elbo, **how).x
    by_divergence = optimize.minimize(divergence, **how).x
    np.testing.assert_allclose(by_bound, by_divergence, atol=1e-3)


def test_eq_elbo_entropy(truth, x):
    """Reconstruction, prior and entropy of a correlated Gaussian in closed form."""
    mean = torch.stack([x[:, 0], x[:, 1] - x[:, 2]], 1) / 4
    factor = torch.tensor([[0.5, 0.0], [-0.3, 0.4]], dtype=torch.float64)
    q = MultivariateNormal(mean, scale_tril=factor.expand(len(x), 2, 2))
    generator = torch.Generator().manual_seed(0)
    parts = [
        inference.elbo_of(q, truth, x, num_samples=500, generator=generator)
        for _ in range(40)
    ]
    w, noise = np.array(data.LOADINGS), np.array(data.NOISE)
    s = (factor @ factor.T).numpy()
    density = stats.norm(mean.numpy() @ w.T, noise).logpdf(x.numpy()).sum(1)
    reconstruction = density - np.trace(w.T / noise**2 @ w @ s) / 2
    kl = [gaussian_kl(m, s, np.zeros(2), np.eye(2)) for m in mean.numpy()]
    for found, expected in (
        (torch.stack([p.reconstruction for p in parts]), reconstruction),
        (torch.stack([p.kl for p in parts]), np.array(kl)),
    ):
        error = found.std(0).numpy() / 40**0.5
        assert (error < 0.1).all()  # enough draws for the comparison to mean something
        assert (np.abs(found.mean(0).numpy() - expected) < 5 * error + 1e-9).all()


def test_eq_elbo_entropy_does_not_need_the_normaliser(truth, x):
    """Twice the joint density moves the ELBO by log 2, for every q."""

    class Doubled(type(truth)):
        def prior(self):
            prior = super().prior()
            log_prob = prior.log_prob
            prior.log_prob = lambda z: log_prob(z) + np.log(2.0)
            return prior

    doubled = Doubled().double()
    doubled.load_state_dict(truth.state_dict())
    for shift in (0.0, 0.7):
        q = Independent(Normal(x[:, :2] + shift, 0.5), 1)
        a, b = (
            inference.elbo_of(q, m, x, generator=torch.Generator().manual_seed(1)).elbo
            for m in (truth, doubled)
        )
        np.testing.assert_allclose((b - a).detach(), np.log(2.0), rtol=1e-9)


def test_eq_variational_optimum():
    """Gradient ascent over all distributions on a grid, with scipy."""
    z = np.linspace(-3, 3, 61)
    log_joint = np.log(joint(z))

    def negative(logits):  # q = softmax(logits)
        log_q = logits - np.logaddexp.reduce(logits)
        q = np.exp(log_q)
        inside = log_joint - log_q
        bound = q @ inside
        return -bound, -(q * (inside - bound))

    found = optimize.minimize(negative, np.zeros(61), jac=True, options={"gtol": 1e-9})
    q = np.exp(found.x - np.logaddexp.reduce(found.x))
    np.testing.assert_allclose(q, joint(z) / joint(z).sum(), atol=1e-5)
    assert -found.fun == pytest.approx(np.logaddexp.reduce(log_joint), abs=1e-8)


def test_eq_functional_ascent():
    """A step in log q goes along the functional derivative, and never downwards."""
    z = np.linspace(-3, 3, 61)
    log_joint = np.log(joint(z))

    def normalised(log_q):
        return log_q - np.logaddexp.reduce(log_q)

    def bound(log_q):
        return np.exp(log_q) @ (log_joint - log_q)

    log_q = normalised(stats.norm.logpdf(z, 0.25, 1.0))
    q = np.exp(log_q)
    derivative = log_joint - log_q - 1
    derivative = derivative - q @ derivative  # the multiplier keeps the sum at 1
    for alpha in (1e-6, 1e-5):
        moved = np.exp(normalised((1 - alpha) * log_q + alpha * log_joint))
        np.testing.assert_allclose((moved - q) / alpha, q * derivative, atol=1e-4)
    bounds = []
    for _ in range(60):
        bounds.append(bound(log_q))
        log_q = normalised(0.8 * log_q + 0.2 * log_joint)
    assert (np.diff(bounds) > -1e-12).all()
    assert bounds[-1] == pytest.approx(np.logaddexp.reduce(log_joint), abs=1e-6)


# --- mean field ------------------------------------------------------------------


def test_eq_mean_field_update(target):
    """Each update is the normalised exponential of an average, by quadrature."""
    start = torch.tensor([2.0, 0.5, 0.5], dtype=torch.float64)
    path = inference.coordinate_ascent(target, start, sweeps=1)
    density = stats.multivariate_normal(target.mean, target.covariance_matrix)
    mean, variance = start.numpy().copy(), path.variances.numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    z = np.linspace(-12, 12, 2401)
    for j in range(3):
        others = [k for k in range(3) if k != j]
        log_q = np.zeros_like(z)
        for a, b in itertools.product(range(8), repeat=2):
            point = np.empty((len(z), 3))
            point[:, j] = z
            for k, node in zip(others, (nodes[a], nodes[b]), strict=True):
                point[:, k] = mean[k] + np.sqrt(variance[k]) * node
            log_q += weights[a] * weights[b] * density.logpdf(point)
        q = np.exp(log_q - log_q.max())
        q /= q.sum()
        mean[j] = q @ z
        assert q @ (z - mean[j]) ** 2 == pytest.approx(variance[j], rel=1e-6)
    np.testing.assert_allclose(path.means[1], mean, atol=1e-8)


def test_eq_mean_field_family(target):
    """q factorises, and no factorised Gaussian is closer: scipy's search agrees."""
    q = inference.best_factorised(target)
    mu, sigma = target.mean.numpy(), target.covariance_matrix.numpy()
    point = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    factors = stats.norm(q.mean.numpy(), q.stddev.numpy()).logpdf(point.numpy())
    assert q.log_prob(point).item() == pytest.approx(factors.sum())

    def divergence(p):
        return gaussian_kl(p[:3], np.diag(np.exp(p[3:])), mu, sigma)

    found = optimize.minimize(divergence, np.zeros(6), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(q.mean, found[:3], atol=1e-5)
    np.testing.assert_allclose(q.variance, np.exp(found[3:]), rtol=1e-5)


def test_eq_mean_field_gaussian(target):
    """Where coordinate ascent ends, and the variance given all other coordinates."""
    q = inference.best_factorised(target)
    start = torch.tensor([5.0, -4.0, 3.0], dtype=torch.float64)
    path = inference.coordinate_ascent(target, start, sweeps=200)
    np.testing.assert_allclose(path.means[-1], q.mean, atol=1e-8)
    np.testing.assert_allclose(path.variances, q.variance)
    sigma = target.covariance_matrix.numpy()
    for j in range(3):
        rest = [k for k in range(3) if k != j]
        across = sigma[j, rest] @ np.linalg.inv(sigma[np.ix_(rest, rest)])
        conditional = sigma[j, j] - across @ sigma[rest, j]
        assert q.variance[j].item() == pytest.approx(conditional)


def test_eq_mean_field_gap(target):
    q = inference.best_factorised(target)
    precision = np.linalg.inv(target.covariance_matrix.numpy())
    formula = np.log(precision.diagonal()).sum() - np.linalg.slogdet(precision)[1]
    by_definition = gaussian_kl(
        q.mean.numpy(),
        np.diag(q.variance.numpy()),
        target.mean.numpy(),
        target.covariance_matrix.numpy(),
    )
    assert by_definition == pytest.approx(formula / 2)
    rho = 0.8
    pair = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    narrow = np.diag(inference.best_factorised(pair).variance.numpy())
    two = gaussian_kl(np.zeros(2), narrow, np.zeros(2), pair.covariance_matrix.numpy())
    assert two == pytest.approx(-0.5 * np.log(1 - rho**2), rel=1e-4)


# --- the other divergence ----------------------------------------------------------


@pytest.mark.parametrize(("m", "s"), [(1.3, 0.4), (-1.0, 0.5), (0.2, 1.2)])
def test_eq_forward_kl(exact, m, s):
    evidence = integral(joint)
    q = stats.norm(m, s)
    expected = integral(
        lambda z: (
            joint(z) / evidence * (np.log(joint(z) / evidence) - q.logpdf(z))
            if joint(z) > 0
            else 0.0
        )
    )
    found = exact.forward_kl(gaussian(m, s)).item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_eq_moment_matching(exact):
    def divergence(p):
        return exact.forward_kl(gaussian(p[0], np.exp(p[1]))).item()

    options = {"xatol": 1e-6, "fatol": 1e-10}
    found = optimize.minimize(
        divergence, [1.4, -1.0], method="Nelder-Mead", options=options
    ).x
    evidence = integral(joint)
    mean = integral(lambda z: z * joint(z)) / evidence
    second = integral(lambda z: z * z * joint(z)) / evidence
    assert found[0] == pytest.approx(mean, abs=1e-4)
    assert np.exp(found[1]) == pytest.approx(np.sqrt(second - mean**2), abs=1e-4)


def test_eq_moment_matching_in_more_dimensions(target):
    mu, sigma = target.mean.numpy(), target.covariance_matrix.numpy()

    def full(p):
        factor = np.zeros((3, 3))
        factor[np.tril_indices(3)] = p[3:]
        return gaussian_kl(mu, sigma, p[:3], factor @ factor.T + 1e-9 * np.eye(3))

    start = np.concatenate([np.zeros(3), np.eye(3)[np.tril_indices(3)]])
    p = optimize.minimize(full, start).x
    factor = np.zeros((3, 3))
    factor[np.tril_indices(3)] = p[3:]
    np.testing.assert_allclose(p[:3], mu, atol=1e-4)
    np.testing.assert_allclose(factor @ factor.T, sigma, atol=1e-3)

    def diagonal(p):
        return gaussian_kl(mu, sigma, p[:3], np.diag(np.exp(p[3:])))

    p = optimize.minimize(diagonal, np.zeros(6)).x
    np.testing.assert_allclose(np.exp(p[3:]), sigma.diagonal(), rtol=1e-4)


# --- one q for each example, one network for all -------------------------------------


def test_eq_per_point_family():
    mean = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
    std = torch.tensor([[0.3, 1.5], [1.0, 0.01]], dtype=torch.float64)
    z = np.array([0.4, -0.2])
    diagonal = inference.PerPointPosterior(mean, std)()
    full = inference.PerPointPosterior(mean, std, "full")
    with torch.no_grad():
        full.below[0, 1, 0] = 0.8
        full.below[:, 0, 1] = 9.0  # above the diagonal: must not count
    factors = [np.diag(row) for row in std.numpy()]
    where = torch.tensor(z)
    for n in range(2):
        p = stats.multivariate_normal(mean[n].numpy(), factors[n] @ factors[n].T)
        assert diagonal.log_prob(where)[n].item() == pytest.approx(p.logpdf(z))
    factors[0][1, 0] = 0.8
    for n in range(2):
        p = stats.multivariate_normal(mean[n].numpy(), factors[n] @ factors[n].T)
        assert full().log_prob(where)[n].item() == pytest.approx(p.logpdf(z))
        covariance = full().covariance_matrix[n].detach()
        np.testing.assert_allclose(covariance, factors[n] @ factors[n].T, atol=1e-9)


@pytest.mark.parametrize("family", inference.FAMILIES)
def test_eq_per_point_objective(truth, x, family):
    """The optimum is known: the exact posterior, or the best factorised Gaussian."""
    q = inference.fit_per_point(truth, x, family=family, steps=600, num_samples=16)()
    w, noise = np.array(data.LOADINGS), np.array(data.NOISE)
    precision = np.eye(2) + w.T / noise**2 @ w
    sigma = np.linalg.inv(precision)
    mean = x.numpy() / noise**2 @ w @ sigma
    best = 0.5 * (np.log(precision.diagonal()).sum() - np.linalg.slogdet(precision)[1])
    best = best if family == "diagonal" else 0.0
    covariances = (
        torch.diag_embed(q.variance) if family == "diagonal" else q.covariance_matrix
    )
    for n in range(len(x)):
        args = q.mean[n].numpy(), covariances[n].numpy(), mean[n], sigma
        assert best - 1e-9 <= gaussian_kl(*args) < best + 0.02


def test_eq_per_point_objective_separates(truth, x):
    """Some examples alone are fitted as well as among the others."""

    def gaps(q, x):
        full = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        return torch.distributions.kl_divergence(full, truth.exact_posterior(x))

    how = {"steps": 400, "num_samples": 16}
    together = gaps(inference.fit_per_point(truth, x, **how)(), x)[:3]
    alone = gaps(inference.fit_per_point(truth, x[:3], **how)(), x[:3])
    np.testing.assert_allclose(together, alone, atol=0.02)


def test_eq_amortised_objective():
    """One φ for all: the average bound of the best linear network is known."""
    train, _ = data.factor_analysis(n=200, seed=5)
    torch.manual_seed(0)
    model = models.FactorAnalysis.from_parameters(
        torch.tensor(data.LOADINGS), torch.tensor(data.NOISE), posterior="diagonal"
    )
    theta = [p.clone() for p in model.generative.parameters()]
    how = {"update": "inference", "schedule": "cosine", "progress": False}
    fit(model, train, steps=1500, batch_size=50, lr=0.05, device="cpu", **how)
    for before, after in zip(theta, model.generative.parameters(), strict=True):
        assert torch.equal(before, after)
    w, noise = np.array(data.LOADINGS), np.array(data.NOISE)
    precision = np.eye(2) + w.T / noise**2 @ w
    sigma = np.linalg.inv(precision)
    best = 0.5 * (np.log(precision.diagonal()).sum() - np.linalg.slogdet(precision)[1])
    with torch.no_grad():
        q = model.posterior(train.x)
    means = train.x.double().numpy() / noise**2 @ w @ sigma
    gaps = [
        gaussian_kl(m, np.diag(v), mean, sigma)
        for m, v, mean in zip(
            q.mean.double().numpy(), q.variance.double().numpy(), means, strict=True
        )
    ]
    assert best - 1e-9 <= np.mean(gaps) < best + 0.01


def test_eq_gap_split(truth, x):
    """Exact where all three bounds are: a diagonal q with a linear map that is off."""
    posterior = truth.exact_posterior(x)
    evidence = truth.evidence(x)
    best = inference.best_factorised(posterior)
    network = diagonal_normal(best.mean + 0.05 * x[:, :2], 1.3 * best.stddev)
    sigma = posterior.covariance_matrix
    sigma = (sigma if sigma.ndim == 2 else sigma[0]).numpy()
    w, noise = np.array(data.LOADINGS), np.array(data.NOISE)

    def bound(q, n):
        m, s = q.mean[n].numpy(), np.diag(q.variance[n].numpy())
        log_p = stats.norm(w @ m, noise).logpdf(x[n].numpy()).sum()
        log_p -= np.trace(w.T / noise**2 @ w @ s) / 2
        return log_p - gaussian_kl(m, s, np.zeros(2), np.eye(2))

    for n in range(len(x)):
        log_p, star, phi = evidence[n].item(), bound(best, n), bound(network, n)
        inference_gap = gaussian_kl(
            network.mean[n].numpy(),
            np.diag(network.variance[n].numpy()),
            posterior.mean[n].numpy(),
            sigma,
        )
        assert inference_gap == pytest.approx((log_p - star) + (star - phi), abs=1e-6)
        assert log_p - star > 0 and star - phi > 0


# --- mini-batches --------------------------------------------------------------


def test_eq_minibatch(truth, x):
    """The mean over all batches there are, with and without replacement."""
    values = (truth.evidence(x) - truth.gap(x)).numpy()[:6]
    for batches in (
        itertools.combinations(values, 3),
        itertools.product(values, repeat=3),
    ):
        assert np.mean([np.mean(b) for b in batches]) == pytest.approx(values.mean())


def test_eq_minibatch_variance(truth, x):
    """Noise of the examples and noise of the draws, each with its own divisor."""
    posterior = truth.exact_posterior(x)
    means = posterior.mean + 0.05 * x[:, :2]
    stds = 1.2 * posterior.stddev
    generator = torch.Generator().manual_seed(0)

    def gradients(index, draws):  # in each example's own mean and std: (rows, 2L)
        q = inference.PerPointPosterior(means[index], stds[index])
        terms = inference.elbo_of(
            q(), truth, x[index], num_samples=draws, generator=generator
        )
        return torch.cat(torch.autograd.grad(terms.elbo.sum(), (q.mean, q.raw)), 1)

    repeats = 4000
    every = torch.arange(len(x)).repeat(repeats)
    single = gradients(every, 1).view(repeats, len(x), -1)
    kappa = single.mean(0).var(0, unbiased=False).sum()
    tau = single.var(0).mean(0).sum()
    assert 0.1 < kappa / tau < 10  # both kinds of noise matter
    for size, draws in ((1, 1), (4, 1), (1, 5), (4, 5)):
        index = torch.randint(len(x), (repeats * size,), generator=generator)
        batches = gradients(index, draws).view(repeats, size, -1).mean(1)
        expected = (kappa + tau / draws) / size
        squares = (batches - batches.mean(0)).square().sum(1)
        error = squares.std() / repeats**0.5
        assert error < 0.05 * expected
        assert abs(squares.mean() - expected) < 4 * error + 0.02 * expected
