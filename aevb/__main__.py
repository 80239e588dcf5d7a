"""The command line: ``python -m aevb train | evaluate | sample``.

What the arguments are stands in :mod:`aevb.arguments`, what they set going in
:mod:`aevb.runs`. torch is imported when there is something to do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from aevb.arguments import PROGRAM, WRONG, build_parser, recipe_of
from aevb.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from aevb.training import History

DONE, FAILED, INTERRUPTED = 0, 1, 130  # exit statuses, and WRONG

# --- train --------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train a model and say how it goes."""
    recipe = recipe_of(options)
    check_folder(options)
    device = device_named_by(options)
    from aevb import runs

    writes = first_process()
    talks = writes and not options.quiet
    _, history = runs.train(
        recipe,
        options.out,
        root=options.root,
        resume=options.resume,
        writes=writes,
        report=Progress() if talks else None,
        device=device,
        progress=talks and sys.stderr.isatty(),
    )
    if talks:
        print(f"done in {history.seconds[-1]:.0f} s; {PROGRAM} evaluate {options.out}")
    return DONE


def check_folder(options: argparse.Namespace) -> None:
    """Raise if the folder cannot receive this training.

    Raises:
        ValueError: it is a file, or it holds a training that is not to be resumed, or
            one that cannot be.
    """
    folder = options.out
    stopped, done = (
        (folder / name).exists() for name in ("checkpoint.pt", "weights.safetensors")
    )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out is {folder}, a file; expected a folder")
    if (stopped or done) and not options.resume:
        raise ValueError(
            f"--out is {folder}, which holds a training; expected another folder, or"
            " --resume to go on with it"
        )
    if done and not stopped:
        raise ValueError(
            f"--resume: {folder} holds weights and no checkpoint.pt to go on from;"
            " expected another folder"
        )


class Progress:
    """Says what each evaluation found, one line each."""

    def __call__(self, history: History) -> None:
        from tqdm import tqdm

        row = {name: column[-1] for name, column in history.items()}
        words = [f"epoch {row['epoch']:g}", f"step {row['step']:.0f}"]
        for part in ("train", "test"):
            words.append(f"{part} ELBO {row[f'{part}_elbo']:.2f} nats")
        words.append(f"{row['seconds']:.1f} s")
        tqdm.write(", ".join(words), file=sys.stdout)
        sys.stdout.flush()


def how_to_resume(options: argparse.Namespace, argv: list[str]) -> str:
    """What to say when a training was stopped by hand."""
    if not (options.out / "checkpoint.pt").exists():
        return "stopped before the first evaluation: there is nothing to go on from"
    again = [*argv, *(() if options.resume else ("--resume",))]
    return f"stopped; go on with: {PROGRAM} {shlex.join(again)}"


def device_named_by(options: argparse.Namespace) -> torch.device:
    """The device that was asked for, or the one there is.

    Raises:
        ValueError: there is no such device.
    """
    from aevb.training import choose_device

    try:
        return choose_device(options.device)
    except ValueError as error:
        named = "--device: " if options.device else "$AEVB_DEVICE: "
        raise ValueError(f"{named}{error}") from None


# --- evaluate -----------------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> int:
    """Score a model and print the scores."""
    device = device_named_by(options)
    from aevb import runs

    model, entry = runs.find(options.target)
    recipe = scored_on(entry["recipe"], options)
    _, test = runs.examples(recipe, options.root)
    scores = runs.score(
        model.to(device),
        test,
        elbo_samples=options.elbo_samples,
        samples=options.samples,
        examples=options.examples,
        seed=options.seed,
    )
    data = {"source": recipe["data"]["source"], "test_examples": len(test)}
    if options.json:
        print(json.dumps({"model": options.target, "data": data, "scores": scores}))
    else:
        print("\n".join(score_lines(options.target, data, scores)))
    return DONE


def scored_on(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe, with the images of ``--data`` in place of its own.

    Raises:
        ValueError: it is not made for images.
    """
    if options.data is None:
        return recipe
    if "kind" not in recipe["data"]:
        raise ValueError(
            f"--data is {options.data!r}, and {options.target} was not trained on"
            " images; expected no --data"
        )
    return recipe | {"data": recipe["data"] | {"source": options.data}}


TITLES = {
    "elbo": "ELBO",
    "log_likelihood": "log p(x)",
    "gap": "gap",
    "evidence": "evidence",
    "accuracy": "accuracy",
}


def score_lines(name: str, data: dict[str, Any], scores: dict[str, Any]) -> list[str]:
    """The scores for a reader, one line each."""
    lines = [f"{name} on {data['source']}, nats per example"]
    for key, title in TITLES.items():
        if key not in scores:
            continue
        found = scores[key]
        digits = 4 if key == "accuracy" else 2
        value, error = (found[part] for part in ("mean", "standard_error"))
        behind = f"{found['examples']} examples"
        if "samples" in found:
            behind += f", {found['samples']} draws each"
        number = f"{value:10.{digits}f} ± {error:.{digits}f}"
        lines.append(f"  {title:9}{number:22}{behind}")
    return lines


# --- sample -------------------------------------------------------------------------

ENDINGS = (".png", ".npy", ".safetensors")


def sample(options: argparse.Namespace) -> int:
    """Draw from a model and write what was drawn."""
    ending = options.out.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(
            f"--out is {options.out}; expected a file that ends in {', '.join(ENDINGS)}"
        )
    device = device_named_by(options)
    from aevb import runs

    model, _ = runs.find(options.target)
    model = model.to(device)
    classes = getattr(model, "num_classes", 0)
    if options.label is not None and options.label >= classes:
        expected = f"0 to {classes - 1}" if classes else "none, for it has no classes"
        raise ValueError(
            f"--label is {options.label}, for {options.target}; expected {expected}"
        )
    x = draw(model, options).cpu()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write = {".png": write_picture, ".npy": write_array, ".safetensors": write_tensor}
    write[ending](x, options)
    print(f"{options.out}: {len(x)} draws")
    return DONE


def draw(model: Any, options: argparse.Namespace) -> torch.Tensor:
    """The draws, (N, D) or (N, T, D)."""
    import torch

    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(options.seed)
    how = {"mean": options.mean, "generator": generator}
    if options.label is not None:
        y = torch.full((options.count,), options.label, device=device)
    elif "y" in model.inputs:
        y = torch.arange(options.count, device=device) % model.num_classes
    else:
        return model.sample(options.count, **how)
    return model.sample(1, y, **how)[0]


def write_picture(x: torch.Tensor, options: argparse.Namespace) -> None:
    """A grid of images, as torchvision makes it.

    Raises:
        ValueError: the draws are no images.
    """
    from torchvision.utils import save_image

    side = math.isqrt(x.shape[-1])
    if x.ndim == 2 and side * side != x.shape[1]:
        raise ValueError(
            f"--out is {options.out}, and draws of {x.shape[1]} numbers are no images;"
            " expected a file that ends in .npy or .safetensors"
        )
    images = x.unflatten(1, (side, side)) if x.ndim == 2 else x
    # clamped: a Gaussian likelihood has draws outside [0, 1]
    save_image(images[:, None].clamp(0, 1), options.out, nrow=options.columns)


def write_array(x: torch.Tensor, options: argparse.Namespace) -> None:
    import numpy as np

    np.save(options.out, x.numpy())


def write_tensor(x: torch.Tensor, options: argparse.Namespace) -> None:
    from safetensors.torch import save_file

    save_file({"x": x.contiguous()}, options.out)


# --- all of it ----------------------------------------------------------------------

COMMANDS = {"train": train, "evaluate": evaluate, "sample": sample}


def first_process() -> bool:
    """Whether this is the one that writes, of those that ``torchrun`` started."""
    return int(os.environ.get("RANK", 0)) == 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status.

    0: done; 1: it could not be done; 2: an argument is not what is expected; 130:
    stopped by hand.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv)
    try:
        return COMMANDS[options.command](options)
    except KeyboardInterrupt:
        message, status = "stopped", INTERRUPTED
        if options.command == "train":
            message = how_to_resume(options, argv)
    except ValueError as error:
        message, status = str(error), WRONG
    except (RuntimeError, OSError, ArithmeticError, MemoryError) as error:
        if not expected(error):
            raise
        message, status = str(error), FAILED
    if status == FAILED or first_process():
        print(f"{PROGRAM} {options.command}: {message}", file=sys.stderr)
    return status


def expected(error: Exception) -> bool:
    """Whether an error is one that the package explains by itself."""
    from aevb.data import DataError
    from aevb.training import Diverged
    from aevb.weights import WeightsError

    known = DataError | Diverged | WeightsError | OSError | MemoryError
    return isinstance(error, known)


if __name__ == "__main__":
    raise SystemExit(main())
