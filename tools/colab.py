"""Run chapters as on Colab: each alone in an empty folder, in fast mode.

    python -m tools.colab           # all of them
    python -m tools.colab 02 07

In a Python that has what the package needs, but not the package: as on Colab, the
setup cell of each chapter installs it, and is run twice to show that a second time does
no harm and says nothing new.  What was installed is removed after each chapter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

from tools import conventions as c
from tools import stamps
from tools.run_notebooks import Refused, chosen, execute


def pip(*arguments: str) -> int:
    """Call pip from elsewhere, so that it does not take this folder for installed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tempfile.gettempdir(), env=env, capture_output=True
    )
    return done.returncode


def shown(cell: Any, name: str = "") -> str:
    """What a cell printed, or what it printed to the stream of that name."""
    outputs = [o for o in cell.outputs if not name or o.get("name") == name]
    return "".join(o.get("text", f"[{o.output_type}]\n") for o in outputs)


def run(path: Path) -> str:
    """Run one chapter alone; a sentence on how that went."""
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    k = next(i for i, x in enumerate(cells) if x.cell_type == "code")
    setup, again = cells[k], new_code_cell(cells[k].source)
    last = new_code_cell("print(aevb.__file__)")
    notebook.cells = [*cells[: k + 1], again, *cells[k + 1 :], last]
    stamp = notebook.metadata.get("aevb", {})
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, folder))
        report, seconds = execute(copy, notebook, fast=True, alone=True)
    line = shown(again)
    if line.count("\n") != 1 or not shown(setup, "stdout").endswith(line):
        raise Refused(f"its setup cell says, when it is run again: {line!r}")
    place = Path(shown(last).strip()).parent
    different = stamps.differences(stamp.get("fingerprint", {}), report["numbers"])
    numbers = "; ".join(different) or "the numbers are those stored"
    return f"{seconds:.0f} s with {place}; {numbers}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers or names; all without")
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if pip("show", "aevb") == 0:
        parser.error(f"{sys.executable} has aevb already, which Colab has not")
    failed = 0
    for path in chosen(options.chapters, options.root):
        try:
            print(f"{path.name}: {run(path)}", flush=True)
        except (CellExecutionError, Refused) as problem:
            failed += 1
            print(f"{path.name} fails. {problem}", file=sys.stderr, flush=True)
        finally:
            pip("uninstall", "-y", "aevb")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
