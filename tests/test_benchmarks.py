"""The benchmarks run; how fast is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aevb import models

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """``measure(script, options)``: what it wrote, and what it printed."""
    monkeypatch.setenv("AEVB_DATA", str(tmp_path))  # no MNIST: random bytes

    def run(script: str, options: str) -> tuple[dict, str]:
        output = tmp_path / "latest.json"
        command = [f"benchmarks/{script}", *options.split(), "--output", output]
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(output.read_text()), done.stdout

    return run


def test_training_speed_measures_every_contender(measure):
    short = "--turns 2 --examples 40 --batch-sizes 20 --threads 1 --only us_b"
    report, printed = measure("training_speed.py", short)
    assert {"cpu", "cores", "threads", "torch", "date"} <= report["machine"].keys()
    assert [r["likelihood"] for r in report["results"]] == ["continuous_bernoulli"]
    for result in report["results"]:
        assert result["data"] == "random bytes"
        assert list(result["results"]) == ["aevb", "images", "tensors"]
        for found in result["results"].values():
            assert found["rate"]["low"] <= found["rate"]["median"]
            assert found["rate"]["low"] > 0 and found["seconds"] > 0
        assert result["results"]["aevb"]["ratio"]["median"] == 1
    assert "random bytes" in printed


def test_gmvae_speed_measures_every_contender(measure, monkeypatch):
    monkeypatch.setenv("AEVB_FAST", "1")
    short = "--turns 1 --examples 20 --batch-size 20 --threads 1"
    report, _ = measure("gmvae_speed.py", short)
    (result,) = report["results"]
    assert list(result["results"])[::5] == ["aevb", "plain"]
    assert all(r["rate"]["low"] > 0 for r in result["results"].values())


def test_gmvae_speed_contenders_compute_the_same():
    """The estimator that repeats x, with the draws of the one that does not."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gmvae_speed

    torch.manual_seed(0)
    model = models.GaussianMixtureVAE(hidden=(8,), latent_dim=2)
    x = torch.bernoulli(torch.full((5, 784), 0.3))
    torch.manual_seed(1)
    ours = model.elbo(x)
    torch.manual_seed(1)
    repeated = gmvae_speed.repeated(model, x)
    torch.testing.assert_close(ours.elbo, repeated.elbo, rtol=1e-5, atol=1e-3)


def test_vrnn_speed_measures_both_precisions(measure):
    short = "--small --turns 2 --steps 2 --batch-size 10 --threads 1"
    report, _ = measure("vrnn_speed.py", short)
    single, low = (result["results"] for result in report["results"])
    assert list(single) == ["aevb", "plain"]
    assert list(low) == ["aevb bfloat16", "plain", "plain bfloat16"]
    for found in (*single.values(), *low.values()):
        assert found["rate"]["low"] > 0 and found["ratio"]["median"] > 0
    assert {r["data"] for r in report["results"]} == {"random bits"}
