"""How fast ``aevb.fit`` trains a VAE, beside what people use instead.

    make benchmark                               # or: python benchmarks/peers_speed.py
    python benchmarks/peers_speed.py --target 20    # seconds to a given ELBO: minutes
    python benchmarks/peers_speed.py --help

All train the network of chapter 7, 784-500-500-20 without dropout, with Bernoulli
pixels, on images that are binarised afresh for every batch, with Adam. Each lives in a
process of its own with the same environment, and they take turns.

* ``aevb``: ``aevb.fit``.
* ``plain``: the loop that people write. ``DataLoader(shuffle=True)`` over tensors,
  ``torch.distributions`` and ``torch.optim.Adam`` with their defaults, ``loss.item()``
  in every step.
* ``pyro``: ``SVI`` of pyro-ppl with ``Trace_ELBO``, as in its own example of a VAE;
  ``pyro, mean field``: with ``TraceMeanField_ELBO``, whose KL term is exact, as it is
  in all the others.
* ``pythae``: its ``BaseTrainer``.
* ``products``: no training, but the matrix products of one, forward and backward, on
  buffers made beforehand: what the processor's speed at them allows.

``, bfloat16`` behind a name: matrix products in ``bfloat16``, by ``precision=`` or by
``torch.autocast``. Everything else is in single precision. ``pythae`` has no such thing
for a Bernoulli likelihood.

Rates are examples a second of wall time, medians over the turns; ratios are those of
``aevb``'s rate at the same precision to the contender's, so that the one beside
``products`` is the share of the bound that ``aevb`` reaches. Memory is the largest
resident set of the process during its turns, with torch and the data in it (on a GPU:
of the device's memory). A package that is not installed is left out; ``pip install -r
benchmarks/requirements.txt`` installs them all. The result goes to
``benchmarks/peers_latest.json``.

With ``--target EPOCHS``, ``plain`` trains for as many epochs; the ELBO of the test set
that it ends with is the target. The others then train until an epoch ends at the
target or above; the seconds are those of training alone. All are judged by the same
function, with the same noise. ``aevb`` has settings of its own, which are options: the
decoder starts at the mean of the data, the divergence is weighted up in the first part
of the training, batches are larger, and the learning rate is higher and falls in the
second half of the epochs. The others keep those of ``plain``.
That result goes to ``benchmarks/target_latest.json``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import training_speed  # noqa: E402

LOW = ", bfloat16"
NAMES = (
    *("aevb", "plain", "pyro", "pyro, mean field", "pythae", "products"),
    *("aevb" + LOW, "plain" + LOW, "pyro" + LOW, "products" + LOW),
)
RIVALS = {name: "aevb" + LOW for name in NAMES if name.endswith(LOW)}
PEERS = {"pyro": "pyro", "pythae": "pythae"}  # contender: module
LATENT, WIDTH = 20, 500


# --- the contenders: each works on and on, and calls ``lap`` after ``count`` steps ---


def train_ours(train, task: dict, low: bool, count: int, lap: Callable) -> None:
    from aevb import fit, models

    def encode(x):
        q_z = model.posterior(x).base_dist
        return q_z.mean, q_z.stddev

    def decode(z):
        return model.likelihood(z).base_dist.logits

    model = models.VAE(
        latent_dim=LATENT, hidden=(WIDTH, WIDTH), likelihood="bernoulli", dropout=0.0
    )
    if "steps" in task:  # a chase, where the settings are ours to choose
        model.start_at(train.x)
    fit(
        model,
        train,
        steps=task.get("steps", 10**9),
        every=count,
        batch_size=task["unit"],
        lr=task["lr"],
        schedule=task.get("schedule", "constant"),
        kl_warmup=task.get("kl_warmup", 0.0),
        precision="bfloat16" if low else None,
        record=lambda model: lap(encode, decode) or {},
        device=task["device"],
        progress=False,
    )


def networks():
    """``encode`` x ↦ mean and standard deviation, ``decode`` z ↦ logits."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Linear(784, WIDTH), nn.ReLU()),
                *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            )
            self.mean, self.std = nn.Linear(WIDTH, LATENT), nn.Linear(WIDTH, LATENT)

        def forward(self, x):
            h = self.body(x)
            std = nn.functional.softplus(self.std(h).float()) + 1e-6
            return self.mean(h).float(), std

    decoder = nn.Sequential(
        *(nn.Linear(LATENT, WIDTH), nn.ReLU()),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, 784),
    )
    torch.manual_seed(0)
    return Encoder(), decoder


def train_plainly(grey, task: dict, low: bool, count: int, lap: Callable) -> None:
    import torch
    from torch.distributions import Bernoulli, Normal, kl_divergence

    encoder, decoder = (part.to(task["device"]) for part in networks())
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=task["lr"])
    total, step = 0.0, 0
    for x in batches(grey, task):
        with torch.autocast(task["device"], torch.bfloat16, enabled=low):
            q_z = Normal(*encoder(x))
            logits = decoder(q_z.rsample()).float()
        prior = Normal(torch.zeros_like(q_z.mean), torch.ones_like(q_z.mean))
        kl = kl_divergence(q_z, prior).sum(-1)
        loss = (kl - Bernoulli(logits=logits).log_prob(x).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        step += 1
        if step % count == 0:
            lap(encoder, decoder)


def batches(grey, task: dict):
    """Images without end, from a ``DataLoader``, each batch binarised afresh."""
    import torch

    return map(torch.bernoulli, endless(grey, task))


def endless(x, task: dict):
    """Batches of ``x`` on the device, from a ``DataLoader``, without end."""
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x), batch_size=task["unit"], shuffle=True)
    while True:
        for (batch,) in loader:
            yield batch.to(task["device"])


def train_with_pyro(
    grey, task: dict, low: bool, count: int, lap: Callable, mean_field: bool = False
) -> None:
    import pyro
    import torch
    from pyro.distributions import Bernoulli, Normal
    from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
    from pyro.optim import Adam

    encoder, decoder = (part.to(task["device"]) for part in networks())

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("examples", len(x)):
            zero = x.new_zeros(len(x), LATENT)
            z = pyro.sample("z", Normal(zero, torch.ones_like(zero)).to_event(1))
            pixels = Bernoulli(logits=decoder(z).float())
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("examples", len(x)):
            pyro.sample("z", Normal(*encoder(x)).to_event(1))

    loss = TraceMeanField_ELBO() if mean_field else Trace_ELBO()
    svi = SVI(model, guide, Adam({"lr": task["lr"]}), loss=loss)
    total, step = 0.0, 0
    for x in batches(grey, task):
        with torch.autocast(task["device"], torch.bfloat16, enabled=low):
            total += svi.step(x)
        step += 1
        if step % count == 0:
            lap(encoder, decoder)


def train_with_pythae(grey, task: dict, low: bool, count: int, lap: Callable) -> None:
    import logging

    import torch
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback
    from torch.utils.data import Dataset

    logging.disable()
    encoder, decoder = networks()

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.network = encoder

        def forward(self, x):
            h = encoder.body(x)
            mean, log_variance = encoder.mean(h), encoder.std(h)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.network = decoder

        def forward(self, z):
            return ModelOutput(reconstruction=torch.sigmoid(decoder(z)))

    class Images(Dataset):
        def __len__(self):
            return len(grey)

        def __getitem__(self, index):
            return DatasetOutput(data=torch.bernoulli(grey[index]))

    class Laps(TrainingCallback):
        step = 0

        def on_train_step_end(self, training_config, **others):
            self.step += 1
            if self.step % count == 0:
                lap(encode, decoder)

    def encode(x):
        h = encoder.body(x)
        return encoder.mean(h), (encoder.std(h) / 2).exp()

    network = {"input_dim": (784,), "latent_dim": LATENT}
    config = VAEConfig(**network, reconstruction_loss="bce")
    with TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=task["unit"],
            num_epochs=10**6,
            learning_rate=task["lr"],
            no_cuda=task["device"] == "cpu",
        )
        model = VAE(config, Encoder(), Decoder())
        BaseTrainer(model, Images(), None, settings, [Laps()]).train()


def multiply(grey, task: dict, low: bool, count: int, lap: Callable) -> None:
    """The products of a step: out = x Wᵀ, and the gradients of x and of W.

    The images need no gradient, so the first layer has two products, the others three.
    """
    import torch

    layers = (
        *((784, WIDTH), (WIDTH, WIDTH), (WIDTH, LATENT), (WIDTH, LATENT)),
        *((LATENT, WIDTH), (WIDTH, WIDTH), (WIDTH, 784)),
    )
    dtype = torch.bfloat16 if low else torch.float32
    filled = partial(torch.full, fill_value=0.5, dtype=dtype, device=task["device"])
    x = [filled((task["unit"], size)) for size, _ in layers]
    w = [filled((size, inner)) for inner, size in layers]
    out = [filled((task["unit"], size)) for _, size in layers]
    d_x, d_w, d_out = map(list, (map(torch.empty_like, k) for k in (x, w, out)))
    for d in d_out:
        d.fill_(0.5)
    while True:
        for _ in range(count):
            for k in range(len(layers)):
                torch.mm(x[k], w[k].T, out=out[k])
            for k in reversed(range(len(layers))):
                torch.mm(d_out[k].T, x[k], out=d_w[k])
                if k:
                    torch.mm(d_out[k], w[k], out=d_x[k])
        lap()


TRAIN = {
    "aevb": train_ours,
    "plain": train_plainly,
    "pyro": train_with_pyro,
    "pyro, mean field": partial(train_with_pyro, mean_field=True),
    "pythae": train_with_pythae,
    "products": multiply,
}


def images():
    """Training and test images as bytes, or random ones, and which of them."""
    from aevb import data

    train, source = training_speed.images("bernoulli")
    if source == "MNIST":
        return train, data.mnist("stochastic")[1].x, source
    return train, train.x[:100], source


def judge(x) -> Callable:
    """``measure(encode, decode)``: the mean ELBO of x, one fixed draw an example."""
    import torch
    from torch.nn import functional as F

    def measure(encode, decode) -> float:
        total, g = 0.0, torch.Generator().manual_seed(0)
        with torch.no_grad():
            for part in x.split(1000):
                mean, std = encode(part)
                noise = torch.randn(len(part), LATENT, generator=g)
                z = mean + std * noise.to(mean.device)
                pixels = {"weight": None, "reduction": "sum"}
                error = F.binary_cross_entropy_with_logits(decode(z), part, **pixels)
                kl = (mean.square() + std.square() - 1).sum() / 2 - std.log().sum()
                total -= float(error + kl)
        return total / len(x)

    return measure


def serve(contender: str, task: dict, count: int) -> None:
    train, test, source = images()
    name, low = contender.removesuffix(LOW), contender.endswith(LOW)
    measure = judge(test.to(task["device"])) if "epochs" in task else None
    if measure is not None and name == "aevb":
        task = task | task["ours"]
    if name != "aevb":
        train = train.raw.float() / 255  # no more than what they need stays in memory
    TRAIN[name](train, task, low, count, training_speed.stopwatch(source, measure))


# --- the race, and the chase of a target ---


def installed(names) -> list[str]:
    """Those of the contenders that can run here; says how to install the others."""
    missing = [m for m in PEERS if find_spec(m) is None]
    if missing:
        print(
            f"{' and '.join(missing)}: not installed, left out. To have it:"
            f" {sys.executable} -m pip install -r benchmarks/requirements.txt"
        )
    return [n for n in names if n.removesuffix(LOW).split(",")[0] not in missing]


def versions() -> dict[str, str]:
    from importlib.metadata import version

    found = {"pyro": "pyro-ppl", "pythae": "pythae"}
    return {found[m]: version(found[m]) for m in PEERS if find_spec(m)}


def race(options, names: list[str], report: dict) -> None:
    print(f"{'':32}{'rate':>10}{'ratio':>8}{'lowest, highest':>18}{'MiB':>8}")
    for size in options.batch_sizes:
        task = {"task": "VAE", "unit": size, "lr": 1e-4, "device": options.device}
        result = training_speed.race(
            task,
            max(1, options.examples // size),
            options.turns,
            options.threads,
            names,
            __file__,
            {name: RIVALS[name] for name in names if name in RIVALS},
        )
        report["results"].append(result)
        for name, found in result["results"].items():
            rate, ratio = found["rate"]["median"], found["ratio"]
            spread = f"{ratio['low']:.2f}, {ratio['high']:.2f}"
            print(
                f"{f'{name}, batch {size}':32}{rate:>10,.0f}{ratio['median']:>8.2f}"
                f"{spread:>18}{found['memory']:>8,}",
                flush=True,
            )
    print(
        "rate: examples a second; ratio: aevb's rate at the same precision to it; MiB:"
        " the most that the process held"
    )


def chase(options, names: list[str], report: dict) -> None:
    """Seconds of training to the test ELBO that ``plain`` reaches in so many epochs."""
    train, _, source = images()
    ours = {
        "epochs": options.epochs,
        "unit": options.batch,
        "lr": options.lr,
        "schedule": "cosine",
        "kl_warmup": options.kl_warmup,
        "steps": options.epochs * math.ceil(len(train) / options.batch),
    }
    size = options.batch_sizes[0]
    task = {"task": "target", "unit": size, "lr": 1e-3, "device": options.device}
    task |= {"epochs": options.target, "ours": ours}
    result = task | {"data": source, "results": {}}
    report["results"].append(result)
    target = None
    names = ["plain", *(n for n in names if n != "plain" and "products" not in n)]
    for name in names:
        own = name.startswith("aevb")
        most = options.epochs if own else options.most
        steps = math.ceil(len(train) / (options.batch if own else size))
        seconds, curve = 0.0, []
        with training_speed.contender(
            name, task, steps, options.threads, __file__
        ) as turn:
            turn()
            for _ in range(options.target if target is None else most):
                wall, _, _, elbo = turn()
                seconds += wall
                curve.append([round(seconds, 2), round(elbo, 3)])
                if target is not None and elbo >= target:
                    break
        if target is None:
            target = result["target"] = curve[-1][1]
        reached = curve[-1][1] >= target
        result["results"][name] = {
            "seconds": curve[-1][0] if reached else None,
            "epochs": len(curve),
            "curve": curve,
        }
        words = f"{target:.2f} reached" if reached else f"at {curve[-1][1]:.2f}"
        print(
            f"{name:24}{words} after {len(curve)} epochs, {curve[-1][0]:.1f} seconds",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    parser = training_speed.command_line(__doc__, 7, None)
    parser.add_argument("--examples", type=int, default=4000, help="in one turn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[100, 512])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--target", type=int, metavar="EPOCHS", help="chase plain's ELBO after these"
    )
    parser.add_argument("--most", type=int, default=40, help="epochs of the others")
    own = parser.add_argument_group("settings of aevb in the chase")
    own.add_argument("--epochs", type=int, default=9)
    own.add_argument("--batch", type=int, default=400, help="examples a step")
    own.add_argument("--lr", type=float, default=3e-3)
    own.add_argument("--kl-warmup", type=float, default=0.4, help="share of the epochs")
    options = parser.parse_args(arguments)
    if options.serve:
        contender, task, count = options.serve
        return serve(contender, json.loads(task), int(count))

    report = training_speed.begin(options.threads, options.device)
    report["machine"] |= versions()
    names = installed(options.names)
    run, name = (chase, "target") if options.target else (race, "peers")
    run(options, names, report)
    training_speed.write(report, options.output or HERE / f"{name}_latest.json")


if __name__ == "__main__":
    main()
