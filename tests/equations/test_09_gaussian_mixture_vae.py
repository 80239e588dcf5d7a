"""The numbered equations of chapter 9, each against an independent oracle."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.nn.utils import parameters_to_vector

from aevb import em, estimators, evaluation
from aevb.distributions import rsample
from aevb.estimators import gradient_samples, gumbel_softmax, marginalised
from aevb.models import GaussianMixtureVAE

PIXELS = 4


def make(classes=2, condition="prior", latent_dim=1):
    """A tiny model in float64 with parameters that are nowhere special."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = GaussianMixtureVAE(
            num_classes=classes,
            condition=condition,
            data_dim=PIXELS,
            latent_dim=latent_dim,
            hidden=(6,),
        ).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        return model.eval()


@pytest.fixture
def x():
    return torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0]]).double()


def one_hot(label, like):
    return torch.eye(like.num_classes, dtype=torch.float64)[label]


# --- quadrature: expectations over z and over a relaxed y without any sampling ---


def by_quadrature(model, x, y, nodes=4000):
    """E_q(z|x,y)[log p(x | y, z)] and KL(q(z | x, y) ‖ p(z | y)) for one y each: (B,).

    One latent dimension; a fine grid, since a rectifier has kinks; differentiable.
    Nothing but the means and standard deviations of the model's distributions is used.
    """
    grid = torch.linspace(-6, 6, nodes).double()
    weights = torch.from_numpy(stats.norm.pdf(grid))
    weights = weights / weights.sum()
    q, p = model.posterior(x, y).base_dist, model.prior(y).base_dist
    z = q.loc + q.scale * grid[:, None, None]  # (nodes, B, 1)
    logits = model.likelihood(z, y).base_dist.logits
    log_p = (x * logits - torch.logaddexp(logits, torch.zeros_like(logits))).sum(-1)
    ratio = q.scale / p.scale
    kl = 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1) - ratio.log()
    return (weights[:, None] * log_p).sum(0), kl.sum(-1)


def exact_elbo(model, x):
    """The ELBO of the discrete model by a loop over classes: (B,)."""
    q_y = model.inference["classifier"](x).softmax(-1)
    total = 0.0
    for label in range(model.num_classes):
        y = one_hot(label, model).expand(len(x), -1)
        log_p, kl = by_quadrature(model, x, y)
        q = q_y[:, label]
        total = total + q * (log_p - kl - q.log() - math.log(model.num_classes))
    return total


def relaxed_terms(model, x, temperature):
    """Of two classes: E[log p(x | z) - KL(z) at ỹ] and the divergence of ỹ: (B,) each.

    For C = 2, τ log(ỹ_1 / ỹ_2) is logistic around the log-odds of the classes, so that
    the expectation is over one uniform number. The Gumbel noise never appears.
    """
    logits = model.inference["classifier"](x)
    odds = logits[:, 0] - logits[:, 1]
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    inner, divergence = [], []
    noise = torch.special.logit(u)
    for b in range(len(x)):
        s = odds[b] + noise  # logistic with location odds[b]
        first = torch.sigmoid(s / temperature)
        y = torch.stack([first, 1 - first], -1)
        log_p, kl = by_quadrature(model, x[b].expand(len(u), -1), y, nodes=200)
        inner.append((log_p - kl).mean())
        log_q = -noise - 2 * torch.nn.functional.softplus(-noise)
        log_p = -s - 2 * torch.nn.functional.softplus(-s)
        divergence.append((log_q - log_p).mean())
    return torch.stack(inner), torch.stack(divergence)


def gradient(model, value):
    grads = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def many(estimator, model, x, draws=40000, **options):
    """Mean of an estimator's values and its standard error: (B,) each."""
    with torch.no_grad():
        values = torch.cat(
            [
                estimator(model, x.repeat(1000, 1), **options).elbo.view(1000, -1)
                for _ in range(draws // 1000)
            ]
        )
    return values.mean(0), values.std(0) / draws**0.5


def agrees(mean, error, exact, allowed=4.5):
    return bool(((mean - exact).abs() < allowed * error + 1e-9).all())


# --- the model ---


def test_eq_gmvae_joint(x):
    """log p(x, y, z) against scipy, and samples against its moments."""
    model = make(classes=3)
    z = torch.tensor([[0.3], [-1.0], [0.7]]).double()
    y = torch.tensor([2, 0, 1])
    ours = (
        model.class_prior().log_prob(y)
        + model.prior(y).log_prob(z)
        + model.likelihood(z, y).log_prob(x)
    )
    head = model.generative["prior"]
    mean = (head.mean.weight.T + head.mean.bias).detach().numpy()[:, 0]
    raw = (head.std.weight.T + head.std.bias).detach().numpy()[:, 0]
    std = np.log1p(np.exp(raw)) + 1e-6
    for n in range(3):
        expected = math.log(1 / 3)
        expected += stats.norm.logpdf(z[n, 0].item(), mean[y[n]], std[y[n]])
        logits = model.likelihood(z[n]).base_dist.logits.detach().numpy()
        expected += stats.bernoulli.logpmf(x[n].numpy(), special.expit(logits)).sum()
        assert ours[n].item() == pytest.approx(expected)


def test_eq_gmvae_mixture():
    """p(z) integrates to one and has the moments that the components imply."""
    model = make(classes=3)

    def density(z):
        return model.prior().log_prob(torch.tensor([z]).double()).exp().item()

    parts = [model.prior(torch.tensor(k)).base_dist for k in range(3)]

    def by_scipy(z):
        return np.mean([stats.norm.pdf(z, p.loc.item(), p.scale.item()) for p in parts])

    for z in (-2.0, 0.1, 1.5):
        assert density(z) == pytest.approx(by_scipy(z))
    total, _ = integrate.quad(density, -20, 20, limit=200)
    assert total == pytest.approx(1)


def test_eq_gmvae_posterior(x):
    """q(y, z | x) sums and integrates to one; z's own density is the sum over y."""
    model = make(classes=3)
    q_y = model.class_posterior(x)
    assert torch.allclose(q_y.probs.sum(-1), torch.ones(3).double())

    def joint(z, b):
        total = 0.0
        for label in range(3):
            q_z = model.posterior(x[b], torch.tensor(label))
            total += q_y.probs[b, label] * q_z.log_prob(torch.tensor([z])).exp()
        return total.item()

    for b in range(3):
        assert integrate.quad(joint, -20, 20, args=(b,), limit=200)[0] == pytest.approx(
            1, abs=1e-6
        )
        z = torch.tensor([0.2]).double()
        ours = model.posterior(x[b]).log_prob(z).exp().item()
        assert ours == pytest.approx(joint(0.2, b))


@pytest.mark.parametrize("condition", ["prior", "likelihood", "both"])
def test_eq_gmvae_marginalised(x, condition):
    """Value and gradient, against a loop over classes with z by quadrature."""
    model = make(classes=3, condition=condition)
    mean, error = many(marginalised, model, x)
    assert agrees(mean, error, exact_elbo(model, x))
    gradients = gradient_samples(model, marginalised, x, 4000)
    exact = gradient(model, exact_elbo(model, x).mean())
    se = gradients.std(0) / 4000**0.5
    assert agrees(gradients.mean(0), se, exact)


def test_eq_gmvae_class_kl():
    """log C less the entropy, by scipy; zero only for the uniform distribution."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, -1.0], [0.0, -900.0, -900.0]])
    q = torch.distributions.Categorical(logits=logits.double())
    p = torch.distributions.Categorical(logits=torch.zeros(3).double())
    ours = estimators.categorical_kl(q, p)
    expected = [math.log(3) - stats.entropy(row) for row in q.probs.numpy()]
    assert torch.allclose(ours, torch.tensor(expected).double())
    assert torch.allclose(ours, torch.distributions.kl_divergence(q, p))
    assert ours[0].abs() < 1e-12 and ours[2] == pytest.approx(math.log(3))


def test_eq_gmvae_m2(x):
    """M2: p(z) = N(0, I), and the class enters through the likelihood."""
    model = make(classes=3, condition="likelihood")
    z = torch.tensor([[0.3], [-1.0], [0.7]]).double()
    ours = model.prior().log_prob(z) + model.likelihood(z).log_prob(x)
    for n in range(3):
        parts = []
        for label in range(3):
            logits = model.likelihood(z[n], torch.tensor(label)).base_dist.logits
            q = special.expit(logits.detach().numpy())
            parts.append(np.prod(np.where(x[n].numpy() == 1, q, 1 - q)) / 3)
        expected = stats.norm.logpdf(z[n, 0].item()) + math.log(sum(parts))
        assert ours[n].item() == pytest.approx(expected)


# --- Gumbel ---


def test_eq_gumbel_max():
    """The argmax has exactly the categorical's probabilities (a chi-squared test)."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5]).double()
    relaxed = torch.distributions.relaxed_categorical.ExpRelaxedCategorical(
        torch.tensor(0.7).double(), logits=logits
    )
    g = torch.Generator().manual_seed(0)
    winners = rsample(relaxed, (50000,), g).argmax(-1)
    observed = torch.bincount(winners, minlength=4).numpy()
    expected = 50000 * special.softmax(logits.numpy())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_eq_gumbel_softmax():
    """Our draws have torch's density: their histogram against its integral, C = 2."""
    temperature, odds = 0.6, 0.8
    logits = torch.tensor([odds, 0.0]).double()
    relaxed = torch.distributions.relaxed_categorical.ExpRelaxedCategorical(
        torch.tensor(temperature).double(), logits=logits
    )
    g = torch.Generator().manual_seed(0)
    y = rsample(relaxed, (20000,), g).exp()
    assert torch.allclose(y.sum(-1), torch.ones(20000).double())
    log_ratio = (y[:, 0].log() - y[:, 1].log()).numpy()
    result = stats.kstest(temperature * log_ratio - odds, "logistic")
    assert result.pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 1.5])
def test_eq_concrete_density(temperature):
    """Integrates to one over the simplex, with two and with three classes."""
    logits = np.array([0.4, -0.3, 0.1])

    def density(*y):
        y = np.array([*y, 1 - sum(y)])
        c = len(y)
        pi = special.softmax(logits[:c])
        top = (
            special.gamma(c)
            * temperature ** (c - 1)
            * np.prod(pi / y ** (temperature + 1))
        )
        return top / np.sum(pi / y**temperature) ** c

    total, _ = integrate.quad(density, 0, 1)
    assert total == pytest.approx(1, abs=1e-4)
    for point in ([0.3], [0.2, 0.5]):
        y = torch.tensor([*point, 1 - sum(point)]).double()
        torchs = torch.distributions.RelaxedOneHotCategorical(
            torch.tensor(temperature).double(),
            logits=torch.from_numpy(logits[: len(y)]),
        )
        assert math.exp(torchs.log_prob(y)) == pytest.approx(density(*point))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_eq_gumbel_sampled(x, temperature):
    """Value and gradient are unbiased for the ELBO of the relaxed model."""
    model = make()
    options = {"kl": "sampled", "temperature": temperature}
    mean, error = many(gumbel_softmax, model, x, **options)
    inner, divergence = relaxed_terms(model, x, temperature)
    assert agrees(mean, error, (inner - divergence).detach())
    gradients = gradient_samples(model, gumbel_softmax, x, 20000, **options)
    exact = gradient(model, (inner - divergence).mean())
    assert agrees(gradients.mean(0), gradients.std(0) / 20000**0.5, exact, 5)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_eq_gumbel_analytic(x, temperature):
    """As the former, with the divergence of the discrete distributions."""
    model = make()
    mean, error = many(gumbel_softmax, model, x, temperature=temperature)
    inner, divergence = relaxed_terms(model, x, temperature)
    q_y = model.class_posterior(x)
    discrete = math.log(2) - q_y.entropy()
    assert agrees(mean, error, (inner - discrete).detach())
    assert (divergence > discrete).all()  # data processing: argmax loses information


def test_eq_gumbel_straight_through(x):
    """The value and the gradient in θ are unbiased, the gradient in φ is not."""
    model = make()
    options = {"straight_through": True, "temperature": 1.0}
    for kl in ("analytic", "sampled"):
        mean, error = many(gumbel_softmax, model, x, kl=kl, **options)
        assert agrees(mean, error, exact_elbo(model, x).detach())
    exact = gradient(model, exact_elbo(model, x).mean())
    gradients = gradient_samples(model, gumbel_softmax, x, 20000, **options)
    error = gradients.std(0) / 20000**0.5
    theta = len(parameters_to_vector(model.generative.parameters()))
    names = [n for n, _ in model.named_parameters()]
    assert names == sorted(names, key=lambda n: n.startswith("inference"))
    assert agrees(gradients.mean(0)[:theta], error[:theta], exact[:theta])
    assert not agrees(gradients.mean(0)[theta:], error[theta:], exact[theta:], 8)


def test_eq_gumbel_relaxed_kl(x):
    """The divergence of the relaxed y does not depend on the temperature."""
    model = make(classes=3)
    q_y, p_y = model.class_posterior(x), model.class_prior()
    kind = torch.distributions.relaxed_categorical.ExpRelaxedCategorical
    found = []
    for temperature in (0.1, 0.5, 2.0):
        t = torch.tensor(temperature).double()
        q, p = kind(t, logits=q_y.logits), kind(t, logits=p_y.logits)
        log_y = rsample(q, (50000,), torch.Generator().manual_seed(1))
        found.append((q.log_prob(log_y) - p.log_prob(log_y)).detach())
    assert torch.allclose(found[0], found[1]) and torch.allclose(found[0], found[2])
    ratios = (p_y.logits - q_y.logits).detach().numpy()  # log p(y) / q(y)
    u = np.random.default_rng(0).dirichlet(np.ones(3), 100000)  # a uniform point
    for b in range(3):
        inner = np.log(u @ np.exp(ratios[b]))
        expected = 3 * inner.mean() - ratios[b].sum()
        error = 3 * inner.std() / 100000**0.5 + found[0][:, b].std() / 50000**0.5
        assert abs(found[0][:, b].mean() - expected) < 4 * error


def test_eq_clustering_accuracy():
    """All matchings by brute force; more, as many and fewer clusters than classes."""
    g = torch.Generator().manual_seed(0)
    for clusters, classes in ((3, 3), (5, 3), (2, 4)):
        y = torch.randint(classes, (60,), generator=g)
        predicted = torch.where(
            torch.rand(60, generator=g) < 0.5,
            y % clusters,
            torch.randint(clusters, (60,), generator=g),
        )
        names = [*range(classes), *[-1] * clusters]  # -1: no class
        best = max(
            (torch.tensor(m)[predicted] == y).double().mean().item()
            for m in set(itertools.permutations(names, clusters))
        )
        assert evaluation.clustering_accuracy(predicted, y) == pytest.approx(best)


def test_eq_gmvae_class_optimum(x):
    """No other q(y | x) does better, and the loss is the divergence."""
    model = make(classes=3)
    with torch.no_grad():
        f = torch.stack(
            [
                torch.sub(*by_quadrature(model, x, one_hot(k, model).expand(3, -1)))
                for k in range(3)
            ],
            -1,
        )
        best = special.softmax(f.numpy(), -1)
        highest = np.log(np.mean(np.exp(f.numpy()), -1))
        q = model.class_posterior(x).probs.numpy()
        loss = [stats.entropy(a, b) for a, b in zip(q, best, strict=True)]
        bound = exact_elbo(model, x).numpy()
    assert bound == pytest.approx(highest - np.array(loss))


def test_eq_gmvae_labelled(x):
    """Against quadrature, and below log p(x, y) by a sum over a grid."""
    model = make(classes=3)
    y = torch.tensor([2, 0, 1])
    log_p, kl = by_quadrature(model, x, one_hot(y, model))
    log_q = model.inference["classifier"](x).log_softmax(-1)[range(3), y]
    exact = (log_p - kl + log_q - math.log(3)).detach()
    with torch.no_grad():
        values = torch.stack(
            [estimators.labelled(model, x, y, 100).elbo for _ in range(200)]
        )
    assert agrees(values.mean(0), values.std(0) / 200**0.5, exact)
    z = torch.linspace(-15, 15, 3000).double()[:, None, None]
    with torch.no_grad():
        joint = model.prior(y).log_prob(z) + model.likelihood(z).log_prob(x)
    evidence = joint.logsumexp(0) + math.log(30 / 2999) - math.log(3)
    assert (exact < evidence).all()


def test_eq_gmvae_overlap():
    """Groups of components that overlap, whatever their order, and of two fits."""
    g = torch.Generator().manual_seed(0)
    crowd = torch.arange(600) % 3
    weights = torch.rand(600, 9, generator=g).double()
    own = torch.arange(9) // 3 == crowd[:, None]  # three components for each crowd
    r = weights * torch.where(own, 1.0, 0.02)
    r = r / r.sum(-1, keepdim=True)
    order = torch.randperm(9, generator=g)
    groups = em.merge_components(r[:, order], 3)
    by_crowd = [set(groups[order // 3 == k].tolist()) for k in range(3)]
    assert [len(s) for s in by_crowd] == [1, 1, 1] and len(set.union(*by_crowd)) == 3
    both = em.merge_components(torch.cat([r, r[:, order]], 1), 3)
    assert torch.equal(both[:9][order], both[9:])
    by_hand = r.T @ r
    cut = sum(by_hand[both[:9] == k][:, both[:9] != k].sum() for k in range(3))
    for swap in range(8):  # the plain sum over pairs agrees: no single move does better
        other = both[:9].clone()
        other[swap] = (other[swap] + 1) % 3
        worse = sum(by_hand[other == k][:, other != k].sum() for k in range(3))
        assert worse > cut
