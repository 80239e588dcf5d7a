"""`make notebooks`: what is stored, and what is refused."""

import json

import made_up
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import conventions as c
from tools import run_notebooks, stamps

REPORT = """
import json, os, pathlib
fast = os.environ.get("AEVB_FAST") == "1"
report = {"chapter": "02-first", "fast": fast, "torch": "2", "dataset": DATASET,
          "device": os.environ.get("AEVB_DEVICE", "auto"),
          "numbers": {"elbo": 1.25 if fast else 99.0}}
folder = pathlib.Path(os.environ["AEVB_REPORT_DIR"])
folder.joinpath("02-first.json").write_text(json.dumps(report))
"""
NOISE = """
import sys
print("at full speed" if "AEVB_FAST" not in os.environ else "fast")
print("a progress bar", file=sys.stderr)
print("one more line")
"""


def write(root, *cells):
    (root / "book").mkdir()
    path = root / "book" / "02-first.ipynb"
    notebook = new_notebook(
        cells=[new_code_cell(x) for x in cells],
        metadata={"language_info": {"name": "python", "version": "3"}, "widgets": {}},
    )
    for k, cell in enumerate(notebook.cells):
        cell["id"] = f"x{k}"
    made_up.save(notebook, path, stamped=False)
    return path


def run(root, *options):
    return run_notebooks.main([*options, "--root", str(root)])


def test_outputs_and_stamp_are_stored(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AEVB_DEVICE")
    path = write(tmp_path, "DATASET = 'MNIST'", REPORT, NOISE, "3 + 4")
    assert run(tmp_path, "02") == 0
    assert "02-first.ipynb: " in capsys.readouterr().out
    notebook = made_up.read(path)
    assert [x.execution_count for x in notebook.cells] == [1, 2, 3, 4]
    (printed,) = notebook.cells[2].outputs
    assert printed.name == "stdout"
    assert printed.text == "at full speed\none more line\n"
    assert notebook.cells[3].outputs[0].data["text/plain"] == "7"
    assert all("execution" not in x.metadata for x in notebook.cells)
    assert notebook.metadata.language_info == {"name": "python"}
    assert "widgets" not in notebook.metadata
    stamp = notebook.metadata["aevb"]
    assert set(stamp) == {
        "code_sha256",
        "dataset",
        "device",
        "torch",
        "seconds",
        "date",
        "fingerprint",
    }
    assert stamp["code_sha256"] == stamps.notebook_sha256(notebook)
    assert stamp["fingerprint"] == {"elbo": 1.25}
    assert stamp["dataset"] == "MNIST"
    assert stamp["device"] == "auto"
    assert run(tmp_path) == 0
    again = made_up.read(path)
    again.metadata["aevb"] |= {"seconds": stamp["seconds"], "date": stamp["date"]}
    assert again == notebook


@pytest.mark.parametrize(
    "cells, message",
    [
        (["1 / 0"], "ZeroDivisionError"),
        (["1"], "its last code cell must call fingerprint"),
        (["DATASET = 'bundled digits'", REPORT], "put MNIST where AEVB_DATA says"),
        (["import os\nif 'AEVB_FAST' not in os.environ: 1 / 0", "1"], "fingerprint"),
    ],
    ids=["failing", "silent", "fallback", "silent-in-fast-mode"],
)
def test_nothing_is_stored(tmp_path, capsys, cells, message):
    path = write(tmp_path, *cells)
    before = path.read_bytes()
    assert run(tmp_path) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "nothing is stored" in said
    assert path.read_bytes() == before


def test_fallback_can_be_allowed(tmp_path):
    path = write(tmp_path, "DATASET = 'bundled digits'", REPORT)
    assert run(tmp_path, "--allow-fallback") == 0
    assert made_up.read(path).metadata["aevb"]["dataset"] == "bundled digits"


def test_choosing(tmp_path):
    book = made_up.book(tmp_path / "a", "02-first", "07-second")
    names = ["02-first", "07-second"]
    chosen = run_notebooks.chosen
    assert [p.stem for p in chosen([], book)] == names
    assert [p.stem for p in chosen(["7"], book)] == names[1:]
    assert [p.stem for p in chosen(["book/02-first.ipynb"], book)] == names[:1]
    with pytest.raises(SystemExit, match="no chapter 5; there are 02-first, 07"):
        chosen(["5"], book)


def test_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEVB_DATA", "data")
    monkeypatch.setenv("AEVB_FAST", "1")
    full = run_notebooks.environment(tmp_path, fast=False)
    assert "AEVB_FAST" not in full
    assert full["AEVB_DATA"] == str(tmp_path / "data")
    fast = run_notebooks.environment(tmp_path, fast=True)
    assert (fast["AEVB_FAST"], fast["AEVB_DEVICE"]) == ("1", "cpu")
    assert str(c.ROOT) in fast["PYTHONPATH"]
    alone = run_notebooks.environment(tmp_path, fast=True, alone=True)
    assert set(fast) - set(alone) == {"PYTHONPATH", "AEVB_DATA"}


def test_hash_of_code():
    same = [
        "x = 1  # the bound (2.3)\n\ny = '#no'",
        "# another comment\nx = 1\ny = '#no'",
    ]
    assert stamps.code_sha256(same[0]) == stamps.code_sha256(same[1])
    for other in ("x = 2\ny = '#no'", "x = 1\ny = '#yes'"):
        assert stamps.code_sha256(same[0]) != stamps.code_sha256(other)
    report = 'fingerprint("{}-some-words", elbo=1)'.format
    assert stamps.code_sha256(report("07")) == stamps.code_sha256(report("08"))


def test_differences():
    assert not stamps.differences({"elbo": -100.0}, {"elbo": -100.4})
    assert stamps.differences({"elbo": -100.0}, {"elbo": -101.0}) == [
        "elbo was -100 and is -101"
    ]
    assert stamps.differences({"a": 1.0}, {"b": 1.0}) == [
        "a is no longer reported",
        "b is new",
    ]
    assert stamps.differences({"a": 1.0}, {"a": float("nan")})
    assert json.dumps(stamps.differences({}, {})) == "[]"
