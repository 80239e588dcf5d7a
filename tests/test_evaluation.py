"""Tests of aevb/evaluation.py, against the closed forms of factor analysis."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Independent, Normal
from torch.utils.data import DataLoader, TensorDataset

from aevb import data, evaluation, models
from aevb.evaluation import Estimate

X = data.factor_analysis(n=300)[1].x


@pytest.fixture
def model():
    """Factor analysis with a q that is good, but not exact."""
    model = models.FactorAnalysis()
    with torch.no_grad():
        model.generative.loadings.copy_(torch.tensor(data.LOADINGS))
        model.generative.noise.fill_(0.0)
        exact = model.exact_posterior(torch.eye(3)).mean.T  # (L, D)
        model.inference.weights.copy_(exact + 0.05)
        model.inference.diagonal.fill_(0.0)  # wider than p(z | x)
        model.inference.below.fill_(0.1)
    return model.eval()


def closed_elbo(model):
    """E_q[log p(x | z)] - KL(q ‖ p) of each example, in NumPy."""
    double = lambda t: t.detach().double().numpy()  # noqa: E731
    x, w, noise = X.double().numpy(), double(model.loadings), double(model.noise_scale)
    factor = np.tril(double(model.inference.below), -1)
    factor += np.diag(np.logaddexp(0, double(model.inference.diagonal)) + 1e-6)
    covariance = factor @ factor.T
    mean = x @ double(model.inference.weights).T  # (N, L)
    density = stats.norm(mean @ w.T, noise).logpdf(x).sum(1)
    reconstruction = density - np.trace(w.T / noise**2 @ w @ covariance) / 2
    log_det = np.linalg.slogdet(covariance)[1]
    kl = ((mean**2).sum(1) + np.trace(covariance) - 2 - log_det) / 2
    return reconstruction, kl


def closed_evidence(model):
    w, noise = (
        t.detach().double().numpy() for t in (model.loadings, model.noise_scale)
    )
    marginal = stats.multivariate_normal(np.zeros(3), w @ w.T + np.diag(noise**2))
    return marginal.logpdf(X)


def test_elbo_agrees_with_its_closed_form(model):
    reconstruction, kl = closed_elbo(model)
    expected = reconstruction - kl
    found = evaluation.elbo(model, X, num_samples=400)
    draws = [evaluation.elbo(model, X, seed=s).values for s in range(1, 201)]
    error = torch.stack(draws).std(0).numpy() / 400**0.5  # of the mean of 400 draws
    assert (np.abs(found.values.numpy() - expected) < 5 * error).all()
    total = np.sqrt((error**2).sum()) / len(X)
    assert abs(found.mean - expected.mean()) < 4 * total


def test_terms_agree_with_their_closed_forms(model):
    reconstruction, kl = closed_elbo(model)
    found = evaluation.terms(model, X, num_samples=400)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-5)
    assert abs(found.reconstruction.double().mean() - reconstruction.mean()) < 0.02
    assert torch.equal(found.elbo, found.reconstruction - found.kl)


def test_log_likelihood_reaches_the_evidence(model):
    evidence = closed_evidence(model)
    found = evaluation.log_likelihood(model, X, num_samples=3000)
    # the spread of fresh weights gives each example's error
    with torch.no_grad():
        log_w = model.log_weights(X, num_samples=3000).double()
    ratios = (log_w - torch.as_tensor(evidence)).exp()
    error = ratios.std(0).numpy() / 3000**0.5
    z = (found.values.numpy() - evidence) / error
    assert np.abs(z).max() < 6 and 0.8 < (z**2).mean() < 1.25  # errors as they should
    assert abs(found.mean - evidence.mean()) < 4 * np.sqrt((error**2).sum()) / len(X)


def test_log_likelihood_rises_from_the_elbo_to_the_evidence(model):
    evidence = closed_evidence(model)
    counts = (1, 3, 30, 300)
    runs = [
        torch.stack(
            [
                evaluation.log_likelihood(model, X, num_samples=k, seed=s).values
                for s in range(8)
            ]
        ).mean(1)
        for k in counts
    ]  # means over the examples, 8 seeds each
    means = torch.stack([run.mean() for run in runs])
    errors = torch.stack([run.std() / 8**0.5 for run in runs])
    reconstruction, kl = closed_elbo(model)
    assert abs(means[0] - (reconstruction - kl).mean()) < 5 * errors[0]
    assert (means.diff() > 0).all()
    assert (means < evidence.mean() + 4 * errors).all()


def test_estimate_holds_mean_standard_error_and_values(model):
    found = evaluation.elbo(model, X)
    assert isinstance(found, Estimate)
    assert found.values.shape == (300,) and found.values.dtype == torch.float64
    values = found.values.numpy()
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(values), rel=1e-12)
    assert repr(found) == f"{found.mean:.2f} ± {found.standard_error:.2f} nats"
    assert math.isnan(evaluation.elbo(model, X[:1]).standard_error)


def test_same_seed_same_draws(model):
    for function in (evaluation.elbo, evaluation.log_likelihood):
        one, two, other = (
            function(model, X, num_samples=2, seed=s).values for s in (0, 0, 1)
        )
        assert torch.equal(one, two) and not torch.equal(one, other)


def test_sources_of_any_kind_and_size_of_batches_agree(model):
    """In expectation: which draws an example gets depends on the batches."""
    reconstruction, kl = closed_elbo(model)
    expected = (reconstruction - kl).mean()
    sources = [
        X,
        (X,),
        data.Examples(X),
        TensorDataset(X),
        *(DataLoader(TensorDataset(X), batch_size=size) for size in (1, 7, 300)),
    ]
    for source in sources:
        found = evaluation.elbo(model, source, num_samples=100)
        assert len(found.values) == 300
        assert abs(found.mean - expected) < 0.13  # 4 standard errors
        order = np.corrcoef(found.values, reconstruction - kl)[0, 1]
        assert order > 0.7  # the examples stay in their order
        bound = evaluation.log_likelihood(model, source, num_samples=100)
        assert abs(bound.mean - closed_evidence(model).mean()) < 0.05


@pytest.mark.parametrize("size", [1, 17, 1000])
def test_size_of_batches_does_not_matter(model, size, monkeypatch):
    """Exactly so for a q that leaves nothing to chance."""
    with torch.no_grad():
        model.inference.diagonal.fill_(-200.0)  # a standard deviation of 1e-6
        model.inference.below.zero_()
    expected = evaluation.elbo(model, X).values
    monkeypatch.setattr(evaluation, "BATCH_SIZE", size)
    found = evaluation.elbo(model, X).values
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_many_samples_come_in_parts(model, monkeypatch):
    """The memory needed does not grow with the number of samples."""
    sizes, elbo, log_weights = [], model.elbo, model.log_weights

    def spy(function):
        def call(x, num_samples, generator):
            sizes.append(len(x) * num_samples)
            return function(x, num_samples=num_samples, generator=generator)

        return call

    monkeypatch.setattr(model, "elbo", spy(elbo))
    monkeypatch.setattr(model, "log_weights", spy(log_weights))
    evaluation.elbo(model, X, num_samples=1000)
    evaluation.log_likelihood(model, X[:50], num_samples=1234)
    assert max(sizes) <= 20000
    assert sum(sizes) == 300 * 1000 + 50 * 1234


def test_model_is_evaluated_in_evaluation_mode_and_left_as_it_was():
    model = models.VAE(latent_dim=2, hidden=(8,), dropout=0.5)
    x = data.digits("continuous")[1].x[:50]
    modes = []
    model.register_forward_pre_hook(lambda *_: None)
    posterior = model.posterior
    model.posterior = lambda x: (
        modes.append((model.training, torch.is_grad_enabled())) or posterior(x)
    )
    for training in (True, False):
        model.train(training)
        state = torch.get_rng_state()
        first = evaluation.elbo(model, x)
        again = evaluation.log_likelihood(model, x, num_samples=1)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training == training and torch.is_grad_enabled()
        assert not first.values.requires_grad and not again.values.requires_grad
    assert set(modes) == {(False, False)}
    model.train()
    with pytest.raises(TypeError):
        evaluation.elbo(model, x.double())
    assert model.training and torch.is_grad_enabled()


def test_progress_wraps_the_batches(model):
    seen = []

    def progress(batches):
        seen.append(len(batches))
        return batches

    found = evaluation.log_likelihood(model, X, num_samples=5, progress=progress)
    assert seen == [3] and len(found.values) == 300


@pytest.mark.parametrize("function", [evaluation.elbo, evaluation.log_likelihood])
def test_unsuitable_arguments_are_refused(model, function):
    with pytest.raises(ValueError, match="num_samples is 0; expected at least 1"):
        function(model, X, num_samples=0)
    with pytest.raises(ValueError, match="the data is empty"):
        function(model, X[:0])
    with pytest.raises(ValueError, match=r"x has shape \(300, 2\); expected \(N, 3\)"):
        function(model, X[:, :2])
    with pytest.raises(TypeError, match="data is a ndarray; expected a tensor"):
        function(model, X.numpy())


def test_bits_per_pixel():
    """A uniform density on [0, 1] needs the 8 bits of the byte; K&W's sign is right."""
    assert evaluation.bits_per_pixel(0.0) == 8
    assert evaluation.bits_per_pixel(784 * math.log(2)) == pytest.approx(7)
    binary = evaluation.bits_per_pixel(-784 * math.log(2), levels=1)
    assert binary == pytest.approx(1)
    assert evaluation.bits_per_pixel(-3 * math.log(2), 3, 1) == pytest.approx(1)


# --- posteriors on a grid -----------------------------------------------------------


def test_grid_shapes(model):
    grid = evaluation.grid_posterior(model, X[:5], points=50)
    assert grid.points.shape == (2500, 2)
    assert grid.log_density.shape == (2500, 5)
    assert grid.log_density.dtype == torch.float64
    assert grid.covariance.shape == (5, 2, 2)
    assert torch.allclose(grid.probabilities.sum(0), torch.ones(5).double())
    assert torch.equal(grid.points[:50, 1], grid.axes[1])


def test_grid_does_not_depend_on_how_it_is_cut(model, monkeypatch):
    whole = evaluation.grid_posterior(model, X[:3], points=40)
    monkeypatch.setattr(evaluation, "_GRID_NUMBERS", 100)
    cut = evaluation.grid_posterior(model, X[:3], points=40)
    assert torch.allclose(whole.log_evidence, cut.log_evidence, atol=1e-5)


def test_grid_kl_is_the_gap(model):
    grid = evaluation.grid_posterior(model, X[:20], points=161)
    with torch.no_grad():
        found, expected = grid.reverse_kl(model.posterior(X[:20])), model.gap(X[:20])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        own = model.exact_posterior(X[:20])
    assert grid.reverse_kl(own).abs().max() < 1e-3
    assert grid.forward_kl(own).abs().max() < 1e-3


def test_grid_takes_many_q_for_one_example(model):
    grid = evaluation.grid_posterior(model, X[:1], points=101)
    means = torch.tensor([[0.0, 0.0], [0.5, 0.1], [-1.0, 1.0]])
    q = Independent(Normal(means, 0.7), 1)
    both = grid.reverse_kl(q), grid.forward_kl(q)
    for i in range(3):
        one = Independent(Normal(means[i : i + 1], 0.7), 1)
        assert both[0][i] == pytest.approx(grid.reverse_kl(one).item())
        assert both[1][i] == pytest.approx(grid.forward_kl(one).item())


def test_grid_says_when_it_cannot_carry_q(model):
    grid = evaluation.grid_posterior(model, X[:1], points=61)
    for mean, std in ((0.0, 0.01), (8.0, 1.0)):
        q = Independent(Normal(torch.full((1, 2), mean), std), 1)
        with pytest.raises(ValueError, match="too narrow for q, or too coarse"):
            grid.reverse_kl(q)


def test_grid_edge(model):
    inside = evaluation.grid_posterior(model, X[:5])
    assert inside.edge.max() < 1e-6
    outside = evaluation.grid_posterior(model, X[:5], low=5.0, high=6.0)
    assert outside.edge.max() > 0.5


def test_grid_wrong_arguments(model):
    with pytest.raises(ValueError, match="points is 1"):
        evaluation.grid_posterior(model, X, points=1)
    with pytest.raises(ValueError, match="z has 3 dimensions"):
        evaluation.grid_posterior(models.FactorAnalysis(latent_dim=3), X)


def test_grid_leaves_the_model_alone(model):
    model.train()
    evaluation.grid_posterior(model, X[:2], points=10)
    assert model.training


# --- clustering accuracy ---


def test_accuracy_does_not_depend_on_the_numbers_of_the_clusters():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(10, (500,), generator=g)
    noise = torch.randint(10, (500,), generator=g)
    predicted = torch.where(torch.rand(500, generator=g) < 0.7, y, noise)
    accuracy = evaluation.clustering_accuracy(predicted, y)
    assert 0.65 < accuracy < 0.85
    assert accuracy == (predicted == y).double().mean().item()
    for seed in range(3):
        names = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        assert evaluation.clustering_accuracy(names[predicted], y) == accuracy
        assert evaluation.clustering_accuracy(predicted, names[y]) == accuracy


def test_accuracy_is_perfect_for_any_renaming_of_the_truth():
    y = torch.arange(100) % 10
    assert evaluation.clustering_accuracy(9 - y, y) == 1.0
    assert evaluation.match_clusters(9 - y, y).tolist() == list(range(9, -1, -1))


def test_accuracy_with_more_clusters_than_classes():
    """Each class split into two clusters of 3 and 2: one of the two counts."""
    y = torch.arange(20) // 5
    predicted = 2 * y + (torch.arange(20) % 5 > 2)
    assert evaluation.clustering_accuracy(predicted, y) == 0.6
    matching = evaluation.match_clusters(predicted, y)
    assert matching.tolist() == [0, -1, 1, -1, 2, -1, 3, -1]


def test_accuracy_with_fewer_clusters_than_classes():
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    assert evaluation.clustering_accuracy(torch.zeros_like(y), y) == 0.5
    predicted = torch.tensor([1] * 5 + [0] * 5)
    assert evaluation.clustering_accuracy(predicted, y) == 0.8
    assert evaluation.match_clusters(predicted, y).tolist() == [1, 0]


def test_accuracy_is_not_greedy():
    """The largest cell of the table is not part of the best matching."""
    pairs = [(0, 0)] * 6 + [(0, 1)] * 5 + [(1, 0)] * 5
    predicted, y = torch.tensor(pairs).T
    assert evaluation.clustering_accuracy(predicted, y) == 10 / 16


def test_accuracy_leaves_out_clusters_that_are_empty():
    y = torch.tensor([0, 0, 1, 1])
    assert evaluation.clustering_accuracy(torch.tensor([7, 7, 2, 2]), y) == 1.0


@pytest.mark.parametrize(
    ("predicted", "y", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), TypeError, "predicted is torch.float"),
        ([0], torch.zeros(1).long(), TypeError, "predicted is a list"),
        (torch.zeros(3).long(), torch.zeros(2).long(), ValueError, "the same for"),
        (torch.zeros(0).long(), torch.zeros(0).long(), ValueError, "N >= 1"),
        (torch.tensor([-1]), torch.tensor([0]), ValueError, "numbers from 0"),
    ],
)
def test_accuracy_names_what_is_wrong(predicted, y, error, message):
    with pytest.raises(error, match=message):
        evaluation.clustering_accuracy(predicted, y)
