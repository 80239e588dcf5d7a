"""Tests of aevb/models/factor_analysis.py, against scipy, scikit-learn and a grid."""

import math

import numpy as np
import pytest
import sklearn.decomposition
import torch
from scipy import stats
from torch.distributions import kl_divergence

from aevb import data, evaluation, models
from aevb.models import FactorAnalysis

TRAIN, TEST = data.factor_analysis()


def paper_model(posterior="full") -> FactorAnalysis:
    """The model with the true parameters of the data."""
    model = FactorAnalysis(posterior=posterior)
    with torch.no_grad():
        model.generative.loadings.copy_(torch.tensor(data.LOADINGS))
        std = torch.tensor(data.NOISE) - 1e-6
        model.generative.noise.copy_(std.expm1().log())  # the inverse of softplus
    return model


def give_exact_posterior(model: FactorAnalysis) -> FactorAnalysis:
    """Set φ so that q(z | x) = p(z | x), computed here from W and σ with NumPy."""
    w = model.loadings.detach().double().numpy()
    phi_inverse = np.diag(model.noise_scale.detach().double().numpy() ** -2)
    covariance = np.linalg.inv(np.eye(w.shape[1]) + w.T @ phi_inverse @ w)
    factor = torch.from_numpy(np.linalg.cholesky(covariance))
    with torch.no_grad():
        model.inference.weights.copy_(torch.from_numpy(covariance @ w.T @ phi_inverse))
        model.inference.diagonal.copy_((factor.diag() - 1e-6).expm1().log())
        model.inference.below.copy_(factor.tril(-1))
    return model


def test_parameters_mean_what_they_are_called():
    model = paper_model()
    torch.testing.assert_close(model.loadings, torch.tensor(data.LOADINGS))
    torch.testing.assert_close(model.noise_scale, torch.tensor(data.NOISE))
    p = model.likelihood(torch.ones(5, 2))
    assert p.batch_shape == (5,) and p.event_shape == (3,)
    torch.testing.assert_close(p.mean[0], torch.tensor([-1.5, -2.0, 2.5]))
    torch.testing.assert_close(p.stddev[0], torch.tensor(data.NOISE))


def test_halves_are_disjoint_and_complete():
    model = FactorAnalysis()
    theta = {id(p) for p in model.generative.parameters()}
    phi = {id(p) for p in model.inference.parameters()}
    assert not theta & phi
    assert theta | phi == {id(p) for p in model.parameters()}


def test_evidence_is_the_density_of_the_marginal():
    model = paper_model()
    w, noise = np.array(data.LOADINGS), np.array(data.NOISE)
    marginal = stats.multivariate_normal(np.zeros(3), w @ w.T + np.diag(noise**2))
    found = model.evidence(TEST.x)
    assert found.shape == (1000,) and found.dtype == torch.float32
    np.testing.assert_allclose(found.detach(), marginal.logpdf(TEST.x), atol=2e-5)
    assert model.evidence(TRAIN.x).mean().item() == pytest.approx(-3.934837, abs=2e-6)
    assert found.mean().item() == pytest.approx(-3.970452, abs=2e-6)


def test_evidence_of_whole_numbers():
    model, x = paper_model(), torch.tensor([[1, 0, 2], [0, -3, 1]])
    assert torch.equal(model.evidence(x), model.evidence(x.float()))


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4])
def test_evidence_is_accurate_for_small_noise(noise):
    model = FactorAnalysis()
    with torch.no_grad():
        model.generative.noise.fill_(math.log(math.expm1(noise)))
        x = model.sample(200)
        found = model.evidence(x)
    w = model.loadings.detach().double().numpy()
    scale = model.noise_scale.detach().double().numpy()
    marginal = stats.multivariate_normal(np.zeros(3), w @ w.T + np.diag(scale**2))
    np.testing.assert_allclose(found, marginal.logpdf(x.double()), 1e-5, 1e-5)


def test_evidence_agrees_with_scikit_learn():
    """Their score of the same parameters, and their maximum of the likelihood."""
    theirs = sklearn.decomposition.FactorAnalysis(2, tol=1e-8, max_iter=5000)
    centred = TRAIN.x.double() - TRAIN.x.double().mean(0)
    theirs.fit(centred.numpy())
    model = FactorAnalysis().double()
    with torch.no_grad():
        model.generative.loadings.copy_(torch.from_numpy(theirs.components_.T))
        std = torch.from_numpy(theirs.noise_variance_).sqrt() - 1e-6
        model.generative.noise.copy_(std.expm1().log())
        found = model.evidence(centred)
    np.testing.assert_allclose(found, theirs.score_samples(centred.numpy()), atol=1e-4)


def test_exact_posterior_is_bayes_rule_on_a_grid():
    model = paper_model()
    axis = torch.linspace(-5, 5, 401)
    grid = torch.cartesian_prod(axis, axis)  # (401², 2)
    area = (axis[1] - axis[0]).item() ** 2
    for x in TEST.x[:3]:
        with torch.no_grad():
            joint = model.prior().log_prob(grid) + model.likelihood(grid).log_prob(x)
            joint = joint.double()
            evidence = joint.logsumexp(0) + math.log(area)
            weights = (joint - evidence).exp() * area  # p(z | x) on the grid, sum 1
            exact = model.exact_posterior(x[None])
        assert evidence.item() == pytest.approx(
            model.evidence(x[None]).item(), abs=1e-4
        )
        mean = weights @ grid.double()
        centred = grid.double() - mean
        covariance = (weights[:, None] * centred).T @ centred
        np.testing.assert_allclose(exact.mean[0], mean, atol=1e-4)
        np.testing.assert_allclose(
            exact.covariance_matrix.squeeze(), covariance, atol=1e-4
        )


def test_with_the_exact_posterior_the_bound_is_the_evidence():
    model = give_exact_posterior(paper_model())
    with torch.no_grad():
        q, exact = model.posterior(TEST.x), model.exact_posterior(TEST.x)
        torch.testing.assert_close(q.mean, exact.mean, atol=1e-5, rtol=1e-5)
        assert kl_divergence(q, exact).abs().max() < 1e-5
        evidence = model.evidence(TEST.x)
        # log p(x, z) - log q(z | x) is log p(x) for every z
        log_w = model.log_weights(TEST.x, num_samples=3)
        assert (log_w - evidence).abs().max() < 1e-4
        # and the ELBO is unbiased for it
        terms = model.elbo(TEST.x, num_samples=4000)
    estimate = evaluation.elbo(model, TEST.x, num_samples=4000)
    assert abs(estimate.mean - evidence.mean()) < 2e-3
    torch.testing.assert_close(terms.elbo.mean(), evidence.mean(), atol=2e-3, rtol=0)


def test_gap_of_the_bound_is_the_divergence_from_the_exact_posterior():
    """log p(x) - ELBO(x) = KL(q(z | x) ‖ p(z | x)), for each x."""
    model, n = FactorAnalysis(), 20000
    x = TEST.x[:4]
    with torch.no_grad():
        gap = kl_divergence(model.posterior(x), model.exact_posterior(x))
        values = model.elbo(x.repeat(n, 1)).elbo.double().reshape(n, 4)
        evidence = model.evidence(x)
    error = values.std(0) / n**0.5
    assert ((evidence - values.mean(0) - gap).abs() < 4 * error).all()


def test_bounds_are_ordered_and_tighten():
    """ELBO <= IW_k <= log p(x) in expectation, and IW_k rises with k."""
    model = give_exact_posterior(paper_model())
    with torch.no_grad():
        model.inference.weights.add_(0.1)  # a good q, but not the exact one
        x, repeats = TEST.x[:5], 2000
        evidence = model.evidence(x).double()
        counts, bounds = (1, 2, 8, 64), []
        for k in counts:
            log_w = model.log_weights(x.repeat(repeats, 1), num_samples=k).double()
            bounds.append((log_w.logsumexp(0) - math.log(k)).reshape(repeats, 5))
        elbo = model.elbo(x.repeat(repeats, 1)).elbo.double().reshape(repeats, 5)
    means = torch.stack([bound.mean(0) for bound in bounds])  # (counts, 5)
    errors = torch.stack([bound.std(0) / repeats**0.5 for bound in bounds])
    elbo_error = (elbo.var(0) / repeats + errors[0] ** 2).sqrt()
    assert ((means[0] - elbo.mean(0)).abs() < 4 * elbo_error).all()  # IW_1 = ELBO
    rises = means[1:] - means[:-1]
    spread = (errors[1:] ** 2 + errors[:-1] ** 2).sqrt()
    assert (rises > -4 * spread).all() and (rises.mean(1) > 0).all()
    assert (means < evidence + 4 * errors).all()
    assert (evidence - means[0]).mean() > 10 * errors[0].mean()
    assert (evidence - means[-1]).mean() < 0.3 * (evidence - means[0]).mean()


@pytest.mark.parametrize(
    "kind, parameters", [("full", 6 + 2 + 4), ("diagonal", 6 + 2), ("fixed", 6)]
)
def test_kinds_of_posterior(kind, parameters):
    model = FactorAnalysis(posterior=kind)
    q = model.posterior(TEST.x[:5])
    assert q.batch_shape == (5,) and q.event_shape == (2,)
    free = [p for p in model.inference.parameters() if p.requires_grad]
    assert sum(p.numel() for p in free) == parameters
    # all kinds start from Σ = I
    torch.testing.assert_close(
        q.covariance_matrix[0], torch.eye(2), atol=1e-4, rtol=1e-4
    )
    with torch.no_grad():
        for p in free:
            p.copy_(torch.randn_like(p))
        covariance = model.posterior(TEST.x[:5]).covariance_matrix
    assert torch.linalg.eigvalsh(covariance).min() > 0
    assert torch.equal(covariance[0], covariance[4])  # the same for all x
    if kind != "full":
        assert covariance[0, 0, 1] == 0
    if kind == "fixed":
        torch.testing.assert_close(covariance[0], torch.eye(2), atol=1e-4, rtol=1e-4)


def test_posterior_covariance_is_the_square_of_its_lower_factor():
    model = FactorAnalysis()
    with torch.no_grad():
        model.inference.below.copy_(torch.tensor([[9.0, 9.0], [0.7, 9.0]]))
    q = model.posterior(torch.zeros(1, 3))
    factor = torch.tensor([[1.0, 0.0], [0.7, 1.0]])
    torch.testing.assert_close(
        q.covariance_matrix[0], factor @ factor.T, atol=2e-4, rtol=1e-4
    )
    x = TEST.x[:3]
    torch.testing.assert_close(model.posterior(x).mean, x @ model.inference.weights.T)


def test_other_sizes():
    model = FactorAnalysis(data_dim=6, latent_dim=3)
    x = model.sample(10, generator=torch.Generator().manual_seed(0))
    assert x.shape == (10, 6) and model.loadings.shape == (6, 3)
    assert model.elbo(x, num_samples=4).elbo.shape == (10,)
    assert model.log_weights(x, num_samples=4).shape == (4, 10)
    assert model.evidence(x).shape == (10,)
    assert model.exact_posterior(x).mean.shape == (10, 3)
    assert (model.elbo(x, num_samples=3000).elbo < model.evidence(x)).all()


def test_samples_have_the_marginal_covariance():
    model, n = paper_model(), 50000
    x = model.sample(n, generator=torch.Generator().manual_seed(0)).double()
    w, noise = np.array(data.LOADINGS), np.array(data.NOISE)
    expected = torch.from_numpy(w @ w.T + np.diag(noise**2))
    error = ((expected.diag().outer(expected.diag()) + expected**2) / n).sqrt()
    assert ((x.T @ x / n - expected).abs() < 4 * error).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"posterior": "banded"},
            r"posterior is 'banded'; expected one of \('full', 'd",
        ),
        ({"data_dim": 0}, "data_dim is 0; expected a whole number, at least 1"),
        ({"latent_dim": -1}, "latent_dim is -1; expected a whole number, at least 1"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FactorAnalysis(**arguments)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(5, 4), ValueError, r"x has shape \(5, 4\); expected \(N, 3\)"),
        (torch.zeros(5, 3).double(), TypeError, "x is torch.float64; expected"),
        (torch.zeros(5, 3).long(), TypeError, "x is torch.int64; expected"),
        (torch.full((5, 3), math.nan), ValueError, "x holds NaN or infinity"),
    ],
)
def test_unsuitable_data_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        evaluation.elbo(FactorAnalysis(), x)


def test_a_model_in_double_precision_takes_double_precision():
    model = FactorAnalysis().double()
    assert evaluation.elbo(model, TEST.x.double()).mean < 0
    with pytest.raises(
        TypeError, match=r"x is torch.float32; expected .* torch.float64"
    ):
        evaluation.elbo(model, TEST.x)
    assert isinstance(models.FactorAnalysis(), FactorAnalysis)
