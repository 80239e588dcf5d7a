"""What is a label worth, and where should the model look at it?

    AEVB_DATA=... python experiments/08_variants.py [--seeds 0 1 2] [--out FILE]

The conditional VAE of chapter 8 in all its factorisations, beside the VAE of chapter 7
and beside a conditional VAE whose training labels were dealt out at random; on
dequantised images under the exact continuous Bernoulli. With the first seed also: the
full model under torch's clamped density; VAE and full model on dynamically binarised
images. All are trained on the first five sixths of the training images (50,000 of
MNIST) and evaluated on the test images with their true labels. ``AEVB_FAST=1`` takes a
handful of steps on the bundled digits.

A run holds the test ELBO with its terms; that of a conditional model also

* ``elbo_wrong_labels``: the ELBO of the same images with their labels permuted;
* ``recognised``: the share of generated means that a classifier of real digits takes
  for the digit that was asked for (``classifier``: its accuracy on the test images);
* ``by_bayes``: the share of test images whose true label has the highest ELBO of all;
* ``refitted``: ELBO and share of recognised means once the trained model's prior for
  each label has been replaced by a mixture of Gaussians, fitted by EM to the codes of
  that label's training images;
* ``sheet``: means of ten draws for each label, a PNG of 16 greys in base64.

``weighted`` holds importance-weighted estimates for a random part of the test images:
of log p(x), and for the conditional model of log p(x | y) as well.
"""

from __future__ import annotations

import base64
import io
import math
import sys
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn import functional as F

from aevb import data, em, evaluation, fit, models
from aevb.distributions import ContinuousBernoulli, rsample
from aevb.networks import MLP, linear
from aevb.notebook import budget, images
from aevb.training import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.studies import Job, conduct

VARIANTS = ("vae", "both", "prior", "likelihood", "random labels")
ONCE = ("both, clamped", "vae, binary", "both, binary")  # with the first seed alone
SETTINGS = {
    "network": {"latent_dim": 20, "hidden": (500, 500), "dropout": 0.0},
    "training": {
        "batch_size": 100,
        "lr": 1e-3,
        "schedule": "cosine",
        "precision": budget("bfloat16", fast=None),
    },
    "grey": {"epochs": budget(20, fast=1)},
    "binary": {"epochs": budget(60, fast=1), "kl_warmup": 0.3},
    "classifier": {"hidden": (500,), "dropout": 0.5, "epochs": budget(8, fast=2)},
    "generated": budget(100, fast=4),  # digits of each label
    "refit": {"num_components": budget(10, fast=2), "regularization": 1e-3},
    "weighted": {"images": budget(500, fast=10), "samples": budget(1000, fast=10)},
}
LIMIT = math.log(1 / torch.finfo(torch.float32).eps - 1)  # torch's, of a logit


class Clamp(torch.autograd.Function):
    """Torch's clamp, with chapter 7's gradient, that leads lost pixels back."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return logits.clamp(-LIMIT, LIMIT)

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return slope * ((logits.abs() < LIMIT) | (slope * logits > 0))


class ClampedCVAE(models.ConditionalVAE):
    """The same network under the density of ``torch.distributions``."""

    def likelihood(self, z: Tensor, y: Tensor) -> Independent:
        logits = Clamp.apply(super().likelihood(z, y).base_dist.logits)
        pixels = ContinuousBernoulli(logits, validate_args=False)
        return Independent(pixels, 1, validate_args=False)


def untrained(variant: str) -> models.VAE | models.ConditionalVAE:
    network = dict(SETTINGS["network"])
    kind, _, density = variant.partition(", ")
    if density == "binary":
        network["likelihood"] = "bernoulli"
    if kind == "vae":
        return models.VAE(**network)
    network["condition"] = "both" if kind == "random labels" else kind
    family = ClampedCVAE if density == "clamped" else models.ConditionalVAE
    return family(**network)


@cache
def examples(kind: str) -> tuple[data.Examples, data.Examples]:
    """What the models are trained on, and the test images."""
    train, test = images(kind)
    return data.split(train, len(train) * 5 // 6)[0], test


def run(variant: str, seed: int) -> Job:
    """Train one model and measure it."""
    kind = "binary" if variant.endswith("binary") else "grey"
    fitting, test = examples("stochastic" if kind == "binary" else "continuous")
    if variant == "random labels":
        deal = torch.randperm(len(fitting), generator=generator(seed, "cpu"))
        y = fitting.y[deal]
        fitting = data.Examples(fitting.x, y, fitting.raw, fitting.redraw)
    torch.manual_seed(seed)
    model = untrained(variant)
    fit(model, fitting, seed=seed, **SETTINGS[kind], **SETTINGS["training"])
    terms = evaluation.terms(model, test)
    result = {
        "elbo": mean(terms.elbo),
        "standard_error": round(terms.elbo.std().item() / len(test) ** 0.5, 3),
        "reconstruction": mean(terms.reconstruction),
        "kl": mean(terms.kl),
    }
    if isinstance(model, models.ConditionalVAE):
        result |= use_of_labels(model, test)
        result["refitted"] = refitted(model, fitting, test)
        if seed == 0:
            result["sheet"] = sheet(generate(model, 10, seed=1))
    if variant in ("both", "both, clamped"):
        other = untrained("both, clamped" if variant == "both" else "both")
        other.load_state_dict(model.state_dict())
        result["elbo_other_density"] = round(evaluation.elbo(other, test).mean, 3)
    if kind == "binary":
        result["weighted"] = weighted(model, test)
    return result


def mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 3)


def generator(seed: int, device: torch.device | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def share(hits: Tensor) -> float:
    return round(hits.double().mean().item(), 4)


# --- labels ----------------------------------------------------------------------


def use_of_labels(model: models.ConditionalVAE, test: data.Examples) -> Job:
    """What the label changes: in the bound, in what is drawn, by Bayes' rule."""
    order = torch.randperm(len(test), generator=generator(0, "cpu"))
    wrong = evaluation.elbo(model, (test.x, test.y[order]))
    made = generate(model, SETTINGS["generated"], seed=0)
    with torch.no_grad():
        guess = torch.cat([bounds(model, x).argmax(1) for x in test.x.split(500)])
    return {
        "elbo_wrong_labels": round(wrong.mean, 3),
        "recognised": recognised(made),
        "classifier": digit_classifier()[1],
        "by_bayes": share(guess.cpu() == test.y),
    }


def classes(model: models.ConditionalVAE) -> Tensor:
    """All labels, as rows of the identity, on the model's device."""
    return torch.eye(model.num_classes, device=model.zero.device)


def bounds(model: models.ConditionalVAE, x: Tensor) -> Tensor:
    """ELBO of each image under each label: (B, C)."""
    y = classes(model)
    x = x.to(y.device)[:, None]
    return model.elbo(x, y, generator=generator(0, y.device)).elbo


def generate(model: models.ConditionalVAE, count: int, seed: int) -> Tensor:
    """Means for ``count`` draws of z for each label: (count, C, D)."""
    y = classes(model)
    return model.sample(count, y, mean=True, generator=generator(seed, y.device))


@torch.no_grad()
def refitted(
    model: models.ConditionalVAE, fitting: data.Examples, test: data.Examples
) -> Job:
    """Each label's prior becomes a mixture: what it does to the bound and to draws."""
    codes = draws(model, fitting)[0]
    z, log_q = draws(model, test)
    log_prior = torch.empty_like(log_q)
    new = []
    for label in range(model.num_classes):
        mixture = em.GaussianMixture(**SETTINGS["refit"])
        mixture.fit(codes[fitting.y == label], tolerance=1e-3)
        log_prior[test.y == label] = mixture.log_likelihood(z[test.y == label])
        draw, _ = mixture.sample(SETTINGS["generated"], generator=generator(0, "cpu"))
        new.append(draw.float())
    y = classes(model)
    made = model.likelihood(torch.stack(new, 1).to(y.device), y).mean
    reconstruction = evaluation.terms(model, test).reconstruction.cpu().double()
    return {
        "elbo": mean(reconstruction - log_q + log_prior),
        "recognised": recognised(made),
    }


def draws(model: models.ConditionalVAE, some: data.Examples) -> tuple[Tensor, Tensor]:
    """One z ~ q(z | x, y) for each example, and log q of it; on the CPU, float64."""
    random, parts = generator(0, model.zero.device), []
    for x, y in data.Batches(some, model.inputs, 1000, model.zero.device):
        q = model.posterior(x, y)
        z = rsample(q, (), random)
        parts.append((z.cpu().double(), q.log_prob(z).cpu().double()))
    z, log_q = zip(*parts, strict=True)
    return torch.cat(z), torch.cat(log_q)


@torch.no_grad()
def recognised(made: Tensor) -> float:
    """Share of generated images (n, C, D) that are taken for their label."""
    wanted = torch.arange(made.shape[1]).expand(made.shape[:2])
    return share(digit_classifier()[0](made).argmax(-1).cpu() == wanted)


@cache
@torch.enable_grad()  # whoever calls it first
def digit_classifier() -> tuple[nn.Module, float]:
    """A network that tells real digits apart, and its accuracy on test images."""
    setting, (train, test) = SETTINGS["classifier"], examples("continuous")
    device = choose_device()
    torch.manual_seed(0)
    body = MLP(train.x.shape[1], setting["hidden"], setting["dropout"])
    network = nn.Sequential(body, linear(body.features, 10)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    batches = data.Batches(train, ("x", "y"), 100, device, shuffle=True)
    for _ in range(setting["epochs"]):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        guess = network(test.x.to(device)).argmax(1).cpu()
    return network, share(guess == test.y)


def sheet(pictures: Tensor) -> str:
    """(n, C, D) as one picture of C rows: a PNG of 16 greys in base64."""
    side = round(pictures.shape[-1] ** 0.5)
    rows = pictures.cpu().unflatten(-1, (side, side)).permute(1, 2, 0, 3)
    grey = 255 - (rows.flatten(2).flatten(0, 1) * 255).byte()  # ink dark on white
    levels = torch.arange(16) * 17
    picture = Image.fromarray(((grey.int() + 8) // 17).byte().numpy(), mode="P")
    picture.putpalette(levels.repeat_interleave(3).tolist())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", bits=4, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


# --- evidence --------------------------------------------------------------------


def weighted(model: models.VAE | models.ConditionalVAE, test: data.Examples) -> Job:
    """Importance-weighted estimates, beside the ELBO of the same images.

    The marginal of a conditional model is log p(x) = log (1/C) Σ_y p(x | y).
    """
    count, samples = SETTINGS["weighted"].values()
    some = test[torch.randperm(len(test), generator=generator(0, "cpu"))[:count]]
    bound = evaluation.elbo(model, some, num_samples=10)
    result = {"elbo": mean(bound.values)}
    if isinstance(model, models.VAE):
        estimate = evaluation.log_likelihood(model, some, num_samples=samples)
        return result | {"log_p_x": mean(estimate.values)}
    log_p = torch.cat([given_each_label(model, x, samples) for x in some.x.split(20)])
    given_y = log_p.gather(1, some.y[:, None]).squeeze(1)
    marginal = log_p.logsumexp(1) - math.log(model.num_classes)
    return result | {
        "log_p_x_given_y": mean(given_y),
        "log_p_x": mean(marginal),
        "by_bayes": share(log_p.argmax(1) == some.y),
    }


@torch.no_grad()
def given_each_label(model: models.ConditionalVAE, x: Tensor, samples: int) -> Tensor:
    """log p(x | y) for every label, importance-weighted: (B, C)."""
    y = classes(model)
    x, random = x.to(y.device)[:, None], generator(0, y.device)
    at_once = min(samples, 100)
    parts = [
        model.log_weights(x, y, num_samples=at_once, generator=random).double()
        for _ in range(samples // at_once)
    ]  # (at_once, B, C) each
    log_w = torch.cat(parts)
    return (log_w.logsumexp(0) - math.log(len(log_w))).cpu()


def jobs(seeds: list[int]) -> list[Job]:
    """First everything once, then the repetitions."""
    pairs = [(variant, seeds[0]) for variant in VARIANTS + ONCE]
    pairs += [(variant, seed) for seed in seeds[1:] for variant in VARIANTS]
    return [{"variant": variant, "seed": seed} for variant, seed in pairs]


if __name__ == "__main__":
    conduct(__file__, SETTINGS, jobs, run)
