"""Tests of aevb/parallel.py: several processes do what one process does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from aevb import data, fit, models, parallel, randomness, training

HERE = Path(__file__).parent


def torchrun(*arguments, count=2):
    """Start the script in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", HERE / "processes.py", *arguments]
    return subprocess.run(
        [str(part) for part in command],
        cwd=HERE.parent,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes gave, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    results = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    return *results, done, folder


def differences(one, two):
    """The largest relative difference in each column."""
    assert one.keys() == two.keys()
    return {
        name: max(
            abs(a - b) / max(1.0, abs(a))
            for a, b in zip(column, two[name], strict=True)
        )
        for name, column in one.items()
    }


@pytest.mark.parametrize("name", processes.CASES)
def test_two_processes_do_what_one_process_does(name, together, monkeypatch):
    """Order, batches, noise, dropout and gradients, also where batches are uneven."""
    monkeypatch.setenv("AEVB_DEVICE", "cpu")
    history, parameters = processes.train(name)
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    found = differences(history, together[0][name][0])
    assert max(found.values()) < tolerance, found
    if name != "bfloat16":  # where rounding alone can turn a first step of Adam
        for key, value in parameters.items():
            torch.testing.assert_close(
                together[0][name][1][key], value, atol=1e-3, rtol=1e-3
            )


def test_all_processes_end_with_the_same(together):
    first, second, *_ = together
    assert first.keys() == second.keys()
    for name, (history, parameters) in first.items():
        assert history == second[name][0], name
        for key, value in parameters.items():
            assert torch.equal(value, second[name][1][key]), (name, key)


def test_same_seed_and_processes_same_history_to_the_last_digit(together):
    name = "pixels redrawn, dropout, a batch of one"
    assert together[0][name][0] == together[0]["again"][0]


def test_processes_with_other_settings_are_refused(together):
    message = together[1]["refused"][0]["message"]
    assert "batch_size is 25 in process 0 and 26 in process 1" in message


def test_one_process_writes_and_shows(together):
    """One bar for the training that has one; one checkpoint, which serves all."""
    *_, done, folder = together
    assert done.stderr.count("  0%|") == 1
    assert sorted(p.name for p in folder.iterdir()) == ["0", "0.pt", "1.pt", "run.pt"]
    first = together[0]
    assert first["written"][0] == first["resumed"][0] == first["elsewhere"][0]


def test_one_process_goes_on_where_two_stopped(together, monkeypatch):
    """A checkpoint does not say how many wrote it."""
    monkeypatch.setenv("AEVB_DEVICE", "cpu")
    path = together[-1] / "run.pt"
    history, _ = processes.train("factor analysis", checkpoint=path, resume=True)
    assert history == together[0]["written"][0]


def test_a_process_that_fails_ends_the_others_at_once(tmp_path):
    """The one that fails says why; the last checkpoint stays."""
    start = time.perf_counter()
    done = torchrun(tmp_path, "crash")
    assert done.returncode != 0
    assert "ZeroDivisionError: this process fails on purpose" in done.stderr
    assert time.perf_counter() - start < parallel.TIMEOUT.total_seconds() / 10
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 5


# --- what can be tried in one process ---


def test_without_torchrun_there_is_one_process():
    cpu = torch.device("cpu")
    assert not parallel.launched()
    with parallel.processes(cpu) as rank:
        assert rank == 0
    alone = parallel.Processes(cpu)
    assert (alone.rank, alone.count) == (0, 1)
    assert alone.from_first(lambda: 5) == 5
    sums = torch.ones(2)
    assert alone.add_up([], sums, 10) is sums


def several(rank, count):
    this = parallel.Processes(torch.device("cpu"))
    this.rank, this.count = rank, count
    return this


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_the_parts_make_the_whole(count, total):
    examples = torch.arange(total)
    parts = [examples[several(rank, count).part(total)] for rank in range(count)]
    assert all(len(part) >= 1 for part in parts)  # none without an example
    if total >= count:
        assert torch.equal(torch.cat(parts), examples)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    else:
        assert torch.equal(torch.cat(parts).unique(), examples)


def test_a_local_gpu_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("AEVB_DEVICE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for given in (None, "cuda", torch.device("cuda")):
        assert training.choose_device(given) == torch.device("cuda:1")
    assert training.choose_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"'cuda:2'; expected one of .*'cuda:1'"):
        training.choose_device()


def shared(draw, rank, total=6, count=2):
    """What one of ``count`` processes draws for its part of ``total`` examples."""
    cpu, size = torch.device("cpu"), total // count
    dimensions = randomness.batch_dimensions(draw, cpu)
    part = slice(rank * size, (rank + 1) * size)
    torch.manual_seed(0)
    with randomness.WholeBatch(dimensions, part, total, (0, 0, rank), cpu):
        return draw(size)


WHOLE = {
    "cauchy_": lambda n: torch.distributions.Cauchy(torch.zeros(n, 40), 1.0).sample(),
    "log_normal_": lambda n: torch.empty(n, 40).log_normal_(),
    "geometric_": lambda n: torch.empty(n, 40).geometric_(0.1),
    "random_": lambda n: torch.empty(n, 40).random_(0, 9),
    "bernoulli": lambda n: torch.full((n, 40), 0.5).bernoulli(),
    "bernoulli of a number": lambda n: torch.zeros(n, 40).bernoulli(0.5),
    "multinomial": lambda n: torch.ones(n, 40).multinomial(9),
    "randint_like": lambda n: torch.randint_like(torch.zeros(n, 40), 9),
}
ALONE = {
    "dropout1d": lambda n: functional.dropout1d(torch.ones(n, 40, 2)),
    "dropout2d": lambda n: functional.dropout2d(torch.ones(n, 40, 2, 2)),
    "dropout3d": lambda n: functional.dropout3d(torch.ones(n, 40, 2, 2, 2)),
    "alpha_dropout": lambda n: nn.AlphaDropout()(torch.ones(n, 40)),
    "feature_alpha_dropout": lambda n: nn.FeatureAlphaDropout()(torch.ones(n, 40, 2)),
    "rrelu": lambda n: nn.RReLU()(-torch.ones(n, 40)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_processes_draw_parts_of_what_one_draws(name):
    torch.manual_seed(0)
    one = WHOLE[name](6)
    following = torch.rand(3)
    assert torch.equal(torch.cat([shared(WHOLE[name], rank) for rank in (0, 1)]), one)
    assert torch.equal(torch.rand(3), following)


@pytest.mark.parametrize("name", ALONE)
def test_noise_that_cannot_be_shared_out_differs_between_processes(name):
    first, second = (shared(ALONE[name], rank) for rank in (0, 1))
    following = torch.rand(3)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), following)  # the common stream has not moved


def test_layers_in_evaluation_mode_draw_nothing():
    layers = nn.Sequential(nn.Dropout(), nn.AlphaDropout(), nn.Dropout1d()).eval()
    draws = randomness.batch_dimensions(
        lambda n: layers(torch.ones(n, 4)), torch.device("cpu")
    )
    assert draws == []


def test_a_loader_that_is_shared_out_already_is_refused():
    examples = TensorDataset(data.factor_analysis(n=10)[0].x)
    sampler = DistributedSampler(examples, num_replicas=2, rank=0)
    loader = DataLoader(examples, sampler=sampler, batch_size=5)
    with pytest.raises(ValueError, match="DistributedSampler; expected one without"):
        fit(models.FactorAnalysis(), loader, epochs=1, device="cpu")
