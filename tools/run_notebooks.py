"""Run the chapters at full speed; store their outputs and stamps.

    python -m tools.run_notebooks             # make notebooks
    python -m tools.run_notebooks 02 07       # make notebooks CHAPTER="02 07"

Each chapter runs twice: in fast mode on the CPU, for its fingerprint, and then as a
reader runs it, for its outputs.  Progress bars, warnings, timings and widgets are not
stored.  A chapter that fails, or that fell back to the bundled digits because MNIST
was not there, keeps the outputs that it had.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools import conventions as c
from tools import stamps


class Refused(Exception):
    """The outputs must not be stored."""


def environment(reports: Path, *, fast: bool, alone: bool = False) -> dict[str, str]:
    """The environment of the kernel; `alone`, without this repository and MNIST."""
    hidden = {"AEVB_FAST", "MPLBACKEND"}
    if alone:
        hidden |= {"PYTHONPATH", "AEVB_DATA"}
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    env["AEVB_REPORT_DIR"] = str(reports)
    if not alone:
        env["PYTHONPATH"] = os.pathsep.join(
            [str(c.ROOT), *filter(None, [env.get("PYTHONPATH")])]
        )
    # Threads that wait spin for a moment only: for longer, on a busy machine, costs a
    # factor of ten; not at all, on a quiet one, a third of the speed.
    env.setdefault("GOMP_SPINCOUNT", "10000")
    if "AEVB_DATA" in env:  # relative to where the command was given
        env["AEVB_DATA"] = str(Path(env["AEVB_DATA"]).expanduser().resolve())
    if fast:
        env |= {"AEVB_FAST": "1", "AEVB_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return env


def execute(
    path: Path, notebook: nbformat.NotebookNode, *, fast: bool, alone: bool = False
) -> tuple[dict[str, Any], float]:
    """Run a notebook in place; what it reports, and the seconds it took."""
    with tempfile.TemporaryDirectory() as reports:
        env = environment(Path(reports), fast=fast, alone=alone)
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=None,
            record_timing=False,  # else every run changes the metadata of every cell
            coalesce_streams=True,  # one output for the prints of a loop
            resources={"metadata": {"path": str(path.parent)}},
        )
        start = time.perf_counter()
        client.execute(env=env)
        seconds = time.perf_counter() - start
        report = Path(reports) / f"{path.stem}.json"
        if not report.exists():
            raise Refused(
                f"{path.name} reports no numbers: its last code cell must call "
                f'fingerprint("{path.stem}", ...)'
            )
        return json.loads(report.read_text(encoding="utf-8")), seconds


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep the outputs that a reader should see, and nothing of the machine."""
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]


def run(path: Path, *, allow_fallback: bool = False) -> None:
    """Run one chapter and store it."""
    trial = nbformat.read(path, as_version=4)
    fast, _ = execute(path, trial, fast=True)
    notebook = nbformat.read(path, as_version=4)
    full, seconds = execute(path, notebook, fast=False)
    if stamps.is_fallback(full.get("dataset")) and not allow_fallback:
        raise Refused(
            f"{path.name} trained on {full['dataset']}: put MNIST where AEVB_DATA says "
            "(or let it be downloaded), or pass --allow-fallback"
        )
    tidy(notebook)
    notebook.metadata["aevb"] = {
        "code_sha256": stamps.notebook_sha256(notebook),
        "dataset": full.get("dataset"),
        "device": full.get("device"),
        "torch": full.get("torch"),
        "seconds": round(seconds),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "fingerprint": fast["numbers"],
    }
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {seconds:.0f} s, {len(text.encode()) / 1e6:.2f} MB")


def chosen(names: list[str], root: Path) -> list[Path]:
    """The chapters by number ("07"), by name, or all of them."""
    every = c.chapters(root)
    if not names:
        return every
    found = []
    for name in names:
        stem = Path(name).stem
        wanted = stem.zfill(2) if stem.isdigit() else stem
        match = [p for p in every if p.stem == wanted or p.stem[:2] == wanted]
        if not match:
            have = ", ".join(p.stem for p in every)
            raise SystemExit(f"There is no chapter {name}; there are {have}.")
        found += match
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers or names; all without")
    parser.add_argument(
        "--allow-fallback",
        action="store_true",
        help="store outputs even if the bundled digits stood in for MNIST",
    )
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    failed = 0
    for path in chosen(options.chapters, options.root):
        try:
            run(path, allow_fallback=options.allow_fallback)
        except (CellExecutionError, Refused) as problem:
            failed += 1
            print(f"{path.name}: nothing is stored. {problem}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
