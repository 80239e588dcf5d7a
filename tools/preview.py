"""The picture that a link to the book shows: 1200 x 630, EM climbing the evidence.

    python -m tools.preview        # writes book/_site/preview.png

The curves are computed: the evidence of a mixture of two Gaussians over one free mean,
and the lower bounds that two E-steps give, each touching it at the mean of its step.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import yaml
from matplotlib import pyplot as plt

from aevb.plotting import COLORS
from tools import conventions as c

TARGET = c.ROOT / "book" / "_site" / "preview.png"
INK, PAPER = "#0b2a4a", "#ffffff"


def log_joint(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """log p(x, z; mean) of points (N,), z of 0 and 1, means (M,): (M, N, 2)."""
    means = np.stack([np.full_like(mean, -2.0), mean], -1)[:, None]
    return np.log(0.5) - 0.5 * np.log(2 * np.pi) - 0.5 * (x[:, None] - means) ** 2


def curves(steps: int = 2) -> tuple[np.ndarray, np.ndarray, list, list[float]]:
    """Means, their evidence, the bounds of the first steps, the means of the steps."""
    random = np.random.default_rng(3)
    x = np.concatenate([random.normal(-2, 1, 60), random.normal(2.2, 1, 60)])
    grid = np.linspace(-3.2, 4.2, 400)
    joint = log_joint(x, grid)
    evidence = np.logaddexp(joint[..., 0], joint[..., 1]).mean(-1)
    mean, bounds, means = -1.0, [], [-1.0]
    for _ in range(steps):
        here = log_joint(x, np.array([mean]))
        posterior = np.exp(here - np.logaddexp(here[..., :1], here[..., 1:]))
        entropy = -(posterior * np.log(posterior)).sum(-1)
        bounds.append(((posterior * joint).sum(-1) + entropy).mean(-1))
        mean = float((posterior[0, :, 1] * x).sum() / posterior[0, :, 1].sum())
        means.append(mean)
    return grid, evidence, bounds, means


def draw() -> plt.Figure:
    title = yaml.safe_load((c.ROOT / "_config.yml").read_text(encoding="utf-8"))[
        "title"
    ]
    name, _, rest = title.partition(", ")
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=PAPER)
    figure.text(0.06, 0.62, name.replace(" ", "\n", 2), size=46, color=INK, va="center")
    figure.text(0.06, 0.26, rest, size=38, color=COLORS["vermillion"], va="center")
    ax = figure.add_axes((0.47, 0.08, 0.49, 0.84))
    grid, evidence, bounds, means = curves()
    red = COLORS["vermillion"]
    ax.plot(grid, evidence, color=INK, lw=5)
    ax.text(grid[0], evidence[0] + 2, r"$\log p_\theta(x)$", size=28, color=INK)
    for bound, here, there in zip(bounds, means[:-1], means[1:], strict=True):
        ax.plot(grid, bound, color=COLORS["blue"], lw=3)
        climbed = (grid >= here) & (grid <= there)
        ax.plot(grid[climbed], bound[climbed], color=red, lw=5, zorder=3)
        ends = np.interp(there, grid, bound), np.interp(there, grid, evidence)
        ax.plot([there, there], ends, color=red, lw=5, zorder=3)
    ax.text(
        grid[-1],
        bounds[0][-1] - 0.1,
        "ELBO",
        size=28,
        color=COLORS["blue"],
        ha="right",
        va="top",
    )
    ax.scatter(means, np.interp(means, grid, evidence), s=180, color=red, zorder=4)
    ax.set(xlim=(grid[0], grid[-1]), ylim=(evidence[0] - 0.9, evidence.max() + 0.2))
    ax.axis("off")
    return figure


def main() -> None:
    matplotlib.use("Agg")
    draw().savefig(TARGET, metadata={"Software": None})
    print(TARGET.relative_to(c.ROOT))


if __name__ == "__main__":
    main()
