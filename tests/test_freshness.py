"""Stored outputs still belong to the code and to the package beside them.

The fast runs of `pytest book` leave their numbers in `_build/reports`; these tests
compare them with the fingerprints that `make notebooks` stored.
"""

import json
import os
from pathlib import Path

import nbformat
import pytest

from tools import conventions as c
from tools import stamps

REPORTS = Path(os.environ["AEVB_REPORT_DIR"])
RESULTS = sorted((c.ROOT / "book" / "results").glob("*.json"))


def fail(sentence):
    pytest.fail(sentence, pytrace=False)


def stamp_of(path):
    notebook = nbformat.read(path, as_version=4)
    again = f"run `make notebooks CHAPTER={path.stem[:2]}` and commit the result"
    return notebook, notebook.metadata.get("aevb"), again


@pytest.mark.parametrize("path", c.chapters(), ids=lambda p: p.stem)
def test_code(path):
    notebook, stamp, again = stamp_of(path)
    if not stamp:
        fail(f"{path.name} has no stamp: {again}.")
    if stamp["code_sha256"] != stamps.notebook_sha256(notebook):
        fail(f"The code of {path.name} changed since its outputs were stored: {again}.")


@pytest.mark.parametrize("path", c.chapters(), ids=lambda p: p.stem)
def test_fingerprint(path):
    _, stamp, again = stamp_of(path)
    if not stamp:
        fail(f"{path.name} has no stamp: {again}.")
    report = REPORTS / f"{path.stem}.json"
    if not report.exists():
        fail(
            f"{path.name} has not been run in fast mode, or did not come to its end: "
            "run `pytest book` first, as `make test` does."
        )
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["fast"], f"{path.name} was not run in fast mode"
    if different := stamps.differences(stamp["fingerprint"], found["numbers"]):
        fail(
            f"The package no longer gives the numbers that {path.name} stored "
            f"({'; '.join(different)}).  If that is meant, {again}."
        )


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_study(path):
    stamp = json.loads(path.read_text(encoding="utf-8")).get("stamp", {})
    script = c.ROOT / stamp.get("script", "no script")
    if not script.is_file():
        fail(f"{path.name}: its stamp names no script of experiments/.")
    if stamp.get("code_sha256") != stamps.script_sha256(script):
        fail(f"{stamp['script']} changed since {path.name} was written: run it again.")
