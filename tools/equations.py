"""Equations, the code that implements them, and the tests that hold them together.

An equation's permanent name, ``eq-some-name``, stands above it in a chapter, in the
docstring of what implements it, and in the name of its test, ``test_eq_some_name``.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tools import conventions as c

EQUATION = re.compile(r"\beq-[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass
class Equation:
    name: str
    number: str = ""  # "" where no chapter defines it
    code: list[str] = field(default_factory=list)  # full names, aevb.em.e_step
    tests: list[str] = field(default_factory=list)  # file::test


def numbers(root: Path) -> dict[str, str]:
    """Names and numbers of the equations, in the order of the book."""
    found = {}
    for path in c.chapters(root):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                for d in c.definitions("".join(cell["source"])):
                    if d.kind == "Equation" and d.name:
                        found[d.name] = d.number
    return found


def implementations(root: Path) -> dict[str, list[str]]:
    """Which functions, classes and methods name an equation in their docstring."""
    found: dict[str, list[str]] = defaultdict(list)

    def visit(node: ast.AST, place: str) -> None:
        for name in dict.fromkeys(EQUATION.findall(ast.get_docstring(node) or "")):
            found[name].append(place)
        for child in getattr(node, "body", []):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                visit(child, f"{place}.{child.name}")

    for path in sorted((root / "aevb").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        visit(ast.parse(path.read_text(encoding="utf-8")), module)
    return found


def tests(root: Path) -> dict[str, list[str]]:
    """The tests of each equation, by the names that they carry."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "tests" / "equations").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_eq_"):
                name = node.name.removeprefix("test_").replace("_", "-")
                found[name].append(f"{path.relative_to(root).as_posix()}::{node.name}")
    return found


def table(root: Path = c.ROOT) -> list[Equation]:
    """Every equation that has a name somewhere, in the order of the book."""
    order, code, checks = numbers(root), implementations(root), tests(root)
    # A test may say more than the equation's name: test_eq_elbo_for_one_sample.
    by_name: dict[str, list[str]] = defaultdict(list)
    for name, places in checks.items():
        known = [n for n in order if name == n or name.startswith(f"{n}-")]
        by_name[max(known, key=len, default=name)] += places
    names = dict.fromkeys([*order, *sorted({*code, *by_name})])
    return [Equation(n, order.get(n, ""), code[n], by_name[n]) for n in names]


def short(name: str) -> str:
    """A method with its class, anything else by its last word."""
    *_, owner, last = name.split(".")
    return f"{owner}.{last}" if owner[:1].isupper() else last


def markdown(root: Path = c.ROOT) -> str:
    """The table of the page "Equations, code and tests"."""
    lines = ["| equation | name | code | test |", "|---|---|---|---|"]
    for e in table(root):
        if e.number and (e.code or e.tests):
            code = ", ".join(f"{{py:obj}}`{short(x)} <{x}>`" for x in e.code)
            checks = ", ".join(f"`{x.partition('::')[2]}`" for x in e.tests)
            lines.append(f"| ({e.number}) | `{e.name}` | {code} | {checks} |")
    return "\n".join(lines)


def complaints(root: Path = c.ROOT) -> list[str]:
    """Names that lead nowhere, and code without a test."""
    found = []
    for e in table(root):
        places = ", ".join([*e.code, *e.tests])
        if not e.number:
            found.append(f"{places}: no chapter has an equation {e.name}")
        elif e.code and not e.tests:
            test = "test_" + e.name.replace("-", "_")
            found.append(f"{places}: ({e.number}) {e.name} has no test {test}")
    return found
