"""How fast ``aevb.fit`` trains on a GPU, beside the loops that people write.

    AEVB_DATA=... python benchmarks/gpu_speed.py
    python benchmarks/gpu_speed.py --help

On a GPU the time of a step of these models is that of launching it. ``aevb`` records
the step once and replays it as a whole (:mod:`aevb.capture`); ``launched`` is the same
training without that, its operations launched one by one. ``plain`` is the loop that
people write, on the same device: that of ``peers_speed.py`` for the VAE, and for the
variational RNN that of ``tests/plain_vrnn.py``, with a ``DataLoader`` and with
``loss.item()`` in every step.

Where a name says nothing else, a model is that of its chapter at full speed, with its
batches and its precision; ``steps`` are those of the chapter's training. Times are
milliseconds of wall time a step: medians over the laps of one process, the first lap
left out. In each lap ``fit`` compares the recorded step with the launched one, as it
does after every evaluation. Without a GPU nothing is measured. The result goes to
``benchmarks/gpu_latest.json``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import peers_speed  # noqa: E402
from training_speed import begin, clocks, command_line, summary, write  # noqa: E402

DEVICE = "cuda"
FIFTY = {
    "name": "importance_weighted",
    "num_samples": 50,
    "gradient": "doubly-reparameterised",
}
BERNOULLI = {"latent_dim": 20, "hidden": [500, 500], "activation": "relu"}
PAPER = {"recurrent": [256, 256], "hidden": [500, 500]}
SINGLE = {"precision": None}
# name: recipe, and what is another in its model and in its last stage
CASES = {
    "VAE": ("vae", {}, {}),
    "conditional VAE": ("conditional-vae", {}, {}),
    "Gaussian-mixture VAE": ("gaussian-mixture-vae", {}, {}),
    "VRNN": ("variational-rnn", {}, SINGLE),
    "VRNN, the paper's sizes": ("variational-rnn", PAPER, SINGLE),
    "VAE, Bernoulli": ("vae-binarised", BERNOULLI, SINGLE | {"batch_size": 100}),
    "VAE, Bernoulli, batches of 512": (
        *("vae-binarised", BERNOULLI),
        SINGLE | {"batch_size": 512},
    ),
    "IWAE, 50 draws": ("iwae", {}, SINGLE | {"estimator": FIFTY}),
}
PLAIN = ("VRNN", "VAE, Bernoulli")  # begin the names of those that have a plain loop


class Done(Exception):
    """Enough laps."""


def recipe_of(name: str) -> dict:
    """The recipe of a case, of one stage."""
    from aevb import recipes

    origin, model, stage = CASES[name]
    recipe = deepcopy(recipes.RECIPES[origin])
    recipe["model"]["arguments"] |= model
    recipe["stages"] = [recipe["stages"][-1] | stage]
    return recipe


def steps_of(name: str, count: int) -> int | None:
    """Those of the chapter's training, where the case is the chapter's."""
    from aevb import recipes

    origin, model, stage = CASES[name]
    if model or (stage and stage != SINGLE):
        return None
    stages = recipes.RECIPES[origin]["stages"]
    return sum(s["epochs"] * math.ceil(count / s["batch_size"]) for s in stages)


def ours(recipe: dict, train, steps: int, laps: int, launched: bool) -> list[float]:
    """Where in time the laps ended, in seconds."""
    from aevb import capture, runs

    stage = {k: v for k, v in recipe["stages"][0].items() if k != "epochs"}
    stage |= {"steps": steps * (laps + 1), "every": steps}
    options = {"device": DEVICE, "progress": False}
    with patch.object(capture, "WARM_UP", 10**9 if launched else capture.WARM_UP):
        history = runs.fit_stage(runs.initial(recipe), train, stage, **options)
    return history.seconds


def plain(recipe: dict, train, steps: int, laps: int) -> list[float]:
    """The same of a loop that calls ``lap`` every ``steps`` steps."""
    ends = []

    def lap(*_) -> None:
        ends.append(clocks()[0])
        if len(ends) > laps:
            raise Done

    size = recipe["stages"][0]["batch_size"]
    task = {"device": DEVICE, "lr": 1e-4, "unit": size}
    try:
        if recipe["model"]["class"] == "VAE":
            peers_speed.train_plainly(train.raw.float() / 255, task, False, steps, lap)
        else:
            train_vrnn_plainly(recipe, train.x, task, steps, lap)
    except Done:
        pass
    return ends


def train_vrnn_plainly(recipe, x, task: dict, count: int, lap: Callable) -> None:
    import torch
    from plain_vrnn import PlainVRNN

    model = PlainVRNN(**recipe["model"]["arguments"]).to(task["device"])
    optimizer = torch.optim.Adam(model.parameters(), lr=task["lr"])
    total, step = 0.0, 0
    for batch in peers_speed.endless(x, task):
        optimizer.zero_grad()
        reconstruction, kl, _ = model(batch)
        loss = (kl - reconstruction).mean()
        loss.backward()
        optimizer.step()
        total += loss.item()
        step += 1
        if step % count == 0:
            lap()


@cache
def examples(kind: str, count: int):
    from aevb import data

    return data.mnist(kind)[0][:count]


def milliseconds(ends: list[float], steps: int) -> dict[str, float]:
    """Of a step: over the laps of so many steps between these ends."""
    return summary([1000 * (end - start) / steps for start, end in pairwise(ends)])


def measure(name: str, steps: int, laps: int) -> dict:
    recipe = recipe_of(name)
    recurrent = recipe["model"]["class"] == "VariationalRNN"
    train = examples(recipe["data"]["kind"], recipe["data"]["examples"])
    count, few = (steps // 5, steps // 60) if recurrent else (steps, steps // 6)
    found = {
        "aevb": milliseconds(ours(recipe, train, count, laps, launched=False), count),
        "launched": milliseconds(ours(recipe, train, few, laps, launched=True), few),
    }
    if name.startswith(PLAIN):
        found["plain"] = milliseconds(plain(recipe, train, few, laps), few)
    stage = recipe["stages"][0]
    shown = "".join(f"{who:>10}{of['median']:9.3f}" for who, of in found.items())
    print(f"{name:32}{shown}", flush=True)
    return {
        "name": name,
        "batch_size": stage["batch_size"],
        "precision": stage.get("precision"),
        "steps": steps_of(name, len(train)),
        "milliseconds": found,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = command_line(__doc__, 3, HERE / "gpu_latest.json")
    parser.add_argument("--steps", type=int, default=600, help="in one lap")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        return print("torch finds no GPU here: nothing to measure")
    report = begin(options.threads, DEVICE)
    for name in CASES:
        report["results"].append(measure(name, options.steps, options.turns))
    write(report, options.output)


if __name__ == "__main__":
    main()
