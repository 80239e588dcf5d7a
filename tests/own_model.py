"""The classes of chapter 13, executed out of its notebook: no second copy."""

from __future__ import annotations

import ast
from functools import cache
from types import SimpleNamespace

import nbformat

from tools import conventions as c

PATH = c.ROOT / "book" / "13-a-model-of-your-own.ipynb"


@cache
def cells() -> dict[str, str]:
    """Each class outside of the exercises, and its cell."""
    found = {}
    for cell in nbformat.read(PATH, as_version=4).cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type != "code" or tags & {"setup", "exercise", "solution"}:
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = cell.source
    return found


def lines(*names: str) -> int:
    """Lines of code in the cells of these classes; no blanks, comments, docstrings."""
    total = 0
    for source in dict.fromkeys(cells()[name] for name in names):
        kept = c.bare_code(source).count("\n") + 1
        kept -= sum(
            len(docstring.splitlines())
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            if (docstring := ast.get_docstring(node))
        )
        total += kept
    return total


@cache
def namespace() -> SimpleNamespace:
    """What the cells define, on top of what the setup cell imports."""
    notebook = nbformat.read(PATH, as_version=4)
    setup = next(x for x in notebook.cells if "setup" in x.metadata.get("tags", []))
    imports = setup.source.split("    import aevb\n")[-1].replace("setup(seed=0)", "")
    names: dict = {}
    for source in dict.fromkeys([imports, *cells().values()]):
        exec(compile(source, str(PATH), "exec"), names)
    return SimpleNamespace(**names)
