"""The conditional variational auto-encoder of chapter 8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn import functional as F

from aevb.distributions import diagonal_normal
from aevb.model import LatentVariableModel, check_batch, check_labels, check_network
from aevb.networks import MLP, Chain, GaussianHead, likelihood_head


class ConditionalVAE(LatentVariableModel):
    """p(z | y) p(x | y, z), a VAE that is told the label y;  q(z | x, y).

    The generative model is ``eq-cvae-joint``; :meth:`elbo` estimates the lower bound on
    log p(x | y), ``eq-cvae-bound``, by ``eq-cvae-estimator``.

    Three factorisations differ in where the generative model looks at y:

    =================  =====================================  =======================
    ``condition``      prior                                  likelihood
    =================  =====================================  =======================
    ``"both"``         p(z | y) = N(A y + a, diag(σ(y)²))     p(x | y, z), a network
    ``"prior"``        p(z | y), the same                     p(x | z)
    ``"likelihood"``   p(z) = N(0, I)                         p(x | y, z)
    =================  =====================================  =======================

    The inference model sees both x and y in each of them. Labels are int64 (…,), or
    probabilities of the classes (…, C), such as one-hot rows. x, y and z broadcast,
    and a first layer is applied to each by itself: C classes beside B images cost one
    product with the images.

    In the decoder the label's weights start √L times as large as Glorot's rule has
    them, so that y is heard beside the L coordinates of z. A model that does not listen
    to y early puts it into the code, where it stays.

    The defaults are the tutorial paper's (Yang, 2022); Sohn et al. (2015).

    Args:
        num_classes: C, number of values of the label.
        condition: ``"both"``, ``"prior"`` or ``"likelihood"``.
        data_dim, latent_dim, hidden, likelihood, dropout: as for
            :class:`~aevb.models.variational_autoencoder.VAE`.

    Raises:
        ValueError: unknown ``condition`` or ``likelihood``; a size < 1; ``hidden``
            empty; ``dropout`` outside [0, 1).

    Example:
        >>> model = ConditionalVAE(hidden=(64,), likelihood="bernoulli")
        >>> x, y = torch.zeros(5, 784), torch.tensor([0, 1, 2, 3, 4])
        >>> model.elbo(x, y).elbo.shape
        torch.Size([5])
        >>> model.sample(3, torch.arange(10)).shape  # 3 of each class
        torch.Size([3, 10, 784])
        >>> model.posterior(x[:, None], torch.eye(10)).batch_shape  # all classes
        torch.Size([5, 10])
    """

    inputs = ("x", "y")

    def __init__(
        self,
        *,
        num_classes: int = 10,
        condition: str = "both",
        data_dim: int = 784,
        latent_dim: int = 20,
        hidden: Sequence[int] = (500, 500),
        likelihood: str = "continuous_bernoulli",
        dropout: float = 0.1,
    ):
        super().__init__()
        kinds = ("both", "prior", "likelihood")
        if condition not in kinds:
            raise ValueError(f"condition is {condition!r}; expected one of {kinds}")
        sizes = {"data_dim": data_dim, "latent_dim": latent_dim}
        check_network(hidden, dropout, num_classes=num_classes, **sizes)
        self.num_classes, self.condition = num_classes, condition
        self.data_dim, self.latent_dim = data_dim, latent_dim
        sees_y = condition != "prior"
        inputs = (latent_dim, num_classes) if sees_y else latent_dim
        body = MLP(inputs, tuple(reversed(hidden)), dropout)
        if sees_y:
            with torch.no_grad():  # z has L coordinates of unit size, a one-hot y one
                body[0].weight[:, latent_dim:] *= latent_dim**0.5
        head = likelihood_head(likelihood, body.features, data_dim)
        self.generative = nn.ModuleDict({"decoder": Chain(body, head)})
        if condition != "likelihood":
            self.generative["prior"] = GaussianHead(num_classes, latent_dim)
        body = MLP((data_dim, num_classes), hidden, dropout)
        head = GaussianHead(body.features, latent_dim)
        self.inference = nn.ModuleDict({"encoder": Chain(body, head)})
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def one_hot(self, y: Tensor) -> Tensor:
        """Labels (…,) as unit vectors (…, C); probabilities (…, C) as they are."""
        y = torch.as_tensor(y, device=self.zero.device)
        if y.is_floating_point():
            return y
        return F.one_hot(y, self.num_classes).to(self.zero.dtype)

    def prior(self, y: Tensor) -> Independent:
        """p(z | y), or N(0, I) if ``condition="likelihood"``; batch shape (…)."""
        y = self.one_hot(y)
        if self.condition == "likelihood":
            mean = self.zero.expand(*y.shape[:-1], -1)
            return diagonal_normal(mean, torch.ones_like(mean))
        return self.generative["prior"](y)

    def likelihood(self, z: Tensor, y: Tensor) -> Independent:
        """p(x | y, z), or p(x | z) if ``condition="prior"``.

        Args:
            z: (…, L).
            y: as for the class; broadcasts with z.
        """
        if self.condition == "prior":
            return self.generative["decoder"](z)
        return self.generative["decoder"](z, self.one_hot(y))

    def posterior(self, x: Tensor, y: Tensor) -> Independent:
        """q(z | x, y) = N(μ(x, y), diag(σ(x, y)²)) (``eq-cvae-posterior``).

        Args:
            x: (…, D).
            y: as for the class; broadcasts with x.
        """
        return self.inference["encoder"](x, self.one_hot(y))

    def check(self, x: Tensor, y: Tensor) -> None:
        decoder = self.generative["decoder"]
        check_batch(x, self.data_dim, decoder[-1], self.zero.dtype)
        check_labels(y, self.num_classes, len(x), self.zero.dtype)
