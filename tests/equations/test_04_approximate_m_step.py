"""The numbered equations of chapter 4, each against an independent oracle."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.func import grad

from aevb import data, em, fit, models
from aevb.model import ElboTerms

POINTS = torch.tensor([[0.3], [-1.2], [2.5], [0.9], [-0.4], [1.7]]).double()


def mixture(theta):
    """Two Gaussians on the line from five numbers without constraints."""
    weights = torch.stack([-theta[0], theta[0]]).softmax(0)
    means, variances = theta[1:3, None], (2 * theta[3:, None]).exp()
    return em.MixtureParameters(weights, means, variances)


def scipy_parts(theta, x):
    """p(x, z = k) by scipy: (N, 2)."""
    weights = np.exp([-theta[0], theta[0]])
    weights /= weights.sum()
    parts = [
        w * stats.norm(m, np.exp(s)).pdf(x)
        for w, m, s in zip(weights, theta[1:3], theta[3:], strict=True)
    ]
    return np.stack(parts, 1)


@pytest.fixture
def case():
    """Parameters, other parameters, and a q that is the posterior of neither."""
    rng = np.random.default_rng(0)
    theta, other = (torch.tensor(0.7 * rng.standard_normal(5)) for _ in range(2))
    q = torch.tensor(rng.dirichlet([1.0, 1.0], len(POINTS)))
    return theta, other, q


def evidence(theta):
    return em.mixture_e_step(POINTS, mixture(theta)).log_evidence.mean()


def bound(theta, q):
    return em.mixture_elbo(POINTS, mixture(theta), q).mean()


def divergence(theta, q):
    """Average KL from q to the posterior, by scipy."""
    joint = scipy_parts(theta.numpy(), POINTS[:, 0].numpy())
    posterior = joint / joint.sum(1, keepdims=True)
    return stats.entropy(q.numpy(), posterior, axis=1).mean()


def finite_differences(function, theta, step=1e-5):
    theta = np.asarray(theta)
    units = step * np.eye(len(theta))
    return np.array([(function(theta + u) - function(theta - u)) for u in units]) / (
        2 * step
    )


def test_eq_m_step_gradient(case):
    theta, _, q = case
    x = POINTS[:, 0].numpy()

    def average(theta):  # E_q[log p(x, z)] by scipy
        return (q.numpy() * np.log(scipy_parts(theta, x))).sum(1).mean()

    found = grad(bound)(theta, q).numpy()
    np.testing.assert_allclose(found, finite_differences(average, theta), atol=1e-8)


def linear_model():
    model = models.FactorAnalysis.from_parameters(
        torch.tensor([[1.0], [-0.6]]), torch.tensor([0.8, 0.6])
    ).double()
    x = torch.tensor([[0.5, -1.0], [1.5, 0.7], [-0.6, 2.0], [1.0, 1.0]]).double()
    with torch.no_grad():
        model.inference.weights.copy_(torch.tensor([[0.4, -0.3]]))
    return model, x


def exact_gradients(model, x):
    """Of the average ELBO in θ, from the closed form with a q without gradient."""
    q = model.posterior(x)
    params = em.FactorParameters(
        torch.zeros(2).double(), model.loadings, model.noise_scale.square()
    )
    mean, covariance = q.mean.detach(), q.covariance_matrix[0].detach()
    elbo = em.factor_elbo(x, params, mean, covariance).mean()
    return torch.autograd.grad(elbo, list(model.generative.parameters()))


def test_eq_m_step_gradient_by_sampling():
    """The package's estimator, one draw at a time: unbiased, to two per cent."""
    model, x = linear_model()
    exact = exact_gradients(model, x)
    estimates = []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        elbo = model.elbo(x.repeat(2000, 1), generator=g).elbo.mean()
        estimates.append(torch.autograd.grad(elbo, list(model.generative.parameters())))
    for k, expected in enumerate(exact):
        each = torch.stack([e[k] for e in estimates])
        error = each.std(0) / len(each) ** 0.5
        assert (4 * error < 0.02 * expected.abs()).all()
        assert ((each.mean(0) - expected).abs() < 4 * error).all()


def test_eq_m_step_gradient_in_fit():
    """fit(update="generative") goes up the exact gradient, and leaves φ alone."""
    model, x = linear_model()
    expected = exact_gradients(model, x)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def many_draws(model, x):
        return model.elbo(x, num_samples=2000)

    fit(
        model, x, steps=1, lr=1e-3, update="generative", estimator=many_draws,
        device="cpu", progress=False,
    )  # fmt: skip
    after = model.state_dict()
    for name in before:
        if name.startswith("inference"):
            assert torch.equal(before[name], after[name])
    names = [n for n, _ in model.named_parameters() if n.startswith("generative")]
    for name, slope in zip(names, expected, strict=True):  # Adam's first step: lr sign
        step = after[name] - before[name]
        torch.testing.assert_close(step, 1e-3 * slope.sign(), rtol=1e-3, atol=0)


def log_normal(z, mean=0.0, scale=1.0):
    return -0.5 * ((z - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))


def normal(z, mean, scale):
    return np.exp(log_normal(z, mean, scale))


def gaussian_terms(phi, z):
    """log p(x, z) - log q(z) for x = 2, p(z) = N(0, 1), p(x | z) = N(z, 0.5²)."""
    log_p = log_normal(z) + log_normal(2.0, z, 0.5)
    return log_p - log_normal(z, phi[0], np.exp(phi[1]))


def exact_elbo(phi):
    params = em.FactorParameters(
        torch.zeros(1).double(),
        torch.ones(1, 1).double(),
        torch.tensor([0.25]).double(),
    )
    x, mean = torch.tensor([[2.0]]).double(), phi[:1].view(1, 1)
    return em.factor_elbo(x, params, mean, (2 * phi[1]).exp().view(1, 1))[0]


def integral(function, phi):
    scale = np.exp(phi[1])
    return integrate.quad(function, phi[0] - 9 * scale, phi[0] + 9 * scale)[0]


@pytest.mark.parametrize("phi", [(0.0, 0.0), (1.1, -0.5), (1.6, -0.8047)])
def test_eq_gradient_two_terms(phi):
    phi = np.array(phi)
    total = finite_differences(
        lambda p: integral(
            lambda z: normal(z, p[0], np.exp(p[1])) * gaussian_terms(p, z), p
        ),
        phi,
        1e-4,
    )
    for k in range(2):
        unit = 1e-5 * np.eye(2)[k]

        def density(p, z):
            return normal(z, p[0], np.exp(p[1]))

        def inside(z, u=unit):
            slope = gaussian_terms(phi + u, z) - gaussian_terms(phi - u, z)
            return density(phi, z) * slope / 2e-5

        def lost(z, u=unit):
            slope = density(phi + u, z) - density(phi - u, z)
            return gaussian_terms(phi, z) * slope / 2e-5

        first, second = integral(inside, phi), integral(lost, phi)
        assert first + second == pytest.approx(total[k], abs=1e-5)
        assert grad(exact_elbo)(torch.tensor(phi))[k].item() == pytest.approx(
            second, abs=1e-5
        )


def test_eq_moved_gradient_zero():
    for phi in np.random.default_rng(0).standard_normal((5, 2)):
        for unit in 1e-5 * np.eye(2):

            def inside(z, p=phi, u=unit):
                slope = gaussian_terms(p + u, z) - gaussian_terms(p - u, z)
                return normal(z, p[0], np.exp(p[1])) * slope / 2e-5

            assert integral(inside, phi) == pytest.approx(0, abs=1e-6)
    # and for a categorical q, exactly
    logits = torch.tensor([0.3, -1.0, 0.8]).double()
    log_joint = torch.tensor([-1.0, -2.0, -0.5]).double()
    held = logits.softmax(0)
    slope = grad(lambda t: (held * (log_joint - t.log_softmax(0))).sum())(logits)
    torch.testing.assert_close(slope, torch.zeros(3).double())


def test_eq_evidence_change(case):
    theta, other, q = case
    x = POINTS[:, 0].numpy()
    change = np.log(scipy_parts(other.numpy(), x).sum(1)).mean()
    change -= np.log(scipy_parts(theta.numpy(), x).sum(1)).mean()
    of_bound = (bound(other, q) - bound(theta, q)).item()
    of_gap = divergence(other, q) - divergence(theta, q)
    assert change == pytest.approx(of_bound + of_gap, abs=1e-12)
    assert abs(of_gap) > 0.01  # it matters here


def test_eq_m_step_guarantee(case):
    theta, _, q = case
    rng = np.random.default_rng(1)
    gap = (evidence(theta) - bound(theta, q)).item()
    assert gap == pytest.approx(divergence(theta, q), abs=1e-12)
    slack = []
    for _ in range(200):
        other = theta + torch.tensor(rng.standard_normal(5))
        gain = (bound(other, q) - bound(theta, q)).item()
        change = (evidence(other) - evidence(theta)).item()
        slack.append(change - (gain - divergence(theta, q)))
    assert min(slack) > 0
    # with the posterior for q it is attained where θ stays: nothing can be added
    exact = em.mixture_e_step(POINTS, mixture(theta)).responsibilities
    assert divergence(theta, exact) == pytest.approx(0, abs=1e-12)
    # and it does happen that the bound rises and the evidence falls
    peak = theta
    for _ in range(200):
        peak = peak + 0.3 * grad(evidence)(peak)
    moved = peak + 0.1 * grad(bound)(peak, q)
    assert bound(moved, q) > bound(peak, q)
    assert evidence(moved) < evidence(peak)


def test_eq_gradient_bias(case):
    theta, _, q = case
    x = POINTS[:, 0].numpy()
    joint = scipy_parts(theta.numpy(), x)
    posterior = joint / joint.sum(1, keepdims=True)

    def difference(t):  # of the two averages, both tables held fixed
        return ((posterior - q.numpy()) * np.log(scipy_parts(t, x))).sum(1).mean()

    bias = grad(evidence)(theta) - grad(bound)(theta, q)
    np.testing.assert_allclose(bias, finite_differences(difference, theta), atol=1e-8)


def test_eq_gradient_m_step(case):
    """In one mean the bound is a parabola, so that the inequality is an equality."""
    theta, _, q = case
    curvature = (q[:, 0].mean() * (-2 * theta[3]).exp()).item()
    slope = grad(bound)(theta, q)[1].item()
    start = bound(theta, q).item()
    for step in (0.1, 1.0, 1 / curvature, 1.9 / curvature, 2.1 / curvature):
        moved = theta.clone()
        moved[1] += step * slope
        gain = bound(moved, q).item() - start
        assert gain == pytest.approx(
            step * (1 - curvature * step / 2) * slope**2, abs=1e-12
        )
        assert (gain > 0) == (step < 2 / curvature)


def test_eq_m_step_mini_batch(case):
    theta, _, q = case

    def on(rows):
        return grad(
            lambda t: em.mixture_elbo(POINTS[rows], mixture(t), q[rows]).mean()
        )(theta)

    torch.manual_seed(0)
    batches = data.Batches(torch.arange(6), batch_size=2, shuffle=True)
    parts = [on(rows) for (rows,) in batches]
    assert len(parts) == 3
    torch.testing.assert_close(torch.stack(parts).mean(0), grad(bound)(theta, q))
    pairs = [on(torch.tensor([a, b])) for a in range(6) for b in range(a)]
    torch.testing.assert_close(torch.stack(pairs).mean(0), grad(bound)(theta, q))


def test_eq_m_step_mini_batch_in_fit():
    """fit averages over the batch: twice the same examples, the same path."""
    ends = []
    for repeats in (1, 5):
        model, x = linear_model()

        def exact_terms(model, x):
            return ElboTerms(model.evidence(x), model.gap(x))

        fit(
            model, x.repeat(repeats, 1), steps=30, batch_size=4 * repeats,
            update="generative", estimator=exact_terms, device="cpu", progress=False,
        )  # fmt: skip
        ends.append(model.loadings.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("rate", [0.05, 0.4, 1.5])
def test_eq_step_size_noise(rate):
    curvature, variance, batch = 0.8, 3.0, 5
    g = torch.Generator().manual_seed(0)
    where = torch.zeros(4000, requires_grad=True)  # as many runs at once
    optimizer = torch.optim.SGD([where], lr=rate)
    for _ in range(200):
        errors = (variance / batch) ** 0.5 * torch.randn(4000, generator=g)
        optimizer.zero_grad()
        (0.5 * curvature * where**2 - errors * where).sum().backward()
        optimizer.step()
    predicted = rate / (2 - rate * curvature) * variance / (curvature * batch)
    error = predicted * (2 / 4000) ** 0.5
    assert abs(where.detach().var().item() - predicted) < 4 * error
