"""Tests of aevb/models/variational_rnn.py."""

import math

import pytest
import torch
from plain_vrnn import copy_of, pairs
from torch import nn

from aevb import data, estimators, evaluation, fit
from aevb.models import VAE, VariationalRNN
from aevb.models.variational_rnn import LoopLinear
from aevb.networks import GaussianHead

SMALL = {"data_dim": 5, "latent_dim": 2, "recurrent": (7, 6), "hidden": (9, 8)}
LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian")
POSTERIORS = ("filtering", "smoothing")


def small(**arguments) -> VariationalRNN:
    return VariationalRNN(**SMALL | arguments).eval()


def binary(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=g) < 0.4).float()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(x, model, samples: int = 1, seed: int = 0) -> torch.Tensor:
    """The noise that ``model`` draws for x from a generator with this seed."""
    shape = (x.shape[1], samples, len(x), model.latent_dim)
    return torch.randn(shape, generator=seeded(seed), dtype=x.dtype)


def test_the_defaults_are_the_papers():
    model = VariationalRNN()
    shapes = [tuple(p.shape) for p in model.inference.parameters() if p.ndim == 2]
    assert shapes == [(500, 28 + 256), (500, 500), (2, 500), (2, 500)]
    recurrence, prior, decoder, head = (
        [tuple(p.shape) for p in part.parameters() if p.ndim == 2]
        for part in model.generative.values()
    )
    assert recurrence == [(1024, 28 + 2 + 256), (1024, 256 + 256)]
    assert prior == [(500, 256), (500, 500), (2, 500), (2, 500)]
    assert decoder == [(500, 2 + 256), (500, 500)] and head == [(28, 500)]


# --- equality with the plain implementation ------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize(
    "steps, batch, width, recurrent, hidden",
    [
        (1, 1, 1, (3,), (4,)),
        (1, 4, 5, (6,), (9, 8)),
        (2, 1, 5, (7, 6), (9,)),
        (7, 3, 4, (6,), (9, 8)),
        (12, 2, 28, (5, 7, 6), (8, 9, 7)),
    ],
)
def test_it_equals_the_plain_implementation(
    posterior, steps, batch, width, recurrent, hidden
):
    sizes = {"data_dim": width, "recurrent": recurrent, "hidden": hidden}
    model = small(posterior=posterior, **sizes)
    plain = copy_of(model, latent_dim=2, smoothing=posterior == "smoothing", **sizes)
    model, plain = model.double(), plain.double()
    for p in model.parameters():  # biases that are not zero
        p.data += 0.1 * torch.randn_like(p)
    with torch.no_grad():
        for parameter, ours in pairs(model, plain):
            parameter.copy_(ours(lambda p: p))
    x = binary(batch, steps, width).double()
    terms = model.elbo(x, generator=seeded())
    reconstruction, kl, log_weight = plain(x, noise_of(x, model)[:, 0], weigh=True)
    torch.testing.assert_close(terms.reconstruction, reconstruction)
    torch.testing.assert_close(terms.kl, kl)
    terms.elbo.mean().backward()
    (reconstruction - kl).mean().backward()
    for parameter, ours in pairs(model, plain):
        theirs = parameter.grad  # none, where nothing was read of the weights
        theirs = torch.zeros_like(parameter) if theirs is None else theirs
        zero = lambda p: torch.zeros_like(p) if p.grad is None else p.grad  # noqa: E731
        torch.testing.assert_close(ours(zero), theirs, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        own = model.log_weights(x, generator=seeded())
    torch.testing.assert_close(own[0], log_weight.detach())


def test_single_precision_is_enough_at_the_papers_sizes():
    model = VariationalRNN()
    plain = copy_of(model)
    x = binary(4, 28, 28)
    terms = model.elbo(x, generator=seeded())
    reconstruction, kl, _ = plain(x, noise_of(x, model)[:, 0])
    torch.testing.assert_close(terms.elbo, reconstruction - kl, rtol=1e-5, atol=1e-3)
    terms.elbo.mean().backward()
    (reconstruction - kl).mean().backward()
    for parameter, ours in pairs(model, plain):
        error = (ours(lambda p: p.grad) - parameter.grad).norm()
        assert error < 1e-3 * parameter.grad.norm()


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_several_samples_are_several_plain_walks(posterior):
    model = small(posterior=posterior)
    plain = copy_of(model, **SMALL, smoothing=posterior == "smoothing")
    x = binary(3, 6, 5)
    noise = noise_of(x, model, samples=4)
    walks = [plain(x, noise[:, k], weigh=True) for k in range(4)]
    terms = model.step_terms(x, num_samples=4, generator=seeded())
    log_w = model.log_weights(x, num_samples=4, generator=seeded())
    assert terms.kl.shape == (6, 4, 3) and log_w.shape == (4, 3)
    for k, (reconstruction, kl, log_weight) in enumerate(walks):
        torch.testing.assert_close(terms.reconstruction.sum(0)[k], reconstruction)
        torch.testing.assert_close(terms.kl.sum(0)[k], kl)
        torch.testing.assert_close(log_w[k], log_weight)
    total = model.elbo(x, num_samples=4, generator=seeded())
    torch.testing.assert_close(total.kl, terms.kl.sum(0).mean(0))


def standard_normal_prior(model: VariationalRNN) -> None:
    """p(z_t | h_t) = N(0, I), whatever h_t is."""
    head = model.generative["prior"][-1]
    for p in head.parameters():
        nn.init.zeros_(p)
    nn.init.constant_(head.std.bias, math.log(math.expm1(1 - 1e-6)))


def test_a_single_step_is_a_vae():
    model = small(data_dim=12)
    standard_normal_prior(model)
    vae = VAE(
        data_dim=12, latent_dim=2, hidden=(9, 8), likelihood="bernoulli", dropout=0
    ).eval()
    encoder, decoder = vae.inference[0], vae.generative[0]
    del decoder[:]  # the mirrored widths of a VAE's decoder
    decoder.extend(model.generative["decoder"])
    with torch.no_grad():
        encoder.load_state_dict(
            model.inference.body.state_dict()
            | {"0.weight": model.inference.body[0].weight[:, :12]}
        )
        vae.inference[1].load_state_dict(model.inference.head.state_dict())
        first = nn.Linear(2, 9)
        first.weight.copy_(model.generative["decoder"][0].weight[:, :2])
        first.bias.copy_(model.generative["decoder"][0].bias)
        decoder[0] = first
        vae.generative[1] = model.generative["head"]
    x = binary(6, 1, 12)
    ours = model.elbo(x, num_samples=3, generator=seeded())
    theirs = vae.elbo(x[:, 0], num_samples=3, generator=seeded())
    torch.testing.assert_close(ours.kl, theirs.kl)
    torch.testing.assert_close(ours.reconstruction, theirs.reconstruction)
    ours = model.log_weights(x, num_samples=3, generator=seeded())
    theirs = vae.log_weights(x[:, 0], num_samples=3, generator=seeded())
    torch.testing.assert_close(ours, theirs)


# --- gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_reconstructions_gradient_reaches_phi_through_z(posterior):
    """It would not if z_t were drawn by ``sample``; every weight of φ gets some."""
    model = small(posterior=posterior)
    model.elbo(binary(8, 6, 5)).reconstruction.sum().backward()
    for name, p in model.inference.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_a_plain_sample_would_be_noticed():
    """The same check on a model whose draws carry no gradient, as `sample` gives."""

    class PlainSample(VariationalRNN):
        def draw(self, mean, std, noise):
            return super().draw(mean, std, noise).detach()

    model = PlainSample(**SMALL)
    gain = model.elbo(binary(8, 6, 5)).reconstruction.sum()
    phi = [*model.inference.parameters()]
    assert set(torch.autograd.grad(gain, phi, allow_unused=True)) == {None}


def test_gradient_is_that_of_finite_differences():
    model = small().double()
    for p in model.parameters():  # h_1 = 0 and biases of 0 are a kink of the ReLU
        p.data += 0.1 * torch.randn_like(p)
    x = binary(3, 4, 5).double()
    value = lambda: model.elbo(x, generator=seeded()).elbo.sum()  # noqa: E731
    value().backward()
    g = seeded(1)
    for p in model.parameters():
        direction = torch.randn(p.shape, generator=g, dtype=p.dtype)
        slope = (p.grad * direction).sum()
        with torch.no_grad():
            p += 1e-6 * direction
            high = value()
            p -= 2e-6 * direction
            low = value()
            p += 1e-6 * direction
        torch.testing.assert_close((high - low) / 2e-6, slope, rtol=1e-4, atol=1e-6)


def test_halves_are_disjoint_and_complete_and_all_of_them_learn():
    for posterior in POSTERIORS:
        model = small(posterior=posterior)
        theta = {id(p) for p in model.generative.parameters()}
        phi = {id(p) for p in model.inference.parameters()}
        assert not theta & phi
        assert theta | phi == {id(p) for p in model.parameters()}
        model.elbo(binary(8, 6, 5)).elbo.sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("update", ["inference", "generative"])
def test_one_half_moves_alone(update):
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = {"steps": 2, "lr": 0.1, "progress": False, "device": "cpu"}
    fit(model, binary(8, 6, 5), update=update, **settings)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != name.startswith(update), name
        assert p.requires_grad


def test_two_backward_passes_add_up():
    model, x = small(), binary(3, 4, 5)
    loss = model.elbo(x, generator=seeded()).elbo.sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    for p, first in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * first)


def test_a_gradient_in_some_parameters_leaves_no_trace_in_the_next():
    """The walk remembers its calls until weights ask for them; these did not ask."""
    model, x = small(), binary(3, 4, 5)
    loss = model.elbo(x, generator=seeded()).elbo.sum()
    expected = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    for half in (model.inference, model.generative["prior"]):
        torch.autograd.grad(loss, [*half.parameters()], retain_graph=True)
    again = torch.autograd.grad(loss, [*model.parameters()])
    for first, second in zip(expected, again, strict=True):
        torch.testing.assert_close(first, second)


def test_gradients_of_many_draws_at_once():
    """torch.func maps over the loop, and its mean gradient is the one of many draws."""
    model, x = small(), binary(2, 3, 5)
    estimator = lambda model, x: model.elbo(x)  # noqa: E731
    rows = estimators.gradient_samples(model, estimator, x, draws=400)
    model.elbo(x, num_samples=4000).elbo.mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    error = rows.std(0) / 400**0.5
    assert ((rows.mean(0) - expected).abs() <= 6 * error + 1e-3).all()


def test_loop_layers_under_lower_precision():
    """bfloat16 products: weights cast once, values and gradients near enough."""
    weight, bias = (
        torch.randn(6, 40, requires_grad=True),
        torch.zeros(6).requires_grad_(),
    )
    x = torch.randn(50, 40)
    with torch.autocast("cpu", torch.bfloat16):
        layer = LoopLinear(weight, bias)
        y = sum(layer(x * k) for k in range(1, 4))
    assert layer.weight.dtype == torch.bfloat16 and y.dtype == torch.float32
    torch.testing.assert_close(y, 6 * x @ weight.T, rtol=0.05, atol=0.5)
    y.sum().backward()
    expected = 6 * x.sum(0).expand(6, 40)
    assert (weight.grad - expected).norm() < 0.02 * expected.norm()
    torch.testing.assert_close(bias.grad, torch.full((6,), 150.0))


def test_lower_precision_trains_alike(has_bfloat16):
    has_bfloat16(True)
    x = data.rows(data.digits("binary")[0]).x[:200]
    curves = []
    for precision in (None, "bfloat16"):
        torch.manual_seed(0)
        model = VariationalRNN(recurrent=(16,), hidden=(16,))
        settings = {"steps": 60, "every": 20, "batch_size": 50, "lr": 5e-3}
        history = fit(
            model, x, precision=precision, progress=False, device="cpu", **settings
        )
        curves.append(torch.tensor(history.train_elbo))
    assert (curves[0] - curves[1]).abs().max() < 0.03 * curves[0].abs().max()


# --- shapes, bounds, evaluation ------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_shapes(likelihood, posterior):
    model = small(likelihood=likelihood, posterior=posterior)
    x = binary(3, 6, 5)
    h = torch.zeros(4, 3, 6)
    assert model.prior(h).batch_shape == (4, 3) and model.prior(h).event_shape == (2,)
    p_x = model.likelihood(torch.zeros(4, 3, 2), h)
    assert p_x.batch_shape == (4, 3) and p_x.event_shape == (5,)
    seen = model.inference.read(x.transpose(0, 1), None)
    assert model.posterior(seen[0], h).batch_shape == (4, 3)
    assert model.elbo(x, num_samples=2).elbo.shape == (3,)
    assert model.log_weights(x, num_samples=4).shape == (4, 3)
    assert model.latent_paths(x).shape == (3, 6, 2)
    assert model.sample(7, 9).shape == model.sample(7, 9, mean=True).shape == (7, 9, 5)
    assert model.complete(x[:, :2], 4, 6).shape == (4, 3, 6, 5)


def test_loop_and_batch_agree_on_the_posterior():
    for posterior in POSTERIORS:
        model, x = small(posterior=posterior), binary(3, 6, 5)
        path = model.walk(x, noise_of(x, model, 2))
        seen = model.inference.read(x.transpose(0, 1), None)
        q = model.posterior(seen[:, None], path.h).base_dist
        torch.testing.assert_close(path.mean, q.loc)
        torch.testing.assert_close(path.std, q.scale)
        assert not path.h[0].any()


def test_filtering_posteriors_do_not_see_the_future_and_smoothing_ones_do():
    for posterior in POSTERIORS:
        model, x = small(posterior=posterior), binary(3, 6, 5)
        other = x.clone()
        other[:, 4:] = 1 - x[:, 4:]
        noise = noise_of(x, model)
        one, two = model.walk(x, noise), model.walk(other, noise)
        unchanged = torch.isclose(one.mean, two.mean).all(-1).all(1).all(1)
        expected = posterior == "filtering"
        assert unchanged[:4].tolist() == [expected] * 4


def test_bounds_are_ordered():
    for posterior in POSTERIORS:
        model, x = small(posterior=posterior), binary(6, 4, 5)
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
        assert many.mean() > few.mean() > elbo.mean()


def test_evidence_does_not_depend_on_the_posterior():
    """Both posteriors' weights estimate the same log p(x), here by a sum over draws."""
    model, x = small(data_dim=3), binary(4, 2, 3)
    values = evaluation.log_likelihood(model, x, num_samples=20000).values
    smoothing = small(data_dim=3, posterior="smoothing")
    smoothing.generative = model.generative
    others = evaluation.log_likelihood(smoothing, x, num_samples=20000).values
    assert (values - others).abs().max() < 0.05
    # p(x_1) p(x_2 | x_1) by draws of the prior, x given
    total = torch.zeros(20000, 4)
    state = model.generative["recurrence"].start(20000, 4)
    for t in range(2):
        h = state[-1][0]
        z = model.prior(h).sample()
        total += model.likelihood(z, h).log_prob(x[:, t])
        state = model.generative["recurrence"](x[:, t].expand(20000, 4, 3), z, state)
    naive = total.logsumexp(0) - math.log(20000)
    assert (values - naive).abs().max() < 0.1


def test_many_samples_walk_in_parts():
    model, x = small(), binary(300, 2, 5)
    log_w = model.log_weights(x, num_samples=7, generator=seeded())
    assert log_w.shape == (7, 300) and len(log_w.unique(dim=0)) == 7
    again = model.log_weights(x, num_samples=7, generator=seeded())
    assert torch.equal(log_w, again)


def test_it_learns_and_repeats_itself():
    train, test = map(data.rows, data.digits("stochastic"))
    histories = []
    for _ in range(2):
        torch.manual_seed(0)
        model = VariationalRNN(recurrent=(24,), hidden=(24,))
        settings = {"steps": 60, "every": 30, "batch_size": 50, "lr": 5e-3}
        histories.append(
            fit(model, train, test=test, progress=False, device="cpu", **settings)
        )
    first, second = histories
    assert first.test_elbo == second.test_elbo
    assert first.test_elbo[-1] > first.test_elbo[0] + 20
    better = evaluation.log_likelihood(model, test[:50], num_samples=20)
    assert better.mean > evaluation.elbo(model, test[:50]).mean


# --- generating ----------------------------------------------------------------------


def test_samples():
    model = small()
    draw = lambda seed, **options: model.sample(  # noqa: E731
        50, 6, generator=seeded(seed), **options
    )
    x, means = draw(0), draw(0, mean=True)
    assert torch.equal(x, draw(0)) and not torch.equal(x, draw(1))
    assert x.unique().tolist() == [0, 1] and not x.requires_grad
    assert 0 < means.min() and means.max() < 1
    n = x.numel()
    assert abs((x - means).mean()) < 4 * (x - means).std() / n**0.5


@pytest.mark.parametrize("sizes, name", [((0, 3), "n"), ((3, 0), "steps")])
def test_samples_are_counted(sizes, name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected a whole number"):
        small().sample(*sizes)


def test_samples_follow_the_model():
    """The first step's mean, and a second step that depends on the first."""
    model = small(data_dim=1, latent_dim=1)
    for p in model.parameters():
        p.data *= 2
    x = model.sample(20000, 2, generator=seeded())[..., 0]
    pairs_ = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])[..., None]
    p = evaluation.log_likelihood(model, pairs_, num_samples=5000).values.exp()
    assert abs(p.sum() - 1) < 0.01
    counts = torch.bincount((2 * x[:, 0] + x[:, 1]).long(), minlength=4) / 20000
    assert ((counts - p).abs() < 4 * (p * (1 - p) / 20000).sqrt() + 0.003).all()


def test_completions_begin_as_given_and_differ_behind():
    model, x = small(), binary(3, 4, 5)
    done = model.complete(x, 6, 9, generator=seeded())
    assert torch.equal(done, model.complete(x, 6, 9, generator=seeded()))
    assert torch.equal(done[:, :, :4], x.expand(6, 3, 4, 5))
    assert len(done[:, 0, 4:].unique(dim=0)) > 1
    means = model.complete(x, 6, 9, generator=seeded(), mean=True)
    assert torch.equal(means[:, :, :4], x.expand(6, 3, 4, 5))
    assert 0 < means[:, :, 4:].min() and means[:, :, 4:].max() < 1
    assert model.complete(x, steps=5).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("shape, steps", [((3, 4, 5), 4), ((3, 0, 5), 4), ((3, 5), 9)])
def test_nothing_to_complete(shape, steps):
    with pytest.raises(ValueError, match=r"expected \(B, S, D\) with 1 <= S < steps"):
        small().complete(torch.zeros(shape), 1, steps)


def test_latent_paths_are_walks_without_noise():
    model, x = small(), binary(3, 6, 5)
    path = model.walk(x, torch.zeros(6, 1, 3, 2))
    assert torch.equal(model.latent_paths(x), path.z[:, 0].transpose(0, 1))
    assert torch.equal(model.latent_paths(x), model.latent_paths(x))


# --- sequences of unequal length -----------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_what_lies_behind_the_end_changes_nothing(posterior):
    model = small(posterior=posterior)
    lengths = torch.tensor([6, 1, 4])
    x = binary(3, 6, 5)
    terms = model.step_terms(x, lengths, num_samples=2, generator=seeded())
    log_w = model.log_weights(x, lengths, num_samples=2, generator=seeded())
    noise = noise_of(x, model, 2)
    paths = model.latent_paths(x, lengths)
    for k, length in enumerate(lengths.tolist()):
        alone = x[k : k + 1, :length]
        path = model.walk(alone, noise[:length, :, k : k + 1])
        log_p = model.likelihood(path.z, path.h).log_prob(alone[0, :, None, None])
        torch.testing.assert_close(terms.reconstruction[:length, :, k], log_p[..., 0])
        assert not terms.reconstruction[length:, :, k].any()
        assert not terms.kl[length:, :, k].any()
        own = model.latent_paths(alone)
        torch.testing.assert_close(paths[k : k + 1, :length], own)
    padded = x.clone()
    padded[1, 1:], padded[2, 4:] = 1 - x[1, 1:], 1 - x[2, 4:]
    again = model.elbo(padded, lengths, num_samples=2, generator=seeded())
    torch.testing.assert_close(again.elbo, terms.elbo.sum(0).mean(0))
    others = model.log_weights(padded, lengths, num_samples=2, generator=seeded())
    torch.testing.assert_close(log_w, others)
    assert not torch.allclose(model.elbo(padded, generator=seeded()).elbo, again.elbo)


def test_full_lengths_are_no_lengths():
    for posterior in POSTERIORS:
        model, x = small(posterior=posterior), binary(3, 6, 5)
        full = model.elbo(x, torch.full((3,), 6), generator=seeded())
        torch.testing.assert_close(full.elbo, model.elbo(x, generator=seeded()).elbo)


def test_fit_and_evaluation_take_lengths():
    model = small(lengths=True)
    x, lengths = binary(30, 6, 5), torch.randint(1, 7, (30,))
    history = fit(model, (x, lengths), epochs=1, progress=False, device="cpu")
    assert math.isfinite(history.train_elbo[0])
    assert evaluation.log_likelihood(model, (x, lengths), num_samples=3).values.shape
    with pytest.raises(ValueError, match=r"expected 2, since the model takes \(x, len"):
        fit(model, x, epochs=1)
    with pytest.raises(ValueError, match="the examples have no lengths"):
        fit(model, data.Examples(x), epochs=1)


@pytest.mark.parametrize(
    "lengths, message",
    [
        (
            torch.tensor([1.0, 2.0]),
            r"float32 of shape \(2,\); expected torch.int",
        ),
        (
            torch.tensor([1, 2, 3]),
            r"shape \(3,\); expected torch.int64 of shape \(2,",
        ),
        (torch.tensor([0, 2]), "lengths holds 0 to 2; expected 1 to 6"),
        (torch.tensor([1, 7]), "lengths holds 1 to 7; expected 1 to 6"),
    ],
)
def test_impossible_lengths_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        small(lengths=True).check(torch.zeros(2, 6, 5), lengths)
    if len(lengths) == 2:
        with pytest.raises(ValueError, match=message):
            evaluation.elbo(small(lengths=True), (torch.zeros(2, 6, 5), lengths))


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"likelihood": "poisson"}, r"likelihood is 'poisson'; expected one of \('b"),
        ({"posterior": "future"}, r"posterior is 'future'; expected one of \('filt"),
        ({"latent_dim": 0}, "latent_dim is 0; expected a whole number, at least 1"),
        ({"data_dim": 0}, "data_dim is 0; expected a whole number, at least 1"),
        ({"hidden": ()}, r"hidden is \(\); expected at least one width"),
        ({"hidden": (5, 0)}, r"hidden is \(5, 0\); expected at least one width"),
        ({"recurrent": (5.0,)}, r"recurrent is \(5.0,\); expected at least one width"),
        ({"recurrent": 256}, r"recurrent is 256; expected .* as in \(256,\)"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VariationalRNN(**arguments)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(2, 784), ValueError, r"shape \(2, 784\); expected \(N, T, 5\)"),
        (torch.zeros(2, 6, 4), ValueError, r"shape \(2, 6, 4\); expected \(N, T, 5\)"),
        (torch.zeros(3, 0, 5), ValueError, r"shape \(3, 0, 5\); .* with N, T >= 1"),
        (torch.full((2, 6, 5), 0.5), ValueError, "expected each to be 0 or 1"),
        (torch.full((2, 6, 5), math.nan), ValueError, "x holds NaN"),
        (torch.zeros(2, 6, 5).double(), TypeError, "x is torch.float64; expected"),
        (torch.zeros(2, 6, 5).byte(), TypeError, "x is torch.uint8; expected"),
    ],
)
def test_unsuitable_data_are_refused(x, error, message):
    for function in (evaluation.elbo, evaluation.log_likelihood):
        with pytest.raises(error, match=message):
            function(small(), x)


def test_a_sequence_without_its_batch_is_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 5\); expected \(B, T, D\)"):
        small().elbo(torch.zeros(5, 5))
    for count in (0, -1):
        with pytest.raises(ValueError, match="num_samples is"):
            small().elbo(torch.zeros(1, 2, 5), num_samples=count)
        with pytest.raises(ValueError, match="num_samples is"):
            small().log_weights(torch.zeros(1, 2, 5), num_samples=count)


def test_state_survives_a_round_trip(tmp_path):
    for posterior in POSTERIORS:
        model, other = small(posterior=posterior), small(posterior=posterior)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        x = binary(2, 6, 5)
        assert torch.equal(model.latent_paths(x), other.latent_paths(x))
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_prior_is_learned():
    assert isinstance(small().generative["prior"][-1], GaussianHead)
