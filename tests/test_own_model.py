"""The model of chapter 13 and its checks, executed out of the notebook."""

import math
from functools import partial

import own_model
import pytest
import torch
from own_model import lines
from torch.distributions import Independent

from aevb import diagnostics, estimators, evaluation, fit
from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel
from aevb.networks import GaussianHead, positive, unconstrained

MODEL = "Drops", "Ink", "Dots", "BetaBinomial", "Strokes"
KINDS = "Ink", "Dots", "Strokes"


@pytest.fixture(scope="module")
def own():
    return own_model.namespace()


def make(own, kind="Ink", strength=1.5):
    """Two bars on six pixels, independent strengths: a truth that is known."""
    bars = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    torch.manual_seed(0)
    model = getattr(own, kind)(16 * bars, latent_dim=2, hidden=())
    with torch.no_grad():
        model.generative.raw.copy_(unconstrained(0.5 * bars + 0.01))
        model.generative.network[1].weight.copy_(strength * torch.eye(2))
    return model.eval()


def draw(model, n, seed=0):
    return model.sample(n, generator=torch.Generator().manual_seed(seed))


def test_the_model_and_its_revisions_are_short():
    assert lines("Drops", "Ink") <= 40
    assert lines(*MODEL) <= 60
    assert lines("Switches") <= 20


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_supports(own, kind):
    model = make(own, kind)
    x = draw(model, 50)
    assert x.shape == (50, 6) and torch.equal(x, x.round()) and (x >= 0).all()
    p = model.likelihood(torch.randn(3, 5, 2))
    assert p.batch_shape == (3, 5) and p.event_shape == (6,)
    assert p.mean.shape == (3, 5, 6)
    if kind != "Ink":
        assert (x <= 16).all()
    with pytest.raises(ValueError, match="no counts"):
        model.check(x + 0.5)
    with pytest.raises(ValueError, match="shape"):
        model.check(x[:, :5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_likelihood_sums_to_one_and_draws_what_it_scores(own, kind):
    model, top = make(own, kind), 300 if kind == "Ink" else 16
    z = torch.randn(5, 2)
    p, values = model.likelihood(z), torch.arange(top + 1.0)
    mass = diagnostics.total_mass(p, values)
    torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-4, rtol=0)
    base = p.base_dist
    prob = base.log_prob(values.view(-1, 1, 1).expand(-1, 5, 6)).exp()
    mean = (values.view(-1, 1, 1) * prob).sum(0)
    torch.testing.assert_close(mean, p.mean, rtol=1e-3, atol=1e-3)
    variance = (values.view(-1, 1, 1).square() * prob).sum(0) - mean.square()
    draws = p.sample((4000,))
    error = (variance / 4000).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.5 * error + 1e-3).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.2, atol=0.1)


def test_extreme_rates_stay_finite(own):
    for kind in KINDS:
        model = make(own, kind)
        z = torch.tensor([[-60.0, -60.0], [60.0, 60.0]], requires_grad=True)
        x = torch.tensor([[0.0, 1, 16, 0, 8, 16]]).expand(2, -1)
        log_p = model.likelihood(z).log_prob(x)
        (slope,) = torch.autograd.grad(log_p.sum(), z)
        assert log_p.isfinite().all() and slope.isfinite().all(), kind
        assert model.likelihood(z).sample((50,)).isfinite().all(), kind


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(own, kind):
    model = make(own, kind)
    slopes = diagnostics.gradient_check(model, draw(model, 20)).values()
    scale = max(abs(s.numerical) for s in slopes)
    assert scale > 0
    for s in slopes:
        assert abs(s.automatic - s.numerical) < 1e-5 * scale
    assert all(n.reconstruction > 0 for k, n in norms(model).items() if "inf" in k)


def norms(model):
    return diagnostics.gradient_norms(model, draw(model, 20))


def test_two_estimators_of_one_gradient(own):
    model, count = make(own), 1500
    x = draw(model, 4)
    options = {"update": "inference"}
    ours = estimators.gradient_samples(
        model, estimators.analytic_kl, x, count, **options
    )
    options |= {"num_samples": 4, "baseline": "leave-one-out"}
    other = estimators.gradient_samples(
        model, estimators.score_function, x, count, **options
    )
    error = ((ours.var(0) + other.var(0)) / count).sqrt()
    moving = error > 1e-9
    off = ((ours.mean(0) - other.mean(0)) / error)[moving]
    assert moving.sum() > 20
    assert 0.5 < off.square().mean().sqrt() < 1.6 and off.abs().max() < 6


@pytest.fixture(scope="module")
def recovered(own):
    """The truth with a fitted posterior, a model fitted afresh, unseen data."""
    truth = make(own)
    train, unseen = draw(truth, 600), draw(truth, 400, seed=1)
    settings = {"lr": 1e-2, "schedule": "cosine", "progress": False, "device": "cpu"}
    fit(truth, train, update="inference", epochs=40, **settings)
    torch.manual_seed(1)
    found = own.Ink(train[:2], latent_dim=2, hidden=())
    fit(found, train, epochs=80, **settings)
    return truth, found, unseen


def test_parameters_come_back_from_simulated_data(recovered):
    truth, found, unseen = recovered
    first, second = (
        evaluation.log_likelihood(model, unseen, num_samples=200)
        for model in (truth, found)
    )
    lost = (first.values - second.values).mean()
    assert -0.05 < lost < 0.25
    true, parts = (positive(m.generative.raw.detach()) for m in (truth, found))
    true, parts = (p / p.norm(dim=1, keepdim=True) for p in (true, parts))
    likeness = true @ parts.T
    assert sorted(likeness.argmax(1).tolist()) == [0, 1]
    assert (likeness.amax(1) > 0.95).all()


def test_the_bound_lies_below_the_weighted_estimate(recovered):
    for model in recovered[:2]:
        x = recovered[2]
        bound = evaluation.elbo(model, x, num_samples=200).values
        weighted = evaluation.log_likelihood(model, x, num_samples=200).values
        gap = weighted - bound
        assert gap.mean() > -3 * gap.std() / math.sqrt(len(gap))
        assert gap.mean() < 2
        grid = evaluation.grid_posterior(model, x[:50]).log_evidence
        assert (weighted[:50] - grid).mean().abs() < 0.05


def test_all_checks_pass_on_the_right_code(recovered):
    for model in recovered[:2]:
        findings = diagnostics.check_up(model, recovered[2][:100])
        assert {f.verdict for f in findings} == {"passed"}, findings


def test_calibration_sees_draws_that_the_density_does_not_know(own, recovered):
    truth = recovered[0]

    class Buggy(own.Ink):
        def likelihood(self, z):
            rate = 16 * self.generative(z)
            p = Off(rate, validate_args=False)
            return Independent(p, 1)

    class Off(torch.distributions.Poisson):
        def log_prob(self, k):
            rate = self.rate * 15 / 16
            return torch.distributions.Poisson(rate, validate_args=False).log_prob(k)

    buggy = Buggy(torch.ones(2, 6), latent_dim=2, hidden=())
    buggy.load_state_dict(truth.state_dict())
    findings = diagnostics.check_up(buggy, recovered[2][:100])
    assert {f.verdict for f in findings} == {"passed"}
    off = []
    for model in (truth, buggy):
        u = diagnostics.calibration(model, 2000, draws=300, weighted=True)
        off.append(abs(u.mean().item() - 0.5) * math.sqrt(12 * u.numel()))
    assert off[0] < 3.5 < 6 < off[1]


def test_the_predictive_check_tells_poisson_from_beta_binomial(own):
    right, wrong = make(own, "Strokes"), make(own, "Ink")
    right.generative.raw_c.data.fill_(1.0)
    with torch.no_grad():  # the Poisson model has the mean of the right one
        z = torch.randn(4000, 2)
        ratio = right.likelihood(z).mean.mean() / wrong.likelihood(z).mean.mean()
        parts = ratio * positive(wrong.generative.raw)
        wrong.generative.raw.copy_(unconstrained(parts))
    x = draw(right, 300)
    found = [
        diagnostics.predictive_check(model, x, statistics=STATISTICS, replicates=100)
        for model in (right, wrong)
    ]
    for check in found[0].values():
        assert 0.005 < check.p_value < 0.995 and abs(check.distance) < 3.5
    for name in ("zeros", "full", "above"):
        assert found[1][name].p_value in (0.0, 1.0)
        assert abs(found[1][name].distance) > 5


STATISTICS = {
    "zeros": lambda x: (x == 0).float().mean(),
    "full": lambda x: (x == 16).float().mean(),
    "above": lambda x: (x > 16).float().mean(),
}


def test_switches_are_trained_without_a_reparameterisation(own):
    torch.manual_seed(0)
    truth = make(own, "Dots", strength=3.0)
    x = draw(truth, 300)
    model = own.Switches(x[:4], latent_dim=3)
    before = evaluation.log_likelihood(model, x, num_samples=50).mean
    fit(
        model, x, epochs=10, lr=1e-2, estimator=own.leave_one_out, progress=False,
        device="cpu",
    )  # fmt: skip
    after = evaluation.log_likelihood(model, x, num_samples=50).mean
    assert after > before + 2
    z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # the exact sum
    with torch.no_grad():
        log_joint = model.prior().log_prob(z)[:, None]
        log_joint = log_joint + model.likelihood(z[:, None]).log_prob(x)
    assert abs(log_joint.logsumexp(0).mean() - after) < 0.1


# --- calibration and predictive_check themselves --------------------------------------


def test_calibration_of_an_exact_and_of_a_narrow_posterior():
    from aevb import models

    model = models.FactorAnalysis.from_parameters(
        torch.tensor([[1.0], [0.5]]), torch.tensor([0.5, 0.7])
    )
    exact = model.exact_posterior

    class Given(type(model)):
        factor = 1.0

        def posterior(self, x):
            q = exact(x)
            return torch.distributions.MultivariateNormal(
                q.mean, self.factor**2 * q.covariance_matrix
            )

    model.__class__ = Given
    spread = {}
    for factor in (1.0, 0.8, 2.0):
        model.factor = factor
        u = diagnostics.calibration(model, 4000, draws=200)
        spread[factor] = u.var().item() * 12
        assert torch.equal(u, diagnostics.calibration(model, 4000, draws=200))
        weighted = diagnostics.calibration(model, 4000, draws=400, weighted=True)
        assert abs(weighted.var().item() * 12 - 1) < 0.1
    assert abs(spread[1.0] - 1) < 0.06
    assert spread[0.8] > 1.12 and spread[2.0] < 0.7


def test_calibration_of_a_conditional_model():
    from aevb import models

    model = models.ConditionalVAE(
        num_classes=3, data_dim=4, latent_dim=2, hidden=(5,), likelihood="bernoulli"
    )
    y = torch.arange(3)
    state = torch.get_rng_state()
    assert diagnostics.calibration(model, 7, y, draws=20).shape == (7, 3, 2)
    found = diagnostics.predictive_check(
        model, torch.ones(3, 4), y, statistics={"ink": torch.mean}, replicates=10
    )
    assert found["ink"].replicated.shape == (10,)
    assert found["ink"].p_value < 0.5
    assert torch.equal(torch.get_rng_state(), state) and model.training


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 1, "draws": 0}])
def test_calibration_says_what_is_expected(own, arguments):
    with pytest.raises(ValueError, match="is 0; expected a whole number, at least 1"):
        diagnostics.calibration(make(own), **arguments)


def test_predictive_check_says_what_is_expected(own):
    with pytest.raises(ValueError, match="replicates"):
        diagnostics.predictive_check(
            make(own), torch.ones(2, 6), statistics={}, replicates=1
        )


def test_annealing_says_what_to_do_about_a_bounded_latent_variable(own):
    class Positive(own.Ink):
        def prior(self):
            gamma = torch.distributions.Gamma(torch.ones(2), torch.ones(2))
            return Independent(gamma, 1)

    model = Positive(torch.ones(2, 6), latent_dim=2, hidden=())
    with pytest.raises(ValueError, match=r"bounded, .* whole real line. Let z be real"):
        evaluation.annealed_importance_sampling(model, torch.ones(3, 6), steps=2)


class Plain:
    """Poisson counts with nothing but what ``LatentVariableModel`` asks for."""

    def __init__(self, rate):
        self.mean = rate

    def log_prob(self, x):
        return (x * self.mean.log() - self.mean - torch.lgamma(x + 1)).sum(-1)

    def sample(self, shape=()):
        return torch.poisson(self.mean.expand(*shape, *self.mean.shape))


class Counts(LatentVariableModel):
    def __init__(self):
        super().__init__()
        self.generative, self.inference = torch.nn.Linear(2, 5), GaussianHead(5, 2)

    def prior(self):
        return diagonal_normal(torch.zeros(2), torch.ones(2))

    def likelihood(self, z):
        return Plain(self.generative(z).exp())

    def posterior(self, x):
        return self.inference(x)


def test_a_distribution_of_ones_own_needs_three_methods():
    torch.manual_seed(0)
    model, x = Counts(), torch.poisson(torch.ones(50, 5))
    fit(model, x, epochs=2, device="cpu", progress=False)
    assert evaluation.log_likelihood(model, x, num_samples=20).values.isfinite().all()
    assert model.sample(3).shape == model.sample(3, mean=True).shape == (3, 5)
    torch.manual_seed(0)
    other = Counts()
    other.likelihood = lambda z: Independent(
        torch.distributions.Poisson(other.generative(z).exp()), 1
    )
    torch.manual_seed(0)
    fit(other, x, epochs=2, device="cpu", progress=False)
    found, expected = (evaluation.elbo(m, x).mean for m in (model, other))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_q_of_ones_own_is_trained_by_its_score():
    class Own:
        def __init__(self, q):
            self.log_prob, self.sample, self.mean = q.log_prob, q.sample, q.mean

    class Scored(Counts):
        def posterior(self, x):
            return Own(self.inference(x))

    model, x = Scored(), torch.poisson(torch.ones(50, 5))
    untrained = model.inference.mean.weight.detach().clone()
    score = partial(estimators.score_function, num_samples=2)
    fit(model, x, epochs=2, device="cpu", progress=False, estimator=score)
    assert not torch.equal(model.inference.mean.weight, untrained)
    with pytest.raises(ValueError, match="is a Own, whose draws carry no gradient"):
        estimators.importance_weighted(model, x)
