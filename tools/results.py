"""The page "Results and costs", made from the files that hold the numbers.

    python -m tools.results        # part of make renumber

`book/published.toml` says what is set beside what; the numbers come from the manifest
of trained weights, from the studies in `book/results/`, from the stamps of the chapters
and, where others published them, from that file itself.  None is typed into the page.
It needs neither torch nor the package: the site's environment can make it.
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from tools import conventions as c

KINDS = {
    "continuous": "dequantised",
    "stochastic": "dynamic",
    "binary": "thresholded",
    "rows": "thresholded",
}
HEAD = """# Results and costs

What every model of the book reaches, what it took, and what others have published.
The page is generated: every number in it comes from a file, the manifest of the
trained weights that [`aevb.pretrained`](api.md) loads, the studies of `experiments/`,
the stamps of the chapters, or a list of published figures. Log-likelihoods are in
nats per test example, and larger is better; papers often print them with the other
sign.

## What the columns say

**Data** is the convention by which grey values became what a model sees. It decides
more than any model does: numbers of different data must not be compared.

CONVENTIONS

**ELBO ± error** is the bound, averaged over all test examples and over some draws of
z for each. The error is one standard error of that mean, from the spread over the
examples; where it is missing, the source has none. Two models that are scored on the
same examples find the same ones hard, and so differ by more than chance long before
their errors cease to overlap.

**log p(x), at least ± error** is nearer to the truth: an importance-weighted
estimate, which rises with the number of draws and stays below log p(x) on average.
Where it was made for a part of the test images, what it lies above the ELBO of these
is added to the ELBO of all; the list below each table names draws and images.

**Time** is that of one training, on the device named. Processors differ, and ours had
other work at the same time: take it for an order of magnitude. Published figures
rarely come with one.

You may compare rows of one table with the same data, unless the list below it says
that the density, the bound or the quantity is another one. You may not compare a
clamped density with an exact one, the best of several runs with the mean of them, or
a bound from few draws with one from many. And no log-likelihood says how good samples
look.
"""
COSTS = """## What each chapter costs

The run whose outputs are stored, at full speed, all cells of the chapter together.
"""
STUDIES = """## What the studies cost

Every run of a study, one after the other; a chapter loads what came out.
"""
WEIGHTS = """## What the trained weights cost

The models that `aevb.pretrained` gives; `python -m tools.pretrain NAME` trains one
again.
"""


# --- numbers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A number, and its standard error if there is one."""

    mean: float
    error: float | None = None

    def text(self, digits: int) -> str:
        """``-88.36 ± 0.24``, both with that many decimals.

        Example:
            >>> Value(-88.362, 0.2351).text(2), Value(1788.41).text(1)
            ('-88.36 ± 0.24', '1788.4')
        """
        if self.error is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One line of a table, and what is said below it."""

    name: str
    data: str
    elbo: Value | None
    log_likelihood: Value | None
    accuracy: Value | None
    time: str
    notes: tuple[str, ...]


def duration(seconds: float | None) -> str:
    """Seconds in words.

    Example:
        >>> duration(5.2), duration(273), duration(5400), duration(None)
        ('5 s', '5 min', '1.5 h', '')
    """
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """
    Example:
        >>> count(1, "draw"), count(10000, "test image")
        ('1 draw', '10,000 test images')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(number: int) -> str:
    """Bytes in words.

    Example:
        >>> size(418), size(851776), size(2630000)
        ('418 B', '852 kB', '2.6 MB')
    """
    if number < 1000:
        return f"{number} B"
    return f"{number / 1e3:.0f} kB" if number < 1e6 else f"{number / 1e6:.1f} MB"


def device(name: str) -> str:
    """
    Example:
        >>> device("cpu"), device("NVIDIA H200")
        ('CPU', 'NVIDIA H200')
    """
    return name.upper() if len(name) <= 4 else name


# --- rows ---------------------------------------------------------------------------


def trained_row(row: dict[str, Any], entry: dict[str, Any]) -> Row:
    """From the manifest of trained weights."""
    scores, training = entry["scores"]["test"], entry["training"]
    elbo = value_of(scores["elbo"])
    notes = [row["differs"], recipe_text(entry["recipe"])]
    if "evidence" in scores:
        better = value_of(scores["evidence"])
    else:
        better, how = weighted(scores)
        notes.append(how)
    if "note" in training:
        notes.append(training["note"])
    accuracy = scores.get("accuracy")
    time = f"{duration(training['seconds'])}, {device(training['device'])}"
    return Row(
        row["name"],
        row["data"],
        elbo,
        better,
        accuracy and value_of(accuracy),
        time,
        tuple(notes),
    )


def value_of(score: dict[str, float]) -> Value:
    return Value(score["mean"], score["standard_error"])


def weighted(scores: dict[str, Any]) -> tuple[Value, str]:
    """The importance-weighted estimate for all test images, and how it was made."""
    found, gap, elbo = (scores[key] for key in ("log_likelihood", "gap", "elbo"))
    how = f"log p(x) from {count(found['samples'], 'draw')} for each of"
    if found["examples"] == elbo["examples"]:
        return value_of(found), f"{how} {count(found['examples'], 'test example')}"
    error = math.hypot(elbo["standard_error"], gap["standard_error"])
    value = Value(elbo["mean"] + gap["mean"], error)
    return value, f"{how} {count(found['examples'], 'test image')}, chosen at random"


def recipe_text(recipe: dict[str, Any]) -> str:
    """The network's sizes and the length of its training.

    Example:
        >>> model = {"class": "VAE", "arguments": {"latent_dim": 2, "hidden": [9, 8]}}
        >>> data = {"source": "mnist", "kind": "binary", "examples": 50000}
        >>> recipe_text({"model": model, "data": data, "stages": [{"epochs": 3}]})
        'hidden layers of 9 and 8, 2 latent coordinates; 3 epochs of 50,000 images'
    """
    arguments = recipe["model"]["arguments"]
    parts = []
    if "recurrent" in arguments:
        parts.append(f"LSTM of {words(arguments['recurrent'])}")
    if "hidden" in arguments:
        parts.append(f"hidden layers of {words(arguments['hidden'])}")
    if "latent_dim" in arguments:
        each = " in each step" if "recurrent" in arguments else ""
        parts.append(f"{arguments['latent_dim']} latent coordinates{each}")
    stages = []
    for stage in recipe["stages"]:
        told = stage.get("groups")
        if told:
            stages.append(f"{count(*length(told['stage']))} for the groups")
        stages.append(count(*length(stage)))
    images = recipe["data"].get("examples")
    if images:
        stages[-1] += f" of {count(images, 'image')}"
    return "; ".join(filter(None, [", ".join(parts), " and ".join(stages)]))


def length(stage: dict[str, Any]) -> tuple[int, str]:
    """Epochs or steps of a stage, and which of them."""
    unit = "epochs" if "epochs" in stage else "steps"
    return stage[unit], "epoch" if unit == "epochs" else "gradient step"


def words(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes))


def study_row(row: dict[str, Any], study: dict[str, Any]) -> Row:
    """From the runs of a study: their mean, if they differ by their seed alone."""
    runs = runs_of(row, study)
    if not runs:
        raise ValueError(f"{row['study']} has no run with {row['where']}")

    def mean(path: str | None) -> float | None:
        found = [number(run, path) for run in runs] if path else [None]
        return None if None in found else statistics.fmean(found)

    notes = [row["differs"]]
    elbo = Value(mean(row["elbo"]), mean(row.get("elbo_error")))
    better = None
    if "gap" in row:
        upper, lower = map(mean, row["gap"])
        better = Value(elbo.mean + upper - lower)
    elif "log_likelihood" in row:
        better = Value(mean(row["log_likelihood"]), mean(row["log_likelihood_error"]))
    if "epochs" in row:
        notes.append(count(int(mean(row["epochs"])), "epoch"))
    if len(runs) > 1:
        spread = statistics.stdev(number(run, row["elbo"]) for run in runs)
        told = f"mean of {len(runs)} seeds; standard deviation of the ELBO {spread:.2f}"
        if "accuracy" in row:
            shares = [number(run, row["accuracy"]) for run in runs]
            told += f", of the accuracy {statistics.stdev(shares):.3f}"
        notes.append(told)
    if "draws" in row:
        draws, images = (number(study["settings"], path) for path in row["draws"])
        how = f"log p(x) from {count(draws, 'draw')} for each of"
        notes.append(f"{how} {count(images, 'test image')}, chosen at random")
    accuracy = mean(row.get("accuracy"))
    seconds = mean(row.get("seconds", "seconds"))
    each = " each" if len(runs) > 1 else ""
    place = runs[0].get("device") or study["stamp"].get("device", "cpu")
    return Row(
        row["name"],
        row["data"],
        elbo,
        better,
        None if accuracy is None else Value(accuracy),
        f"{duration(seconds)}{each}, {device(place)}",
        (*notes, f"[study](#what-the-studies-cost) `{row['study']}`"),
    )


def runs_of(row: dict[str, Any], study: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a study that a row describes."""
    where = row["where"].items()
    return [
        run
        for run in study["runs"]
        if all(run.get(key) == value for key, value in where)
    ]


def to_come(row: dict[str, Any], study: dict[str, Any]) -> bool:
    """Whether a row's runs have not been made, but the study's settings list them.

    Example:
        >>> study = {"settings": {"objectives": {"VAE": 1, "IWAE": 5}}, "runs": []}
        >>> to_come({"where": {"objective": "IWAE"}}, study)
        True
    """
    listed = (
        value in study["settings"].get(f"{key}s", ())
        for key, value in row["where"].items()
    )
    return not runs_of(row, study) and all(listed)


def number(run: dict[str, Any], path: str) -> float | None:
    """
    Example:
        >>> number({"weighted": {"elbo": -3.0}}, "weighted.elbo")
        -3.0
    """
    return reduce(lambda part, key: (part or {}).get(key), path.split("."), run)


def published_row(row: dict[str, Any]) -> Row:
    """From the file itself."""

    def value(name: str) -> Value | None:
        return Value(row[name], row.get(f"{name}_error")) if name in row else None

    notes = [row["differs"], row["source"]]
    if not row["verified"]:
        notes.append("from memory: not checked against its source")
    numbers = map(value, ("elbo", "log_likelihood", "accuracy"))
    return Row(row["name"], row["data"], *numbers, "", tuple(notes))


# --- the page -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """The files behind the page, read.

    Attributes:
        conventions: of data, in `book/published.toml`.
        tables: in the same file.
        weights: the manifest of trained weights, by name.
        studies: of `book/results/`, by name.
        stamps: of the chapters, by name.
    """

    conventions: list[dict[str, str]]
    tables: list[dict[str, Any]]
    weights: dict[str, Any]
    studies: dict[str, Any]
    stamps: dict[str, Any]


def read(root: Path = c.ROOT) -> Sources:
    text = (root / "book" / "published.toml").read_text(encoding="utf-8")
    published = tomllib.loads(text)
    load = lambda path: json.loads(path.read_text(encoding="utf-8"))  # noqa: E731
    results = sorted((root / "book" / "results").glob("*.json"))
    return Sources(
        published["convention"],
        published["table"],
        load(root / "aevb" / "trained" / "manifest.json"),
        {path.stem: load(path) for path in results},
        {p.stem: load(p)["metadata"].get("aevb", {}) for p in c.chapters(root)},
    )


def rows(table: dict[str, Any], sources: Sources) -> Iterator[Row]:
    """The rows of a table; those of weights and runs that are not there are left."""
    for row in table["row"]:
        if "trained" in row:
            if row["trained"] in sources.weights:
                yield trained_row(row, sources.weights[row["trained"]])
        elif "study" in row:
            study = sources.studies.get(row["study"])
            if study is not None and not to_come(row, study):
                yield study_row(row, study)
        else:
            yield published_row(row)


def section(table: dict[str, Any], sources: Sources) -> str:
    """Heading, explanation, table, and the list of what differs."""
    found = list(rows(table, sources))
    digits = table["digits"]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("model", lambda row: row.name),
        ("data", lambda row: row.data),
        ("ELBO ± error", lambda row: text(row.elbo, digits)),
        ("log p(x), at least ± error", lambda row: text(row.log_likelihood, digits)),
    ]
    if table.get("accuracy"):
        columns.append(("told right", lambda row: text(row.accuracy, 3)))
    columns.append(("time", lambda row: row.time))
    header = [name for name, _ in columns]
    lines = [[cell(row) for _, cell in columns] for row in found]
    align = ["---", "---", *["---:"] * (len(columns) - 3), "---"]
    chapter, see = table["chapter"], ""
    if chapter in sources.stamps:
        see = f" See [Chapter {c.chapter_of(Path(chapter))}]({chapter}.ipynb)."
    notes = [f"- {row.name}: {'; '.join(row.notes)}." for row in found]
    return "\n\n".join(
        [
            f"## {table['title']}",
            table["text"] + see,
            markdown(header, align, lines),
            "What each row is, and what differs:",
            "\n".join(notes),
        ]
    )


def text(value: Value | None, digits: int) -> str:
    return "" if value is None else value.text(digits)


def markdown(header: list[str], align: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, align, *lines])


def costs(sources: Sources) -> Iterator[str]:
    """Tables of what chapters, studies and weights cost."""
    align = ["---", "---:", "---", "---", "---"]
    lines = [
        [
            f"[Chapter {c.chapter_of(Path(name))}]({name}.ipynb)",
            duration(stamp["seconds"]),
            device(stamp["device"]),
            stamp["dataset"],
            stamp["date"],
        ]
        for name, stamp in sources.stamps.items()
        if stamp
    ]
    header = ["chapter", "time", "device", "data", "date"]
    yield unwrapped(COSTS) + "\n\n" + markdown(header, align, lines)
    lines = [
        [
            f"`{name}`",
            str(len(study["runs"])),
            duration(sum(run.get("seconds", 0) for run in study["runs"])),
            device(study["stamp"].get("device", "")),
            study["stamp"].get("date", ""),
        ]
        for name, study in sources.studies.items()
    ]
    header, align = (
        ["study", "runs", "time", "device", "date"],
        [*align[:2], *align[1:4]],
    )
    yield unwrapped(STUDIES) + "\n\n" + markdown(header, align, lines)
    lines = []
    for name, entry in sources.weights.items():
        training = entry["training"]
        lines.append(
            [
                f"`{name}`",
                duration(training["seconds"]),
                device(training["device"]),
                str(training["threads"]),
                size(entry["file"]["bytes"]),
                training["date"],
            ]
        )
    header = ["name", "time", "device", "threads", "size", "date"]
    align = ["---", "---:", "---", "---:", "---:", "---"]
    yield unwrapped(WEIGHTS) + "\n\n" + markdown(header, align, lines)


def page(root: Path = c.ROOT) -> str:
    """The text of `book/results.md`."""
    sources = read(root)
    lines = [[each["name"], each["text"]] for each in sources.conventions]
    header = ["data", "a pixel of grey value v, from 0 to 255, becomes"]
    conventions = markdown(header, ["---", "---"], lines)
    head = unwrapped(HEAD).replace("CONVENTIONS", conventions)
    sections = [section(table, sources) for table in sources.tables]
    return "\n\n".join([head, *sections, *costs(sources)]) + "\n"


def unwrapped(text: str) -> str:
    """A paragraph a line.

    Example:
        >>> unwrapped("one\\ntwo\\n\\nthree\\n")
        'one two\\n\\nthree'
    """
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def main() -> int:
    return c.store_page("results.md", page())


if __name__ == "__main__":
    raise SystemExit(main())
