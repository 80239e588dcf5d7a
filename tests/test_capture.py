"""Tests of aevb/capture.py: what is replayed is what would have been computed.

What decides whether a recording is trusted runs anywhere, with a recording that is made
up; the last part needs a GPU.
"""

import random
from functools import partial
from itertools import pairwise

import pytest
import torch

from aevb import capture, data, estimators, fit, models, training
from aevb.capture import Replayed, Unrecordable
from aevb.model import ElboTerms

CPU = torch.device("cpu")
DIGITS = data.digits("binary")[0][:250]


class Step:
    """Adds noise and ``amount`` x to a total; a recording repeats the amount."""

    def __init__(self):
        self.total, self.amount, self.calls = torch.zeros(()), 1.0, 0

    def __call__(self, x):
        self.calls += 1
        return self.add(self.amount, x)

    def add(self, amount, x):
        return self.total.add_(amount * x.sum() + torch.rand(())).clone()

    def changing(self):
        return [self.total]


@pytest.fixture
def recorded(monkeypatch):
    """The inputs of which recordings were made, by a fake that does what a GPU does."""
    made = []

    def record(step, inputs, device):
        made.append(inputs)
        return partial(step.add, step.amount)

    monkeypatch.setattr(capture, "rehearse", lambda function, inputs: function(*inputs))
    monkeypatch.setattr(capture, "record", record)
    return made


def totals(take, xs, change=lambda i: None):
    torch.manual_seed(0)
    found = []
    for i, x in enumerate(xs):
        change(i)
        found.append(take(x).item())
    return found


XS = [torch.tensor([float(i)]) for i in range(12)]


def test_calls_are_those_of_the_function(recorded):
    step = Step()
    take = Replayed(step, step.changing, CPU, possible=True)
    assert totals(take, XS) == totals(Step(), XS)
    assert len(recorded) == 1 and take.trusted
    assert step.calls == capture.WARM_UP + 2  # a rehearsal, and one to compare with


def test_where_it_is_not_possible_nothing_is_recorded(recorded):
    step = Step()
    take = Replayed(step, step.changing, CPU, possible=False)
    assert totals(take, XS) == totals(Step(), XS)
    assert not recorded and step.calls == len(XS)


def test_inputs_of_another_shape_are_the_functions(recorded):
    xs = [torch.ones(1 + (i % 3 == 2)) for i in range(12)]
    step = Step()
    take = Replayed(step, step.changing, CPU, possible=True)
    assert totals(take, xs) == totals(Step(), xs)
    assert [x.shape for (x,) in recorded] == [(1,)]


def test_a_recording_that_fell_behind_is_made_anew(recorded):
    """Python changed a number: noticed at the next doubt, and the truth is returned."""
    step, true = Step(), Step()
    take = Replayed(step, step.changing, CPU, possible=True)

    def change(i):
        step.amount = true.amount = 1.0 if i < 7 else 2.0
        if i in (7, 9):
            take.doubt()

    found = totals(take, XS, change)
    assert len(recorded) == 2 and take.trusted
    assert found == totals(true, XS, change)


def test_what_changes_in_each_call_is_not_replayed(recorded, caplog):
    class Counting(Step):
        def __call__(self, x):
            self.amount += 1e-3
            return super().__call__(x)

    step = Counting()
    take = Replayed(step, step.changing, CPU, possible=True)
    found = totals(take, XS)
    assert all(0 < b - a for a, b in pairwise(found))
    assert not take.possible and not take.trusted
    assert "it does something else each time" in caplog.text
    calls = step.calls
    take(XS[0])
    assert step.calls == calls + 1 and len(recorded) == 1  # no other try


def test_an_obstacle_is_logged_once(recorded, caplog, monkeypatch):
    def refuse(function, inputs):
        function(*inputs)  # and its changes are undone
        raise Unrecordable("it waits")

    monkeypatch.setattr(capture, "rehearse", refuse)
    step = Step()
    take = Replayed(step, step.changing, CPU, possible=True)
    assert totals(take, XS) == totals(Step(), XS)
    assert caplog.text.count("cannot be recorded for the GPU (it waits)") == 1
    assert not recorded


def test_numbers_that_are_not_finite_are_no_reason_to_give_up(recorded, caplog):
    xs = [torch.tensor([float("nan") if i > 1 else 0.0]) for i in range(6)]
    step = Step()
    take = Replayed(step, step.changing, CPU, possible=True)
    totals(take, xs)
    assert take.possible and not take.trusted and not caplog.text


def test_rates_are_the_same_where_a_recording_reads_them(monkeypatch):
    """As tensors, several transfers of them, in place of Python's numbers."""
    source, options = data.factor_analysis(n=100)[0], {"device": "cpu", "epochs": 600}
    options |= {"every": 600, "batch_size": 50}
    found = train(models.FactorAnalysis, source, **options)
    monkeypatch.setattr(training._Run, "on_gpu", True)
    monkeypatch.setattr(capture, "WARM_UP", 10**9)  # nothing is recorded here
    agree(train(models.FactorAnalysis, source, **options), found)


@pytest.mark.parametrize("every", [1, capture.PAYS])
def test_few_steps_between_evaluations_are_launched(every, steps):
    """A comparison after each evaluation would take longer than these steps."""
    options = {"device": "cpu", "epochs": None, "steps": 10, "every": every}
    train(models.FactorAnalysis, examples("factor analysis"), **options)
    assert steps[0].taken == (0 if every == 1 else 10)


# --- with a GPU ---

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = {"likelihood": "bernoulli", "hidden": (30,)}
MODELS = {
    "factor analysis": models.FactorAnalysis,
    "vae": partial(models.VAE, **SMALL, dropout=0.2),
    "conditional vae": partial(models.ConditionalVAE, **SMALL),
    "gaussian-mixture vae": partial(models.GaussianMixtureVAE, hidden=(30, 30)),
    "variational rnn": partial(models.VariationalRNN, hidden=(30,), recurrent=(16,)),
}
BOUNDS = {
    "iwae": estimators.importance_weighted,
    "doubly": partial(
        estimators.importance_weighted, gradient="doubly-reparameterised"
    ),
    "resampled": estimators.importance_resampled,
    "score": partial(
        estimators.score_function, num_samples=2, baseline="leave-one-out"
    ),
}


def examples(kind):
    if kind == "factor analysis":
        return data.factor_analysis(n=250)[0]
    return data.rows(DIGITS) if kind == "variational rnn" else DIGITS


@pytest.fixture
def steps(monkeypatch):
    """The ``Replayed`` of every training of the test."""
    made = []

    class Kept(Replayed):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)
            self.taken = 0

        def __call__(self, *inputs):
            self.taken += 1
            return super().__call__(*inputs)

    monkeypatch.setattr(training, "Replayed", Kept)
    return made


def train(make, source, **options):
    """The history, without the seconds, and the parameters."""
    torch.manual_seed(0)
    model = make()
    settings = {"epochs": 6, "batch_size": 60, "schedule": "cosine", "kl_warmup": 0.5}
    settings |= {"progress": False, "device": "cuda"}
    history = fit(model, source, **settings | options)
    history = {k: v for k, v in history.items() if k != "seconds"}
    return history, [p.detach().cpu() for p in model.parameters()]


def agree(one, two):
    """The same history and parameters, up to the rounding of single precision."""
    for name in one[0] | two[0]:
        assert one[0][name] == pytest.approx(two[0][name], rel=1e-4, abs=1e-6), name
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_recorded_training_is_the_launched_one(kind, precision, steps, monkeypatch):
    """Four full batches an epoch and a smaller one; noise, rates and weights move."""
    options = {"precision": precision, "test": examples(kind)}
    found = train(MODELS[kind], examples(kind), **options)
    assert steps[0].trusted
    monkeypatch.setattr(capture, "WARM_UP", 10**9)
    launched = train(MODELS[kind], examples(kind), **options)
    assert steps[1].replay is None
    agree(found, launched)


@needs_gpu
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_recorded_bound_is_the_launched_one(bound, steps, monkeypatch):
    options = {"estimator": BOUNDS[bound]}
    found = train(MODELS["vae"], DIGITS, **options)
    assert steps[0].trusted
    monkeypatch.setattr(capture, "WARM_UP", 10**9)
    agree(found, train(MODELS["vae"], DIGITS, **options))


def waits(model, x):
    terms = model.elbo(x)
    return terms if terms.kl.sum().item() < 1e9 else None


def with_its_own_generator():
    return partial(
        estimators.analytic_kl, generator=torch.Generator("cuda").manual_seed(0)
    )


def with_numbers_of_python():
    numbers = random.Random(0)

    def estimator(model, x):
        terms, weight = model.elbo(x), 1 + numbers.random()
        return ElboTerms(weight * terms.reconstruction, terms.kl)

    return estimator


@needs_gpu
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: waits, "synchronizing"),
        (with_its_own_generator, "a generator of its own"),
        (with_numbers_of_python, "something else each time"),
    ],
    ids=["waits", "generator", "python"],
)
def test_what_cannot_be_recorded_is_launched(make, reason, steps, caplog):
    history, _ = train(MODELS["vae"], DIGITS, estimator=make())
    assert not steps[0].possible and reason in caplog.text
    assert history["train_elbo"][-1] > history["train_elbo"][0]


@needs_gpu
def test_a_recording_that_breaks_off_harms_nothing(steps, caplog, monkeypatch):
    """Should the rehearsal notice nothing, the GPU refuses, and training goes on."""
    monkeypatch.setattr(capture, "rehearse", lambda function, inputs: None)
    found = train(MODELS["vae"], DIGITS, estimator=waits)
    assert not steps[0].possible and "cannot be recorded" in caplog.text
    monkeypatch.setattr(capture, "WARM_UP", 10**9)
    agree(found, train(MODELS["vae"], DIGITS, estimator=waits))


@needs_gpu
def test_what_record_changes_is_followed(steps, monkeypatch):
    """A model's number that ``record`` sets after each epoch."""

    def options():
        weight = [1.0]

        def estimator(model, x):
            terms = model.elbo(x)
            return ElboTerms(weight[0] * terms.reconstruction, terms.kl)

        def record(model):
            weight[0] += 0.5
            return {}

        return {"estimator": estimator, "record": record, "batch_size": 25}

    found = train(MODELS["vae"], DIGITS, **options())
    assert steps[0].possible
    monkeypatch.setattr(capture, "WARM_UP", 10**9)
    agree(found, train(MODELS["vae"], DIGITS, **options()))


@needs_gpu
def test_a_recorded_training_goes_on_from_its_checkpoint(tmp_path):
    options = {"every": 2, "checkpoint": tmp_path / "c.pt"}
    whole = train(MODELS["vae"], DIGITS, every=2)

    def stop(history):
        if len(history["step"]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(MODELS["vae"], DIGITS, report=stop, **options)
    agree(train(MODELS["vae"], DIGITS, resume=True, **options), whole)
