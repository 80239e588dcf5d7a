"""Tests of aevb/model.py: a one-dimensional linear-Gaussian model has closed forms.

z ~ N(0, 1), x | z ~ N(w z, s²), q(z | x) = N(v x + c, t²). Then

    ELBO(x) = -1/2 log(2 π s²) - ((x - w m)² + w² t²) / (2 s²)
              - (m² + t² - 1 - log t²) / 2,           m = v x + c,
    log p(x) = log N(x; 0, w² + s²).
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal

from aevb import evaluation
from aevb.model import ElboTerms, LatentVariableModel, check_batch

W, S, V, C, T = 1.3, 0.6, 0.5, 0.2, 0.7


class Line(LatentVariableModel):
    def __init__(self, v=V, c=C, t=T):
        super().__init__()
        self.generative = nn.ParameterList([torch.tensor([W, S])])
        self.inference = nn.ParameterList([torch.tensor([v, c, t])])

    def prior(self):
        return Independent(Normal(torch.zeros(1), torch.ones(1)), 1)

    def likelihood(self, z):
        w, s = self.generative[0]
        return Independent(Normal(w * z, s), 1)

    def posterior(self, x):
        v, c, t = self.inference[0]
        return Independent(Normal(v * x + c, t), 1)


X = torch.linspace(-3, 3, 7)[:, None]  # (B, 1)


def closed_reconstruction(x, v=V, c=C, t=T):
    mean = v * x + c
    squares = (x - W * mean) ** 2 + W**2 * t**2
    return -0.5 * np.log(2 * np.pi * S**2) - squares / (2 * S**2)


def closed_kl(x, v=V, c=C, t=T):
    return ((v * x + c) ** 2 + t**2 - 1 - math.log(t**2)) / 2


def test_elbo_equals_its_closed_form():
    model, n = Line(), 40000
    terms = model.elbo(
        X.repeat(n, 1), generator=torch.Generator().manual_seed(0)
    )  # every x n times: (7 n,)
    found = terms.reconstruction.detach().double().reshape(n, 7)
    error = found.std(0) / n**0.5
    x = X[:, 0].double().numpy()
    difference = found.mean(0).numpy() - closed_reconstruction(x)
    assert (np.abs(difference) < 4 * error.numpy()).all()
    kl = terms.kl.detach().reshape(n, 7)[0]
    np.testing.assert_allclose(kl, closed_kl(x), rtol=1e-5)


def test_elbo_is_reconstruction_minus_kl():
    terms = ElboTerms(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    assert terms.elbo.tolist() == [0.5, -1.0]
    terms = Line().elbo(X)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)


def test_mean_log_weight_is_the_elbo_and_importance_weights_reach_the_evidence():
    model, k = Line(), 40000
    log_w = model.log_weights(
        X, num_samples=k, generator=torch.Generator().manual_seed(1)
    )
    assert log_w.shape == (k, 7)
    log_w = log_w.detach().double()
    x = X[:, 0].double().numpy()
    elbo = closed_reconstruction(x) - closed_kl(x)
    error = log_w.std(0).numpy() / k**0.5
    assert (np.abs(log_w.mean(0).numpy() - elbo) < 4 * error).all()
    evidence = stats.norm(0, math.hypot(W, S)).logpdf(x)
    assert (elbo < evidence).all()
    weights = (log_w - torch.as_tensor(evidence)).exp()  # mean 1: p(x, z) / q p(x)
    error = weights.std(0) / k**0.5
    assert ((weights.mean(0) - 1).abs() < 4 * error).all()


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    precision = 1 + W**2 / S**2
    model = Line(v=W / S**2 / precision, c=0.0, t=precision**-0.5)
    log_w = model.log_weights(X, num_samples=5).detach()
    evidence = stats.norm(0, math.hypot(W, S)).logpdf(X[:, 0])
    np.testing.assert_allclose(log_w, np.tile(evidence, (5, 1)), atol=2e-6)


def test_gradient_of_the_elbo_equals_its_closed_form():
    """∂ELBO/∂(v, c, t), averaged over many draws, against the formula above."""
    n, x = 40000, 1.5
    model = Line()
    draws = model.inference[0].detach().repeat(n, 1).requires_grad_()  # (n, 3)
    v, c, t = draws.unbind(1)
    model.posterior = lambda x: Independent(
        Normal((v * x[:, 0] + c)[:, None], t[:, None]), 1
    )
    terms = model.elbo(
        torch.full((n, 1), x), generator=torch.Generator().manual_seed(2)
    )
    terms.elbo.sum().backward()
    found, error = draws.grad.mean(0), draws.grad.std(0) / n**0.5
    m = V * x + C
    d_mean = W * (x - W * m) / S**2 - m
    expected = torch.tensor([x * d_mean, d_mean, -(W**2) * T / S**2 - T + 1 / T])
    assert ((found - expected).abs() < 4 * error + 1e-5).all()


def test_sample_draws_from_the_model():
    model, n = Line(), 20000
    x = model.sample(n, generator=torch.Generator().manual_seed(3))
    assert x.shape == (n, 1) and not x.requires_grad
    scale = math.hypot(W, S)
    assert stats.kstest(x[:, 0].numpy(), stats.norm(0, scale).cdf).pvalue > 1e-3
    means = model.sample(n, mean=True, generator=torch.Generator().manual_seed(3))
    assert stats.kstest(means[:, 0].numpy(), stats.norm(0, W).cdf).pvalue > 1e-3


def test_sample_is_deterministic_given_a_generator():
    model = Line()
    draw = lambda seed: model.sample(5, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_of_any_model():
    found = evaluation.elbo(Line(), X, num_samples=2000).values.numpy()
    x = X[:, 0].double().numpy()
    np.testing.assert_allclose(found, closed_reconstruction(x) - closed_kl(x), atol=0.5)


@pytest.mark.parametrize("function", ["elbo", "log_weights"])
def test_number_of_samples_is_checked(function):
    with pytest.raises(
        ValueError, match="num_samples is 0; expected a whole number, at least 1"
    ):
        getattr(Line(), function)(X, num_samples=0)


def test_a_model_without_parts_says_so():
    for method in ("prior", "likelihood", "posterior"):
        with pytest.raises(NotImplementedError):
            getattr(LatentVariableModel(), method)(*[X] * (method != "prior"))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (X.numpy(), TypeError, "x is a ndarray; expected a tensor of torch.float32"),
        (X.int(), TypeError, r"x is torch.int32; expected a tensor of torch.float32"),
        (X.double(), TypeError, "x is torch.float64; expected a tensor of torch.float"),
        (X[:, 0], ValueError, r"x has shape \(7,\); expected \(N, 1\) with N >= 1"),
        (X.T, ValueError, r"x has shape \(1, 7\); expected \(N, 1\)"),
        (X[:, None], ValueError, r"x has shape \(7, 1, 1\); expected \(N, 1\)"),
        (X[:0], ValueError, r"x has shape \(0, 1\); expected \(N, 1\) with N >= 1"),
        (X / 0, ValueError, "x holds NaN or infinity; expected finite values"),
    ],
)
def test_check_batch(x, error, message):
    with pytest.raises(error, match=message):
        check_batch(x, 1)
    check_batch(X, 1)
    check_batch(X.double(), 1, dtype=torch.float64)
