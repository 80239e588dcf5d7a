"""Do the numbers of chapter 7 repeat, and does its KL warm-up help?

    AEVB_DATA=... python experiments/07_seeds.py [--seeds 0 1 2] [--out FILE]

The chapter's Bernoulli model, trained for fewer epochs, with and without KL warm-up and
with several seeds, which change the initial weights, the order of the images, the
binarisations and the draws of z. Scored on the validation images, the last sixth of
the training set. A finished run is written at once, so the study can be stopped and
started again; runs that are in the file already, from the same code and settings, are
not repeated. ``AEVB_FAST=1`` takes a handful of steps on the bundled digits.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from itertools import product
from pathlib import Path

import torch

from aevb import data, evaluation, fit, models
from aevb.notebook import budget, images
from aevb.training import choose_device

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tools.stamps import script_sha256  # noqa: E402

OUT = ROOT / "book" / "results" / "07_seeds.json"
MODEL = {
    "likelihood": "bernoulli",
    "latent_dim": 20,
    "hidden": [500, 500],
    "dropout": 0.0,
}
TRAINING = {
    "epochs": budget(10, fast=1),
    "batch_size": 100,
    "lr": 1e-3,
    "schedule": "cosine",
}
WARMUPS = (0.0, 0.3)
SETTINGS = {"data": "stochastic", "model": MODEL, "training": TRAINING}
ACTIVE = 0.05  # nats: below, a coordinate counts as switched off


def run(seed: int, kl_warmup: float, fitting, validation) -> dict[str, float]:
    """Train once; the validation ELBO, its KL term, the coordinates in use."""
    torch.manual_seed(seed)
    model = models.VAE(**MODEL)
    start = time.perf_counter()
    fit(model, fitting, seed=seed, kl_warmup=kl_warmup, **TRAINING)
    seconds = time.perf_counter() - start
    terms = evaluation.terms(model.cpu(), validation)
    with torch.no_grad():
        q = model.posterior(validation.x).base_dist
    kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log())
    return {
        "seed": seed,
        "kl_warmup": kl_warmup,
        "elbo": round(terms.elbo.double().mean().item(), 4),
        "kl": round(terms.kl.double().mean().item(), 4),
        "active": int((kl.mean(0) > ACTIVE).sum()),
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


def finished(path: Path) -> list[dict[str, float]]:
    """The runs in the file, if this code made them."""
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    same = old.get("stamp", {}).get("code_sha256") == script_sha256(HERE)
    return old["runs"] if same and old["settings"] == SETTINGS else []


def write(path: Path, runs: list[dict[str, float]]) -> None:
    """Replace the file in one step: it is never half written."""
    seconds = sum(r["seconds"] for r in runs)
    result = {"stamp": stamp(seconds), "settings": SETTINGS, "runs": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    runs = finished(args.out)
    train, _ = images(SETTINGS["data"])
    parts = data.split(train, len(train) * 5 // 6)
    for seed, warmup in product(args.seeds, WARMUPS):
        if any((r["seed"], r["kl_warmup"]) == (seed, warmup) for r in runs):
            print(f"seed {seed}, warm-up {warmup}: there already")
            continue
        result = run(seed, warmup, *parts)
        runs = sorted([*runs, result], key=lambda r: (r["kl_warmup"], r["seed"]))
        write(args.out, runs)
        print(result)


if __name__ == "__main__":
    main()
