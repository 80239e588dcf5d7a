"""Tests of aevb/models/conditional_vae.py."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from aevb import data, estimators, evaluation, fit
from aevb.models import VAE, ConditionalVAE
from aevb.networks import LIKELIHOODS

CONDITIONS = ("both", "prior", "likelihood")
EXAMPLES = {
    "bernoulli": data.digits("binary")[0][:6],
    "continuous_bernoulli": data.digits("continuous")[0][:6],
    "gaussian": data.digits("continuous")[0][:6],
}
X = EXAMPLES["continuous_bernoulli"].x
Y = torch.tensor([0, 3, 9, 9, 1, 0])


def small(**arguments) -> ConditionalVAE:
    return ConditionalVAE(**{"latent_dim": 3, "hidden": (16, 8)} | arguments).eval()


def joined(network: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """A network's features, its inputs joined end to end: the plain implementation."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in inputs))
    h = torch.cat([part.expand(*shape, -1) for part in inputs], -1)
    for layer in network:
        if isinstance(layer, nn.Linear):
            h = F.linear(h, layer.weight, layer.bias).relu()
    return h


def plain_gaussian(head, h) -> tuple[torch.Tensor, torch.Tensor]:
    mean = F.linear(h, head.mean.weight, head.mean.bias)
    raw = F.linear(h, head.std.weight, head.std.bias)
    return mean, raw.exp().log1p() + 1e-6


def assert_gaussian(q, mean, std):
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.stddev, std)


def test_the_defaults_are_the_papers():
    model = ConditionalVAE()
    shapes = [tuple(p.shape) for p in model.inference.parameters() if p.ndim == 2]
    assert shapes == [(500, 794), (500, 500), (20, 500), (20, 500)]
    shapes = [tuple(p.shape) for p in model.generative.parameters() if p.ndim == 2]
    assert shapes == [(500, 30), (500, 500), (784, 500), (20, 10), (20, 10)]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1] * 4
    head = model.generative["decoder"][-1]
    assert isinstance(head, LIKELIHOODS["continuous_bernoulli"])


@pytest.mark.parametrize("likelihood", EXAMPLES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_shapes(condition, likelihood):
    model = small(condition=condition, likelihood=likelihood)
    x = EXAMPLES[likelihood].x
    q, prior = model.posterior(x, Y), model.prior(Y)
    assert q.batch_shape == prior.batch_shape == (6,)
    assert q.event_shape == prior.event_shape == (3,)
    p = model.likelihood(torch.zeros(5, 6, 3), Y)
    assert p.batch_shape == (5, 6) and p.event_shape == (784,)
    terms = model.elbo(x, Y, num_samples=2)
    assert terms.elbo.shape == terms.kl.shape == (6,)
    assert terms.elbo.isfinite().all() and (terms.kl > 0).all()
    assert model.log_weights(x, Y, num_samples=4).shape == (4, 6)
    assert (
        model.sample(7, Y).shape == model.sample(7, Y, mean=True).shape == (7, 6, 784)
    )


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_part_is_that_of_a_network_on_joined_inputs(condition):
    """Posterior, prior and likelihood, against one-hots and ``torch.cat``."""
    model = small(condition=condition)
    rows = torch.eye(10)[Y]
    encoder, head = model.inference["encoder"]
    assert_gaussian(
        model.posterior(X, Y), *plain_gaussian(head, joined(encoder, X, rows))
    )
    if condition == "likelihood":
        assert "prior" not in model.generative
        assert_gaussian(model.prior(Y), torch.zeros(6, 3), torch.ones(6, 3))
    else:
        plain = plain_gaussian(model.generative["prior"], rows)
        assert_gaussian(model.prior(Y), *plain)
    z = torch.randn(5, 6, 3)
    decoder, head = model.generative["decoder"]
    h = joined(decoder, z) if condition == "prior" else joined(decoder, z, rows)
    logits = F.linear(h, head.logits.weight, head.logits.bias)
    torch.testing.assert_close(model.likelihood(z, Y).base_dist.logits, logits)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_elbo_is_the_sum_of_its_parts(condition):
    """(log p(x | y, z) + log p(z | y) - log q(z | x, y)), averaged over many draws."""
    model = small(condition=condition)
    terms = model.elbo(X, Y, num_samples=600)
    q, p = model.posterior(X, Y), model.prior(Y)
    m, s, m0, s0 = (t.detach().double() for t in (q.mean, q.stddev, p.mean, p.stddev))
    kl = ((s / s0) ** 2 + ((m - m0) / s0) ** 2 - 1 - 2 * (s / s0).log()).sum(1) / 2
    np.testing.assert_allclose(terms.kl.detach(), kl, rtol=1e-5)
    with torch.no_grad():
        log_w = model.log_weights(X, Y, num_samples=600)
        z = q.sample((600,))
        plain = model.likelihood(z, Y).log_prob(X) + p.log_prob(z) - q.log_prob(z)
    error = (2 * log_w.var(0) / 600).sqrt()
    assert ((log_w.mean(0) - terms.elbo).abs() < 4.5 * error).all()
    assert ((plain.mean(0) - terms.elbo).abs() < 4.5 * error).all()
    other = estimators.fully_sampled(model, X, Y, num_samples=600)
    assert ((other.elbo - terms.elbo).abs() < 4.5 * error).all()


def test_label_and_code_start_equally_loud_in_the_decoder():
    """For z ~ N(0, I), each adds the same variance to the first layer's outputs."""
    first = ConditionalVAE(hidden=(400,), latent_dim=25).generative["decoder"][0][0]
    z, y = torch.randn(2000, 25), torch.eye(10)
    with torch.no_grad():
        of_z, of_y = (part.T for part in first.weight.split(first.sizes, 1))
        ratio = (z @ of_z).var(0).mean() / (y @ of_y).var()
    assert 0.9 < ratio < 1.1


def test_the_likelihood_looks_at_the_label_or_does_not():
    z = torch.randn(4, 3)
    for condition in CONDITIONS:
        model = small(condition=condition)
        first, second = (
            model.likelihood(z, torch.full((4,), label)).mean for label in (0, 1)
        )
        assert torch.equal(first, second) == (condition == "prior")
        first, second = (model.prior(torch.tensor(label)).mean for label in (0, 1))
        assert torch.equal(first, second) == (condition == "likelihood")
        first, second = (
            model.posterior(X, torch.full((6,), label)).mean for label in (0, 1)
        )
        assert not torch.equal(first, second)


def test_prior_is_standard_normal_where_only_the_likelihood_is_conditioned():
    z = torch.linspace(-2, 2, 18).reshape(6, 3)
    expected = stats.norm.logpdf(z).sum(-1)
    prior = small(condition="likelihood").prior(Y)
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_label_that_does_nothing_leaves_the_vae(condition):
    """All columns of y zero, prior N(0, I): the VAE with the same other weights."""
    model = small(condition=condition)
    vae = VAE(latent_dim=3, hidden=(16, 8)).eval()
    with torch.no_grad():
        for chain in (model.generative["decoder"], model.inference["encoder"]):
            first = chain[0][0]
            for columns in first.weight.split(first.sizes, 1)[1:]:
                columns.zero_()
        if condition != "likelihood":
            head = model.generative["prior"]
            for parameter in head.parameters():
                parameter.zero_()
            head.std.bias.fill_(math.log(math.e - 1))
    pairs = (
        (vae.generative, model.generative["decoder"]),
        (vae.inference, model.inference["encoder"]),
    )
    for theirs, ours in pairs:
        state = ours.state_dict()
        first = next(iter(state))
        state[first] = state[first][:, : ours[0][0].sizes[0]]
        theirs.load_state_dict(state)
    draw = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    ours = model.elbo(X, Y, num_samples=3, generator=draw())
    theirs = vae.elbo(X, num_samples=3, generator=draw())
    torch.testing.assert_close(ours.reconstruction, theirs.reconstruction)
    torch.testing.assert_close(ours.kl, theirs.kl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_labels_may_be_rows_of_probabilities(condition):
    model = small(condition=condition)
    rows = torch.eye(10)[Y]
    draw = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    ours = model.elbo(X, rows, generator=draw())
    theirs = model.elbo(X, Y, generator=draw())
    assert torch.equal(ours.elbo, theirs.elbo)
    mixed = torch.full((6, 10), 0.1, requires_grad=True)
    model.elbo(X, mixed).elbo.sum().backward()
    assert mixed.grad.isfinite().all() and mixed.grad.any()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_all_classes_beside_all_images(condition):
    """What broadcasting gives is what a loop over the classes gives."""
    model = small(condition=condition)
    classes = torch.eye(10)
    q = model.posterior(X[:, None], classes)
    assert q.batch_shape == (6, 10)
    z = q.mean  # (B, C, L)
    p = model.likelihood(z, classes)
    assert p.batch_shape == (6, 10)
    log_p = p.log_prob(X[:, None])
    assert model.prior(classes).batch_shape == (10,)
    for label in range(10):
        y = torch.full((6,), label)
        one = model.posterior(X, y)
        torch.testing.assert_close(q.mean[:, label], one.mean)
        torch.testing.assert_close(q.stddev[:, label], one.stddev)
        expected = model.likelihood(one.mean, y).log_prob(X)
        torch.testing.assert_close(log_p[:, label], expected)


def test_all_classes_cost_one_product_with_the_images():
    """Counted: multiplications of the first layer, which repeating x multiplies."""
    from torch.utils.flop_counter import FlopCounterMode

    model = small(hidden=(16,))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.posterior(X[:, None], torch.eye(10))
    images, classes, heads = 6 * 784 * 16, 10 * 10 * 16, 2 * 6 * 10 * 16 * 3
    assert counter.get_total_flops() == 2 * (images + classes + heads)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_halves_are_disjoint_and_complete_and_all_of_them_learn(condition):
    model = small(condition=condition)
    theta = {id(p) for p in model.generative.parameters()}
    phi = {id(p) for p in model.inference.parameters()}
    assert not theta & phi
    assert theta | phi == {id(p) for p in model.parameters()}
    model.elbo(X, Y).elbo.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_fit_and_evaluation_take_labelled_examples(condition):
    train, test = data.digits("binary")
    model = small(condition=condition, likelihood="bernoulli")
    history = fit(
        model, train, test=test[:60], epochs=2, device="cpu", progress=False, lr=3e-3
    )
    assert history.test_elbo[1] > history.test_elbo[0]
    bound = evaluation.elbo(model, test[:20], num_samples=200)
    better = evaluation.log_likelihood(model, test[:20], num_samples=200)
    assert better.mean > bound.mean
    grid = evaluation.grid_posterior(
        small(condition=condition, latent_dim=2), X, Y, points=60
    )
    assert grid.log_evidence.shape == (6,)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_evidence_given_the_label_on_a_grid(condition):
    """The importance-weighted estimate reaches log p(x | y), summed on a grid."""
    torch.manual_seed(3)
    model = small(condition=condition, latent_dim=1, likelihood="bernoulli", data_dim=5)
    x = torch.randint(0, 2, (6, 5)).float()
    exact = evaluation.grid_posterior(model, x, Y, points=400).log_evidence
    estimate = evaluation.log_likelihood(model, (x, Y), num_samples=20000)
    torch.testing.assert_close(estimate.values, exact, atol=0.05, rtol=0)
    assert (evaluation.elbo(model, (x, Y), num_samples=2000).values < exact).all()


def test_samples():
    model = small()
    draw = lambda seed, **options: model.sample(  # noqa: E731
        40, Y, generator=torch.Generator().manual_seed(seed), **options
    )
    x = draw(0)
    assert torch.equal(x, draw(0)) and not torch.equal(x, draw(1))
    assert 0 <= x.min() and x.max() <= 1 and not x.requires_grad
    means = draw(0, mean=True)
    with torch.no_grad():
        z = model.prior(Y).sample((4000,))
        expected = model.likelihood(z, Y).mean.mean((0, 2))  # one number a label
    error = means.mean(2).std(0) / 40**0.5
    assert ((means.mean((0, 2)) - expected).abs() < 4.5 * error).all()


def test_a_label_may_be_a_number_or_a_list():
    model = small(likelihood="bernoulli")
    assert model.sample(3, 2).shape == (3, 784)
    for given, tensor in ((2, torch.tensor(2)), ([0, 9], torch.tensor([0, 9]))):
        found, expected = (
            model.sample(3, y, generator=torch.Generator().manual_seed(0))
            for y in (given, tensor)
        )
        assert torch.equal(found, expected)


def test_dropout_acts_in_training_only():
    model = small(dropout=0.5)
    assert torch.equal(model.posterior(X, Y).mean, model.posterior(X, Y).mean)
    model.train()
    assert not torch.equal(model.posterior(X, Y).mean, model.posterior(X, Y).mean)


def test_state_survives_a_round_trip_in_double_precision(tmp_path):
    model, other = small().double(), small().double()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = X.double()
    assert torch.equal(model.posterior(x, Y).mean, other.posterior(x, Y).mean)
    assert model.prior(Y).mean.dtype == torch.float64
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"condition": "y"}, r"condition is 'y'; expected one of \('both', 'prior', '"),
        ({"likelihood": "poisson"}, r"likelihood is 'poisson'; expected one of"),
        ({"num_classes": 0}, "num_classes is 0; expected a whole number, at least 1"),
        ({"latent_dim": 0}, "latent_dim is 0; expected a whole number, at least 1"),
        ({"data_dim": -2}, "data_dim is -2; expected a whole number, at least 1"),
        ({"hidden": ()}, r"hidden is \(\); expected at least one width"),
        ({"hidden": (5, 0)}, r"hidden is \(5, 0\); expected widths"),
        ({"dropout": 1.0}, "dropout is 1.0; expected at least 0, less than 1"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConditionalVAE(**arguments)


@pytest.mark.parametrize(
    "y, error, message",
    [
        (Y - 1, ValueError, "labels from -1 to 8; expected them from 0 to 9"),
        (Y + 1, ValueError, "labels from 1 to 10; expected them from 0 to 9"),
        (Y[:5], ValueError, r"has lengths|lengths \[6, 5\]|\(5,\); expected labels"),
        (Y[:, None], ValueError, r"y has shape \(6, 1\); expected labels of shape"),
        (
            torch.eye(10, dtype=torch.int64)[Y],
            ValueError,
            r"y has shape \(6, 10\); exp",
        ),
        (
            Y.to(torch.uint8),
            TypeError,
            "y is torch.uint8; expected a tensor of torch.i",
        ),
        (Y.bool(), TypeError, "y is torch.bool; expected a tensor"),
        (Y.float(), ValueError, r"y has shape \(6,\); expected probabilities of shape"),
        (torch.ones(6, 10), ValueError, "no probabilities; .* sums from 10 to 10"),
        (torch.eye(10)[Y] * 2 - 0.1, ValueError, "found values from -0.1 to 1.9"),
        (torch.eye(10)[Y] * math.nan, ValueError, "y holds rows that are no prob"),
        (torch.eye(10)[Y].double(), TypeError, "y is torch.float64; expected"),
        (torch.eye(9)[Y.clamp(max=8)], ValueError, r"y has shape \(6, 9\); expected"),
    ],
)
def test_unsuitable_labels_are_refused_before_training(y, error, message):
    model = small()
    before = [p.clone() for p in model.parameters()]
    for function in (
        lambda: fit(model, (X, y), epochs=1, device="cpu", progress=False),
        lambda: evaluation.elbo(model, (X, y)),
        lambda: evaluation.log_likelihood(model, (X, y)),
    ):
        with pytest.raises(error, match=message):
            function()
    assert all(map(torch.equal, before, model.parameters()))


def test_unsuitable_images_and_missing_labels_are_refused():
    model = small()
    with pytest.raises(ValueError, match="expected each to be between 0 and 1"):
        evaluation.elbo(model, (X * 255, Y))
    with pytest.raises(
        ValueError, match=r"x has shape \(6, 783\); expected \(N, 784\)"
    ):
        evaluation.elbo(model, (X[:, 1:], Y))
    with pytest.raises(ValueError, match="the examples have no y; the model expects"):
        fit(model, data.Examples(X), epochs=1)
    with pytest.raises(ValueError, match="gives 1 tensors for each batch; expected 2"):
        fit(model, X, epochs=1)
    with pytest.raises(TypeError, match="y is a list; expected"):
        model.check(X, [0] * 6)
