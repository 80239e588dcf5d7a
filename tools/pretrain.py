"""Train a model of the book by its recipe, score it, and pack it into `aevb/trained/`.

    AEVB_DATA=... python -m tools.pretrain vae conditional-vae   # make weights NAME=...
    python -m tools.pretrain iwae --weights run.pt --seconds 3600 --note "..."
    python -m tools.pretrain vae --score                         # only the scores again

A recipe is the model's class and arguments, the data, the seed, and the stages of the
training: arguments of :func:`aevb.fit`, one set a stage, each going on from the one
before. With ``"start_at": "mean"`` the model's :meth:`start_at` sees the training data
first. Beside the arguments of fit a stage may have

* ``estimator``: ``{"name": "importance_weighted", "num_samples": 5}``, a function of
  :mod:`aevb.estimators` and its options;
* ``groups``: the model is told a class for each example, found without labels, as
  chapter 9 does: by EM on the codes of a VAE (see :func:`find_groups`).

Every stage keeps a checkpoint in `_build/pretrain/`, from which a stopped training goes
on, and from which a finished one is packed at once. ``--weights`` packs the checkpoint
of :func:`aevb.fit`, or the state_dict, of a training done elsewhere by the recipe. What
is stored is rounded to half precision, and scored after that. Each model's entry of the
manifest is by itself: another recipe for one of them changes no other. ``AEVB_FAST=1``
takes a handful of steps on the bundled digits, into ``--out``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from aevb import data, em, estimators, evaluation, fit, models, weights
from aevb.model import LatentVariableModel
from aevb.notebook import budget, fast
from aevb.training import History, choose_device
from tools import conventions as c

Recipe = dict[str, Any]

LARGEST = 5_000_000  # bytes of one file
CHECKPOINTS = c.ROOT / "_build" / "pretrain"

_VAE = {"latent_dim": 20, "hidden": [500, 500], "dropout": 0.0}
_MIXTURE = {"latent_dim": 64, "hidden": [512, 512]}
_BURDA = {  # the network of Burda et al. (2016) with one stochastic layer
    "latent_dim": 50,
    "hidden": [200, 200],
    "likelihood": "bernoulli",
    "dropout": 0.0,
    "activation": "tanh",
}
_ADAM = {"batch_size": 100, "lr": 1e-3, "schedule": "cosine"}
_FAST_PRODUCTS = {"precision": "bfloat16"}

# The settings of the chapters' own models at full speed.
RECIPES: dict[str, Recipe] = {
    "factor-analysis": {
        "model": {"class": "FactorAnalysis", "arguments": {}},
        "data": {"source": "factor_analysis"},
        "seed": 0,
        "stages": [
            {"steps": 8000, "every": 1000} | _ADAM | {"batch_size": 32, "lr": 1e-2}
        ],
    },
    "vae": {
        "model": {"class": "VAE", "arguments": _VAE},
        "data": {"source": "mnist", "kind": "continuous", "examples": 50000},
        "seed": 0,
        "stages": [{"epochs": 20} | _ADAM],
    },
    "conditional-vae": {
        "model": {"class": "ConditionalVAE", "arguments": _VAE},
        "data": {"source": "mnist", "kind": "continuous", "examples": 50000},
        "seed": 0,
        "stages": [{"epochs": 20} | _ADAM | _FAST_PRODUCTS],
    },
    "gaussian-mixture-vae": {
        "model": {"class": "GaussianMixtureVAE", "arguments": _MIXTURE},
        "data": {"source": "mnist", "kind": "binary", "examples": 60000},
        "seed": 0,
        "stages": [
            {
                "groups": {
                    "model": {
                        "class": "VAE",
                        "arguments": _MIXTURE
                        | {"likelihood": "bernoulli", "dropout": 0.0},
                    },
                    "stage": {"epochs": 12} | _ADAM | _FAST_PRODUCTS,
                    "active": 0.1,
                    "examples": 30000,
                    "num_components": 40,
                    "restarts": 4,
                    "tolerance": 2e-3,
                    "max_iterations": 60,
                },
                "epochs": 12,
            }
            | _ADAM
            | _FAST_PRODUCTS,
            {"epochs": 15} | _ADAM | {"lr": 5e-4} | _FAST_PRODUCTS,
        ],
    },
    "variational-rnn": {
        "model": {
            "class": "VariationalRNN",
            "arguments": {"latent_dim": 2, "recurrent": [128], "hidden": [200, 200]},
        },
        "data": {"source": "mnist", "kind": "rows", "examples": 50000},
        "seed": 0,
        "stages": [{"epochs": 10} | _ADAM | {"lr": 6e-3} | _FAST_PRODUCTS],
    },
    "vae-binarised": {
        "model": {"class": "VAE", "arguments": _BURDA},
        "data": {"source": "mnist", "kind": "stochastic", "examples": 60000},
        "seed": 0,
        "stages": [
            {"epochs": 450, "every": 22, "batch_size": 256, "lr": 3e-3}
            | {"schedule": "cosine"}
            | _FAST_PRODUCTS
        ],
    },
    "iwae": {
        "model": {"class": "VAE", "arguments": _BURDA},
        "data": {"source": "mnist", "kind": "stochastic", "examples": 60000},
        "seed": 0,
        "stages": [
            {
                "estimator": {
                    "name": "importance_weighted",
                    "num_samples": 5,
                    "gradient": "doubly-reparameterised",
                },
                "epochs": 172,
                "every": 8,
                "batch_size": 256,
                "lr": 3e-3,
                "schedule": "cosine",
            }
            | _FAST_PRODUCTS
        ],
    },
}

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


# --- data ---------------------------------------------------------------------------


def data_of(recipe: Recipe, bundled: bool = False) -> tuple[data.Examples, ...]:
    """``train, test`` of a recipe; with ``bundled`` those that need no download."""
    source = recipe["data"]["source"]
    if source == "factor_analysis":
        return data.factor_analysis()
    load = data.digits if bundled else getattr(data, source)
    train, test = load(recipe["data"]["kind"])
    return train[: recipe["data"]["examples"]], test


# --- training -----------------------------------------------------------------------


def train(
    name: str, recipe: Recipe, work: Path = CHECKPOINTS
) -> tuple[LatentVariableModel, float]:
    """The trained model, and the seconds that it took, those before a stop included.

    Args:
        work: folder of the checkpoints. Their names depend on all that was done up to
            their stage, so that none is ever taken for the stage of another recipe.
    """
    examples, _ = data_of(recipe, bundled=fast())
    torch.manual_seed(recipe["seed"])
    model = weights.build(recipe["model"])
    if recipe.get("start_at") == "mean":
        model.start_at(examples.x)
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
    """One stage: :func:`aevb.fit`, going on from its checkpoint if there is one."""
    options = {"seed": seed} | {k: v for k, v in stage.items() if k != "groups"}
    if "estimator" in options:
        chosen = dict(options["estimator"])
        function = getattr(estimators, chosen.pop("name"))
        options["estimator"] = partial(function, **chosen)
    if fast():
        del options["epochs" if "epochs" in options else "steps"]
        options |= {"steps": 2, "every": 1, "precision": None}
    print(f"{path.name}: {options}", flush=True)
    files = {"checkpoint": path, "resume": True}
    return fit(model, examples, progress=False, **options, **files)


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
    torch.manual_seed(seed)
    vae = weights.build(how["model"])
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


# --- scores -------------------------------------------------------------------------


def score(
    model: LatentVariableModel,
    test: data.Examples,
    elbo_samples: int,
    samples: int,
    examples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """What a model scores on a test set, nats per example.

    Args:
        elbo_samples: draws of z for the ELBO of each example of ``test``.
        samples: K, draws for the importance-weighted estimate of log p(x).
        examples: how many examples that is made on, drawn from ``test`` without
            replacement by seed 0; all, if there are no more.
        seed: of the draws of z.

    Returns:
        ``elbo``, of all examples; ``log_likelihood``; ``gap``, how far the latter lies
        above the ELBO of the same examples; each with ``mean``, ``standard_error``,
        ``samples``, ``examples``, ``seed``. Factor analysis has its exact ``evidence``
        too, a model of classes its ``accuracy``, a share from 0 to 1.
    """
    bound = evaluation.elbo(model, test, num_samples=elbo_samples, seed=seed)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    some = order[:examples].sort().values
    better = evaluation.log_likelihood(model, test[some], samples, seed=seed)
    difference = better.values.cpu() - bound.values.cpu()[some]
    entry = {
        "elbo": _numbers(bound.values, elbo_samples, seed),
        "log_likelihood": _numbers(better.values, samples, seed),
        "gap": _numbers(difference, samples, seed),
    }
    if isinstance(model, models.FactorAnalysis):
        with torch.no_grad():
            entry["evidence"] = _numbers(model.evidence(test.x))
    share = accuracy(model, test, some)
    return entry if share is None else entry | {"accuracy": share}


def accuracy(
    model: LatentVariableModel, test: data.Examples, some: Tensor
) -> dict[str, float] | None:
    """The share of digits that are told right, for a model that tells them.

    Clusters are matched to digits one to one, on the whole set. A conditional VAE
    decides by Bayes' rule with the ELBO in place of log p(x | y), labels being equally
    probable; on the examples ``some``.
    """
    if isinstance(model, models.GaussianMixtureVAE):
        with torch.no_grad():
            found = torch.cat([model.cluster(x) for x in test.x.split(1000)])
        share, count = evaluation.clustering_accuracy(found, test.y), len(test)
    elif isinstance(model, models.ConditionalVAE):
        x, y = test.x[some], test.y[some]
        bounds = [
            evaluation.elbo(model, (x, torch.full_like(y, k)), num_samples=10).values
            for k in range(model.num_classes)
        ]
        right = torch.stack(bounds).argmax(0) == y
        share, count = right.double().mean().item(), len(y)
    else:
        return None
    error = math.sqrt(share * (1 - share) / count)
    return {
        "mean": round(share, 4),
        "standard_error": round(error, 4),
        "examples": count,
    }


def _numbers(values: Tensor, samples: int | None = None, seed: int | None = None):
    values = values.double()
    entry = {
        "mean": round(values.mean().item(), 4),
        "standard_error": round(values.std().item() / math.sqrt(len(values)), 4),
        "examples": len(values),
    }
    return entry | ({} if samples is None else {"samples": samples, "seed": seed})


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
        sizes: arguments of :func:`score` that replace those of ``SCORES``.

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
        _, test = data_of(recipe)
        begin = time.perf_counter()
        found["test"] = score(model, test, **SCORES[name] | (sizes or {}))
        found["test"]["seconds"] = round(time.perf_counter() - begin, 1)
    model.cpu()
    found["bundled"] = score_bundled(model, recipe)
    return found


def score_bundled(model: LatentVariableModel, recipe: Recipe) -> dict[str, Any]:
    """Scores on the test digits of scikit-learn, or on the synthetic data."""
    _, test = data_of(recipe, bundled=True)
    return score(model, test[: BUNDLED["examples"]], **BUNDLED)


def write_entry(name: str, entry: dict[str, Any], folder: Path) -> None:
    """Add or replace one entry of the manifest, in one step."""
    path = folder / "manifest.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = old | {name: entry}
    ordered = {key: new[key] for key in RECIPES if key in new}
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def record(seconds: float | None, note: str = "") -> dict[str, Any]:
    """How and when a training was done: the manifest's part ``training``."""
    device = choose_device()
    entry = {
        "seconds": None if seconds is None else round(seconds, 1),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        entry["device"] = torch.cuda.get_device_name(device)
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
