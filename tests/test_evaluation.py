"""Tests of aevb/evaluation.py, against the closed forms of factor analysis."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from aevb import data, evaluation, models
from aevb.evaluation import (
    Estimate,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    inference_gap,
)
from aevb.inference import best_factorised, fit_per_point

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


def test_each_module_is_left_in_its_own_mode():
    model = models.VAE(data_dim=4, latent_dim=2, hidden=(8,), dropout=0.5)
    model.generative.eval()  # frozen by its owner
    before = [m.training for m in model.modules()]
    x = torch.rand(5, 4)
    evaluation.elbo(model, x)
    fit_per_point(model, x, steps=1)
    assert [m.training for m in model.modules()] == before
    assert model.training and not model.generative.training


def test_progress_wraps_the_batches(model):
    seen = []

    def progress(batches):
        seen.append(len(batches))
        return batches

    found = evaluation.log_likelihood(model, X, num_samples=5, progress=progress)
    assert seen == [3] and len(found.values) == 300


@pytest.mark.parametrize("function", [evaluation.elbo, evaluation.log_likelihood])
def test_unsuitable_arguments_are_refused(model, function):
    with pytest.raises(
        ValueError, match="num_samples is 0; expected a whole number, at least 1"
    ):
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


def test_grid_of_a_bounded_prior():
    """Outside the prior's support p(z | x) is 0, and adds nothing to a divergence."""
    model = models.FactorAnalysis(latent_dim=1)
    low, high = torch.tensor([-1.0]), torch.tensor([1.0])
    bounded = torch.distributions.Uniform(low, high, validate_args=False)
    model.prior = lambda: Independent(bounded, 1, validate_args=False)
    grid = evaluation.grid_posterior(model, X[:3], low=-4, high=4, points=4001)
    std = torch.tensor([[0.5], [0.02]])  # the second underflows where p is 0
    wide, narrow = (Independent(Normal(torch.zeros(1), s), 1) for s in std)
    forward = [grid.forward_kl(q) for q in (wide, narrow)]
    assert all((kl > 0).all() and kl.isfinite().all() for kl in forward)
    assert (grid.reverse_kl(wide) == math.inf).all()  # q reaches where p is 0
    log_q = narrow.log_prob(grid.points.float()).double()[:, None]
    inside = grid.points[:, 0].abs() < 0.99
    expected = (log_q.exp() * (log_q - grid.log_density))[inside].sum(0) * grid.cell
    assert expected.isfinite().all()
    torch.testing.assert_close(grid.reverse_kl(narrow), expected)


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
        (torch.zeros(1).long(), [0], TypeError, "y is a list"),
        (torch.zeros(3).long(), torch.zeros(2).long(), ValueError, "the same for"),
        (torch.zeros(0).long(), torch.zeros(0).long(), ValueError, "N >= 1"),
        (torch.tensor([-1]), torch.tensor([0]), ValueError, "numbers from 0"),
    ],
)
def test_accuracy_names_what_is_wrong(predicted, y, error, message):
    with pytest.raises(error, match=message):
        evaluation.clustering_accuracy(predicted, y)


# --- importance weights ---------------------------------------------------------------


def test_effective_sample_size():
    weights = np.array([[1.0, 5.0, 2.0], [1.0, 0.0, 1.0], [1.0, 0.0, 3.0]])
    with np.errstate(divide="ignore"):
        found = evaluation.effective_sample_size(torch.tensor(np.log(weights) - 1000))
    expected = weights.sum(0) ** 2 / (weights**2).sum(0)
    np.testing.assert_allclose(found, expected)
    assert found.dtype == torch.float64


def test_importance_curve_starts_at_the_elbo_and_reaches_the_evidence(model):
    model, x = model.double(), X.double()
    curve = evaluation.importance_curve(model, x, most=1024)
    assert curve.counts == tuple(2**k for k in range(11))
    assert curve.values.shape == (11, len(x)) and curve.effective.shape == (len(x),)
    assert (curve.values.diff(dim=0) >= 0).all()
    truth = model.evidence(x)
    exact = {1: truth - model.gap(x), 1024: truth}
    for k, expected in exact.items():
        error = curve.values[curve.counts.index(k)] - expected
        standard_error = error.std() / len(x) ** 0.5
        assert abs(error.mean()) < 3 * standard_error + 1e-3 * (k > 1)
    assert ((curve.effective > 1) & (curve.effective < 1024)).all()


def test_importance_curve_ends_at_the_log_mean_of_all_weights(model):
    curve = evaluation.importance_curve(model, X[:7], most=256, seed=3)
    expected = evaluation.log_likelihood(model, X[:7], num_samples=256, seed=3).values
    assert abs((curve.values[-1] - expected).mean()) < 0.1  # cut differently
    log_w = []
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for _ in range(2):
            log_w.append(model.log_weights(X[:7], num_samples=128, generator=generator))
    log_w = torch.cat(log_w).double()
    pairs = log_w.view(128, 2, 7).logsumexp(1).mean(0) - math.log(2)
    torch.testing.assert_close(curve.values[0], log_w.mean(0))
    torch.testing.assert_close(curve.values[1], pairs)
    torch.testing.assert_close(curve.values[-1], log_w.logsumexp(0) - math.log(256))


@pytest.mark.parametrize("most", [0, 3, 100])
def test_importance_curve_takes_powers_of_two(model, most):
    with pytest.raises(ValueError, match=f"most is {most}; expected a power of two"):
        evaluation.importance_curve(model, X, most=most)


def test_a_model_without_parameters_is_evaluated():
    class Fixed(models.FactorAnalysis):
        def parameters(self, recurse=True):
            return iter(())

    assert evaluation.elbo(Fixed(), X[:5]).values.shape == (5,)


# --- annealed importance sampling ---

FEW = {"steps": 40, "leapfrog": 4, "chains": 24}
STARTS = pytest.mark.parametrize("start", evaluation.STARTS)


@STARTS
def test_annealing_reaches_the_evidence(model, start):
    x, evidence = X[:60], torch.as_tensor(closed_evidence(model)[:60])
    found = annealed_importance_sampling(model, x, start=start, **FEW)
    assert found.values.shape == found.monte_carlo_error.shape == (60,)
    assert found.values.dtype == torch.float64
    error = found.monte_carlo_error
    assert error.mean() < 0.25
    z = (found.values - evidence) / error
    assert z.abs().max() < 5 and 0.5 < z.square().mean() < 2  # as errors should
    total = error.square().sum().sqrt() / 60
    assert abs(found.mean - evidence.mean()) < 4 * total
    assert found.standard_error == pytest.approx(stats.sem(found.values), rel=1e-9)
    assert repr(found) == f"{found.mean:.2f} ± {found.standard_error:.2f} nats"
    assert 0.5 < found.acceptance.mean() < 0.85


def test_annealing_from_the_prior_owes_nothing_to_q(model):
    """Importance sampling breaks with a bad q, and this does not even notice."""
    few = FEW | {"steps": 5}
    first = annealed_importance_sampling(model, X[:10], **few)
    with torch.no_grad():
        model.inference.weights.fill_(10.0)
    again = annealed_importance_sampling(model, X[:10], **few)
    assert torch.equal(again.values, first.values)


def test_one_annealing_step_is_importance_sampling(model):
    for start, other in (
        ("posterior", evaluation.log_likelihood),
        ("prior", evaluation.naive_log_likelihood),
    ):
        found = annealed_importance_sampling(
            model, X[:50], steps=1, chains=70, start=start, seed=3
        )
        expected = other(model, X[:50], num_samples=70, seed=3)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-5)


def test_truth_lies_in_the_sandwich(model):
    """With few steps a wide one; with more, a narrow one; with any, on either side."""
    gaps = []
    for steps in (5, 40):
        how = {"steps": steps, "leapfrog": 3, "chains": 4}
        found = bidirectional_monte_carlo(model, 1000, **how)
        evidence = model.evidence(found.x).detach().double()
        below, above = evidence - found.lower.values, found.upper.values - evidence
        for side in (below, above):
            assert side.mean() > 3 * stats.sem(side)  # the sides are two, clearly
        assert below.mean() + above.mean() == pytest.approx(found.gap.mean, abs=1e-5)
        gaps.append(found.gap)
    assert gaps[1].mean < 0.4 * gaps[0].mean and gaps[1].mean < 0.4
    assert gaps[0].mean > 5 * gaps[0].standard_error > 5 * gaps[1].standard_error


@STARTS
def test_weights_of_the_sandwich_have_the_mean_that_they_should(model, start):
    """Both ways, with few steps. Exact draws of p(z | x) are wide enough here.

    Where p(z | x) is much narrower than p_0, weights on the way down have a mean, but
    no variance, and no average tells what it is.
    """
    with torch.no_grad():
        model.generative.loadings.mul_(0.3)
        model.inference.below.zero_()
        model.inference.weights.mul_(0.3)
        model.inference.diagonal.fill_(0.3)
    how = {"steps": 4, "leapfrog": 2, "chains": 2, "start": start}
    found = bidirectional_monte_carlo(model, 3000, **how)
    evidence = model.evidence(found.x).detach().double()
    for log_ratio in (found.lower.values - evidence, evidence - found.upper.values):
        ratio = log_ratio.exp()  # of the mean weight to its expectation
        assert 0.001 < stats.sem(ratio) < 0.02
        assert abs(ratio.mean() - 1) < 4 * stats.sem(ratio)


def test_sandwich_of_data_from_the_model(model):
    how = {"steps": 1, "chains": 1}
    one, two, other = (
        bidirectional_monte_carlo(model, 4000, seed=s, **how) for s in (0, 0, 1)
    )
    assert torch.equal(one.x, two.x) and not torch.equal(one.x, other.x)
    covariance = model.loadings @ model.loadings.T + model.noise_scale.square().diag()
    found = torch.cov(one.x.T)
    assert (found - covariance).abs().max() < 0.1 * covariance.abs().max()
    assert one.lower.monte_carlo_error.isnan().all()  # one chain has no spread


def small_conditional(**options):
    torch.manual_seed(1)
    return models.ConditionalVAE(
        num_classes=3,
        data_dim=3,
        latent_dim=2,
        hidden=(8,),
        likelihood="gaussian",
        dropout=0.5,
        **options,
    )


@STARTS
def test_annealing_with_a_condition(start):
    """Against the sum over a grid."""
    model = small_conditional()
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    found = annealed_importance_sampling(model, (x, y), start=start, **FEW)
    truth = evaluation.grid_posterior(model, x, y, low=-12, high=12).log_evidence
    assert ((found.values - truth).abs() < 5 * found.monte_carlo_error + 1e-3).all()
    both = bidirectional_monte_carlo(model, 4, y[:3], start=start, **FEW)
    assert both.x.shape == (12, 3)
    grid = evaluation.grid_posterior(model, both.x, y[:3].repeat(4), low=-12, high=12)
    for side in (both.lower, both.upper):
        error = (side.values - grid.log_evidence).abs()
        assert (error < 5 * side.monte_carlo_error + 1e-3).all()


@STARTS
def test_annealing_of_a_mixture(start):
    """A GMVAE without y: prior and posterior are mixtures of Gaussians."""
    torch.manual_seed(2)
    model = models.GaussianMixtureVAE(
        num_classes=2, data_dim=3, latent_dim=1, hidden=(6,), likelihood="gaussian"
    )
    x = torch.randn(5, 3)
    found = annealed_importance_sampling(model, x, start=start, **FEW)
    truth = evaluation.grid_posterior(model, x, low=-15, high=15, points=2000)
    error = (found.values - truth.log_evidence).abs()
    assert (error < 5 * found.monte_carlo_error + 1e-3).all()
    assert bidirectional_monte_carlo(model, 3, steps=2, start=start).x.shape == (3, 3)


def test_annealing_is_the_same_in_parts(model, monkeypatch):
    """In expectation: each batch has draws of its own."""
    whole = annealed_importance_sampling(model, X[:20], **FEW)
    monkeypatch.setattr(evaluation, "_ROWS", 7 * FEW["chains"])
    seen = []
    progress = lambda steps: seen.append(len(steps)) or steps  # noqa: E731
    cut = annealed_importance_sampling(model, X[:20], progress=progress, **FEW)
    assert seen == [40, 40, 40]
    error = (whole.monte_carlo_error.square() + cut.monte_carlo_error.square()).sqrt()
    assert ((whole.values - cut.values).abs() < 5 * error).all()
    both = bidirectional_monte_carlo(model, 20, steps=2, chains=24)
    assert both.x.shape == (20, 3) and len(both.upper.values) == 20


def test_annealing_leaves_all_as_it_was():
    model = small_conditional().train()
    x, y = torch.randn(4, 3), torch.arange(4) % 3
    state = torch.get_rng_state()
    how = {"steps": 3, "chains": 2, "leapfrog": 1}
    one, two, other = (
        annealed_importance_sampling(model, (x, y), seed=s, **how).values
        for s in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)  # no dropout in it
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert not one.requires_grad and torch.is_grad_enabled()


def test_annealing_refuses_what_it_cannot_do(model):
    for name in ("steps", "leapfrog", "chains"):
        with pytest.raises(
            ValueError, match=f"{name} is 0; expected a whole number, at least 1"
        ):
            annealed_importance_sampling(model, X, **{name: 0})
        with pytest.raises(
            ValueError, match=f"{name} is 0; expected a whole number, at least 1"
        ):
            bidirectional_monte_carlo(model, 5, **{name: 0})
    with pytest.raises(ValueError, match="start is 'q'; expected one of"):
        annealed_importance_sampling(model, X, start="q")
    with pytest.raises(ValueError, match="n is 0"):
        bidirectional_monte_carlo(model, 0)
    with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
        annealed_importance_sampling(model, X[:, :2])
    model.prior = lambda: Independent(Bernoulli(torch.full((2,), 0.3)), 1)
    with pytest.raises(ValueError, match="z is discrete"):
        annealed_importance_sampling(model, X)


# --- the gap, split ---


def exact_gaps(model, x):
    """Of the best diagonal Gaussian, and of the model's q: (N,) each."""
    with torch.no_grad():
        exact = model.exact_posterior(x)
        return kl_divergence(best_of(exact), exact), model.gap(x)


def best_of(exact):
    """The best factorised Gaussian, with a covariance: torch compares only these."""
    best = best_factorised(exact)
    return type(exact)(best.mean, torch.diag_embed(best.variance))


def excess(q_z, exact):
    """M, (B, L, L): log p(x, z) - log q(z) is c + bᵀε - εᵀMε / 2 at z = μ + Cε."""
    factor = torch.linalg.cholesky(q_z.covariance_matrix)
    return factor.mT @ exact.precision_matrix @ factor - torch.eye(factor.shape[-1])


def error_of_pairs(m, num_samples):
    """Standard error of the mean of c - εᵀMε / 2, all that antithetic pairs leave."""
    return (m.double().square().sum((-1, -2)) / 2 / num_samples).sqrt()


def test_gap_of_factor_analysis(model):
    """q is full here, and wider than the truth; the family compared is the diagonal."""
    x, num_samples = X[:50], 10_000
    family, total = (part.double() for part in exact_gaps(model, x))
    with torch.no_grad():
        exact = model.exact_posterior(x)
        of_best = excess(best_of(exact), exact)
        of_network = excess(model.posterior(x), exact)
    log_p = model.evidence(x)
    found = inference_gap(model, x, log_p, steps=200, num_samples=num_samples)
    for part, expected, m, left in (  # left by an optimiser that stops
        (found.approximation, family, of_best, 0.01),
        (found.total, total, of_network, 0.0),
        (found.amortisation, total - family, of_network - of_best, 0.01),
    ):
        one = error_of_pairs(m, num_samples).max().item()
        assert one < 0.06
        torch.testing.assert_close(part.values, expected, atol=5 * one + left, rtol=0)
        away = abs(part.mean - expected.mean().item())
        assert away < 4 * one / len(x) ** 0.5 + left
        assert part.standard_error == pytest.approx(stats.sem(part.values), rel=1e-9)
    z = (found.total.values - total) / error_of_pairs(of_network, num_samples)
    assert 0.5 < z.square().mean() < 2  # as errors should
    parts = found.approximation.values + found.amortisation.values
    torch.testing.assert_close(parts, found.total.values)


def test_family_that_holds_the_truth_has_no_approximation_gap(model):
    x, how = X[:50], {"family": "full", "steps": 200, "num_samples": 10_000}
    found = inference_gap(model, x, model.evidence(x), **how)
    assert found.approximation.values.abs().max() < 0.03
    with torch.no_grad():
        total = model.gap(x).double()
        m = excess(model.posterior(x), model.exact_posterior(x))
    one = error_of_pairs(m, how["num_samples"]).max().item()  # M of the best q is 0
    torch.testing.assert_close(
        found.amortisation.values, total, atol=5 * one + 0.01, rtol=0
    )
    away = abs(found.amortisation.mean - total.mean().item())
    assert away < 4 * one / len(x) ** 0.5 + 0.01


def test_gap_estimates_log_p_by_itself(model):
    found = inference_gap(model, X[:20], steps=5, num_samples=10, seed=4)
    expected = evaluation.log_likelihood(model, X[:20], seed=4)
    assert torch.equal(found.log_likelihood.values, expected.values)


def test_gap_of_a_shuffling_loader_is_that_of_each_example(model):
    """log p(x) and both ELBOs belong to the same example, whatever the order."""
    loader = DataLoader(TensorDataset(X[:100]), batch_size=50, shuffle=True)
    found = inference_gap(model, loader, steps=1, num_samples=2000)
    exact = model.gap(X[:100]).double().detach()
    difference = found.total.values.sort().values - exact.sort().values
    assert difference.abs().max() < 0.6


def test_gap_estimates_log_p_in_parts_of_a_batch(model, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 200)
    found = inference_gap(model, X[:250], steps=1, num_samples=1)
    expected = evaluation.log_likelihood(model, X[:250])
    assert torch.equal(found.log_likelihood.values, expected.values)


def test_gap_with_a_condition_leaves_the_model_alone():
    model = small_conditional().train()
    x, y = torch.randn(4, 3), torch.arange(4) % 3
    state = torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    how = {"steps": 30, "num_samples": 10_000}
    found = inference_gap(model, (x, y), torch.zeros(4), **how)
    expected = evaluation.elbo(model, (x, y), num_samples=20_000).values
    torch.testing.assert_close(found.amortised.values, expected, atol=0.1, rtol=0.05)
    assert (found.amortisation.values > 0).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_gap_wrong_arguments(model, monkeypatch):
    monkeypatch.setattr(evaluation, "fit_per_point", None)  # no work before the error
    with pytest.raises(ValueError, match=r"log_p has shape \(3,\); expected \(4,\)"):
        inference_gap(model, X[:4], torch.zeros(3), steps=1, num_samples=1)
    with pytest.raises(ValueError, match="num_samples is 0"):
        inference_gap(model, X[:4], num_samples=0)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="family is 'round'"):
        inference_gap(model, X[:4], family="round")


# --- latent coordinates ---


def test_kl_of_each_coordinate(model):
    """The formula for two numbers each, in NumPy."""
    v = model.inference.weights.detach().double().numpy()
    q = model.posterior(X[:1])
    variance = q.covariance_matrix[0].diagonal().detach().double().numpy()
    mean = X.double().numpy() @ v.T
    expected = ((variance + mean**2 - 1 - np.log(variance)) / 2).mean(0)
    found = evaluation.kl_per_coordinate(model, X)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.sum() < evaluation.terms(model, X).kl.double().mean()  # correlated


@pytest.mark.parametrize("condition", ["both", "likelihood"])
def test_kl_of_coordinates_adds_up(condition, monkeypatch):
    model = small_conditional(condition=condition)
    source = torch.randn(50, 3), torch.arange(50) % 3
    found = evaluation.kl_per_coordinate(model, source)
    total = evaluation.terms(model, source).kl.double().mean()
    torch.testing.assert_close(found.sum(), total)
    order = torch.randperm(50)
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 7)
    again = evaluation.kl_per_coordinate(model, tuple(part[order] for part in source))
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-6)


def test_kl_of_coordinates_needs_gaussians():
    mixture = models.GaussianMixtureVAE(num_classes=2, data_dim=3, hidden=(3,))
    with pytest.raises(ValueError, match="a MixtureSameFamily; expected a Gaussian"):
        evaluation.kl_per_coordinate(mixture, torch.zeros(4, 3))


def test_activity_is_the_variance_of_the_means(model, monkeypatch):
    v = model.inference.weights.detach().double().numpy()
    expected = np.var(X.double().numpy() @ v.T, axis=0)
    np.testing.assert_allclose(evaluation.activity(model, X), expected, rtol=1e-5)
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 7)
    np.testing.assert_allclose(evaluation.activity(model, X), expected, rtol=1e-5)
    assert (evaluation.activity(model, X[:1]) == 0).all()


def test_active_units_are_those_that_move(model):
    with torch.no_grad():
        model.inference.weights[0] *= 1e-3
    assert evaluation.active_units(model, X).tolist() == [False, True]
    assert evaluation.active_units(model, X, threshold=1e-12).all()
    assert not evaluation.active_units(model, X, threshold=1e6).any()
    with pytest.raises(ValueError, match="threshold is 0; expected a positive number"):
        evaluation.active_units(model, X, threshold=0)


def test_following_the_label_is_no_activity():
    model = small_conditional()
    source = torch.randn(30, 3), torch.arange(30) % 3
    model.posterior = lambda x, y: model.prior(y)
    assert model.prior(source[1]).mean.var(0).min() > 0.01
    assert evaluation.activity(model, source).max() < 1e-12
    shift = lambda x, y: model.prior(y).stddev * x[:, :2]  # noqa: E731
    model.posterior = lambda x, y: Normal(model.prior(y).mean + shift(x, y), 1.0)
    expected = source[0][:, :2].double().var(0, correction=0)
    torch.testing.assert_close(
        evaluation.activity(model, source), expected, rtol=1e-4, atol=1e-6
    )


def test_activity_of_a_mixture():
    mixture = models.GaussianMixtureVAE(num_classes=2, data_dim=3, hidden=(3,))
    assert evaluation.active_units(mixture, torch.eye(3)).shape == (64,)


# --- models that a function does not serve --------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        evaluation.kl_per_coordinate,
        evaluation.activity,
        evaluation.active_units,
        evaluation.inference_gap,
        evaluation.grid_posterior,
        evaluation.naive_log_likelihood,
        annealed_importance_sampling,
        lambda model, x: bidirectional_monte_carlo(model, len(x)),
    ],
)
def test_a_model_of_many_z_is_refused(function):
    model = models.VariationalRNN(data_dim=4, recurrent=(8,), hidden=(8,))
    message = r"model is a VariationalRNN, whose prior takes \(h\); expected one that"
    with pytest.raises(TypeError, match=message):
        function(model, torch.zeros(2, 3, 4))


def test_a_conditional_model_has_no_naive_estimate():
    message = r"a ConditionalVAE, whose prior takes \(y\); expected .* takes 0 condit"
    with pytest.raises(TypeError, match=message):
        x, y = torch.randn(4, 3), torch.arange(4) % 3
        evaluation.naive_log_likelihood(small_conditional(), (x, y))
