"""How fast ``aevb.fit`` trains, beside the plain loops that people write.

    make benchmark                            # or: python benchmarks/training_speed.py
    python benchmarks/training_speed.py --help

Three contenders train the same network on the same examples in batches of the same
size with Adam: a VAE of 784-500-500-20 units, without dropout, as in chapter 7. Each
lives in a process of its own with the same environment; they take turns, so that
whatever else the machine does meets all.

* ``aevb``: ``aevb.fit``. Bytes are batched by index and get fresh noise in every batch;
  fused Adam; no validation; no number is fetched before the evaluation.
* ``images``: the loop of the tutorials. ``DataLoader(shuffle=True)`` over a dataset
  that makes each item as ``torchvision.datasets.MNIST`` does, a PIL image that a
  transform turns into a tensor with fresh noise; ``torch.distributions`` and
  ``torch.optim.Adam`` with their defaults, which validate every value and are not
  fused; ``loss.item()`` in every step. The same statistical task as ``aevb``.
* ``tensors``: the same loop over a ``TensorDataset`` of floats that were preprocessed
  beforehand: less work, since the noise is drawn once and never again.

For a million log-densities of the continuous Bernoulli, the package's exact one meets
torch's clamped one. Rates are units of work (examples, log-densities) a second of wall
time, medians over the turns, and so are the ratios of ``aevb``'s rate to the others';
the same ratio of processor time depends less on what else the machine does. What is
done once (reading, checking, preprocessing the data) is left out everywhere. The result
goes to ``benchmarks/latest.json``. ``peers_speed.py`` has the other comparison, on
binarised images: fewer excuses for the plain loop, and other packages beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).resolve().parent
STATUS = Path("/proc/self/status")
# What decides how fast a processor multiplies matrices, as Linux names it.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
LIKELIHOODS = {"continuous_bernoulli": "continuous", "bernoulli": "stochastic"}
CONTENDERS = {
    "training": ("aevb", "images", "tensors"),
    "log-density": ("aevb", "torch"),
}


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
        count = 1000 if os.environ.get("AEVB_FAST") == "1" else 60000
        raw = torch.randint(0, 256, (count, 784), dtype=torch.uint8, generator=g)
        redraw = data.binarise_stochastically
        if likelihood == "continuous_bernoulli":
            redraw = data.dequantise
        return data.Examples(redraw(raw, g), None, raw, redraw), "random bytes"


def train_ours(task: dict, train, count: int, lap: Callable[[], None]) -> None:
    from aevb import fit, models

    fit(
        models.VAE(likelihood=task["likelihood"], dropout=0.0),
        train,
        steps=10**9,
        every=count,
        batch_size=task["batch_size"],
        lr=1e-4,
        record=lambda model: lap() or {},
        device="cpu",
        progress=False,
    )


def image_dataset(likelihood: str, train):
    """Items as ``torchvision.datasets.MNIST`` makes them, with fresh noise."""
    import torch
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    noise = {
        "bernoulli": transforms.Lambda(torch.bernoulli),
        "continuous_bernoulli": transforms.Lambda(
            lambda x: (255 * x + torch.rand(x.shape)) / 256
        ),
    }
    flat = transforms.Lambda(torch.flatten)
    transform = transforms.Compose([transforms.ToTensor(), noise[likelihood], flat])

    class Images(Dataset):
        def __init__(self):
            self.data = train.raw.reshape(-1, 28, 28)

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return (transform(Image.fromarray(self.data[index].numpy())),)

    return Images()


def train_plainly(dataset, task: dict, count: int, lap: Callable[[], None]) -> None:
    import torch
    from torch import nn
    from torch.distributions import Bernoulli, ContinuousBernoulli, Normal
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(
                *(nn.Linear(784, 500), nn.ReLU()),
                *(nn.Linear(500, 500), nn.ReLU()),
            )
            self.mean, self.std = nn.Linear(500, 20), nn.Linear(500, 20)
            self.decoder = nn.Sequential(
                *(nn.Linear(20, 500), nn.ReLU()),
                *(nn.Linear(500, 500), nn.ReLU()),
                nn.Linear(500, 784),
            )

        def forward(self, x):
            h = self.encoder(x)
            q = Normal(self.mean(h), F.softplus(self.std(h)) + 1e-6)
            return q, family(logits=self.decoder(q.rsample()))

    family = {"bernoulli": Bernoulli, "continuous_bernoulli": ContinuousBernoulli}
    family = family[task["likelihood"]]
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


def stopwatch(source: str, measure: Callable | None = None) -> Callable[..., None]:
    """``lap``: answers with what passed since the last, and waits for a line on stdin.

    The answer is [seconds, seconds of processor time, peak memory in MiB]; in place of
    the first one, which is a warming up, it is ``source``. With ``measure`` nothing is
    a warming up, and what ``measure`` makes of ``lap``'s arguments ends the answer.
    """
    start = None

    def lap(*arguments) -> None:
        now = clocks()
        if start is None:
            return answer(source)
        passed = [end - begin for begin, end in zip(start, now, strict=True)]
        measured = [measure(*arguments)] if measure else []
        answer([*passed, peak_memory(), *measured])

    def answer(words) -> None:
        nonlocal start
        print(json.dumps(words), flush=True)
        if not sys.stdin.readline():
            sys.exit()
        forget_peak()
        start = clocks()

    if measure:
        answer(source)
    return lap


def clocks() -> tuple[float, float]:
    """Wall and processor time, once the GPU, if one is used, has done its work."""
    if on_gpu():
        sys.modules["torch"].cuda.synchronize()
    return time.perf_counter(), time.process_time()


def on_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def peak_memory() -> float:
    """The most MiB in use since ``forget_peak``: on a GPU, else by this process.

    Where there is no /proc (macOS), since the process began.
    """
    if on_gpu():
        return sys.modules["torch"].cuda.max_memory_allocated() / 2**20
    if STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        return int(found[1]) / 2**10
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def forget_peak() -> None:
    if on_gpu():
        sys.modules["torch"].cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        with suppress(OSError):  # in some containers: then the peak is the process's
            STATUS.with_name("clear_refs").write_text("5")


def serve(contender: str, task: dict, count: int) -> None:
    """Do ``count`` units of work for each line on stdin; answer with the seconds."""
    if task["task"] == "log-density":
        lap = stopwatch("logits from N(0, 10²)")
        evaluate_density(contender == "aevb", task, count, lap)
    train, source = images(task["likelihood"])
    lap = stopwatch(source)
    if contender == "aevb":
        train_ours(task, train, count, lap)
    elif contender == "images":
        train_plainly(image_dataset(task["likelihood"], train), task, count, lap)
    else:
        from torch.utils.data import TensorDataset

        train_plainly(TensorDataset(train.x), task, count, lap)


# --- the race ---


@contextmanager
def contender(
    name: str, task: dict, count: int, threads: int, script: str
) -> Iterator[Callable]:
    """A process that serves; each call of ``turn`` gives its next answer.

    The first one comes when it has warmed up; until then it costs no other one time.
    """
    environment = (
        os.environ
        | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin slow down a busy machine
            "TQDM_DISABLE": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path[1:]]),
        }
    )
    process = subprocess.Popen(
        [sys.executable, script, "--serve", name, json.dumps(task), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    first = True

    def turn():
        nonlocal first
        if not first:
            print(file=process.stdin, flush=True)
        first = False
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name} has ended; what it said stands above")
        return json.loads(answer)

    try:
        yield turn
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()


def race(
    task: dict,
    count: int,
    turns: int,
    threads: int,
    names: Sequence[str] = (),
    script: str = __file__,
    rivals: Mapping[str, str] = MappingProxyType({}),
) -> dict:
    """The contenders take turns: rates, and the ratios of the first one's to them.

    ``rivals`` names, for some contenders, another one than the first to compare with.
    """
    names = names or CONTENDERS[task["task"]]
    laps = {name: [] for name in names}
    with ExitStack() as stack:
        turns_of = {
            name: stack.enter_context(contender(name, task, count, threads, script))
            for name in names
        }
        sources = {turn() for turn in turns_of.values()}  # all have warmed up
        for number in range(turns):
            for name in names if number % 2 else reversed(names):
                laps[name].append(turns_of[name]())
    results = {}
    for name in names:
        rival = rivals.get(name, names[0])
        wall, processor = (
            [
                other[k] / own[k]
                for own, other in zip(laps[rival], laps[name], strict=True)
            ]
            for k in (0, 1)
        )
        results[name] = {
            "seconds": round(sum(lap[0] for lap in laps[name]), 3),
            "rate": summary([count * task["unit"] / lap[0] for lap in laps[name]]),
            "ratio": summary(wall),
            "processor_ratio": summary(processor),
            "memory": round(max(lap[2] for lap in laps[name])),  # MiB
        }
    return task | {"data": ", ".join(sorted(sources)), "results": results}


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
    info, flags = Path("/proc/cpuinfo"), ()
    if info.exists():
        fields = dict(re.findall(r"(?m)^(.+?)[ \t]*:[ \t]*(.*)$", info.read_text()))
        model = fields.get("model name", model)
        flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": model,
        "instructions": [f for f in INSTRUCTIONS if f in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def tasks(likelihoods: list[str], batch_sizes: list[int]) -> list[dict]:
    found = [
        {
            "task": "training",
            "likelihood": likelihood,
            "batch_size": size,
            "unit": size,  # examples in a step
        }
        for likelihood in likelihoods
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


def command_line(
    description: str, turns: int, output: Path | None
) -> argparse.ArgumentParser:
    """The options of every benchmark; ``turns`` and ``output`` are defaults."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=turns, help="of each contender")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    return parser


def begin(threads: int, device: str = "cpu") -> dict:
    """A report on this machine without results; says which machine it is."""
    about = machine(threads)
    if device != "cpu":
        import torch

        about["gpu"] = torch.cuda.get_device_name(device)
    print(f"{about['cpu']}, {threads} threads, torch {about['torch']}")
    return {"machine": about, "results": []}


def write(report: dict, path: Path) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {os.path.relpath(path)}")


def main(arguments: list[str] | None = None) -> None:
    parser = command_line(__doc__, 7, HERE / "latest.json")
    parser.add_argument("--examples", type=int, default=5000, help="in one turn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[100])
    likelihoods = list(LIKELIHOODS)
    parser.add_argument(
        "--likelihoods", nargs="+", choices=likelihoods, default=likelihoods[:1]
    )
    parser.add_argument("--only", default="", help="tasks that hold this word")
    options = parser.parse_args(arguments)
    if options.serve:
        contender, task, count = options.serve
        return serve(contender, json.loads(task), int(count))

    report = begin(options.threads)
    print(f"{'':44}{'rate':>12}{'ratio':>8}{'(lowest … highest)':>20}{'CPU':>8}")
    for task in tasks(options.likelihoods, options.batch_sizes):
        if options.only not in title(task):
            continue
        count = (
            10 if task["task"] == "log-density" else options.examples // task["unit"]
        )
        result = race(task, max(1, count), options.turns, options.threads)
        report["results"].append(result)
        for name, found in result["results"].items():
            rate, ratio = found["rate"]["median"], found["ratio"]
            spread = f"({ratio['low']:.2f} … {ratio['high']:.2f})"
            print(
                f"{title(task):34}{name:10}{rate:>12,.0f}{ratio['median']:>8.2f}"
                f"{spread:>20}{found['processor_ratio']['median']:>8.2f}",
                flush=True,
            )
    names = {r["data"] for r in report["results"] if r["task"] == "training"}
    print(
        "rate: examples (log-densities) a second; ratio: aevb's rate to this one's, and"
        f" the same of processor time; trained on {', '.join(names)}"
    )
    write(report, options.output)


if __name__ == "__main__":
    main()
