"""Multilayer perceptrons, and heads that turn their features into distributions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from aevb.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    diagonal_normal,
    logit_of_mean,
)

SMALLEST_STD = 1e-6  # added to every softplus, which underflows to 0 near -100


def positive(unconstrained: Tensor) -> Tensor:
    """softplus(a) + 1e-6: how every standard deviation is made from a network's output.

    Example:
        >>> positive(torch.tensor([-200.0, 0.0]))
        tensor([1.0000e-06, 6.9315e-01])
    """
    return F.softplus(unconstrained) + SMALLEST_STD


def unconstrained(std: Tensor) -> Tensor:
    """The a with :func:`positive` (a) = ``std``: where to start a standard deviation.

    Example:
        >>> positive(unconstrained(torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """
    std = std - SMALLEST_STD
    return std + (-torch.expm1(-std)).log()  # log(exp(std) - 1), without overflow


class Linear(nn.Linear):
    """A linear layer on several inputs, as if they were joined end to end.

    A (x, y) = A₁ x + A₂ y, so each input is multiplied by its own columns of the
    weights, and the products are added up (``eq-cvae-split-layer``). The inputs are
    never joined, hence they may broadcast: C classes y beside B images x cost one
    product with the images, not C.

    Weights start Glorot-normal, biases at zero: torch's own start, uniform weights a
    third as large, costs a VAE more than half a nat after ten epochs. Glorot and
    Bengio (2010).

    Args:
        inputs: number of features of each input.
        outputs: number of output features.

    Shape: (…, inputs[0]), (…, inputs[1]), … that broadcast -> (…, outputs).

    Example:
        >>> images, classes = torch.zeros(5, 1, 784), torch.eye(10)
        >>> Linear((784, 10), 500)(images, classes).shape
        torch.Size([5, 10, 500])
    """

    def __init__(self, inputs: Sequence[int], outputs: int):
        super().__init__(sum(inputs), outputs)
        self.sizes = tuple(inputs)
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        if not others and len(self.sizes) == 1:  # no split: no copy of the gradient
            return super().forward(first)
        weight, *columns = self.weight.split(self.sizes, dim=1)
        total = F.linear(first, weight, self.bias)
        for part, weight in zip(others, columns, strict=True):
            total = total + F.linear(part, weight)
        return total


class OutputLayer(Linear):
    """A :class:`Linear` whose output has the precision of its weights.

    Where ``fit`` computes in ``bfloat16``, the numbers that parameters of densities
    are made from come back in single precision: a log-density sums hundreds of terms.
    """

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return super().forward(first, *others).to(self.weight.dtype)


def linear(inputs: int, outputs: int) -> OutputLayer:
    """The last layer of a network, a :class:`OutputLayer` on one input.

    Example:
        >>> linear(500, 20).bias.abs().sum().item()
        0.0
    """
    return OutputLayer((inputs,), outputs)


class Chain(nn.Sequential):
    """Modules one after the other, the first of which may take several inputs.

    Example:
        >>> joint = Linear((784, 10), 500)
        >>> encoder = Chain(joint, nn.ReLU(), GaussianHead(500, 20))
        >>> encoder(torch.zeros(3, 784), torch.zeros(3, 10)).event_shape
        torch.Size([20])
    """

    def forward(self, first: Tensor, *others: Tensor):
        h = first
        for number, module in enumerate(self):
            h = module(h) if number else module(h, *others)
        return h


ACTIVATIONS = {"relu": partial(nn.ReLU, inplace=True), "tanh": nn.Tanh}


class MLP(Chain):
    """Linear, activation, dropout; repeated for each hidden width; no output layer.

    Args:
        inputs: number of input features; several numbers for a network of several
            inputs, which its first layer takes as :class:`Linear` does.
        hidden: width of each hidden layer.
        dropout: probability of dropping a hidden unit.
        activation: ``"relu"`` or ``"tanh"``.

    Shape: (…, inputs) -> (…, hidden[-1]), or the identity if ``hidden`` is empty.
    ``features`` tells the number of output features.

    Raises:
        ValueError: several inputs and no hidden layer to take them; unknown activation.

    Example:
        >>> MLP(784, (500, 500))(torch.zeros(3, 784)).shape
        torch.Size([3, 500])
        >>> MLP((784, 10), (500,))(torch.zeros(3, 1, 784), torch.eye(10)).shape
        torch.Size([3, 10, 500])
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        hidden: Sequence[int],
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; expected one of {tuple(ACTIVATIONS)}"
            )
        sizes = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        if not hidden and len(sizes) > 1:
            raise ValueError(
                f"hidden is {hidden!r}; expected at least one width, as in (500,), for"
                f" a network of {len(sizes)} inputs"
            )
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [Linear(sizes, width), ACTIVATIONS[activation]()]
            layers.append(nn.Dropout(dropout))  # also for 0: same names of weights
            sizes = (width,)
        super().__init__(*layers)
        self.features = sizes[0]


class GaussianHead(nn.Module):
    """h ↦ N(A h + a, diag(σ²)) with standard deviation σ = softplus(B h + b).

    Shape: (…, features) -> batch shape (…), event shape (size,).
    """

    def __init__(self, features: int, size: int):
        super().__init__()
        self.mean = linear(features, size)
        self.std = linear(features, size)

    def forward(self, h: Tensor) -> Independent:
        return diagonal_normal(self.mean(h), positive(self.std(h)))


class BernoulliHead(nn.Module):
    """h ↦ product of Bernoullis with logits A h + a; for x in {0, 1}."""

    support = "0 or 1"
    family = Bernoulli

    def __init__(self, features: int, size: int):
        super().__init__()
        self.logits = linear(features, size)

    def forward(self, h: Tensor) -> Independent:
        pixels = self.family(logits=self.logits(h), validate_args=False)
        return Independent(pixels, 1, validate_args=False)

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Set the biases to what gives this mean (size,), where A h is zero."""
        self.logits.bias.copy_(torch.logit(mean, eps=1e-3))

    @staticmethod
    def supports(x: Tensor) -> bool:
        return bool(((x == 0) | (x == 1)).all())


class ContinuousBernoulliHead(BernoulliHead):
    """h ↦ product of continuous Bernoullis with logits A h + a; for x in [0, 1]."""

    support = "between 0 and 1"
    family = ContinuousBernoulli

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        self.logits.bias.copy_(logit_of_mean(mean.clamp(1e-3, 1 - 1e-3)))

    @staticmethod
    def supports(x: Tensor) -> bool:
        return bool(((x >= 0) & (x <= 1)).all())


class SharedVarianceHead(nn.Module):
    """h ↦ N(A h + a, σ² I) with one learned σ for all coordinates; for real x."""

    support = "finite"

    def __init__(self, features: int, size: int):
        super().__init__()
        self.mean = linear(features, size)
        self.std = nn.Parameter(torch.zeros(()))  # before the softplus

    def forward(self, h: Tensor) -> Independent:
        mean = self.mean(h)
        noise = Normal(mean, positive(self.std).expand_as(mean), validate_args=False)
        return Independent(noise, 1, validate_args=False)

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Set the biases to this mean (size,)."""
        self.mean.bias.copy_(mean)

    @staticmethod
    def supports(x: Tensor) -> bool:
        return bool(x.isfinite().all())


LIKELIHOODS = {
    "bernoulli": BernoulliHead,
    "continuous_bernoulli": ContinuousBernoulliHead,
    "gaussian": SharedVarianceHead,
}


def likelihood_head(name: str, features: int, size: int) -> nn.Module:
    """The head called ``name`` in :data:`LIKELIHOODS`.

    Raises:
        ValueError: no such likelihood.

    Example:
        >>> likelihood_head("bernoulli", 500, 784)(torch.zeros(2, 500)).event_shape
        torch.Size([784])
    """
    if name not in LIKELIHOODS:
        raise ValueError(
            f"likelihood is {name!r}; expected one of {tuple(LIKELIHOODS)}"
        )
    return LIKELIHOODS[name](features, size)
