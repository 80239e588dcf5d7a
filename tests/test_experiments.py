"""Every study of experiments/ runs, in fast mode, and can be stopped and started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted((ROOT / "experiments").glob("*.py"))


def run(script: Path, out: Path) -> str:
    env = os.environ | {
        "AEVB_FAST": "1",
        "AEVB_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(script), "--seeds", "0", "--out", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("script", STUDIES, ids=lambda p: p.stem)
def test_study_runs_and_resumes(script, tmp_path):
    out = tmp_path / "result.json"
    run(script, out)
    first = json.loads(out.read_text())
    assert first["stamp"]["script"] == f"experiments/{script.name}"
    assert first["runs"]
    assert "there already" in run(script, out)
    assert json.loads(out.read_text())["runs"] == first["runs"]


@pytest.mark.parametrize("script", STUDIES, ids=lambda p: p.stem)
def test_a_study_has_a_stored_result(script):
    assert (ROOT / "book" / "results" / f"{script.stem}.json").is_file()


@pytest.fixture
def precision(monkeypatch):
    """The study of precision, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return __import__("08_precision")


def test_products_of_rounded_factors_are_those_of_bfloat16(precision):
    """What a processor without such products computes in the study of precision."""
    g = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(shape, generator=g) for shape in ((30, 40), (40, 50), 50))
    short = [x.bfloat16() for x in (a, b, bias)]
    one_rounding = {"rtol": 2**-7, "atol": 1e-5}
    for found, expected in (
        (precision.mm(*short[:2]), torch.mm(*short[:2])),
        (precision.addmm(short[2], *short[:2]), torch.addmm(short[2], *short[:2])),
    ):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, **one_rounding)
        assert (found == expected).double().mean() > 0.9
    assert torch.equal(precision.mm(a, b), torch.mm(a, b))
    assert torch.equal(precision.addmm(bias, a, b), torch.addmm(bias, a, b))


def test_every_stage_of_a_recipe_is_in_one_precision(precision):
    recipe = precision.RECIPES["gaussian-mixture-vae"]
    assert json.dumps(recipe).count('"precision": "bfloat16"') == 3
    assert (
        json.dumps(precision.in_precision(recipe, None)).count('"precision": null') == 3
    )
    assert precision.in_precision(recipe, "bfloat16") == recipe
