"""The failures of chapter 12: each is produced, diagnosed and cured, in seconds."""

import copy
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    Normal,
    kl_divergence,
)

from aevb import data, diagnostics, em, evaluation, fit, models
from aevb.distributions import diagonal_normal
from aevb.model import ElboTerms
from aevb.training import Diverged

SETTINGS = {"progress": False, "device": "cpu", "lr": 3e-3}


@pytest.fixture(scope="module")
def pixels():
    return torch.tensor(load_digits().images).flatten(1).float()[:600]


@pytest.fixture(scope="module")
def binary(pixels):
    return (pixels >= 8).float()


def fresh(kind=models.VAE, **options):
    sizes = {"data_dim": 64, "latent_dim": 4, "hidden": (30,), "dropout": 0.0}
    torch.manual_seed(0)
    return kind(**sizes | {"likelihood": "bernoulli"} | options)


def trained(model, x, estimator=None, steps=250, **options):
    settings = SETTINGS | {"steps": steps, "every": steps} | options
    return fit(model, x, estimator=estimator, **settings)


def divergence(model, x) -> float:
    return evaluation.terms(model, x).kl.mean().item()


@pytest.fixture(scope="module")
def healthy(binary):
    model = fresh()
    trained(model, binary)
    return model


def verdicts(model, x, estimator=None) -> dict[str, str]:
    found = diagnostics.check_up(model, x[:50], estimator=estimator)
    return {finding.check: finding.verdict for finding in found}


def failed(model, x, estimator=None) -> set[str]:
    return {k for k, v in verdicts(model, x, estimator).items() if v == "failed"}


def test_the_healthy_model_passes(healthy, binary):
    assert divergence(healthy, binary) > 1.5
    assert failed(healthy, binary) == set()


# --- three ways to a divergence of zero -------------------------------------------


def with_sample(model, x):
    q_z = model.posterior(x)
    log_p = model.likelihood(q_z.sample()).log_prob(x)
    return ElboTerms(log_p, kl_divergence(q_z, model.prior()))


def test_forgotten_rsample(healthy, binary):
    model = fresh()
    start = evaluation.elbo(model, binary).mean
    trained(model, binary, with_sample)
    assert divergence(model, binary) < 0.01
    assert evaluation.elbo(model, binary).mean > start + 10  # and still it trains
    assert failed(fresh(), binary, with_sample) == {"reach", "gradient"}
    assert divergence(healthy, binary) > 1.5  # with rsample


def pixel_mean(model, x):
    terms = model.elbo(x)
    return ElboTerms(terms.reconstruction / x.shape[1], terms.kl)


def kl_mean(model, x):
    terms = model.elbo(x)
    return ElboTerms(terms.reconstruction, terms.kl / x.shape[1])


def test_pixel_mean(healthy, binary):
    model = fresh()
    trained(model, binary, pixel_mean)
    assert divergence(model, binary) < 0.05
    found = diagnostics.value_check(fresh(), binary[:50], estimator=pixel_mean)
    assert found.mean > 20
    assert "reach" not in failed(fresh(), binary, pixel_mean)
    assert "value" in failed(fresh(), binary, pixel_mean)
    assert divergence(healthy, binary) > 1.5  # with a sum


def test_kl_mean(healthy, binary):
    model = fresh()
    trained(model, binary, kl_mean)
    assert divergence(model, binary) > 2 * divergence(healthy, binary)
    right, wrong = (evaluation.elbo(m, binary, 10).mean for m in (healthy, model))
    assert right > wrong + 1
    assert "value" in failed(healthy, binary, kl_mean)


def test_the_estimators_against_a_model_with_known_answers():
    model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
    x = data.factor_analysis()[1].x
    with torch.no_grad():
        exact = (model.evidence(x) - model.gap(x)).mean()
        for estimator, right in (
            (type(model).elbo, True),
            (pixel_mean, False),
            (kl_mean, False),
        ):
            draws = [estimator(model, x).elbo.mean() for _ in range(100)]
            near = abs(torch.stack(draws).mean() - exact) < 1.0
            assert bool(near) == right, estimator


class PixelByPixel(Distribution):
    def __init__(self, logits, weights):
        self.logits, self.weights = logits, weights.tril(-1)
        shapes = logits.shape[:-1], logits.shape[-1:]
        super().__init__(*shapes, validate_args=False)

    def log_prob(self, x):
        logits = self.logits + x @ self.weights.T
        return Bernoulli(logits=logits).log_prob(x).sum(-1)


class Autoregressive(models.VAE):
    def __init__(self, **options):
        super().__init__(**options)
        weights = torch.zeros(self.data_dim, self.data_dim)
        self.generative[-1].earlier = nn.Parameter(weights)

    def likelihood(self, z):
        logits = super().likelihood(z).base_dist.logits
        return PixelByPixel(logits, self.generative[-1].earlier)


def free_bits(model, x, least=0.25):
    q_z = model.posterior(x)
    log_p = model.likelihood(q_z.rsample()).log_prob(x)
    each = kl_divergence(q_z.base_dist, model.prior().base_dist)
    charged = each.mean(0).clamp(min=least).sum()
    return ElboTerms(log_p, charged.expand(len(x)))


def test_an_autoregressive_likelihood_sums_to_one():
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
    p = PixelByPixel(torch.randn(5), torch.randn(5, 5))
    assert p.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def collapsed(binary):
    model = fresh(Autoregressive)
    trained(model, binary, pixel_mean, steps=300, lr=5e-3)
    return model


def test_posterior_collapse(collapsed, binary):
    assert failed(fresh(Autoregressive), binary) == set()  # the code is in order
    assert failed(collapsed, binary) == {"code"}
    information = {}
    for name, options in {
        "none": {},  # the right objective, to no avail
        "warm-up": {"kl_warmup": 0.5},
        "free bits": {"estimator": free_bits},
    }.items():
        model = copy.deepcopy(collapsed)
        trained(model, binary, steps=300, lr=1e-2, **options)
        information[name] = diagnostics.mutual_information(model, binary)
    assert information["none"] < 0.3
    assert information["warm-up"] > 0.7
    assert information["free bits"] > 0.7


def test_a_weak_decoder_does_not_collapse(binary):
    model = fresh()
    trained(model, binary, pixel_mean, steps=300, lr=5e-3)
    assert divergence(model, binary) < 0.05
    trained(model, binary, lr=1e-2)
    assert divergence(model, binary) > 1.5


def test_an_e_step_does_not_cure_a_collapse(collapsed, binary):
    model = copy.deepcopy(collapsed)
    trained(model, binary, steps=200, update="inference")
    assert divergence(model, binary) < 0.2


# --- the number is wrong ----------------------------------------------------------


class Unchecked(models.VAE):
    def check(self, x):
        pass


def test_bernoulli_on_grey(pixels):
    grey = pixels / 16
    model = fresh(Unchecked)
    trained(model, grey)
    cells = (torch.arange(200) + 0.5) / 200
    p = model.likelihood(torch.randn(10, 4))
    assert diagnostics.total_mass(p, cells, 1 / 200).max() < 0.5001
    assert torch.allclose(
        diagnostics.total_mass(p, torch.tensor([0.0, 1.0])), torch.ones(1)
    )
    assert failed(model, grey) == set()  # nothing else sees it
    assert Bernoulli(grey).entropy().sum(-1).mean() > 5  # nats, of a perfect model
    with pytest.raises(ValueError, match="expected each to be 0 or 1"):
        trained(fresh(), grey)
    cured = fresh(likelihood="continuous_bernoulli").likelihood(torch.randn(10, 4))
    mass = diagnostics.total_mass(cured, cells, 1 / 200)
    torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-3, rtol=0)


def without_log_c(model, x):
    terms = model.elbo(x)
    return ElboTerms(terms.reconstruction, terms.kl - math.log(10))


def test_constant_missing_in_the_estimator(binary):
    torch.manual_seed(0)
    sizes = {"data_dim": 64, "latent_dim": 4, "hidden": (30,)}
    model = models.GaussianMixtureVAE(**sizes)
    for estimator, missing in ((None, 0.0), (without_log_c, math.log(10))):
        found = diagnostics.value_check(model, binary[:50], estimator=estimator)
        assert found.mean == pytest.approx(missing, abs=4 * found.standard_error)
        assert found.standard_error < 0.2


class WithoutConstant(Normal):
    def log_prob(self, x):
        return super().log_prob(x) + 0.5 * math.log(2 * math.pi)


class Sloppy(models.FactorAnalysis):
    def likelihood(self, z):
        p = super().likelihood(z).base_dist
        return Independent(WithoutConstant(p.loc, p.scale), 1)


def test_constant_missing_in_a_density():
    x = data.factor_analysis()[1].x
    grid = torch.linspace(-9.95, 9.95, 200)
    for kind, mass, above in (
        (models.FactorAnalysis, 1.0, False),
        (Sloppy, math.sqrt(2 * math.pi), True),
    ):
        torch.manual_seed(0)
        model = kind.from_parameters(data.LOADINGS, data.NOISE)
        trained(model, x, lr=1e-2, update="inference", steps=400)
        truth = model.evidence(x).mean().item()
        assert (evaluation.elbo(model, x, 10).mean > truth) == above
        weighted = evaluation.log_likelihood(model, x[:200], 50)
        truth = model.evidence(x[:200]).mean().item()
        assert (weighted.mean > truth + 0.1) == above
        found = diagnostics.total_mass(model.likelihood(torch.zeros(2)), grid, 0.1)
        torch.testing.assert_close(found, torch.full((3,), mass), atol=1e-3, rtol=0)
        assert failed(model, x) <= {"bound"}  # the estimator agrees with the densities


# --- the training breaks ----------------------------------------------------------


class OwnScales(models.VAE):
    def __init__(self, **options):
        super().__init__(**options)
        scales = nn.Parameter(torch.zeros(self.data_dim))
        self.generative[-1].log_scales = scales

    def likelihood(self, z):
        mean = super().likelihood(z).mean
        scales = self.generative[-1].log_scales.exp()
        return diagonal_normal(mean, scales.expand_as(mean))


def smallest(model):
    std = model.likelihood(model.prior().sample((10,))).stddev.amin(0)
    return std.min().item(), std.argmin().item()


def test_vanishing_scale(pixels):
    never = (pixels.std(0) == 0).nonzero().flatten().tolist()
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, x in {"points": pixels / 16, "filled": (pixels + noise) / 17}.items():
        model = fresh(OwnScales, likelihood="gaussian")
        trained(model, x, lr=3e-2, steps=500, schedule="cosine")
        found[name] = model
    std, coordinate = smallest(found["points"])
    assert coordinate in never
    assert std < 0.01
    assert smallest(found["filled"])[0] > 0.012  # the noise has 1 / 17 / √12 = 0.017
    model, bounds = found["points"], []
    with torch.no_grad():
        head = model.generative[-1]
        head.mean.weight[never], head.mean.bias[never] = 0.0, 0.0
        for std in (1e-3, 1e-6, 1e-9):
            head.log_scales[never] = math.log(std)
            bounds.append(evaluation.elbo(model, pixels / 16).mean)
    gain = len(never) * math.log(1e3)  # for every thousandth, without a limit
    assert bounds[1] - bounds[0] == pytest.approx(gain, rel=1e-3)
    assert bounds[2] - bounds[1] == pytest.approx(gain, rel=1e-3)


class ExponentialStd(models.VAE):
    def posterior(self, x):
        body, head = self.inference
        h = body(x)
        return diagonal_normal(head.mean(h), head.std(h).exp())


def test_exploding_scale(pixels):
    model = fresh(ExponentialStd, likelihood="gaussian", hidden=(30, 30))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(Diverged, match="is not finite at step"):
        trained(model, 16 * pixels, lr=0.1, steps=100)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, before[name]), name
    found = {}
    for kind in (ExponentialStd, models.VAE):
        new = fresh(kind, likelihood="gaussian", hidden=(30, 30))
        for unit in (1.0, 1 / 256):
            std = new.posterior(16 * pixels * unit).stddev
            found[kind.__name__, unit] = std.max().item()
    assert found["ExponentialStd", 1.0] > 1e10
    assert all(v < 1e4 for k, v in found.items() if k != ("ExponentialStd", 1.0))
    cured = fresh(likelihood="gaussian", hidden=(30, 30))
    trained(cured, pixels / 16, steps=100)


# --- clusters ---------------------------------------------------------------------


def cluster_use(model, x):
    with torch.no_grad():
        q_y = model.class_posterior(x)
    share = q_y.probs.mean(0)
    return torch.special.entr(share).sum().item(), q_y.entropy().mean().item()


def mixture():
    torch.manual_seed(0)
    small = {"data_dim": 2, "latent_dim": 2, "hidden": (32,)}
    return models.GaussianMixtureVAE(num_classes=3, likelihood="gaussian", **small)


def test_dead_clusters():
    train, test = data.gaussian_mixture(500)
    far, held_out = 30 * train.x, 30 * test.x
    dead = mixture()
    trained(dead, far, lr=5e-3)
    used, doubt = cluster_use(dead, held_out)
    assert math.exp(used) < 2.1 and doubt < 0.1  # sure, of too few
    centre, spread = far.mean(0), far.std(0)
    x, y = (far - centre) / spread, (held_out - centre) / spread
    used, doubt = cluster_use(mixture(), y)
    assert math.exp(used) > 2.5 and doubt > 0.5  # undecided: another failure
    warm = mixture()
    labels = em.GaussianMixture(3).fit(x.double(), seed=0).predict(x.double())
    warm.inputs = ("x", "y")
    trained(warm, (x, labels), lr=5e-3)
    warm.inputs = ("x",)
    trained(warm, x, lr=5e-3)
    used, doubt = cluster_use(warm, y)
    assert math.exp(used) > 2.5 and doubt < 0.4
    accuracies = [
        evaluation.clustering_accuracy(model.cluster(points), test.y)
        for model, points in ((warm, y), (dead, held_out))
    ]
    assert accuracies[0] > 0.9 > accuracies[1]


# --- more, in short ---------------------------------------------------------------


def wrong_sign(model, x):
    terms = model.elbo(x)
    return ElboTerms(terms.reconstruction, -terms.kl)


def exchanged(model, x):
    q_z, p_z = model.posterior(x), model.prior()
    log_p = model.likelihood(q_z.rsample()).log_prob(x)
    return ElboTerms(log_p, kl_divergence(p_z.expand(x.shape[:1]), q_z))


def log_variance(model, x):
    q_z = model.posterior(x)
    z = diagonal_normal(q_z.mean, q_z.variance).rsample()
    log_p = model.likelihood(z).log_prob(x)
    return ElboTerms(log_p, kl_divergence(q_z, model.prior()))


@pytest.mark.parametrize("estimator", [wrong_sign, exchanged, log_variance])
def test_wrong_divergences(healthy, binary, estimator):
    assert "value" in failed(healthy, binary, estimator)
    assert "value" not in failed(healthy, binary)
    if estimator is wrong_sign:
        model = fresh()
        trained(model, binary, estimator, steps=100)
        assert divergence(model, binary) > 100


def test_dropout_left_on(binary):
    model, g = fresh(dropout=0.3), torch.Generator()

    def twice():
        return [
            model.elbo(binary, generator=g.manual_seed(0)).elbo.mean().item()
            for _ in range(2)
        ]

    first, second = twice()
    assert first != second
    model.eval()
    first, second = twice()
    assert first == second


def test_one_draw_above_the_evidence():
    x = data.factor_analysis()[1].x
    model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
    trained(model, x, lr=1e-2, update="inference", steps=600)
    truth = model.evidence(x)
    with torch.no_grad():
        above = (model.elbo(x).elbo > truth).double().mean()
    assert above > 0.2
    assert evaluation.elbo(model, x, 100).mean < truth.mean()
