"""Recipes: how each trained model of the book is made, as data.

A recipe describes a training completely, so that it can be kept beside the weights that
came out of it, and followed again:

* ``model``: ``class``, a name in :mod:`aevb.models`, and its ``arguments``;
* ``data``: ``source``, a function of :mod:`aevb.data`; for images their ``kind``, and
  how many of the training ``examples``, the first ones, are used;
* ``seed``: of the first weights and of the training;
* ``start_at``: ``"mean"`` where the model's ``start_at`` sees the training data first;
* ``stages``: arguments of :func:`aevb.fit`, one set a stage, each going on from the one
  before.

Beside those arguments a stage may have

* ``estimator``: what is maximised, a function of :mod:`aevb.estimators` and its
  options, ``{"name": "importance_weighted", "num_samples": 5}``; the name ``"elbo"`` is
  the model's own;
* ``groups``: the model is told a class for each example, found without labels, as
  chapter 9 does: by EM on the codes of a VAE (see ``tools/pretrain.py``).

:data:`RECIPES` are those of the installed weights (:func:`aevb.pretrained`); ``python
-m aevb train`` takes its defaults from them, and keeps one for each training.
:mod:`aevb.runs` follows them.
"""

from __future__ import annotations

from typing import Any

Recipe = dict[str, Any]

_VAE = {"latent_dim": 20, "hidden": [500, 500], "dropout": 0.0}
_MIXTURE = {"latent_dim": 64, "hidden": [512, 512]}
_BURDA = {  # the network of Burda et al. (2016) with one stochastic layer
    "latent_dim": 50,
    "hidden": [200, 200],
    "likelihood": "bernoulli",
    "dropout": 0.0,
    "activation": "tanh",
}
_ADAM = {"batch_size": 100, "lr": 1e-3, "schedule": "cosine"}
_FAST_PRODUCTS = {"precision": "bfloat16"}

# The settings of the chapters' own models at full speed.
RECIPES: dict[str, Recipe] = {
    "factor-analysis": {
        "model": {"class": "FactorAnalysis", "arguments": {}},
        "data": {"source": "factor_analysis"},
        "seed": 0,
        "stages": [
            {"steps": 8000, "every": 1000} | _ADAM | {"batch_size": 32, "lr": 1e-2}
        ],
    },
    "vae": {
        "model": {"class": "VAE", "arguments": _VAE},
        "data": {"source": "mnist", "kind": "continuous", "examples": 50000},
        "seed": 0,
        "stages": [{"epochs": 20} | _ADAM],
    },
    "conditional-vae": {
        "model": {"class": "ConditionalVAE", "arguments": _VAE},
        "data": {"source": "mnist", "kind": "continuous", "examples": 50000},
        "seed": 0,
        "stages": [{"epochs": 20} | _ADAM | _FAST_PRODUCTS],
    },
    "gaussian-mixture-vae": {
        "model": {"class": "GaussianMixtureVAE", "arguments": _MIXTURE},
        "data": {"source": "mnist", "kind": "binary", "examples": 60000},
        "seed": 0,
        "stages": [
            {
                "groups": {
                    "model": {
                        "class": "VAE",
                        "arguments": _MIXTURE
                        | {"likelihood": "bernoulli", "dropout": 0.0},
                    },
                    "stage": {"epochs": 12} | _ADAM | _FAST_PRODUCTS,
                    "active": 0.1,
                    "examples": 30000,
                    "num_components": 40,
                    "restarts": 4,
                    "tolerance": 2e-3,
                    "max_iterations": 60,
                },
                "epochs": 12,
            }
            | _ADAM
            | _FAST_PRODUCTS,
            {"epochs": 15} | _ADAM | {"lr": 5e-4} | _FAST_PRODUCTS,
        ],
    },
    "variational-rnn": {
        "model": {
            "class": "VariationalRNN",
            "arguments": {"latent_dim": 2, "recurrent": [128], "hidden": [200, 200]},
        },
        "data": {"source": "mnist", "kind": "rows", "examples": 50000},
        "seed": 0,
        "stages": [{"epochs": 10} | _ADAM | {"lr": 6e-3} | _FAST_PRODUCTS],
    },
    "vae-binarised": {
        "model": {"class": "VAE", "arguments": _BURDA},
        "data": {"source": "mnist", "kind": "stochastic", "examples": 60000},
        "seed": 0,
        "start_at": "mean",
        "stages": [
            {"epochs": 400, "every": 20, "batch_size": 256, "lr": 4e-3}
            | {"schedule": "cosine"}
            | _FAST_PRODUCTS
        ],
    },
    "iwae": {
        "model": {"class": "VAE", "arguments": _BURDA},
        "data": {"source": "mnist", "kind": "stochastic", "examples": 60000},
        "seed": 0,
        "start_at": "mean",
        "stages": [
            {
                "estimator": {
                    "name": "importance_weighted",
                    "num_samples": 5,
                    "gradient": "doubly-reparameterised",
                },
                "epochs": 165,
                "every": 8,
                "batch_size": 256,
                "lr": 4e-3,
                "schedule": "cosine",
            }
            | _FAST_PRODUCTS
        ],
    },
}
