"""Trainings that a recipe describes, each in a folder of its own.

:func:`train` follows a recipe (:mod:`aevb.recipes`) and leaves in its folder

* ``model.json``: the recipe, what following it took, and the SHA-256 of the weights; an
  entry as those of :func:`aevb.weights.manifest`;
* ``history.jsonl``: one line of JSON for each evaluation, written as it happens;
* ``checkpoint.pt``: that of :func:`aevb.fit`, from which a stopped training goes on;
* ``weights.safetensors``: the weights, when the training is done.

:func:`load` gives the model back, and :func:`score` says how good it is. ``python -m
aevb`` is these three functions with a command line.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import aevb
from aevb import data, estimators, evaluation, models, weights
from aevb.files import replacing
from aevb.model import ElboTerms, LatentVariableModel, device_of
from aevb.randomness import preserved, seed_device
from aevb.recipes import Recipe
from aevb.training import History, choose_device, fit

MODEL, HISTORY = "model.json", "history.jsonl"
CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.safetensors"

# --- what a recipe describes --------------------------------------------------------


def initial(recipe: Recipe) -> LatentVariableModel:
    """The untrained model, with the first weights that the recipe's seed gives.

    Example:
        >>> recipe = {"model": {"class": "FactorAnalysis", "arguments": {}}, "seed": 0}
        >>> initial(recipe).loadings.shape
        torch.Size([3, 2])
    """
    with preserved(torch.device("cpu")):
        seed_device(recipe["seed"], torch.device("cpu"))
        return weights.build(recipe["model"])


def start_at(model: LatentVariableModel, recipe: Recipe, train: data.Examples) -> None:
    """Start the untrained model at the mean of the data, if the recipe says so."""
    if recipe.get("start_at") == "mean":
        model.start_at(train.x)


def examples(
    recipe: Recipe, root: str | os.PathLike | None = None, bundled: bool = False
) -> tuple[data.Examples, data.Examples]:
    """``train, test`` of a recipe.

    Args:
        root: where MNIST lies; see :func:`aevb.data.mnist_root`.
        bundled: scikit-learn's digits in place of MNIST, which need no download.

    Raises:
        DataError: MNIST could not be had.
    """
    source = recipe["data"]["source"]
    if source == "factor_analysis":
        return data.factor_analysis()
    kind = recipe["data"]["kind"]
    if bundled or source == "digits":
        train, test = data.digits(kind)
    else:
        train, test = data.mnist(kind, root)
    if recipe["model"]["class"] == "VariationalRNN" and train.x.ndim == 2:
        train, test = data.rows(train), data.rows(test)
    return train[: recipe["data"].get("examples")], test


def estimator(
    model: LatentVariableModel, description: dict[str, Any] | None
) -> Callable[..., ElboTerms] | None:
    """What a stage maximises, for :func:`aevb.fit`; None is the model's own ELBO.

    Example:
        >>> chosen = {"name": "importance_weighted", "num_samples": 5}
        >>> estimator(models.FactorAnalysis(), chosen).func.__name__
        'importance_weighted'
    """
    if description is None:
        return None
    options = dict(description)
    name = options.pop("name")
    found = type(model).elbo if name == "elbo" else getattr(estimators, name)
    return partial(found, **options)


def fit_stage(
    model: LatentVariableModel, train: Any, stage: dict[str, Any], **options: Any
) -> History:
    """:func:`aevb.fit` with the arguments of a stage, and ``options`` beside them."""
    arguments = {k: v for k, v in stage.items() if k != "groups"}
    arguments["estimator"] = estimator(model, stage.get("estimator"))
    return fit(model, train, **arguments, **options)


# --- a training and its folder ------------------------------------------------------


def train(
    recipe: Recipe,
    folder: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    resume: bool = False,
    writes: bool = True,
    report: Callable[[History], None] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> tuple[LatentVariableModel, History]:
    """Follow a recipe of one stage and keep what comes out of it in a folder.

    Args:
        root: where MNIST lies.
        resume: go on from the folder's checkpoint, if there is one.
        writes: whether this process is the one that writes.
        report, device, progress: as for :func:`aevb.fit`.

    Returns:
        The model, in evaluation mode, and its history.

    Raises:
        ValueError: the recipe is not what is expected, or not that of the training
            which ``resume`` asks to go on with; raised before data are loaded.
        DataError, Diverged, OSError: MNIST could not be had, the training met a number
            that is not finite, the folder cannot be written.
    """
    folder = Path(folder)
    device = choose_device(device)
    recipe = json.loads(json.dumps(recipe))  # as it is read back: lists, no tuples
    if resume:
        _check_same(recipe, folder)
    model = initial(recipe)
    (stage,) = recipe["stages"]
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / WEIGHTS).exists():
            _write_json(folder / MODEL, {"recipe": recipe})
    training, test = examples(recipe, root)
    start_at(model, recipe, training)
    lines = Lines(folder / HISTORY)

    def evaluated(history: History) -> None:
        lines(history)
        if report is not None:
            report(history)

    history = fit_stage(
        model,
        training,
        stage,
        test=test,
        seed=recipe["seed"],
        device=device,
        checkpoint=folder / CHECKPOINT,
        resume=resume,
        report=evaluated,
        progress=progress,
    )
    if writes:
        lines(history)
        digest = weights.save(model, folder / WEIGHTS)
        size = (folder / WEIGHTS).stat().st_size
        entry = {
            "recipe": recipe,
            "training": circumstances(history.seconds[-1], device),
            "file": {"bytes": size, "sha256": digest},
        }
        _write_json(folder / MODEL, entry)
    return model, history


class Lines:
    """A history as a file of JSON lines, one for each evaluation, as they come.

    Called with the history after each evaluation. The first call writes all of it, in
    place of what an earlier training left; the next ones append, a whole line at a
    time. A number that is not finite becomes ``null``, which JSON has. If the file
    cannot be written (a full disk), it says so, and the next call writes all again.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write = Lines(Path(folder, "history.jsonl"))
        ...     write(History(step=[1.0], train_elbo=[-3.0]))
        ...     print(write.path.read_text(), end="")
        {"step": 1, "train_elbo": -3.0}
    """

    def __init__(self, path: Path):
        self.path, self.count = path, 0

    def __call__(self, history: History) -> None:
        rows = list(zip(*history.values(), strict=True))[self.count :]
        text = "".join(self.line(dict(zip(history, row, strict=True))) for row in rows)
        try:
            if self.count == 0:
                _replace(self.path, text)
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
            self.count += len(rows)
        except OSError as error:
            self.count = 0
            tqdm.write(
                f"{self.path} could not be written ({error.strerror}); training goes"
                " on, and the next evaluation writes all of it again",
                file=sys.stderr,
            )

    @staticmethod
    def line(row: dict[str, float]) -> str:
        numbers = {k: v if math.isfinite(v) else None for k, v in row.items()}
        if "step" in numbers:
            numbers["step"] = int(numbers["step"])
        return json.dumps(numbers, allow_nan=False) + "\n"


def circumstances(seconds: float | None, device: torch.device) -> dict[str, Any]:
    """How and when a training was done: the part ``training`` of a model's entry."""
    return {
        "seconds": None if seconds is None else round(seconds, 1),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "aevb": aevb.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def load(folder: str | os.PathLike) -> tuple[LatentVariableModel, dict[str, Any]]:
    """The model that :func:`train` left in a folder, and its entry, ``model.json``.

    Nothing in the files is executed.

    Raises:
        WeightsError: the folder holds no training, or one that is not finished; its
            files are broken, or do not belong together.
    """
    folder = Path(folder)
    entry = _read_entry(folder)
    if "file" not in entry:
        raise weights.WeightsError(
            f"{folder} holds a training that is not finished; go on with it (--resume)"
        )
    model = weights.build(entry["recipe"]["model"])
    return weights.load(model, folder / WEIGHTS, entry["file"]["sha256"]), entry


def find(target: str) -> tuple[LatentVariableModel, dict[str, Any]]:
    """A trained model and its entry, by the name of a folder or of installed weights.

    Raises:
        ValueError: there is neither.
        WeightsError: as :func:`load`.

    Example:
        >>> model, entry = find("factor-analysis")
        >>> entry["recipe"]["model"]["class"]
        'FactorAnalysis'
    """
    if Path(target).is_dir():
        return load(target)
    entries = weights.manifest()
    if target not in entries:
        raise ValueError(
            f"MODEL is {target!r}; expected a folder that 'python -m aevb train' wrote,"
            f" or one of {', '.join(entries)}"
        )
    return weights.pretrained(target), entries[target]


def _read_entry(folder: Path) -> dict[str, Any]:
    path = folder / MODEL
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        entry["recipe"]["model"]["class"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise weights.WeightsError(
            f"{path} cannot be read ({type(error).__name__}); expected what 'python -m"
            " aevb train' writes into its folder"
        ) from error
    return entry


def _check_same(recipe: Recipe, folder: Path) -> None:
    """Raise if the training in this folder was begun by another recipe."""
    if not (folder / MODEL).exists():
        return
    here, there = _flat(recipe), _flat(_read_entry(folder)["recipe"])
    for name in here | there:
        if here.get(name) != there.get(name):
            raise ValueError(
                f"--resume: {name} is {here.get(name)!r}, and the training in {folder}"
                f" was begun with {there.get(name)!r}; expected the same"
            )


def _flat(thing: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists of them, by their paths."""
    if isinstance(thing, list) and thing and isinstance(thing[0], dict):
        thing = dict(enumerate(thing, 1))
    if not isinstance(thing, dict):
        return {name: thing}
    leaves = {}
    for key, value in thing.items():
        leaves |= _flat(value, f"{name}.{key}" if name else str(key))
    return leaves


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _replace(path, json.dumps(content, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


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
            entry["evidence"] = _numbers(model.evidence(test.x.to(device_of(model))))
    share = accuracy(model, test, some, seed)
    return entry if share is None else entry | {"accuracy": share}


def accuracy(
    model: LatentVariableModel, test: data.Examples, some: Tensor, seed: int = 0
) -> dict[str, float] | None:
    """The share of digits that are told right, for a model that tells them.

    Clusters are matched to digits one to one, on the whole set. A conditional VAE
    decides by Bayes' rule with the ELBO in place of log p(x | y), labels being equally
    probable; on the examples ``some``, with draws of z from ``seed``.
    """
    if isinstance(model, models.GaussianMixtureVAE):
        with torch.no_grad():
            parts = (x.to(device_of(model)) for x in test.x.split(1000))
            found = torch.cat([model.cluster(x) for x in parts]).cpu()
        share, count = evaluation.clustering_accuracy(found, test.y), len(test)
    elif isinstance(model, models.ConditionalVAE):
        x, y = test.x[some], test.y[some]
        draws = {"num_samples": 10, "seed": seed}
        bounds = [
            evaluation.elbo(model, (x, torch.full_like(y, k)), **draws).values
            for k in range(model.num_classes)
        ]
        right = torch.stack(bounds).argmax(0).cpu() == y
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
