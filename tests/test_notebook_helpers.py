"""Tests of aevb/notebook.py, what a chapter's setup cell needs."""

import json
import math

import matplotlib as mpl
import pytest
import torch

import aevb
from aevb import data, models, notebook
from aevb.training import choose_device


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """Full speed, on the CPU, reports into a folder of this test."""
    monkeypatch.delenv("AEVB_FAST", raising=False)
    monkeypatch.setenv("AEVB_DEVICE", "cpu")
    monkeypatch.setenv("AEVB_REPORT_DIR", str(tmp_path / "reports"))
    monkeypatch.setitem(notebook._report, "dataset", "synthetic")
    with mpl.rc_context():
        yield


@pytest.mark.parametrize(
    "value, expected", [(None, False), ("", False), ("0", False), ("1", True)]
)
def test_fast(value, expected, monkeypatch):
    if value is not None:
        monkeypatch.setenv("AEVB_FAST", value)
    assert notebook.fast() is expected
    assert notebook.budget(50, fast=1) == (1 if expected else 50)


def test_setup_seeds_and_says_what_it_runs_on(capsys, monkeypatch):
    notebook.setup(seed=3)
    first = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(2))
    line = capsys.readouterr().out
    for part in (aevb.__version__, torch.__version__, "cpu", "threads", "full speed"):
        assert part in line
    assert line.count("\n") == 1
    monkeypatch.setenv("AEVB_FAST", "1")
    notebook.setup()
    assert "fast speed" in capsys.readouterr().out


def test_setup_places_the_training_of_the_whole_notebook(monkeypatch):
    monkeypatch.setenv("AEVB_DEVICE", "cuda")
    notebook.setup(device="cpu")
    assert choose_device() == torch.device("cpu")


def test_images_are_digits_in_fast_mode(capsys, monkeypatch):
    monkeypatch.setenv("AEVB_FAST", "1")
    monkeypatch.setattr(data, "mnist", None)  # must not be asked
    train, _ = notebook.images("binary")
    assert torch.equal(train.x, data.digits("binary")[0].x)
    out = capsys.readouterr().out
    assert out == "scikit-learn's digits, binary: 1437 training and 360 test images\n"


def test_images_are_mnist_at_full_speed(capsys, monkeypatch):
    sets = data.Examples(torch.zeros(6, 784)), data.Examples(torch.zeros(2, 784))
    monkeypatch.setattr(data, "mnist", lambda kind: sets)
    assert notebook.images("grey") == sets
    assert capsys.readouterr().out == "MNIST, grey: 6 training and 2 test images\n"


def test_images_fall_back_to_digits_and_say_so(capsys, monkeypatch):
    def missing(kind):
        raise data.DataError("no network")

    monkeypatch.setattr(data, "mnist", missing)
    train, _ = notebook.images("continuous")
    assert len(train) == 1437
    out = capsys.readouterr().out
    assert "MNIST could not be had" in out and "no network" in out
    assert "scikit-learn's digits, continuous: 1437" in out


def test_source_shows_the_packages_own_code(capsys, monkeypatch):
    from IPython import display

    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    notebook.source(models.FactorAnalysis.evidence)
    (markdown,) = shown
    assert markdown.data.startswith(
        "```python\ndef evidence(self, x: Tensor) -> Tensor:"
    )
    assert markdown.data.endswith("\n```")
    notebook.source(models.VAE)
    assert "class VAE(LatentVariableModel):" in shown[1].data
    assert '    """p(z) = N(0, I)."""\n' in shown[1].data
    assert "Args:" not in shown[1].data  # docstrings end after their first line


def test_fingerprint_prints_and_reports(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AEVB_FAST", "1")
    notebook.images("binary")
    capsys.readouterr()
    numbers = {"test_elbo": torch.tensor(-94.4567891), "steps": 3}
    notebook.fingerprint("07-chapter", **numbers)
    assert capsys.readouterr().out == "test elbo: -94.4568\nsteps: 3\n"
    report = json.loads((tmp_path / "reports" / "07-chapter.json").read_text())
    assert report == {
        "chapter": "07-chapter",
        "fast": True,
        "device": "cpu",
        "torch": torch.__version__,
        "dataset": "scikit-learn's digits",
        "numbers": {"test_elbo": -94.4568, "steps": 3.0},
    }


def test_fingerprint_without_a_folder_only_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("AEVB_REPORT_DIR")
    notebook.fingerprint("x", elbo=math.pi)
    assert capsys.readouterr().out == "elbo: 3.14159\n"
    assert list(tmp_path.iterdir()) == []


def test_a_study_is_found_by_its_name():
    assert set(notebook.study("07_seeds")) == {"stamp", "settings", "runs"}
    with pytest.raises(FileNotFoundError, match="no result called '99_none'"):
        notebook.study("99_none")


def test_table(monkeypatch):
    from IPython import display

    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    notebook.table(["name", "of $x$"], [["one", 1.25], ["two", "many"]], digits=1)
    lines = ["| name | of $x$ |", "| --- | ---: |", "| one | 1.2 |", "| two | many |"]
    assert shown[0].data.splitlines() == lines
    with pytest.raises(ValueError, match="is a formula; expected a word"):
        notebook.table(["name", "$x$"], [])
