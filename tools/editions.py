"""Two editions of the chapters for a class, made from the same notebooks.

    python -m tools.editions     # make editions

The student edition leaves the solutions out: below an exercise stand the stub and the
check, or a place to write.  Hints stay.  The instructor edition shows every solution.
Each is a folder of notebooks that need nothing beside them, and an archive of that
folder.  Nothing is run, and the same sources always give the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat

from tools import conventions as c
from tools import repository

BRANCH = "student"  # the workflow `publish` keeps the student edition there
WRITE = "*Write your answer here.*"

Edition = Callable[[nbformat.NotebookNode, repository.Home], nbformat.NotebookNode]


def student(
    notebook: nbformat.NotebookNode, home: repository.Home
) -> nbformat.NotebookNode:
    """Without the solutions; Colab opens it from a branch of its own."""
    notebook = copy.deepcopy(notebook)
    for exercise in c.exercises(notebook.cells):
        for i in {exercise.stub, *exercise.checks} - {None}:
            notebook.cells[i].update(outputs=[], execution_count=None)
    notebook.cells = [x for x in notebook.cells if "solution" not in c.tags(x)]
    there = replace(home, branch=BRANCH)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_answers(cell.source, lambda _: WRITE)
            cell.source = cell.source.replace(home.colab(""), there.colab(""))
    return finished(
        notebook,
        home,
        "*Student edition.* Write your code where a cell asks for it, and your answers"
        " where there is a place for them. The cell below your code checks it.",
    )


def instructor(
    notebook: nbformat.NotebookNode, home: repository.Home
) -> nbformat.NotebookNode:
    """With every solution in plain sight."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_answers(cell.source, opened)
        elif "solution" in c.tags(cell):
            cell.metadata.tags = [x for x in c.tags(cell) if x != "hide-cell"]
            show(cell)
    return finished(
        notebook, home, "*Instructor edition*, with the solutions of all exercises."
    )


EDITIONS: dict[str, Edition] = {"student": student, "instructor": instructor}


def with_answers(text: str, new: Callable[[str], str]) -> str:
    """The Markdown with another text in the place of each answer."""
    for _, start, end in reversed(c.answers(text)):
        text = text[:start] + new(text[start:end]) + text[end:]
    return text


def opened(details: str) -> str:
    return details.replace("<details>", "<details open>", 1)


def show(cell: nbformat.NotebookNode) -> None:
    """No longer hidden on Colab and in JupyterLab; alternative texts stay."""
    cell.metadata.pop("cellView", None)
    cell.metadata.pop("jupyter", None)
    prompts = cell.metadata.pop("mystnb", {})
    kept = {k: v for k, v in prompts.items() if not k.startswith("code_prompt")}
    if kept:
        cell.metadata["mystnb"] = kept


def finished(
    notebook: nbformat.NotebookNode, home: repository.Home, note: str
) -> nbformat.NotebookNode:
    """With its note below the badge, links to the site's pages, and no stamp."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, home)
    notebook.cells[0].source += f"\n\n{note} The book: <{home.site}>."
    notebook.metadata.pop("aevb", None)  # it speaks of the code as it was
    nbformat.validate(notebook)
    return notebook


def linked(text: str, home: repository.Home) -> str:
    """The pages of the book are not beside an edition's chapters: link to the site."""
    plain = c.without_code(text)
    for m in reversed([*re.finditer(r"\]\(([\w-]+)\.md(?=[#)])", plain)]):
        start, end = m.start(1), m.end()
        text = f"{text[:start]}{home.site}{m[1]}.html{text[end:]}"
    return text


def make(output: Path, root: Path = c.ROOT) -> list[Path]:
    """Write the editions and their archives anew; the folders and the archives."""
    home, made = repository.home(root), []
    for name, edition in EDITIONS.items():
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in c.chapters(root):
            notebook = edition(nbformat.read(path, as_version=4), home)
            text = nbformat.writes(notebook) + "\n"
            (folder / path.name).write_text(text, encoding="utf-8")
        made += [folder, archive(folder)]
    return made


def archive(folder: Path) -> Path:
    """The folder as a zip file beside it, the same bytes at any time."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.name}")  # of 1980
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=c.ROOT / "_build" / "editions")
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for path in make(options.output, options.root):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
