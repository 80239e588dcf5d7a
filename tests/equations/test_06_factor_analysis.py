"""The numbered equations of chapter 6, each against an independent oracle."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from scipy.linalg import orthogonal_procrustes, subspace_angles

from aevb import data, em, estimators, evaluation, fit, models

NORMAL = stats.multivariate_normal


def make(posterior="full", data_dim=4, latent_dim=2, seed=0):
    """A random model in float64, none of its parameters at a special value."""
    torch.manual_seed(seed)
    model = models.FactorAnalysis(
        data_dim=data_dim, latent_dim=latent_dim, posterior=posterior
    ).double()
    with torch.no_grad():
        model.inference.below.copy_(0.7 * torch.randn(latent_dim, latent_dim))
        model.inference.diagonal.copy_(torch.randn(latent_dim))
    return model.requires_grad_(False), torch.randn(5, data_dim).double()


def parts(model):
    """W (D, L), σ (D,), V (L, D) and C (L, L) as arrays, from the raw parameters."""
    theta, phi = model.generative, model.inference
    factor = np.tril(phi.below.numpy(), -1)
    factor += np.diag(np.log1p(np.exp(phi.diagonal.numpy())) + 1e-6)
    sigma = np.log1p(np.exp(theta.noise.numpy())) + 1e-6
    return theta.loadings.numpy(), sigma, phi.weights.numpy(), factor


def precision_of(model):
    """I + Wᵀ Φ⁻¹ W = G⁻¹, (L, L)."""
    loadings, sigma, _, _ = parts(model)
    return np.eye(loadings.shape[1]) + loadings.T @ np.diag(sigma**-2.0) @ loadings


def set_posterior(model, weights, factor):
    """Put V and C in place."""
    with torch.no_grad():
        model.inference.weights.copy_(torch.as_tensor(weights))
        model.inference.below.copy_(torch.as_tensor(factor))
        diagonal = np.diag(factor) - 1e-6
        model.inference.diagonal.copy_(torch.as_tensor(np.log(np.expm1(diagonal))))


def to_exact(model):
    """Put q at the exact posterior by Gaussian conditioning on the joint of (z, x)."""
    loadings, sigma, _, _ = parts(model)
    marginal = loadings @ loadings.T + np.diag(sigma**2)
    weights = np.linalg.solve(marginal, loadings).T  # cov(z, x) cov(x)⁻¹
    covariance = np.eye(loadings.shape[1]) - weights @ loadings
    set_posterior(model, weights, np.linalg.cholesky(covariance))


def expectation(model, x, function, nodes=12):
    """E_q[function(x, z)] by Gauss-Hermite quadrature, for each row of x."""
    _, _, weights, factor = parts(model)
    points, mass = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.array(list(itertools.product(points, repeat=len(factor))))
    mass = np.array([np.prod(m) for m in itertools.product(mass, repeat=len(factor))])
    mass /= mass.sum()
    means = x.numpy() @ weights.T
    return np.array(
        [
            mass @ [function(row, mean + factor @ eps) for eps in grid]
            for row, mean in zip(x.numpy(), means, strict=True)
        ]
    )


def log_likelihood(model, x, z):
    loadings, sigma, _, _ = parts(model)
    return stats.norm.logpdf(x, loadings @ z, sigma).sum()


def log_prior(z):
    return stats.norm.logpdf(z).sum()


def log_posterior(model, x, z):
    _, _, weights, factor = parts(model)
    return NORMAL(weights @ x, factor @ factor.T).logpdf(z)


@pytest.mark.parametrize("kind", ["full", "diagonal", "fixed"])
def test_eq_fa_aevb_posterior(kind):
    model, x = make(kind)
    _, _, weights, factor = parts(model)
    if kind == "fixed":
        model.inference.below.zero_()
        model.inference.diagonal.fill_(np.log(np.expm1(1 - 1e-6)))
        factor = np.eye(2)
    elif kind == "diagonal":
        model.inference.below.zero_()
        factor = np.diag(np.diag(factor))
    q, z = model.posterior(x), torch.randn(5, 2).double()
    expected = [
        NORMAL(weights @ row, factor @ factor.T).logpdf(point)
        for row, point in zip(x.numpy(), z.numpy(), strict=True)
    ]
    np.testing.assert_allclose(q.log_prob(z), expected, rtol=1e-10)
    phi = models.FactorAnalysis(posterior=kind).inference
    free = {name for name, p in phi.named_parameters() if p.requires_grad}
    fixed = {"full": set(), "diagonal": {"below"}, "fixed": {"below", "diagonal"}}[kind]
    assert free == {"weights", "diagonal", "below"} - fixed


def test_eq_fa_aevb_posterior_is_drawn_with_the_lower_factor():
    model, x = make()
    draws = model.posterior(x[:1]).rsample((200_000,))[:, 0].numpy()
    _, _, weights, factor = parts(model)
    bound = 6 * np.abs(factor).max() ** 2 / np.sqrt(len(draws))
    np.testing.assert_allclose(np.cov(draws.T), factor @ factor.T, atol=bound)
    assert np.abs(factor @ factor.T - factor.T @ factor).max() > 2 * bound
    np.testing.assert_allclose(draws.mean(0), weights @ x[0].numpy(), atol=bound)


def test_eq_fa_optimal_inference():
    """q at (V*, G) equals Bayes' rule on a grid, for every x at once."""
    model, x = make(data_dim=3, latent_dim=1)
    to_exact(model)
    z = np.linspace(-6, 6, 4001)
    loadings, sigma, _, _ = parts(model)
    for row in x:
        density = stats.norm.pdf(row.numpy(), z[:, None] * loadings[:, 0], sigma)
        joint = density.prod(1) * stats.norm.pdf(z)
        bayes = joint / integrate.simpson(joint, x=z)
        points = torch.tensor(z)[:, None]
        q = model.posterior(row[None]).log_prob(points).exp()
        exact = model.exact_posterior(row[None]).log_prob(points).exp()
        np.testing.assert_allclose(q, bayes, atol=1e-9)
        np.testing.assert_allclose(exact, bayes, atol=1e-9)
    np.testing.assert_allclose(model.gap(x), 0, atol=1e-9)


def test_eq_fa_optimal_inference_is_where_the_elbo_is_the_evidence():
    model, x = make()
    to_exact(model)
    log_weights = model.log_weights(x, num_samples=50)  # constant in z
    np.testing.assert_allclose(log_weights, model.evidence(x).expand(50, -1), rtol=1e-9)


def test_eq_fa_elbo_reparameterised():
    """The definition of the ELBO by quadrature, against reconstruction minus KL."""
    model, x = make()

    def integrand(row, z):
        joint = log_likelihood(model, row, z) + log_prior(z)
        return joint - log_posterior(model, row, z)

    exact = expectation(model, x, integrand)
    np.testing.assert_allclose(model.evidence(x) - model.gap(x), exact, rtol=1e-9)
    draws = torch.stack([model.elbo(x, num_samples=4000).elbo for _ in range(25)])
    error = draws.std(0) / 5
    assert (abs(draws.mean(0) - torch.tensor(exact)) < 4 * error).all()


def test_eq_fa_elbo_estimator():
    """For given noise the estimator is log p(x | Vx + Cε) minus the exact KL."""
    model, x = make()
    loadings, sigma, weights, factor = parts(model)
    terms = model.elbo(x, generator=torch.Generator().manual_seed(3))
    dice = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 5, 2, generator=dice, dtype=torch.float64)
    for k, (row, eps) in enumerate(zip(x.numpy(), noise[0].numpy(), strict=True)):
        z = weights @ row + factor @ eps
        expected = stats.norm.logpdf(row, loadings @ z, sigma).sum()
        assert terms.reconstruction[k].item() == pytest.approx(expected, rel=1e-9)
    kl = expectation(
        model, x, lambda row, z: log_posterior(model, row, z) - log_prior(z)
    )
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-9)
    np.testing.assert_allclose(terms.elbo, terms.reconstruction - terms.kl)


def test_eq_fa_elbo_estimator_has_an_unbiased_gradient():
    """Mean gradient of the estimator against finite differences of the exact ELBO."""
    model, x = make(data_dim=3)
    parameters = dict(model.named_parameters())

    def exact():
        with torch.no_grad():
            return (model.evidence(x) - model.gap(x)).mean().item()

    def slope(parameter, index, step=1e-5):
        values = []
        for sign in (1, -1):
            parameter[index] += sign * step
            values.append(exact())
            parameter[index] -= sign * step
        return (values[0] - values[1]) / (2 * step)

    differences = {
        name: torch.tensor(
            [slope(p, i) for i in np.ndindex(*p.shape)], dtype=torch.float64
        ).reshape(p.shape)
        for name, p in parameters.items()
    }
    model.requires_grad_(True)
    draws = {name: [] for name in parameters}
    for _ in range(40):
        model.zero_grad()
        model.elbo(x, num_samples=2000).elbo.mean().backward()
        for name, p in parameters.items():
            draws[name].append(p.grad.clone())
    for name, expected in differences.items():
        got = torch.stack(draws[name])
        error = got.std(0) / len(got) ** 0.5 + 1e-7
        assert (abs(got.mean(0) - expected) < 4.5 * error).all(), name


def gaussians(seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((2, 2, 2)) + 2 * np.eye(2)
    return [
        torch.distributions.MultivariateNormal(
            torch.tensor(rng.standard_normal(2)), torch.tensor(f @ f.T)
        )
        for f in factors
    ]


def gaussian_kl(m, s, m0, s0):
    """The right side of ``eq-gaussian-kl``."""
    inverse = np.linalg.inv(s0)
    distance = (m - m0) @ inverse @ (m - m0)
    logs = np.log(np.linalg.det(s0) / np.linalg.det(s))
    return 0.5 * (np.trace(inverse @ s) + distance - len(m) + logs)


def test_eq_gaussian_kl():
    """The printed formula, what torch computes for us, and an integral on a grid."""
    q, p = gaussians()
    m, s, m0, s0 = (
        np.asarray(a) for d in (q, p) for a in (d.mean, d.covariance_matrix)
    )
    ours = torch.distributions.kl_divergence(q, p).item()
    assert gaussian_kl(m, s, m0, s0) == pytest.approx(ours, rel=1e-12)
    width = 10 * np.sqrt(np.linalg.eigvalsh(s).max())
    axes = [np.linspace(c - width, c + width, 801) for c in m]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    log_q, log_p = NORMAL(m, s).logpdf(grid), NORMAL(m0, s0).logpdf(grid)
    inner = integrate.simpson(np.exp(log_q) * (log_q - log_p), x=axes[1], axis=1)
    assert integrate.simpson(inner, x=axes[0]) == pytest.approx(ours, rel=1e-7)


def test_eq_fa_kl():
    model, x = make(latent_dim=3)
    _, _, weights, factor = parts(model)
    means = x.numpy() @ weights.T
    squares = (factor**2).sum() + (means**2).sum(1) - 3
    expected = 0.5 * squares - np.log(np.diag(factor)).sum()
    np.testing.assert_allclose(model.elbo(x).kl, expected, rtol=1e-10)
    general = [gaussian_kl(m, factor @ factor.T, np.zeros(3), np.eye(3)) for m in means]
    np.testing.assert_allclose(general, expected, rtol=1e-10)


def test_eq_fa_gap():
    """The printed formula and ``gap``, against evidence minus an integrated ELBO."""
    model, x = make()
    loadings, sigma, weights, factor = parts(model)
    precision = precision_of(model)
    best = np.linalg.solve(precision, loadings.T / sigma**2)
    delta = x.numpy() @ (weights - best).T
    product = precision @ factor @ factor.T
    expected = 0.5 * (
        np.trace(product)
        - 2
        - np.log(np.linalg.det(product))
        + np.einsum("nk,kl,nl->n", delta, precision, delta)
    )
    np.testing.assert_allclose(model.gap(x), expected, rtol=1e-9)
    marginal = NORMAL(np.zeros(4), loadings @ loadings.T + np.diag(sigma**2))
    bound = expectation(
        model,
        x,
        lambda row, z: (
            log_likelihood(model, row, z) + log_prior(z) - log_posterior(model, row, z)
        ),
    )
    np.testing.assert_allclose(marginal.logpdf(x) - bound, expected, rtol=1e-8)
    np.testing.assert_allclose(model.evidence(x), marginal.logpdf(x), rtol=1e-10)


def estimator_variance(model, x):
    """The right side of ``eq-fa-estimator-variance``: (N,)."""
    loadings, sigma, weights, factor = parts(model)
    a = loadings @ factor
    residual = x.numpy() - x.numpy() @ weights.T @ loadings.T
    linear = ((residual / sigma**2) @ a) ** 2
    square = a.T @ (a / sigma[:, None] ** 2)
    return linear.sum(1) + 0.5 * np.trace(square @ square)


def test_eq_fa_estimator_variance():
    model, x = make()
    copies = x.repeat(50_000, 1)  # one draw each
    draws = estimators.analytic_kl(model, copies).reconstruction.reshape(-1, len(x))
    centred = (draws - draws.mean(0)).square()
    error = centred.std(0) / len(draws) ** 0.5
    expected = torch.tensor(estimator_variance(model, x))
    assert (abs(centred.mean(0) - expected) < 4.5 * error).all()


def test_eq_fa_estimator_variance_at_the_exact_posterior():
    """m' G m + tr((I - C'C)²) / 2; and none at all if everything is sampled."""
    model, x = make()
    to_exact(model)
    _, _, weights, factor = parts(model)
    means = x.numpy() @ weights.T
    rest = np.eye(2) - factor.T @ factor
    expected = ((means @ factor) ** 2).sum(1) + 0.5 * np.trace(rest @ rest)
    np.testing.assert_allclose(estimator_variance(model, x), expected, rtol=1e-8)
    draws = torch.stack([estimators.fully_sampled(model, x).elbo for _ in range(20)])
    np.testing.assert_allclose(draws.std(0), 0, atol=1e-9)


def test_eq_fa_gap_diagonal():
    """Closed form against a numerical minimum of the model's own gap."""
    model, x = make("diagonal")
    model.generative.loadings.copy_(torch.tensor([[1, 1.5], [-1, 1], [2, 0.5], [0, 1]]))
    to_exact(model)  # δ = 0
    model.inference.below.zero_()
    weights, precision = model.inference.weights.numpy(), precision_of(model)

    def gap(log_variances):
        set_posterior(model, weights, np.diag(np.exp(0.5 * log_variances)))
        return model.gap(x).mean().item()

    found = optimize.minimize(gap, np.zeros(2), method="BFGS", options={"gtol": 1e-7})
    log_det = np.log(np.linalg.det(precision))
    expected = 0.5 * (np.log(np.diag(precision)).sum() - log_det)
    assert found.fun == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(np.exp(found.x), 1 / np.diag(precision), rtol=1e-3)
    covariance = np.linalg.inv(precision)
    rho = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert -0.5 * np.log(1 - rho**2) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.05  # a case in which the two families differ


def test_eq_fa_gap_diagonal_vanishes_if_theta_may_turn():
    """Joint training with a diagonal q reaches the maximum-likelihood evidence."""
    train, _ = data.factor_analysis()
    torch.manual_seed(0)
    model = models.FactorAnalysis(posterior="diagonal")
    quick = dict(batch_size=100, lr=3e-2, schedule="cosine", progress=False)
    fit(model, train, steps=1500, every=1500, **quick)
    best = em.FactorAnalysis(latent_dim=2).fit(train).history[-1]
    bound = (model.evidence(train.x) - model.gap(train.x)).mean().item()
    assert best - 0.01 < bound < best + 1e-6


def test_eq_fa_gap_fixed():
    model, x = make("fixed")
    to_exact(model)  # δ = 0
    set_posterior(model, model.inference.weights.numpy(), np.eye(2))
    precision = precision_of(model)
    log_det = np.log(np.linalg.det(precision))
    expected = 0.5 * (np.trace(precision) - 2 - log_det)
    np.testing.assert_allclose(model.gap(x), expected, rtol=1e-7)
    values = np.linalg.eigvalsh(precision) - 1
    assert 0.5 * (values - np.log1p(values)).sum() == pytest.approx(expected)
    # and no other mean is better
    model.inference.weights.add_(0.01)
    assert (model.gap(x) > expected).all()


def test_eq_fa_evidence_moments():
    model, x = make()
    loadings, sigma, _, _ = parts(model)
    omega = loadings @ loadings.T + np.diag(sigma**2)
    moments = x.numpy().T @ x.numpy() / len(x)
    fit_term = np.trace(np.linalg.solve(omega, moments))
    log_det = np.linalg.slogdet(omega)[1]
    expected = -0.5 * (4 * np.log(2 * np.pi) + log_det + fit_term)
    assert model.evidence(x).mean().item() == pytest.approx(expected, rel=1e-10)
    assert NORMAL(np.zeros(4), omega).logpdf(x).mean() == pytest.approx(expected)


def test_eq_fa_rotation():
    model, x = make()
    loadings, sigma, _, _ = parts(model)

    def evidence(matrix):
        turned = models.FactorAnalysis.from_parameters(
            torch.tensor(loadings @ matrix), torch.tensor(sigma)
        )
        return turned.double().evidence(x).detach()

    orthogonal = stats.ortho_group(2, seed=0).rvs()
    np.testing.assert_allclose(evidence(orthogonal), model.evidence(x), rtol=1e-5)
    shear = np.array([[1.0, 0.5], [0.0, 1.0]])
    assert (evidence(shear) - model.evidence(x)).abs().max() > 0.01


@pytest.mark.parametrize(
    "data_dim, latent_dim, surplus", [(3, 2, -2), (3, 1, 0), (5, 2, 1), (6, 2, 4)]
)
def test_eq_ledermann(data_dim, latent_dim, surplus):
    """The count, and the rank of the map from (W, Φ) to the covariance."""
    counted = (data_dim - latent_dim) ** 2 - (data_dim + latent_dim)
    assert counted == 2 * surplus
    rng = np.random.default_rng(0)
    loadings = torch.tensor(rng.standard_normal((data_dim, latent_dim)))
    variance = torch.tensor(rng.uniform(0.5, 1, data_dim))

    def covariance(flat):
        w = flat[: loadings.numel()].reshape(loadings.shape)
        omega = w @ w.T + flat[loadings.numel() :].diag()
        return omega[tuple(torch.tril_indices(data_dim, data_dim))]

    flat = torch.cat([loadings.flatten(), variance])
    jacobian = torch.autograd.functional.jacobian(covariance, flat)
    rank = torch.linalg.matrix_rank(jacobian).item()
    free = flat.numel() - latent_dim * (latent_dim - 1) // 2
    equations = data_dim * (data_dim + 1) // 2
    assert equations - free == surplus
    assert rank == min(free, equations)  # identified, locally, if all of `free`


def test_eq_fa_noise_surface():
    """Points of the surface are maxima: no Gaussian whatever fits the data better."""
    train, _ = data.factor_analysis()
    moments = (train.x.T.double() @ train.x.double() / len(train)).numpy()
    saturated = NORMAL(np.zeros(3), moments).logpdf(train.x).mean()
    for first, second in [(0.30, 0.22), (0.33, 0.23), (0.38, 0.20)]:
        rest = moments - np.diag([first**2, second**2, 0])
        third = np.linalg.det(rest) / np.linalg.det(rest[:2, :2])
        assert third > 0
        values, vectors = np.linalg.eigh(rest - np.diag([0, 0, third]))
        assert abs(values[0]) < 1e-9 and values[1] > 0  # rank 2
        loadings = vectors[:, 1:] * np.sqrt(values[1:])
        noise = torch.tensor([first, second, third**0.5])
        model = models.FactorAnalysis.from_parameters(torch.tensor(loadings), noise)
        evidence = model.double().evidence(train.x.double()).mean().item()
        assert evidence == pytest.approx(saturated, abs=1e-6)
    best = em.FactorAnalysis(latent_dim=2).fit(train, tolerance=1e-12)
    assert best.history[-1] == pytest.approx(saturated, abs=1e-6)
    rest = moments - np.diag(best.noise_variance)
    third = np.linalg.det(rest + np.diag([0, 0, best.noise_variance[2]]))
    third /= np.linalg.det(rest[:2, :2])
    assert best.noise_variance[2].item() == pytest.approx(third, rel=1e-2)


def test_aevb_reaches_maximum_likelihood():
    """The chapter's first claim, from a start that the chapter does not use."""
    train, test = data.factor_analysis()
    best = em.FactorAnalysis(latent_dim=2).fit(train)
    torch.manual_seed(11)
    model = models.FactorAnalysis()
    quick = dict(batch_size=100, lr=3e-2, schedule="cosine", progress=False)
    fit(model, train, steps=2000, every=2000, seed=11, **quick)
    evidence = [model.evidence(part.x).mean().item() for part in (train, test)]
    assert evidence[0] == pytest.approx(-3.932798, abs=0.005)
    assert evidence[1] == pytest.approx(-3.972135, abs=0.005)
    assert best.history[-1] == pytest.approx(-3.932798, abs=2e-6)
    bound = evaluation.elbo(model, test, num_samples=2000).mean
    assert abs(evidence[1] - bound) < 0.005


def test_the_two_steps():
    """φ alone: evidence still, gap closes. θ alone: the ELBO rises, φ stands still."""
    train, test = data.factor_analysis()
    torch.manual_seed(0)
    model = models.FactorAnalysis()
    evidence = model.evidence(test.x)
    how = dict(batch_size=32, schedule="cosine", every=300, progress=False)
    fit(model, train, steps=900, lr=5e-2, update="inference", **how)
    assert torch.equal(model.evidence(test.x), evidence)
    assert model.gap(test.x).mean() < 0.005
    before = (model.evidence(train.x) - model.gap(train.x)).mean()
    q = model.posterior(test.x)
    fit(model, train, steps=300, lr=1e-2, update="generative", **how)
    assert torch.equal(model.posterior(test.x).mean, q.mean)
    assert torch.equal(model.posterior(test.x).scale_tril, q.scale_tril)
    assert (model.evidence(train.x) - model.gap(train.x)).mean() > before + 0.1
    assert model.gap(test.x).mean() > 0.01


def test_identifiable_data_are_recovered():
    """D = 6: noise and loadings, after alignment, within five standard errors."""
    loadings = [[1, 0.2], [0.8, -0.3], [0.9, 0.6], [-0.2, 1], [0.4, 0.7], [-0.6, 0.8]]
    noise = [0.5, 0.6, 0.4, 0.5, 0.7, 0.3]
    train, _ = data.factor_analysis(n=20_000, seed=1, loadings=loadings, noise=noise)
    found = em.FactorAnalysis(latent_dim=2).fit(train)
    np.testing.assert_allclose(found.noise_scale, noise, atol=5 * 0.024 / 20**0.5)
    assert np.degrees(subspace_angles(found.loadings, np.array(loadings))).max() < 2
    turn, _ = orthogonal_procrustes(found.loadings.numpy(), np.array(loadings))
    aligned = found.loadings.numpy() @ turn
    np.testing.assert_allclose(aligned, loadings, atol=5 * 0.03 / 20**0.5)


def test_from_parameters():
    loadings, noise = torch.randn(5, 2), torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e4])
    model = models.FactorAnalysis.from_parameters(loadings, noise, posterior="diagonal")
    assert torch.equal(model.loadings, loadings)
    np.testing.assert_allclose(model.noise_scale.detach(), noise, rtol=1e-5)
    assert not model.inference.below.requires_grad


@pytest.mark.parametrize(
    "loadings, noise, message",
    [
        (torch.ones(3), torch.ones(3), r"loadings has shape \(3,\)"),
        (torch.ones(3, 2), torch.ones(2), r"noise_scale \(2,\); expected \(D, L\)"),
        (torch.ones(2, 1), torch.tensor([1.0, 0.0]), "expected positive numbers"),
        (torch.ones(2, 1), torch.tensor([1.0, -1.0]), "expected positive numbers"),
    ],
)
def test_from_parameters_refuses(loadings, noise, message):
    with pytest.raises(ValueError, match=message):
        models.FactorAnalysis.from_parameters(loadings, noise)
