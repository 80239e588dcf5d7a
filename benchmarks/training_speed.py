"""How fast ``aevb.fit`` trains, beside the plain loop that people write.

    make benchmark                            # or: python benchmarks/training_speed.py
    python benchmarks/training_speed.py --help

Two contenders train the same network on the same examples in batches of the same size
with Adam: a VAE of 784-500-500-20 units. Each lives in a process of its own with the
same environment; they take turns, so that whatever else the machine does meets both.

* ``aevb.fit``: bytes batched by index, noise drawn afresh for every batch, fused Adam,
  no validation, no number fetched before the epoch's end.
* ``plain loop``: ``DataLoader(shuffle=True)`` over float tensors that are preprocessed
  once, ``torch.distributions`` and ``torch.optim.Adam`` with their defaults, and
  ``loss.item()`` in every step.

The same is done for a million log-densities of the continuous Bernoulli: the package's
exact one beside torch's clamped one. Rates and ratios are medians over the turns; what
is done once (reading, checking and preprocessing the data) is left out of both. The
result goes to ``benchmarks/latest.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIKELIHOODS = {"bernoulli": "stochastic", "continuous_bernoulli": "continuous"}
OURS, THEIRS = "aevb", "plain"


# --- the contenders: each works on and on, and calls ``lap`` after ``count`` units ---


def images(likelihood: str):
    """MNIST, or as many random bytes where it cannot be had, and which of them."""
    import torch

    from aevb import data

    kind = LIKELIHOODS[likelihood]
    try:
        folder = data.mnist_root() / "MNIST" / "raw"
        if not all((folder / name).exists() for name in data.MNIST_MD5):
            raise data.DataError("a benchmark downloads nothing")
        return data.mnist(kind)[0], "MNIST"
    except data.DataError:
        g = torch.Generator().manual_seed(0)
        raw = torch.randint(0, 256, (60000, 784), dtype=torch.uint8, generator=g)
        redraw = data.binarise_stochastically
        if likelihood == "continuous_bernoulli":
            redraw = data.dequantise
        return data.Examples(redraw(raw, g), None, raw, redraw), "random bytes"


def train_ours(task: dict, train, count: int, lap: Callable[[], None]) -> None:
    from aevb import fit, models

    fit(
        models.VAE(likelihood=task["likelihood"]),
        train,
        steps=10**9,
        every=count,
        batch_size=task["batch_size"],
        lr=1e-4,
        record=lambda model: lap() or {},
        device="cpu",
        progress=False,
    )


def train_plainly(task: dict, train, count: int, lap: Callable[[], None]) -> None:
    import torch
    from torch import nn
    from torch.distributions import Bernoulli, ContinuousBernoulli, Normal
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(
                *(nn.Linear(784, 500), nn.ReLU(), nn.Dropout(0.1)),
                *(nn.Linear(500, 500), nn.ReLU(), nn.Dropout(0.1)),
            )
            self.mean, self.std = nn.Linear(500, 20), nn.Linear(500, 20)
            self.decoder = nn.Sequential(
                *(nn.Linear(20, 500), nn.ReLU(), nn.Dropout(0.1)),
                *(nn.Linear(500, 500), nn.ReLU(), nn.Dropout(0.1)),
                nn.Linear(500, 784),
            )

        def forward(self, x):
            h = self.encoder(x)
            q = Normal(self.mean(h), F.softplus(self.std(h)) + 1e-6)
            return q, family(logits=self.decoder(q.rsample()))

    family = {"bernoulli": Bernoulli, "continuous_bernoulli": ContinuousBernoulli}
    family = family[task["likelihood"]]
    dataset = TensorDataset(train.x)
    loader = DataLoader(dataset, batch_size=task["batch_size"], shuffle=True)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    total, step = 0.0, 0
    while True:
        for (x,) in loader:
            q, p = model(x)
            prior = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
            kl = torch.distributions.kl_divergence(q, prior).sum(-1)
            loss = (kl - p.log_prob(x).sum(-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            step += 1
            if step % count == 0:
                lap()


def evaluate_density(ours: bool, task: dict, count: int, lap: Callable) -> None:
    import torch
    from torch.distributions import ContinuousBernoulli

    from aevb import distributions

    family = distributions.ContinuousBernoulli if ours else ContinuousBernoulli
    g = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(10**6, generator=g)
    logits.requires_grad_(task["backward"])
    x = torch.rand(10**6, generator=g)
    while True:
        for _ in range(count):
            log_p = family(logits=logits, validate_args=False).log_prob(x)
            if task["backward"]:
                logits.grad = None
                log_p.sum().backward()
        lap()


def serve(contender: str, task: dict, count: int) -> None:
    """Do ``count`` units of work for each line on stdin; answer with the seconds."""
    start, source = None, "logits from N(0, 10²)"

    def lap() -> None:
        nonlocal start
        seconds = None if start is None else time.perf_counter() - start
        print(json.dumps(source if seconds is None else seconds), flush=True)
        if not sys.stdin.readline():
            sys.exit()
        start = time.perf_counter()

    if task["task"] == "training":
        train, source = images(task["likelihood"])
        work = train_ours if contender == OURS else train_plainly
        work(task, train, count, lap)
    else:
        evaluate_density(contender == OURS, task, count, lap)


# --- the race ---


def race(task: dict, count: int, turns: int, threads: int) -> dict:
    """Both contenders take turns; rates in units of work a second."""
    environment = (
        os.environ
        | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin slow down a busy machine
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path[1:]]),
        }
    )
    processes = {}
    seconds = {OURS: [], THEIRS: []}
    try:
        for name in seconds:
            order = [name, json.dumps(task), str(count)]
            command = [sys.executable, __file__, "--serve", *order]
            processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            source = json.loads(processes[name].stdout.readline())  # warmed up
        for turn in range(turns):
            for name in sorted(seconds, reverse=turn % 2 == 1):
                print(file=processes[name].stdin, flush=True)
                seconds[name].append(float(processes[name].stdout.readline()))
    finally:
        for process in processes.values():
            process.stdin.close()
            process.stdout.close()
            process.wait()
    units = count * task["unit"]
    rates = {name: [units / s for s in times] for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(rates[OURS], rates[THEIRS], strict=True)]
    return task | {
        "data": source,
        "seconds": {name: round(sum(times), 3) for name, times in seconds.items()},
        "rate": {name: summary(values) for name, values in rates.items()},
        "ratio": summary(ratios),
    }


def summary(values: list[float]) -> dict[str, float]:
    digits = 3 if max(values) < 100 else 0
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def machine(threads: int) -> dict:
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def tasks(batch_sizes: list[int]) -> list[dict]:
    found = [
        {
            "task": "training",
            "likelihood": likelihood,
            "batch_size": size,
            "unit": size,  # examples in a step
        }
        for likelihood in LIKELIHOODS
        for size in batch_sizes
    ]
    return found + [
        {"task": "log-density", "backward": backward, "unit": 10**6}
        for backward in (False, True)
    ]


def title(task: dict) -> str:
    if task["task"] == "training":
        return f"{task['likelihood']}, batch {task['batch_size']}"
    return "log-density" + (" and gradient" if task["backward"] else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=15, help="of each contender")
    parser.add_argument("--examples", type=int, default=10000, help="in one turn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[100, 512])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=HERE / "latest.json")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        contender, task, count = options.serve
        return serve(contender, json.loads(task), int(count))

    report = {"machine": machine(options.threads), "results": []}
    about = report["machine"]
    print(f"{about['cpu']}, {options.threads} threads, torch {about['torch']}")
    print(f"{'':34}{'aevb':>12}{'plain':>12}{'ratio':>8}   (lowest … highest)")
    for task in tasks(options.batch_sizes):
        count = (
            10 if task["task"] == "log-density" else options.examples // task["unit"]
        )
        result = race(task, max(1, count), options.turns, options.threads)
        report["results"].append(result)
        rate, ratio = result["rate"], result["ratio"]
        print(
            f"{title(task):34}{rate[OURS]['median']:>12,.0f}"
            f"{rate[THEIRS]['median']:>12,.0f}{ratio['median']:>8.2f}"
            f"   ({ratio['low']:.2f} … {ratio['high']:.2f})",
            flush=True,
        )
    names = {r["data"] for r in report["results"] if r["task"] == "training"}
    print(f"examples (log-densities) a second; trained on {', '.join(names)}")
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {os.path.relpath(options.output)}")


if __name__ == "__main__":
    main()
