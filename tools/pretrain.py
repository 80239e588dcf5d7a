"""Train a model of the book by its recipe, score it, and pack it into `aevb/trained/`.

    AEVB_DATA=... python -m tools.pretrain vae conditional-vae   # make weights NAME=...
    python -m tools.pretrain iwae --weights run.pt --seconds 3600 --note "..."
    python -m tools.pretrain vae --score                         # only the scores again

The recipes are those of :mod:`aevb.recipes`; a stage's ``groups`` are found here, by
:func:`find_groups`. ``python -m aevb train`` is for a training of your own.

Every stage keeps a checkpoint in `_build/pretrain/`, from which a stopped training goes
on, and from which a finished one is packed at once. ``--weights`` packs the checkpoint
of :func:`aevb.fit`, or the state_dict, of a training done elsewhere by the recipe. What
is stored is rounded to half precision, and scored after that. Each model's entry of the
manifest is by itself: another recipe for one of them changes no other. ``AEVB_FAST=1``
takes a handful of steps on the bundled digits, into ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from aevb import data, em, runs, weights
from aevb.files import replacing
from aevb.model import LatentVariableModel
from aevb.notebook import budget, fast
from aevb.recipes import RECIPES, Recipe
from aevb.training import History, choose_device
from tools import conventions as c

LARGEST = 5_000_000  # bytes of one file
CHECKPOINTS = c.ROOT / "_build" / "pretrain"

# Draws of z for the ELBO of every test image; draws and images for log p(x).
_SCORES = {"elbo_samples": 10, "samples": 1000, "examples": 1000}
SCORES: dict[str, dict[str, int]] = {name: _SCORES for name in RECIPES} | {
    "factor-analysis": {"elbo_samples": 1000, "samples": 1000, "examples": 1000},
    "variational-rnn": {"elbo_samples": 10, "samples": 200, "examples": 500},
    "vae-binarised": {"elbo_samples": 10, "samples": 5000, "examples": 10000},
    "iwae": {"elbo_samples": 10, "samples": 5000, "examples": 10000},
}
# On the bundled digits, which no model was trained on: they are everywhere, so that
# the scores can be compared everywhere.
BUNDLED = {"elbo_samples": 10, "samples": 50, "examples": 100}


# --- training -----------------------------------------------------------------------


def train(
    name: str, recipe: Recipe, work: Path = CHECKPOINTS
) -> tuple[LatentVariableModel, float]:
    """The trained model, and the seconds that it took, those before a stop included.

    Args:
        work: folder of the checkpoints. Their names depend on all that was done up to
            their stage, so that none is ever taken for the stage of another recipe.
    """
    examples, _ = runs.examples(recipe, bundled=fast())
    model = runs.initial(recipe)
    runs.start_at(model, recipe, examples)
    seconds = 0.0
    for number, stage in enumerate(recipe["stages"], 1):
        so_far = recipe | {"stages": recipe["stages"][:number]}
        path = work / f"{name}.{number}.{short_hash(so_far)}.pt"
        inputs = examples
        if "groups" in stage:
            groups, extra = find_groups(recipe, stage["groups"], examples, path)
            inputs, seconds = (examples.x, groups), seconds + extra
            model.inputs = ("x", "y")
        history = run_stage(model, inputs, stage, recipe["seed"], path)
        seconds += history.seconds[-1]
        model.inputs = type(model).inputs
    return model.cpu().eval(), seconds


def short_hash(thing: Any) -> str:
    """Eight letters that tell one description from another."""
    text = json.dumps(thing, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_stage(
    model: LatentVariableModel,
    examples: Any,
    stage: dict[str, Any],
    seed: int,
    path: Path,
) -> History:
    """One stage, going on from its checkpoint if there is one."""
    if fast():
        stage = {k: v for k, v in stage.items() if k != "epochs"}
        stage |= {"steps": 2, "every": 1, "precision": None}
    print(f"{path.name}: {stage}", flush=True)
    options = {"seed": seed, "checkpoint": path, "resume": True, "progress": False}
    return runs.fit_stage(model, examples, stage, **options)


def find_groups(
    recipe: Recipe, how: dict[str, Any], train: data.Examples, path: Path
) -> tuple[Tensor, float]:
    """A class for each example, found without labels: (N,) int64; and the seconds.

    As in chapter 9: a VAE; EM for mixtures of many Gaussians on its codes; for every
    subset of the restarts the components merged into ten groups; of these groupings
    the one whose groups are the most equal in size.

    Args:
        how: the stage's entry ``groups``.
        path: of the stage's checkpoint; what is found is kept beside it.
    """
    kept = path.with_suffix(".groups.pt")
    if kept.exists():
        found = torch.load(kept, weights_only=True)
        return found["groups"], found["seconds"]
    seed = recipe["seed"]
    vae = runs.initial({"model": how["model"], "seed": seed})
    history = run_stage(vae, train, how["stage"], seed, path.with_suffix(".vae.pt"))
    start = time.perf_counter()
    with torch.no_grad():
        vae.cpu()
        means = torch.cat([vae.posterior(x).mean for x in train.x.split(1000)])
    variance = means.var(0)
    x = means[:, variance > how["active"] * variance.max()].double()
    fits = [responsibilities(x, how, 100 * seed + k) for k in range(how["restarts"])]
    subsets = [s for n in range(1, len(fits) + 1) for s in combinations(fits, n)]
    groups = min(map(merged, subsets), key=imbalance).argmax(1)
    seconds = history.seconds[-1] + time.perf_counter() - start
    torch.save({"groups": groups, "seconds": seconds}, kept)
    return groups, seconds


def responsibilities(x: Tensor, how: dict[str, Any], seed: int) -> Tensor:
    """Of the components of one EM fit for each code x (N, L): (N, K)."""
    g = torch.Generator().manual_seed(seed)
    some = x[torch.randperm(len(x), generator=g)[: how["examples"]]]
    mixture = em.GaussianMixture(budget(how["num_components"], fast=12))
    limit = budget(how["max_iterations"], fast=5)
    mixture.fit(some, seed=seed, tolerance=how["tolerance"], max_iterations=limit)
    return mixture.posterior(x).probs


def merged(fits: tuple[Tensor, ...], count: int = 10) -> Tensor:
    """The components of some fits, put together to ``count`` groups: (N, count)."""
    r = torch.cat(fits, 1) / len(fits)
    sums = torch.zeros(len(r), count, dtype=r.dtype)
    return sums.index_add(1, em.merge_components(r, count), r)


def imbalance(grouped: Tensor) -> float:
    """KL of the groups' shares from equal ones, nats; grouped is (N, C)."""
    share = grouped.mean(0)
    return (share * (len(share) * share).log()).nan_to_num(0.0).sum().item()


# --- packing ------------------------------------------------------------------------


def pack(
    name: str,
    model: LatentVariableModel,
    training: dict[str, Any],
    folder: Path = weights.FOLDER,
    sizes: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Round, store and score a trained model; its new entry of the manifest.

    Args:
        training: the entry's part of that name.
        sizes: arguments of :func:`aevb.runs.score` that replace those of ``SCORES``.

    Raises:
        ValueError: the file would be larger than 5 MB.
    """
    content = weights.to_bytes(model.state_dict(), half=True)
    if len(content) > LARGEST:
        raise ValueError(
            f"{name} takes {len(content):,} bytes; expected at most {LARGEST:,}"
        )
    digest = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as aside:
        fresh = Path(aside, f"{name}.safetensors")
        fresh.write_bytes(content)
        stored = weights.load(weights.build(RECIPES[name]["model"]), fresh, digest)
        entry = {
            "recipe": RECIPES[name],
            "training": training,
            "scores": scores(name, stored, sizes),
            "file": {"bytes": len(content), "sha256": digest},
        }
        fresh.replace(folder / fresh.name)
    write_entry(name, entry, folder)
    return entry


def scores(
    name: str, model: LatentVariableModel, sizes: dict[str, int] | None = None
) -> dict[str, Any]:
    """Of a stored model: on its own test set, and on data that are everywhere."""
    recipe = RECIPES[name]
    model = model.to(choose_device())
    found = {}
    if not fast():
        _, test = runs.examples(recipe)
        begin = time.perf_counter()
        found["test"] = runs.score(model, test, **SCORES[name] | (sizes or {}))
        found["test"]["seconds"] = round(time.perf_counter() - begin, 1)
    model.cpu()
    found["bundled"] = score_bundled(model, recipe)
    return found


def score_bundled(model: LatentVariableModel, recipe: Recipe) -> dict[str, Any]:
    """Scores on the test digits of scikit-learn, or on the synthetic data."""
    _, test = runs.examples(recipe, bundled=True)
    return runs.score(model, test[: BUNDLED["examples"]], **BUNDLED)


def write_entry(name: str, entry: dict[str, Any], folder: Path) -> None:
    """Add or replace one entry of the manifest, in one step."""
    path = folder / "manifest.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = old | {name: entry}
    ordered = {key: new[key] for key in RECIPES if key in new}
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def record(seconds: float | None, note: str = "") -> dict[str, Any]:
    """How and when a training was done: the manifest's part ``training``."""
    entry = runs.circumstances(seconds, choose_device())
    return entry | ({"note": note} if note else {}) | ({"fast": True} if fast() else {})


def read_state(path: Path) -> tuple[dict[str, Tensor], float | None]:
    """A state_dict that torch.save wrote, or a checkpoint of fit, with its seconds."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return (state["model"], state["seconds"]) if "model" in state else (state, None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--out", type=Path, default=weights.FOLDER)
    parser.add_argument("--score", action="store_true", help="only score again")
    parser.add_argument(
        "--weights", type=Path, help="pack this state_dict or checkpoint"
    )
    parser.add_argument("--seconds", type=float, help="what it took")
    parser.add_argument("--note", default="", help="kept with the training's record")
    parser.add_argument("--samples", type=int, help="draws for log p(x)")
    parser.add_argument("--examples", type=int, help="test images for log p(x)")
    options = parser.parse_args(arguments)
    if fast() and options.out == weights.FOLDER:
        parser.error("AEVB_FAST=1 trains for a test: name a folder with --out")
    if options.weights and len(options.names) > 1:
        parser.error("--weights is for one model")
    sizes = {k: getattr(options, k) for k in ("samples", "examples")}
    sizes = {k: v for k, v in sizes.items() if v}
    for name in options.names:
        entry = pack_one(name, options, sizes)
        for data_set, found in entry["scores"].items():
            print(f"{name}, {data_set}: {json.dumps(found)}", flush=True)
    return 0


def pack_one(name: str, options: argparse.Namespace, sizes: dict[str, int]):
    recipe = RECIPES[name]
    if options.score:
        old = weights.manifest()[name]
        model = weights.pretrained(name)
        new = old | {"scores": scores(name, model, sizes)}
        write_entry(name, new, options.out)
        return new
    if options.weights:
        model = weights.build(recipe["model"])
        state, seconds = read_state(options.weights)
        model.load_state_dict(state)
        seconds = options.seconds or seconds
    else:
        work = options.out / "checkpoints" if fast() else CHECKPOINTS
        model, seconds = train(name, recipe, work)
    return pack(name, model.eval(), record(seconds, options.note), options.out, sizes)


if __name__ == "__main__":
    raise SystemExit(main())
