"""The command line: ``python -m aevb train | evaluate | sample``.

The parser is made of plain Python: torch is imported when there is something to do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aevb.recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from aevb.training import History

PROGRAM = "python -m aevb"
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130  # exit statuses

# --- values -------------------------------------------------------------------------


def number(
    kind: type, expected: str, good: Callable[[Any], bool]
) -> Callable[[str], Any]:
    """What reads a number and says, if it is none or not ``good``, what is expected."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not math.isfinite(value) or not good(value):
            raise argparse.ArgumentTypeError(f"is {text!r}; expected {expected}")
        return value

    return read


def whole(least: int) -> Callable[[str], int]:
    return number(int, f"a whole number, at least {least}", lambda v: v >= least)


POSITIVE = number(float, "a positive number", lambda v: v > 0)
SHARE = number(float, "a share from 0 to 1", lambda v: 0 <= v <= 1)
DROPOUT = number(float, "at least 0 and less than 1", lambda v: 0 <= v < 1)


def one_of(*names: str) -> dict[str, Any]:
    """Arguments of ``add_argument`` for a choice."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"is {text!r}; expected one of {', '.join(names)}"
            )
        return text

    return {"type": read, "metavar": "{" + ",".join(names) + "}"}


# --- what there is to choose --------------------------------------------------------

BINARY = ("binary", "stochastic", "rows")  # kinds of images whose pixels are 0 or 1
KINDS = ("continuous", "binary", "stochastic", "grey")


@dataclass(frozen=True)
class Model:
    """What the command line has to know of a model.

    Attributes:
        title: one line for the help.
        arguments: of its class, those that can be chosen, with their defaults. A
            likelihood of None is the one that suits the images.
        kinds: of images that it can be trained on.
        weighted: whether the importance-weighted bound can train it.
        data: where its data can come from; the first one is the default.
        choices: of arguments that mean something else for another model.
    """

    title: str
    arguments: dict[str, Any]
    kinds: tuple[str, ...] = KINDS
    weighted: bool = False
    data: tuple[str, ...] = ("mnist", "digits")
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)


def _layers(latent_dim: int, width: int) -> dict[str, Any]:
    return {
        "latent_dim": latent_dim,
        "hidden": [width, width],
        "likelihood": None,
        "dropout": 0.0,
    }


MODELS = {
    "factor-analysis": Model(
        title="factor analysis (chapter 6)",
        arguments={"latent_dim": 2, "posterior": "full"},
        weighted=True,
        data=("synthetic", "mnist", "digits"),
        choices={"posterior": one_of("full", "diagonal", "fixed")},
    ),
    "vae": Model(
        title="variational auto-encoder (chapter 7)",
        arguments=_layers(20, 500) | {"encoders": 1, "activation": "relu"},
        weighted=True,
    ),
    "conditional-vae": Model(
        title="conditional VAE, which is told the label (chapter 8)",
        arguments=_layers(20, 500) | {"condition": "both"},
        weighted=True,
        choices={"condition": one_of("both", "prior", "likelihood")},
    ),
    "gaussian-mixture-vae": Model(
        title="Gaussian-mixture VAE, which finds clusters (chapter 9)",
        arguments=_layers(64, 512) | {"num_classes": 10, "condition": "prior"},
        choices={"condition": one_of("prior", "likelihood", "both")},
    ),
    "variational-rnn": Model(
        title="variational RNN, an image row by row (chapter 10)",
        arguments={
            "latent_dim": 2,
            "recurrent": [128],
            "hidden": [200, 200],
            "likelihood": None,
            "posterior": "filtering",
        },
        kinds=("rows", "continuous", "stochastic", "grey"),
        choices={"posterior": one_of("filtering", "smoothing")},
    ),
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "latent_dim": {
        "type": whole(1),
        "metavar": "L",
        "help": "latent coordinates (default: %(default)s)",
    },
    "hidden": {
        "type": whole(1),
        "nargs": "+",
        "metavar": "WIDTH",
        "help": "widths of the encoder's hidden layers; the decoder has them in"
        " reverse (default: %(default)s)",
    },
    "recurrent": {
        "type": whole(1),
        "nargs": "+",
        "metavar": "WIDTH",
        "help": "widths of the LSTM layers (default: %(default)s)",
    },
    "likelihood": one_of("continuous_bernoulli", "bernoulli", "gaussian")
    | {
        "help": "of a pixel (default: the Bernoulli for pixels of 0 and 1, the"
        " continuous Bernoulli for those between)"
    },
    "dropout": {
        "type": DROPOUT,
        "metavar": "P",
        "help": "probability that a hidden unit is left out in training"
        " (default: %(default)s)",
    },
    "encoders": {
        "type": number(int, "1 or 2", lambda v: v in (1, 2)),
        "metavar": "{1,2}",
        "help": "one network with two heads, or one each for mean and standard"
        " deviation (default: %(default)s)",
    },
    "activation": one_of("relu", "tanh")
    | {"help": "of the hidden units (default: %(default)s)"},
    "num_classes": {
        "type": whole(1),
        "metavar": "C",
        "help": "clusters (default: %(default)s)",
    },
    "condition": {
        "help": "where the generative model looks at the class: in the prior of z, in"
        " the likelihood of x, or in both (default: %(default)s)"
    },
    "posterior": {"help": "family of q(z | x) (default: %(default)s)"},
}


# --- the parser ---------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Complains in one line: the argument, what it was, what is expected."""

    def __init__(self, **options: Any):
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> None:
        message = message.removeprefix("argument ").replace(": is ", " is ", 1)
        self.exit(WRONG, f"{self.prog}: {message} (--help lists the arguments)\n")


def build_parser() -> Parser:
    """The parser of all three commands; its defaults are those of the recipes."""
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_train(commands)
    add_evaluate(commands)
    add_sample(commands)
    return parser


DESCRIPTION = """\
Train, evaluate and sample the models of the book on auto-encoding variational Bayes.
Everything is measured in nats per example, summed over pixels."""

EPILOG = """\
example:
  python -m aevb train vae --epochs 5 --out runs/vae
  python -m aevb evaluate runs/vae
  python -m aevb sample runs/vae --mean --out digits.png

Each command has a --help of its own, and so has each model:
python -m aevb train vae --help."""


def add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model and keep it in a folder",
        description=TRAIN,
        epilog=_examples("train vae --data digits --epochs 2 --out runs/digits"),
    )
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, model in MODELS.items():
        one = models.add_parser(
            name,
            usage=f"{PROGRAM} train {name} [options]",
            help=model.title,
            description=f"Train a model: {model.title}.\n\n{LEAVES}",
            epilog=_examples(*EXAMPLES[name]),
        )
        add_data_options(one, name, model)
        add_model_options(one, model)
        add_training_options(one, name, model)
        add_place_options(one, name)


TRAIN = """\
Train a model of the book by maximising the evidence lower bound (ELBO), in nats per
example, and keep it in a folder. The defaults are those of the model's chapter."""

LEAVES = """\
The folder receives history.jsonl (a line of JSON for each evaluation: ELBO and its two
terms, nats per example), checkpoint.pt (from which --resume goes on), and at the end
weights.safetensors and model.json (how the model was made)."""

EXAMPLES = {
    "factor-analysis": [
        "train factor-analysis --latent-dim 1 --out runs/line",
        "train factor-analysis --data digits --latent-dim 10 --epochs 3 --lr 0.003",
    ],
    "vae": [
        "train vae --epochs 5 --out runs/vae",
        "train vae --data digits --kind binary --latent-dim 2 --hidden 64 --epochs 3",
        "train vae --kind stochastic --bound importance-weighted --samples 5",
    ],
    "conditional-vae": [
        "train conditional-vae --epochs 5 --out runs/told",
        "train conditional-vae --data digits --condition likelihood --epochs 2",
    ],
    "gaussian-mixture-vae": [
        "train gaussian-mixture-vae --epochs 10 --out runs/clusters",
        "train gaussian-mixture-vae --data digits --hidden 64 --epochs 2",
    ],
    "variational-rnn": [
        "train variational-rnn --epochs 2 --out runs/rows",
        "train variational-rnn --data digits --recurrent 16 --hidden 16 --epochs 1",
    ],
}


def _examples(*commands: str) -> str:
    lines = [f"  {PROGRAM} {command}" for command in commands]
    return "\n".join(["examples:" if len(lines) > 1 else "example:", *lines])


def add_data_options(parser: Parser, name: str, model: Model) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        default=model.data[0],
        **one_of(*model.data),
        help="mnist is downloaded if it is missing; digits, scikit-learn's, are"
        " installed with it"
        + ("; synthetic, the tutorial paper's" if "synthetic" in model.data else "")
        + " (default: %(default)s)",
    )
    recipe = RECIPES[name]["data"]
    group.add_argument(
        "--kind",
        default=recipe.get("kind", "continuous"),
        **one_of(*model.kinds),
        help="of images: how pixels are made of bytes: dequantised, thresholded, 1"
        " with the grey value as probability, or grey"
        + (", all row by row" if "rows" in model.kinds else "")
        + " (default: %(default)s)",
    )
    group.add_argument(
        "--train-examples",
        type=whole(1),
        metavar="N",
        default=recipe.get("examples", 50000),
        help="train on the first N training images (default: %(default)s)",
    )
    add_root(group)


def add_root(group: Any) -> None:
    group.add_argument(
        "--root",
        metavar="FOLDER",
        help="that holds MNIST/raw (default: $AEVB_DATA, or the user's cache)",
    )


def add_model_options(parser: Parser, model: Model) -> None:
    group = parser.add_argument_group("model")
    for name, default in model.arguments.items():
        options = ARGUMENTS[name] | model.choices.get(name, {})
        if isinstance(default, list):
            widths = " ".join(map(str, default))
            options["help"] = options["help"].replace("%(default)s", widths)
        group.add_argument(f"--{name.replace('_', '-')}", default=default, **options)


def add_training_options(parser: Parser, name: str, model: Model) -> None:
    stage = RECIPES[name]["stages"][0]
    unit = "epochs" if "epochs" in stage else "steps"
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    for word, what in (("epochs", "passes over the data"), ("steps", "gradient steps")):
        default = f" (default: {stage[word]})" if word == unit else ""
        length.add_argument(
            f"--{word}", type=whole(1), metavar="N", help=what + default
        )
    group.add_argument(
        "--every",
        type=whole(1),
        metavar="N",
        help="epochs, or steps, from one evaluation to the next (default: 1 epoch, or a"
        " tenth of the steps)",
    )
    add = group.add_argument
    add(
        "--batch-size",
        type=whole(1),
        metavar="B",
        default=stage["batch_size"],
        help="examples a gradient step (default: %(default)s)",
    )
    add(
        "--lr",
        type=POSITIVE,
        default=stage["lr"],
        help="learning rate of Adam (default: %(default)s)",
    )
    add(
        "--schedule",
        default=stage["schedule"],
        **one_of("constant", "cosine"),
        help="of the learning rate; cosine falls to zero in the second half"
        " (default: %(default)s)",
    )
    add(
        "--kl-warmup",
        type=SHARE,
        metavar="SHARE",
        default=0.0,
        help="share of the training in which the KL term's weight rises from 0 to 1"
        " (default: %(default)s)",
    )
    add_bound_options(group, model)
    add(
        "--precision",
        default="float32",
        **one_of("float32", "bfloat16"),
        help="of the matrix products; bfloat16 is faster where the hardware has it"
        " (default: %(default)s)",
    )
    add_seed(group, "of the first weights, the order, the noise")


def add_bound_options(group: Any, model: Model) -> None:
    if model.weighted:
        group.add_argument(
            "--bound",
            default="elbo",
            **one_of("elbo", "importance-weighted"),
            help="what is maximised; the importance-weighted bound of K samples is the"
            " tighter one (default: %(default)s)",
        )
    group.add_argument(
        "--samples",
        type=whole(1),
        metavar="K",
        default=1,
        help="draws of z for each example and step (default: %(default)s)",
    )


def add_seed(group: Any, what: str) -> None:
    group.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="S",
        help=f"{what} (default: %(default)s)",
    )


def add_device(group: Any) -> None:
    group.add_argument(
        "--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)"
    )


def add_place_options(parser: Parser, name: str) -> None:
    group = parser.add_argument_group("where")
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("runs", name),
        help="that receives the training (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the training in the folder; give the same arguments",
    )
    group.add_argument(
        "--quiet", action="store_true", help="print nothing but complaints"
    )
    add_device(group)


def add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        usage=f"{PROGRAM} evaluate MODEL [options]",
        help="score a trained model on the test set",
        description=EVALUATE,
        epilog=_examples(
            "evaluate runs/vae",
            "evaluate factor-analysis --samples 100 --json",
            "evaluate vae-binarised --data digits --samples 10 --examples 50",
        ),
    )
    add_target(parser)
    add = parser.add_argument
    add(
        "--data",
        **one_of("mnist", "digits"),
        help="images to score on (default: those of the model's training)",
    )
    add_root(parser)
    add(
        "--samples",
        type=whole(1),
        default=1000,
        metavar="K",
        help="draws of z for each estimate of log p(x) (default: %(default)s)",
    )
    add(
        "--examples",
        type=whole(2),
        default=1000,
        metavar="N",
        help="test examples that log p(x) is estimated on (default: %(default)s)",
    )
    add(
        "--elbo-samples",
        type=whole(1),
        default=10,
        metavar="S",
        help="draws of z for the ELBO of each test example (default: %(default)s)",
    )
    add_seed(parser, "of the draws")
    add_device(parser)
    add("--json", action="store_true", help="print one JSON object")


EVALUATE = """\
Score a trained model on the test set, in nats per example, each number with its
standard error over the examples:

  ELBO      the evidence lower bound, on all test examples
  log p(x)  the importance-weighted estimate from K draws, on N of them; a lower bound
            too, and a tighter one
  gap       how far log p(x) lies above the ELBO of the same examples
  evidence  log p(x) itself, where it has a closed form (factor analysis)
  accuracy  the share of digits that are told right, by a model that has classes"""


def add_sample(commands: Any) -> None:
    parser = commands.add_parser(
        "sample",
        usage=f"{PROGRAM} sample MODEL [options]",
        help="draw from a trained model",
        description=SAMPLE,
        epilog=_examples(
            "sample runs/vae --mean --out digits.png",
            "sample conditional-vae --label 3 --count 20 --out threes.png",
            "sample factor-analysis --count 1000 --out x.npy",
        ),
    )
    add_target(parser)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("samples.png"),
        help="a picture (.png), or the numbers (.npy, .safetensors)"
        " (default: %(default)s)",
    )
    add(
        "--count",
        type=whole(1),
        default=100,
        metavar="N",
        help="how many (default: %(default)s)",
    )
    add(
        "--label",
        type=whole(0),
        metavar="Y",
        help="class to draw from, for a model that has classes (default: of a"
        " conditional model all in turn, of a mixture as they come)",
    )
    add(
        "--mean",
        action="store_true",
        help="the mean of p(x | z) in place of a draw from it: smooth images",
    )
    add(
        "--columns",
        type=whole(1),
        default=10,
        metavar="N",
        help="images in a row of the picture (default: %(default)s)",
    )
    add_seed(parser, "of the draws")
    add_device(parser)


SAMPLE = """\
Draw from a trained model, z from the prior and x from the likelihood, and write a
picture of the images or a file of the numbers."""


def add_target(parser: Parser) -> None:
    parser.add_argument(
        "target",
        metavar="MODEL",
        help="a folder that 'train' wrote, or installed weights: " + ", ".join(RECIPES),
    )


# --- train --------------------------------------------------------------------------


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the arguments of ``train`` describe."""
    model, images = MODELS[options.model], options.data != "synthetic"
    arguments = {name: getattr(options, name) for name in model.arguments}
    if images and options.model == "factor-analysis":
        arguments["data_dim"] = 784
    if "likelihood" in arguments:
        arguments["likelihood"] = likelihood_of(options)
    return {
        "model": {
            "class": RECIPES[options.model]["model"]["class"],
            "arguments": arguments,
        },
        "data": {
            "source": options.data,
            "kind": options.kind,
            "examples": options.train_examples,
        }
        if images
        else {"source": "factor_analysis"},
        "seed": options.seed,
        "stages": [stage_of(options)],
    }


def likelihood_of(options: argparse.Namespace) -> str:
    """The likelihood that was asked for, or the one that suits the kind of images.

    Raises:
        ValueError: the one that was asked for is no density of such pixels.
    """
    zeros_and_ones = options.kind in BINARY
    suits = "bernoulli" if zeros_and_ones else "continuous_bernoulli"
    if options.likelihood in (None, suits, "gaussian"):
        return options.likelihood or suits
    raise ValueError(
        f"--likelihood is {options.likelihood!r}, and the pixels of --kind"
        f" {options.kind} are {'0 or 1' if zeros_and_ones else 'between 0 and 1'};"
        f" expected {suits} or gaussian"
    )


def stage_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``fit``, and which bound it maximises."""
    default = RECIPES[options.model]["stages"][0]
    unit = "steps" if options.steps or "epochs" not in default else "epochs"
    unit = "epochs" if options.epochs else unit
    length = getattr(options, unit) or default[unit]
    stage = {
        unit: length,
        "every": options.every or (1 if unit == "epochs" else max(1, length // 10)),
        "batch_size": options.batch_size,
        "lr": options.lr,
        "schedule": options.schedule,
        "kl_warmup": options.kl_warmup,
        "precision": None if options.precision == "float32" else options.precision,
    }
    if getattr(options, "bound", "elbo") == "importance-weighted":
        stage["estimator"] = {
            "name": "importance_weighted",
            "num_samples": options.samples,
            "gradient": "doubly-reparameterised",
        }
    elif options.samples > 1:
        stage["estimator"] = {"name": "elbo", "num_samples": options.samples}
    return stage


def train(options: argparse.Namespace) -> int:
    """Train a model and say how it goes."""
    recipe = recipe_of(options)
    check_folder(options)
    device = device_of(options)
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


def device_of(options: argparse.Namespace):
    """The device that was asked for, or None.

    Raises:
        ValueError: there is no such device.
    """
    if options.device is None:
        return None
    import torch

    try:
        device = torch.device(options.device)
    except RuntimeError:
        device = None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = (
        device is not None and device.type == "cuda" and (device.index or 0) >= gpus
    )
    if device is None or missing:
        here = f"; expected cpu, or one of the {gpus} GPUs of this machine (cuda:0, …)"
        none = "; expected cpu, since torch finds no GPU on this machine"
        raise ValueError(f"--device is {options.device!r}{here if gpus else none}")
    return device


# --- evaluate -----------------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> int:
    """Score a model and print the scores."""
    device = device_of(options)
    from aevb import runs
    from aevb.training import choose_device

    model, entry = runs.find(options.target)
    recipe = scored_on(entry["recipe"], options)
    _, test = runs.examples(recipe, options.root)
    scores = runs.score(
        model.to(choose_device(device)),
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
    device = device_of(options)
    from aevb import runs
    from aevb.training import choose_device

    model, _ = runs.find(options.target)
    model = model.to(choose_device(device))
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


def draw(model: Any, options: argparse.Namespace) -> Tensor:
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


def write_picture(x: Tensor, options: argparse.Namespace) -> None:
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


def write_array(x: Tensor, options: argparse.Namespace) -> None:
    import numpy as np

    np.save(options.out, x.numpy())


def write_tensor(x: Tensor, options: argparse.Namespace) -> None:
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
    except (RuntimeError, OSError, FloatingPointError) as error:
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

    return isinstance(error, DataError | Diverged | WeightsError | OSError)


if __name__ == "__main__":
    raise SystemExit(main())
