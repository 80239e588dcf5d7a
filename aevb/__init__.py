"""Auto-encoding variational Bayes: the package that the book's notebooks import.

Importing it changes no global state and imports neither matplotlib nor IPython;
:mod:`aevb.plotting` and :mod:`aevb.notebook` are imported where they are needed.
"""

from aevb import (
    data,
    diagnostics,
    distributions,
    em,
    estimators,
    evaluation,
    inference,
    models,
    networks,
    weights,
)
from aevb import model as model
from aevb.training import fit
from aevb.weights import pretrained

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "data",
    "diagnostics",
    "distributions",
    "em",
    "estimators",
    "evaluation",
    "fit",
    "inference",
    "model",
    "models",
    "networks",
    "pretrained",
    "weights",
]
