"""Tests of the command line, ``python -m aevb``, and of the folders it leaves."""

import inspect
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aevb import __main__ as cli
from aevb import arguments, data, models, runs, training, weights
from aevb.recipes import RECIPES

TINY = {
    "factor-analysis": ["--steps", "20", "--every", "10", "--lr", "0.01"],
    "vae": ["--hidden", "8", "--latent-dim", "2", "--kind", "binary"],
    "conditional-vae": ["--hidden", "8", "--latent-dim", "2"],
    "gaussian-mixture-vae": ["--hidden", "8", "--latent-dim", "2"],
    "variational-rnn": [
        "--hidden",
        "4",
        "--recurrent",
        "4",
        "--likelihood",
        "gaussian",
    ],
}
SMALL = ["--data", "digits", "--train-examples", "150", "--batch-size", "50"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("AEVB_DEVICE", "cpu")


def command(model, out, *more):
    """Of a training that takes a fraction of a second."""
    small = [] if model == "factor-analysis" else [*SMALL, "--epochs", "2"]
    return ["train", model, *small, *TINY[model], "--out", str(out), *more]


@pytest.fixture(scope="module", params=TINY)
def trained(request, tmp_path_factory):
    """A folder for each model, made by the command line, and the model's name."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert cli.main([*command(request.param, folder), "--device", "cpu"]) == 0
    return folder, request.param


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "vae"
    assert cli.main([*command("vae", folder), "--device", "cpu", "--quiet"]) == 0
    return folder


def lines(folder):
    """The history: every line is JSON by itself, and ends."""
    text = (folder / "history.jsonl").read_text()
    assert text.endswith("\n")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def untimed(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def complaint(capsys, *argv):
    """The one line that a command with a wrong argument says, and its status."""
    try:
        status = cli.main(list(argv))
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    return status, err


# --- help ---


def parsers():
    """Every parser of the command line, by the words that lead to it."""
    found = {(): arguments.build_parser()}
    for words, parser in list(found.items()):
        todo = [(words, parser)]
        while todo:
            words, parser = todo.pop()
            for action in parser._actions:
                for name, child in (getattr(action, "choices", None) or {}).items():
                    found[(*words, name)] = child
                    todo.append(((*words, name), child))
    return found


PARSERS = parsers()
SHOWN = "\n".join(parser.epilog or "" for parser in PARSERS.values())
EXAMPLES = dict.fromkeys(re.findall(r"^  python -m aevb (.*)", SHOWN, re.MULTILINE))


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_help_explains_every_argument(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for action in PARSERS[words]._actions:
        assert action.help or action.dest in ("command", "model")
        assert all(option in shown for option in action.option_strings)
    assert max(map(len, shown.splitlines())) < 100


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_help_run(example, tmp_path, monkeypatch):
    """Or can be parsed, where they need MNIST or what another one leaves."""
    argv = shlex.split(example)
    options = arguments.build_parser().parse_args(argv)
    monkeypatch.chdir(tmp_path)
    installed = getattr(options, "target", "") in weights.manifest()
    needs_mnist = options.command == "evaluate" and options.target != "factor-analysis"
    if "digits" in argv or (installed and not needs_mnist):
        assert cli.main(argv) == 0
        assert options.command == "evaluate" or list(tmp_path.iterdir())


def test_help_is_quick():
    """It imports no torch."""
    code = (
        "import sys; from aevb.__main__ import main\n"
        "try: main(['train', 'vae', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- what the command line knows of the models ---


@pytest.mark.parametrize("name", arguments.MODELS)
def test_defaults_are_those_of_the_class_and_of_its_recipe(name):
    known, recipe = arguments.MODELS[name], RECIPES[name]
    signature = inspect.signature(getattr(models, recipe["model"]["class"])).parameters
    truth = {k: p.default for k, p in signature.items()} | recipe["model"]["arguments"]
    for argument, default in known.arguments.items():
        if argument == "likelihood":  # chosen by the kind of images
            kind = arguments.build_parser().parse_args(["train", name])
            default = arguments.likelihood_of(kind)
        want = truth[argument]
        assert default == (list(want) if isinstance(want, tuple) else want), argument


SAID = {
    "factor-analysis": "factor-analysis",
    "vae": "vae",
    "vae-binarised": "vae --latent-dim 50 --hidden 200 200 --activation tanh"
    " --kind stochastic --train-examples 60000 --start-at-mean --precision bfloat16",
    "iwae": "vae --latent-dim 50 --hidden 200 200 --activation tanh"
    " --kind stochastic --train-examples 60000 --start-at-mean --precision bfloat16"
    " --bound importance-weighted --samples 5",
}


@pytest.mark.parametrize("name", SAID)
def test_the_command_line_can_say_what_a_recipe_says(name):
    recipe = RECIPES[name]
    (want,) = recipe["stages"]
    argv = ["train", *SAID[name].split()]
    if "--kind" in argv:
        for key in ("epochs", "batch_size", "lr"):
            argv += [f"--{key.replace('_', '-')}", str(want[key])]
    made = arguments.recipe_of(arguments.build_parser().parse_args(argv))
    assert made["model"]["class"] == recipe["model"]["class"]
    assert made["model"]["arguments"].items() >= recipe["model"]["arguments"].items()
    for part in ("data", "seed", "start_at"):
        assert made.get(part) == recipe.get(part)
    neutral = inspect.signature(training.fit).parameters
    (stage,) = made["stages"]
    for key in (stage | want).keys() - {"every"}:  # how often does not change the rest
        assert stage.get(key) == want.get(key, neutral[key].default), key


# --- train ---


def test_a_training_leaves_history_weights_and_recipe(trained):
    folder, name = trained
    rows = lines(folder)
    assert len(rows) == 2 and rows[0]["step"] < rows[1]["step"]
    for row in rows:
        assert {"epoch", "seconds", "train_elbo", "test_elbo", "test_kl"} <= row.keys()
        assert isinstance(row["step"], int)
    model, entry = runs.load(folder)
    assert entry["recipe"]["model"]["class"] == RECIPES[name]["model"]["class"]
    assert entry["training"]["torch"] == torch.__version__
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["history"]["test_elbo"] == [row["test_elbo"] for row in rows]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state["model"][key])


def test_the_same_command_gives_the_same_history(trained, tmp_path):
    folder, name = trained
    assert cli.main([*command(name, tmp_path / "again"), "--quiet"]) == 0
    assert untimed(lines(tmp_path / "again")) == untimed(lines(folder))


@pytest.mark.parametrize("name", ["vae", "factor-analysis"])
def test_resuming_gives_the_history_of_a_training_without_a_stop(
    name, tmp_path, monkeypatch, capsys
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main(command(name, whole)) == 0
    with monkeypatch.context() as patch:

        def interrupt(self, history):
            raise KeyboardInterrupt

        patch.setattr(cli.Progress, "__call__", interrupt)
        capsys.readouterr()
        assert cli.main(command(name, stopped)) == 130
        told = capsys.readouterr().err
    assert len(lines(stopped)) == 1
    again = told.partition("go on with: python -m aevb ")[2]
    assert cli.main(shlex.split(again)) == 0
    assert untimed(lines(stopped)) == untimed(lines(whole))
    one, two = (load_file(f / "weights.safetensors") for f in (whole, stopped))
    assert all(torch.equal(one[key], two[key]) for key in one | two)
    assert cli.main([*command(name, stopped), "--resume"]) == 0  # nothing left to do
    assert untimed(lines(stopped)) == untimed(lines(whole))


def test_a_half_written_line_is_gone_after_resuming(vae, tmp_path):
    """What a killed process left behind the last checkpoint does not stay."""
    argv = command("vae", tmp_path / "run", "--quiet")
    assert cli.main(argv) == 0
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"step": 9, "ep')
    assert cli.main([*argv, "--resume"]) == 0
    assert untimed(lines(tmp_path / "run")) == untimed(lines(vae))


def test_stopped_before_the_first_evaluation(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "digits", interrupt)
    assert cli.main(command("vae", tmp_path / "run")) == 130
    assert "nothing to go on from" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(command("vae", tmp_path / "run", "--quiet")) == 0


def test_an_evaluation_is_in_the_history_when_it_is_reported(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        cli.Progress, "__call__", lambda *_: seen.append(len(lines(tmp_path / "run")))
    )
    assert cli.main(command("vae", tmp_path / "run")) == 0
    assert seen == [1, 2]


@pytest.mark.parametrize("name", ["vae", "conditional-vae", "factor-analysis"])
def test_the_importance_weighted_bound(name, tmp_path):
    """It lies above the ELBO of as many samples, from the same first weights."""
    scores = {}
    for bound in ("elbo", "importance-weighted"):
        more = ["--bound", bound, "--samples", "5", "--lr", "1e-9", "--quiet"]
        assert cli.main(command(name, tmp_path / bound, *more)) == 0
        scores[bound] = lines(tmp_path / bound)[0]["train_elbo"]
    assert scores["importance-weighted"] > scores["elbo"]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write = runs.Lines(tmp_path / "history.jsonl")
    write(training.History(step=[1.0], test_elbo=[float("nan")]))
    write(training.History(step=[1.0, 2.0], test_elbo=[float("nan"), -3.0]))
    want = [{"step": 1, "test_elbo": None}, {"step": 2, "test_elbo": -3.0}]
    assert lines(tmp_path) == want


def test_a_history_that_cannot_be_written_is_written_later(tmp_path, capsys):
    (tmp_path / "later").write_text("a file where a folder should be")
    write = runs.Lines(tmp_path / "later" / "history.jsonl")
    history = training.History(step=[1.0])
    write(history)
    assert "could not be written" in capsys.readouterr().err
    (tmp_path / "later").unlink()
    history.append({"step": 2})
    write(history)
    assert lines(tmp_path / "later") == [{"step": 1}, {"step": 2}]


def test_only_one_process_writes(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(runs, "train", lambda *_, **options: seen.append(options) or _)
    monkeypatch.setenv("RANK", "1")
    assert cli.main(command("vae", tmp_path / "run")) == 0
    assert not seen[0]["writes"] and seen[0]["report"] is None
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


# --- wrong arguments ---


@pytest.mark.parametrize(
    "argv, words",
    [
        ("train vea", "MODEL 'vea' factor-analysis vae"),
        ("train vae --epochs 0", "--epochs '0' whole number, at least 1"),
        ("train vae --epochs 2 --steps 3", "--steps --epochs"),
        ("train vae --lr -1", "--lr '-1' positive number"),
        ("train vae --lr nan", "--lr 'nan' positive number"),
        ("train vae --batch-size 1.5", "--batch-size '1.5' whole number"),
        ("train vae --schedule cosin", "--schedule 'cosin' constant, cosine"),
        ("train vae --dropout 1", "--dropout '1' at least 0 and less than 1"),
        ("train vae --hidden 500 x", "--hidden 'x' whole number"),
        ("train vae --kl-warmup 2", "--kl-warmup '2' share from 0 to 1"),
        ("train vae --seed -1", "--seed '-1' whole number, at least 0"),
        ("train vae --encoders 3", "--encoders '3' 1 or 2"),
        ("train vae --data mnits", "--data 'mnits' mnist, digits"),
        (
            "train vae --likelihood bernoulli",
            "--likelihood 'bernoulli' --kind gaussian",
        ),
        ("train vae --device cuda:99", "--device 'cuda:99' cpu"),
        ("train vae --device tpu", "--device 'tpu' cpu"),
        ("train vae --device 7up", "--device '7up' cpu"),
        ("train vae --out {file}", "--out folder"),
        ("train variational-rnn --bound elbo", "--bound"),
        ("train gaussian-mixture-vae --posterior full", "--posterior"),
        ("evaluate nowhere", "MODEL 'nowhere' vae-binarised"),
        ("evaluate factor-analysis --examples 1", "--examples '1' at least 2"),
        ("evaluate factor-analysis --data digits", "--data 'digits' factor-analysis"),
        ("sample factor-analysis --out x.jpg", "--out x.jpg .png .npy .safetensors"),
        ("sample factor-analysis --out {folder}/x.png", "--out 3 numbers .npy"),
        ("sample factor-analysis --label 1", "--label 1 no classes"),
        ("draw vae", "COMMAND 'draw' train evaluate sample"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(
    argv, words, tmp_path, capsys, monkeypatch
):
    """What it was, and what is expected; before any data are loaded."""

    def load(*_, **__):
        raise AssertionError("data are loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "mnist", load)
    monkeypatch.setattr(data, "digits", load)
    file = tmp_path / "file"
    file.touch()
    status, said = complaint(capsys, *argv.format(file=file, folder=tmp_path).split())
    assert status == 2
    for word in words.split():
        assert word in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_holds_a_training_is_kept(vae, capsys):
    before = (vae / "weights.safetensors").read_bytes()
    status, said = complaint(capsys, *command("vae", vae, "--seed", "1"))
    assert status == 2 and "--out" in said and "--resume" in said
    assert (vae / "weights.safetensors").read_bytes() == before


def test_weights_without_a_checkpoint_are_kept(vae, tmp_path, capsys):
    (tmp_path / "weights.safetensors").write_bytes(b"precious")
    for more in ([], ["--resume"]):
        status, said = complaint(capsys, *command("vae", tmp_path, *more))
        assert status == 2 and "expected another folder" in said


@pytest.mark.parametrize(
    "more, name",
    [
        (["--seed", "1"], "seed"),
        (["--dropout", "0.5"], "model.arguments.dropout"),
        (["--epochs", "3"], "stages.1.epochs"),
        (["--train-examples", "140"], "data.examples"),
    ],
)
def test_resuming_with_other_arguments_is_refused(vae, capsys, more, name):
    status, said = complaint(capsys, *command("vae", vae, "--resume", *more))
    assert status == 2 and f"--resume: {name} is" in said


def test_mnist_that_cannot_be_had(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise data.DataError("mnist: no network")

    monkeypatch.setattr(data, "mnist", fail)
    status, said = complaint(capsys, "train", "vae", "--out", str(tmp_path / "run"))
    assert status == 1 and "no network" in said


def test_a_training_that_diverges_says_so(tmp_path, capsys):
    argv = command("vae", tmp_path / "run", "--lr", "1e30", "--quiet")
    status, said = complaint(capsys, *argv)
    assert status == 1 and "not finite" in said


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(data, "digits", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(command("vae", tmp_path / "run"))


# --- evaluate ---


def test_evaluate(trained, capsys):
    folder, name = trained
    argv = ["evaluate", str(folder), "--samples", "20", "--examples", "30"]
    argv += ["--elbo-samples", "2"]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = found["scores"]
    assert found["model"] == str(folder)
    assert scores["gap"]["mean"] > 0 and scores["log_likelihood"]["samples"] == 20
    assert ("evidence" in scores) == (name == "factor-analysis")
    told = name in ("conditional-vae", "gaussian-mixture-vae")
    assert ("accuracy" in scores) == told
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    for title in ("ELBO", "log p(x)", *(["accuracy"] if told else [])):
        assert re.search(rf"{re.escape(title)} .*\d ± \d", shown)
    assert f"{scores['elbo']['mean']:.2f}" in shown


def test_evaluate_gives_the_test_elbo_of_the_training(vae, capsys):
    """With one draw and the same seed, that of the history's last line."""
    few = ["--elbo-samples", "1", "--samples", "1", "--examples", "2"]
    assert cli.main(["evaluate", str(vae), *few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]["elbo"]
    last = lines(vae)[-1]["test_elbo"]
    assert found["examples"] == 360 and found["mean"] == pytest.approx(last, abs=1e-3)


def test_evaluate_installed_weights(capsys):
    argv = ["evaluate", "factor-analysis", "--samples", "100", "--json"]
    assert cli.main(argv) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["log_likelihood"]["mean"] == pytest.approx(
        scores["evidence"]["mean"], abs=0.01
    )


@pytest.mark.parametrize("broken", ["weights.safetensors", "model.json"])
def test_a_broken_folder_is_refused(vae, tmp_path, capsys, broken):
    for path in vae.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / broken).write_bytes(b"something else")
    status, said = complaint(capsys, "evaluate", str(tmp_path))
    assert status == 1 and broken in said


def test_a_training_that_is_not_finished_is_not_evaluated(vae, tmp_path, capsys):
    entry = json.loads((vae / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({"recipe": entry["recipe"]}))
    with pytest.raises(weights.WeightsError, match="not finished"):
        runs.load(tmp_path)
    assert complaint(capsys, "evaluate", str(tmp_path))[0] == 1


# --- sample ---


def test_sample_writes_a_grid_of_images(trained, tmp_path):
    folder, name = trained
    if name == "factor-analysis":  # three numbers are no image
        return
    out = tmp_path / "made" / "x.png"
    argv = ["sample", str(folder), "--out", str(out), "--count", "6", "--columns", "3"]
    assert cli.main([*argv, "--mean"]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and image.size == (3 * 30 + 2, 2 * 30 + 2)


def test_sample_writes_numbers(trained, tmp_path):
    folder, name = trained
    shape = {"factor-analysis": (4, 3), "variational-rnn": (4, 28, 28)}
    for seed, ending in (("1", "npy"), ("1", "safetensors"), ("2", "npy")):
        out = str(tmp_path / f"{seed}.{ending}")
        argv = ["sample", str(folder), "--out", out, "--count", "4", "--seed", seed]
        assert cli.main(argv) == 0
    one, other = np.load(tmp_path / "1.npy"), np.load(tmp_path / "2.npy")
    assert one.shape == shape.get(name, (4, 784)) and not (one == other).all()
    assert (load_file(tmp_path / "1.safetensors")["x"].numpy() == one).all()


@pytest.mark.parametrize("name", ["conditional-vae", "gaussian-mixture-vae"])
def test_sample_of_a_class(name, tmp_path, capsys):
    cli.main(command(name, tmp_path / "run", "--quiet"))
    out = tmp_path / "x.npy"
    argv = ["sample", str(tmp_path / "run"), "--out", str(out), "--count", "7"]
    assert cli.main([*argv, "--mean", "--label", "3"]) == 0
    model, _ = runs.load(tmp_path / "run")
    g = torch.Generator().manual_seed(0)
    want = model.sample(1, torch.full((7,), 3), mean=True, generator=g)[0]
    assert np.allclose(np.load(out), want.numpy())
    capsys.readouterr()
    status, said = complaint(capsys, *argv, "--label", "10")
    assert status == 2 and "--label is 10" in said and "0 to 9" in said


# --- in a process of its own ---


def test_the_command_runs_by_itself(tmp_path):
    argv = command("factor-analysis", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "aevb", *argv], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"epoch .*, train ELBO -.* nats, test ELBO -.* nats", done.stdout)
    assert len(lines(tmp_path / "run")) == 2


def test_two_processes_give_what_one_gives(tmp_path):
    one, two = (command("factor-analysis", tmp_path / n) for n in ("one", "two"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "aevb", *two], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch") == 2  # one of them speaks
    assert cli.main(one) == 0
    pairs = zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True)
    for alone, together in pairs:
        for key in alone.keys() - {"seconds"}:
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-4)
    assert runs.load(tmp_path / "two")
