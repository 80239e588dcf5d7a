"""The tables of the teaching guide, made from the chapters and from the guide's plans.

    python -m tools.teaching       # part of make renumber

`book/teaching.md` is written by people, but for what stands between the comments
``<!-- made: … -->`` and ``<!-- end -->``. There this module puts tables whose numbers
it computes: reading times from the text, computing times from the chapters' stamps and
from the benchmark of fast mode, exercises from their boxes, and, for a plan, the sums
over what each of its sessions mentions:

    ### Monday: the bound

    * **Cover.** Sections 2.1 to 2.4.
    * **Run.** Chapter 2.
    * **Set.** Exercises 2.1 and 2.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools import conventions as c
from tools.results import duration, markdown

WORDS_A_MINUTE = 120
SECONDS_A_DISPLAY = 45
SECONDS_A_LINE_OF_CODE = 5
# Minutes for an exercise of so many stars; until it has some, it counts as one of two.
MINUTES = {1: 10, 2: 40, 3: 120}

BLOCK = re.compile(r"(?s)(<!-- made: ([a-z ]+) -->\n).*?(<!-- end -->)")
SESSION = re.compile(r"(?ms)^### (?P<title>[^\n]+)\n(?P<text>.*?)(?=^##|\Z)")
BULLET = r"(?ms)^\* \*\*{}\.\*\* (.*?)(?=^\*|\n\n|\Z)"
DETAILS = re.compile(r"(?s)<details>.*?</details>")


@dataclass(frozen=True)
class Label:
    """What the parenthesis behind an exercise's number says of it."""

    stars: int  # 0 where it gives none
    checked: bool

    @property
    def minutes(self) -> int:
        return MINUTES[self.stars or 2]


@dataclass
class Chapter:
    """What a teacher wants to know of a chapter before opening it.

    Attributes:
        seconds: at full speed, from the stamp; None where the chapter has none.
        fast: seconds in fast mode, from the benchmark.
        sections: reading time of each, in seconds, by number.
    """

    path: Path
    seconds: float | None
    fast: float | None
    dataset: str
    gpu: bool
    sections: dict[str, float] = field(default_factory=dict)
    exercises: dict[str, Label] = field(default_factory=dict)

    @property
    def link(self) -> str:
        return f"[Chapter {c.chapter_of(self.path)}]({self.path.name})"

    @property
    def reading(self) -> float:
        return sum(self.sections.values())


def read(root: Path = c.ROOT) -> dict[str, Chapter]:
    """The chapters by number, in order."""
    timings = root / "benchmarks" / "chapters_latest.json"
    fast = {}
    if timings.exists():
        fast = json.loads(timings.read_text(encoding="utf-8"))["seconds"]
    return {
        str(c.chapter_of(path)): chapter(path, fast.get(path.stem))
        for path in c.chapters(root)
    }


def chapter(path: Path, fast: float | None = None) -> Chapter:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    stamp = notebook["metadata"].get("aevb", {})
    found = Chapter(
        path,
        stamp.get("seconds"),
        fast,
        stamp.get("dataset", ""),
        notebook["metadata"].get("accelerator") == "GPU",
    )
    section = "0"  # what stands above the first heading
    for cell in notebook["cells"]:
        source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code":
            if not {"hide-input", "hide-cell", "exercise"} & set(tags):
                lines = len([line for line in source.splitlines() if line.strip()])
                add(found, section, lines * SECONDS_A_LINE_OF_CODE)
        elif "remove-cell" not in tags:
            for number, text in parts(source, section):
                section = number
                found.exercises |= labels(text)
                add(found, section, reading_time(text))
    return found


def add(chapter: Chapter, section: str, seconds: float) -> None:
    chapter.sections[section] = chapter.sections.get(section, 0) + seconds


def parts(source: str, section: str) -> Iterator[tuple[str, str]]:
    """The text of a cell, cut at its headings; `section` is where it begins."""
    heads = [d for d in c.definitions(source) if d.kind == "Section"]
    cuts = [0, *(source.rfind("\n", 0, d.start) + 1 for d in heads), len(source)]
    numbers = [section, *(d.number for d in heads)]
    for number, (start, end) in zip(numbers, pairwise(cuts), strict=True):
        yield number, source[start:end]


def labels(text: str) -> dict[str, Label]:
    """The exercises of a text, by number.

    Example:
        >>> labels("> **Exercise 2.3.** (★★, code, checked) *A title.* …")
        {'2.3': Label(stars=2, checked=True)}
    """
    found = {}
    for d in c.definitions(text):
        if d.kind == "Exercise":
            about = c.label_behind(text, d.end)
            found[d.number] = Label(about.count("★"), "checked" in about)
    return found


def reading_time(text: str) -> float:
    """Seconds for words and displays, exercises and what is folded away left out.

    Example:
        >>> reading_time("word " * 300 + "$$\\n x^2 \\n$$")
        195.5
    """
    text = DETAILS.sub(" ", c.without_code(text).replace("\0", " "))
    text = re.sub(r"(?m)^> \*\*Exercise .*(?:\n>.*)*", " ", text)
    text = re.sub(r"(?s)<!--.*?-->", " ", text)
    displays = len(c.displays(text))
    text = re.sub(r"(?s)\$\$.*?\$\$", " formula ", text)
    text = re.sub(r"\$[^$\n]*\$", " formula ", text)
    text = re.sub(r"\]\([^()\s]*\)", " ", text)
    words = len(re.findall(r"[^\W_][\w'’-]*", text))
    return 60 * words / WORDS_A_MINUTE + displays * SECONDS_A_DISPLAY


# --- the plans ----------------------------------------------------------------------


def mentioned(text: str, kind: str) -> list[str]:
    """Numbers that a text mentions; "Sections 2.1 to 2.4" names four.

    Example:
        >>> mentioned("Sections 2.1 to 2.3 and 3.7, Figure 2.1", "Section")
        ['2.1', '2.2', '2.3', '3.7']
    """
    found: list[str] = []
    end = None
    for m in c.mentions(c.masked(text)):
        between = text[end : m.start] if end is not None else ""
        if m.kind == kind:
            if found and between in (" to ", "–"):
                head, _, last = m.number.rpartition(".")
                first = int(found[-1].rpartition(".")[2])
                prefix = f"{head}." if head else ""
                found += [f"{prefix}{n}" for n in range(first + 1, int(last))]
            found.append(m.number)
        end = m.end
    return found


def bullet(session: str, name: str) -> str:
    """What a session's list says behind a bold word; "" without it."""
    m = re.search(BULLET.format(name), session)
    return " ".join(m[1].split()) if m else ""


def covered(text: str, chapters: dict[str, Chapter]) -> float:
    """Reading time of the sections and of the whole chapters that a text mentions."""
    seconds = sum(chapters[n].reading for n in mentioned(text, "Chapter"))
    for number in mentioned(text, "Section"):
        sections = chapters[number.partition(".")[0]].sections
        if number not in sections:
            raise ValueError(f"book/teaching.md: there is no Section {number}")
        seconds += sections[number]
    return seconds


def sessions(text: str, chapters: dict[str, Chapter]) -> str:
    """The table of a plan: a line for each session, and their sums."""
    every = {n: e for ch in chapters.values() for n, e in ch.exercises.items()}
    lines, totals = [], [0.0] * 4
    for m in SESSION.finditer(text):
        run = [chapters[n] for n in mentioned(bullet(m["text"], "Run"), "Chapter")]
        tasks = mentioned(bullet(m["text"], "Set"), "Exercise")
        if unknown := [n for n in tasks if n not in every]:
            raise ValueError(f"book/teaching.md: there is no Exercise {unknown[0]}")
        numbers = [
            covered(bullet(m["text"], "Cover"), chapters),
            60 * sum(every[n].minutes for n in tasks),
            sum(ch.seconds or 0 for ch in run),
            sum(ch.fast or 0 for ch in run),
        ]
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
        lines.append([m["title"], *map(time, numbers)])
    header = ["session", "reading", "exercises", "computing, full speed", "fast mode"]
    lines.append(["all together", *map(time, totals)])
    return markdown(header, ["---", *["---:"] * 4], lines)


def time(seconds: float | None) -> str:
    """
    Example:
        >>> time(0), time(45), time(7300)
        ('', '45 s', '2.0 h')
    """
    return duration(seconds) if seconds else ""


# --- the tables ---------------------------------------------------------------------


def times(text: str, chapters: dict[str, Chapter]) -> str:
    """What each chapter costs a reader and a computer."""
    lines = [
        [
            ch.link,
            time(ch.reading),
            time(ch.seconds),
            time(ch.fast),
            "MNIST" if "MNIST" in ch.dataset else "nothing",
            "yes" if ch.gpu else "no",
        ]
        for ch in chapters.values()
    ]
    sums = [
        sum(map(pick, chapters.values()))
        for pick in (
            lambda ch: ch.reading,
            lambda ch: ch.seconds or 0,
            lambda ch: ch.fast or 0,
        )
    ]
    lines.append(["all together", *map(time, sums), "", ""])
    header = ["chapter", "reading", "computing, full speed", "fast mode"]
    header += ["downloads", "asks Colab for a GPU"]
    return markdown(header, ["---", "---:", "---:", "---:", "---", "---"], lines)


def effort(text: str, chapters: dict[str, Chapter]) -> str:
    """How many exercises each chapter has, by their stars."""
    columns: list[tuple[str, Callable[[Label], bool]]] = [
        *(("★" * n, partial(lambda n, e: e.stars == n, n)) for n in MINUTES),
        ("check themselves", lambda e: e.checked),
        ("all", lambda e: True),
    ]
    header = ["chapter", *(name for name, _ in columns)]
    lines, totals = [], [0] * len(columns)
    for ch in chapters.values():
        counts = [sum(map(test, ch.exercises.values())) for _, test in columns]
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        lines.append([ch.link, *map(str, counts)])
    lines.append(["all together", *map(str, totals)])
    return markdown(header, ["---", *["---:"] * len(columns)], lines)


def rates(text: str, chapters: dict[str, Chapter]) -> str:
    """The sentence that says what the times stand for."""
    stars = ", ".join(f"{m} minutes for {'★' * n}" for n, m in MINUTES.items())
    return (
        f"Reading is counted at {WORDS_A_MINUTE} words a minute, with"
        f" {SECONDS_A_DISPLAY} seconds for a displayed formula and"
        f" {SECONDS_A_LINE_OF_CODE} for a line of code that is not folded away;"
        f" exercises at {stars}."
    )


TABLES: dict[str, Callable[[str, dict[str, Chapter]], str]] = {
    "rates": rates,
    "times": times,
    "effort": effort,
    "sessions": sessions,
}


def page(root: Path = c.ROOT) -> str:
    """The text of `book/teaching.md` with its tables made anew.

    A table of sessions is of those between its place and the next heading of its level.
    """
    text = (root / "book" / "teaching.md").read_text(encoding="utf-8")
    chapters = read(root)

    def made(m: re.Match[str]) -> str:
        rest = text[m.end() :]
        plan = rest[: rest.find("\n## ") + 1 or len(rest)]
        return f"{m[1]}\n{TABLES[m[2]](plan, chapters)}\n\n{m[3]}"

    return BLOCK.sub(made, text)


def complaints(root: Path = c.ROOT) -> Iterator[str]:
    """The guide's tables are not what the chapters give."""
    path: Any = root / "book" / "teaching.md"
    if path.exists() and path.read_text(encoding="utf-8") != page(root):
        yield "book/teaching.md is not what the chapters give: run `make renumber`"


def main() -> int:
    return c.store_page("teaching.md", page())


if __name__ == "__main__":
    raise SystemExit(main())
