"""The Gaussian-mixture variational auto-encoder of chapter 9."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
)

from aevb.distributions import rsample
from aevb.model import ElboTerms, check_batch, check_count
from aevb.models.conditional_vae import ConditionalVAE
from aevb.networks import MLP, Chain, linear


class GaussianMixtureVAE(ConditionalVAE):
    """A conditional VAE whose label nobody told us: p(y) p(z | y) p(x | z).

    The label y is one more latent variable, uniform over C clusters, and the inference
    model guesses it first: q(y, z | x) = q(y | x) q(z | x, y). The marginal prior p(z)
    is a mixture of C Gaussians. With ``condition="likelihood"`` it is the other model
    with these variables, "M2" of Kingma et al. (2014): p(y) p(z) p(x | y, z).

    :meth:`prior`, :meth:`likelihood` and :meth:`posterior` take y as those of
    :class:`~aevb.models.conditional_vae.ConditionalVAE` do; without y they sum it out,
    and are mixtures of C components. :meth:`elbo` sums over y as well.

    To train with given classes, set ``model.inputs = ("x", "y")``, and back to
    ``("x",)`` to train without.

    The defaults are the tutorial paper's (Yang, 2022).

    Args:
        num_classes: C, number of clusters.
        condition: ``"prior"``, ``"likelihood"`` or ``"both"``.
        data_dim, latent_dim, hidden, likelihood, dropout: as for
            :class:`~aevb.models.variational_autoencoder.VAE`; the network of q(y | x)
            has the same hidden layers.

    Raises:
        ValueError: as :class:`~aevb.models.conditional_vae.ConditionalVAE`.

    Example:
        >>> model = GaussianMixtureVAE(latent_dim=8, hidden=(64,))
        >>> x = torch.zeros(5, 784)
        >>> model.elbo(x).elbo.shape, model.cluster(x).shape
        (torch.Size([5]), torch.Size([5]))
        >>> model.sample(3).shape, model.sample(3, torch.arange(10)).shape
        (torch.Size([3, 784]), torch.Size([3, 10, 784]))
        >>> model.prior().component_distribution.batch_shape  # one for each cluster
        torch.Size([10])
    """

    inputs = ("x",)

    def __init__(
        self,
        *,
        num_classes: int = 10,
        condition: str = "prior",
        data_dim: int = 784,
        latent_dim: int = 64,
        hidden: Sequence[int] = (512, 512),
        likelihood: str = "bernoulli",
        dropout: float = 0.0,
    ):
        super().__init__(
            num_classes=num_classes,
            condition=condition,
            data_dim=data_dim,
            latent_dim=latent_dim,
            hidden=hidden,
            likelihood=likelihood,
            dropout=dropout,
        )
        body = MLP(data_dim, hidden, dropout)
        self.inference["classifier"] = Chain(body, linear(body.features, num_classes))
        self.register_buffer("classes", torch.eye(num_classes), persistent=False)

    def class_prior(self) -> Categorical:
        """p(y), uniform over the C clusters."""
        return Categorical(
            logits=torch.zeros_like(self.classes[0]), validate_args=False
        )

    def class_posterior(self, x: Tensor) -> Categorical:
        """q(y | x): x (…, D) gives batch shape (…) (``eq-gmvae-posterior``)."""
        return Categorical(logits=self.inference["classifier"](x), validate_args=False)

    def cluster(self, x: Tensor) -> Tensor:
        """The most probable cluster of each example, argmax q(y | x): (…,) int64."""
        return self.class_posterior(x).logits.argmax(-1)

    def prior(self, y: Tensor | None = None) -> Distribution:
        """p(z | y), or the mixture p(z) = Σ_y p(y) p(z | y) (``eq-gmvae-mixture``)."""
        if y is not None:
            return super().prior(y)
        if self.condition == "likelihood":
            return super().prior(self.classes[0])  # N(0, I), as for every other class
        return _mixture(self.class_prior(), super().prior(self.classes))

    def likelihood(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | y, z), or p(x | z) = Σ_y p(y | z) p(x | y, z), a mixture.

        With ``condition="prior"`` the two are one and the same, and no mixture.
        """
        if y is not None or self.condition == "prior":
            return super().likelihood(z, y)
        z = z.unsqueeze(-2)  # (…, 1, L), beside the C classes
        log_joint = self.class_prior().logits + super().prior(self.classes).log_prob(z)
        weights = Categorical(logits=log_joint, validate_args=False)  # p(y | z)
        return _mixture(weights, super().likelihood(z, self.classes))

    def posterior(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z | x, y), or the mixture q(z | x) = Σ_y q(y | x) q(z | x, y)."""
        if y is not None:
            return super().posterior(x, y)
        components = super().posterior(x.unsqueeze(-2), self.classes)  # (…, C)
        return _mixture(self.class_posterior(x), components)

    def elbo(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """The ELBO, with the sum over y computed; with y, its form for known classes.

        See :func:`aevb.estimators.marginalised` and :func:`aevb.estimators.labelled`.
        """
        from aevb.estimators import labelled, marginalised

        options = {"num_samples": num_samples, "generator": generator}
        if y is None:
            # a GPU computes all classes sooner than it tells which of them matter
            return marginalised(self, x, **options, negligible=0 if x.is_cuda else 1e-8)
        return labelled(self, x, y, **options)

    def log_weights(
        self,
        x: Tensor,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x, y, z) - log q(y, z | x), nats: (K, B).

        y ~ q(y | x), then z ~ q(z | x, y). Their mean over K estimates the ELBO.

        Raises:
            ValueError: num_samples < 1.
        """
        check_count("num_samples", num_samples)
        q_y = self.class_posterior(x)
        y = rsample(q_y, (num_samples,), generator)  # (K, B)
        q_z = self.posterior(x, y)
        z = rsample(q_z, (), generator)  # (K, B, L)
        log_p = self.class_prior().log_prob(y) + self.prior(y).log_prob(z)
        log_p = log_p + self.likelihood(z, y).log_prob(x)
        return log_p - q_y.log_prob(y) - q_z.log_prob(z)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        mean: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws of x: y ~ p(y), z ~ p(z | y), x ~ p(x | y, z); (n, D).

        Args:
            y: clusters to draw from, (B,): then n draws of each, (n, B, D).
            mean: return E[x | y, z] in place of the draw of x.
            generator: on the model's device; the global one if None.

        Raises:
            ValueError: n < 1.
        """
        check_count("n", n)
        options = {"mean": mean, "generator": generator}
        if y is not None:
            return super().sample(n, y, **options)
        y = rsample(self.class_prior(), (n,), generator)
        return super().sample(1, y, **options)[0]

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        if y is not None:
            return super().check(x, y)
        decoder = self.generative["decoder"]
        check_batch(x, self.data_dim, decoder[-1], self.zero.dtype)


def _mixture(weights: Categorical, components: Independent) -> MixtureSameFamily:
    return MixtureSameFamily(weights, components, validate_args=False)
