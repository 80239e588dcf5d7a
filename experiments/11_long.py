"""How far does the network of published figures go, given minutes of a GPU?

    AEVB_DATA=... python experiments/11_long.py [--only VAE] [--out FILE]

The network and the data of `11_burda.py`, trained from scratch for several times as
many epochs: with the ELBO, and with the importance-weighted bound of 50 draws. A GPU is
what makes that minutes; on two processor cores it is hours for the ELBO, and a day for
the 50 draws.

What counts is log p(x) of all 10,000 test images, estimated with 5000 draws each
(``log_likelihood``); ``elbo`` is the mean of ten draws. Nothing is chosen by the test
images: they are scored once, after the last step (``curve`` only draws the way there).
``training_seconds`` includes the evaluations for it.

Each training writes a checkpoint in `_build/studies/`, and goes on from it after a
stop. ``AEVB_FAST=1`` takes a handful of steps on the bundled digits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from aevb import models, runs
from aevb.notebook import budget, fast, images
from aevb.training import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import conventions as c
from tools import studies

MODEL = {
    "latent_dim": 50,
    "hidden": [200, 200],
    "likelihood": "bernoulli",
    "dropout": 0.0,
    "activation": "tanh",
}
TRAINING = {"batch_size": 256, "schedule": "cosine"}


def weighted(samples: int) -> dict:
    """The importance-weighted bound, whose gradient in φ leaves out the score of q."""
    return {
        "name": "importance_weighted",
        "num_samples": samples,
        "gradient": "doubly-reparameterised",
    }


OBJECTIVES = {
    "VAE": {
        "epochs": budget(1500, fast=1),
        "lr": 4e-3,
        "estimator": weighted(1),
    },
    "IWAE-50": {
        "epochs": budget(1200, fast=1),
        "lr": 4e-3,
        "estimator": weighted(50),
    },
}
SETTINGS = {
    "data": "stochastic",
    "model": MODEL,
    "training": TRAINING,
    "objectives": OBJECTIVES,
    "scores": {"elbo_samples": 10, "samples": budget(5000, fast=5)},
}


def run(objective: str, seed: int) -> dict:
    """Train once; the ELBO and log p(x) of the test images."""
    train, test = images(SETTINGS["data"])
    own, device = OBJECTIVES[objective], choose_device()
    torch.manual_seed(seed)
    model = models.VAE(**MODEL).start_at(train.x)
    torch.set_float32_matmul_precision("high")  # of a GPU: 10 bits after the point
    checkpoint = c.ROOT / "_build" / "studies" / f"11_long-{objective}-{seed}.pt"
    history = runs.fit_stage(
        model,
        train,
        own | TRAINING,
        test=test,
        every=max(1, own["epochs"] // 40),
        seed=seed,
        checkpoint=None if fast() else checkpoint,
        resume=not fast(),
        progress=False,
    )
    torch.set_float32_matmul_precision("highest")
    circumstances = runs.circumstances(history.seconds[-1], device)
    return {
        "epochs": own["epochs"],
        "device": circumstances["device"],
        "torch": circumstances["torch"],
        "training_seconds": circumstances["seconds"],
        **runs.score(model, test, examples=len(test), **SETTINGS["scores"]),
        "curve": {
            "epoch": [round(value) for value in history.epoch],
            "elbo": [round(value, 3) for value in history.test_elbo],
        },
    }


def jobs(seeds: list[int]) -> list[studies.Job]:
    return [{"objective": o, "seed": seed} for seed in seeds for o in OBJECTIVES]


if __name__ == "__main__":
    studies.conduct(__file__, SETTINGS, jobs, run, seeds=(0,))
