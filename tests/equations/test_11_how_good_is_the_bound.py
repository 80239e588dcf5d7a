"""Each numbered equation of chapter 11 against an oracle with no code in common."""

import itertools
import math
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from aevb import annealing, data, estimators, evaluation, models
from aevb.networks import unconstrained

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "book" / "11-how-good-is-the-bound.ipynb"
LOADING, NOISE = 1.3, 0.8  # of the model on a line
SHIFT, WIDTH = 0.1, 1.2  # of its q, against the exact posterior
X = 0.7


def on_a_line(shift=SHIFT, width=WIDTH):
    """z ~ N(0, 1), x | z ~ N(1.3 z, 0.8²), with a q a little off and a little wide."""
    model = models.FactorAnalysis.from_parameters(
        torch.tensor([[LOADING]]), torch.tensor([NOISE])
    ).double()
    mean, std = exact_posterior(1.0)
    with torch.no_grad():
        model.inference.weights.fill_(mean + shift / X)
        model.inference.diagonal.copy_(unconstrained(torch.tensor([width * std])))
        model.inference.below.zero_()
    return model


def exact_posterior(x):
    precision = 1 + LOADING**2 / NOISE**2
    return LOADING * x / NOISE**2 / precision, precision**-0.5


def log_joint(z, x=X):
    return stats.norm.logpdf(z) + stats.norm.logpdf(x, LOADING * z, NOISE)


def evidence(x=X):
    return integrate.quad(lambda z: math.exp(log_joint(z, x)), -12, 12)[0]


def log_w(noise, mean, std):
    """log p(x, z) - log q(z) at z = mean + std · noise, in NumPy."""
    z = mean + std * noise
    return log_joint(z) - stats.norm.logpdf(z, mean, std)


def q_of(shift=SHIFT, width=WIDTH):
    mean, std = exact_posterior(X)
    return mean + shift, width * std


def bound_by_quadrature(count, mean, std):
    """L_K by Gauss and Hermite's rule in K dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    values = log_w(nodes, mean, std)
    total = 0.0
    for index in itertools.product(range(len(nodes)), repeat=count - 1):
        index = list(index)
        rest = np.exp(values[index]).sum()
        part = np.log((np.exp(values) + rest) / count) @ weights
        total += part * weights[index].prod()
    return total


def repeated(count):
    return torch.full((count, 1), X, dtype=torch.float64)


# --- the importance-weighted bound ----------------------------------------------------


def test_eq_iw_monotone():
    mean, std = q_of()
    bounds = [bound_by_quadrature(k, mean, std) for k in (1, 2, 3)]
    assert bounds[0] + 1e-3 < bounds[1] < bounds[2] - 1e-4
    assert bounds[2] < math.log(evidence())
    curve = evaluation.importance_curve(on_a_line(), repeated(2000), most=2)
    for found, expected in zip(curve.values, bounds, strict=False):
        error = found.std() / len(found) ** 0.5
        assert abs(found.mean() - expected) < 4 * error
    far = evaluation.importance_curve(on_a_line(), repeated(50), most=2048).values[-1]
    assert abs(far.mean() - math.log(evidence())) < 4 * far.std() / 50**0.5 + 1e-3


def relative_weights(draws, count, shift=SHIFT, width=WIDTH):
    """w / p(x), (count, draws), from the package."""
    generator = torch.Generator().manual_seed(0)
    log_weights = on_a_line(shift, width).log_weights(
        repeated(draws), num_samples=count, generator=generator
    )
    return log_weights.detach().exp().numpy() / evidence()


def weight_variance(mean, std):
    def square(noise):
        return math.exp(2 * log_w(noise, mean, std)) * stats.norm.pdf(noise)

    return integrate.quad(square, -12, 12)[0] / evidence() ** 2 - 1


def test_eq_iw_gap_order():
    """-E[log(1 + δ)], where E[δ] = 0 is taken off to lower the noise."""
    for count in (32, 128):
        delta = relative_weights(4000, count).mean(0) - 1
        gap = delta - np.log1p(delta)
        first_order = weight_variance(*q_of()) / 2 / count
        error = gap.std() / len(gap) ** 0.5
        assert abs(gap.mean() - first_order) < 4 * error + first_order * 4 / count
        assert 4 * error < first_order / 4


def from_the_chapter(name, **names):
    """A function that the chapter defines."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    (code,) = (
        c.source
        for c in cells
        if c.cell_type == "code" and c.source.startswith(f"def {name}(")
    )
    space = {"torch": torch, "math": math, **names}
    exec(code, space)
    return space[name]


def test_eq_gaussian_weight_variance():
    G = torch.tensor([[0.5, -0.2], [-0.2, 0.4]]).double()
    found = from_the_chapter("weight_variance", G=G, shapes={}, toys={})
    posterior = stats.multivariate_normal(np.zeros(2), G.numpy())
    for S in (0.8 * G + 0.05 * torch.eye(2), torch.tensor([[0.6, 0.0], [0.0, 0.7]])):
        S = S.double()
        q = stats.multivariate_normal(np.zeros(2), S.numpy())
        axis = np.linspace(-9, 9, 601)
        grid = np.stack(np.meshgrid(axis, axis), -1)
        ratio = np.exp(2 * posterior.logpdf(grid) - q.logpdf(grid))
        expected = ratio.sum() * (axis[1] - axis[0]) ** 2 - 1
        assert found(S) == pytest.approx(expected, rel=1e-6)
    assert found(0.51 * G) < math.inf == found(0.5 * G)


def test_eq_effective_sample_size():
    weights = np.random.default_rng(0).gamma(1.0, size=(50, 3))
    found = evaluation.effective_sample_size(torch.tensor(np.log(weights)))
    by_hand = [sum(w) ** 2 / sum(v * v for v in w) for w in weights.T]
    np.testing.assert_allclose(found, by_hand)


def test_eq_gap_from_ess():
    """The rule, from the weights of one set of draws, against the mean gap."""
    count = 200
    w = relative_weights(2000, count)
    ess = evaluation.effective_sample_size(torch.tensor(w).log())
    rule = (1 / ess - 1 / count).mean() / 2
    delta = w.mean(0) - 1
    gap = (delta - np.log1p(delta)).mean()
    assert rule == pytest.approx(gap, rel=0.15)


# --- annealing ------------------------------------------------------------------------


def densities(z):
    """From N(0, 1) to p(x, z) on the line."""
    model, x = on_a_line(), torch.tensor([[X]]).double()
    start = model.prior().log_prob(z)
    return start, model.likelihood(z).log_prob(x)


def some_z(*shape):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*shape, 1, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_eq_annealing_path(beta):
    z = some_z(7, 2)
    found = annealing.Point.at(densities, z).log_density(beta)
    z = z[..., 0].numpy()
    f = stats.norm.pdf(z) ** (1 - beta) * np.exp(log_joint(z)) ** beta
    np.testing.assert_allclose(found, np.log(f))


def test_eq_annealing_weight(monkeypatch):
    """The sum along a path that is prescribed."""
    path = some_z(4, 5, 1)  # z_0, …, z_3 of five chains
    later = iter(path[1:])

    def to_the_next(densities, point, *_):
        return annealing.Point.at(densities, next(later)), torch.ones(5, 1)

    monkeypatch.setattr(annealing, "transition", to_the_next)
    betas = [0.0, 0.1, 0.35, 0.8, 1.0]
    walk = annealing.anneal(densities, path[0], betas, torch.ones(3, 1))
    z = path[..., 0].numpy()
    expected = sum(
        (betas[t] - betas[t - 1]) * (log_joint(z[t - 1]) - stats.norm.logpdf(z[t - 1]))
        for t in range(1, 5)
    )
    np.testing.assert_allclose(walk.log_weights, expected)


def within(values, expected, errors=4):
    values = np.asarray(values)
    assert abs(values.mean() - expected) < errors * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_eq_annealing_unbiased(start):
    """Few steps, that are far from mixing: the mean weight is p(x) all the same."""
    found = evaluation.annealed_importance_sampling(
        on_a_line(0.3), repeated(4000), steps=3, leapfrog=2, chains=1, start=start
    )
    w = found.values.exp().numpy()
    assert w.std() > 0.01 * w.mean()
    within(w / evidence(), 1.0)


def simulated(steps, n=4000, chains=1):
    found = evaluation.bidirectional_monte_carlo(
        on_a_line(), n, steps=steps, leapfrog=2, chains=chains
    )
    spread = math.hypot(LOADING, NOISE)  # of x
    return found, stats.norm.logpdf(found.x[:, 0].numpy(), scale=spread)


def test_eq_annealing_backward():
    """1 / w' has the mean p(x); so w' p(x) has the mean 1."""
    found, log_p = simulated(steps=4)
    product = np.exp(log_p - found.upper.values.numpy())
    assert product.std() > 0.05
    within(product, 1.0)


def test_eq_annealing_sandwich():
    for steps in (2, 6):
        found, log_p = simulated(steps, n=1000, chains=2)
        for side, sign in ((found.lower, -1), (found.upper, 1)):
            excess = sign * (side.values.numpy() - log_p)
            assert excess.mean() > 3 * excess.std() / len(excess) ** 0.5


def test_eq_leapfrog():
    """On a Gaussian the rule is linear: its matrix, by hand, to the n-th power."""
    beta, size, steps = 0.6, 0.3, 5
    precision = 1 + beta * LOADING**2 / NOISE**2
    centre = beta * LOADING * X / NOISE**2 / precision
    half = np.array([[1, 0], [-size / 2 * precision, 1]])
    drift = np.array([[1, size], [0, 1]])
    matrix = np.linalg.matrix_power(half @ drift @ half, steps)
    z, momentum = some_z(6, 1), some_z(6, 1).flip(0)
    point, turned = annealing.leapfrog(
        densities,
        annealing.Point.at(densities, z),
        momentum,
        beta,
        torch.tensor(size).double(),
        steps,
    )
    start = np.stack([z.flatten() - centre, momentum.flatten()])
    expected = matrix @ start + [[centre], [0]]
    np.testing.assert_allclose(point.z.flatten(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(turned.flatten(), expected[1], rtol=1e-5)


def test_eq_hamiltonian_acceptance(monkeypatch):
    seen = {}
    follow = annealing.leapfrog

    def recorded(densities, point, momentum, *rest):
        seen["before"] = point.z, momentum
        there, turned = follow(densities, point, momentum, *rest)
        seen["after"] = there.z, turned
        return there, turned

    monkeypatch.setattr(annealing, "leapfrog", recorded)
    beta, z = 0.7, some_z(3000, 1)
    size = torch.tensor([[0.9]]).double()
    point, accept = annealing.transition(
        densities, annealing.Point.at(densities, z), beta, size, 3
    )

    def energy(z, momentum):
        z, momentum = z[..., 0].numpy(), momentum[..., 0].numpy()
        log_f = (1 - beta) * stats.norm.logpdf(z) + beta * log_joint(z)
        return -log_f + momentum**2 / 2

    change = energy(*seen["after"]) - energy(*seen["before"])
    np.testing.assert_allclose(accept, np.minimum(1, np.exp(-change)), atol=1e-5)
    moved = (point.z == seen["after"][0])[..., 0]
    assert 0.05 < 1 - moved.double().mean() < 0.95
    assert abs((moved.double() - accept).mean()) < 4 * 0.5 / 3000**0.5
    assert torch.equal(point.z[~moved], z[~moved])


# --- latent coordinates ---------------------------------------------------------------


@pytest.fixture
def vae():
    torch.manual_seed(0)
    model = models.VAE(data_dim=6, latent_dim=3, hidden=(8,), likelihood="bernoulli")
    return model.double().eval(), torch.bernoulli(torch.full((5, 6), 0.4)).double()


def test_eq_kl_per_coordinate(vae):
    model, x = vae
    with torch.no_grad():
        q = model.posterior(x)

    def divergence(mean, std):
        def integrand(z):
            log_q = stats.norm.logpdf(z, mean, std)
            return math.exp(log_q) * (log_q - stats.norm.logpdf(z))

        return integrate.quad(integrand, mean - 10 * std, mean + 10 * std)[0]

    pairs = zip(q.mean.flatten().tolist(), q.stddev.flatten().tolist(), strict=True)
    expected = np.reshape([divergence(*pair) for pair in pairs], (5, 3)).mean(0)
    np.testing.assert_allclose(evaluation.kl_per_coordinate(model, x), expected)


def test_eq_activity(vae):
    model, x = vae
    with torch.no_grad():
        means = model.posterior(x).mean.numpy()
    found = evaluation.activity(model, x)
    np.testing.assert_allclose(found, means.var(0))
    assert (2 * evaluation.kl_per_coordinate(model, x) >= found).all()


# --- gradients of the bound -----------------------------------------------------------


def log_mean_weight(noise, mean, std):
    return np.log(np.exp(log_w(noise, mean, std)).mean())


def slopes_in_phi(function, step=1e-5):
    """Central differences in q's mean and standard deviation."""
    here = np.array(q_of())
    found = []
    for unit in np.eye(2):
        up, down = (function(*(here + s * step * unit)) for s in (1, -1))
        found.append((up - down) / 2 / step)
    return np.array(found)


def gradients_in_phi(draws, count, gradient):
    """Of mean and standard deviation: (draws, 2)."""
    model = on_a_line()
    found = estimators.gradient_samples(
        model,
        estimators.importance_weighted,
        torch.tensor([[X]]).double(),
        draws,
        update="inference",
        num_samples=count,
        gradient=gradient,
    )
    names = [n for n, _ in model.named_parameters() if n.startswith("inference.")]
    columns = {n.rpartition(".")[2]: found[:, i] for i, n in enumerate(names)}
    raw = model.inference.diagonal.item()
    slope = 1 / (1 + math.exp(-raw))  # of the softplus
    return torch.stack([columns["weights"] / X, columns["diagonal"] / slope], 1)


def test_eq_iw_gradient():
    """Σ v_k ∇ log w_k, draw by draw, is the slope of the log-mean weight."""
    count, draws = 3, 20
    found = gradients_in_phi(draws, count, "plain")
    assert found.std(0).min() > 0.01
    expected = slopes_in_phi(lambda *q: bound_by_quadrature(2, *q))
    many = gradients_in_phi(20_000, 2, "plain").numpy()
    for column, slope in zip(many.T, expected, strict=True):
        within(column, slope)
    model, x = on_a_line(), torch.tensor([[X]]).double()
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(count, 1, 1, dtype=torch.float64, generator=generator)
    terms = estimators.importance_weighted(
        model, x, num_samples=count, generator=torch.Generator().manual_seed(4)
    )
    mean, std = q_of()
    same = log_mean_weight(noise.flatten().numpy(), mean, std)
    assert terms.elbo.item() == pytest.approx(same)
    (by_torch,) = torch.autograd.grad(terms.elbo.sum(), model.inference.weights)
    slope, _ = slopes_in_phi(lambda *q: log_mean_weight(noise.flatten().numpy(), *q))
    assert by_torch.item() / X == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_eq_doubly_reparameterised(count):
    """Its mean is the gradient of the bound, which quadrature gives."""
    expected = slopes_in_phi(lambda *q: bound_by_quadrature(count, *q))
    twice = gradients_in_phi(20_000, count, "doubly-reparameterised").numpy()
    plain = gradients_in_phi(20_000, count, "plain").numpy()
    for column, slope in zip(twice.T, expected, strict=True):
        within(column, slope)
    assert (twice.std(0) < plain.std(0)).all()


def test_eq_signal_to_noise():
    rows = np.random.default_rng(0).normal([1, -3], [2, 1], size=(400, 2))
    expected = np.mean([abs(c.mean()) / c.std(ddof=1) for c in rows.T])
    assert estimators.signal_to_noise(torch.tensor(rows)) == pytest.approx(expected)


def wide_analyser():
    """The learner of the chapter: S = 2 G, and all parameters moved a little."""
    truth = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE).double()
    with torch.no_grad():
        exact = truth.exact_posterior(torch.eye(3).double())
        truth.inference.weights.copy_(exact.mean.T)
        factor = 2**0.5 * exact.scale_tril[0]
        truth.inference.below.copy_(factor)
        truth.inference.diagonal.copy_(unconstrained(factor.diagonal()))
        torch.manual_seed(1)
        for parameter in truth.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return truth, data.factor_analysis()[1].x[:5].double()


def test_eq_signal_to_noise_rates():
    """Slopes in K: +1/2 in θ, -1/2 in φ, +1/2 doubly reparameterised; √M in M."""
    model, x = wide_analyser()

    def gradients(count, update, gradient):
        return estimators.gradient_samples(
            model,
            estimators.importance_weighted,
            x,
            1600,
            update=update,
            gradient=gradient,
            num_samples=count,
            chunk_size=400,
        )

    def slope(update, gradient="plain", counts=(16, 128)):
        low, high = (
            estimators.signal_to_noise(gradients(count, update, gradient))
            for count in counts
        )
        return math.log(high / low) / math.log(counts[1] / counts[0])

    assert slope("generative") == pytest.approx(0.5, abs=0.15)
    assert slope("inference") == pytest.approx(-0.5, abs=0.15)
    twice = slope("inference", "doubly-reparameterised")
    assert twice == pytest.approx(0.5, abs=0.15)
    rows = gradients(4, "inference", "plain")
    means = rows.view(100, 16, -1).mean(1)
    ratio = estimators.signal_to_noise(means) / estimators.signal_to_noise(rows)
    assert ratio == pytest.approx(4, rel=0.15)


# --- a sample, corrected --------------------------------------------------------------


def test_eq_subset_correction():
    """Unbiased over the choice of the sample, and far less noisy than the sample."""
    rng = np.random.default_rng(0)
    elbo = rng.normal(-90, 20, 1000)
    log_p = elbo + rng.gamma(4, 1, 1000)
    plain, corrected = [], []
    for _ in range(2000):
        some = rng.choice(1000, 50, replace=False)
        plain.append(log_p[some].mean())
        corrected.append(elbo.mean() + (log_p - elbo)[some].mean())
    within(corrected, log_p.mean())
    assert np.std(corrected) < np.std(plain) / 5
