"""How far do fifteen minutes on two cores go, on the network of published figures?

    AEVB_DATA=... python experiments/11_burda.py [--seeds 0] [--out FILE]

The network of Burda et al. (784-200-200-50, tanh, one stochastic layer; output biases
that start at the mean image) on dynamically binarised MNIST, trained on all 60,000
training images with the ELBO, and with the importance-weighted bound of five draws.
What counts is log p(x) of all 10,000 test images, estimated with 5000 draws each
(``weighted``); the test ELBO is the mean of ten draws. Nothing is chosen by the test
images: they are scored once, after the last step (``curve`` only draws the way there).

Each training writes a checkpoint in `_build/studies/`, and goes on from it after a
stop. ``AEVB_FAST=1`` takes a handful of steps on the bundled digits.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

from aevb import estimators, evaluation, fit, models
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
TRAINING = {"schedule": "cosine", "precision": budget("bfloat16", fast=None)}
OBJECTIVES = {
    "VAE": {
        "samples": 1,
        "epochs": budget(400, fast=1),
        "batch_size": 256,
        "lr": 4e-3,
    },
    "IWAE-5": {
        "samples": 5,
        "epochs": budget(165, fast=1),
        "batch_size": 256,
        "lr": 4e-3,
    },
}
DRAWS = budget(5000, fast=5)
SETTINGS = {
    "data": "stochastic",
    "model": MODEL,
    "training": TRAINING,
    "objectives": OBJECTIVES,
    "draws": DRAWS,
}


def estimator(samples: int):
    """The ELBO, or the bound of several draws with its better gradient."""
    if samples == 1:
        return None
    return partial(
        estimators.importance_weighted,
        num_samples=samples,
        gradient="doubly-reparameterised",
    )


def run(objective: str, seed: int) -> dict:
    """Train once; the ELBO and log p(x) of the test images."""
    train, test = images(SETTINGS["data"])
    own = dict(OBJECTIVES[objective])
    samples, epochs = own.pop("samples"), own["epochs"]
    torch.manual_seed(seed)
    model = models.VAE(**MODEL).start_at(train.x)
    checkpoint = c.ROOT / "_build" / "studies" / f"11_burda-{objective}-{seed}.pt"
    history = fit(
        model,
        train,
        test=test,
        every=max(1, epochs // 20),
        estimator=estimator(samples),
        seed=seed,
        checkpoint=None if fast() else checkpoint,
        resume=not fast(),
        **own,
        **TRAINING,
    )
    elbo = evaluation.elbo(model, test, num_samples=10)
    weighted = evaluation.log_likelihood(model, test, num_samples=DRAWS)
    return {
        "samples": samples,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "device": str(choose_device()),
        "training_seconds": round(history.seconds[-1], 1),
        "elbo": round(elbo.mean, 4),
        "elbo_error": round(elbo.standard_error, 4),
        "weighted": round(weighted.mean, 4),
        "weighted_error": round(weighted.standard_error, 4),
        "curve": {
            "seconds": [round(s, 1) for s in history.seconds],
            "elbo": [round(value, 3) for value in history.test_elbo],
        },
    }


def jobs(seeds: list[int]) -> list[studies.Job]:
    return [{"objective": o, "seed": seed} for seed in seeds for o in OBJECTIVES]


if __name__ == "__main__":
    studies.conduct(__file__, SETTINGS, jobs, run, seeds=(0,))
