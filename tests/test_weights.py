"""Trained weights: the files, what reads them, and what the manifest says of them."""

import hashlib
import json
import math
import pickle
import shutil
import socket
from functools import cache
from pathlib import Path

import pytest
import torch

import aevb
from aevb import data, models, runs, weights
from tools import pretrain

MANIFEST = weights.manifest()
NAMES = list(MANIFEST)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A folder of weights that a test may spoil."""
    folder = tmp_path / "trained"
    folder.mkdir()
    for name in ("manifest.json", "factor-analysis.safetensors"):
        shutil.copy(weights.FOLDER / name, folder)
    monkeypatch.setattr(weights, "FOLDER", folder)
    return folder


@pytest.fixture
def no_parsing(monkeypatch):
    """A parser that must not be reached."""
    import safetensors.torch

    def fail(content):
        raise AssertionError("the file was parsed")

    monkeypatch.setattr(safetensors.torch, "load", fail)


# --- the files ----------------------------------------------------------------------


def test_every_recipe_is_packed_and_nothing_else():
    files = {path.stem for path in weights.FOLDER.glob("*.safetensors")}
    assert set(NAMES) == files == set(pretrain.RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_file(name):
    path = weights.FOLDER / f"{name}.safetensors"
    content, entry = path.read_bytes(), MANIFEST[name]["file"]
    assert len(content) == entry["bytes"] <= 5_000_000
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} == {"F16"}


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_the_one_it_was_trained_by(name):
    entry = MANIFEST[name]
    stored = json.loads(json.dumps(pretrain.RECIPES[name]))
    assert entry["recipe"] == stored, f"run `make weights NAME={name}`"
    training = entry["training"]
    assert "fast" not in training
    assert training["seconds"] > 0 and training["threads"] >= 1
    assert {"device", "torch", "date"} <= training.keys()


@pytest.mark.parametrize("name", NAMES)
def test_model(name):
    before = torch.get_rng_state()
    model = aevb.pretrained(name)
    assert type(model).__name__ == MANIFEST[name]["recipe"]["model"]["class"]
    assert not any(module.training for module in model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    assert all(t.device.type == "cpu" for t in tensors)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_device():
    model = aevb.pretrained("factor-analysis", device="meta")
    assert all(p.device.type == "meta" for p in model.parameters())


def test_no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("AEVB_DATA", "/nowhere")
    assert aevb.pretrained("vae").sample(2).shape == (2, 784)


# --- what is refused ----------------------------------------------------------------


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'vea'; expected one of 'factor-analysis'"):
        aevb.pretrained("vea")


def test_wrong_hash(copy, no_parsing):
    path = copy / "factor-analysis.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    path.write_bytes(content)
    expected = MANIFEST["factor-analysis"]["file"]["sha256"]
    with pytest.raises(weights.WeightsError) as error:
        aevb.pretrained("factor-analysis")
    for part in (path.name, expected, hashlib.sha256(content).hexdigest()):
        assert part in str(error.value)


def test_truncated_file(copy, no_parsing):
    path = copy / "factor-analysis.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(weights.WeightsError, match=r"refused.*truncated"):
        aevb.pretrained("factor-analysis")


def test_missing_file(copy):
    (copy / "factor-analysis.safetensors").unlink()
    with pytest.raises(weights.WeightsError, match=r"factor-analysis.* cannot be read"):
        aevb.pretrained("factor-analysis")


@pytest.mark.parametrize("content", [None, "{", "not json"])
def test_broken_manifest(copy, content):
    path = copy / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(weights.WeightsError, match=r"manifest\.json cannot be read"):
        aevb.pretrained("factor-analysis")


class Trap:
    """What executes code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_no_code_is_executed(copy, tmp_path, write):
    """Not even where someone has put the file's hash into the manifest."""
    sprung, path = tmp_path / "sprung", copy / "factor-analysis.safetensors"
    if write == "torch":
        torch.save({"generative.loadings": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    entries = weights.manifest()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entries["factor-analysis"]["file"]["sha256"] = digest
    (copy / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(weights.WeightsError, match=r"cannot be read as safetensors"):
        aevb.pretrained("factor-analysis")
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # the trap itself does work
    assert sprung.exists()


def test_unknown_class(copy):
    entries = weights.manifest()
    entries["factor-analysis"]["recipe"]["model"]["class"] = "__builtins__"
    (copy / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"class is '__builtins__'"):
        aevb.pretrained("factor-analysis")


# --- files of one's own -------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_save_and_load(tmp_path, half):
    mine = models.VAE(latent_dim=3, hidden=(5,), data_dim=7, likelihood="gaussian")
    path = tmp_path / "new" / "mine.safetensors"
    digest = weights.save(mine, path, half=half)
    again = models.VAE(latent_dim=3, hidden=(5,), data_dim=7, likelihood="gaussian")
    assert weights.load(again.train(), path, digest) is again
    assert not again.training
    for one, two in zip(mine.parameters(), again.parameters(), strict=True):
        assert two.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=2**-11 if half else 0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"]


def test_other_arguments(tmp_path):
    path = tmp_path / "mine.safetensors"
    weights.save(models.FactorAnalysis(data_dim=4), path)
    with pytest.raises(weights.WeightsError, match=r"loadings has shape \(4, 2\)"):
        weights.load(models.FactorAnalysis(), path)
    with pytest.raises(weights.WeightsError, match=r"expected the arguments"):
        weights.load(models.VAE(hidden=(5,)), path)


@pytest.mark.parametrize("value", [1e5, math.inf, math.nan])
def test_numbers_that_do_not_fit(tmp_path, value):
    mine = models.FactorAnalysis()
    mine.generative.loadings.data[0, 0] = value
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match=r"loadings holds .*expected finite"):
        weights.save(mine, path, half=True)
    assert not path.exists()
    if math.isfinite(value):
        weights.save(mine, path)


# --- the scores in the manifest -----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scores_on_data_that_are_everywhere(name):
    """The same function on the same digits gives the same numbers."""
    model = aevb.pretrained(name)
    found = pretrain.score_bundled(model, pretrain.RECIPES[name])
    stored = MANIFEST[name]["scores"]["bundled"]
    assert found.keys() == stored.keys()
    for quantity, value in stored.items():
        error = value["standard_error"]
        slack = 0.02 if quantity == "accuracy" else 0.05 * error + 1e-4
        assert abs(found[quantity]["mean"] - value["mean"]) <= slack, quantity
        assert abs(found[quantity]["standard_error"] - error) <= slack, quantity


def test_scores_of_factor_analysis_are_true():
    """Where the evidence is known, the estimates lie around it."""
    scores = MANIFEST["factor-analysis"]["scores"]["test"]
    model = aevb.pretrained("factor-analysis")
    _, test = data.factor_analysis()
    with torch.no_grad():
        evidence = model.evidence(test.x).mean().item()
        gap = model.gap(test.x).mean().item()
    assert scores["evidence"]["mean"] == pytest.approx(evidence, abs=1e-4)
    estimate, error = scores["gap"]["mean"], scores["gap"]["standard_error"]
    assert abs(estimate - gap) < 3 * error
    assert scores["elbo"]["mean"] == pytest.approx(evidence - gap, abs=3 * error)
    assert scores["log_likelihood"]["mean"] == pytest.approx(evidence, abs=3 * error)


@cache
def mnist(kind):
    """300 random test images, or a skipped test."""
    if not Path(data.mnist_root(), "MNIST", "raw").is_dir():
        pytest.skip("MNIST is not here; the scores on the bundled digits were compared")
    _, test = data.mnist(kind)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))
    return test[order[:300]]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "factor-analysis"])
def test_scores_on_mnist(name):
    """Other draws of z, and some of the images: the standard error is that of these."""
    stored = MANIFEST[name]["scores"]["test"]
    test = mnist(pretrain.RECIPES[name]["data"]["kind"])
    draws = min(500, stored["log_likelihood"]["samples"])
    found = runs.score(aevb.pretrained(name), test, 1, draws, 50, seed=1)
    for quantity in ("elbo", "gap", "accuracy"):
        if quantity in stored:
            difference = found[quantity]["mean"] - stored[quantity]["mean"]
            error = found[quantity]["standard_error"]
            lower = draws < stored["log_likelihood"]["samples"] and quantity == "gap"
            assert difference < 3 * error, quantity
            assert difference > -3 * error - 0.5 * lower, quantity


def test_the_seed_of_scores_is_that_of_all_draws(monkeypatch):
    """Those that a conditional VAE tells digits by among them."""
    seeds, elbo = [], runs.evaluation.elbo

    def noted(*arguments, seed=0, **options):
        seeds.append(seed)
        return elbo(*arguments, seed=seed, **options)

    monkeypatch.setattr(runs.evaluation, "elbo", noted)
    sizes = {"data_dim": 4, "latent_dim": 2, "hidden": (3,), "num_classes": 3}
    model = models.ConditionalVAE(likelihood="bernoulli", **sizes)
    test = data.Examples(torch.rand(9, 4).round(), torch.arange(9) % 3)
    assert "accuracy" in runs.score(model, test, 1, 2, 5, seed=7)
    assert seeds == [7] * 4


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_bounds(name):
    for scores in MANIFEST[name]["scores"].values():
        gap, error = scores["gap"]["mean"], scores["gap"]["standard_error"]
        assert gap > -3 * error
        if "evidence" in scores:
            weighted = scores["log_likelihood"]["mean"]
            assert weighted < scores["evidence"]["mean"] + 3 * error


# --- the tool -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["factor-analysis", "gaussian-mixture-vae", "iwae"])
def test_a_model_is_trained_and_packed(name, tmp_path, monkeypatch):
    command = [name, "--out", str(tmp_path)]
    assert pretrain.main(command) == 0
    entry = read(tmp_path)[name]
    assert entry["recipe"] == json.loads(json.dumps(pretrain.RECIPES[name]))
    assert entry["training"]["fast"]
    before = (tmp_path / f"{name}.safetensors").read_bytes()
    assert len(before) == entry["file"]["bytes"]
    # A second time all of it comes from the checkpoints.
    monkeypatch.setattr(runs, "fit", only_resumed(runs.fit))
    assert pretrain.main(command) == 0
    again = read(tmp_path)[name]
    assert (tmp_path / f"{name}.safetensors").read_bytes() == before
    for part in ("recipe", "scores", "file"):
        assert again[part] == entry[part]
    assert again["training"]["seconds"] == entry["training"]["seconds"]
    assert not list(tmp_path.glob("*.partial"))


def only_resumed(fit):
    """fit, which must find a checkpoint of all its steps."""

    def checked(*arguments, checkpoint, **options):
        assert torch.load(checkpoint, weights_only=True)["step"] == options["steps"]
        return fit(*arguments, checkpoint=checkpoint, **options)

    return checked


def read(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_other_entries_stay_as_they_are(tmp_path):
    """And a state_dict or a checkpoint from elsewhere can be packed."""
    pretrain.main(["factor-analysis", "--out", str(tmp_path)])
    first = read(tmp_path)["factor-analysis"]
    model = weights.build(pretrain.RECIPES["vae-binarised"]["model"])
    path = tmp_path / "mine.pt"
    torch.save(model.state_dict(), path)
    how = ["--weights", str(path), "--seconds", "12", "--note", "by hand"]
    pretrain.main(["vae-binarised", "--out", str(tmp_path), *how])
    entries = read(tmp_path)
    assert list(entries) == ["factor-analysis", "vae-binarised"]
    assert entries["factor-analysis"] == first
    training = entries["vae-binarised"]["training"]
    assert (training["seconds"], training["note"]) == (12, "by hand")
    torch.save({"model": model.state_dict(), "seconds": 7.0}, path)
    pretrain.main(["vae-binarised", "--out", str(tmp_path), "--weights", str(path)])
    assert read(tmp_path)["vae-binarised"]["training"]["seconds"] == 7


def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch):
    pretrain.main(["factor-analysis", "--out", str(tmp_path)])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}

    def fail(*arguments, **options):
        raise KeyboardInterrupt

    model = models.FactorAnalysis()
    with monkeypatch.context() as patched:
        patched.setattr(runs, "score", fail)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pack("factor-analysis", model, {}, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "LARGEST", 100)
        with pytest.raises(ValueError, match=r"bytes; expected at most 100"):
            pretrain.pack("factor-analysis", model, {}, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_fast_run_does_not_replace_what_is_installed(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["factor-analysis"])
    assert "name a folder with --out" in capsys.readouterr().err


def test_a_checkpoint_of_another_recipe_is_not_taken(tmp_path, monkeypatch):
    recipe = pretrain.RECIPES["factor-analysis"]
    pretrain.train("factor-analysis", recipe, tmp_path)
    pretrain.train("factor-analysis", recipe | {"seed": 1}, tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_a_recipe_may_start_at_the_mean(tmp_path):
    recipe = pretrain.RECIPES["vae-binarised"] | {"start_at": "mean"}
    model, _ = pretrain.train("vae-binarised", recipe, tmp_path)
    train, _ = runs.examples(recipe, bundled=True)
    expected = torch.logit(train.x.mean(0), eps=1e-3)
    assert (model.generative[-1].logits.bias - expected).abs().max() < 0.1
