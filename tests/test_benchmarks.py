"""The benchmarks run; how fast is not a test's business."""

import json
import math
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from aevb import data, models, recipes
from tools import speed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    """``benchmark(name)``: the script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__


@pytest.fixture
def small(monkeypatch):
    """Little data in every process."""
    monkeypatch.setenv("AEVB_FAST", "1")


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
    short = "--turns 2 --examples 40 --batch-sizes 20 --threads 1 --only batch"
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


def test_gmvae_speed_measures_every_contender(measure, small):
    short = "--turns 1 --examples 20 --batch-size 20 --threads 1"
    report, _ = measure("gmvae_speed.py", short)
    (result,) = report["results"]
    assert list(result["results"])[::5] == ["aevb", "plain"]
    assert all(r["rate"]["low"] > 0 for r in result["results"].values())


def test_gmvae_speed_contenders_compute_the_same(benchmark):
    """The estimator that repeats x, with the draws of the one that does not."""
    gmvae_speed = benchmark("gmvae_speed")
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


def test_peers_speed_measures_every_contender(measure, small):
    short = "--turns 2 --examples 40 --batch-sizes 20 --threads 1"
    report, printed = measure("peers_speed.py", short)
    (result,) = report["results"]
    names = set(result["results"])
    assert {"aevb", "plain", "products", "aevb, bfloat16", "plain, bfloat16"} <= names
    for peer in ("pyro", "pythae"):
        there = find_spec(peer) is not None
        assert (peer in names) == there
        assert there or re.search(f"{peer}.*: not installed", printed)
    for name, found in result["results"].items():
        assert found["rate"]["low"] > 0 and found["memory"] > 0
        if name.startswith("aevb"):
            assert found["ratio"]["median"] == 1


def test_peers_speed_chases_a_target(measure, small):
    short = "--target 1 --names plain aevb --epochs 2 --batch-sizes 100 --batch 200"
    report, _ = measure("peers_speed.py", f"{short} --threads 1")
    (result,) = report["results"]
    plain, ours = result["results"]["plain"], result["results"]["aevb"]
    assert plain["epochs"] == 1 and plain["curve"][-1][1] == result["target"]
    assert (ours["seconds"] is not None) == (ours["curve"][-1][1] >= result["target"])
    assert len(ours["curve"]) == ours["epochs"] <= 2
    lines = "\n".join(speed.target(report))
    assert f"{result['target']:.2f} nats" in lines and "| `aevb` |" in lines
    assert "2 epochs in batches of 200" in lines


def test_peers_are_judged_by_the_elbo(benchmark):
    """The judge's ELBO is the package's, to the noise of one draw an example."""
    peers_speed = benchmark("peers_speed")
    torch.manual_seed(0)
    model = models.VAE(likelihood="bernoulli", dropout=0.0, hidden=(8,)).eval()
    x = torch.bernoulli(torch.full((500, 784), 0.3))

    def encode(x):
        q_z = model.posterior(x).base_dist
        return q_z.mean, q_z.stddev

    def decode(z):
        return model.likelihood(z).base_dist.logits

    judged = peers_speed.judge(x)(encode, decode)
    with torch.no_grad():
        elbo = model.elbo(x, num_samples=4).elbo
    error = elbo.std().item() / math.sqrt(len(x))
    assert abs(judged - elbo.mean().item()) < 3 * error


def test_contenders_have_the_same_network(benchmark):
    encoder, decoder = benchmark("peers_speed").networks()
    plain = sorted(p.shape for m in (encoder, decoder) for p in m.parameters())
    ours = models.VAE(likelihood="bernoulli", hidden=(500, 500), latent_dim=20)
    assert plain == sorted(p.shape for p in ours.parameters())


def test_scaling_measures_every_curve(measure, tmp_path):
    figure = tmp_path / "scaling.svg"
    short = f"--fast --turns 1 --epochs 11 --threads 1 --figure {figure}"
    report, _ = measure("scaling.py", short)
    assert set(report["sweeps"]) == {"batch_size", "latent_dim", "examples", "length"}
    assert all(p["rate"]["low"] > 0 for s in report["sweeps"].values() for p in s)
    found = report["epochs"]
    assert found["epoch"] == list(range(2, 12)) and min(found["seconds"]) > 0
    assert len(found["memory"]) == 10
    assert speed.checksum(report) in figure.read_text()


def test_chapters_are_timed_in_fast_mode(measure):
    report, printed = measure("chapters.py", "02")
    assert list(report["seconds"]) == ["02-expectation-maximization"]
    assert 0 < report["seconds"]["02-expectation-maximization"] < 300
    assert report["machine"]["threads"] == 1 and "02-expect" in printed


# --- the page ---


def test_the_page_is_what_the_benchmarks_wrote():
    assert list(speed.complaints()) == []


def test_no_timing_is_typed_into_the_tool():
    text = speed.HEAD + speed.PEERS + speed.TARGET + speed.MODELS + speed.SCALING
    text += speed.PRECISION + speed.ROUNDED
    assert not re.findall(r"\d+\.\d+", text)


@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_precision_is_judged_by_the_spread_of_seeds(shift):
    single = {0: -75.0, 1: -76.0, 2: -77.0}
    elbos = {"single": single, "bfloat16": {k: v + shift for k, v in single.items()}}
    runs = [
        {"model": "m", "precision": p, "seed": k, "elbo": v, "products": "rounded"}
        for p, found in elbos.items()
        for k, v in found.items()
    ]
    report = {"settings": {"recipes": {"m": {}, "n": {}}}, "runs": runs}
    *_, table, verdict = speed.precision(report)
    assert "| `m` | -76.00 (-77.00 to -75.00) |" in table
    assert f"| 1.00 | +{shift:.2f} (+{shift:.2f} to +{shift:.2f}) |" in table
    assert ("mean of `m` moves" in verdict) == (shift > 1)
    assert verdict.endswith("Not run yet: `n`.")


def random_images(kind, count=40):
    """As ``data.mnist`` gives them, without MNIST."""
    g = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (count, 784), dtype=torch.uint8, generator=g)
    x = (raw > 127).float()
    if kind == "rows":
        return data.Examples(x.view(-1, 28, 28), None, raw, None), None
    return data.Examples(x, None, raw, None), None


@pytest.mark.parametrize("name", ["VAE, Bernoulli", "VRNN"])
def test_gpu_speed_times_all_three(name, benchmark, monkeypatch):
    """Anywhere: what it measures needs a GPU to be worth anything, not to run."""
    gpu_speed = benchmark("gpu_speed")
    monkeypatch.setattr(gpu_speed, "DEVICE", "cpu")
    monkeypatch.setattr(data, "mnist", random_images)
    gpu_speed.examples.cache_clear()
    found = gpu_speed.measure(name, steps=60, laps=1)
    gpu_speed.examples.cache_clear()
    assert list(found["milliseconds"]) == ["aevb", "launched", "plain"]
    assert all(t["median"] > 0 for t in found["milliseconds"].values())


def test_gpu_speed_knows_the_steps_of_the_chapters(benchmark):
    gpu_speed = benchmark("gpu_speed")
    assert gpu_speed.steps_of("VAE", 50000) == 20 * 500
    assert gpu_speed.steps_of("Gaussian-mixture VAE", 60000) == (12 + 15) * 600
    assert gpu_speed.steps_of("VRNN", 50000) == 10 * 500
    assert gpu_speed.steps_of("VAE, Bernoulli", 60000) is None
    recipe = gpu_speed.recipe_of("VRNN, the paper's sizes")
    assert recipe["model"]["arguments"]["hidden"] == [500, 500]
    assert (
        recipes.RECIPES["variational-rnn"]["model"]["arguments"]["hidden"] != [500] * 2
    )


def test_the_page_shows_gpu_times(tmp_path):
    found = {"median": 0.5, "low": 0.4, "high": 0.6}
    result = {"name": "VAE", "batch_size": 100, "precision": None, "steps": 10000}
    result["milliseconds"] = {"aevb": found, "launched": found | {"median": 4.0}}
    about = {"cpu": "x", "cores": 2, "threads": 2, "torch": "2", "date": "2026-01-01"}
    *_, machine, table, spread = speed.gpu(
        {"machine": about | {"gpu": "G"}, "results": [result]}
    )
    assert "; G; " in machine and " 40% " in spread
    assert "| VAE | 100 | 0.50 | 4.0 (8.0 ×) |  | 5 s |" in table


def test_the_page_needs_no_torch():
    """The site's environment has none."""
    code = "import sys, tools.speed as s; s.page(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_has_not_run_is_left_out(tmp_path):
    text = speed.page(tmp_path)
    assert "What may be compared" in text and "|" not in text


def test_stale_page_and_figure_are_found(tmp_path):
    for folder in ("benchmarks", "book/results"):
        (tmp_path / folder).mkdir(parents=True)
    report = speed.read()["scaling"]
    (tmp_path / speed.FILES["scaling"]).write_text(json.dumps(report))
    (tmp_path / "book" / "speed.md").write_text(speed.page(tmp_path))
    (tmp_path / "book" / speed.FIGURE).write_text(speed.checksum(report))
    assert list(speed.complaints(tmp_path)) == []
    (tmp_path / "book" / speed.FIGURE).write_text("<svg/>")
    (tmp_path / "book" / "speed.md").write_text("# Speed")
    assert len(list(speed.complaints(tmp_path))) == 2
