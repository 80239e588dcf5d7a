"""The checks pass where a model is right, and measure what is wrong where it is not."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, Poisson, kl_divergence

from aevb import data, diagnostics, em, estimators, models
from aevb.distributions import ContinuousBernoulli, rsample
from aevb.model import ElboTerms


def tiny_vae(**arguments) -> models.VAE:
    sizes = {"data_dim": 4, "latent_dim": 2, "hidden": (6,), "likelihood": "gaussian"}
    return models.VAE(**sizes | arguments)


def with_sample(model, x):
    """``sample`` in place of ``rsample``."""
    q_z = model.posterior(x)
    log_p = model.likelihood(q_z.sample()).log_prob(x)
    return ElboTerms(log_p, kl_divergence(q_z, model.prior()))


def without_constant(model, x):
    terms = model.elbo(x)
    return ElboTerms(terms.reconstruction + 1.5, terms.kl)


def every_model():
    binary = torch.randint(2, (40, 4)).float()
    labels = torch.randint(3, (40,))
    sizes = {"data_dim": 4, "latent_dim": 2, "hidden": (6,), "dropout": 0.5}
    classes = {"num_classes": 3, "likelihood": "bernoulli"}
    yield models.FactorAnalysis(), (torch.randn(40, 3),)
    for likelihood in ("gaussian", "continuous_bernoulli", "bernoulli"):
        yield models.VAE(likelihood=likelihood, **sizes), (binary,)
    yield models.VAE(encoders=2, **sizes), (torch.rand(40, 4),)
    yield models.ConditionalVAE(**classes, **sizes), (binary, labels)
    yield models.GaussianMixtureVAE(**classes, **sizes), (binary,)
    for posterior in ("filtering", "smoothing"):
        small = {"recurrent": (5,), "hidden": (6,), "posterior": posterior}
        rows = torch.randint(2, (40, 3, 4)).float()
        yield models.VariationalRNN(data_dim=4, **small), (rows,)


def test_every_model_of_the_book_passes_its_check_up():
    for model, batch in every_model():
        findings = diagnostics.check_up(model, *batch)
        failed = [finding for finding in findings if finding.verdict != "passed"]
        assert not failed, (type(model).__name__, failed)
        checks = [finding.check for finding in findings]
        assert checks == [
            "shape", "finite", "reach", "gradient", "value", "bound", "code"
        ]  # fmt: skip


def test_a_check_up_leaves_everything_as_it_was():
    model, x = tiny_vae(dropout=0.5), torch.randn(20, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    first = diagnostics.check_up(model, x)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert diagnostics.check_up(model, x) == first


def test_batches_are_taken_to_the_model():
    """The device ``meta`` holds no numbers, so each check is stopped on its way."""
    seen = []

    class Stop(Exception): ...

    def note(model, x):
        seen.append(x.device.type)
        raise Stop

    x, model = torch.randn(9, 4), tiny_vae().to("meta")
    checks = [
        getattr(diagnostics, name)
        for name in ("gradient_norms", "gradient_check", "value_check", "check_up")
    ]
    for check in checks:
        with pytest.raises(Stop):
            check(model, x, estimator=note)
    model.posterior = lambda x: note(model, x)
    with pytest.raises(Stop):
        diagnostics.mutual_information(model, x)
    classes = {"num_classes": 3, "data_dim": 4, "latent_dim": 2, "hidden": (6,)}
    model = models.ConditionalVAE(likelihood="gaussian", **classes).to("meta")
    model.prior = lambda y: note(model, y)
    with pytest.raises(Stop):
        diagnostics.calibration(model, 2, torch.arange(3))
    model.sample = lambda n, y: note(model, y)
    with pytest.raises(Stop):
        diagnostics.predictive_check(
            model, x, torch.zeros(9, dtype=torch.int64), statistics={}
        )
    assert seen == ["meta"] * 7


def test_checks_seed_no_device_but_the_models(monkeypatch):
    """What is put back afterwards is the state of that one alone."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model, x = tiny_vae(), torch.randn(20, 4)
    diagnostics.check_up(model, x)
    diagnostics.mutual_information(model, x)
    diagnostics.calibration(model, 3)
    diagnostics.predictive_check(model, x, statistics={"largest": torch.max})
    assert seeded == []


def test_a_check_up_stops_at_a_wrong_shape():
    def batch_mean(model, x):
        terms = model.elbo(x)
        return ElboTerms(terms.reconstruction.mean(), terms.kl)

    found = diagnostics.check_up(tiny_vae(), torch.randn(9, 4), estimator=batch_mean)
    assert found == [("shape", "() and (9,)", "failed")]


# --- gradients --------------------------------------------------------------------


def test_gradient_norms_are_those_of_autograd():
    model, x = tiny_vae(dropout=0.0), torch.randn(7, 4)
    norms = diagnostics.gradient_norms(model, x, seed=3)
    torch.manual_seed(3)
    model.elbo(x).kl.mean().backward()
    for name, p in model.named_parameters():
        wanted = 0.0 if p.grad is None else p.grad.norm().item()
        assert norms[name].kl == pytest.approx(wanted, rel=1e-5)


def test_gradient_norms_of_a_plain_sample_are_zero_in_phi_alone():
    model, x = tiny_vae(), torch.randn(7, 4)
    norms = diagnostics.gradient_norms(model, x, estimator=with_sample)
    for name, norm in norms.items():
        assert (norm.reconstruction == 0) == name.startswith("inference."), name


def test_gradient_norms_leave_out_what_does_not_move():
    model = models.FactorAnalysis(posterior="fixed")
    names = list(diagnostics.gradient_norms(model, torch.randn(5, 3)))
    assert names == ["generative.loadings", "generative.noise", "inference.weights"]


def test_the_gradient_check_agrees_to_many_digits_where_all_is_right():
    for model, batch in every_model():
        for name, slopes in diagnostics.gradient_check(model, *batch).items():
            assert slopes.automatic == pytest.approx(slopes.numerical, abs=1e-6), name


def test_the_gradient_check_finds_a_plain_sample_in_phi_alone():
    slopes = diagnostics.gradient_check(
        tiny_vae(), torch.randn(7, 4), estimator=with_sample
    )
    for name, slope in slopes.items():
        off = abs(slope.automatic - slope.numerical) > 1e-4
        assert off == name.startswith("inference."), name


def test_the_gradient_check_finds_a_parameter_that_autograd_misses():
    def detached(model, x):
        z = rsample(model.posterior(x).expand(x.shape[:1]))
        log_p = model.likelihood(z.detach()).log_prob(x).detach()
        return ElboTerms(log_p, kl_divergence(model.posterior(x), model.prior()))

    slopes = diagnostics.gradient_check(
        tiny_vae(), torch.randn(7, 4), estimator=detached
    )
    assert slopes["generative.1.std"].automatic == 0
    assert abs(slopes["generative.1.std"].numerical) > 1e-3


# --- values -----------------------------------------------------------------------


def test_the_value_check_passes_every_unbiased_estimator():
    model, x = tiny_vae(), torch.randn(100, 4)
    for estimator in (
        estimators.analytic_kl,
        estimators.fully_sampled,
        estimators.analytic_entropy,
        estimators.score_function,
    ):
        found = diagnostics.value_check(model, x, estimator=estimator)
        assert abs(found.mean) <= 4 * found.standard_error + 1e-5, estimator.__name__
        assert found.values.shape == (100,)


def test_the_value_check_measures_a_constant():
    model, x = tiny_vae(), torch.randn(100, 4)
    found = diagnostics.value_check(model, x, estimator=without_constant)
    assert found.mean == pytest.approx(1.5, abs=4 * found.standard_error)
    assert found.standard_error < 0.1


def test_the_bound_is_checked_against_importance_weights():
    model, x = tiny_vae(), torch.randn(100, 4)

    def lower(model, x):
        terms = model.elbo(x)
        return ElboTerms(terms.reconstruction - 1.5, terms.kl)

    def too_high(model, x):
        terms = model.elbo(x)
        return ElboTerms(terms.reconstruction + 50, terms.kl)

    def verdicts(estimator):
        found = diagnostics.check_up(model, x, estimator=estimator)
        return {finding.check: finding.verdict for finding in found}

    low, high = verdicts(lower), verdicts(too_high)
    assert (low["value"], low["bound"]) == ("failed", "passed")
    assert (high["value"], high["bound"]) == ("failed", "failed")


def test_value_check_refuses_no_samples():
    with pytest.raises(
        ValueError, match="num_samples is 0; expected a whole number, at least 1"
    ):
        diagnostics.value_check(tiny_vae(), torch.randn(2, 4), num_samples=0)


def test_a_distance_from_replicates_that_do_not_spread():
    def distance(observed, replicated):
        replicated = torch.full((7,), replicated, dtype=torch.float64)
        return diagnostics.PredictiveCheck(observed, replicated).distance

    assert distance(0.7, 0.7) == 0.0  # though their mean is rounded
    assert distance(2.0, 1.0) == math.inf
    assert distance(0.0, 1.0) == -math.inf


def test_replicates_are_named():
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"^replicates is {number}; expected"):
            diagnostics.predictive_check(
                models.FactorAnalysis(),
                torch.randn(5, 3),
                statistics={"largest": torch.max},
                replicates=number,
            )


def test_a_check_up_needs_two_examples():
    with pytest.raises(ValueError, match="number of examples is 1; expected at least"):
        diagnostics.check_up(tiny_vae(), torch.randn(1, 4))
    findings = diagnostics.check_up(tiny_vae(), torch.randn(2, 4))
    assert {finding.verdict for finding in findings} == {"passed"}


def test_total_mass_has_the_shape_of_the_distribution():
    logits = torch.randn(5, 3)
    p = Independent(Bernoulli(logits=logits), 1)
    mass = diagnostics.total_mass(p, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mass, torch.ones(5, 3))
    rate = Poisson(torch.tensor([1.0, 20.0]))
    assert diagnostics.total_mass(rate, torch.arange(200.0)).shape == (2,)


def test_total_mass_at_whole_numbers():
    """A mass below 1 is not rounded to a whole number as the values are."""
    rate = Poisson(torch.tensor([1.0, 20.0]))
    mass = diagnostics.total_mass(rate, torch.arange(20))
    assert torch.equal(mass, diagnostics.total_mass(rate, torch.arange(20.0)))
    assert mass[0] == pytest.approx(1.0) and 0.1 < mass[1] < 0.9


def test_total_mass_of_a_density_on_the_unit_interval():
    grid = (torch.arange(10000) + 0.5) / 10000
    p = ContinuousBernoulli(torch.tensor([-50.0, 0.0, 3.0]))
    mass = diagnostics.total_mass(p, grid, step=1e-4)
    torch.testing.assert_close(mass, torch.ones(3), atol=1e-5, rtol=0)


# --- what the code carries --------------------------------------------------------


def test_mutual_information_of_an_exact_posterior():
    """½ log det(I + WᵀΦ⁻¹W), for data from the model itself."""
    x = data.factor_analysis(n=2000)[0].x
    model = models.FactorAnalysis.from_parameters(data.LOADINGS, data.NOISE)
    w = torch.tensor(data.LOADINGS)
    exact = model.exact_posterior(torch.eye(3))
    with torch.no_grad():
        model.inference.weights.copy_(exact.mean.T)
        factor = exact.scale_tril[0]
        model.inference.below.copy_(factor.tril(-1))
        model.inference.diagonal.copy_(torch.expm1(factor.diagonal() - 1e-6).log())
    phi = torch.tensor(data.NOISE).square()
    wanted = 0.5 * torch.logdet(torch.eye(2) + w.T @ (w / phi[:, None])).item()
    found = diagnostics.mutual_information(model, x)
    assert found == pytest.approx(wanted, abs=0.1)


def test_mutual_information_is_at_most_the_logarithm_of_the_number():
    model = models.FactorAnalysis.from_parameters(
        100 * torch.eye(3), torch.full((3,), 0.01)
    )
    with torch.no_grad():
        model.inference.weights.copy_(100 * torch.eye(3))
        model.inference.diagonal.fill_(-7.0)
    x = torch.randn(250, 3)
    found = diagnostics.mutual_information(model, x)
    assert found == pytest.approx(math.log(250), abs=1e-4)


def test_mutual_information_of_clusters():
    train, _ = data.gaussian_mixture(300, spread=100.0)
    mixture = em.GaussianMixture(3).fit(train.x.double(), seed=0)
    proportions = mixture.predict(train.x.double()).bincount() / 300
    entropy = -(proportions * proportions.log()).sum().item()

    class Clusters(models.FactorAnalysis):
        """z is the cluster's mean plus noise of its own."""

        def posterior(self, x):
            nearest = torch.cdist(x, centres).argmin(1)
            return Independent(Normal(centres[nearest], 1.0), 1)

    centres = mixture.means.float()
    found = diagnostics.mutual_information(Clusters(data_dim=2), train.x)
    assert found == pytest.approx(entropy, abs=1e-3)
