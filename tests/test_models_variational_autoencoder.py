"""Tests of aevb/models/variational_autoencoder.py."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from aevb import data, evaluation
from aevb.models import VAE, GaussianMixtureVAE

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian")
IMAGES = {
    "bernoulli": data.digits("binary")[0].x[:6],
    "continuous_bernoulli": data.digits("continuous")[0].x[:6],
    "gaussian": data.digits("continuous")[0].x[:6],
}


def small(**arguments) -> VAE:
    return VAE(**{"latent_dim": 3, "hidden": (16, 8)} | arguments).eval()


def test_the_defaults_are_the_papers():
    model = VAE()
    shapes = [tuple(p.shape) for p in model.inference.parameters() if p.ndim == 2]
    assert shapes == [(500, 784), (500, 500), (20, 500), (20, 500)]
    shapes = [tuple(p.shape) for p in model.generative.parameters() if p.ndim == 2]
    assert shapes == [(500, 20), (500, 500), (784, 500)]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1] * 4


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("encoders", [1, 2])
def test_shapes(likelihood, encoders):
    model = small(likelihood=likelihood, encoders=encoders)
    x = IMAGES[likelihood]
    q = model.posterior(x)
    assert q.batch_shape == (6,) and q.event_shape == (3,)
    assert model.prior().batch_shape == () and model.prior().event_shape == (3,)
    p = model.likelihood(torch.zeros(5, 6, 3))
    assert p.batch_shape == (5, 6) and p.event_shape == (784,)
    terms = model.elbo(x, num_samples=2)
    assert terms.elbo.shape == (6,) and terms.elbo.isfinite().all()
    assert model.log_weights(x, num_samples=4).shape == (4, 6)
    assert model.sample(7).shape == model.sample(7, mean=True).shape == (7, 784)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("encoders", [1, 2])
def test_halves_are_disjoint_and_complete_and_all_of_them_learn(likelihood, encoders):
    model = small(likelihood=likelihood, encoders=encoders)
    theta = {id(p) for p in model.generative.parameters()}
    phi = {id(p) for p in model.inference.parameters()}
    assert not theta & phi
    assert theta | phi == {id(p) for p in model.parameters()}
    model.elbo(IMAGES[likelihood]).elbo.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_one_or_two_encoder_networks():
    one, two = small(encoders=1), small(encoders=2)
    count = lambda model: sum(p.numel() for p in model.inference.parameters())  # noqa: E731
    body = 785 * 16 + 17 * 8
    assert count(one) == body + 2 * 9 * 3 and count(two) == 2 * (body + 9 * 3)
    x = IMAGES["gaussian"]
    q = two.posterior(x)
    torch.testing.assert_close(q.mean, two.inference.mean(x))
    std = two.inference.std(x).exp().log1p() + 1e-6
    torch.testing.assert_close(q.stddev, std)


def test_prior_is_standard_normal():
    z = torch.linspace(-2, 2, 15).reshape(5, 3)
    expected = stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(small().prior().log_prob(z), expected, rtol=1e-5)


def test_divergence_is_the_closed_form_of_two_gaussians():
    model = small()
    x = IMAGES["continuous_bernoulli"]
    q = model.posterior(x)
    mean, std = q.mean.detach().double(), q.stddev.detach().double()
    expected = (mean**2 + std**2 - 1 - 2 * std.log()).sum(1) / 2
    np.testing.assert_allclose(model.elbo(x).kl.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_bounds_are_ordered(likelihood):
    """ELBO <= IW_k in expectation; IW_5 <= IW_200."""
    model = small(likelihood=likelihood)
    x = IMAGES[likelihood]
    elbo = evaluation.elbo(model, x, num_samples=2000).values
    few, many = (
        torch.stack(
            [
                evaluation.log_likelihood(model, x, num_samples=k, seed=s).values
                for s in range(20)
            ]
        )
        for k in (5, 200)
    )
    spread = few.std(0) / 20**0.5
    assert (few.mean(0) > elbo - 4 * spread).all()
    assert (many.mean(0) > few.mean(0) - 4 * spread).all()
    assert many.mean() > few.mean() > elbo.mean()


def test_dropout_acts_in_training_only():
    model = small(dropout=0.5)
    x = IMAGES["continuous_bernoulli"]
    assert torch.equal(model.posterior(x).mean, model.posterior(x).mean)
    model.train()
    assert not torch.equal(model.posterior(x).mean, model.posterior(x).mean)
    assert small(dropout=0.0).train().posterior(x).mean.shape == (6, 3)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_samples(likelihood):
    model = small(likelihood=likelihood)
    draw = lambda seed, **options: model.sample(  # noqa: E731
        50, generator=torch.Generator().manual_seed(seed), **options
    )
    x = draw(0)
    assert torch.equal(x, draw(0)) and not torch.equal(x, draw(1))
    assert not x.requires_grad
    if likelihood == "bernoulli":
        assert x.unique().tolist() == [0, 1]
    if likelihood == "continuous_bernoulli":
        assert 0 <= x.min() and x.max() <= 1
    means = draw(0, mean=True)
    n = x.numel()
    assert abs((x - means).mean()) < 4 * (x - means).std() / n**0.5
    assert means.std(0).mean() < x.std(0).mean()


@pytest.mark.parametrize("n", [2.5, 0, -1, True])
@pytest.mark.parametrize("kind", [VAE, GaussianMixtureVAE])
def test_samples_are_counted(kind, n):
    with pytest.raises(ValueError, match=f"n is {n}; expected a whole number, at leas"):
        kind(latent_dim=2, hidden=(4,)).sample(n)


def test_state_survives_a_round_trip(tmp_path):
    model, other = small(), small()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = IMAGES["continuous_bernoulli"]
    assert torch.equal(model.posterior(x).mean, other.posterior(x).mean)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_without_hidden_layers_it_is_linear():
    model = VAE(data_dim=4, latent_dim=2, hidden=(), likelihood="gaussian")
    x = torch.randn(5, 4)
    head = model.inference[1]
    torch.testing.assert_close(
        model.posterior(x).mean, x @ head.mean.weight.T + head.mean.bias
    )
    assert model.elbo(x).elbo.shape == (5,)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"likelihood": "poisson"},
            r"likelihood is 'poisson'; expected one of \('bern",
        ),
        ({"encoders": 3}, "encoders is 3; expected 1 or 2"),
        ({"activation": "sine"}, "activation is 'sine'; expected one of"),
        ({"latent_dim": 0}, "latent_dim is 0; expected a whole number, at least 1"),
        ({"data_dim": -2}, "data_dim is -2; expected a whole number, at least 1"),
        ({"hidden": (5, 0)}, r"hidden is \(5, 0\); expected widths"),
        ({"hidden": (500.0,)}, r"hidden is \(500.0,\); expected widths"),
        ({"hidden": 500}, r"hidden is 500; expected widths, as in \(500, 500\)"),
        ({"dropout": 1.0}, "dropout is 1.0; expected at least 0, less than 1"),
        ({"dropout": -0.1}, "dropout is -0.1; expected at least 0"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)


@pytest.mark.parametrize(
    "likelihood, x, error, message",
    [
        (
            "bernoulli",
            torch.full((2, 784), 0.5),
            ValueError,
            "expected each to be 0 or 1",
        ),
        (
            "bernoulli",
            torch.full((2, 784), 2.0),
            ValueError,
            "values from 2 to 2 that Be",
        ),
        (
            "continuous_bernoulli",
            torch.full((2, 784), 255.0),
            ValueError,
            "values from 255 to 255 .* expected each to be between 0 and 1",
        ),
        (
            "continuous_bernoulli",
            torch.full((2, 784), -0.1),
            ValueError,
            "expected each to be between 0 and 1",
        ),
        ("gaussian", torch.full((2, 784), math.inf), ValueError, "NaN or infinity"),
        (
            "gaussian",
            torch.zeros(2, 28, 28),
            ValueError,
            r"shape \(2, 28, 28\); expected",
        ),
        (
            "gaussian",
            torch.zeros(784),
            ValueError,
            r"shape \(784,\); expected \(N, 784\)",
        ),
        (
            "gaussian",
            torch.zeros(2, 784).byte(),
            TypeError,
            "x is torch.uint8; expected",
        ),
        (
            "gaussian",
            torch.zeros(2, 784).double(),
            TypeError,
            "x is torch.float64; exp",
        ),
    ],
)
def test_unsuitable_data_are_refused(likelihood, x, error, message):
    model = small(likelihood=likelihood)
    for function in (evaluation.elbo, evaluation.log_likelihood):
        with pytest.raises(error, match=message):
            function(model, x)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_start_at_the_mean(likelihood):
    model = small(likelihood=likelihood)
    x = torch.rand(50, model.data_dim).round()
    x[:, 0], x[:, 1] = 0.0, 1.0
    assert model.start_at(x) is model
    with torch.no_grad():
        for parameter in model.generative[0].parameters():
            parameter.zero_()  # h = 0: only the output biases are left
    mean = model.likelihood(torch.randn(3, model.latent_dim)).mean
    expected = x.mean(0)
    if likelihood != "gaussian":
        expected = expected.clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(mean, expected.expand(3, -1))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (data.Examples(torch.zeros(2, 784)), TypeError, "x is a Examples; expected a"),
        (torch.zeros(2, 28, 28), ValueError, r"shape \(2, 28, 28\); expected \(N, 784"),
    ],
)
def test_start_at_refuses_what_has_no_mean(x, error, message):
    with pytest.raises(error, match=message):
        small().start_at(x)
