"""Tests of aevb/models/gaussian_mixture_vae.py."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MixtureSameFamily, kl_divergence

from aevb import evaluation, fit
from aevb.distributions import rsample
from aevb.estimators import marginalised
from aevb.models import VAE, ConditionalVAE, GaussianMixtureVAE

CONDITIONS = ("prior", "likelihood", "both")
EACH = pytest.mark.parametrize("condition", CONDITIONS)
PIXELS, CLUSTERS = 5, 3


def small(**arguments) -> GaussianMixtureVAE:
    """A model in float64 with parameters that are nowhere special."""
    size = {"num_classes": CLUSTERS, "data_dim": PIXELS, "latent_dim": 2}
    model = GaussianMixtureVAE(**size | {"hidden": (8, 6)} | arguments).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((4, PIXELS), 0.5, dtype=torch.float64))


def log_joint(model, x, z, label):
    """log p(x, y, z) from the three factors, for one label of all examples."""
    y = torch.full(z.shape[:-1], label)
    log_p = model.prior(y).log_prob(z) + model.likelihood(z, y).log_prob(x)
    return log_p - math.log(model.num_classes)


def test_the_defaults_are_the_papers():
    model = GaussianMixtureVAE()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim == 2}
    assert set(shapes.values()) == {
        *{(512, 794), (512, 512), (64, 512)},  # q(z | x, y)
        *{(512, 784), (10, 512)},  # q(y | x)
        *{(64, 10), (512, 64), (784, 512)},  # p(z | y), p(x | z)
    }
    assert len(shapes) == 4 + 3 + 2 + 3
    assert all(m.p == 0 for m in model.modules() if isinstance(m, nn.Dropout))
    assert model.class_prior().probs.tolist() == pytest.approx([0.1] * 10)


@EACH
def test_shapes(x, condition):
    model = small(condition=condition)
    y = torch.tensor([0, 1, 2, 1])
    assert model.class_posterior(x).probs.shape == (4, 3)
    assert model.cluster(x).shape == (4,) and model.cluster(x).dtype == torch.int64
    for q in (model.posterior(x), model.posterior(x, y)):
        assert q.batch_shape == (4,) and q.event_shape == (2,)
    assert model.prior().batch_shape == () and model.prior().event_shape == (2,)
    z = torch.zeros(7, 4, 2).double()
    for p in (model.likelihood(z), model.likelihood(z, y)):
        assert p.batch_shape == (7, 4) and p.event_shape == (PIXELS,)
        assert p.log_prob(x).shape == (7, 4) and p.mean.shape == (7, 4, PIXELS)
    assert model.elbo(x, num_samples=2).elbo.shape == (4,)
    assert model.log_weights(x, num_samples=6).shape == (6, 4)
    for mean in (False, True):
        assert model.sample(7, mean=mean).shape == (7, PIXELS)
        assert model.sample(7, y, mean=mean).shape == (7, 4, PIXELS)


@EACH
def test_halves_are_disjoint_and_complete_and_all_of_them_learn(x, condition):
    model = small(condition=condition)
    theta = {id(p) for p in model.generative.parameters()}
    phi = {id(p) for p in model.inference.parameters()}
    assert not theta & phi
    assert theta | phi == {id(p) for p in model.parameters()}
    model.elbo(x).elbo.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@EACH
def test_the_elbo_is_the_sum_over_classes(x, condition):
    """Class by class in a plain loop, with draws of its own, many of them."""
    model, draws = small(condition=condition), 4000
    with torch.no_grad():
        estimate = model.elbo(x, num_samples=draws)
        q_y = torch.softmax(model.inference["classifier"](x), -1)
        total, variance = -(q_y * (3 * q_y).log()).sum(-1), 0.0
        for label in range(CLUSTERS):
            y = torch.full((4,), label)
            q_z, p_z = model.posterior(x, y), model.prior(y)
            z = q_z.rsample((draws,))
            log_p = model.likelihood(z, y.expand(draws, 4)).log_prob(x)
            term = log_p.mean(0) - kl_divergence(q_z, p_z)
            total = total + q_y[:, label] * term
            variance = variance + q_y[:, label].square() * log_p.var(0) / draws
    assert ((estimate.elbo - total).abs() < 4 * (2 * variance).sqrt()).all()
    assert (estimate.kl > 0).all()


def test_the_first_layer_acts_on_x_once(x):
    """All classes at once cost one product with the images, and give the same."""
    model = small()
    rows = []
    first = model.inference["encoder"][0][0]
    handle = first.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape))
    together = model.posterior(x[:, None], model.classes)
    handle.remove()
    assert rows == [(4, 1, PIXELS)]
    for label in range(CLUSTERS):
        alone = model.posterior(x, torch.full((4,), label))
        assert torch.allclose(together.mean[:, label], alone.mean)
        assert torch.allclose(together.stddev[:, label], alone.stddev)


@EACH
def test_mixtures_sum_y_out(x, condition):
    model = small(condition=condition)
    z = torch.randn(4, 2, dtype=torch.float64)
    with torch.no_grad():
        log_p = torch.stack([log_joint(model, x, z, k) for k in range(CLUSTERS)])
        together = model.prior().log_prob(z) + model.likelihood(z).log_prob(x)
        assert torch.allclose(log_p.logsumexp(0), together)
        log_q = model.class_posterior(x).logits + model.posterior(
            x[:, None], model.classes
        ).log_prob(z[:, None])
        assert torch.allclose(log_q.logsumexp(-1), model.posterior(x).log_prob(z))
    assert isinstance(model.prior(), MixtureSameFamily) == (condition != "likelihood")


@EACH
def test_elbo_is_below_the_evidence_and_importance_weights_reach_it(x, condition):
    """The evidence by a sum over y and a grid over z."""
    model = small(condition=condition, latent_dim=1)
    fit(model, x, update="inference", steps=30, lr=1e-2, progress=False)
    grid = evaluation.grid_posterior(model, x, low=-15, high=15, points=3000)
    assert (grid.edge < 1e-8).all()
    by_hand = []
    with torch.no_grad():
        z = grid.points[:, None].expand(-1, 4, 1)
        for k in range(CLUSTERS):
            by_hand.append(log_joint(model, x, z, k))
    by_hand = torch.cat(by_hand).logsumexp(0) + math.log(grid.cell)
    assert torch.allclose(by_hand, grid.log_evidence)
    bound = evaluation.elbo(model, x, num_samples=20000).values
    weighted = evaluation.log_likelihood(model, x, num_samples=50000).values
    assert (bound < grid.log_evidence).all()
    assert torch.allclose(weighted, grid.log_evidence, atol=0.05)
    naive = evaluation.naive_log_likelihood(model, x, num_samples=50000).values
    assert torch.allclose(naive, grid.log_evidence, atol=0.05)


@EACH
def test_mean_log_weight_is_the_elbo(x, condition):
    model, draws = small(condition=condition), 20000
    with torch.no_grad():
        log_w = model.log_weights(x, num_samples=draws)
        bound = model.elbo(x, num_samples=2000).elbo
    error = log_w.std(0) / draws**0.5
    assert ((log_w.mean(0) - bound).abs() < 5 * error + 0.05).all()


def copy_into(other: nn.Module, model: GaussianMixtureVAE) -> None:
    names = other.state_dict()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})


@EACH
def test_a_known_class_gives_the_conditional_vae(x, condition):
    """q(y | x) pinned to one class: the ELBO of the CVAE less log C."""
    model = small(condition=condition)
    options = {"num_classes": 3, "data_dim": PIXELS, "latent_dim": 2, "hidden": (8, 6)}
    cvae = ConditionalVAE(
        condition=condition, likelihood="bernoulli", dropout=0.0, **options
    ).double()
    copy_into(cvae, model)
    last = model.inference["classifier"][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-1e3, 0.0, -1e3]))
        y = torch.ones(4, dtype=torch.int64)
        ours, theirs = (
            model.elbo(x, num_samples=20000),
            cvae.elbo(x, y, num_samples=20000),
        )
    assert torch.allclose(ours.kl - math.log(3), theirs.kl)
    assert torch.allclose(ours.reconstruction, theirs.reconstruction, atol=0.05)
    assert (model.cluster(x) == 1).all()


def test_one_class_gives_the_vae(x):
    model = small(num_classes=1, condition="likelihood", hidden=(8,))
    vae = VAE(
        data_dim=PIXELS, latent_dim=2, hidden=(8,), likelihood="bernoulli"
    ).double()
    vae = vae.eval()
    encoder, decoder = model.inference["encoder"], model.generative["decoder"]
    for theirs, ours in ((vae.inference, encoder), (vae.generative, decoder)):
        first, joint = theirs[0][0], ours[0][0]  # joint: a column more, for the class
        with torch.no_grad():
            first.weight.copy_(joint.weight[:, :-1])
            first.bias.copy_(joint.bias + joint.weight[:, -1])
        theirs[1].load_state_dict(ours[1].state_dict())
    one, other = (
        m.elbo(x, num_samples=3, generator=torch.Generator().manual_seed(1))
        for m in (model, vae)
    )
    assert torch.allclose(one.reconstruction, other.reconstruction)
    assert torch.allclose(one.kl, other.kl)


def test_generator_decides(x):
    model = small()
    draw = [
        [
            model.elbo(x, generator=g).elbo,
            model.log_weights(x, generator=g),
            model.sample(3, generator=g),
            rsample(model.prior(), (3,), g),
        ]
        for g in (torch.Generator().manual_seed(s) for s in (0, 0, 1))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*draw[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*draw[1:], strict=True))


def test_samples_come_from_their_cluster():
    """Clusters far apart, and a decoder whose one pixel shows the sign of z."""
    model = small(num_classes=2, latent_dim=1, hidden=(1,), data_dim=1)
    values = {
        "prior.mean.weight": [[-50.0, 50.0]],
        "decoder.0.0.weight": [[1.0]],  # then a rectifier: z where positive, else 0
        "decoder.1.logits.weight": [[20.0]],
        "decoder.1.logits.bias": [-50.0],
    }
    with torch.no_grad():
        for name, p in model.generative.named_parameters():
            p.copy_(torch.tensor(values.get(name, 0.0)))
    images = model.sample(20, torch.tensor([0, 1]))[..., 0]
    assert (images == torch.tensor([0.0, 1.0])).all()
    share = model.sample(2000)[:, 0].mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / 2000**0.5


def test_finds_two_kinds_of_images():
    """An end-to-end run: each kind gets a cluster of its own, on the right side."""
    torch.manual_seed(1)
    y = torch.arange(400) % 2
    logits = torch.tensor([[3.0] * 6 + [-3.0] * 6, [-3.0] * 6 + [3.0] * 6])
    x = torch.bernoulli(torch.sigmoid(logits[y]))
    model = GaussianMixtureVAE(
        num_classes=2, data_dim=12, latent_dim=1, hidden=(16,), condition="prior"
    )
    history = fit(model, x, epochs=30, batch_size=40, lr=1e-2, progress=False)
    assert history.train_elbo[-1] > history.train_elbo[0] + 1
    assert evaluation.clustering_accuracy(model.cluster(x), y) > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"condition": "y"}, "condition is 'y'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureVAE(**arguments)


def test_check_names_what_is_wrong():
    model = GaussianMixtureVAE(hidden=(8,))
    with pytest.raises(ValueError, match="784"):
        fit(model, torch.zeros(3, 5), steps=1, progress=False)
    with pytest.raises(ValueError, match="0 or 1"):
        fit(model, torch.full((3, 784), 0.5), steps=1, progress=False)


@EACH
def test_given_classes_train_both_networks(x, condition):
    """The CVAE's bound, and a classifier: what `fit` maximises once it is told y."""
    model = small(condition=condition, hidden=(32,))
    y = torch.tensor([0, 1, 2, 1])
    ours, cvae = (
        elbo(model, x, y, generator=torch.Generator().manual_seed(0))
        for elbo in (GaussianMixtureVAE.elbo, ConditionalVAE.elbo)
    )
    log_q = model.class_posterior(x).log_prob(y)
    assert torch.equal(ours.reconstruction, cvae.reconstruction)
    assert torch.allclose(ours.kl, cvae.kl - log_q + math.log(3))
    model.inputs = ("x", "y")
    fit(model, (x, y), steps=300, lr=1e-2, progress=False)
    assert torch.equal(model.cluster(x), y)
    model.inputs = ("x",)
    assert len(fit(model, x, steps=1, progress=False).train_elbo) == 1


def test_given_classes_may_be_probabilities(x):
    model = small(hidden=(32,))
    model.inputs = ("x", "y")
    y = model.classes[[0, 1, 2, 1]]
    assert torch.equal(*(model.elbo(x, some).kl for some in (y, y.argmax(-1))))
    fit(model, (x, 0.9 * y + 0.1 / 3), steps=300, lr=1e-2, progress=False)
    assert torch.equal(model.cluster(x), y.argmax(-1))


def test_check_of_given_classes():
    model = GaussianMixtureVAE(hidden=(8,))
    model.inputs = ("x", "y")
    with pytest.raises(ValueError, match="labels from 10"):
        fit(model, (torch.zeros(1, 784), torch.tensor([10])), steps=1, progress=False)


def test_classes_of_negligible_weight_are_left_out():
    """Value and gradient stay the same, with draws that hardly deviate."""
    model = small(num_classes=4, hidden=(8,))
    x = torch.bernoulli(torch.full((6, PIXELS), 0.5, dtype=torch.float64))
    seen = []
    with torch.no_grad():
        model.inference["encoder"][-1].std.bias.fill_(-30.0)  # z is its mean
        last = model.inference["classifier"][-1]
        last.weight.copy_(30 * torch.randn_like(last.weight))
        last.bias.copy_(20 * torch.randn_like(last.bias))
        q_y = model.class_posterior(x).probs
    handle = model.generative["decoder"][0].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0].shape)
    )
    gradients = []
    for negligible in (0.0, 1e-8):
        terms = marginalised(model, x, num_samples=3, negligible=negligible)
        model.zero_grad()
        terms.elbo.sum().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters()] + [terms.elbo])
        )
    handle.remove()
    pairs = int((q_y > 1e-8).sum())
    assert 6 <= pairs < 12 and seen == [(3, 6, 4, 2), (3, pairs, 2)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        last.weight.zero_(), last.bias.zero_()
        assert model.elbo(x).elbo.shape == (6,)  # all classes count: all at once
