"""Build the site strictly: every warning is an error.

    python -m tools.site     # make book

The student edition lies on the site as well, as `editions/student.zip`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tools import conventions as c
from tools import editions


def build(
    root: Path = c.ROOT, output: Path | None = None, builder: str = "html"
) -> tuple[int, str]:
    """Build the book of `root` from nothing; the exit status and what Sphinx said."""
    output = output or root
    for old in ("html", ".doctrees"):
        shutil.rmtree(output / "_build" / old, ignore_errors=True)
    command = [
        *(sys.executable, "-c", "from jupyter_book.cli.main import main; main()"),
        *("build", str(root / "book"), "--path-output", str(output)),
        *("--config", str(root / "_config.yml"), "--toc", str(root / "_toc.yml")),
        *("--builder", builder, "-W", "-n", "--keep-going", "-q"),
    ]
    env = os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=c.ROOT, help="default: this book")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    status, said = build(options.root)
    if status:
        print(said, file=sys.stderr)
        print("The site is not built: see above.", file=sys.stderr)
        return 1
    html = options.root / "_build" / "html"
    folder = options.root / "_build" / "editions"
    editions.make(folder, options.root)
    (html / "editions").mkdir()
    shutil.copy(folder / "student.zip", html / "editions")
    page = (html / "index.html").resolve()
    print(f"The book is built ({time.perf_counter() - start:.0f} s): {page.as_uri()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
