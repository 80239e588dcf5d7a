r"""The conventions of the chapters' plain Markdown, in one place.

The site's extension (`book/_ext/portable.py`), `make renumber` and the tests all read
the chapters through this module, so that they agree on what a number, a name and a
mention are:

* numbered things: chapters ``# 2. Title``, sections ``## 2.1 Title``, equations
  ``\tag{2.1}``, captions ``**Figure 2.1.**`` and ``**Table 2.1.**``, boxes
  ``> **Theorem 2.1.**`` (also Lemma, Proposition, Corollary, Definition, Algorithm,
  Exercise).  While drafting, ``?`` or ``2.?`` may stand for the number.
* permanent names, in a comment on the line above: ``<!-- eq-elbo-decomposition -->``.
* exercises: a box, and for one in code a stub (tag ``exercise``), a check, a solution
  (tag ``solution``); answers in words stand in ``<details>``.
* mentions: "(2.1)" for an equation, "Figure 2.1", "Sections 2.1 and 2.2", "Chapter 2",
  and, while drafting, the name itself: "(eq-elbo-decomposition)", "(fig-bound)".
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# The kinds that share a counter.  The kind of an equation is "Equation".
FAMILIES = {
    "Theorem": "Theorem",
    "Lemma": "Theorem",
    "Proposition": "Theorem",
    "Corollary": "Theorem",
    "Definition": "Theorem",
    "Algorithm": "Algorithm",
    "Exercise": "Exercise",
    "Figure": "Figure",
    "Table": "Table",
    "Section": "Section",
    "Equation": "Equation",
    "Chapter": "Chapter",
}
BOXES = (
    "Theorem",
    "Lemma",
    "Proposition",
    "Corollary",
    "Definition",
    "Algorithm",
    "Exercise",
)
CAPTIONS = ("Figure", "Table")
REMARKS = ("Note", "Tip", "Hint", "Warning", "Key idea")
PREFIXES = {
    "eq": ("Equation",),
    "fig": ("Figure",),
    "tab": ("Table",),
    "sec": ("Section",),
    "thm": ("Theorem", "Lemma", "Proposition", "Corollary"),
    "def": ("Definition",),
    "alg": ("Algorithm",),
    "ex": ("Exercise",),
}

NUM = r"\d+\.\d+"
DRAFT = r"(?:\d+|\?)\.(?:\d+|\?)|\?"
NAME = r"(?:" + "|".join(PREFIXES) + r")-[a-z0-9]+(?:-[a-z0-9]+)*"
NAME_COMMENT = re.compile(r"<!--\s*(" + NAME + r")\s*-->")

CHAPTER_FILE = re.compile(r"(\d\d)-([a-z0-9-]+)")
CHAPTER_TITLE = re.compile(r"^# (?P<num>\d+|\?)\. ", re.M)
DEFINITIONS = (
    ("Section", re.compile(r"^## (?P<num>" + DRAFT + r")(?= )", re.M)),
    ("Equation", re.compile(r"\\tag\{(?P<num>" + DRAFT + r")\}")),
    (
        None,
        re.compile(
            r"^\*\*(?P<kind>"
            + "|".join(CAPTIONS)
            + r") (?P<num>"
            + DRAFT
            + r")(?=[.* ])",
            re.M,
        ),
    ),
    (
        None,
        re.compile(
            r"^ *> *\*\*(?P<kind>"
            + "|".join(BOXES)
            + r") (?P<num>"
            + DRAFT
            + r")(?=[.* ])",
            re.M,
        ),
    ),
)

_KINDS = "|".join(k for k in FAMILIES if k not in ("Equation", "Chapter"))
_LIST = r"(?:(?:, and | and |, | or | to |–|-)NUM(?![\d.]*\d))*"
MENTION = re.compile(
    r"\((?P<name>" + NAME + r")\)"
    r"|(?P<word>[Ee]quations?[ \u00a0]|[Ee]qs?\.[ \u00a0])?\((?P<eq>" + NUM + r")\)"
    r"|\b(?P<kind>"
    + _KINDS
    + r")s?[ \u00a0](?P<nums>"
    + NUM
    + r"(?!\d)"
    + _LIST.replace("NUM", NUM)
    + r")"
    r"|\bChapters?[ \u00a0](?P<chapters>\d+(?![.\d]*\d)"
    + _LIST.replace("NUM", r"\d+")
    + r")"
)


@dataclass(frozen=True)
class Mention:
    """A mention in running text; ``start`` to ``end`` is the number (or the name)."""

    kind: str  # a key of FAMILIES, or "name"
    number: str  # "2.1", for a chapter "2", for a name "eq-elbo"
    start: int
    end: int
    shown: tuple[int, int]  # what becomes the link: "(2.1)", "Figure 2.1"
    strict: bool  # surely a mention, not a number in parentheses


def mentions(text: str) -> Iterator[Mention]:
    """The mentions in a text that is free of code and formulas (see `masked`)."""
    for m in MENTION.finditer(text):
        if m["name"]:
            yield Mention("name", m["name"], *m.span("name"), m.span(), True)
        elif m["eq"]:
            start, end = m.span("eq")
            shown = (start - 1, end + 1)
            yield Mention("Equation", m["eq"], start, end, shown, bool(m["word"]))
        else:
            group, kind = ("nums", m["kind"]) if m["nums"] else ("chapters", "Chapter")
            number = NUM if m["nums"] else r"\d+"
            for n, k in enumerate(re.finditer(number, m[group])):
                start, end = (m.start(group) + s for s in k.span())
                shown = (m.start() if n == 0 else start, end)
                yield Mention(kind, k[0], start, end, shown, True)


# What is not running text.  The order matters: code first, then formulas.
_CODE = (
    re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2[ \t]*$", re.S | re.M),
    re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S),
)
_COMMENTS = re.compile(r"<!--.*?-->", re.S)
_FORMULAS = (
    re.compile(r"(?<!\\)\$\$.+?\$\$", re.S),
    re.compile(r"(?<![\\$])\$(?![\s$])(?:[^$\\]|\\.)+?\$", re.S),
)
_TARGETS = (
    re.compile(r"(?<=\])\((?:[^()\s]|\([^()\s]*\))*\)"),
    re.compile(r"<[a-zA-Z/][^<>\n]*>"),
)
_TEXT_IN_FORMULA = re.compile(r"\\text\{([^{}]*)\}")


def _blank(text: str, keep: Iterable[re.Match[str]] = ()) -> str:
    out = ["\n" if c == "\n" else "\0" for c in text]
    for m in keep:
        out[m.start(1) : m.end(1)] = m[1]
    return "".join(out)


def masked(text: str, *, reasons: bool = True) -> str:
    r"""The text of the same length in which all but running text is blotted out.

    The words of ``\text{...}`` inside a formula count as running text (the reasons
    beside the lines of a derivation), unless `reasons` is false.
    """
    for rx in (*_CODE, _COMMENTS):
        text = rx.sub(lambda m: _blank(m[0]), text)
    for rx in _FORMULAS:
        text = rx.sub(
            lambda m: _blank(m[0], _TEXT_IN_FORMULA.finditer(m[0]) if reasons else ()),
            text,
        )
    for rx in _TARGETS:
        text = rx.sub(lambda m: _blank(m[0]), text)
    return text


def without_code(text: str) -> str:
    """The text with code blotted out (formulas and comments stay)."""
    for rx in _CODE:
        text = rx.sub(lambda m: _blank(m[0]), text)
    return text


def displays(text: str) -> list[tuple[int, int]]:
    """Start and end of every display formula ``$$ ... $$``, delimiters included."""
    return [m.span() for m in _FORMULAS[0].finditer(without_code(text))]


def formulas(text: str) -> list[str]:
    """The TeX of every formula, in a line or displayed, in order."""
    text = _COMMENTS.sub(lambda m: _blank(m[0]), without_code(text))
    found = []
    for rx in _FORMULAS:
        found += [(m.start(), m[0].strip("$")) for m in rx.finditer(text)]
        text = rx.sub(lambda m: _blank(m[0]), text)
    return [tex for _, tex in sorted(found)]


@dataclass
class Definition:
    """A numbered thing in a Markdown cell."""

    kind: str  # a key of FAMILIES
    number: str  # as it stands: "2.1", "?", "2.?"; "" if the tag is still missing
    cell: int
    start: int  # the span of the number in the cell's source
    end: int
    name: str = ""  # the permanent name, "" without one

    @property
    def family(self) -> str:
        return FAMILIES[self.kind]


def name_above(text: str, position: int) -> str:
    """The permanent name in the comment on the line above a position."""
    above = text[:position].rpartition("\n")[0].rpartition("\n")[2]
    m = NAME_COMMENT.fullmatch(above.lstrip(" >").rstrip())
    return m[1] if m else ""


def definitions(text: str, cell: int = 0) -> list[Definition]:
    """The numbered things of a Markdown cell, in order (chapter titles excepted)."""
    plain, found = without_code(text), []
    for kind, rx in DEFINITIONS:
        for m in rx.finditer(plain):
            what = kind or m["kind"]
            if what == "Equation":
                continue
            found.append(
                Definition(
                    what, m["num"], cell, *m.span("num"), name_above(text, m.start())
                )
            )
    tag = DEFINITIONS[1][1]
    for start, end in displays(text):
        tags = list(tag.finditer(text, start, end))
        name = name_above(text, start)
        for m in tags:
            found.append(Definition("Equation", m["num"], cell, *m.span("num"), name))
        if not tags and name.startswith("eq-"):  # to be numbered
            found.append(Definition("Equation", "", cell, end - 2, end - 2, name))
    return sorted(found, key=lambda d: d.start)


def anchor(kind: str, number: str) -> str:
    """The anchor that every numbered thing has beside its permanent name."""
    prefix = "eq" if kind == "Equation" else kind.lower()
    return f"{prefix}-{number.replace('.', '-')}"


# What a `<details>` holds, by the first word of its summary.
HELP = ("Hint", "Proof")
ANSWERS = ("Solution", "Answer", "What")
DETAILS = re.compile(r"<details>\n<summary>([^<]*)</summary>\n.*?\n</details>", re.S)
SOLUTION = re.compile(r"# @title Solution of Exercise (" + NUM + r")")
CHECKS = re.compile(r"^check_\w+\(", re.M)


def details(text: str) -> list[tuple[str, int, int]]:
    """Summary, start and end of every ``<details>`` of a Markdown cell."""
    return [(m[1], *m.span()) for m in DETAILS.finditer(without_code(text))]


def answers(text: str) -> list[tuple[str, int, int]]:
    """Those that give an answer away."""
    return [d for d in details(text) if not d[0].startswith(HELP)]


def tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


@dataclass
class Exercise:
    """An exercise, and the indices of the cells that belong to it."""

    number: str
    label: str = ""  # in brackets behind the number: effort and kind
    stub: int | None = None  # where readers write their code
    checks: list[int] = field(default_factory=list)  # the cells below the stub
    solution: int | None = None  # the cell with the code
    written: bool = False  # there is a solution in words

    @property
    def in_code(self) -> bool:
        """Whether the answer is code, and not an illustration of one in words."""
        return self.stub is not None or (self.solution is not None and not self.written)


def label_behind(text: str, end: int) -> str:
    """
    Example:
        >>> label_behind("> **Exercise 2.3.** (★★, checked.) Prove", 16)
        '★★, checked.'
    """
    m = re.match(r"\.\*\* \(([^)]*)\)", text[end:])
    return m[1] if m else ""


def exercises(cells: Sequence[Mapping[str, Any]]) -> list[Exercise]:
    """The exercises of a chapter, in order."""
    found: list[Exercise] = []
    for i, cell in enumerate(cells):
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            spots: list[tuple[int, Exercise | None]] = [
                (d.start, Exercise(d.number, label_behind(source, d.end)))
                for d in definitions(source)
                if d.kind == "Exercise"
            ]
            spots += [
                (start, None)
                for summary, start, _ in answers(source)
                if "solution" in summary.lower()
            ]
            for _, exercise in sorted(spots, key=lambda spot: spot[0]):
                if exercise is not None:
                    found.append(exercise)
                elif found:
                    found[-1].written = True
        elif m := SOLUTION.match(source):
            for exercise in found:
                if exercise.number == m[1]:
                    exercise.solution = i
        elif found and "exercise" in tags(cell):
            found[-1].stub = i
        elif found and found[-1].stub is not None and found[-1].solution is None:
            found[-1].checks.append(i)
    return found


def chapter_of(path: Path) -> int:
    """The chapter's number, from the name of its file."""
    return int(path.name[:2])


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of the book, in order."""
    return sorted((root / "book").glob("[0-9][0-9]-*.ipynb"))


def pages(root: Path = ROOT) -> list[Path]:
    """The pages in Markdown that people write (the references are generated)."""
    found = sorted((root / "book").glob("*.md"))
    return [p for p in found if p.name != "references.md"]


def comments(code: str) -> list[tuple[int, int]]:
    """Start and end of every comment in a code cell."""
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                start = starts[token.start[0] - 1] + token.start[1]
                found.append((start, start + len(token.string)))
    except (tokenize.TokenError, SyntaxError):
        pass  # not Python alone: what was found so far is right
    return found


def bare_code(code: str) -> str:
    """Code without comments, blank lines and trailing space: what a run depends on."""
    for start, end in reversed(comments(code)):
        code = code[:start] + code[end:]
    return "\n".join(line.rstrip() for line in code.splitlines() if line.strip())


def store_page(name: str, text: str) -> int:
    """Write a generated page of `book/` where it has changed, and say so; returns 0."""
    path = ROOT / "book" / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)} is made anew")
    return 0
