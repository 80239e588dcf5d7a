"""Tests of aevb/estimators.py: two estimators of one quantity."""

import pytest
import torch
from torch.distributions import Independent, Laplace

from aevb import data, models
from aevb.estimators import analytic_kl, fully_sampled

BOTH = pytest.mark.parametrize("estimator", [analytic_kl, fully_sampled])


@pytest.fixture
def small():
    """A VAE and a batch: 3 examples of 4 pixels, 2 latent coordinates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.VAE(data_dim=4, latent_dim=2, hidden=(8,), dropout=0.0)
        return model.double(), torch.rand(3, 4, dtype=torch.float64)


@BOTH
@pytest.mark.parametrize("num_samples", [1, 5])
def test_terms_are_one_number_an_example(small, estimator, num_samples):
    model, x = small
    terms = estimator(model, x, num_samples=num_samples)
    assert terms.reconstruction.shape == terms.kl.shape == terms.elbo.shape == (3,)
    terms.elbo.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@BOTH
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


@BOTH
def test_number_of_samples_is_checked(small, estimator):
    model, x = small
    with pytest.raises(ValueError, match="num_samples is 0; expected at least 1"):
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
