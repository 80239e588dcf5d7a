"""The arguments of the command line, and the recipe that those of ``train`` describe.

Plain Python: no torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aevb.recipes import RECIPES, Recipe

PROGRAM = "python -m aevb"
WRONG = 2  # exit status: an argument is not what is expected

# --- values -------------------------------------------------------------------------


class Value(NamedTuple):
    """What an argument may be: how it is read, and what the help calls it."""

    read: Callable[[str], Any]
    name: str
    many: bool = False


def number(
    kind: type,
    name: str,
    expected: str,
    good: Callable[[Any], bool],
    many: bool = False,
) -> Value:
    """A number; what is none, or is not ``good``, is refused in words."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not good(value):
            raise argparse.ArgumentTypeError(f"is {text!r}; expected {expected}")
        return value

    return Value(read, name, many)


def whole(least: int, name: str = "N", many: bool = False) -> Value:
    return number(
        int, name, f"a whole number, at least {least}", lambda v: v >= least, many
    )


def one_of(*names: str) -> Value:
    """One of some names."""

    def read(text: str) -> str:
        if text not in names:
            listed = ", ".join(names)
            raise argparse.ArgumentTypeError(f"is {text!r}; expected one of {listed}")
        return text

    return Value(read, "{" + ",".join(names) + "}")


POSITIVE = number(float, "RATE", "a positive number", lambda v: v > 0)
SHARE = number(float, "SHARE", "a share from 0 to 1", lambda v: 0 <= v <= 1)
DROPOUT = number(float, "P", "at least 0 and less than 1", lambda v: 0 <= v < 1)
WIDTHS = whole(1, "WIDTH", many=True)
SEED = whole(0, "S")
TEXT = Value(str, "NAME")
FOLDER, FILE = Value(Path, "FOLDER"), Value(Path, "FILE")


# --- the models ---------------------------------------------------------------------

BINARY = ("binary", "stochastic", "rows")  # kinds of images whose pixels are 0 or 1
KINDS = ("continuous", "binary", "stochastic", "grey")
CONDITIONS = ("both", "prior", "likelihood")


@dataclass(frozen=True)
class Model:
    """What the command line has to know of a model.

    Attributes:
        title: one line for the help.
        arguments: those of its class that can be chosen, with their defaults. A
            likelihood of None is the one that suits the images.
        examples: commands that its help shows.
        kinds: of images that it can be trained on.
        weighted: whether the importance-weighted bound can train it.
        starts: whether it can start at the mean of the data.
        data: where its data can come from; the first one is the default.
        choices: values of arguments that mean something else for another model.
    """

    title: str
    arguments: dict[str, Any]
    examples: tuple[str, ...]
    kinds: tuple[str, ...] = KINDS
    weighted: bool = False
    starts: bool = False
    data: tuple[str, ...] = ("mnist", "digits")
    choices: dict[str, Value] = field(default_factory=dict)


def _layers(latent_dim: int, width: int) -> dict[str, Any]:
    layers = {"latent_dim": latent_dim, "hidden": [width, width]}
    return layers | {"likelihood": None, "dropout": 0.0}


MODELS = {
    "factor-analysis": Model(
        title="factor analysis (chapter 6)",
        arguments={"latent_dim": 2, "posterior": "full"},
        examples=(
            "--latent-dim 1 --out runs/line",
            "--data digits --latent-dim 10 --epochs 3 --lr 0.003",
        ),
        weighted=True,
        data=("synthetic", "mnist", "digits"),
        choices={"posterior": one_of("full", "diagonal", "fixed")},
    ),
    "vae": Model(
        title="variational auto-encoder (chapter 7)",
        arguments=_layers(20, 500) | {"encoders": 1, "activation": "relu"},
        examples=(
            "--epochs 5 --out runs/vae",
            "--data digits --kind binary --latent-dim 2 --hidden 64 --epochs 3",
            "--kind stochastic --bound importance-weighted --samples 5",
        ),
        weighted=True,
        starts=True,
    ),
    "conditional-vae": Model(
        title="conditional VAE, which is told the label (chapter 8)",
        arguments=_layers(20, 500) | {"condition": "both"},
        examples=(
            "--epochs 5 --out runs/told",
            "--data digits --condition likelihood --epochs 2",
        ),
        weighted=True,
    ),
    "gaussian-mixture-vae": Model(
        title="Gaussian-mixture VAE, which finds clusters (chapter 9)",
        arguments=_layers(64, 512) | {"num_classes": 10, "condition": "prior"},
        examples=(
            "--epochs 10 --out runs/clusters",
            "--data digits --hidden 64 --epochs 2",
        ),
    ),
    "variational-rnn": Model(
        title="variational RNN, an image row by row (chapter 10)",
        arguments={"latent_dim": 2, "recurrent": [128], "hidden": [200, 200]}
        | {"likelihood": None, "posterior": "filtering"},
        examples=(
            "--epochs 2 --out runs/rows",
            "--data digits --recurrent 16 --hidden 16 --epochs 1",
        ),
        kinds=("rows", "continuous", "stochastic", "grey"),
        choices={"posterior": one_of("filtering", "smoothing")},
    ),
}

# Arguments of the models' classes: what they may be, and what the help says.
ARGUMENTS: dict[str, tuple[Value, str]] = {
    "latent_dim": (whole(1, "L"), "latent coordinates"),
    "hidden": (WIDTHS, "widths of the hidden layers, from x to z"),
    "recurrent": (WIDTHS, "widths of the LSTM layers"),
    "likelihood": (
        one_of("continuous_bernoulli", "bernoulli", "gaussian"),
        "of a pixel (default: the Bernoulli for pixels of 0 and 1, the continuous"
        " Bernoulli for those between)",
    ),
    "dropout": (DROPOUT, "probability that a hidden unit is left out in training"),
    "encoders": (
        number(int, "{1,2}", "1 or 2", lambda v: v in (1, 2)),
        "one network with two heads, or one each for mean and standard deviation",
    ),
    "activation": (one_of("relu", "tanh"), "of the hidden units"),
    "num_classes": (whole(1, "C"), "clusters"),
    "condition": (
        one_of(*CONDITIONS),
        "where the generative model looks at the class: in the prior of z, in the"
        " likelihood of x, or in both",
    ),
    "posterior": (TEXT, "family of q(z | x)"),
}


# --- the parser ---------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Complains in one line: the argument, what it was, what is expected."""

    def __init__(self, **options: Any):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=layout, **options)

    def error(self, message: str) -> None:
        message = message.removeprefix("argument ").replace(": is ", " is ", 1)
        self.exit(WRONG, f"{self.prog}: {message} (--help lists the arguments)\n")


def option(group: Any, flag: str, value: Value, says: str, default: Any = None) -> None:
    """Add one argument; the help names its default."""
    if default is not None:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        says += f" (default: {shown})"
    group.add_argument(
        flag,
        type=value.read,
        metavar=value.name,
        nargs="+" if value.many else None,
        default=default,
        help=says,
    )


def switch(group: Any, flag: str, says: str) -> None:
    group.add_argument(flag, action="store_true", help=says)


def build_parser() -> Parser:
    """The parser of all three commands; its defaults are those of the recipes."""
    shown = examples(
        "train vae --epochs 5 --out runs/vae",
        "evaluate runs/vae",
        "sample runs/vae --mean --out digits.png",
    )
    epilog = f"{shown}\n\n{EPILOG}"
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=epilog)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_train(commands)
    add_evaluate(commands)
    add_sample(commands)
    return parser


def examples(*commands: str) -> str:
    lines = [f"  {PROGRAM} {command}" for command in commands]
    return "\n".join(["example:" if len(lines) == 1 else "examples:", *lines])


DESCRIPTION = """\
Train, evaluate and sample the models of the book on auto-encoding variational Bayes.
Everything is measured in nats per example, summed over pixels."""

EPILOG = f"""\
Each command has a --help of its own, and so has each model:
{PROGRAM} train vae --help."""


# --- train ---

TRAIN = """\
Train a model of the book by maximising the evidence lower bound (ELBO), in nats per
example, and keep it in a folder. The defaults are those of the model's chapter."""

LEAVES = """\
The folder receives history.jsonl (a line of JSON for each evaluation: ELBO and its two
terms, nats per example), checkpoint.pt (from which --resume goes on), and at the end
weights.safetensors and model.json (how the model was made)."""


def add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model and keep it in a folder",
        description=TRAIN,
        epilog=examples("train vae --data digits --epochs 2 --out runs/digits"),
    )
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, model in MODELS.items():
        one = models.add_parser(
            name,
            usage=f"{PROGRAM} train {name} [options]",
            help=model.title,
            description=f"Train a model: {model.title}.\n\n{LEAVES}",
            epilog=examples(*(f"train {name} {more}" for more in model.examples)),
        )
        add_data_options(one.add_argument_group("data"), name, model)
        add_model_options(one.add_argument_group("model"), model)
        add_training_options(one.add_argument_group("training"), name, model)
        add_place_options(one.add_argument_group("where"), name)


def add_data_options(group: Any, name: str, model: Model) -> None:
    says = "mnist, downloaded if it is missing; digits, those of scikit-learn"
    if "synthetic" in model.data:
        says += "; synthetic, points drawn from a factor analysis in three dimensions"
    option(group, "--data", one_of(*model.data), says, model.data[0])
    recipe = RECIPES[name]["data"]
    says = (
        "of images, how pixels are made of bytes: dequantised, thresholded, 1 with the"
        " grey value as probability, or grey"
    )
    if "rows" in model.kinds:
        says += "; rows are thresholded; row by row in any case"
    default = recipe.get("kind", model.kinds[0])
    option(group, "--kind", one_of(*model.kinds), says, default)
    says = "train on the first N training images"
    option(group, "--train-examples", whole(1), says, recipe.get("examples", 50000))
    add_root(group)


def add_model_options(group: Any, model: Model) -> None:
    for name, default in model.arguments.items():
        value, says = ARGUMENTS[name]
        flag = f"--{name.replace('_', '-')}"
        option(group, flag, model.choices.get(name, value), says, default)


def add_training_options(group: Any, name: str, model: Model) -> None:
    stage = RECIPES[name]["stages"][0]
    length = group.add_mutually_exclusive_group()
    for unit, says in (("epochs", "passes over the data"), ("steps", "gradient steps")):
        says += f" (default: {stage[unit]})" if unit in stage else ""
        option(length, f"--{unit}", whole(1), says)
    says = "epochs, or steps, between evaluations (default: 1, or a tenth of the steps)"
    option(group, "--every", whole(1), says)
    says = "examples a gradient step"
    option(group, "--batch-size", whole(1, "B"), says, stage["batch_size"])
    option(group, "--lr", POSITIVE, "learning rate of Adam", stage["lr"])
    says = "of the learning rate; cosine falls to zero in the second half"
    schedules = one_of("constant", "cosine")
    option(group, "--schedule", schedules, says, stage["schedule"])
    if model.starts:
        says = "start the decoder at the mean of the data, which saves it some epochs"
        switch(group, "--start-at-mean", says)
    says = "share of the training in which the KL term's weight rises from 0 to 1"
    option(group, "--kl-warmup", SHARE, says, 0.0)
    if model.weighted:
        says = "what is maximised; the importance-weighted bound is the tighter one"
        option(group, "--bound", one_of("elbo", "importance-weighted"), says, "elbo")
    option(group, "--samples", whole(1, "K"), "draws of z for each example", 1)
    says = "of the matrix products; bfloat16 where the hardware has it, which is faster"
    option(group, "--precision", one_of("float32", "bfloat16"), says, "float32")
    option(group, "--seed", SEED, "of the first weights, the order, the noise", 0)


def add_place_options(group: Any, name: str) -> None:
    option(group, "--out", FOLDER, "receives the training", Path("runs", name))
    says = "go on with the training in that folder; repeat its arguments"
    switch(group, "--resume", says)
    switch(group, "--quiet", "print nothing but complaints")
    add_device(group)


def add_root(group: Any) -> None:
    says = "holds MNIST/raw (default: $AEVB_DATA, or the user's cache)"
    option(group, "--root", FOLDER, says)


def add_device(group: Any) -> None:
    says = "cpu, cuda, cuda:1, … (default: a GPU if there is one)"
    option(group, "--device", TEXT, says)


# --- evaluate and sample ---

EVALUATE = """\
Score a trained model on the test set, in nats per example, each number with its
standard error over the examples:

  ELBO      the evidence lower bound, on all test examples
  log p(x)  the importance-weighted estimate from K draws, on N of them; a lower bound
            too, and a tighter one
  gap       how far log p(x) lies above the ELBO of the same N examples
  evidence  log p(x) itself, where it has a closed form (factor analysis)
  accuracy  the share of digits that are told right, by a model that has classes"""

SAMPLE = """\
Draw from a trained model, z from the prior and x from the likelihood, and write a
picture of the images or a file of the numbers."""


def add_target(commands: Any, name: str, **options: Any) -> Parser:
    usage = f"{PROGRAM} {name} MODEL [options]"
    parser = commands.add_parser(name, usage=usage, **options)
    says = "a folder that 'train' wrote, or the name of weights that are installed: "
    parser.add_argument("target", metavar="MODEL", help=says + ", ".join(RECIPES))
    return parser


def add_evaluate(commands: Any) -> None:
    parser = add_target(
        commands,
        "evaluate",
        help="score a trained model on the test set",
        description=EVALUATE,
        epilog=examples(
            "evaluate runs/vae",
            "evaluate factor-analysis --samples 100 --json",
            "evaluate vae-binarised --data digits --samples 10 --examples 50",
        ),
    )
    says = "images to score on (default: those of the model's training)"
    option(parser, "--data", one_of("mnist", "digits"), says)
    add_root(parser)
    says = "draws of z for each estimate of log p(x)"
    option(parser, "--samples", whole(1, "K"), says, 1000)
    says = "test examples that log p(x) is estimated on"
    option(parser, "--examples", whole(2), says, 1000)
    says = "draws of z for the ELBO of each test example"
    option(parser, "--elbo-samples", whole(1, "S"), says, 10)
    option(parser, "--seed", SEED, "of the draws", 0)
    add_device(parser)
    switch(parser, "--json", "print one JSON object")


def add_sample(commands: Any) -> None:
    parser = add_target(
        commands,
        "sample",
        help="draw from a trained model",
        description=SAMPLE,
        epilog=examples(
            "sample runs/vae --mean --out digits.png",
            "sample conditional-vae --label 3 --count 20 --out threes.png",
            "sample factor-analysis --count 1000 --out x.npy",
        ),
    )
    says = "a picture (.png), or the numbers (.npy, .safetensors)"
    option(parser, "--out", FILE, says, Path("samples.png"))
    option(parser, "--count", whole(1), "how many", 100)
    says = (
        "class to draw from, for a model that has classes (default: of a conditional"
        " model all in turn, of a mixture as they come)"
    )
    option(parser, "--label", whole(0, "Y"), says)
    says = "the mean of p(x | z) in place of a draw from it: smooth images"
    switch(parser, "--mean", says)
    option(parser, "--columns", whole(1), "images in a row of the picture", 10)
    option(parser, "--seed", SEED, "of the draws", 0)
    add_device(parser)


# --- from arguments to a recipe -----------------------------------------------------


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the arguments of ``train`` describe.

    Raises:
        ValueError: arguments that do not go together.
    """
    model, images = MODELS[options.model], options.data != "synthetic"
    arguments = {name: getattr(options, name) for name in model.arguments}
    if "likelihood" in arguments:
        arguments["likelihood"] = likelihood_of(options)
    elif images:
        arguments["data_dim"] = 784  # of factor analysis, which starts from 3
    kind, count = options.kind, options.train_examples
    data = {"source": options.data, "kind": kind, "examples": count}
    name = RECIPES[options.model]["model"]["class"]
    start = {"start_at": "mean"} if getattr(options, "start_at_mean", False) else {}
    return {
        "model": {"class": name, "arguments": arguments},
        "data": data if images else {"source": "factor_analysis"},
        "seed": options.seed,
        "stages": [stage_of(options)],
    } | start


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
    """The arguments of :func:`aevb.fit`, and which bound it maximises."""
    default = RECIPES[options.model]["stages"][0]
    unit = next((u for u in ("epochs", "steps") if getattr(options, u)), None)
    unit = unit or ("epochs" if "epochs" in default else "steps")
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
        how = {"name": "importance_weighted", "num_samples": options.samples}
        stage["estimator"] = how | {"gradient": "doubly-reparameterised"}
    elif options.samples > 1:
        stage["estimator"] = {"name": "elbo", "num_samples": options.samples}
    return stage
