"""Trainings that one process and several must do alike: run by ``torchrun``.

    torchrun --nproc-per-node=2 tests/processes.py FOLDER [crash]

Each process writes what each training gave into FOLDER. With ``crash`` one process
fails in the middle.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aevb import data, estimators, fit, models
from aevb.distributions import diagonal_normal
from aevb.model import ElboTerms, LatentVariableModel

FA, FA_TEST = data.factor_analysis(n=103)
GREY = data.digits("continuous")[0][:101]
BLACK = data.digits("stochastic")[0][:101]
ROWS = data.digits("rows")[0][:31]


class OwnModel(LatentVariableModel):
    """A reader's: Laplace and Gaussian noise, dropout in place, a categorical draw."""

    def __init__(self):
        super().__init__()
        layers = nn.Linear(3, 25), nn.Dropout(0.2, inplace=True), nn.Linear(25, 2)
        self.inference = nn.Sequential(*layers)
        self.generative = nn.Linear(2, 3)

    def prior(self):
        return diagonal_normal(torch.zeros(2), torch.ones(2))

    def posterior(self, x):
        mean = self.inference(x)
        return diagonal_normal(mean, torch.ones_like(mean))

    def likelihood(self, z):
        mean = self.generative(z)
        return diagonal_normal(mean, torch.ones_like(mean))


def own_estimator(model, x):
    q_z = model.posterior(x)
    z = q_z.mean + torch.randn_like(q_z.mean) * torch.rand(len(x), 2)
    z = z + 0.1 * torch.empty_like(z).uniform_() + 0.1 * torch.normal(0.0, q_z.stddev)
    z = z + 0.1 * torch.distributions.Laplace(q_z.mean, q_z.stddev).rsample()
    z = z + 0.1 * nn.functional.gumbel_softmax(z)
    z = z + 0.1 * torch.multinomial(z.detach().softmax(-1), 2) + torch.randn(2)
    z = z + 0.1 * torch.bernoulli(torch.full_like(z, 0.5))
    z = z + 0.1 * torch.randint(0, 2, (len(x), 1))
    kl = q_z.log_prob(z) - model.prior().log_prob(z)
    return ElboTerms(model.likelihood(z).log_prob(x), kl)


def drawing(model):
    """A ``record`` that moves the global generator."""
    return {"drawn": torch.rand(())}


def loader(examples, **options):
    return DataLoader(TensorDataset(examples.x), batch_size=25, shuffle=True, **options)


def own_generator():
    return torch.Generator().manual_seed(7)


VAE = partial(models.VAE, latent_dim=3, hidden=(25,), dropout=0.3)
SMALL = {"latent_dim": 2, "hidden": (8,)}
WEIGHTED = partial(estimators.importance_weighted, num_samples=25)
# name: model, training data, options; batches of 25 are shared as 12 and 13
CASES = {
    "factor analysis": (models.FactorAnalysis, FA, {"test": FA_TEST, "epochs": 3}),
    "pixels redrawn, dropout, a batch of one": (VAE, GREY, {"test": GREY}),
    "as many samples as examples": (VAE, GREY, {"estimator": WEIGHTED, "steps": 4}),
    "resampling": (VAE, GREY, {"estimator": estimators.importance_resampled}),
    "score function": (VAE, GREY, {"estimator": estimators.score_function}),
    "labels": (partial(models.ConditionalVAE, **SMALL, dropout=0.2), GREY, {}),
    "sequences": (
        partial(models.VariationalRNN, recurrent=(8,), hidden=(8,)),
        ROWS,
        {},
    ),
    "mixture": (
        partial(models.GaussianMixtureVAE, **SMALL),
        BLACK,
        {"estimator": partial(estimators.marginalised, negligible=0)},
    ),
    "a reader's own": (OwnModel, FA, {"estimator": own_estimator, "record": drawing}),
    "one half": (VAE, GREY, {"update": "inference", "kl_warmup": 0.5}),
    "bfloat16": (VAE, GREY, {"precision": "bfloat16"}),
    "loader": (VAE, loader(GREY), {}),
    "loader with workers": (VAE, loader(GREY, num_workers=1), {"epochs": 1}),
    "loader with a generator": (VAE, loader(GREY, generator=own_generator()), {}),
    "loader of batches": (
        VAE,
        DataLoader(GREY.x[:100].reshape(4, 25, 784), batch_size=None, shuffle=True),
        {},
    ),
}


def train(name, **more):
    """The history without its times, and the parameters."""
    make, examples, options = CASES[name]
    torch.manual_seed(0)
    model = make()
    options = {"batch_size": 25, "progress": False, "lr": 1e-2} | options | more
    if "steps" not in options:
        options = {"epochs": 2} | options
    history = fit(model, examples, **options)
    columns = {k: column for k, column in history.items() if k != "seconds"}
    return columns, model.state_dict()


def failing(model, x):
    failing.calls = getattr(failing, "calls", 0) + 1
    if failing.calls == 10 and os.environ["RANK"] == "1":
        raise ZeroDivisionError("this process fails on purpose")
    return model.elbo(x)


def main(folder: Path, what: str = "alike") -> None:
    rank = int(os.environ["RANK"])
    if what == "crash":
        options = {"estimator": failing, "checkpoint": folder / "run.pt"}
        train("factor analysis", epochs=1000, **options)
    try:
        train("factor analysis", batch_size=25 + rank)
    except ValueError as error:
        refused = str(error)
    results = {name: train(name) for name in CASES}
    results["again"] = train("pixels redrawn, dropout, a batch of one")
    results["left out"] = train("mixture", estimator=estimators.marginalised)
    path = folder / "run.pt"
    written = {"checkpoint": path, "progress": True}
    results["written"] = train("factor analysis", **written)
    results["resumed"] = train("factor analysis", resume=True, **written)
    elsewhere = folder / f"{rank}" / "run.pt"  # the others' disk has no checkpoint
    results["elsewhere"] = train("factor analysis", checkpoint=elsewhere, resume=True)
    results["refused"] = {"message": refused}, {}
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    os.environ["AEVB_DEVICE"] = "cpu"
    main(Path(sys.argv[1]), *sys.argv[2:])
