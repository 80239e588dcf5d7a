"""Trained weights: the models of the book, ready to use, and files for your own.

:func:`pretrained` gives a trained model without training, without MNIST and without a
network: the weights are installed with the package, in `aevb/trained/`, rounded to half
precision. `manifest.json` beside them, which :func:`manifest` reads, says of each model
how it was trained, what it scores as it is stored, and the SHA-256 of its file.

The files are safetensors: a list of names, shapes and numbers, with no code in it that
reading could execute, as the pickles of :func:`torch.save` have. :func:`save` and
:func:`load` do the same for a model of your own.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aevb import models
from aevb.files import replacing
from aevb.model import LatentVariableModel
from aevb.randomness import preserved

FOLDER = Path(__file__).parent / "trained"
HALF = torch.float16


class WeightsError(RuntimeError):
    """A file of weights is missing, broken, or not what the manifest says."""


def manifest() -> dict[str, dict[str, Any]]:
    """What is known of each trained model, by name; the page "Results and costs".

    An entry has the parts

    * ``recipe``: class and arguments of the model, data, and the stages of its
      training: all that ``python -m tools.pretrain NAME`` needs to make it again;
    * ``training``: what that took: seconds, device, threads, torch, date, and a note
      where the recipe was not followed;
    * ``scores``: those of the stored half-precision weights, by data set, each with
      its standard error, and the number of draws and of examples behind it;
    * ``file``: ``bytes`` and ``sha256``.

    Raises:
        WeightsError: the manifest is missing or broken.

    Example:
        >>> entry = manifest()["factor-analysis"]
        >>> entry["recipe"]["model"]["class"]
        'FactorAnalysis'
    """
    path = FOLDER / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); expected the list of trained models that"
            " is installed with aevb"
        ) from error


def pretrained(name: str, device: torch.device | str = "cpu") -> LatentVariableModel:
    """A model of the book with trained weights, in evaluation mode.

    Works offline. Nothing in the file is executed, and a file that is not the one
    whose SHA-256 stands in the manifest is not even parsed.

    Args:
        name: one of the names in :func:`manifest`: ``"vae"``, say.
        device: where the model goes.

    Returns:
        The model, float32; its weights are those of the training, rounded to 11
        significant bits.

    Raises:
        ValueError: there is no model of that name.
        WeightsError: its file is missing, or another one than was published.

    Example:
        >>> model = pretrained("factor-analysis")
        >>> model.training, model.loadings.shape
        (False, torch.Size([3, 2]))
    """
    entries = manifest()
    if name not in entries:
        names = ", ".join(map(repr, entries))
        raise ValueError(f"name is {name!r}; expected one of {names}")
    entry = entries[name]
    model = build(entry["recipe"]["model"])
    path = FOLDER / f"{name}.safetensors"
    return load(model, path, sha256=entry["file"]["sha256"]).to(device)


def build(description: dict[str, Any]) -> LatentVariableModel:
    """The model that a recipe describes, untrained: its class and its arguments.

    The global random state is left as it was.

    Raises:
        ValueError: no model of the book has that class.

    Example:
        >>> build({"class": "VAE", "arguments": {"latent_dim": 2}}).latent_dim
        2
    """
    kind = description["class"]
    if kind not in models.__all__:
        raise ValueError(f"class is {kind!r}; expected one of {models.__all__}")
    with preserved(torch.device("cpu")):
        return getattr(models, kind)(**description["arguments"])


def save(
    model: LatentVariableModel, path: str | os.PathLike, half: bool = False
) -> str:
    """Write the weights of a model of your own; the SHA-256 of the file.

    Args:
        path: of the file, as ``mine.safetensors``; it is replaced in one step.
        half: round to half precision, which halves the file.

    Raises:
        ValueError: a weight is not finite, or too large for half precision.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> mine = models.FactorAnalysis()
        >>> with TemporaryDirectory() as folder:
        ...     digest = save(mine, f"{folder}/mine.safetensors")
        ...     again = load(models.FactorAnalysis(), f"{folder}/mine.safetensors")
        >>> bool((again.loadings == mine.loadings).all()), len(digest)
        (True, 64)
    """
    content = to_bytes(model.state_dict(), half)
    with replacing(path) as beside:
        beside.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def to_bytes(state: dict[str, Tensor], half: bool = False) -> bytes:
    """The content of a safetensors file with these tensors.

    Raises:
        ValueError: as :func:`save`.
    """
    from safetensors.torch import save as serialise

    stored = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point():
            tensor = tensor.to(HALF) if half else tensor
            if not tensor.isfinite().all():
                worst = state[name].abs().max().item()
                raise ValueError(
                    f"save: {name} holds {worst:g}; expected finite numbers"
                    + (f" of at most {torch.finfo(HALF).max:g}" if half else "")
                )
        stored[name] = tensor.clone()  # never two names for one storage
    return serialise(stored)


def load(
    model: LatentVariableModel, path: str | os.PathLike, sha256: str | None = None
) -> LatentVariableModel:
    """Give a model the weights of a file that :func:`save` wrote.

    The file is data alone: whatever is in it, no code of it is executed. The model
    keeps its precision and device, and comes back in evaluation mode.

    Args:
        model: built with the arguments that the saved one was built with.
        path: of the file.
        sha256: expected of the file; checked before anything is parsed.

    Returns:
        ``model``.

    Raises:
        WeightsError: the file is missing, truncated, something else than safetensors,
            not of this ``sha256``, or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}); expected a file of weights"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise WeightsError(
            f"{path} is refused, and nothing of it was read: expected SHA-256 {sha256},"
            f" found {found} ({len(content)} bytes). It is truncated, or changed since"
            " it was published."
        )
    try:
        state = parse(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}); expected a file that"
            " aevb.weights.save wrote. Nothing in it was executed."
        ) from error
    _check_fit(path, state, model.state_dict())
    model.load_state_dict(state)  # rounded numbers become the model's own precision
    return model.eval()


def _check_fit(path: Path, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise unless the file has a tensor of the right shape for each of the model's."""
    there = {name: tuple(tensor.shape) for name, tensor in state.items()}
    here = {name: tuple(tensor.shape) for name, tensor in own.items()}
    for name in here | there:
        if here.get(name) != there.get(name):
            raise WeightsError(
                f"{path} does not fit the model: {name} has shape"
                f" {there.get(name, 'none')} in the file and {here.get(name, 'none')}"
                " in the model; expected the arguments that the model was saved with"
            )
