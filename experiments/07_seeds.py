"""Do the numbers of chapter 7 repeat? Its Bernoulli model, trained with several seeds.

    AEVB_DATA=... python experiments/07_seeds.py [--seeds 0 1 2] [--out FILE]

Each seed changes the initial weights, the order of the images, the binarisations and
the draws of z. A finished seed is written to the result at once, so the study can be
stopped and started again; seeds that are in the file already, from the same script
and settings, are not run again. ``AEVB_FAST=1`` runs a handful of steps on the bundled
digits.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import torch

from aevb import evaluation, fit, models
from aevb.notebook import budget, images
from aevb.training import choose_device

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tools.stamps import script_sha256  # noqa: E402

OUT = ROOT / "book" / "results" / "07_seeds.json"
SETTINGS = {
    "likelihood": "bernoulli",
    "data": "stochastic",
    "latent_dim": 20,
    "hidden": [500, 500],
    "dropout": 0.0,
    "epochs": budget(40, fast=1),
    "batch_size": 100,
    "lr": 1e-3,
    "schedule": "cosine",
    "kl_warmup": 0.3,
    "images": budget(250, fast=10),  # test images for log p(x)
    "k": budget(1000, fast=10),
}


def run(seed: int, train, test) -> dict[str, float]:
    """Train with one seed; test ELBO and KL of all images, log p(x) of a subset."""
    s = SETTINGS
    torch.manual_seed(seed)
    model = models.VAE(
        likelihood=s["likelihood"],
        latent_dim=s["latent_dim"],
        hidden=s["hidden"],
        dropout=s["dropout"],
    )
    start = time.perf_counter()
    names = ("epochs", "batch_size", "lr", "schedule", "kl_warmup")
    fit(model, train, seed=seed, **{name: s[name] for name in names})
    seconds = time.perf_counter() - start
    terms = evaluation.terms(model, test)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    some = test[order[: s["images"]]]
    bound = evaluation.elbo(model, some, num_samples=10)
    better = evaluation.log_likelihood(model, some, num_samples=s["k"])
    gap = better.mean - bound.mean
    elbo = terms.elbo.double().mean().item()
    return {
        "seed": seed,
        "elbo": elbo,
        "kl": terms.kl.double().mean().item(),
        "log_likelihood": elbo + gap,  # of all images, with the subset's gap
        "gap": gap,
        "seconds": round(seconds, 1),
    }


def stamp(seconds: float) -> dict[str, str | float]:
    """Where the numbers come from."""
    return {
        "script": HERE.relative_to(ROOT).as_posix(),
        "code_sha256": script_sha256(HERE),
        "torch": torch.__version__,
        "device": str(choose_device()),
        "seconds": round(seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    runs = []
    if args.out.exists():
        old = json.loads(args.out.read_text())
        same = old.get("settings") == SETTINGS
        if same and old["stamp"]["code_sha256"] == script_sha256(HERE):
            runs = old["runs"]
    train, test = images(SETTINGS["data"])
    for seed in args.seeds:
        if any(r["seed"] == seed for r in runs):
            print(f"seed {seed}: there already")
            continue
        runs = sorted([*runs, run(seed, train, test)], key=lambda r: r["seed"])
        seconds = sum(r["seconds"] for r in runs)
        result = {"stamp": stamp(seconds), "settings": SETTINGS, "runs": runs}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        partial = args.out.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(args.out)
        print(f"seed {seed}:", next(r for r in runs if r["seed"] == seed))


if __name__ == "__main__":
    main()
