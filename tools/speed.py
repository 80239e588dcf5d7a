"""The page "Speed", made from what the benchmarks wrote.

    python -m tools.speed          # part of make benchmark and make renumber

Every number comes from a JSON file in `benchmarks/`, which `make benchmark` writes
anew, or from the study of precision; none is typed into the page.  What has not run is
left out.  The page needs neither torch nor the package: the site's environment can make
it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from tools import conventions as c
from tools.results import markdown, unwrapped

FILES = {
    "peers": "benchmarks/peers_latest.json",
    "target": "benchmarks/target_latest.json",
    "gpu": "benchmarks/gpu_latest.json",
    "training": "benchmarks/latest.json",
    "mixture": "benchmarks/gmvae_latest.json",
    "sequences": "benchmarks/vrnn_latest.json",
    "precision": "book/results/08_precision.json",
    "scaling": "benchmarks/scaling_latest.json",
}
TASKS = {"training": "VAE", "mixture": "Gaussian-mixture VAE", "sequences": "VRNN"}
SCRIPTS = {
    "training": "training_speed.py",
    "mixture": "gmvae_speed.py",
    "sequences": "vrnn_speed.py",
}
FIGURE = "results/scaling.svg"
LOW = ", bfloat16"
HEAD = """# Speed

How fast [`aevb.fit`](api.md) trains, beside what people use instead. The page is
generated: `make benchmark` runs the scripts in `benchmarks/`, which write JSON files,
and makes this page of them. Each table names the machine that its numbers come from.

## What may be compared

**Rates of one table.** Its contenders trained the same network on the same data in
batches of the same size, on one machine within minutes. Each had a process of its own,
and they took turns, so that whatever else the machine did met all of them. A rate is
the median over the turns, with the lowest and the highest beside it.

**Ratios before rates.** A ratio compares two contenders turn by turn; it survives a
machine that is slow today. Rates of two machines, or of two dates, say nothing about
the programs.

**Not quality.** A fast step may be a bad step. What training reaches, and in what time,
is on the page [Results and costs](results.md).
"""
PEERS = """## A VAE, and other ways to train it

784-500-500-20 units, Bernoulli pixels, images binarised afresh for every batch, Adam,
no dropout: chapter 7's network. `plain` is the loop that people write: a `DataLoader`
over tensors, `torch.distributions` and Adam with their defaults, `loss.item()` in
every step. `pyro` is `SVI` with `Trace_ELBO`, `pyro, mean field` with
`TraceMeanField_ELBO`; `pythae` is its `BaseTrainer`. `products` trains nothing: it
computes the matrix products of a step, forward and backward, on buffers made before, so
its rate is what nothing on that machine can pass that computes them in the same
precision.

*Faster* is by what factor `aevb` has the higher rate at the same precision, *of the
bound* the share of the rate of `products` at that precision, and *memory* the largest
resident set of the process, with torch and the data in it.
"""
TARGET = """## Seconds to a given ELBO

`plain` trained for {epochs} epochs in batches of {batch} at a learning rate of {lr}.
The ELBO of the test images at the end is the target, {target} nats. The others trained
until the end of the epoch that reached it; seconds are those of training alone.
`aevb` could choose its own settings: a decoder that starts at the mean of the data, and
{ours_epochs} epochs in batches of {ours_batch}, the divergence weighted up during
{ours_warmup} of them, at a learning rate of {ours_lr} that falls in the second half.
The others have the settings of `plain`. So a faster step is the smaller part of what
`aevb` gains here: the loop of `plain` could have these settings, too.
"""
GPU = """## On a GPU

A step of these models is a hundred or more operations of a few microseconds each, and a
GPU waits most of the time for Python to launch the next one. So `aevb` records a step
once, as a CUDA graph, and replays it as a whole, after it has compared the two: same
batch, same noise, same result ([`aevb.capture`](api.md)). What cannot be recorded is
launched as before, and the log says why.

`launched` is `aevb` with nothing recorded, `plain` the loop that people write, on the
same GPU; one after the other, in one process. The models, batches and precisions are
those of the chapters, unless the name says otherwise; the VRNN is in single precision,
as its plain loop is. Times are milliseconds a step, medians over laps, and in
parentheses how many times as long as `aevb` takes. *Training* is the time of as many
steps as the chapter's training has; for the Gaussian-mixture VAE without the EM start.
"""
MODELS = """## The other models

`plain` and `images` are loops as people write them, for the same model: for the
Gaussian-mixture VAE each image is repeated for each class, for the VRNN everything
happens within the loop over the rows, and `images` makes each image from a PIL
image, as tutorials do. What the other words mean is said in each script's
first lines.
"""
PRECISION = """## Does a product in bfloat16 change the result?

The models that the book trains with `precision="bfloat16"`, by the recipes of their
chapters, and by the same recipes in single precision. Each was trained from {seeds}
seeds; a seed gives both precisions the same first weights, the same order of the images
and the same noise, until rounding leads them apart. The ELBO is that of all test images
in nats, the mean over the seeds and, in parentheses, the lowest and the highest. The
spread is the standard deviation over the seeds in single precision; the difference is
bfloat16 less single precision, of one seed, again with its mean, lowest and highest.
"""
ROUNDED = """The processor of this study has no products in bfloat16. They were computed
as one that has them does: factors rounded to bfloat16, multiplied and summed in single
precision, and the result rounded.
"""
SCALING = """## How the cost grows

Larger batches share what a step costs however small it is, until the products are all
that counts. Latent coordinates are a small part of the network. Neither the size of
the data set nor the epoch should matter, and a sequence twice as long should take twice
the time: then the steps a second stay what they are.
"""
ALT = """Six small plots. Examples a second against batch size, rising, then levelling
off; against latent coordinates and against data set size, nearly level; steps a second
against the length of sequences; seconds of each epoch and memory held, over the epochs
of one training."""


def read(root: Path = c.ROOT) -> dict[str, dict]:
    """The reports that are there, by the names in ``FILES``."""
    paths = {name: root / file for name, file in FILES.items()}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def machine(report: dict) -> str:
    """A sentence: which machine, which torch, when."""
    about = report["machine"]
    threads = "one thread" if about["threads"] == 1 else f"{about['threads']} threads"
    parts = [f"{about['cpu']}, {about['cores']} cores"]
    if about.get("instructions"):
        parts.append(", ".join(f"`{x}`" for x in about["instructions"]))
    if about.get("gpu"):
        parts.append(about["gpu"])
    parts.append(f"{threads}; torch {about['torch']}")
    for name in ("pyro-ppl", "pythae"):
        parts[-1] += f", {name} {about[name]}" if name in about else ""
    return f"*Machine:* {'; '.join(parts)}; {about['date']}."


def spread(found: dict, form: str = ",.0f") -> list[str]:
    return [
        f"{found['median']:{form}}",
        f"{found['low']:{form}} to {found['high']:{form}}",
    ]


def data(result: dict) -> str:
    return result["data"] if result["data"] == "MNIST" else f"**{result['data']}**"


def peers(report: dict) -> Iterator[str]:
    yield unwrapped(PEERS)
    yield machine(report)
    header = ["contender", "examples a second", "lowest to highest"]
    header += ["`aevb` is faster", "of the bound", "memory"]
    for result in report["results"]:
        results = result["results"]
        lines = []
        for name, found in results.items():
            bound = results.get("products" + LOW * name.endswith(LOW))
            share = ""
            if bound is not None and bound is not found:
                share = f"{found['rate']['median'] / bound['rate']['median']:.0%}"
            ours = name.startswith("aevb") or name.startswith("products")
            faster = "" if ours else f"{found['ratio']['median']:.2f} times"
            rate = spread(found["rate"])
            lines.append(
                [f"`{name}`", *rate, faster, share, f"{found['memory']:,} MiB"]
            )
        yield f"### Batches of {result['unit']}, {data(result)}"
        yield markdown(header, ["---", *["---:"] * 5], lines)
        if "plain" in results:
            rates = {
                name: found["rate"]["median"]
                for name, found in results.items()
                if name.startswith("aevb")
            }
            best = max(rates, key=rates.get)
            factor = rates[best] / results["plain"]["rate"]["median"]
            yield f"`{best}` trains {factor:.2f} times as fast as `plain`."


def target(report: dict) -> Iterator[str]:
    (result,) = report["results"]
    yield unwrapped(TARGET).format(
        epochs=result["epochs"],
        batch=result["unit"],
        lr=f"{result['lr']:g}",
        target=f"{result['target']:.2f}",
        ours_epochs=result["ours"]["epochs"],
        ours_batch=result["ours"]["unit"],
        ours_warmup=f"{result['ours']['kl_warmup']:.0%}",
        ours_lr=f"{result['ours']['lr']:g}",
    )
    yield machine(report)
    first = result["results"]["plain"]["seconds"]
    lines = []
    for name, found in result["results"].items():
        seconds = found["seconds"]
        reached = "not reached" if seconds is None else f"{seconds:.1f}"
        share = "" if seconds is None else f"{seconds / first:.0%}"
        lines.append([f"`{name}`", str(found["epochs"]), reached, share])
    header = ["contender", "epochs", "seconds", "of those of `plain`"]
    yield markdown(header, ["---", *["---:"] * 3], lines)


def gpu(report: dict) -> Iterator[str]:
    yield unwrapped(GPU)
    yield machine(report)
    lines, spreads = [], []
    for result in report["results"]:
        times = {who: of["median"] for who, of in result["milliseconds"].items()}
        laps = result["milliseconds"]["aevb"]
        spreads.append((laps["high"] - laps["low"]) / laps["median"])
        slower = [
            f"{times[who]:.1f} ({times[who] / times['aevb']:.1f} ×)"
            if who in times
            else ""
            for who in ("launched", "plain")
        ]
        training = ""
        if result["steps"] is not None:
            training = f"{result['steps'] * times['aevb'] / 1000:.0f} s"
        name = ", ".join(filter(None, (result["name"], result["precision"])))
        batch, ours = f"{result['batch_size']}", f"{times['aevb']:.2f}"
        lines.append([name, batch, ours, *slower, training])
    header = ["model", "batch", "`aevb`", "`launched`", "`plain`", "training"]
    yield markdown(header, ["---", *["---:"] * 5], lines)
    yield f"The laps of `aevb` differ by {max(spreads):.0%} at most."


def models(reports: dict[str, dict]) -> Iterator[str]:
    """One table for each of the other benchmarks."""
    found = [name for name in ("training", "mixture", "sequences") if name in reports]
    if not found:
        return
    yield unwrapped(MODELS)
    for name in found:
        lines = []
        for result in reports[name]["results"]:
            if result["task"] == "log-density":
                title = "log-density" + " and gradient" * result["backward"]
            else:
                title = TASKS[name]
                if "likelihood" in result:
                    title += ", " + result["likelihood"].replace("_", " ")
                title += f", batch {result['unit']}"
            for contender, x in result["results"].items():
                ratio = f"{x['ratio']['median']:.2f}"
                rate = spread(x["rate"])
                lines.append([title, f"`{contender}`", *rate, ratio])
        header = ["task", "contender", "a second", "lowest to highest", "ratio"]
        yield (
            f"`benchmarks/{SCRIPTS[name]}`; the ratio is that of the rate of the first"
            f" one to its own. {machine(reports[name])}"
        )
        yield markdown(header, ["---", "---", *["---:"] * 3], lines)


def precision(report: dict) -> Iterator[str]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in report["runs"]:
        of_model = found.setdefault(run["model"], {"single": {}, "bfloat16": {}})
        of_model[run["precision"]][run["seed"]] = run["elbo"]
    lines, moved = [], []
    for model, elbos in found.items():
        single, low = ([of[seed] for seed in sorted(of)] for of in elbos.values())
        deviation = statistics.stdev(single)
        differences = [b - a for a, b in zip(single, low, strict=True)]
        if abs(statistics.mean(differences)) > deviation:
            moved.append(f"`{model}`")
        numbers = [mean_and_range(single), mean_and_range(low), f"{deviation:.2f}"]
        numbers += [mean_and_range(differences, "+.2f")]
        lines.append([f"`{model}`", *numbers])
    seeds = {run["seed"] for run in report["runs"]}
    yield unwrapped(PRECISION).format(seeds=len(seeds))
    if any(run["products"] == "rounded" for run in report["runs"]):
        yield unwrapped(ROUNDED)
    header = ["model", "single precision", "bfloat16", "spread", "difference"]
    yield markdown(header, ["---", *["---:"] * 4], lines)
    which = (
        f"mean of {' and '.join(moved)} moves" if moved else "mean of no model moves"
    )
    missing = [
        f"`{name}`" for name in report["settings"]["recipes"] if name not in found
    ]
    to_come = f" Not run yet: {', '.join(missing)}." if missing else ""
    yield f"The {which} by more than the spread from seed to seed.{to_come}"


def mean_and_range(values: list[float], form: str = ".2f") -> str:
    numbers = (statistics.mean(values), min(values), max(values))
    mean, low, high = (f"{number:{form}}" for number in numbers)
    return f"{mean} ({low} to {high})"


def scaling(report: dict) -> Iterator[str]:
    yield unwrapped(SCALING)
    yield machine(report)
    yield f"![{' '.join(ALT.split())}]({FIGURE})"
    yield (
        "Examples a second (for sequences: steps a second) against sizes, the median of"
        " a few turns with the lowest and highest shaded; seconds of each epoch, and"
        " memory after it, in a training on few examples."
    )
    found = report["epochs"]
    epochs, seconds = found["epoch"], found["seconds"]
    early = statistics.median(seconds[:5])
    late = statistics.median(seconds[-5:])
    names = f"{epochs[0]} to {epochs[4]}", f"{epochs[-5]} to {epochs[-1]}"
    lines = [["seconds an epoch, median", f"{early:.3f}", f"{late:.3f}"]]
    if None not in found["memory"]:
        held = [f"{found['memory'][k]:,.0f}" for k in (4, -1)]
        lines.append(["MiB held after the last of them", *held])
    header = ["", *(f"epochs {n}" for n in names)]
    yield markdown(header, ["---", "---:", "---:"], lines)


def page(root: Path = c.ROOT) -> str:
    """The text of `book/speed.md`."""
    reports = read(root)
    parts = [unwrapped(HEAD)]
    if "peers" in reports:
        parts += peers(reports["peers"])
    if "target" in reports:
        parts += target(reports["target"])
    if "gpu" in reports:
        parts += gpu(reports["gpu"])
    parts += models(reports)
    if "precision" in reports:
        parts += precision(reports["precision"])
    if "scaling" in reports:
        parts += scaling(reports["scaling"])
    return "\n\n".join(parts) + "\n"


def complaints(root: Path = c.ROOT) -> Iterator[str]:
    """The page, or its figure, is not what the JSON files give."""
    made = root / "book" / "speed.md"
    if not made.exists():
        return
    if made.read_text(encoding="utf-8") != page(root):
        yield "book/speed.md is not what the benchmarks wrote: run `make renumber`"
    report, figure = read(root).get("scaling"), root / "book" / FIGURE
    if report is not None and not (
        figure.exists() and checksum(report) in figure.read_text(encoding="utf-8")
    ):
        yield f"book/{FIGURE} is not of {FILES['scaling']}: run that again"


def checksum(report: dict) -> str:
    """What a figure carries of the report that it shows."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def main() -> int:
    return c.store_page("speed.md", page())


if __name__ == "__main__":
    raise SystemExit(main())
