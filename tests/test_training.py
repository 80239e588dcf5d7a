"""Tests of aevb/training.py: the loop, its reproducibility, and what can go wrong."""

import functools
import gc
import math
import os
import resource
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    TensorDataset,
    get_worker_info,
)

from aevb import data, estimators, evaluation, fit, models, training
from aevb.model import ElboTerms
from aevb.training import Diverged, History

FA_TRAIN, FA_TEST = data.factor_analysis(n=250)
IMAGES = data.digits("continuous")[0][:120]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("AEVB_DEVICE", "cpu")


def new(kind="fa", seed=0):
    """A model, always the same; ``vae`` has dropout."""
    torch.manual_seed(seed)
    if kind == "fa":
        return models.FactorAnalysis()
    return models.VAE(latent_dim=2, hidden=(8,), dropout=0.3)


def run(model, train, **options):
    return fit(model, train, **{"progress": False, "batch_size": 50} | options)


def columns(history):
    """Everything but the time it took."""
    return {name: column for name, column in history.items() if name != "seconds"}


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


class Stop(Exception):
    """Raised where a test stops a training."""


# --- learning ---


def test_factor_analysis_learns():
    """The evidence rises from far below to that of the true parameters."""
    model = new()
    before = model.evidence(FA_TEST.x).mean().item()
    history = run(
        model,
        FA_TRAIN,
        test=FA_TEST,
        steps=1500,
        every=500,
        lr=1e-2,
        record=lambda model: {"evidence": model.evidence(FA_TEST.x).mean()},
    )
    truth = -4.0
    assert before < truth - 1
    assert history.evidence[-1] > truth - 0.2
    assert history["evidence"] == sorted(history["evidence"])
    assert history.step == [500, 1000, 1500] and history.epoch == [100, 200, 300]
    assert abs(history.test_elbo[-1] - history.evidence[-1]) < 0.3


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "continuous_bernoulli", "gaussian"]
)
def test_vae_learns(likelihood):
    train, test = data.digits("binary" if likelihood == "bernoulli" else "continuous")
    model = models.VAE(latent_dim=2, hidden=(32,), likelihood=likelihood, dropout=0.0)
    history = run(model, train[:500], test=test[:100], epochs=4, lr=3e-3)
    assert history.test_elbo == sorted(history.test_elbo)
    assert history.test_elbo[-1] > history.test_elbo[0] + 10
    assert history.train_elbo[-1] > history.train_elbo[0] + 10


def test_one_step_is_one_step_of_adam():
    """Against torch's own Adam on the same batch, noise and estimate."""
    x = FA_TRAIN.x[:50]
    ours, theirs = new(), new()
    fixed = functools.partial(fixed_noise, seed=5)
    run(ours, x, steps=1, lr=0.01, estimator=fixed)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    (-fixed(theirs, x).elbo.mean()).backward()
    optimizer.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def fixed_noise(model, x, seed):
    """The ELBO with noise that does not depend on the order of the examples."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, generator=generator)
    q = model.posterior(x)
    z = q.mean + noise @ q.scale_tril[0].T
    kl = torch.distributions.kl_divergence(q, model.prior())
    return ElboTerms(model.likelihood(z).log_prob(x), kl)


# --- the history ---


def test_history_has_rows_and_columns():
    history = run(new(), FA_TRAIN, test=FA_TEST, epochs=3)
    terms = ("elbo", "reconstruction", "kl")
    assert set(history) == {"step", "epoch", "seconds", "lr"} | {
        f"{part}_{term}" for part in ("train", "test") for term in terms
    }
    assert history.step == [5, 10, 15] and history.epoch == [1, 2, 3]
    assert history.lr == [1e-3] * 3
    assert history.seconds == sorted(history.seconds) and history.seconds[0] > 0
    assert all(type(x) is float for column in history.values() for x in column)
    for part in ("train", "test"):
        for elbo, reconstruction, kl in zip(
            *(history[f"{part}_{term}"] for term in terms), strict=True
        ):
            assert elbo == pytest.approx(reconstruction - kl, abs=1e-6)
    with pytest.raises(AttributeError, match=r"no column 'accuracy'; it has \['step'"):
        _ = history.accuracy


def test_history_of_steps():
    history = run(new(), FA_TRAIN, steps=13, every=5)  # 5 steps an epoch
    assert history.step == [5, 10, 13] and history.epoch == [1, 2, 2.6]


def test_history_of_every_other_epoch():
    assert run(new(), FA_TRAIN, epochs=5, every=2).epoch == [2, 4, 5]


@pytest.mark.parametrize("source", ["tensor", "loader"])
@pytest.mark.parametrize("options", [{"epochs": 2}, {"steps": 7, "every": 4}])
def test_training_terms_are_means_over_the_examples(source, options):
    """Also where the last batch is smaller, and where a loader has its own size."""
    x = FA_TRAIN.x[:103]
    seen = []

    def spy(model, batch):
        seen.append(len(batch))
        ones = torch.ones(len(batch)) + 0 * model.loadings.sum()
        return ElboTerms(batch.sum(1).detach() * ones, 2 * ones)

    train = x if source == "tensor" else DataLoader(TensorDataset(x), batch_size=20)
    history = run(
        new(),
        train,
        batch_size=20 if source == "tensor" else 100,
        estimator=spy,
        **options,
    )
    assert history.train_kl == [2.0, 2.0]
    expected = [20, 20, 20, 20, 20, 3]
    if "epochs" in options:
        assert seen == expected * 2
        mean = x.sum(1).double().mean().item()
        assert history.train_reconstruction == pytest.approx([mean, mean], abs=1e-5)
    else:
        assert seen == [*expected, 20]


def test_test_terms_are_those_of_evaluation():
    model = new("vae")
    history = run(model, IMAGES, test=IMAGES, epochs=1)
    assert history.test_elbo[-1] == pytest.approx(evaluation.elbo(model, IMAGES).mean)


def test_recorded_columns():
    calls = []

    def record(model):
        assert not model.training and not torch.is_grad_enabled()
        calls.append(model)
        return {"calls": len(calls), "noise": model.noise_scale.mean()}

    model = new()
    history = run(model, FA_TRAIN, epochs=2, record=record)
    assert history["calls"] == [1, 2] and calls == [model, model]
    assert history.noise[-1] == pytest.approx(model.noise_scale.mean().item())


# --- reproducibility ---

SOURCES = {
    "examples": IMAGES,  # the noise of the pixels is redrawn for every batch
    "tensor": IMAGES.x,
    "loader": DataLoader(TensorDataset(IMAGES.x), batch_size=50, shuffle=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_same_seed_same_history_to_the_last_digit(source):
    results = []
    for seed in (3, 3, 4):
        model = new("vae")
        torch.manual_seed(len(results))  # the global state does not matter
        history = run(model, SOURCES[source], test=IMAGES, epochs=2, seed=seed)
        results.append((columns(history), values(model)))
    (one, parameters), (two, again), (other, _) = results
    assert one == two and same(parameters, again)
    assert one["train_elbo"] != other["train_elbo"]


@pytest.mark.parametrize(
    "kind, train, expected",
    [
        ("fa", FA_TRAIN, [-42.4014694, -37.9049855, -38.9427170]),
        ("vae", IMAGES, [-0.6140779, 1.5783366, 3.1868495]),
        ("vae", SOURCES["loader"], [-0.6464190, 1.5689465]),
    ],
)
def test_histories_of_the_past(kind, train, expected):
    """What the numbers of the chapters rest on: the order of all random draws."""
    history = run(new(kind), train, epochs=len(expected))
    assert history.train_elbo == pytest.approx(expected, rel=1e-4)


def test_workers_of_a_loader_give_the_same_history():
    """However many load the examples, and also where each draws something itself."""
    examples = TensorDataset(IMAGES.x)
    histories = [
        run(new("vae"), DataLoader(examples, 50, shuffle=True, num_workers=n), epochs=2)
        for n in (0, 1, 2)
    ]
    assert columns(histories[0]) == columns(histories[1]) == columns(histories[2])
    noisy = Noisy()
    histories = [
        run(new("vae"), DataLoader(noisy, 50, shuffle=True, num_workers=2), epochs=2)
        for _ in range(2)
    ]
    assert columns(histories[0]) == columns(histories[1])


class Noisy(Dataset):
    """Draws for every example, as augmentations do."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return IMAGES.x[index] * torch.rand(())


def test_how_often_it_looks_does_not_change_what_it_learns():
    runs = [new("vae"), new("vae")]
    run(runs[0], IMAGES, epochs=4, every=4)
    run(runs[1], IMAGES, epochs=4, every=1, test=IMAGES)
    assert same(values(runs[0]), values(runs[1]))


def test_global_random_state_is_left_alone():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    model = models.VAE(latent_dim=2, hidden=(8,))
    torch.set_rng_state(torch_state)
    run(model, IMAGES, test=IMAGES, epochs=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    with pytest.raises(Stop):
        run(model, IMAGES, epochs=1, record=stop_at(1))
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_noise_is_redrawn_in_every_epoch():
    batches = []

    def spy(model, x):
        batches.append(x)
        return model.elbo(x)

    run(new("vae"), IMAGES[:50], epochs=2, estimator=spy)
    first, second = (x.sum(1).sort().values for x in batches)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0.02, atol=0)


# --- speed, without a clock: `make benchmark` has one ---


class Synchronisations(TorchDispatchMode):
    """Counts the tensors that are turned into Python numbers."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_a_number():
    """A device need not be waited for before the evaluation: no ``.item()`` a step."""
    counts = []
    for steps in (10, 40):
        with Synchronisations() as found:
            run(new("vae"), IMAGES, steps=steps, every=steps)
        counts.append(found.count)
    assert counts[0] == counts[1] < 40


def test_nothing_is_validated_in_the_loop():
    """``torch.distributions`` would look at every number of every batch."""
    seen = []

    def estimator(model, x):
        seen.extend([model.prior(), model.posterior(x), model.likelihood(x[:, :2])])
        return model.elbo(x)

    for likelihood in ("bernoulli", "continuous_bernoulli", "gaussian"):
        model = models.VAE(latent_dim=2, hidden=(8,), likelihood=likelihood)
        x = IMAGES.x.round() if likelihood == "bernoulli" else IMAGES.x
        run(model, x, steps=1, estimator=estimator)
    run(new(), FA_TRAIN, steps=1, estimator=estimator)
    assert len(seen) == 12
    for p in seen:
        assert not p._validate_args
        assert not getattr(p, "base_dist", p)._validate_args


# --- stop and resume ---


def stop_at(count, error=Stop):
    """A ``record`` that raises at the given call."""
    calls = []

    def record(model):
        calls.append(None)
        if len(calls) == count:
            raise error
        return {}

    return record


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "options",
    [{"epochs": 4}, {"steps": 10, "every": 2}],  # 3 steps an epoch: stops within one
    ids=["at an epoch's end", "within an epoch"],
)
@pytest.mark.parametrize("update", ["both", "inference"])
def test_stopped_and_resumed_is_the_same_as_never_stopped(
    source, options, update, tmp_path
):
    options = options | {"test": IMAGES, "update": update, "kl_warmup": 0.7}
    options["schedule"] = "cosine"
    straight = new("vae")
    history = run(straight, SOURCES[source], record=lambda model: {}, **options)
    for stop in range(3, len(history.step) + 1):
        path = tmp_path / f"{stop}.pt"
        stopped = new("vae")
        saved = {"checkpoint": path} | options
        with pytest.raises(KeyboardInterrupt):
            record = stop_at(stop, KeyboardInterrupt)
            run(stopped, SOURCES[source], record=record, **saved)
        resumed = new("vae", seed=99)  # its parameters come from the checkpoint
        if update == "inference":
            resumed.generative.load_state_dict(straight.generative.state_dict())
        again = run(
            resumed, SOURCES[source], record=lambda model: {}, resume=True, **saved
        )
        assert columns(again) == columns(history)
        assert same(values(resumed), values(straight))


@pytest.mark.parametrize("options", [{"epochs": 4}, {"steps": 10, "every": 2}])
@pytest.mark.parametrize("owner", ["loader", "sampler", "batch sampler"])
def test_a_loader_with_a_generator_of_its_own_goes_on_with_it(owner, options, tmp_path):
    """Each program makes its loader anew, with the same seed."""

    def loader():
        generator, examples = torch.Generator().manual_seed(7), TensorDataset(IMAGES.x)
        if owner == "loader":
            return DataLoader(examples, 50, shuffle=True, generator=generator)
        sampler = RandomSampler(examples, generator=generator)
        if owner == "sampler":
            return DataLoader(examples, 50, sampler=sampler)
        batches = BatchSampler(sampler, 50, drop_last=False)
        return DataLoader(examples, batch_sampler=batches)

    straight = new("vae")
    history = run(straight, loader(), record=lambda model: {}, **options)
    for stop in (3, 4):
        stopped, resumed = new("vae"), new("vae", seed=99)
        files = {"checkpoint": tmp_path / f"{stop}.pt"} | options
        with pytest.raises(Stop):
            run(stopped, loader(), record=stop_at(stop), **files)
        again = run(resumed, loader(), record=lambda model: {}, resume=True, **files)
        assert columns(again) == columns(history)
        assert same(values(resumed), values(straight))


def test_stopped_within_a_step_and_resumed(tmp_path):
    """The evaluations so far are kept; what came after them is done again."""
    path, calls = tmp_path / "run.pt", []

    def interrupted(model, x):
        calls.append(None)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return model.elbo(x)

    interrupted.__qualname__ = estimator_name = "same"
    plain = functools.partial(lambda model, x: model.elbo(x))
    plain.__qualname__ = estimator_name
    straight, model = new("vae"), new("vae")
    history = run(straight, IMAGES, epochs=4, estimator=plain)
    with pytest.raises(KeyboardInterrupt):
        run(model, IMAGES, epochs=4, estimator=interrupted, checkpoint=path)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    again = run(model, IMAGES, epochs=4, estimator=plain, checkpoint=path, resume=True)
    assert columns(again) == columns(history) and same(values(model), values(straight))


def test_resume_of_a_finished_run_does_nothing_more(tmp_path):
    path, model = tmp_path / "deep" / "run.pt", new()
    history = run(model, FA_TRAIN, epochs=2, checkpoint=path)
    other = new(seed=7)
    again = run(other, FA_TRAIN, epochs=2, checkpoint=path, resume=True)
    assert again == history and same(values(other), values(model))


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    path, model = tmp_path / "run.pt", new()
    history = run(model, FA_TRAIN, epochs=2, checkpoint=path, resume=True)
    assert history.epoch == [1, 2] and path.exists()
    with pytest.raises(ValueError, match="resume is True and checkpoint is None"):
        run(model, FA_TRAIN, epochs=2, resume=True)


def test_without_resume_a_checkpoint_is_written_anew(tmp_path):
    path = tmp_path / "run.pt"
    run(new(), FA_TRAIN, epochs=2, checkpoint=path)
    assert run(new(), FA_TRAIN, epochs=1, checkpoint=path).epoch == [1]
    assert run(new(), FA_TRAIN, epochs=1, checkpoint=path, resume=True).epoch == [1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 0.5}, "lr is 0.5, and the checkpoint .* was made with 0.001; expected"),
        ({"batch_size": 25}, "batch_size is 25, and .* with 50"),
        ({"seed": 1}, "seed is 1, and .* with 0"),
        ({"epochs": 9}, "epochs is 9, and .* with 2"),
        ({"update": "generative"}, "update is 'generative', and .* with 'both'"),
        ({"schedule": "cosine"}, "schedule is 'cosine', and .* with 'constant'"),
        ({"estimator": estimators.fully_sampled}, "estimator is 'fully_sampled', and"),
        ({"train": FA_TRAIN[:100]}, "examples is 100, and .* with 250"),
        (
            {"estimator": functools.partial(estimators.analytic_kl, num_samples=5)},
            r"estimator is 'analytic_kl\(num_samples=5\)', and",
        ),
    ],
)
def test_resume_with_other_settings_is_refused(change, message, tmp_path):
    path = tmp_path / "run.pt"
    run(new(), FA_TRAIN, epochs=2, checkpoint=path)
    before, model = path.read_bytes(), new(seed=1)
    untouched = values(model)
    options = {"train": FA_TRAIN, "epochs": 2, "checkpoint": path} | change
    with pytest.raises(ValueError, match=message):
        run(model, options.pop("train"), resume=True, **options)
    assert path.read_bytes() == before and same(values(model), untouched)


def test_resume_with_another_model_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(new(), FA_TRAIN, epochs=1, checkpoint=path)
    model = models.FactorAnalysis(latent_dim=3)
    untouched = values(model)
    expected = r"shape of generative.loadings is \(3, 3\), and .* with \(3, 2\)"
    with pytest.raises(ValueError, match=expected):
        run(model, FA_TRAIN, epochs=1, checkpoint=path, resume=True)
    assert same(values(model), untouched)


def test_a_numpy_learning_rate_can_be_resumed(tmp_path):
    path = tmp_path / "run.pt"
    options = {"epochs": 1, "lr": np.float64(1e-3), "checkpoint": path}
    run(new(), FA_TRAIN, **options)
    assert run(new(), FA_TRAIN, resume=True, **options).epoch == [1]


def test_an_estimators_options_are_part_of_its_name():
    """And addresses in memory are not, which differ in each program."""
    partial = functools.partial
    options = {"kl": "sampled", "temperature": 0.5}
    relaxed = partial(estimators.gumbel_softmax, **options)
    assert training._name(relaxed) == "gumbel_softmax(kl='sampled', temperature=0.5)"
    twice = partial(partial(fixed_noise), None, seed=len)
    assert training._name(twice) == "fixed_noise(None, seed=len)"
    with_object = partial(fixed_noise, seed=object(), g=torch.Generator())
    name = "fixed_noise(g=<torch._C.Generator object>, seed=<object object>)"
    assert training._name(with_object) == name
    assert training._name(Noisy()) == "Noisy"


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    path, trap = tmp_path / "run.pt", tmp_path / "executed"
    torch.save({"settings": Malicious(trap), "model": {}}, path)
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint .* executed"):
        run(new(), FA_TRAIN, epochs=1, checkpoint=path, resume=True)
    assert not trap.exists()


@pytest.mark.parametrize("content", ["garbage", "empty", "half", "something else"])
def test_a_broken_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "run.pt"
    run(new(), FA_TRAIN, epochs=1, checkpoint=path)
    whole = path.read_bytes()
    if content == "something else":
        torch.save([1, 2, 3], path)
    else:
        parts = {"garbage": b"garbage", "empty": b"", "half": whole[: len(whole) // 2]}
        path.write_bytes(parts[content])
    with pytest.raises(ValueError, match=r"run\.pt .*; expected a file that fit wrote"):
        run(new(), FA_TRAIN, epochs=1, checkpoint=path, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_training_goes_on(
    tmp_path, monkeypatch, capsys
):
    path, save, count = tmp_path / "run.pt", torch.save, []

    def full_disk(state, file):
        count.append(None)
        if len(count) == 1:
            return save(state, file)
        file.write_bytes(b"only the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    model = new()
    history = run(model, FA_TRAIN, epochs=3, checkpoint=path)
    assert history.epoch == [1, 2, 3] and len(count) == 3
    assert os.listdir(tmp_path) == ["run.pt"]
    assert torch.load(path, weights_only=True)["step"] == 5
    assert "No space left on device" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("AEVB_DEVICE", "cpu")
    again = new(seed=1)
    run(again, FA_TRAIN, epochs=3, checkpoint=path, resume=True)
    assert same(values(again), values(model))


def test_a_disk_that_is_full_in_earnest(tmp_path, capsys):
    """The system refuses to write more than some bytes to a file."""
    path, limits = tmp_path / "run.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    run(new("vae"), IMAGES, epochs=1, checkpoint=path)
    before = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        history = run(new("vae"), IMAGES, epochs=2, checkpoint=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert history.epoch == [1, 2]
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.pt"]
    assert "could not write the checkpoint" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_written_at_all(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "run.pt"
    assert run(new(), FA_TRAIN, epochs=1, checkpoint=path).epoch == [1]
    assert "could not write the checkpoint" in capsys.readouterr().out


# --- training that stops early ---


def interrupted(step, error):
    """An estimator that fails in the given step."""
    calls = []

    def estimator(model, x):
        calls.append(None)
        if len(calls) == step:
            raise error
        return model.elbo(x)

    return estimator


def train_and_fail(error, tmp_path, step=13, **options):
    """The error that comes out, the model, and what it was at the last evaluation."""
    model, good = new(), {}
    settings = {"epochs": 5, "checkpoint": tmp_path / "run.pt"} | options
    with pytest.raises(BaseException) as caught:
        run(
            model,
            FA_TRAIN,
            estimator=interrupted(step, error),
            record=lambda model: good.update(values(model)) or {},
            **settings,
        )
    assert not model.training and same(values(model), good)
    return caught.value


def test_an_interrupted_training_is_put_back_and_says_how_to_go_on(tmp_path):
    error = train_and_fail(KeyboardInterrupt(), tmp_path)
    assert type(error) is KeyboardInterrupt and error.history.step == [5, 10]
    (note,) = error.__notes__
    assert "the model is as it was after step 10" in note
    assert f"fit(..., checkpoint='{tmp_path / 'run.pt'}', resume=True)" in note
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 10


def test_an_interrupted_training_without_a_checkpoint(tmp_path):
    error = train_and_fail(KeyboardInterrupt(), tmp_path, checkpoint=None)
    (note,) = error.__notes__
    assert "after step 10" in note and "``history``" in note and "resume" not in note


def test_any_other_error_comes_out_as_it_is(tmp_path):
    error = train_and_fail(Stop("mine"), tmp_path)
    assert type(error) is Stop and not hasattr(error, "__notes__")
    assert error.history.step == [5, 10]


def normalised():
    """With batch normalisation: what it has seen lies in buffers."""
    sizes = {"data_dim": 3, "latent_dim": 2, "hidden": (4,)}
    model = models.VAE(likelihood="gaussian", **sizes)
    model.inference.insert(0, nn.BatchNorm1d(3))
    constant = torch.ones(1).expand(5)  # which cannot be written to
    model.register_buffer("constant", constant, persistent=False)
    model.check = lambda x: None  # as a reader's model, which need not look for NaN
    return model


@pytest.mark.parametrize("update", training.UPDATES)
def test_buffers_are_put_back_with_the_parameters(update):
    """A NaN enters the running means, also where no parameter beside them moves."""
    model, x = normalised(), FA_TRAIN.x.clone()
    x[7] = math.nan
    before = values(model)
    with pytest.raises(Diverged, match="step 0 were put back"):
        run(model, x, epochs=1, update=update)
    assert same(values(model), before)
    history = run(model, FA_TRAIN.x, epochs=1, update=update)
    assert not same(values(model), before) and math.isfinite(history.train_elbo[-1])


def test_no_gradient_is_left_behind():
    """What a reader's next ``backward`` computes would be added to it."""
    model = new()
    run(model, FA_TRAIN, epochs=1)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(Stop):
        run(model, FA_TRAIN, epochs=1, estimator=interrupted(3, Stop()))
    assert all(p.grad is None for p in model.parameters())


def real_lack_of_memory():
    try:
        torch.empty(2**55)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        real_lack_of_memory(),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_out_of_memory_says_what_to_try(error, tmp_path):
    found = train_and_fail(error, tmp_path)
    assert type(found) is MemoryError
    for part in ("out of memory on cpu at step 13", "batches of 50", "batch_size"):
        assert part in str(found)
    assert str(error).partition("\n")[0] in str(found) and "\n" not in str(found)
    assert "resume=True" in found.__notes__[0]
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 10


def test_data_for_which_the_device_has_no_room(monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    x = torch.zeros(2**18, 3).expand(-1, 3)
    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(MemoryError, match="no room; a DataLoader's batches"):
        data.Batches(x)


class Fatal(Dataset):
    """Its seventieth example ends the process that loads it."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index == 70 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return FA_TRAIN.x[index]


# If it dies while it passes a batch on, the loader leaves a socket open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_of_a_loader_is_named(tmp_path):
    loader, model = DataLoader(Fatal(), batch_size=10, num_workers=2), new()
    before, path = values(model), tmp_path / "run.pt"
    with pytest.raises(RuntimeError, match=r"worker of the DataLoader was kill.*fewer"):
        run(model, loader, epochs=2, checkpoint=path)
    assert same(values(model), before) and not path.exists()
    gc.collect()


class Broken(Fatal):
    """Its seventieth example cannot be read."""

    def __init__(self, error):
        self.error = error

    def __getitem__(self, index):
        if index == 70:
            raise self.error("this file is no image")
        return FA_TRAIN.x[index]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_an_error_in_a_data_set_is_passed_on(workers, error):
    loader = DataLoader(Broken(error), batch_size=10, num_workers=workers)
    with pytest.raises(error, match="this file is no image") as caught:
        run(new(), loader, epochs=1)
    assert "killed" not in str(caught.value)


# --- update ---


@pytest.mark.parametrize("kind", ["fa", "vae"])
@pytest.mark.parametrize("update", ["both", "inference", "generative"])
def test_update_moves_only_its_half(kind, update):
    model = new(kind)
    frozen = next(model.generative.parameters()), next(model.inference.parameters())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = values(model)
    run(model, FA_TRAIN if kind == "fa" else IMAGES, epochs=1, update=update)
    after = values(model)
    still = {
        half
        for half in ("generative", "inference")
        if all(torch.equal(before[k], after[k]) for k in before if k.startswith(half))
    }
    expected = {"both": set(), "inference": {"generative"}, "generative": {"inference"}}
    assert still == expected[update]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.requires_grad for p in frozen)


def test_flags_are_left_as_they_were_also_after_an_error():
    model = new("vae")
    model.generative[0][0].weight.requires_grad_(False)
    before = values(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for update in ("both", "inference", "generative"):
        with pytest.raises(Stop):
            run(model, IMAGES, epochs=1, update=update, record=stop_at(1))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    name = "generative.0.0.weight"
    assert torch.equal(values(model)[name], before[name])


def test_a_half_that_cannot_move_is_refused():
    model = new()
    model.inference.requires_grad_(False)
    with pytest.raises(
        ValueError, match="update is 'inference', but no parameter of it"
    ):
        run(model, FA_TRAIN, epochs=1, update="inference")
    run(model, FA_TRAIN, epochs=1, update="both")  # θ moves


# --- the weight of the KL term ---


def test_kl_warmup_raises_the_weight_from_0_to_1():
    """The gradient of the loss tells the weight."""
    weights = []

    def estimator(model, x):
        parameter = model.loadings.sum()
        parameter.register_hook(lambda gradient: weights.append(gradient.item()))
        return ElboTerms(0 * parameter * x[:, 0], parameter + 0 * x[:, 0])

    history = run(new(), FA_TRAIN, steps=8, kl_warmup=0.5, estimator=estimator)
    assert weights == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert history.train_elbo[-1] == pytest.approx(-history.train_kl[-1])  # unweighted
    weights.clear()
    run(new(), FA_TRAIN, steps=3, estimator=estimator)
    assert weights == pytest.approx([1, 1, 1])


# --- learning rates ---


def test_products_in_bfloat16_change_little_and_nothing_outside_training(has_bfloat16):
    has_bfloat16(True)
    x = (torch.rand(400, 20, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    settings = {"data_dim": 20, "latent_dim": 2, "hidden": (16,), "dropout": 0.0}
    scores = {}
    for precision in (None, "bfloat16"):
        torch.manual_seed(0)
        model = models.VAE(**settings, likelihood="bernoulli")
        history = fit(
            model, x, test=x, epochs=20, precision=precision, progress=False, lr=1e-2
        )
        assert all(p.dtype == torch.float32 for p in model.parameters())
        measured = evaluation.elbo(model, x).mean
        assert math.isclose(history.test_elbo[-1], measured, rel_tol=1e-6)
        scores[precision] = history.test_elbo[-1]
    assert scores[None] != scores["bfloat16"]
    assert abs(scores[None] - scores["bfloat16"]) < 0.05


def test_without_products_in_bfloat16_single_precision_is_taken_and_said(
    has_bfloat16, caplog
):
    has_bfloat16(False)
    train, _ = data.factor_analysis(n=100)
    histories = []
    for precision in (None, "bfloat16", "bfloat16"):
        torch.manual_seed(0)
        model = models.FactorAnalysis()
        history = fit(model, train, steps=3, precision=precision, progress=False)
        histories.append(history.train_elbo)
    assert histories[0] == histories[1] == histories[2]
    (line,) = caplog.messages  # once
    assert line.startswith("cpu has no matrix products in bfloat16")


def test_a_torch_that_does_not_say_what_the_processor_has(has_bfloat16, monkeypatch):
    has_bfloat16(True)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert training.choose_precision("bfloat16", torch.device("cpu")) is None


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'half'"):
        fit(models.FactorAnalysis(), torch.zeros(5, 3), steps=1, precision="half")


def test_schedules():
    assert [training.constant(t) for t in (0, 0.5, 1)] == [1, 1, 1]
    found = [training.cosine(t) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([1, 1, 1, 0.5, 0])
    history = run(new(), FA_TRAIN, steps=8, lr=0.1, schedule="cosine")
    expected = [0.1] * 5 + [0.05 * (1 + math.cos(math.pi * t / 4)) for t in (1, 2, 3)]
    assert history.lr == pytest.approx(expected)


def test_a_schedule_of_ones_own():
    progress = []

    def linear(t):
        progress.append(t)
        return 1 - t

    history = run(new(), FA_TRAIN, steps=4, lr=0.1, schedule=linear)
    assert history.lr == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert set(progress) == {0, 0.25, 0.5, 0.75}


def test_any_callable_is_a_schedule(tmp_path):
    half = functools.partial(lambda factor, t: factor, 0.5)
    path = tmp_path / "run.pt"
    history = run(new(), FA_TRAIN, steps=1, schedule=half, checkpoint=path)
    assert history.lr == [5e-4]
    options = {"steps": 1, "schedule": np.cos, "checkpoint": path}
    history = run(new(), FA_TRAIN, **options)
    assert run(new(), FA_TRAIN, resume=True, **options) == history


def test_learning_rate_of_zero_moves_nothing():
    model = new()
    before = values(model)
    run(model, FA_TRAIN, steps=3, schedule=lambda t: 0.0)
    assert same(values(model), before)


# --- what can go wrong ---


def failing(step, term):
    """An estimator whose term is NaN from the given step on."""
    calls = []

    def estimator(model, x):
        calls.append(None)
        terms = model.elbo(x)
        if len(calls) >= step:
            terms = terms._replace(**{term: getattr(terms, term) * math.nan})
        return terms

    return estimator


@pytest.mark.parametrize("term", ElboTerms._fields)
def test_nan_stops_and_names_epoch_step_and_term(term):
    model, best = new(), {}
    with pytest.raises(Diverged) as caught:
        run(
            model,
            FA_TRAIN,
            epochs=5,
            estimator=failing(13, term),  # 5 steps an epoch: the third of epoch 3
            record=lambda model: best.update(values(model)) or {},
        )
    message = str(caught.value)
    assert f"the {term} term is not finite at step 13, epoch 3" in message
    assert "parameters of step 10 were put back" in message and "0.001" in message
    assert same(values(model), best)
    assert caught.value.history.epoch == [1, 2]
    assert not model.training and isinstance(caught.value, FloatingPointError)


def test_too_large_a_learning_rate_is_named():
    model = new()
    before = values(model)
    with pytest.raises(Diverged, match=r"step .* smaller lr than 1e\+30"):
        run(model, FA_TRAIN, epochs=5, lr=1e30)
    assert same(values(model), before)


def test_a_parameter_that_is_not_finite_is_named():
    """The terms of the last step are finite still; its gradient was not."""

    def estimator(model, x):
        terms = model.elbo(x)
        zero = (model.loadings * 0).square().sum().sqrt()  # value 0, gradient NaN
        return terms._replace(kl=terms.kl + zero)

    with pytest.raises(Diverged, match="a parameter is not finite at step 1, epoch 1"):
        run(new(), FA_TRAIN, steps=1, estimator=estimator)


def test_divergence_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(Diverged):
        run(
            new(),
            FA_TRAIN,
            epochs=5,
            estimator=failing(13, "kl"),
            checkpoint=path,
        )
    assert torch.load(path, weights_only=True)["step"] == 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "epochs is None and steps is None; expected one of them"),
        ({"epochs": 1, "steps": 1}, "epochs is 1 and steps is 1; expected one of them"),
        ({"epochs": 0}, "epochs is 0; expected a whole number, at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number"),
        ({"steps": -3}, "steps is -3; expected a whole number"),
        ({"epochs": 1, "every": 0}, "every is 0; expected a whole number"),
        ({"epochs": 1, "batch_size": 0}, "batch_size is 0; expected a whole number"),
        (
            {"epochs": 1, "batch_size": 2.0},
            "batch_size is 2.0; expected a whole number",
        ),
        ({"epochs": 1, "lr": 0}, "lr is 0; expected a positive number"),
        ({"epochs": 1, "lr": -1e-3}, "lr is -0.001; expected a positive number"),
        ({"epochs": 1, "lr": math.nan}, "lr is nan; expected a positive number"),
        (
            {"epochs": 1, "update": "theta"},
            r"update is 'theta'; expected one of \('both",
        ),
        (
            {"epochs": 1, "schedule": "linear"},
            r"schedule is 'linear'; expected one of \('constant', 'cosine'\), or",
        ),
        ({"epochs": 1, "kl_warmup": -0.1}, "kl_warmup is -0.1; expected a share betwe"),
        ({"epochs": 1, "kl_warmup": 2}, "kl_warmup is 2; expected a share between 0"),
        ({"epochs": 1, "resume": True, "checkpoint": None}, "expected a file"),
    ],
)
def test_arguments_are_checked_before_anything_happens(options, message, tmp_path):
    model, path = new(), tmp_path / "deep" / "run.pt"
    before = values(model)
    with pytest.raises(ValueError, match=message):
        run(model, FA_TRAIN, **{"checkpoint": path} | options)
    assert same(values(model), before) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(0, 784), ValueError, "the data is empty"),
        (
            torch.zeros(9, 783),
            ValueError,
            r"x has shape \(9, 783\); expected \(N, 784\)",
        ),
        (torch.zeros(9, 784).long(), TypeError, "x is torch.int64; expected"),
        (torch.zeros(9, 784).double(), TypeError, "x is torch.float64; expected"),
        (torch.zeros(9, 784).numpy(), TypeError, "data is a ndarray; expected"),
        (torch.full((9, 784), 255.0), ValueError, "from 255 to 255 .* between 0 and 1"),
        ((torch.zeros(9, 784), torch.zeros(8)), ValueError, r"lengths \[9, 8\]"),
        ((torch.zeros(9, 784), torch.zeros(9)), ValueError, "gives 2 tensors"),
        (
            TensorDataset(torch.zeros(9, 784), torch.zeros(9)),
            ValueError,
            "gives 2 tens",
        ),
        (
            TensorDataset(torch.zeros(9, 5)),
            ValueError,
            r"x has shape \(1, 5\); expected",
        ),
        (DataLoader([{"x": 1.0}]), TypeError, "x is a dict; expected a tensor"),
    ],
)
def test_data_are_checked_before_anything_happens(part, x, error, message, tmp_path):
    model, path = new("vae"), tmp_path / "run.pt"
    before = values(model)
    sets = {"train": IMAGES, "test": IMAGES} | {part: x}
    with pytest.raises(error, match=message):
        run(model, sets["train"], test=sets["test"], epochs=1, checkpoint=path)
    assert same(values(model), before) and not path.exists()


# --- devices and bars ---


def test_a_device_that_is_not_there_is_refused_before_anything_happens(monkeypatch):
    model = new()
    before = values(model)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda:3", "cuda", "gpu", "mps", "xpu:0", "meta"):
        message = rf"device is '{device}'; expected one of \('cpu',\), which this mach"
        with pytest.raises(ValueError, match=message):
            run(model, "not even looked at", epochs=1, device=device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"one of \('cpu', 'cuda:0', 'cuda:1'\)"):
        run(model, FA_TRAIN, epochs=1, device="cuda:2")
    assert same(values(model), before)


def test_a_record_of_nothing_is_named():
    with pytest.raises(TypeError, match="record gives None; expected a dictionary of"):
        run(new(), FA_TRAIN, epochs=1, record=lambda model: None)


def test_whole_numbers_of_numpy(tmp_path):
    """They are counted with, and written down, as Python's are."""
    path, numbers = tmp_path / "run.pt", {"every": 2, "batch_size": 50, "seed": 1}
    expected = run(new(), FA_TRAIN, steps=4, **numbers)
    numbers = {name: np.int64(number) for name, number in numbers.items()}
    found = run(new(), FA_TRAIN, steps=np.int64(4), checkpoint=path, **numbers)
    assert columns(found) == columns(expected)
    longer = {"checkpoint": path, "resume": True, **numbers}
    assert run(new(), FA_TRAIN, steps=np.int64(4), **longer) == found
    assert run(new(), FA_TRAIN, epochs=np.int32(1), test=FA_TEST).epoch == [1.0]


def test_device_is_given_or_found(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setenv("AEVB_DEVICE", "cuda:0")
        assert training.choose_device().type == "cuda"
        assert training.choose_device("cpu").type == "cpu"
    monkeypatch.setenv("AEVB_DEVICE", "")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    assert training.choose_device().type == found


def test_progress_bar(capsys):
    run(new(), FA_TRAIN, epochs=1, progress=True)
    assert "5/5" in capsys.readouterr().err
    run(new(), FA_TRAIN, epochs=1, progress=False)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_report_sees_the_history_once_the_checkpoint_is_written(tmp_path):
    seen, path = [], tmp_path / "run.pt"

    def report(history):
        saved = torch.load(path, weights_only=True)["history"]
        assert saved == history
        seen.append(list(history.step))

    run(new(), FA_TRAIN, epochs=3, checkpoint=path, report=report)
    assert seen == [[5], [5, 10], [5, 10, 15]]


def test_model_is_left_in_evaluation_mode():
    model = new("vae").train()
    run(model, IMAGES, epochs=1)
    assert not model.training


def test_history_is_a_plain_dictionary_of_lists():
    history = History()
    history.append({"step": 1, "elbo": torch.tensor(2.5)})
    history.append({"step": 2, "elbo": 3})
    assert history == {"step": [1.0, 2.0], "elbo": [2.5, 3.0]}
