"""The figures that chapters share."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import Tensor

# Okabe and Ito's colours: distinct under every common form of colour blindness.
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}


def book_style() -> None:
    """Set matplotlib's style for the book: opaque white, readable on a phone."""
    order = ("blue", "vermillion", "green", "purple", "orange", "sky", "black")
    mpl.rcParams.update(
        {
            "figure.figsize": (6.0, 3.6),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=[COLORS[name] for name in order]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "font.size": 10,
            "legend.frameon": False,
            "image.cmap": "gray_r",
            "image.interpolation": "nearest",
        }
    )


def image_grid(
    images: Tensor, columns: int = 10, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw square images of values in [0, 1] as one grid, ink dark on white.

    Args:
        images: (N, side²) or (N, side, side).
        columns: images in a row; the last row is filled with white.
        ax: where to draw; a new figure if None.
        title: above the grid.

    Raises:
        ValueError: the images are not square.
    """
    images = torch.as_tensor(images).detach().cpu().float()
    side = round(images[0].numel() ** 0.5)
    if side * side != images[0].numel():
        raise ValueError(
            f"images has shape {tuple(images.shape)}; expected (N, side²) or"
            " (N, side, side)"
        )
    rows = -(-len(images) // columns)
    canvas = torch.zeros(rows * columns, side, side)
    canvas[: len(images)] = images.reshape(-1, side, side)
    canvas = canvas.reshape(rows, columns, side, side)
    canvas = canvas.transpose(1, 2).reshape(rows * side, columns * side)  # one picture
    if ax is None:
        width = min(6.5, 0.55 * columns)
        height = width * rows / columns + 0.3 * bool(title)
        _, ax = plt.subplots(figsize=(width, height))
    ax.imshow(canvas, vmin=0, vmax=1)
    ax.set_axis_off()
    ax.set_title(title, fontsize=10)
    return ax


def learning_curve(
    history, ax: Axes | None = None, x: str = "epoch", label: str = ""
) -> Axes:
    """Training and test ELBO of a :class:`~aevb.training.History` against ``x``."""
    if ax is None:
        _, ax = plt.subplots()
    prefix = f"{label}, " if label else ""
    line = ax.plot(history[x], history["train_elbo"], "--", label=f"{prefix}training")
    if "test_elbo" in history:
        color = line[0].get_color()
        ax.plot(history[x], history["test_elbo"], color=color, label=f"{prefix}test")
    ax.set(xlabel=x, ylabel="ELBO (nats per example)")
    ax.legend()
    return ax


def ellipse(
    ax: Axes, mean: Sequence[float], cov: Tensor, scale: float = 2.0, **style
) -> Ellipse:
    """Draw the ``scale``-standard-deviation ellipse of a Gaussian in the plane.

    Args:
        mean: (2,).
        cov: (2, 2), symmetric and positive definite.
        scale: radius in standard deviations.
    """
    values, vectors = np.linalg.eigh(np.asarray(cov, dtype=float))
    width, height = 2 * scale * np.sqrt(values)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    style = {"fill": False, "linewidth": 1.5} | style
    patch = Ellipse(tuple(map(float, mean)), width, height, angle=angle, **style)
    return ax.add_patch(patch)
