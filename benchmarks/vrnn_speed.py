"""How fast ``models.VariationalRNN`` trains, beside the loop that one writes down.

    python benchmarks/vrnn_speed.py           # also part of: make benchmark
    python benchmarks/vrnn_speed.py --help

Both train the network of chapter 10, at the paper's sizes (two LSTM layers of 256,
three networks of 500-500 units), on binary images of 28 rows, in batches of 100, with
Adam.

* ``plain``: everything in the loop over the rows, with ``nn.LSTMCell``, ``nn.Linear``
  and ``torch.distributions``: the oracle of the tests, ``tests/plain_vrnn.py``.
* ``aevb``: ``aevb.fit`` and ``models.VariationalRNN``. Only what is recurrent runs in
  the loop, and the gradients of its weights are products over all steps.

Each in single precision and with products in ``bfloat16``, with fused Adam. They take
turns, each in a process of its own; the rates are medians over the turns, the ratios
are ``aevb``'s rate to the other one's. The result goes to
``benchmarks/vrnn_latest.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from training_speed import begin, command_line, race, stopwatch, write  # noqa: E402

PAPER = {"recurrent": [256, 256], "hidden": [500, 500]}
SMALL = {"recurrent": [16, 16], "hidden": [16, 16]}


def sequences():
    """Rows of MNIST, or as many random bits where it cannot be had."""
    import torch

    from aevb import data

    try:
        folder = data.mnist_root() / "MNIST" / "raw"
        if not all((folder / name).exists() for name in data.MNIST_MD5):
            raise data.DataError("a benchmark downloads nothing")
        return data.mnist("rows")[0].x, "MNIST"
    except data.DataError:
        g = torch.Generator().manual_seed(0)
        return (torch.rand(1000, 28, 28, generator=g) < 0.13).float(), "random bits"


def train_ours(x, task: dict, precision: str | None, count: int, lap: Callable):
    from aevb import fit, models

    fit(
        models.VariationalRNN(**task["sizes"]),
        x,
        steps=10**9,
        every=count,
        batch_size=task["unit"],
        lr=1e-4,
        precision=precision,
        record=lambda model: lap() or {},
        device="cpu",
        progress=False,
    )


def train_plainly(x, task: dict, precision: str | None, count: int, lap: Callable):
    import torch
    from plain_vrnn import PlainVRNN

    model = PlainVRNN(**task["sizes"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    low, step = precision is not None, 0
    while True:
        for index in torch.randperm(len(x)).split(task["unit"]):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                reconstruction, kl, _ = model(x[index])
            (kl - reconstruction).mean().backward()
            optimizer.step()
            step += 1
            if step % count == 0:
                lap()


def serve(contender: str, task: dict, count: int) -> None:
    x, source = sequences()
    name, _, precision = contender.partition(" ")
    train = train_ours if name == "aevb" else train_plainly
    train(x, task, precision or None, count, stopwatch(source))


def main(arguments: list[str] | None = None) -> None:
    parser = command_line(__doc__, 5, HERE / "vrnn_latest.json")
    parser.add_argument("--steps", type=int, default=4, help="in one turn")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--small", action="store_true", help="a tiny network")
    options = parser.parse_args(arguments)
    if options.serve:
        contender, task, count = options.serve
        return serve(contender, json.loads(task), int(count))

    sizes = SMALL if options.small else PAPER
    task = {"task": "VRNN", "sizes": sizes, "unit": options.batch_size}
    report = begin(options.threads)
    for precision in ("", " bfloat16"):
        names = ["aevb" + precision, "plain", "plain bfloat16"]
        names = names if precision else names[:2]
        result = race(
            task, options.steps, options.turns, options.threads, names, __file__
        )
        report["results"].append(result)
        for name, found in result["results"].items():
            rate, ratio = found["rate"]["median"], found["ratio"]
            print(
                f"{name:16}{rate:>8,.0f} sequences a second, ratio"
                f" {ratio['median']:.2f} ({ratio['low']:.2f} … {ratio['high']:.2f}),"
                f" of processor time {found['processor_ratio']['median']:.2f}",
                flush=True,
            )
    write(report, options.output)


if __name__ == "__main__":
    main()
