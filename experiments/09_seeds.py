"""Does the Gaussian-mixture VAE find the digits, and how often?

    AEVB_DATA=... python experiments/09_seeds.py [--seeds 0 1 2 3 4] [--out FILE]

The model of chapter 9 on binary MNIST, from several starts:

* ``warm``, every seed: the chapter's recipe. A VAE; EM for mixtures of many Gaussians
  on its codes, several restarts; the components of each subset of the restarts merged
  into ten groups; the model trained with the most even groups for classes; and then by
  itself.
* ``plain``, the first three seeds: the same model, by itself from random weights.
* with the first seed also ``gumbel, analytic``, ``gumbel, sampled`` and ``straight
  through``, as plain with these estimators, and ``M2``, as plain with the other model.

Everything is trained on the training images alone. No label has a part in it: of the
groupings the recipe takes the one whose groups are the most equal in size, as the
model's own p(y) says they are. Labels score what came out:
``accuracy`` is the clustering accuracy on the test images. ``AEVB_FAST=1`` takes a
handful of steps on the bundled digits.

A run holds the test ELBO with its terms, log C included; ``entropy``, the mean of
H(q(y | x)), ``proportions``, the mean of q(y | x), and ``confusion``, digits by
clusters, of the test images; ``history``, by epoch of the last stage; a warm or plain
run ``sheet``, means of ten draws from each cluster, a PNG of 16 greys in base64; a warm
run also ``stages``, the seconds, accuracy and ELBO after each stage, and ``groupings``,
the candidates.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aevb import data, em, estimators, evaluation, fit, models
from aevb.notebook import budget, images
from aevb.training import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.studies import Job, conduct

SETTINGS = {
    "data": "binary",
    "network": {"latent_dim": 64, "hidden": budget((512, 512), fast=(64,))},
    "training": {
        "batch_size": 100,
        "schedule": "cosine",
        "precision": budget("bfloat16", fast=None),
    },
    "vae": {"epochs": budget(12, fast=1), "lr": 1e-3},
    "em": {
        "active": 0.1,  # variance of a code's coordinate, relative to the largest
        "examples": budget(30000, fast=500),
        "num_components": budget(40, fast=12),
        "restarts": budget(4, fast=2),
        "tolerance": 2e-3,
        "max_iterations": budget(60, fast=5),
    },
    "given": {"epochs": budget(12, fast=1), "lr": 1e-3},
    "warm": {"epochs": budget(6, fast=1), "lr": 5e-4},
    "plain": {"epochs": budget(12, fast=1), "lr": 1e-3},
    "M2": {"epochs": budget(6, fast=1), "lr": 1e-3},
    "temperature": 0.5,
}
ESTIMATORS = {
    "gumbel, analytic": {"kl": "analytic"},
    "gumbel, sampled": {"kl": "sampled"},
    "straight through": {"straight_through": True},
}
C = 10


def run(recipe: str, seed: int) -> Job:
    """Train one model and measure it."""
    train, test = images(SETTINGS["data"])
    torch.manual_seed(seed)
    result: Job = {}
    if recipe == "warm":
        model, result = start(train, test, seed)
    else:
        condition = "likelihood" if recipe == "M2" else "prior"
        model = models.GaussianMixtureVAE(condition=condition, **SETTINGS["network"])
    estimator = None
    if recipe in ESTIMATORS:
        estimator = partial(
            estimators.gumbel_softmax,
            temperature=SETTINGS["temperature"],
            **ESTIMATORS[recipe],
        )
    history = fit(
        model,
        train,
        test=test,
        record=lambda model: classes(model, test),
        estimator=estimator,
        seed=seed,
        progress=False,
        **SETTINGS.get(recipe, SETTINGS["plain"]),
        **SETTINGS["training"],
    )
    result |= measure(model, test) | {"history": columns(history)}
    if recipe in ("warm", "plain"):
        g = torch.Generator(model.classes.device).manual_seed(1)
        result["sheet"] = sheet(model.sample(10, model.classes, mean=True, generator=g))
    return result


def start(train: data.Examples, test: data.Examples, seed: int):
    """The stages before the last one: the model and what each of them reached."""
    clock, stages = time.perf_counter(), {}

    def done(stage: str, **numbers: float) -> None:
        nonlocal clock
        now = time.perf_counter()
        stages[stage] = {"seconds": round(now - clock, 1), **numbers}
        clock = now

    network, training = SETTINGS["network"], SETTINGS["training"]
    vae = models.VAE(likelihood="bernoulli", dropout=0.0, **network)
    fit(vae, train, seed=seed, progress=False, **SETTINGS["vae"], **training)
    done("VAE", elbo=mean(evaluation.elbo(vae, test).values))
    y, groupings = group(codes(vae.cpu(), train), seed)
    for grouping, found in zip(groupings, y, strict=True):
        grouping["accuracy"] = share(found, train.y)  # scored, and not used
    best = min(range(len(y)), key=lambda k: groupings[k]["imbalance"])
    done("EM", accuracy=groupings[best]["accuracy"], chosen=best)
    model = models.GaussianMixtureVAE(**network)
    model.inputs = ("x", "y")
    given = (train.x, y[best])
    fit(model, given, seed=seed, progress=False, **SETTINGS["given"], **training)
    model.inputs = ("x",)
    numbers = classes(model, test)
    done("given", elbo=mean(evaluation.elbo(model, test).values), **numbers)
    return model, {"stages": stages, "groupings": groupings}


@torch.no_grad()
def codes(vae: models.VAE, train: data.Examples) -> Tensor:
    """Posterior means, those of their coordinates that move: (N, active)."""
    means = torch.cat([vae.posterior(x).mean for x in train.x.split(1000)])
    variance = means.var(0)
    return means[:, variance > SETTINGS["em"]["active"] * variance.max()].double()


def group(x: Tensor, seed: int) -> tuple[list[Tensor], list[Job]]:
    """Candidates: the components of every subset of EM's restarts, merged."""
    setting, fits = SETTINGS["em"], []
    for restart in range(setting["restarts"]):
        number = 100 * seed + restart
        g = torch.Generator().manual_seed(number)
        some = torch.randperm(len(x), generator=g)[: setting["examples"]]
        mixture = em.GaussianMixture(setting["num_components"]).fit(
            x[some],
            seed=number,
            tolerance=setting["tolerance"],
            max_iterations=setting["max_iterations"],
        )
        fits.append(mixture.posterior(x).probs)
    labels, groupings = [], []
    for count in range(1, len(fits) + 1):
        for subset in combinations(range(len(fits)), count):
            r = torch.cat([fits[k] for k in subset], 1) / count
            components = em.merge_components(r, C)
            merged = torch.zeros(len(x), C, dtype=r.dtype).index_add(1, components, r)
            p = merged.mean(0)
            labels.append(merged.argmax(1))
            groupings.append(
                {
                    "restarts": list(subset),
                    "imbalance": round((p * (C * p).log()).sum().item(), 5),
                    "sizes": labels[-1].bincount(minlength=C).tolist(),
                }
            )
    return labels, groupings


# --- what is measured --------------------------------------------------------------


def guesses(model: models.GaussianMixtureVAE, x: Tensor) -> Tensor:
    """log q(y | x): (N, C), on the CPU."""
    device = model.classes.device
    parts = [model.class_posterior(part.to(device)).logits for part in x.split(1000)]
    return torch.cat(parts).cpu()


@torch.no_grad()
def classes(model: models.GaussianMixtureVAE, test: data.Examples) -> dict[str, float]:
    log_q = guesses(model, test.x)
    return {
        "entropy": round(-(log_q.exp() * log_q).sum(1).mean().item(), 4),
        "accuracy": share(log_q.argmax(1), test.y),
    }


@torch.no_grad()
def measure(model: models.GaussianMixtureVAE, test: data.Examples) -> Job:
    terms = evaluation.terms(model, test)
    log_q = guesses(model, test.x)
    pairs = test.y * C + log_q.argmax(1)
    return {
        "elbo": mean(terms.elbo),
        "standard_error": round(terms.elbo.std().item() / len(test) ** 0.5, 3),
        "reconstruction": mean(terms.reconstruction),
        "kl": mean(terms.kl),
        **classes(model, test),
        "proportions": [round(p, 4) for p in log_q.exp().mean(0).tolist()],
        "confusion": pairs.bincount(minlength=C * C).view(C, C).tolist(),
    }


def mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 3)


def share(found: Tensor, y: Tensor) -> float:
    return round(evaluation.clustering_accuracy(found, y), 4)


def columns(history) -> dict[str, list[float]]:
    names = ("epoch", "train_elbo", "test_elbo", "entropy", "accuracy", "seconds")
    return {name: [round(v, 4) for v in history[name]] for name in names}


def sheet(pictures: Tensor) -> str:
    """(n, C, D) as one picture of C rows: a PNG of 16 greys in base64."""
    side = round(pictures.shape[-1] ** 0.5)
    rows = pictures.cpu().unflatten(-1, (side, side)).permute(1, 2, 0, 3)
    grey = 15 - (rows.flatten(2).flatten(0, 1) * 15).round().byte()  # ink is dark
    picture = Image.fromarray(grey.numpy(), mode="P")
    picture.putpalette((torch.arange(16) * 17).repeat_interleave(3).tolist())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", bits=4, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def jobs(seeds: list[int]) -> list[Job]:
    pairs = [("warm", seed) for seed in seeds]
    pairs += [("plain", seed) for seed in seeds[:3]]
    pairs += [(recipe, seeds[0]) for recipe in (*ESTIMATORS, "M2")]
    return [{"recipe": recipe, "seed": seed} for recipe, seed in pairs]


if __name__ == "__main__":
    print(f"on {choose_device()}")
    conduct(__file__, SETTINGS, jobs, run, seeds=(0, 1, 2, 3, 4))
