"""Each numbered equation of chapter 8 against an oracle that shares no code with it."""

import math
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

from aevb import em, estimators, evaluation, models, networks
from aevb.networks import SMALLEST_STD

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "book" / "08-conditional-vae.ipynb"
CONDITIONS = ("both", "prior", "likelihood")
LABELS = torch.tensor([0, 2, 1, 2])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(condition="both", **arguments) -> models.ConditionalVAE:
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "data_dim": 8, "latent_dim": 2, "hidden": (12,)}
    model = models.ConditionalVAE(
        condition=condition, dropout=0.0, **sizes | {"likelihood": "bernoulli"}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # labels that matter, posteriors far from the prior
    return model.double().eval()


def thin(condition="both") -> models.ConditionalVAE:
    """One latent coordinate, over which scipy can integrate."""
    torch.manual_seed(1)
    model = models.ConditionalVAE(
        num_classes=3,
        data_dim=8,
        latent_dim=1,
        hidden=(12,),
        dropout=0.0,
        likelihood="bernoulli",
        condition=condition,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.double().eval()


@pytest.fixture
def x():
    return torch.randint(0, 2, (4, 8), generator=seeded(1)).double()


def numbers(parameter):
    return parameter.detach().numpy()


def network_by_hand(chain, *inputs):
    """Features of the hidden layers: inputs joined, then numpy."""
    h = np.concatenate([np.asarray(part) for part in inputs], -1)
    for layer in chain[0]:
        if isinstance(layer, torch.nn.Linear):
            h = h @ numbers(layer.weight).T + numbers(layer.bias)
        else:
            h = np.maximum(h, 0.0)
    return h


def gaussian_by_hand(head, h):
    mean, raw = (
        h @ numbers(part.weight).T + numbers(part.bias)
        for part in (head.mean, head.std)
    )
    return mean, np.logaddexp(0.0, raw) + SMALLEST_STD


def prior_by_hand(model, one_hot):
    if model.condition == "likelihood":
        zero = np.zeros((*one_hot.shape[:-1], model.latent_dim))
        return zero, zero + 1
    return gaussian_by_hand(model.generative["prior"], one_hot)


def log_likelihood_by_hand(model, x, z, one_hot):
    decoder = model.generative["decoder"]
    inputs = (z,) if model.condition == "prior" else (z, one_hot)
    h = network_by_hand(decoder, *inputs)
    logits = h @ numbers(decoder[1].logits.weight).T
    logits = logits + numbers(decoder[1].logits.bias)
    return stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(-1)


def evidence_by_quadrature(model, x, label):
    """p(x | y) of one image: the integral over z by the trapezoidal rule."""
    one_hot = np.eye(3)[label]
    (mean,), (std,) = prior_by_hand(model, one_hot)
    z = np.linspace(mean - 12 * std, mean + 12 * std, 20_001)
    rows = np.broadcast_to(one_hot, (len(z), 3))
    log_p = log_likelihood_by_hand(model, x, z[:, None], rows)
    return np.trapezoid(np.exp(log_p) * stats.norm.pdf(z, mean, std), z)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_eq_cvae_joint(condition, x):
    """log p(x, z | y), with the weights multiplied out in numpy."""
    model = small(condition)
    z = torch.randn(4, 2, dtype=torch.float64, generator=seeded(2))
    one_hot = np.eye(3)[LABELS.numpy()]
    mean, std = prior_by_hand(model, one_hot)
    expected = stats.norm.logpdf(z, mean, std).sum(1)
    expected = expected + log_likelihood_by_hand(model, x, z.numpy(), one_hot)
    joint = model.prior(LABELS).log_prob(z) + model.likelihood(z, LABELS).log_prob(x)
    np.testing.assert_allclose(joint.detach(), expected, rtol=1e-9)


def test_eq_cvae_split_layer():
    """A layer on parts is numpy's product with the joined vector; parts broadcast."""
    torch.manual_seed(0)
    layer = networks.Linear((5, 3), 7).double()
    torch.nn.init.normal_(layer.bias)
    z = torch.randn(4, 1, 5, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64)
    found = layer(z, labels).detach()  # (4, 3, 7)
    weight, bias = numbers(layer.weight), numbers(layer.bias)
    for i in range(4):
        for y in range(3):
            joined = np.concatenate([z[i, 0], np.eye(3)[y]])
            np.testing.assert_allclose(found[i, y], weight @ joined + bias, rtol=1e-9)
    first = layer(z, torch.zeros_like(labels)).detach()
    biases = (found - first)[0]  # a label is a bias of its own
    np.testing.assert_allclose(biases, weight[:, 5:].T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_eq_cvae_posterior(condition, x):
    model = small(condition)
    encoder = model.inference["encoder"]
    h = network_by_hand(encoder, x, np.eye(3)[LABELS.numpy()])
    mean, std = gaussian_by_hand(encoder[1], h)
    z = torch.randn(4, 2, dtype=torch.float64, generator=seeded(2))
    expected = stats.norm.logpdf(z, mean, std).sum(1)
    found = model.posterior(x, LABELS).log_prob(z).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_eq_cvae_bound(condition, x):
    """Below log p(x | y) by the divergence from the exact posterior, by quadrature."""
    model = thin(condition)
    image, label = x[0].numpy(), 2
    one_hot = np.eye(3)[label]
    evidence = evidence_by_quadrature(model, image, label)
    encoder = model.inference["encoder"]
    (mean,), (std,) = gaussian_by_hand(
        encoder[1], network_by_hand(encoder, image, one_hot)
    )
    prior_mean, prior_std = prior_by_hand(model, one_hot)

    def gap(z):  # q log(q / exact posterior)
        log_q = stats.norm.logpdf(z, mean, std)
        log_p = log_likelihood_by_hand(model, image, np.array([z]), one_hot)
        log_p = log_p + stats.norm.logpdf(z, prior_mean[0], prior_std[0])
        return math.exp(log_q) * (log_q - log_p + math.log(evidence))

    missing = integrate.quad(gap, mean - 12 * std, mean + 12 * std, epsabs=1e-10)[0]
    y = torch.tensor([label])
    estimate = evaluation.elbo(model, (x[:1], y), num_samples=20000)
    terms = torch.stack(
        [model.elbo(x[:1], y, generator=seeded(s)).elbo for s in range(200)]
    )
    error = terms.std().item() / 20000**0.5
    assert missing > 20 * error
    assert abs(estimate.mean - (math.log(evidence) - missing)) < 4.5 * error


@pytest.mark.parametrize("condition", CONDITIONS)
def test_eq_cvae_kl(condition, x):
    """The divergence, one coordinate after the other, by quadrature."""
    model = small(condition)
    kl = model.elbo(x, LABELS).kl.detach()
    q, p = model.posterior(x, LABELS).base_dist, model.prior(LABELS).base_dist
    q = [numbers(t) for t in (q.loc, q.scale)]
    p = [numbers(t) for t in (p.loc, p.scale)]
    for i in range(4):
        total = 0.0
        for j in range(2):
            (m, s), (m0, s0) = ((t[0][i, j], t[1][i, j]) for t in (q, p))

            def integrand(z, m=m, s=s, m0=m0, s0=s0):
                log_q = stats.norm.logpdf(z, m, s)
                return math.exp(log_q) * (log_q - stats.norm.logpdf(z, m0, s0))

            total += integrate.quad(integrand, m - 12 * s, m + 12 * s)[0]
        assert kl[i].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_eq_cvae_estimator(condition, x):
    """Same draws, numpy's reconstruction, torch's divergence; gradients in θ and φ."""
    model = small(condition)
    terms = estimators.analytic_kl(model, x, LABELS, num_samples=3, generator=seeded(4))
    q = model.posterior(x, LABELS)
    noise = torch.randn(3, 4, 2, dtype=torch.float64, generator=seeded(4))
    z = numbers(q.mean + q.stddev * noise)
    one_hot = np.broadcast_to(np.eye(3)[LABELS.numpy()], (3, 4, 3))
    log_p = log_likelihood_by_hand(model, x.numpy(), z, one_hot).mean(0)
    expected = log_p - numbers(kl_divergence(q, model.prior(LABELS)))
    np.testing.assert_allclose(numbers(terms.elbo), expected, rtol=1e-8)
    terms.kl.sum().backward()
    prior = model.generative["prior"].parameters() if condition != "likelihood" else ()
    for parameter in (*prior, *model.inference.parameters()):
        assert parameter.grad.any()  # the divergence trains the prior too


@pytest.mark.parametrize("condition", CONDITIONS)
def test_eq_cvae_label_worth(condition, x):
    """log p(x | y) - log p(x) = log p(y | x) - log p(y) <= -log p(y), by quadrature."""
    model = thin(condition)
    share = np.array([0.5, 0.2, 0.3])
    exact = torch.stack(
        [
            evaluation.grid_posterior(
                model, x, torch.full((4,), k), low=-20, high=20, points=4000
            ).log_evidence
            for k in range(3)
        ],
        1,
    )
    for i in range(4):
        given = np.array(
            [evidence_by_quadrature(model, x[i].numpy(), k) for k in (0, 1, 2)]
        )
        np.testing.assert_allclose(exact[i].exp(), given, rtol=1e-4)
        joint = share * given
        worth = np.log(given) - math.log(joint.sum())
        np.testing.assert_allclose(
            worth, np.log(joint / joint.sum()) - np.log(share), rtol=1e-9
        )
        assert (worth <= -np.log(share)).all()


def scope_of(*names):
    """Functions of the chapter, from its cells."""
    scope = {"torch": torch, "math": math}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "raise NotImplementedError" not in cell.source:
            for name in names:
                if f"def {name}(" in cell.source:
                    text = cell.source[cell.source.index(f"def {name}(") :]
                    lines = text.splitlines()
                    end = next(
                        (
                            i
                            for i, line in enumerate(lines)
                            if i and line and line[0] not in " )"
                        ),
                        len(lines),
                    )
                    exec("\n".join(lines[:end]), scope)
    return scope


def test_eq_cvae_bayes(x):
    """From evidences by quadrature: Bayes' rule; from bounds, each an underestimate."""
    label_probabilities = scope_of("label_probabilities")["label_probabilities"]
    model = thin()
    share = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    given = np.array(
        [[evidence_by_quadrature(model, row.numpy(), k) for k in range(3)] for row in x]
    )
    joint = given * share.numpy()
    expected = joint / joint.sum(1, keepdims=True)
    found = label_probabilities(torch.tensor(given).log() + 3000, share)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    classes = torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        bounds = model.elbo(x[:, None], classes, num_samples=20000).elbo  # (4, 3)
    assert (bounds < torch.tensor(given).log() + 0.02).all()
    near = label_probabilities(bounds, share)  # wrong by the gaps alone
    gaps = torch.tensor(given).log() - bounds
    again = label_probabilities(bounds + gaps, share)
    np.testing.assert_allclose(again, expected, rtol=1e-6)
    assert (near - again).abs().max() > 0.01


def test_eq_cvae_style():
    """Codes of one label's Gaussian become codes of another's: mean and covariance."""
    scope = scope_of("for_every_label")
    mean = torch.randn(10, 3, generator=seeded(0)).double()
    factor = torch.randn(10, 3, 3, generator=seeded(1)).double().tril()
    scope |= {"mean": mean, "factor": factor}
    target = (factor @ factor.mT).numpy()
    normal = np.random.default_rng(0).standard_normal((20_000, 3))
    for label in (0, 7):
        codes = torch.tensor(normal @ factor[label].numpy().T) + mean[label]
        y = torch.full((len(codes),), label)
        carried = scope["for_every_label"](codes, y).numpy()
        np.testing.assert_allclose(carried[:, label], codes, atol=1e-8)  # itself
        for other in (3, 9):
            there = carried[:, other]
            error = 4.5 * np.sqrt(np.diag(target[other]) / len(normal))
            assert (abs(there.mean(0) - mean[other].numpy()) < error).all()
            np.testing.assert_allclose(
                np.cov(there.T), target[other], atol=0.05 * np.trace(target[other])
            )


def test_eq_cvae_prior_fit():
    """No Gaussian gives the codes a higher mean log-density than their moments do."""
    z = torch.randn(500, 2, dtype=torch.float64, generator=seeded(0))
    z = z @ torch.tensor([[1.0, 0.8], [0.0, 0.5]], dtype=torch.float64) + 1
    fitted = em.GaussianMixture(1, regularization=1e-9).fit(z)
    best = fitted.log_likelihood(z).mean().item()
    mean, cov = z.numpy().mean(0), np.cov(z.numpy().T, bias=True)
    by_hand = stats.multivariate_normal(mean, cov).logpdf(z).mean()
    assert best == pytest.approx(by_hand, abs=1e-9)
    for seed in range(20):
        shift = 0.1 * torch.randn(6, generator=seeded(seed)).double().numpy()
        factor = np.linalg.cholesky(cov) + np.array([[shift[0], 0], shift[1:3]])
        other = stats.multivariate_normal(mean + shift[3:5], factor @ factor.T)
        assert other.logpdf(z).mean() < best
