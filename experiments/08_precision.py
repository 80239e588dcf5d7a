"""Do matrix products in bfloat16 change where a training ends?

    AEVB_DATA=... python experiments/08_precision.py [--seeds 0 1 2] [--only MODEL]

The models that the book trains with ``precision="bfloat16"``, each by its recipe
(:data:`aevb.recipes.RECIPES`, the settings of its chapter) and by the same recipe with
products in single precision, from several seeds. A seed sets first weights, order of
the images and noise; both precisions have the same ones, until rounding leads them
apart.

A run holds the ELBO of the test images, ten draws of z each, with its standard error
over images; ``accuracy`` as the installed weights have it (:func:`aevb.runs.accuracy`);
and ``products``: ``"hardware"`` where the device computes them, ``"rounded"`` where it
cannot. There both factors are rounded to bfloat16, multiplied and summed in single
precision, and the result is rounded: the same arithmetic, slower. ``AEVB_FAST=1`` takes
a handful of steps on the bundled digits.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from aevb import evaluation, runs, training
from aevb.notebook import budget, fast
from aevb.recipes import RECIPES, Recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import conventions as c
from tools import pretrain, studies

MODELS = ("conditional-vae", "gaussian-mixture-vae", "variational-rnn")
PRECISIONS = {"single": None, "bfloat16": "bfloat16"}
SETTINGS = {
    "recipes": {name: RECIPES[name] for name in MODELS},
    "elbo_samples": 10,
    "told": budget(1000, fast=10),  # images on which a conditional model tells digits
}


def run(model: str, precision: str, seed: int) -> studies.Job:
    """Follow the recipe in one precision; what the test images say."""
    recipe = in_precision(RECIPES[model], PRECISIONS[precision]) | {"seed": seed}
    products = short_products() if precision == "bfloat16" else "hardware"
    _, test = runs.examples(recipe, bundled=fast())
    with TemporaryDirectory() as aside:
        work = c.ROOT / "_build" / "studies" / "08_precision"
        trained, seconds = pretrain.train(
            model, recipe, Path(aside) if fast() else work
        )
    trained = trained.to(training.choose_device())
    bound = evaluation.elbo(trained, test, num_samples=SETTINGS["elbo_samples"])
    result = {
        "products": products,
        "threads": torch.get_num_threads(),
        "training_seconds": round(seconds, 1),
        "elbo": round(bound.mean, 4),
        "standard_error": round(bound.standard_error, 4),
    }
    share = runs.accuracy(trained, test, torch.arange(SETTINGS["told"]))
    return result if share is None else result | {"accuracy": share["mean"]}


def in_precision(thing: Recipe, precision: str | None) -> Recipe:
    """The recipe, with this precision in each of its stages, nested ones included."""
    if isinstance(thing, dict):
        new = {key: in_precision(value, precision) for key, value in thing.items()}
        return new | {"precision": precision} if "precision" in new else new
    if isinstance(thing, list):
        return [in_precision(part, precision) for part in thing]
    return thing


# --- products of a processor that has none in bfloat16 -------------------------------

ATEN = torch.ops.aten
LIBRARY = torch.library.Library("aten", "IMPL")


def mm(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``: (N, K), (K, M) -> (N, M)."""
    out = a.new_empty(len(a), b.shape[1], dtype=wide(a))
    return ATEN.mm.out(a.to(out.dtype), b.to(out.dtype), out=out).to(a.dtype)


def addmm(c: Tensor, a: Tensor, b: Tensor, beta=1, alpha=1) -> Tensor:
    """``beta * c + alpha * a @ b``: (M,) or (N, M), (N, K), (K, M) -> (N, M)."""
    out = a.new_empty(len(a), b.shape[1], dtype=wide(a))
    parts = (part.to(out.dtype) for part in (c, a, b))
    return ATEN.addmm.out(*parts, beta=beta, alpha=alpha, out=out).to(a.dtype)


def wide(a: Tensor) -> torch.dtype:
    """The precision to compute in: that of the factors, or what is above bfloat16."""
    return torch.float32 if a.dtype == torch.bfloat16 else a.dtype


@cache
def short_products() -> str:
    """How products in bfloat16 are computed from now on."""
    if training.choose_precision("bfloat16", training.choose_device()):
        return "hardware"
    LIBRARY.impl("mm", mm, "CPU")
    LIBRARY.impl("addmm", addmm, "CPU")
    training.choose_precision = lambda precision, device: precision
    return "rounded"


def jobs(seeds: list[int]) -> list[studies.Job]:
    return [
        {"model": model, "precision": precision, "seed": seed}
        for model in MODELS
        for seed in seeds
        for precision in PRECISIONS
    ]


if __name__ == "__main__":
    studies.conduct(__file__, SETTINGS, jobs, run)
