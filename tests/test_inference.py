"""Tests of aevb/inference.py: per-point posteriors, mean field, any ELBO."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from aevb import data, inference, models

X = data.factor_analysis(n=10)[0].x


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return models.VAE(data_dim=3, latent_dim=2, hidden=(8,), likelihood="gaussian")


def test_nothing_in_the_model_changes(vae):
    vae.train()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    state = torch.get_rng_state()
    inference.fit_per_point(vae, X, steps=3)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert vae.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mode_comes_back_after_an_error(vae):
    vae.train()
    with pytest.raises(RuntimeError):
        inference.fit_per_point(vae, X[:, :2], steps=1)
    assert vae.training


def test_dropout_is_off():
    torch.manual_seed(0)
    model = models.VAE(
        data_dim=3, latent_dim=2, hidden=(8,), likelihood="gaussian", dropout=0.9
    ).train()
    a, b = (inference.fit_per_point(model, X, steps=5)().mean for _ in range(2))
    assert torch.equal(a, b)


def test_works_without_gradients(vae):
    with torch.no_grad():
        q = inference.fit_per_point(vae, X, steps=3)
    assert not any(p.requires_grad for p in q.parameters())


@pytest.mark.parametrize("family", inference.FAMILIES)
def test_start(vae, family):
    start = MultivariateNormal(X[:, :2], 0.25 * torch.eye(2).expand(10, 2, 2))
    q = inference.fit_per_point(vae, X, family=family, start=start, steps=1, lr=1e-9)()
    assert torch.allclose(q.mean, start.mean, atol=1e-6)
    assert torch.allclose(q.stddev, torch.tensor(0.5), atol=1e-6)
    prior = inference.fit_per_point(vae, X, family=family, steps=1, lr=1e-9)()
    assert torch.allclose(prior.mean, torch.zeros(10, 2), atol=1e-6)
    assert torch.allclose(prior.stddev, torch.ones(10, 2), atol=1e-6)


def test_seed(vae):
    fits = [inference.fit_per_point(vae, X, steps=5, seed=s)().mean for s in (0, 0, 1)]
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_better_than_the_network(vae):
    q = inference.fit_per_point(vae, X, steps=300)()
    vae.eval()
    with torch.no_grad():
        found, network = (
            inference.elbo_of(p, vae, X, num_samples=2000).elbo
            for p in (q, vae.posterior(X))
        )
    assert (found > network).all()


def test_mirror_images_cancel_what_is_odd():
    """The gradient in the mean has no noise where log p is quadratic."""
    model = models.FactorAnalysis()
    q = inference.PerPointPosterior(X[:, :2], torch.ones(10, 2))
    gradients = [
        torch.autograd.grad(inference.elbo_of(q(), model, X).elbo.sum(), q.mean)[0]
        for _ in range(2)
    ]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("family", "numbers"), [("diagonal", 60), ("full", 90)])
def test_num_parameters(family, numbers):
    q = inference.PerPointPosterior(torch.zeros(10, 3), torch.ones(10, 3), family)
    assert q.num_parameters == numbers


def test_wrong_arguments(vae):
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="family is 'banana'"):
        inference.PerPointPosterior(zero, one, "banana")
    with pytest.raises(ValueError, match=r"\(2, 3\) and std \(2,\)"):
        inference.PerPointPosterior(zero, one[:, 0])
    with pytest.raises(ValueError, match="smallest std"):
        inference.PerPointPosterior(zero, zero)
    with pytest.raises(ValueError, match="steps is 0"):
        inference.fit_per_point(vae, X, steps=0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        inference.elbo_of(vae.posterior(X), vae, X, num_samples=0)


def test_coordinate_ascent_never_goes_down():
    factor = torch.tensor([[1.0, 0.0], [1.9, 0.3]], dtype=torch.float64)
    target = MultivariateNormal(torch.zeros(2).double(), scale_tril=factor)
    path = inference.coordinate_ascent(target, torch.tensor([3.0, -1.0]).double(), 20)
    distances = ((path.means @ target.precision_matrix) * path.means).sum(1)
    assert (distances.diff() <= 1e-12).all()
    assert path.means.shape == (21, 2)


def test_coordinate_ascent_starts_at_whole_numbers():
    target = MultivariateNormal(
        torch.tensor([0.5, -0.3]), torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    )
    start = torch.tensor([3, -2])
    found, expected = (
        inference.coordinate_ascent(target, some, 3).means
        for some in (start, start.float())
    )
    assert torch.equal(found, expected)
    assert torch.equal(start, torch.tensor([3, -2]))
