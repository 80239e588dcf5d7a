"""How the cost of ``aevb.fit`` grows: with sizes, and with the epochs.

    make benchmark                                   # or: python benchmarks/scaling.py
    python benchmarks/scaling.py --help

Examples a second against the batch size, the number of latent coordinates and the size
of the data set (a VAE, 784-500-500-20 but for what varies, Bernoulli pixels), and
against the length of the sequences (a VRNN of 128 units in each layer, sequences of
random bits). The points of all curves take turns. Then a long training on little data:
the seconds that each epoch takes, and the memory of the process after it. Single
precision, batches of 100 but where they vary. The result goes to
``benchmarks/scaling_latest.json``, its figure to ``book/results/scaling.svg``.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from training_speed import STATUS, begin, command_line, summary, write  # noqa: E402

SWEEPS = {
    "batch_size": [10, 40, 150, 600, 3000],
    "latent_dim": [2, 5, 20, 50, 200],
    "examples": [1000, 4000, 15000, 60000],
    "length": [7, 14, 28, 56],
}
FAST = {"batch_size": [10, 20], "latent_dim": [2], "examples": [100], "length": [2, 4]}
TITLES = {
    "batch_size": "examples in a batch",
    "latent_dim": "latent coordinates",
    "examples": "examples in the data set",
    "length": "steps of a sequence (VRNN)",
}


def bits(*shape: int):
    import torch

    g = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=g) < 0.13).float()


def bytes_(count: int):
    """Random images as bytes, binarised afresh in each batch as MNIST is."""
    import torch

    from aevb import data

    g = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (count, 784), dtype=torch.uint8, generator=g)
    redraw = data.binarise_stochastically
    return data.Examples(redraw(raw, g), None, raw, redraw)


def vae(latent_dim: int = 20, width: int = 500):
    from aevb import models

    sizes = {"latent_dim": latent_dim, "hidden": (width, width)}
    return models.VAE(**sizes, likelihood="bernoulli", dropout=0.0)


def point(sweep: str, value: int, work: int, width: int):
    """Model, data and batch size of one point of a curve, and the steps of a turn."""
    from aevb import models

    batch, model = 100, None
    if sweep == "batch_size":
        batch, train = value, bytes_(3000)
    elif sweep == "latent_dim":
        model, train = vae(value, width), bytes_(3000)
    elif sweep == "examples":
        batch, train = min(batch, value), bytes_(value)
    else:
        train = bits(batch, value, 28)
        sizes = {"recurrent": (128,), "hidden": (128,)}
        model, work = models.VariationalRNN(**sizes), work / value
    return model or vae(width=width), train, batch, max(2, round(work / batch))


def rate(model, train, batch: int, steps: int) -> float:
    """Examples a second, the first steps of ``fit`` left out."""
    from aevb import fit

    stamps = []
    fit(
        model,
        train,
        steps=2 * steps,
        every=steps,
        batch_size=batch,
        lr=1e-4,
        record=lambda model: stamps.append(time.perf_counter()) or {},
        device="cpu",
        progress=False,
    )
    return batch * steps / (stamps[1] - stamps[0])


def sweep(turns: int, work: int, values: dict[str, list[int]], width: int) -> dict:
    points = [(name, value) for name in values for value in values[name]]
    rates = {p: [] for p in points}
    for turn in range(turns):
        for p in points if turn % 2 else reversed(points):
            rates[p].append(rate(*point(*p, work, width)))
    return {
        name: [{"value": v, "rate": summary(rates[name, v])} for v in values[name]]
        for name in values
    }


def memory() -> float | None:
    """MiB that the process holds now."""
    if not STATUS.exists():
        return None
    return int(re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())[1]) / 2**10


def epochs(count: int, turns: int, examples: int, width: int) -> dict:
    """Seconds of each epoch, medians over trainings, and the memory after it."""
    from aevb import fit

    walls, processors, held = [], [], []
    for _ in range(turns):
        stamps = []

        def record(model, stamps=stamps) -> dict:
            stamps.append((time.perf_counter(), time.process_time(), memory()))
            return {}

        train = bytes_(examples)
        fit(
            *(vae(width=width), train),
            epochs=count,
            lr=1e-4,
            record=record,
            device="cpu",
            progress=False,
        )
        wall, processor, mib = zip(*stamps, strict=True)
        walls.append([b - a for a, b in pairwise(wall)])
        processors.append([b - a for a, b in pairwise(processor)])
        held.append(mib)

    def middle(rows) -> list[float]:
        return [round(statistics.median(r), 5) for r in zip(*rows, strict=True)]

    return {
        "examples": examples,
        "turns": turns,
        "epoch": list(range(2, count + 1)),  # the first one warms up
        "seconds": middle(walls),
        "processor_seconds": middle(processors),
        "memory": [mib and round(mib, 1) for mib in held[-1][1:]],
    }


def draw(report: dict, path: Path) -> None:
    """The figure of the report; it carries the report's checksum."""
    import matplotlib.pyplot as plt

    from aevb.plotting import COLORS, book_style
    from tools import speed

    book_style()
    plt.rcParams |= {"svg.hashsalt": "scaling", "svg.fonttype": "path"}
    figure, axes = plt.subplots(2, 3, figsize=(7, 4.4), layout="constrained")
    style = {"marker": "o", "markersize": 3.5, "color": COLORS["blue"]}
    for ax, (name, points) in zip(axes.flat, report["sweeps"].items(), strict=False):
        x = [p["value"] for p in points]
        low, y, high = (
            [p["rate"][k] * (p["value"] if name == "length" else 1) for p in points]
            for k in ("low", "median", "high")
        )
        ax.plot(x, y, **style)
        ax.fill_between(x, low, high, color=COLORS["blue"], alpha=0.2, linewidth=0)
        ax.set(xscale="log", xlabel=TITLES[name], ylim=(0, 1.15 * max(high)))
        ax.set_xticks(x, [f"{v // 1000}k" if v >= 1000 else f"{v}" for v in x])
        ax.minorticks_off()
    found = report["epochs"]
    for ax, key, word, colour in zip(
        axes.flat[4:],
        ("seconds", "memory"),
        ("seconds an epoch", "MiB held"),
        ("orange", "green"),
        strict=True,
    ):
        if None in found[key]:
            continue
        style = {"marker": ".", "markersize": 3, "color": COLORS[colour]}
        ax.plot(found["epoch"], found[key], **style)
        ax.set(xlabel="epoch", ylabel=word, ylim=(0, 1.3 * max(found[key])))
    axes[0, 0].set_ylabel("examples a second")
    axes[1, 0].set_ylabel("steps a second")
    figure.savefig(
        path,
        facecolor="white",
        metadata={"Date": None, "Description": speed.checksum(report)},
    )
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = command_line(__doc__, 3, HERE / "scaling_latest.json")
    parser.add_argument("--work", type=int, default=2000, help="examples in a turn")
    parser.add_argument("--epochs", type=int, default=60, help="of the long training")
    parser.add_argument("--fast", action="store_true", help="tiny networks, few points")
    figure = HERE.parent / "book" / "results" / "scaling.svg"
    parser.add_argument("--figure", type=Path, default=figure)
    options = parser.parse_args(arguments)
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # as the other benchmarks have it
    }
    report = begin(options.threads)
    del report["results"]
    values, width = (FAST, 8) if options.fast else (SWEEPS, 500)
    work, examples = (200, 200) if options.fast else (options.work, 1000)
    report["sweeps"] = sweep(options.turns, work, values, width)
    for name, points in report["sweeps"].items():
        for p in points:
            r = p["rate"]
            spread = f"{r['low']:,.0f} to {r['high']:,.0f}"
            print(
                f"{TITLES[name]:28}{p['value']:>8,}{r['median']:>10,.0f} a second,"
                f" {spread}"
            )
    report["epochs"] = found = epochs(options.epochs, options.turns, examples, width)
    for k in (0, -1):
        mib = "" if found["memory"][k] is None else f", {found['memory'][k]:,.0f} MiB"
        print(f"epoch {found['epoch'][k]}: {found['seconds'][k]:.4f} seconds{mib}")
    write(report, options.output)
    draw(report, options.figure)


if __name__ == "__main__":
    main()
