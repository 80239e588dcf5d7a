"""The gates close: what must fail, fails."""

import os
import subprocess
import sys

import made_up
import pytest

from tools import conventions as c
from tools import site


def run_nbval(path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    settings = ["-c", str(c.ROOT / "pyproject.toml"), "--rootdir", str(path.parent)]
    return subprocess.run(
        [*command, *settings, str(path)],
        cwd=path.parent,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "code, tags, passes",
    [
        ("1 + 1", [], True),
        ("print('now')", [], True),  # the stored output is not compared ...
        ("print('now')", ["nbval-check-output"], False),  # ... unless it is asked for
        ("print('stored')", ["nbval-check-output"], True),
        ("1 / 0", [], False),
        ("assert 1 == 2", [], False),
    ],
)
def test_a_failing_cell_fails_the_notebook_run(tmp_path, code, tags, passes):
    book = made_up.book(tmp_path / "made-up", "02-first")
    path = book / "book" / "02-first.ipynb"
    notebook = made_up.read(path)
    cell = notebook.cells[9]
    cell.source, cell.metadata["tags"] = code, tags
    cell.outputs = [made_up.new_output("stream", name="stdout", text="stored\n")]
    notebook.cells = [cell]
    made_up.save(notebook, path)
    done = run_nbval(path)
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    assert ("1 passed" if passes else "1 failed") in done.stdout


@pytest.fixture
def root(tmp_path):
    return made_up.book(tmp_path / "made-up", "02-first", "07-second")


@pytest.mark.parametrize(
    "words, warning",
    [
        ("See [it](06-gone.ipynb).", "06-gone.ipynb"),
        ("See equation (2.9).", "Equation 2.9 is mentioned but not defined"),
        ("See (7.9).", "Equation 7.9 is mentioned but not defined"),
        ("See Figure 7.5.", "Figure 7.5 is mentioned but not defined"),
        ("See (eq-nothing).", "eq-nothing is still a name"),
        ("See [X](references.md#x1900).", "local id not found in doc 'references'"),
        ("> **Theorem 7.1.** Again.", "Theorem 7.1 is numbered twice"),
    ],
    ids=[
        "broken link",
        "undefined equation",
        "undefined equation of its own chapter",
        "undefined figure",
        "unresolved name",
        "unknown citation",
        "number used twice",
    ],
)
def test_a_fault_fails_the_site(root, words, warning):
    path = root / "book" / "07-second.ipynb"
    made_up.replace_in_cell(path, 6, "See Figure 7.1.", words)
    status, said = site.build(root)
    assert status != 0
    assert warning in said


def test_a_good_book_builds(root):
    status, said = site.build(root)
    assert status == 0, said
