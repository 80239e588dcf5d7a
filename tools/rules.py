"""The rules of the chapters, each a function that yields complaints.

    python -m tools.rules          # make check
    python -m tools.rules 07       # make check CHAPTER=07

`tests/test_notebooks.py` holds every chapter to every rule.  A complaint says where and
what to do.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
import yaml

from tools import conventions as c
from tools import (
    pictures,
    references,
    repository,
    results,
    speed,
    stamps,
    teaching,
)
from tools.conventions import tags

TAGS = {
    "setup",
    "exercise",
    "solution",
    "hide-input",
    "hide-output",
    "hide-cell",
    "remove-cell",
    "remove-input",
    "remove-output",
    "nbval-check-output",
    "nbval-ignore-output",
}
METADATA = {"kernelspec", "language_info", "colab", "accelerator", "aevb"}
MYST = {
    "a directive": r"^(```+|:::+|~~~+)\s*\{",
    "a role": r"(?<!`)\{[a-z][a-z:]*\}`[^`]",
    "a target": r"^\([\w:-]+\)=\s*$",
    "a labelled equation": r"\$\$[ \t]*\([\w:-]+\)",
    "an empty link": r"\[\]\(",
    "attributes": r"\)\{[.#][^}]*\}",
    "a footnote": r"\[\^\w+\]",
    "an alert that only GitHub knows": r"^> *\[!\w+\]",
}
FRAGILE_TEX = {
    r"\label or \ref": r"\\(label|ref|eqref)\b",
    "a macro": r"\\(newcommand|renewcommand|def|DeclareMathOperator)\b",
    "a command that GitHub refuses": r"\\(operatorname|mbox|phantom)\b",
    "an environment that numbers itself": (
        r"\\begin\{(align|equation|gather|multline|eqnarray)\*?\}"
    ),
    r"\[ or \( as delimiters": r"(?<!\\)\\[\[(](?![\d.]*(em|pt|ex)\])",
}
INSTALL = (
    "try:\n    import aevb\nexcept ModuleNotFoundError:\n"
    '    %pip install -q --no-deps "{}"\n    import aevb\n'
)
ROOMS = {
    "objectives": r"\bobjectives?\b",
    "prerequisites": r"\bprerequisites?\b",
    "time and cost": r"\btime\b",
}
SECTIONS = {
    "pitfalls": r"\bpitfalls?\b",
    "take-aways": r"\btake-?aways?\b",
    "exercises": r"\bexercises?\b",
    "references": r"\breferences\b",
}
MODEL_CHAPTERS = range(6, 11)
AMERICAN = re.compile(
    r"\b(\w*(?:maxim|minim|optim|factor|normal|regular|marginal|amort|general|initial|"
    r"summar|real|parametr|parameter|visual|recogn|emphas|quant|binar|special|penal|"
    r"util|organ|central|equal)iz(?:e[drs]?|ing|ation|ations)|analyz(?:e[drs]?|ing)|"
    r"(?:neighb|col|behavi|fav|flav|lab|hon)or(?:s|ed|ing|hood|al|ful|less)?|"
    r"centers?|centered|gray|modeling|modeled|labeled|labeling)\b"
)


@dataclass
class Chapter:
    """A notebook, and the book that it stands in."""

    path: Path
    root: Path

    @cached_property
    def notebook(self) -> nbformat.NotebookNode:
        return nbformat.read(self.path, as_version=4)

    @property
    def number(self) -> int:
        return c.chapter_of(self.path)

    @property
    def markdown(self) -> list[tuple[int, Any]]:
        return [
            x for x in enumerate(self.notebook.cells) if x[1].cell_type == "markdown"
        ]

    @property
    def code(self) -> list[tuple[int, Any]]:
        return [x for x in enumerate(self.notebook.cells) if x[1].cell_type == "code"]

    @cached_property
    def definitions(self) -> list[c.Definition]:
        return [d for i, x in self.markdown for d in c.definitions(x.source, i)]

    @cached_property
    def text(self) -> str:
        return "\n\n".join(x.source for _, x in self.markdown)


def is_figure(cell: Any) -> bool:
    return any(
        kind.startswith("image/")
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    )


Rule = Callable[[Chapter], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


# --- the file -----------------------------------------------------------------


@rule
def valid(chapter: Chapter) -> Iterator[str]:
    """A notebook that every program reads, under a name that says where it stands."""
    try:
        nbformat.validate(chapter.notebook)
    except nbformat.ValidationError as problem:
        yield f"not a valid notebook: {problem.message}"
    if not c.CHAPTER_FILE.fullmatch(chapter.path.stem):
        yield "the file's name is two digits, a hyphen and small words: 07-some-words"
    ids = [x.get("id") for x in chapter.notebook.cells]
    if len(set(ids)) != len(ids):
        yield "two cells have the same id"


@rule
def metadata(chapter: Chapter) -> Iterator[str]:
    """Nothing in the metadata that belongs to one machine."""
    meta = chapter.notebook.metadata
    for key in sorted(set(meta) - METADATA):
        yield f"the notebook's metadata has {key!r}; leave it out"
    if meta.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel's name is not python3"
    if meta.get("language_info") != {"name": "python"}:
        yield 'language_info is not {"name": "python"}'
    for i, cell in enumerate(chapter.notebook.cells):
        for tag in sorted(set(tags(cell)) - TAGS):
            yield f"cell {i}: unknown tag {tag!r}; there are {', '.join(sorted(TAGS))}"
        for key in ("execution", "collapsed", "ExecuteTime", "vscode", "scrolled"):
            if key in cell.metadata:
                yield f"cell {i}: its metadata has {key!r}; leave it out"


@rule
def size(chapter: Chapter) -> Iterator[str]:
    """At most 1.5 MB in all, 300 kB a figure, so that every viewer shows it."""
    weight = chapter.path.stat().st_size
    if weight > 1.5e6:
        yield f"the notebook has {weight / 1e6:.2f} MB; at most 1.5"
    for i, cell in chapter.code:
        for output in cell.outputs:
            for kind, data in output.get("data", {}).items():
                if kind.startswith("image/") and len(data) * 3 / 4 > 300_000:
                    kilobytes = len(data) * 3 // 4000
                    yield f"cell {i}: a figure of {kilobytes} kB; at most 300"


@rule
def colab(chapter: Chapter) -> Iterator[str]:
    """First the badge; the first code cell installs the package on Colab."""
    home = repository.home(chapter.root)
    first = chapter.notebook.cells[0]
    if home.colab(chapter.path.name) not in first.source:
        yield f"cell 0 does not link to {home.colab(chapter.path.name)}"
    if "remove-cell" not in tags(first):
        yield "cell 0, the badge, lacks the tag remove-cell"
    i, setup = chapter.code[0]
    if not setup.source.startswith(INSTALL.format(home.package)):
        yield f"cell {i}, the setup cell, lacks the lines that install {home.package}"
    if not {"setup", "hide-input"} <= set(tags(setup)):
        yield f"cell {i}, the setup cell, lacks the tags setup and hide-input"
    yield from hidden(i, setup)


@rule
def accelerator(chapter: Chapter) -> Iterator[str]:
    """A GPU is asked for where a chapter trains on MNIST, and nowhere else."""
    code = "\n".join(c.bare_code(cell.source) for _, cell in chapter.code)
    trains = all(re.search(rf"(?<![.\w]){x}\(", code) for x in ("images", "fit"))
    meta = chapter.notebook.metadata
    asks = meta.get("accelerator"), meta.get("colab", {}).get("gpuType")
    if trains and asks != ("GPU", "T4"):
        yield 'it trains on MNIST; accelerator is not "GPU", or colab.gpuType not "T4"'
    elif not trains and asks != (None, None):
        yield "it trains nothing on MNIST; leave out accelerator and colab.gpuType"


@rule
def device(chapter: Chapter) -> Iterator[str]:
    """A chapter that trains has its models where its own tensors are: on the CPU."""
    code = "\n".join(c.bare_code(cell.source) for _, cell in chapter.code)
    placed = r'device="cpu"|"device": "cpu"|\.cpu\(\)'
    if re.search(r"(?<![.\w])fit\(", code) and not re.search(placed, code):
        yield (
            "it trains, and where there is a GPU its models stay there; expected"
            ' setup(seed=0, device="cpu"), or .cpu() after fit'
        )


def hidden(i: int, cell: Any) -> Iterator[str]:
    """Hidden on the site, in JupyterLab and on Colab alike."""
    meta = cell.metadata
    if meta.get("cellView") != "form":
        yield f"cell {i}: its metadata lacks cellView: form (Colab)"
    if not meta.get("jupyter", {}).get("source_hidden"):
        yield f"cell {i}: its metadata lacks jupyter.source_hidden: true (JupyterLab)"
    prompts = meta.get("mystnb", {})
    if not (prompts.get("code_prompt_show") and prompts.get("code_prompt_hide")):
        yield f"cell {i}: its metadata lacks mystnb.code_prompt_show and _hide"


# --- the text -----------------------------------------------------------------


@rule
def plain_markdown(chapter: Chapter) -> Iterator[str]:
    """Only Markdown that reads the same on Colab, GitHub, JupyterLab and the site."""
    for i, cell in chapter.markdown:
        raw = cell.source
        text = c.without_code(raw)
        for what, rx in MYST.items():
            where = raw if what in ("a directive", "a role") else text
            if re.search(rx, where, re.M):
                yield f"cell {i}: {what}, which Colab and GitHub print as it is"
        for what, rx in FRAGILE_TEX.items():
            if m := re.search(rx, text):
                yield f"cell {i}: {what} ({m[0]})"
        for row in re.findall(r"^\|.*\|\s*$", text, re.M):
            if r"\|" in row:
                yield f"cell {i}: write \\Vert or \\mid inside a table"
        for line in re.findall(r"^ *>.*$", text, re.M):
            if line.count("$$") % 2:
                yield f"cell {i}: inside a quote a display stands on one line"
        if re.search(r"</summary>(?!\n\n)", text):
            yield f"cell {i}: a blank line is missing after </summary>"
        if text.count("<details>") != text.count("</details>"):
            yield f"cell {i}: <details> without its </details>"
        if re.search(r"[^\n]\n</details>", text):
            yield f"cell {i}: a blank line is missing before </details>"
        if text.count("$$") % 2:
            yield f"cell {i}: $$ without its partner"
        for start, end in c.displays(raw):
            begin = repr(raw[start : start + 40])
            if raw[raw.rfind("\n", 0, start) + 1 : start].lstrip(" >"):
                yield f"cell {i}: a display begins its own line: {begin}"
            elif before_display(raw, start):
                yield f"cell {i}: no blank line above the display {begin}"
            after = raw[end:].split("\n", 2)
            if after[0].strip(" .,") or (len(after) > 1 and after[1].strip(" >")):
                yield f"cell {i}: no blank line below the display {begin}"


def before_display(text: str, start: int) -> bool:
    """Whether a display, with the comment above it, follows text without a break."""
    above = text[:start].split("\n")[:-1]
    if above and c.NAME_COMMENT.fullmatch(above[-1].lstrip(" >").rstrip()):
        above.pop()
    return bool(above) and bool(above[-1].strip(" >"))


@rule
def names(chapter: Chapter) -> Iterator[str]:
    """Every numbered equation has a permanent name, known once in the whole book."""
    for d in chapter.definitions:
        if d.kind == "Equation" and not d.name:
            yield (
                f"cell {d.cell}: equation ({d.number}) has no name: put "
                "<!-- eq-some-name --> on the line above its $$"
            )
        if d.name and d.kind not in c.PREFIXES[d.name.partition("-")[0]]:
            yield f"cell {d.cell}: {d.name} is the name of no {d.kind.lower()}"
    used = {d.name for d in chapter.definitions}
    for i, cell in chapter.markdown:
        text = c.without_code(cell.source)
        for comment in re.findall(r"<!--.*?-->", text, re.S):
            m = c.NAME_COMMENT.fullmatch(comment)
            if not m:
                yield f"cell {i}: a comment that is no name: {comment}"
            elif m[1] not in used:
                yield f"cell {i}: {m[1]} names nothing: it stands on the line above"
    own = [d.name for d in chapter.definitions if d.name]
    for name in sorted({n for n in own if own.count(n) > 1}):
        yield f"the name {name} is given twice"
    for other in siblings(chapter):
        for name in sorted(set(own) & {d.name for d in other.definitions}):
            yield f"the name {name} is also given in {other.path.name}"


def siblings(chapter: Chapter) -> list[Chapter]:
    return [
        Chapter(p, chapter.root) for p in c.chapters(chapter.root) if p != chapter.path
    ]


@rule
def numbers(chapter: Chapter) -> Iterator[str]:
    """Everything is numbered in the order of the text."""
    title = c.CHAPTER_TITLE.search(chapter.text)
    if not title or title["num"] != str(chapter.number):
        yield f"the title is not '# {chapter.number}. Some words'"
    for family in sorted(set(c.FAMILIES.values())):
        got = [d.number or "?" for d in chapter.definitions if d.family == family]
        want = [f"{chapter.number}.{k + 1}" for k in range(len(got))]
        if got != want:
            yield f"{family} numbers are {', '.join(got)}: run `make renumber`"


@rule
def mentions(chapter: Chapter) -> Iterator[str]:
    """Whatever is mentioned is defined, in this chapter or in another one."""
    everyone = [chapter, *siblings(chapter)]
    kinds = {(d.family, d.number): d.kind for x in everyone for d in x.definitions}
    existing = {str(x.number) for x in everyone}
    for i, cell in enumerate(chapter.notebook.cells):
        for m in c.mentions(mentionable(cell)):
            if m.kind == "name":
                yield f"cell {i}: ({m.number}) is still a name: run `make renumber`"
            elif m.kind == "Chapter":
                if m.number not in existing:
                    yield f"cell {i}: there is no Chapter {m.number}"
            elif (found := kinds.get((c.FAMILIES[m.kind], m.number))) is None:
                here = m.number.partition(".")[0] in existing
                if here or (m.strict and m.kind != "Section"):  # of another book
                    yield f"cell {i}: {m.kind} {m.number} is mentioned and not defined"
            elif found != m.kind:
                yield f"cell {i}: {m.kind} {m.number} is mentioned; it is a {found}"


@rule
def no_numbers_in_code(chapter: Chapter) -> Iterator[str]:
    """`make renumber` follows a mention in a comment, and none in a string."""
    for i, cell in chapter.code:
        for m in c.mentions(c.bare_code(cell.source)):
            if m.strict and m.kind not in ("name", "Chapter"):
                yield f"cell {i}: {m.kind} {m.number} is mentioned in a string"


def mentionable(cell: Any) -> str:
    """The running text of a cell, less the numbers that define something."""
    if cell.cell_type == "markdown":
        plain = list(c.masked(cell.source))
        for d in c.definitions(cell.source):
            plain[d.start : d.end] = "\0" * (d.end - d.start)
        return "".join(plain)
    return " ".join(cell.source[a:b] for a, b in c.comments(cell.source))


@rule
def every_equation_is_used(chapter: Chapter) -> Iterator[str]:
    """Only what is mentioned or implemented has a number."""
    mentioned = {
        m.number
        for x in [chapter, *siblings(chapter)]
        for cell in x.notebook.cells
        for m in c.mentions(mentionable(cell))
        if m.kind == "Equation"
    }
    for page in c.pages(chapter.root):
        text = c.masked(page.read_text(encoding="utf-8"))
        mentioned |= {m.number for m in c.mentions(text) if m.kind == "Equation"}
    sources = [
        *(chapter.root / "aevb").rglob("*.py"),
        *(chapter.root / "tests").rglob("*.py"),
    ]
    code = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    for d in chapter.definitions:
        if d.kind != "Equation" or d.number in mentioned:
            continue
        if d.name and (d.name in code or d.name.replace("-", "_") in code):
            continue
        yield f"cell {d.cell}: equation ({d.number}) {d.name} is mentioned nowhere"


@rule
def links(chapter: Chapter) -> Iterator[str]:
    """Links lead to what exists; citations to an entry of the bibliography."""
    known = set(references.entries(chapter.root))
    for i, cell in chapter.markdown:
        text = c.without_code(cell.source)
        for target in re.findall(r"\]\(([^()\s]+)\)", text):
            file, _, fragment = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            if not file:
                yield f"cell {i}: #{fragment} leads nowhere outside the site"
            elif file == "references.md":
                if fragment not in known:
                    yield f"cell {i}: references.bib has no entry {fragment!r}"
            elif not (chapter.path.parent / file).exists():
                yield f"cell {i}: there is no {file}"


@rule
def rooms(chapter: Chapter) -> Iterator[str]:
    """The parts that every chapter has, so that readers know where they are."""
    start = "\n\n".join(x.source for i, x in chapter.markdown if i < 8).lower()
    for what, rx in ROOMS.items():
        if not re.search(rx, start):
            yield f"the first cells do not say the {what}"
    headings = [
        h.lower() for h in re.findall(r"^##+ (.*)$", c.without_code(chapter.text), re.M)
    ]
    for what, rx in SECTIONS.items():
        if not any(re.search(rx, h) for h in headings):
            yield f"there is no section for {what}"
    if chapter.number in MODEL_CHAPTERS and not any(
        re.search(r"\bwhat (has )?(changed|changes)|\bwhat is new\b", h)
        for h in headings
    ):
        yield "there is no section 'What changed since the last model'"


@rule
def exercises(chapter: Chapter) -> Iterator[str]:
    """Every exercise has a worked solution, in words or in a hidden cell."""
    found = c.exercises(chapter.notebook.cells)
    for exercise in found:
        if exercise.solution is None and not exercise.written:
            yield f"Exercise {exercise.number} has no solution"
    if not found:
        yield "there is no exercise"
    for i, cell in enumerate(chapter.notebook.cells):
        if c.SOLUTION.match(cell.source):
            if not {"hide-cell", "solution"} <= set(tags(cell)):
                yield f"cell {i}: the solution lacks the tags hide-cell and solution"
            yield from hidden(i, cell)
        elif "solution" in tags(cell):
            yield f"cell {i}: its first line is not '# @title Solution of Exercise N.M'"
        if "exercise" in tags(cell) and "your code here" not in cell.source:
            yield f'cell {i}: a stub raises NotImplementedError("your code here")'
    for i, cell in chapter.markdown:
        for summary, _, _ in c.details(cell.source):
            if not summary.startswith(c.HELP + c.ANSWERS):
                yield (
                    f"cell {i}: <summary>{summary}</summary> begins with none of "
                    f"{', '.join(c.HELP)} (which students see), "
                    f"{', '.join(c.ANSWERS)} (which they do not)"
                )


@rule
def checked(chapter: Chapter) -> Iterator[str]:
    """An exercise in code has a stub, a check, and a solution that passes it."""
    cells = chapter.notebook.cells
    for exercise in c.exercises(cells):
        where = f"Exercise {exercise.number}"
        if not exercise.in_code:
            continue
        if exercise.stub is None:
            yield f"{where} has no stub, a cell with the tag exercise"
        elif exercise.solution is None or exercise.solution < exercise.stub:
            yield f"{where} has no solution in code below its stub"
        elif not any(c.CHECKS.search(cells[i].source) for i in exercise.checks):
            yield f"{where} has no check, a cell below the stub: check_...(...)"
        elif not re.search(r"^assert check_", cells[exercise.solution].source, re.M):
            yield f"{where}: its solution does not assert that it passes the check"


@rule
def labelled(chapter: Chapter) -> Iterator[str]:
    """An exercise says how hard it is, and whether it is in code and checked."""
    cells = chapter.notebook.cells
    for exercise in c.exercises(cells):
        stub = cells[exercise.stub].source if exercise.stub is not None else ""
        code = ", code" if re.search(r"^(def|class) ", stub, re.M) else ""
        checked = ", checked" if exercise.checks else ""
        if not re.fullmatch(rf"★{{1,3}}{code}{checked}\.", exercise.label):
            yield (
                f"Exercise {exercise.number}: its label is ({exercise.label}), not "
                f"(★{code}{checked}.) with one star, two or three"
            )


@rule
def proportions(chapter: Chapter) -> Iterator[str]:
    """Short cells, and 15 words of prose for each line of code that stands open.

    The checks of exercises are there to be run.
    """
    cells = chapter.notebook.cells
    lengths = {
        i: len([x for x in cell.source.splitlines() if x.strip()])
        for i, cell in chapter.code
    }
    for i, n in lengths.items():
        if n > 40:
            yield f"cell {i} has {n} lines; at most 40"
    for exercise in c.exercises(cells):
        for i in exercise.checks:
            del lengths[i]
    median = statistics.median(lengths.values())
    if median > 8:
        yield f"the median cell has {median:g} lines; at most 8"
    folded = {"hide-input", "hide-cell"}
    lines = sum(n for i, n in lengths.items() if folded.isdisjoint(tags(cells[i])))
    words = count_words(chapter)
    if words < 15 * lines:
        yield f"{words} words for {lines} open lines of code; at least {15 * lines}"


def count_words(chapter: Chapter) -> int:
    """Words of prose; a formula counts as one."""
    text = c.without_code(chapter.text).replace("\0", " ")
    text = re.sub(r"(?s)<!--.*?-->|<[^<>\n]*>", " ", text)
    text = re.sub(r"(?s)\$\$.*?\$\$|\$[^$\n]*\$", " formula ", text)
    text = re.sub(r"\]\([^()\s]*\)", " ", text)
    return len(re.findall(r"[^\W_][\w'’-]*", text))


@rule
def spelling(chapter: Chapter) -> Iterator[str]:
    """British spelling, in what readers read; titles of works keep their own."""
    for i, cell in chapter.markdown:
        text = c.masked(cell.source, reasons=False)
        text = re.sub(r"\*[^*\n]+\*|\[[^\]\n]*\]", " ", text)
        for m in AMERICAN.finditer(text):
            yield f"cell {i}: {m[0]!r} is American; the book spells the British way"
        for m in re.finditer(r"\b(TODO|FIXME|XXX)\b", text):
            yield f"cell {i}: {m[0]}"


# --- the outputs --------------------------------------------------------------


@rule
def outputs(chapter: Chapter) -> Iterator[str]:
    """All cells ran, in order, once, and what they show is fit to be stored."""
    counts = [cell.execution_count for _, cell in chapter.code]
    if counts != list(range(1, len(counts) + 1)):
        yield "not all cells ran in order: run `make notebooks`"
    for i, cell in enumerate(chapter.notebook.cells):
        shown = json.dumps([cell.source, cell.get("outputs", [])])
        if m := re.search(
            r"(?<![\w.~:/])/(home|tmp|root|work|content|Users)/[\w./-]*", shown
        ):
            yield f"cell {i}: a path of one machine, {m[0]}"
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield (
                    f"cell {i}: an error; show an intended one with "
                    "try: ... except ...: print(...)"
                )
            if output.get("name") == "stderr":
                yield f"cell {i}: stderr is stored: run `make notebooks`"
            if "widget-view" in json.dumps(output):
                yield f"cell {i}: a widget, which the site cannot show"


@rule
def figures(chapter: Chapter) -> Iterator[str]:
    """Every figure has an alternative text and, in the next cell, a caption."""
    cells = chapter.notebook.cells
    for i, cell in chapter.code:
        if not is_figure(cell):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if len(alt) <= 40:
            yield f"cell {i}: mystnb.image.alt does not say what the figure shows"
        after = cells[i + 1] if i + 1 < len(cells) else None
        captioned = (
            after is not None
            and after.cell_type == "markdown"
            and any(
                d.kind == "Figure" and d.start < 200
                for d in c.definitions(after.source)
            )
        )
        if not captioned and "solution" not in tags(cell):
            yield f"cell {i}: the next cell is not its caption, **Figure N.M.** ..."


@rule
def shown_source_is_checked(chapter: Chapter) -> Iterator[str]:
    """A cell that shows code of the package is compared with it by the tests."""
    for i, cell in chapter.code:
        shows = re.search(r"^source\(", c.bare_code(cell.source), re.M)
        if shows and "nbval-check-output" not in tags(cell):
            yield f"cell {i}: a cell that calls source() has the tag nbval-check-output"


@rule
def stamp(chapter: Chapter) -> Iterator[str]:
    """The stored outputs belong to the code beside them, and were made with MNIST."""
    stamp = chapter.notebook.metadata.get("aevb")
    again = f"run `make notebooks CHAPTER={chapter.path.stem[:2]}`"
    if not stamp:
        yield f"no stamp: {again}"
        return
    if stamp.get("code_sha256") != stamps.notebook_sha256(chapter.notebook):
        yield f"the code changed since the outputs were stored: {again}"
    if stamps.is_fallback(stamp.get("dataset")):
        yield f"the outputs come from {stamp['dataset']}, not from MNIST: {again}"


# --- the book -----------------------------------------------------------------


def toc_entries(root: Path) -> list[str]:
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    listed = [x["file"] for part in toc["parts"] for x in part["chapters"]]
    return [toc["root"], *listed]


def book_complaints(root: Path = c.ROOT) -> Iterator[str]:
    """What concerns no single chapter."""
    listed = toc_entries(root)
    there = [p.stem for p in c.chapters(root)]
    for stem in there:
        if stem not in listed:
            yield f"_toc.yml does not list {stem}"
    for stem in [x for x in listed if c.CHAPTER_FILE.fullmatch(x)]:
        if stem not in there:
            yield f"_toc.yml lists {stem}, which does not exist"
    if [x for x in listed if x in there] != [x for x in there if x in listed]:
        yield "_toc.yml lists the chapters in another order"
    for path in sorted((root / "book").glob("*.md")):
        if path.stem not in listed:
            yield f"_toc.yml does not list {path.stem}"
    known = set(references.entries(root))
    for key, _, path in references.cited(root):
        if key not in known:
            yield f"{path.name} cites {key!r}, which references.bib does not have"
    if (root / "book" / "references.md").read_text(encoding="utf-8") != references.page(
        root
    ):
        yield "book/references.md is not what references.bib gives: run `make renumber`"
    made = root / "book" / "results.md"
    if made.exists() and made.read_text(encoding="utf-8") != results.page(root):
        yield "book/results.md is not what the files give: run `make renumber`"
    yield from speed.complaints(root)
    yield from teaching.complaints(root)
    yield from pictures.complaints(root)
    yield from repository.disagreements(root)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers; all without")
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    complaints = 0
    for path in c.chapters(options.root):
        if options.chapters and path.stem[:2] not in options.chapters:
            continue
        for name, check in RULES.items():
            for complaint in check(Chapter(path, options.root)):
                complaints += 1
                print(f"{path.name}: {complaint}  [{name}]")
    if not options.chapters:
        for complaint in book_complaints(options.root):
            complaints += 1
            print(complaint)
    print("no complaints" if complaints == 0 else f"{complaints} complaints")
    return int(complaints > 0)


if __name__ == "__main__":
    raise SystemExit(main())
