"""Tests of aevb/estimators.py: several estimators of one quantity."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    Normal,
    TransformedDistribution,
    kl_divergence,
)

from aevb import data, fit, models
from aevb.distributions import rsample
from aevb.estimators import (
    analytic_entropy,
    analytic_kl,
    categorical_kl,
    fully_sampled,
    gradient_samples,
    gumbel_softmax,
    importance_resampled,
    importance_weighted,
    labelled,
    marginalised,
    score_function,
    signal_to_noise,
    systematic_resampling,
)
from aevb.model import ElboTerms
from aevb.networks import unconstrained

EACH = pytest.mark.parametrize(
    "estimator",
    [analytic_kl, fully_sampled, analytic_entropy, score_function, importance_weighted],
)


@pytest.fixture
def small():
    """A VAE and a batch: 3 examples of 4 pixels, 2 latent coordinates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.VAE(data_dim=4, latent_dim=2, hidden=(8,), dropout=0.0)
        return model.double(), torch.rand(3, 4, dtype=torch.float64)


@EACH
@pytest.mark.parametrize("num_samples", [1, 5])
def test_terms_are_one_number_an_example(small, estimator, num_samples):
    model, x = small
    terms = estimator(model, x, num_samples=num_samples)
    assert terms.reconstruction.shape == terms.kl.shape == terms.elbo.shape == (3,)
    terms.elbo.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@EACH
def test_generator_decides(small, estimator):
    model, x = small
    before = torch.get_rng_state()
    one, two, other = (
        estimator(model, x, generator=torch.Generator().manual_seed(s)).elbo
        for s in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_estimators_share_their_draws_and_reconstruction(small):
    model, x = small
    one, two = (
        estimator(model, x, num_samples=3, generator=torch.Generator().manual_seed(0))
        for estimator in (analytic_kl, fully_sampled)
    )
    assert torch.equal(one.reconstruction, two.reconstruction)
    assert not torch.equal(one.kl, two.kl)


def test_analytic_kl_agrees_with_the_sampled_one_in_expectation(small):
    model, x = small
    n = 20000
    with torch.no_grad():
        exact = analytic_kl(model, x).kl
        many = x.repeat(n, 1)
        g = torch.Generator().manual_seed(1)
        sampled = fully_sampled(model, many, generator=g).kl.reshape(n, 3)
    error = sampled.std(0) / n**0.5
    assert ((sampled.mean(0) - exact).abs() < 4 * error).all()
    assert (exact > 0).all() and (sampled < 0).any()  # an estimate may be negative


def test_gradients_agree_in_expectation(small):
    """One gradient a draw, for every parameter of a layer of each half."""
    model, x = small
    names = [
        "inference.1.mean.weight",
        "inference.1.std.bias",
        "generative.1.logits.bias",
    ]
    parameters = dict(model.named_parameters())
    n, sums = 400, {}
    for estimator in (analytic_kl, fully_sampled):
        g = torch.Generator().manual_seed(2)
        gradients = []
        for _ in range(n):
            terms = estimator(model, x, num_samples=2, generator=g)
            parts = torch.autograd.grad(
                terms.elbo.sum(), [parameters[name] for name in names]
            )
            gradients.append(torch.cat([part.flatten() for part in parts]))
        gradients = torch.stack(gradients)
        sums[estimator] = gradients.mean(0), gradients.var(0) / n
    (one, var_one), (two, var_two) = sums.values()
    error = (var_one + var_two).sqrt()
    assert ((one - two).abs() <= 4 * error + 1e-12).all()
    assert (one.abs() > 4 * var_one.sqrt()).sum() > 5  # and they are not both zero


def test_gradient_is_the_derivative_of_the_estimate(small):
    """With the noise fixed, the estimate is a smooth function of the parameters."""
    model, x = small
    bias = model.inference[1].std.bias

    def estimate(value, estimator):
        saved = bias.data
        bias.data = value.detach()
        g = torch.Generator().manual_seed(3)
        result = estimator(model, x, num_samples=4, generator=g).elbo.sum()
        (gradient,) = torch.autograd.grad(result, bias)
        bias.data = saved
        return result.item(), gradient

    for estimator in (analytic_kl, fully_sampled):
        _, gradient = estimate(bias, estimator)
        for i, step in enumerate(1e-6 * torch.eye(2, dtype=torch.float64)):
            up, down = (estimate(bias + s * step, estimator)[0] for s in (1, -1))
            assert (up - down) / 2e-6 == pytest.approx(gradient[i].item(), rel=1e-5)


def test_more_samples_lower_the_variance_and_keep_the_mean(small):
    model, x = small
    n = 4000
    with torch.no_grad():
        few, many = (
            analytic_kl(
                model,
                x.repeat(n, 1),
                num_samples=count,
                generator=torch.Generator().manual_seed(4),
            ).reconstruction.reshape(n, 3)
            for count in (1, 10)
        )
    error = ((few.var(0) + many.var(0)) / n).sqrt()
    assert ((few.mean(0) - many.mean(0)).abs() < 4 * error).all()
    ratio = few.var(0) / many.var(0)
    assert ((ratio > 8) & (ratio < 12.5)).all()


@EACH
def test_number_of_samples_is_checked(small, estimator):
    model, x = small
    with pytest.raises(
        ValueError, match="num_samples is 0; expected a whole number, at least 1"
    ):
        estimator(model, x, num_samples=0)


def test_a_posterior_without_closed_form_divergence(small):
    """The fully sampled estimator needs densities only."""
    model, x = small
    normal = model.posterior
    model.posterior = lambda x: Independent(
        Laplace(normal(x).mean, normal(x).stddev), 1
    )
    model.prior = lambda: Independent(
        Laplace(torch.zeros(2).double(), torch.ones(2).double()), 1
    )
    assert fully_sampled(model, x).elbo.isfinite().all()
    model.prior = models.FactorAnalysis().double().prior
    with pytest.raises(NotImplementedError):
        analytic_kl(model, x)


def test_factor_analysis_estimators_agree():
    model = models.FactorAnalysis()
    x = data.factor_analysis(n=4)[0].x.repeat(5000, 1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(0)
        exact, sampled = (
            estimator(model, x, generator=g).kl.reshape(5000, 4).double()
            for estimator in (analytic_kl, fully_sampled)
        )
    error = sampled.std(0) / 5000**0.5
    assert ((exact[0] - sampled.mean(0)).abs() < 4 * error).all()


# --- the exact gradient -----------------------------------------------------------


def exact_gradient(model, x):
    """Of the mean ELBO, evidence minus gap, which is closed-form: (P,)."""
    elbo = (model.evidence(x) - model.gap(x)).mean()
    parts = torch.autograd.grad(elbo, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


@pytest.fixture(scope="module")
def analyser():
    """A factor analyser whose gradients are large, compared with their noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1634)
        model = models.FactorAnalysis(data_dim=2, latent_dim=2).double()
        with torch.no_grad():
            model.inference.below.copy_(torch.randn(2, 2))
            model.generative.noise.copy_(torch.randn(2))
            model.inference.diagonal.copy_(torch.randn(2) - 1)
        x = torch.randn(2, 2).double()
    return model, x, exact_gradient(model, x)


@pytest.mark.parametrize(
    ("estimator", "draws", "options"),
    [
        (analytic_kl, 50_000, {"num_samples": 8}),
        (fully_sampled, 50_000, {"num_samples": 8}),
        (analytic_entropy, 50_000, {"num_samples": 8}),
        (score_function, 100_000, {"num_samples": 40}),
        (score_function, 70_000, {"num_samples": 40, "baseline": "leave-one-out"}),
    ],
)
def test_gradient_is_the_exact_one_in_expectation(analyser, estimator, draws, options):
    """Within 4 standard errors, and so precisely that 2 % off would be seen.

    A component whose mean were 2 % off would lie at least 6 standard errors from the
    exact one, so that the chance to miss it at a limit of 4 is below 3 %.
    """
    model, x, exact = analyser
    chunk = {"chunk_size": 10_000, "seed": 0} | options
    g = gradient_samples(model, estimator, x, draws, **chunk)
    moving = exact != 0
    assert moving.sum() == len(exact) - 3  # the entries on and above the diagonal
    assert (g[:, ~moving] == 0).all()
    g, exact = g[:, moving], exact[moving]
    error = g.std(0) / draws**0.5
    assert ((g.mean(0) - exact).abs() < 4 * error).all()
    assert (0.02 * exact.abs() > 6 * error).all()


def test_values_of_the_four_agree_in_expectation(analyser):
    model, x, _ = analyser
    exact = (model.evidence(x) - model.gap(x)).detach()
    for estimator in (analytic_kl, fully_sampled, analytic_entropy, score_function):
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            values = estimator(model, x.repeat(20_000, 1), generator=g).elbo
        values = values.view(-1, 2)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - exact).abs() < 4 * error).all()


# --- the score function ------------------------------------------------------------


class Coins(models.VAE):
    """A model with a discrete z: three coins for each example."""

    def __init__(self):
        super().__init__(data_dim=4, latent_dim=3, hidden=(5,), dropout=0.0)

    def prior(self):
        return Independent(Bernoulli(torch.full_like(self.zero, 0.3)), 1)

    def posterior(self, x):
        return Independent(Bernoulli(logits=self.inference(x).mean), 1)


def test_discrete_latent_variable():
    """Against the sum over all eight values of z."""
    torch.manual_seed(0)
    model = Coins().double()
    x = torch.rand(2, 4).double()
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).double()[:, None]
    log_q = model.posterior(x).log_prob(every)  # (8, B)
    log_p = model.likelihood(every).log_prob(x) + model.prior().log_prob(every)
    elbo = (log_q.exp() * (log_p - log_q)).sum(0).mean()
    bias = model.inference[1].mean.bias
    (exact,) = torch.autograd.grad(elbo, bias)
    parameters = list(model.inference[1].mean.parameters())
    for options in ({}, {"baseline": "leave-one-out"}):
        torch.manual_seed(1)
        many = x.repeat(20_000, 1)
        terms = score_function(model, many, num_samples=4, **options)
        assert terms.elbo.mean().item() == pytest.approx(elbo.item(), abs=0.02)
        (got,) = torch.autograd.grad(terms.elbo.mean(), bias, retain_graph=True)
        torch.testing.assert_close(got, exact, rtol=0.05, atol=5e-3)
        assert all(p.requires_grad for p in parameters)
    (none,) = torch.autograd.grad(  # plain draws of coins carry no gradient
        fully_sampled(model, x).reconstruction.sum(), bias, allow_unused=True
    )
    assert none is None


def test_leave_one_out_is_quieter(analyser):
    model, x, _ = analyser
    plain, better = (
        gradient_samples(
            model, score_function, x, 4000, num_samples=8, baseline=baseline
        ).var(0)
        for baseline in ("none", "leave-one-out")
    )
    moving = plain > 0
    assert (better[moving].sum() / plain[moving].sum()) < 0.8


def test_score_function_checks_its_arguments(small):
    model, x = small
    with pytest.raises(ValueError, match="baseline is 'mean'; expected 'none' or"):
        score_function(model, x, baseline="mean")
    with pytest.raises(ValueError, match="expected num_samples >= 2"):
        score_function(model, x, baseline="leave-one-out")


# --- samples of a gradient -----------------------------------------------------------


def without_noise(model, x):
    q = model.posterior(x)
    return ElboTerms(model.likelihood(q.mean[None]).log_prob(x)[0], q.mean.sum(1))


@pytest.mark.parametrize("update", ["both", "inference", "generative"])
def test_gradient_samples_are_what_backward_gives(small, update):
    """In the order of the parameters, for an estimator without noise."""
    model, x = small
    half = model if update == "both" else getattr(model, update)
    moving = list(half.parameters())
    loss = without_noise(model, x).elbo.mean()
    parts = torch.autograd.grad(loss, moving, allow_unused=True)
    wanted = torch.cat(
        [
            (torch.zeros_like(p) if part is None else part).flatten()
            for p, part in zip(moving, parts, strict=True)
        ]
    )
    got = gradient_samples(model, without_noise, x, 3, update=update)
    torch.testing.assert_close(got, wanted.expand(3, -1))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_gradient_samples_agree_with_a_loop(small):
    """In mean and variance, for one number of each half."""
    model, x = small
    n = 1000
    many = gradient_samples(model, analytic_kl, x, n)
    loop = []
    torch.manual_seed(7)
    for _ in range(n):
        loss = analytic_kl(model, x).elbo.mean()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        loop.append(torch.cat([part.flatten() for part in parts]))
    loop = torch.stack(loop)
    error = ((many.var(0) + loop.var(0)) / n).sqrt()
    assert ((many.mean(0) - loop.mean(0)).abs() <= 4.5 * error + 1e-12).all()
    assert many.var(0).sum() / loop.var(0).sum() == pytest.approx(1, abs=0.15)


def test_gradient_samples_seed_and_chunks(small):
    model, x = small
    before = torch.get_rng_state()
    one, two, other = (
        gradient_samples(model, fully_sampled, x, 6, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 6
    chunks = gradient_samples(model, fully_sampled, x, 6, chunk_size=2)
    assert chunks.shape == one.shape and len(chunks.unique(dim=0)) == 6


def test_gradient_samples_leave_out_what_stands_still():
    model = models.FactorAnalysis(posterior="fixed")
    got = gradient_samples(model, analytic_kl, torch.randn(4, 3), 2)
    assert got.shape == (2, 6 + 3 + 6)


def test_gradient_samples_checks_its_arguments(small):
    model, x = small
    with pytest.raises(
        ValueError, match="draws is 0; expected a whole number, at least 1"
    ):
        gradient_samples(model, analytic_kl, x, 0)
    with pytest.raises(ValueError, match="update is 'theta'; expected one of"):
        gradient_samples(model, analytic_kl, x, 1, update="theta")


# --- a latent class beside z ---

CLASS_ESTIMATORS = {
    "marginalised": marginalised,
    "relaxed, sampled": partial(gumbel_softmax, kl="sampled"),
    "relaxed, analytic": gumbel_softmax,
    "straight-through": partial(gumbel_softmax, straight_through=True),
    "straight-through, sampled": partial(
        gumbel_softmax, straight_through=True, kl="sampled"
    ),
}
EACH_OF_A_CLASS = pytest.mark.parametrize("name", CLASS_ESTIMATORS)


def mixture_model(**arguments):
    size = {"num_classes": 3, "data_dim": 4, "latent_dim": 2, "hidden": (8,)}
    model = models.GaussianMixtureVAE(**size | arguments).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, torch.bernoulli(torch.full((3, 4), 0.5)).double()


@EACH_OF_A_CLASS
@pytest.mark.parametrize("condition", ["prior", "likelihood", "both"])
def test_class_estimators_are_one_number_an_example(name, condition):
    model, x = mixture_model(condition=condition)
    terms = CLASS_ESTIMATORS[name](model, x, num_samples=4)
    assert terms.reconstruction.shape == terms.kl.shape == (3,)
    terms.elbo.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@EACH_OF_A_CLASS
def test_class_estimators_generator_seed_and_gradients(name):
    model, x = mixture_model()
    before = torch.get_rng_state()
    one, two, other = (
        CLASS_ESTIMATORS[name](model, x, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    )
    assert torch.equal(one.elbo, two.elbo) and not torch.equal(one.elbo, other.elbo)
    assert torch.equal(torch.get_rng_state(), before)
    gradients = gradient_samples(model, CLASS_ESTIMATORS[name], x, 5)
    assert gradients.isfinite().all() and len(gradients.unique(dim=0)) == 5


def test_labelled_takes_labels_and_probabilities():
    model, x = mixture_model(condition="both")
    y = torch.tensor([2, 0, 2])
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    hard, one_hot = (
        labelled(model, x, some, generator=seeded()) for some in (y, model.classes[y])
    )
    log_y = model.class_prior().log_prob(y) + model.class_posterior(x).log_prob(y)
    divergence = kl_divergence(model.posterior(x, y), model.prior(y))
    assert torch.equal(hard.kl, divergence - log_y)
    assert all(map(torch.equal, hard, one_hot))
    soft = torch.softmax(torch.randn(3, 3).double(), -1)
    log_q = model.class_posterior(x).logits.log_softmax(-1)
    divergence = kl_divergence(model.posterior(x, soft), model.prior(soft))
    expected = divergence - (soft * log_q).sum(-1) + math.log(3)
    for size in (1, 3):  # 3 is the number of classes as well
        terms = labelled(model, x[:size], soft[:size], generator=seeded())
        assert terms.reconstruction.shape == (size,)
        torch.testing.assert_close(terms.kl, expected[:size])


@EACH_OF_A_CLASS
def test_class_estimators_train(name):
    model, x = mixture_model()
    options = {"steps": 3, "progress": False, "estimator": CLASS_ESTIMATORS[name]}
    history = fit(model, x, **options)
    assert len(history.train_elbo) == 3


@EACH_OF_A_CLASS
def test_with_one_class_all_are_the_ordinary_estimator(name):
    """The class is certain, and its divergence zero, relaxed or not."""
    model, x = mixture_model(num_classes=1)
    y = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        draws = CLASS_ESTIMATORS[name](model, x, num_samples=40000)
        plain = models.ConditionalVAE.elbo(model, x, y, num_samples=1)
        exact = analytic_kl(model, x, y, num_samples=40000).reconstruction
    assert torch.allclose(draws.kl, plain.kl, atol=0.05 if "sampled" in name else 1e-9)
    assert torch.allclose(draws.reconstruction, exact, atol=0.05)


def test_relaxed_estimator_tends_to_the_elbo_as_the_temperature_falls():
    model, x = mixture_model()
    with torch.no_grad():
        exact = marginalised(model, x, num_samples=20000).elbo
        errors = []
        for temperature in (2.0, 0.5, 0.02):
            options = {"num_samples": 40000, "temperature": temperature}
            errors.append((gumbel_softmax(model, x, **options).elbo - exact).abs())
    assert (errors[2] < 0.08).all()
    assert (errors[0] > 3 * errors[2]).any()


def test_gradient_of_the_relaxed_estimator_grows_noisy_as_the_temperature_falls():
    model, x = mixture_model()
    spread = [
        gradient_samples(model, gumbel_softmax, x, 500, temperature=t).var(0).sum()
        for t in (2.0, 0.5, 0.1, 0.02)
    ]
    assert spread == sorted(spread) and spread[-1] > 3 * spread[0]


def test_categorical_kl_of_a_certain_class_is_finite():
    q = Categorical(logits=torch.tensor([0.0, -1e4, -1e4]))
    p = Categorical(logits=torch.zeros(3))
    assert categorical_kl(q, p).item() == pytest.approx(torch.tensor(3.0).log().item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected a positive number"),
        ({"kl": "exact"}, "kl is 'exact'; expected 'analytic' or 'sampled'"),
        ({"num_samples": 0}, "num_samples is 0; expected a whole number, at least 1"),
    ],
)
def test_gumbel_softmax_checks_its_arguments(options, message):
    model, x = mixture_model()
    with pytest.raises(ValueError, match=message):
        gumbel_softmax(model, x, **options)


# --- importance-weighted bounds ------------------------------------------------------

GRADIENTS = ("plain", "doubly-reparameterised")


def near_exact(shift=0.1, stretch=1.2):
    """A factor analyser with a q a little off and a little wide, and four examples."""
    model = models.FactorAnalysis.from_parameters(
        torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.4, -0.9]]),
        torch.tensor([0.7, 0.8, 0.9]),
    ).double()
    with torch.no_grad():
        exact = model.exact_posterior(torch.eye(3).double())  # (D,) of them
        model.inference.weights.copy_(exact.mean.T + shift)
        factor = stretch * exact.scale_tril[0]
        model.inference.below.copy_(factor)
        model.inference.diagonal.copy_(unconstrained(factor.diagonal()))
        return model, model.sample(4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_importance_weighted_with_one_sample_is_fully_sampled(small, gradient):
    model, x = small
    one, elbo = (
        estimator(model, x, num_samples=1, generator=torch.Generator().manual_seed(0))
        for estimator in (
            partial(importance_weighted, gradient=gradient),
            fully_sampled,
        )
    )
    torch.testing.assert_close(one, elbo)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_importance_weighted_is_the_log_of_the_mean_weight(small, gradient):
    model, x = small
    options = {"num_samples": 6, "generator": torch.Generator().manual_seed(0)}
    w = model.log_weights(x, **options).exp()
    options["generator"].manual_seed(0)
    bound = importance_weighted(model, x, gradient=gradient, **options).elbo
    torch.testing.assert_close(bound, w.mean(0).log())


def test_importance_weighted_rises_from_the_elbo_to_the_evidence():
    model, x = near_exact()
    n, counts = 4000, (1, 2, 8, 64)
    with torch.no_grad():
        evidence, elbo = model.evidence(x), model.evidence(x) - model.gap(x)
        bounds = torch.stack(
            [
                importance_weighted(model, x.repeat(n, 1), num_samples=k).elbo.mean()
                for k in counts
            ]
        )
        one = importance_weighted(model, x.repeat(n, 1), num_samples=1).elbo
    error = one.view(n, 4).mean(1).std() / n**0.5  # of the first, the noisiest
    assert error < 0.02
    assert abs(bounds[0] - elbo.mean()) < 4 * error
    assert (bounds.diff() > 0).all()
    assert 0 < evidence.mean() - bounds[-1] < 0.1 * (evidence - elbo).mean()


def test_importance_weighted_terms_are_those_of_a_better_q():
    """With many draws, those of the exact posterior."""
    model, x = near_exact()
    with torch.no_grad():
        kl = kl_divergence(model.exact_posterior(x), model.prior())
        n, k = 100, 1000
        terms = importance_weighted(model, x.repeat(n, 1), num_samples=k)
        for found, exact in zip(terms, (model.evidence(x) + kl, kl), strict=True):
            found = found.view(n, 4)
            error = found.std(0) / n**0.5
            assert ((found.mean(0) - exact).abs() < 4 * error + 3 / k).all()
            assert (error < 0.02).all()


def draw_by_draw(model, x, gradient, num_samples, noise):
    """Gradients by the formulas of the papers, with one weight at a time."""
    theta = list(model.generative.parameters())
    phi = list(model.inference.parameters())
    q_z = model.posterior(x)
    z = rsample(q_z, (num_samples,), torch.Generator().manual_seed(noise))
    mean, std = q_z.mean.detach(), q_z.stddev.detach()
    total = [torch.zeros_like(p) for p in theta + phi]
    for i in range(len(x)):
        log_w, d_log_w = [], []
        for k in range(num_samples):
            here = z[k, i].detach().requires_grad_()
            log_p = model.likelihood(here).log_prob(x[i]) + model.prior().log_prob(here)
            fixed = torch.distributions.Normal(mean[i], std[i]).log_prob(here).sum()
            log_w.append(log_p - fixed)
            d_log_w.append(torch.autograd.grad(log_w[-1], here, retain_graph=True)[0])
        v = torch.stack(log_w).detach().softmax(0)
        for k in range(num_samples):
            of_theta = torch.autograd.grad(log_w[k], theta)
            if gradient == "plain":  # the whole derivative, q's parameters included
                scalar = d_log_w[k] @ z[k, i]
                q_i = torch.distributions.Normal(q_z.mean[i], q_z.stddev[i])
                scalar = scalar - q_i.log_prob(z[k, i].detach()).sum()
                weight = v[k]
            else:
                scalar, weight = d_log_w[k] @ z[k, i], v[k] ** 2
            of_phi = torch.autograd.grad(scalar, phi, retain_graph=True)
            parts = [v[k] * g for g in of_theta] + [weight * g for g in of_phi]
            total = [a + b for a, b in zip(total, parts, strict=True)]
    return dict(zip((*theta, *phi), total, strict=True))


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_importance_weighted_gradients_draw_by_draw(small, gradient, num_samples):
    model, x = small
    g = torch.Generator().manual_seed(3)
    options = {"num_samples": num_samples, "gradient": gradient, "generator": g}
    importance_weighted(model, x, **options).elbo.sum().backward()
    expected = draw_by_draw(model, x, gradient, num_samples, noise=3)
    for p in model.parameters():
        torch.testing.assert_close(p.grad, expected[p])


def test_both_gradients_agree_in_expectation():
    model, x = near_exact()
    n = 20_000
    plain, twice = (
        gradient_samples(
            model, importance_weighted, x, n, num_samples=3, gradient=gradient
        )
        for gradient in GRADIENTS
    )
    of_phi = slice(3 * 2 + 3, None)
    torch.testing.assert_close(plain[:, :9], twice[:, :9])  # θ: loadings and noise
    plain, twice = plain[:, of_phi], twice[:, of_phi]
    assert not torch.allclose(plain, twice)
    gap = twice - plain
    error = gap.std(0) / n**0.5
    assert (gap.mean(0).abs() <= 4 * error).all()
    clear = plain.mean(0).abs() > 4 * plain.std(0) / n**0.5
    assert clear.sum() >= 4  # and they are not both zero


class Moved(models.VAE):
    """q(z | x), the same Gaussian, as an affine transformation of N(0, I)."""

    def posterior(self, x):
        q_z = super().posterior(x)
        standard = Independent(Normal(torch.zeros_like(q_z.mean), 1.0), 1)
        move = AffineTransform(q_z.mean, q_z.stddev, event_dim=1)
        return TransformedDistribution(standard, [move])


@pytest.mark.parametrize(
    "estimator",
    [
        *(partial(importance_weighted, gradient=gradient) for gradient in GRADIENTS),
        importance_resampled,
    ],
)
def test_a_transformed_q_has_the_gradients_of_the_gaussian(small, estimator):
    model, x = small
    found = []
    for kind in (models.VAE, Moved):
        model.__class__ = kind
        model.zero_grad()
        torch.manual_seed(0)
        bound = estimator(model, x, num_samples=5).elbo.sum()
        bound.backward()
        found.append([bound.detach(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*found)


def test_an_exact_q_leaves_nothing_to_learn_and_no_noise():
    """All weights are p(x): the doubly reparameterised gradient in φ is zero itself."""
    model, x = near_exact(shift=0.0, stretch=1.0)
    for count in (1, 4):
        plain, twice = (
            gradient_samples(
                model,
                importance_weighted,
                x,
                10,
                update="inference",
                num_samples=count,
                gradient=gradient,
            )
            for gradient in GRADIENTS
        )
        assert twice.abs().max() < 1e-4 and plain.abs().max() > 0.1


def test_importance_resampled_agrees_in_expectation():
    """Its value with the same draws; its gradient over many choices of them."""
    model, x = near_exact()
    k, n = 6, 20_000
    full = importance_weighted(
        model, x, num_samples=k, generator=torch.Generator().manual_seed(0)
    )
    few = importance_resampled(
        model, x, num_samples=k, kept=2, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(few, full)
    exact, resampled = (
        gradient_samples(model, estimator, x, n, num_samples=k, **options)
        for estimator, options in (
            (importance_weighted, {"gradient": "doubly-reparameterised"}),
            (importance_resampled, {"kept": 2}),
        )
    )
    error = (exact.var(0) + resampled.var(0)).sqrt() / n**0.5
    gap = (exact.mean(0) - resampled.mean(0)).abs()
    assert (gap <= 4.5 * error).all()
    assert (exact.mean(0).abs() > 8 * error).sum() > len(error) / 2
    for kept in (1, 6):
        assert importance_resampled(model, x, kept=kept).elbo.shape == (4,)


def test_systematic_resampling():
    g = torch.Generator().manual_seed(0)
    weights = torch.tensor([[0.5, 0.0], [0.3, 0.0], [0.2, 1.0], [0.0, 0.0]])
    chosen = systematic_resampling(weights.repeat(1, 5000), 4, g)  # (4, 10_000)
    counts = torch.nn.functional.one_hot(chosen, 4).sum(0).view(5000, 2, 4)
    share = 4 * weights.T
    assert (counts - share).abs().max() < 1  # never off by a whole one
    assert (counts.double().mean(0) - share).abs().max() < 0.03
    with pytest.raises(ValueError, match="count is 0"):
        systematic_resampling(weights, 0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_importance_weighted_trains_with_a_condition(gradient):
    torch.manual_seed(0)
    model = models.ConditionalVAE(
        num_classes=3, data_dim=4, latent_dim=2, hidden=(8,), likelihood="gaussian"
    )
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    bound = partial(importance_weighted, num_samples=3, gradient=gradient)
    assert bound(model, x, y).elbo.shape == (20,)
    for update, moves in (
        ("both", (1, 1)),
        ("generative", (1, 0)),
        ("inference", (0, 1)),
    ):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        fit(model, (x, y), steps=1, estimator=bound, update=update, progress=False)
        for half, moved in zip(("generative", "inference"), moves, strict=True):
            same = [
                torch.equal(v, before[k])
                for k, v in model.state_dict().items()
                if k.startswith(half)
            ]
            assert any(not s for s in same) if moved else all(same)


def test_importance_weighted_refuses_what_it_cannot_do(small):
    model, x = small
    with pytest.raises(ValueError, match="gradient is 'both'; expected 'plain' or"):
        importance_weighted(model, x, gradient="both")
    mixture = models.GaussianMixtureVAE(num_classes=2, data_dim=4, hidden=(3,))
    with pytest.raises(ValueError, match="a MixtureSameFamily, whose draws carry no"):
        importance_weighted(mixture, x.float())
    with pytest.raises(ValueError, match="a Bernoulli, whose draws carry no"):
        importance_weighted(Coins(), x.float())


# --- signal-to-noise ------------------------------------------------------------------


def test_signal_to_noise_is_the_mean_of_the_ratios():
    rows = torch.randn(50, 4).double() * torch.tensor([1.0, 2.0, 3.0, 0.0]) + 1
    table = rows[:, :3].numpy()  # the last column has no noise
    expected = (abs(table.mean(0)) / table.std(0, ddof=1)).mean()
    assert signal_to_noise(rows) == pytest.approx(expected)
    assert signal_to_noise(-3 * rows) == pytest.approx(expected)
    assert signal_to_noise(rows[:, [2, 3, 0, 1]]) == pytest.approx(expected)


def test_signal_to_noise_of_averages():
    """M draws averaged: √M times as much."""
    rows = 0.5 + torch.randn(40_000, 3)
    ratio = signal_to_noise(rows.view(-1, 16, 3).mean(1)) / signal_to_noise(rows)
    assert ratio == pytest.approx(4, rel=0.05)


def test_signal_to_noise_of_noise():
    found = signal_to_noise(torch.randn(100, 2000))
    assert found == pytest.approx((2 / torch.pi / 100) ** 0.5, rel=0.1)


def test_signal_to_noise_wrong_arguments():
    for shape in ((5,), (1, 5)):
        with pytest.raises(ValueError, match="at least 2 draws"):
            signal_to_noise(torch.zeros(shape))
    with pytest.raises(ValueError, match="the same in all draws"):
        signal_to_noise(torch.ones(3, 2))


def test_slopes_of_the_signal_to_noise_ratio():
    """In K: -1/2 in φ for the plain gradient, +1/2 for the other one and in θ."""
    model, x = near_exact(shift=0.3, stretch=2.0)
    scales, everything = slice(6, 8), slice(None)  # of q; of θ
    counts = (16, 128)

    def slope(update, gradient, columns):
        options = {"update": update, "gradient": gradient, "chunk_size": 1000}
        low, high = (
            signal_to_noise(
                gradient_samples(
                    model, importance_weighted, x, 4000, num_samples=k, **options
                )[:, columns]
            )
            for k in counts
        )
        return math.log(high / low) / math.log(counts[1] / counts[0])

    assert slope("inference", "plain", scales) == pytest.approx(-0.5, abs=0.2)
    twice = slope("inference", "doubly-reparameterised", scales)
    assert twice == pytest.approx(0.5, abs=0.2)
    assert slope("generative", "plain", everything) == pytest.approx(0.5, abs=0.2)
