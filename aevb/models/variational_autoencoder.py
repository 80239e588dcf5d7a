"""The variational auto-encoder of chapter 7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel, check_batch, check_network
from aevb.networks import MLP, GaussianHead, likelihood_head, linear, positive


class SplitEncoder(nn.Module):
    """x ↦ N(μ(x), diag(σ(x)²)) with one network for μ and another one for σ."""

    def __init__(
        self,
        size: int,
        hidden: Sequence[int],
        latent: int,
        dropout: float,
        activation: str,
    ):
        super().__init__()
        self.mean, self.std = (
            nn.Sequential(
                body := MLP(size, hidden, dropout, activation),
                linear(body.features, latent),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Independent:
        return diagonal_normal(self.mean(x), positive(self.std(x)))


class VAE(LatentVariableModel):
    """z ~ N(0, I);  x | z ~ likelihood(MLP(z));  q(z | x) = N(μ(x), diag(σ(x)²)).

    The defaults are the tutorial paper's (Yang, 2022); Kingma and Welling (2014).

    Args:
        data_dim: D, number of observed coordinates (pixels).
        latent_dim: L, number of latent coordinates.
        hidden: widths of the hidden layers of the encoder; the decoder has them in
            reverse.
        likelihood: ``"continuous_bernoulli"`` for x in [0, 1], ``"bernoulli"`` for
            x in {0, 1}, or ``"gaussian"``, N(·, σ² I) with one learned σ.
        dropout: probability of dropping a hidden unit during training.
        encoders: 1, a network with two heads, or 2, a network each for μ and σ.
        activation: of the hidden units, ``"relu"`` or ``"tanh"``.

    Raises:
        ValueError: unknown likelihood or activation; ``encoders`` other than 1 or 2; a
            size < 1; ``dropout`` outside [0, 1).

    Example:
        >>> model = VAE(latent_dim=2, hidden=(64,), likelihood="bernoulli")
        >>> model.elbo(torch.zeros(5, 784)).elbo.shape
        torch.Size([5])
        >>> model.sample(3).shape
        torch.Size([3, 784])
    """

    def __init__(
        self,
        *,
        data_dim: int = 784,
        latent_dim: int = 20,
        hidden: Sequence[int] = (500, 500),
        likelihood: str = "continuous_bernoulli",
        dropout: float = 0.1,
        encoders: int = 1,
        activation: str = "relu",
    ):
        super().__init__()
        if encoders not in (1, 2):
            raise ValueError(f"encoders is {encoders}; expected 1 or 2")
        check_network(hidden, dropout, data_dim=data_dim, latent_dim=latent_dim)
        self.data_dim, self.latent_dim = data_dim, latent_dim
        decoder = MLP(latent_dim, tuple(reversed(hidden)), dropout, activation)
        head = likelihood_head(likelihood, decoder.features, data_dim)
        self.generative = nn.Sequential(decoder, head)
        if encoders == 1:
            body = MLP(data_dim, hidden, dropout, activation)
            head = GaussianHead(body.features, latent_dim)
            self.inference = nn.Sequential(body, head)
        else:
            sizes = data_dim, hidden, latent_dim
            self.inference = SplitEncoder(*sizes, dropout, activation)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def start_at(self, x: Tensor) -> VAE:
        """Start p(x | z) at the mean of the data (N, D), whatever z; before training.

        The output biases alone say then how dark each pixel is on average. A decoder
        that starts at grey learns it through its hidden units, drives them far from
        zero, and needs several times as many epochs for the same ELBO (a tanh decoder
        on binarised MNIST; Burda et al., 2016, start so).

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: ``x`` is no finite tensor (N, D) of the model's
                precision.

        Example:
            >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
            >>> model = VAE(data_dim=2, hidden=(8,), likelihood="bernoulli").start_at(x)
            >>> model.generative[-1].logits.bias
            Parameter containing:
            tensor([ 0.0000, -6.9068], requires_grad=True)
        """
        check_batch(x, self.data_dim, dtype=self.zero.dtype)
        self.generative[-1].start_at(x.mean(0))
        return self

    def prior(self) -> Independent:
        """p(z) = N(0, I)."""
        return diagonal_normal(self.zero, torch.ones_like(self.zero))

    def likelihood(self, z: Tensor) -> Independent:
        """p(x | z), a product over the D coordinates."""
        return self.generative(z)

    def posterior(self, x: Tensor) -> Independent:
        """q(z | x) = N(μ(x), diag(σ(x)²)) (``eq-vae-posterior``)."""
        return self.inference(x)

    def check(self, x: Tensor) -> None:
        dtype = next(self.parameters()).dtype
        check_batch(x, self.data_dim, self.generative[-1], dtype)
