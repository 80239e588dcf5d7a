"""Auto-encoding variational Bayes: the package that the book's notebooks import.

Importing it changes no global state, and imports nothing: each part, and torch with it,
is imported when it is first named. :mod:`aevb.plotting` and :mod:`aevb.notebook`, which
need matplotlib and IPython, are imported by their full names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors; the same names as __getattr__ gives
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

_FUNCTIONS = {"fit": "aevb.training", "pretrained": "aevb.weights"}
_MODULES = {*__all__, "annealing", "training"} - {"__version__", *_FUNCTIONS}


def __getattr__(name: str) -> Any:
    """Import a part of the package when it is first named."""
    if name in _FUNCTIONS:
        part = getattr(import_module(_FUNCTIONS[name]), name)
    elif name in _MODULES:
        part = import_module(f"aevb.{name}")
    else:
        raise AttributeError(f"module 'aevb' has no attribute {name!r}")
    globals()[name] = part
    return part


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
