"""The models of the book, one file each, in the order of its chapters."""

from aevb.models.conditional_vae import ConditionalVAE
from aevb.models.factor_analysis import FactorAnalysis
from aevb.models.gaussian_mixture_vae import GaussianMixtureVAE
from aevb.models.variational_autoencoder import VAE
from aevb.models.variational_rnn import VariationalRNN

__all__ = [
    "VAE",
    "ConditionalVAE",
    "FactorAnalysis",
    "GaussianMixtureVAE",
    "VariationalRNN",
]
