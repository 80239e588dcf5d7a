"""How long each chapter takes in fast mode: all its cells, on a CPU with one thread.

    python benchmarks/chapters.py           # also part of: make benchmark
    python benchmarks/chapters.py 02 07     # some chapters only

The clock runs from the start of the kernel to the end of the last cell, as a reader
waits. What a chapter takes at full speed is in its stamp, where `make notebooks` puts
it. The result goes to ``benchmarks/chapters_latest.json``; the teaching guide shows it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from training_speed import machine, write  # noqa: E402

from tools import conventions as c  # noqa: E402
from tools import run_notebooks  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers or names; all without")
    parser.add_argument("--output", type=Path, default=HERE / "chapters_latest.json")
    options = parser.parse_args(arguments)
    seconds = {}
    for path in run_notebooks.chosen(options.chapters, c.ROOT):
        notebook = nbformat.read(path, as_version=4)
        _, taken = run_notebooks.execute(path, notebook, fast=True)
        seconds[path.stem] = round(taken, 1)
        print(f"{path.stem}: {taken:.1f} s")
    write({"machine": machine(threads=1), "seconds": seconds}, options.output)


if __name__ == "__main__":
    main()
