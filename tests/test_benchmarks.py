"""The benchmarks run; how fast is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_training_speed_measures_every_contender(tmp_path, monkeypatch):
    monkeypatch.setenv("AEVB_DATA", str(tmp_path))  # no MNIST: random bytes
    output = tmp_path / "latest.json"
    short = "--turns 2 --examples 40 --batch-sizes 20 --threads 1 --only us_b"
    run = subprocess.run(
        [
            sys.executable,
            "benchmarks/training_speed.py",
            *short.split(),
            "--output",
            output,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(output.read_text())
    assert {"cpu", "cores", "threads", "torch", "date"} <= report["machine"].keys()
    assert [r["likelihood"] for r in report["results"]] == ["continuous_bernoulli"]
    for result in report["results"]:
        assert result["data"] == "random bytes"
        assert list(result["results"]) == ["aevb", "images", "tensors"]
        for found in result["results"].values():
            assert found["rate"]["low"] <= found["rate"]["median"]
            assert found["rate"]["low"] > 0 and found["seconds"] > 0
        assert result["results"]["aevb"]["ratio"]["median"] == 1
    assert "random bytes" in run.stdout


def test_vrnn_speed_measures_both_precisions(tmp_path, monkeypatch):
    monkeypatch.setenv("AEVB_DATA", str(tmp_path))
    output = tmp_path / "latest.json"
    short = "--small --turns 2 --steps 2 --batch-size 10 --threads 1 --output"
    run = subprocess.run(
        [sys.executable, "benchmarks/vrnn_speed.py", *short.split(), output],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(output.read_text())
    single, low = (result["results"] for result in report["results"])
    assert list(single) == ["aevb", "plain"]
    assert list(low) == ["aevb bfloat16", "plain", "plain bfloat16"]
    for found in (*single.values(), *low.values()):
        assert found["rate"]["low"] > 0 and found["ratio"]["median"] > 0
    assert {r["data"] for r in report["results"]} == {"random bits"}
