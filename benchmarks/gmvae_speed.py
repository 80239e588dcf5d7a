"""How fast ``aevb.fit`` trains the Gaussian-mixture VAE, beside a plain loop.

    make benchmark                                # or: python benchmarks/gmvae_speed.py
    python benchmarks/gmvae_speed.py --help

The sum over C = 10 classes wants q(z | x, y) of every image with every class. The
contenders train the same network, that of chapter 9 (784-512-512-64, ten classes), on
the same binary images in batches of the same size with Adam, and take turns as those of
``training_speed.py`` do:

* ``aevb``: ``aevb.fit`` from random weights, where every class of every image counts.
  The first layer is applied to the images once and to the classes once, and the sums
  of the two are broadcast.
* ``aevb, sure``: the same, once q(y | x) is sure of most images, as it is for most of a
  training: classes of negligible weight are left out. (It is made sure, of arbitrary
  groups, by logits a hundred times as large as those of random weights.)
* ``aevb, bfloat16`` and ``aevb, sure, bfloat16``: with ``precision="bfloat16"``.
* ``aevb, repeated``: as ``aevb`` in all but one thing: each image is repeated for each
  class before the first layer. What the broadcasting alone is worth.
* ``plain``: the loop that people write. ``DataLoader(shuffle=True)`` over tensors, x
  repeated and joined with the classes' one-hot rows, ``torch.distributions`` and
  ``torch.optim.Adam`` with their defaults, ``loss.item()`` in every step.

Rates are examples a second of wall time. The result goes to
``benchmarks/gmvae_latest.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import training_speed  # noqa: E402

NAMES = (
    "aevb",
    "aevb, bfloat16",
    "aevb, sure",
    "aevb, sure, bfloat16",
    "aevb, repeated",
    "plain",
)
CLASSES, LATENT, WIDTH = 10, 64, 512


def train_ours(contender: str, x, task: dict, count: int, lap: Callable) -> None:
    import torch

    from aevb import fit, models

    hidden = (WIDTH, WIDTH)
    model = models.GaussianMixtureVAE(
        num_classes=CLASSES, latent_dim=LATENT, hidden=hidden
    )
    if "sure" in contender:
        with torch.no_grad():
            model.inference["classifier"][-1].weight *= 100
    fit(
        model,
        x,
        steps=10**9,
        every=count,
        batch_size=task["batch_size"],
        lr=1e-4,
        estimator=repeated if contender.endswith("repeated") else None,
        precision="bfloat16" if contender.endswith("bfloat16") else None,
        record=lambda model: lap() or {},
        device="cpu",
        progress=False,
    )


def repeated(model, x):
    """``estimators.marginalised`` with each image repeated for each class."""
    from torch.distributions import kl_divergence

    from aevb.distributions import rsample
    from aevb.estimators import categorical_kl
    from aevb.model import ElboTerms

    q_y = model.class_posterior(x)
    classes = model.classes.repeat(len(x), 1)  # (B C, C)
    x = x.repeat_interleave(CLASSES, 0)  # (B C, D)
    q_z = model.posterior(x, classes)
    log_p = model.likelihood(rsample(q_z), classes).log_prob(x).view(-1, CLASSES)
    kl_z = kl_divergence(q_z, model.prior(classes)).view(-1, CLASSES)
    kl = (q_y.probs * kl_z).sum(-1) + categorical_kl(q_y, model.class_prior())
    return ElboTerms((q_y.probs * log_p).sum(-1), kl)


def train_plainly(x, task: dict, count: int, lap: Callable) -> None:
    import torch
    from torch import nn
    from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    def network(size: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Linear(size, WIDTH), nn.ReLU()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            nn.Linear(WIDTH, out),
        )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = network(784, CLASSES)
            self.encoder = network(784 + CLASSES, 2 * LATENT)
            self.decoder = network(LATENT, 784)
            self.prior = nn.Linear(CLASSES, 2 * LATENT)

        def loss(self, x):
            q_y = Categorical(logits=self.classifier(x))
            p_y = Categorical(logits=torch.zeros(CLASSES))
            y = torch.eye(CLASSES).repeat(len(x), 1)
            x = x.repeat_interleave(CLASSES, 0)
            q_z = gaussian(self.encoder(torch.cat([x, y], -1)))
            p_z = gaussian(self.prior(y))
            p_x = Bernoulli(logits=self.decoder(q_z.rsample()))
            log_p = p_x.log_prob(x).sum(-1) - kl_divergence(q_z, p_z).sum(-1)
            log_p = (q_y.probs * log_p.view(-1, CLASSES)).sum(-1)
            return (kl_divergence(q_y, p_y) - log_p).mean()

    def gaussian(h) -> Normal:
        mean, std = h.chunk(2, -1)
        return Normal(mean, F.softplus(std) + 1e-6)

    loader = DataLoader(TensorDataset(x), batch_size=task["batch_size"], shuffle=True)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    total, step = 0.0, 0
    while True:
        for (batch,) in loader:
            loss = model.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            step += 1
            if step % count == 0:
                lap()


def images():
    """Binary MNIST, or as many random bytes, and which of them."""
    from aevb import data

    train, source = training_speed.images("bernoulli")
    return data.binarise(train.raw), source


def serve(contender: str, task: dict, count: int) -> None:
    x, source = images()
    lap = training_speed.stopwatch(source)
    if contender == "plain":
        train_plainly(x, task, count, lap)
    else:
        train_ours(contender, x, task, count, lap)


def main(arguments: list[str] | None = None) -> None:
    parser = training_speed.command_line(__doc__, 5, HERE / "gmvae_latest.json")
    parser.add_argument("--examples", type=int, default=2000, help="in one turn")
    parser.add_argument("--batch-size", type=int, default=100)
    options = parser.parse_args(arguments)
    if options.serve:
        contender, task, count = options.serve
        return serve(contender, json.loads(task), int(count))

    size = options.batch_size
    task = {"task": "training", "batch_size": size, "unit": size}
    count = max(1, options.examples // size)
    report = training_speed.begin(options.threads)
    result = training_speed.race(
        task, count, options.turns, options.threads, NAMES, __file__
    )
    report["results"].append(result)
    print(f"{'':22}{'rate':>10}{'ratio':>8}{'(lowest … highest)':>20}{'CPU':>8}")
    for name, found in result["results"].items():
        rate, ratio = found["rate"]["median"], found["ratio"]
        spread = f"({ratio['low']:.2f} … {ratio['high']:.2f})"
        print(
            f"{name:22}{rate:>10,.0f}{ratio['median']:>8.2f}{spread:>20}"
            f"{found['processor_ratio']['median']:>8.2f}"
        )
    print(
        "rate: examples a second; ratio: aevb's rate to this one's, and the same of"
        f" processor time; trained on {result['data']}"
    )
    training_speed.write(report, options.output)


if __name__ == "__main__":
    main()
