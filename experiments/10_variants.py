"""What a forgotten ``rsample`` costs, what z brings, and which posterior is better.

    AEVB_DATA=... python experiments/10_variants.py [--seeds 0] [--out FILE]

The chapter's variational RNN on rows of binary MNIST, in five variants that share
sizes, settings and seed, and so the initial weights of the parts that they have in
common:

* ``filtering``: as in the chapter, q(z_t | x_t, h_t);
* ``smoothing``: q(z_t | x_{1:T}, z_{<t}), by an LSTM that reads the rows backwards;
* ``sample``: filtering, but every z_t is a plain sample without a gradient;
* ``no z``: every z_t is zero, which leaves an LSTM that predicts the next row;
* ``dynamic``: filtering, on images binarised anew in every epoch.

Trained on the first five sixths of the training images; the curves are those of 2000
of the others, the results those of the test images. ``weighted`` is the
importance-weighted bound with K draws for each of the images of a fixed subset,
``subset`` the ELBO of the same images. A finished run is written at once, so the study
can be stopped and started again. ``AEVB_FAST=1`` takes a handful of steps on the
bundled digits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from aevb import data, evaluation, fit, models
from aevb.model import ElboTerms
from aevb.notebook import budget, images

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import studies

MODEL = {"latent_dim": 2, "recurrent": [128], "hidden": [200, 200]}
TRAINING = {
    "epochs": budget(10, fast=1),
    "batch_size": 100,
    "lr": 6e-3,
    "schedule": "cosine",
    "precision": budget("bfloat16", fast=None),
}
SUBSET = budget(500, fast=10)
DRAWS = budget(200, fast=5)
SETTINGS = {"model": MODEL, "training": TRAINING, "subset": SUBSET, "draws": DRAWS}


class PlainSample(models.VariationalRNN):
    """``sample`` in place of ``rsample``: no gradient passes through a draw."""

    def draw(self, mean, std, noise):
        return super().draw(mean, std, noise).detach()


class WithoutZ(models.VariationalRNN):
    """Every z_t is zero, whatever the posterior says: an LSTM with a decoder."""

    def draw(self, mean, std, noise):
        return torch.zeros_like(mean)

    def step_terms(self, x, lengths=None, **options):
        terms = super().step_terms(x, lengths, **options)
        return ElboTerms(terms.reconstruction, torch.zeros_like(terms.kl))


VARIANTS = {
    "filtering": (models.VariationalRNN, "filtering", "binary"),
    "dynamic": (models.VariationalRNN, "filtering", "stochastic"),
    "sample": (PlainSample, "filtering", "binary"),
    "no z": (WithoutZ, "filtering", "binary"),
    "smoothing": (models.VariationalRNN, "smoothing", "binary"),
}


def run(variant: str, seed: int) -> dict:
    """Train once; curves, test ELBO with its terms, and the weighted bound."""
    kind, posterior, binarisation = VARIANTS[variant]
    train, test = map(data.rows, images(binarisation))
    fitting, validation = data.split(train, len(train) * 5 // 6)
    torch.manual_seed(seed)
    model = kind(posterior=posterior, **MODEL)
    history = fit(model, fitting, test=validation[:2000], seed=seed, **TRAINING)
    terms = evaluation.terms(model, test)
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    some = test[chosen[:SUBSET]]
    result = {
        "training_seconds": round(history.seconds[-1], 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "elbo": mean(terms.elbo),
        "reconstruction": mean(terms.reconstruction),
        "kl": mean(terms.kl),
        "subset": mean(evaluation.elbo(model, some, num_samples=10).values),
        "history": {
            name: [round(value, 4) for value in history[name]]
            for name in history
            if name.startswith(("train_", "test_", "epoch"))
        },
    }
    if variant != "no z":
        better = evaluation.log_likelihood(model, some, num_samples=DRAWS)
        result["weighted"] = mean(better.values)
    with torch.no_grad():
        by_row = model.step_terms(some.x.to(next(model.parameters()).device))
    for name in ("reconstruction", "kl"):
        rows = getattr(by_row, name).mean((1, 2))
        result[f"{name}_by_row"] = [round(value, 4) for value in rows.tolist()]
    return result


def mean(values: torch.Tensor) -> float:
    return round(values.double().mean().item(), 4)


def jobs(seeds: list[int]) -> list[studies.Job]:
    return [{"variant": v, "seed": seed} for seed in seeds for v in VARIANTS]


if __name__ == "__main__":
    studies.conduct(__file__, SETTINGS, jobs, run, seeds=(0,))
