"""Each numbered equation of chapter 7 against an oracle that shares no code with it."""

import itertools
import math
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Independent

from aevb import estimators, evaluation, models
from aevb.distributions import ContinuousBernoulli, rsample
from aevb.networks import SMALLEST_STD

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "book" / "07-variational-autoencoder.ipynb"
LOGITS = (-1000.0, -512.0, -30.0, -3.0, -0.5, -1e-3, 0.0, 1e-6, 0.4, 2.0, 40.0, 1000.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_integral(logit: float, power: int = 0) -> float:
    """log ∫ x^power exp(logit x) dx over [0, 1], by adaptive quadrature."""
    peak = max(logit, 0.0)  # keeps the integrand at most 1
    edge = min(1.0, 40 / max(abs(logit), 1e-9))  # where the mass is
    cuts = (0.0, edge, 1.0) if logit <= 0 else (0.0, 1 - edge, 1.0)
    total = sum(
        integrate.quad(
            lambda x: x**power * math.exp(logit * x - peak),
            a,
            b,
            epsabs=0,
            epsrel=1e-11,
        )[0]
        for a, b in itertools.pairwise(cuts)
        if b > a
    )
    return math.log(total) + peak


@pytest.fixture
def vae():
    torch.manual_seed(0)
    model = models.VAE(data_dim=12, latent_dim=3, hidden=(16, 8), dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # a posterior that is far from the prior
    return model.double().eval()


@pytest.fixture
def x():
    return torch.rand(4, 12, dtype=torch.float64, generator=seeded(1))


def posterior_by_hand(model, x):
    """Mean and standard deviation from the weights, in numpy."""
    body, head = model.inference
    h = x.numpy()
    for layer in body:
        if isinstance(layer, torch.nn.Linear):
            h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            h = np.maximum(h, 0.0)
    mean, raw = (
        h @ part.weight.detach().numpy().T + part.bias.detach().numpy()
        for part in (head.mean, head.std)
    )
    return mean, np.logaddexp(0.0, raw) + SMALLEST_STD


def logits_by_hand(model, z):
    body, head = model.generative
    h = z
    for layer in body:
        if isinstance(layer, torch.nn.Linear):
            h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            h = np.maximum(h, 0.0)
    return h @ head.logits.weight.detach().numpy().T + head.logits.bias.detach().numpy()


def log_likelihood_by_hand(model, x, z):
    """Σ_d log p(x_d | z) with the normalizer by quadrature: (B,)."""
    logits = logits_by_hand(model, z)
    log_z = np.vectorize(log_integral)(logits)
    return (x.numpy() * logits - log_z).sum(-1)


@pytest.mark.parametrize("logit", LOGITS)
def test_eq_cb_log_normalizer(logit):
    ours = -ContinuousBernoulli(torch.tensor(logit)).log_prob(torch.tensor(0.0))
    assert ours.item() == pytest.approx(log_integral(logit), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("x", (0.0, 0.002, 0.3, 0.97, 1.0))
def test_eq_cb_density(logit, x):
    ours = ContinuousBernoulli(torch.tensor(logit)).log_prob(torch.tensor(x)).item()
    expected = logit * float(torch.tensor(x)) - log_integral(logit)
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("logit", LOGITS)
def test_eq_cb_mean(logit):
    p = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    by_quadrature = math.exp(log_integral(logit, power=1) - log_integral(logit))
    assert p.mean.item() == pytest.approx(by_quadrature, rel=1e-8)
    step = 1e-4 * max(1.0, abs(logit))
    slope = (log_integral(logit + step) - log_integral(logit - step)) / (2 * step)
    assert p.mean.item() == pytest.approx(slope, rel=1e-3)


def test_eq_vae_joint(vae, x):
    q = vae.posterior(x)
    generator = torch.Generator().manual_seed(3)
    log_w = vae.log_weights(x, generator=generator)[0]
    z = rsample(q, (), generator.manual_seed(3))
    log_joint = stats.norm.logpdf(z.detach().numpy()).sum(-1)
    log_joint += log_likelihood_by_hand(vae, x, z.detach().numpy())
    mean, std = posterior_by_hand(vae, x)
    log_q = stats.norm.logpdf(z.detach().numpy(), mean, std).sum(-1)
    np.testing.assert_allclose(log_w.detach(), log_joint - log_q, rtol=1e-7)


@pytest.mark.parametrize("encoders", (1, 2))
def test_eq_vae_posterior(encoders, x):
    torch.manual_seed(0)
    model = models.VAE(
        data_dim=12, latent_dim=3, hidden=(16,), dropout=0.0, encoders=encoders
    ).double()
    q = model.posterior(x)
    if encoders == 1:
        mean, std = posterior_by_hand(model, x)
    else:
        mean = model.inference.mean(x).detach().numpy()
        std = np.logaddexp(0.0, model.inference.std(x).detach().numpy()) + SMALLEST_STD
    z = np.linspace(-2, 2, 12).reshape(4, 3)
    expected = [
        stats.multivariate_normal(m, np.diag(s**2)).logpdf(row)
        for m, s, row in zip(mean, std, z, strict=True)
    ]
    ours = q.log_prob(torch.tensor(z)).detach()
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_eq_diagonal_gaussian_kl(vae, x):
    kl = vae.elbo(x).kl.detach().numpy()
    mean, std = posterior_by_hand(vae, x)
    assert np.abs(mean).max() > 0.3 and np.abs(np.log(std)).max() > 0.3
    for i in range(len(x)):
        expected = 0.0
        for m, s in zip(mean[i], std[i], strict=True):
            q, p = stats.norm(m, s), stats.norm()
            expected += integrate.quad(
                lambda z, q=q, p=p: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)),
                m - 12 * s,
                m + 12 * s,
                epsrel=1e-10,
            )[0]
        assert kl[i] == pytest.approx(expected, rel=1e-8)


def test_eq_vae_reparameterisation(vae, x):
    generator = torch.Generator()
    noise = torch.randn(4, 3, dtype=torch.float64, generator=generator.manual_seed(5))
    z = rsample(vae.posterior(x), (), generator.manual_seed(5))
    mean, std = posterior_by_hand(vae, x)
    np.testing.assert_allclose(z.detach(), mean + std * noise.numpy(), rtol=1e-9)
    # the gradient goes through the draw: compare with a finite difference
    bias = vae.inference[1].std.bias
    (gradient,) = torch.autograd.grad(z.square().sum(), bias)
    with torch.no_grad():
        values = []
        for step in (1e-5, -1e-5):
            bias[1] += step
            moved = rsample(vae.posterior(x), (), generator.manual_seed(5))
            values.append(moved.square().sum().item())
            bias[1] -= step
    assert gradient[1].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("draws", (1, 3))
def test_eq_vae_elbo_estimator(vae, x, draws):
    generator = torch.Generator()
    terms = vae.elbo(x, num_samples=draws, generator=generator.manual_seed(2))
    mean, std = posterior_by_hand(vae, x)
    shape = (draws, 4, 3)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator.manual_seed(2))
    z = mean + std * noise.numpy()
    reconstruction = np.mean([log_likelihood_by_hand(vae, x, row) for row in z], axis=0)
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(-1)
    np.testing.assert_allclose(terms.reconstruction.detach(), reconstruction, rtol=1e-7)
    np.testing.assert_allclose(terms.elbo.detach(), reconstruction - kl, rtol=1e-7)


@pytest.mark.parametrize("draws", (1, 3))
def test_eq_vae_elbo_fully_sampled(vae, x, draws):
    generator = torch.Generator()
    terms = estimators.fully_sampled(
        vae, x, num_samples=draws, generator=generator.manual_seed(2)
    )
    mean, std = posterior_by_hand(vae, x)
    shape = (draws, 4, 3)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator.manual_seed(2))
    z = mean + std * noise.numpy()
    bracket = [
        log_likelihood_by_hand(vae, x, row)
        + stats.norm.logpdf(row).sum(-1)
        - stats.norm.logpdf(row, mean, std).sum(-1)
        for row in z
    ]
    np.testing.assert_allclose(terms.elbo.detach(), np.mean(bracket, axis=0), rtol=1e-7)


def test_both_estimators_agree_in_expectation(vae, x):
    generator = torch.Generator().manual_seed(0)
    many = x[:1].repeat(40_000, 1)
    with torch.no_grad():
        closed = estimators.analytic_kl(vae, many, generator=generator).elbo
        sampled = estimators.fully_sampled(vae, many, generator=generator).elbo
    error = math.sqrt((closed.var() + sampled.var()).item() / len(many))
    assert abs((closed.mean() - sampled.mean()).item()) < 4 * error


def test_eq_bits_per_pixel():
    # a density that is constant on each cube: a product of independent histograms
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(256), size=6)  # P(k_d): (6, 256)
    k = rng.integers(0, 256, size=6)
    x = (k + rng.random(6)) / 256
    height = probability[range(6), np.floor(256 * x).astype(int)] * 256  # density at x
    log_density = np.log(height).sum()
    code_length = -np.log2(probability[range(6), k]).sum()  # bits for the six pixels
    ours = evaluation.bits_per_pixel(log_density, pixels=6)
    assert ours == pytest.approx(code_length / 6, rel=1e-12)
    # binary images: the logarithm of a probability is a code length already
    assert evaluation.bits_per_pixel(-math.log(2) * 5, pixels=5, levels=1) == 1.0


def test_eq_importance_weighted(vae, x):
    class Prepared(models.VAE):
        """A VAE whose weights are known."""

        def log_weights(self, x, num_samples=1, generator=None):
            first = torch.arange(num_samples, dtype=torch.float64)
            return torch.log(1.0 + first)[:, None].expand(num_samples, len(x))

    prepared = Prepared(data_dim=12, latent_dim=3, hidden=(16, 8)).double()
    estimate = evaluation.log_likelihood(prepared, x, num_samples=5)
    assert estimate.mean == pytest.approx(math.log((1 + 2 + 3 + 4 + 5) / 5), rel=1e-12)

    # and in expectation: one latent coordinate, log p(x) by quadrature
    torch.manual_seed(0)
    small = models.VAE(data_dim=12, latent_dim=1, hidden=(8,), dropout=0.0)
    small = small.double().eval()
    with torch.no_grad():
        small.inference[1].std.bias.fill_(1.0)  # a wide q: weights of small variance

    z = np.linspace(-9, 9, 2001)[:, None]
    log_joint = log_likelihood_by_hand(small, x[:1], z) + stats.norm.logpdf(z[:, 0])
    exact = math.log(integrate.trapezoid(np.exp(log_joint), z[:, 0]))
    ours = evaluation.log_likelihood(small, x[:1], num_samples=20_000).mean
    w = small.log_weights(x[:1], num_samples=20_000).detach().exp()
    error = (w.std() / w.mean() / math.sqrt(len(w))).item()
    assert abs(ours - exact) < 4 * error < 0.02
    bound = evaluation.elbo(small, x[:1], num_samples=20_000).mean
    assert bound < exact - 4 * error


def chapter_classes() -> dict:
    """The classes as the chapter defines them."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    epsilon = torch.finfo(torch.float32).eps
    scope = {
        "torch": torch,
        "models": models,
        "ContinuousBernoulli": ContinuousBernoulli,
        "Independent": Independent,
        "limit": math.log((1 - epsilon) / epsilon),
    }
    for cell in cells:
        if cell.cell_type == "code" and cell.source.startswith("class "):
            exec(cell.source, scope)
    return scope


def test_the_chapters_clamp_lets_gradients_back_in_only():
    clamp = chapter_classes()["Clamp"]
    logits = torch.tensor([-30.0, -30.0, 5.0, 5.0, 30.0, 30.0], requires_grad=True)
    slope = torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])  # of a loss
    (passed,) = torch.autograd.grad(clamp.apply(logits), logits, slope)
    # descent moves against the slope: -30 rises where the slope is negative
    assert passed.tolist() == [-1.0, 0.0, -1.0, 1.0, 0.0, 1.0]


def test_eq_torch_clamp(vae):
    clamped = chapter_classes()["ClampedVAE"](
        data_dim=12, latent_dim=3, hidden=(16, 8), dropout=0.0
    ).double()
    clamped.load_state_dict(vae.state_dict())
    with torch.no_grad():  # logits on both sides of both clamps
        clamped.generative[1].logits.bias.copy_(torch.linspace(-40, 40, 12))
    z = torch.randn(50, 3, dtype=torch.float64, generator=seeded(0))
    logits = clamped.generative(z).base_dist.logits
    assert (logits < -16).any() and (logits > 16).any() and (logits.abs() < 15).any()
    epsilon = torch.finfo(torch.float32).eps
    reference = torch.distributions.ContinuousBernoulli(
        probs=torch.sigmoid(logits).clamp(epsilon, 1 - epsilon), validate_args=False
    )
    x = torch.rand(50, 12, dtype=torch.float64, generator=seeded(1))
    ours = clamped.likelihood(z).log_prob(x)
    theirs = reference.log_prob(x).sum(-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
