"""Every study of experiments/ runs, in fast mode, and can be stopped and started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
