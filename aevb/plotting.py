"""The figures that chapters share."""

from __future__ import annotations

import hashlib
import html
import io
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from aevb.data import as_array

if TYPE_CHECKING:
    from IPython.display import HTML

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

# Ten colours for the ten digits (Tol's "muted" and a grey); text labels go with them.
DIGIT_COLORS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#777777",
)


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
    ax.imshow(canvas.numpy(), vmin=0, vmax=1)
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
    values, vectors = np.linalg.eigh(as_array(cov, float))
    width, height = 2 * scale * np.sqrt(values)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    style = {"fill": False, "linewidth": 1.5} | style
    patch = Ellipse(tuple(as_array(mean, float)), width, height, angle=angle, **style)
    return ax.add_patch(patch)


def player(
    frames: Sequence[Figure | bytes],
    captions: Sequence[str],
    alt: str,
    seconds: float | None = None,
) -> HTML:
    """Frames that a reader steps through, on a static page and without a kernel.

    One HTML output: pictures as data URIs, a slider and two buttons, a caption that
    screen readers announce. It asks for nothing from outside. The controls are made
    by its script: where scripts do not run, the first frame and its caption remain,
    so a chapter shows the same frames side by side in a figure as well.

    Args:
        frames: matplotlib figures, all of one size (drawn and closed here), or PNGs.
        captions: one line of plain text for each frame.
        alt: what all frames show; each frame's caption is added to it.
        seconds: that a frame stays while the frames play; a button starts and stops
            them. None: no such button.

    Returns:
        An ``IPython.display.HTML``, to end a cell with.

    Raises:
        ValueError: no frames, or as many captions as frames are not given.
    """
    from IPython.display import HTML

    if not frames or len(frames) != len(captions):
        raise ValueError(
            f"player: {len(frames)} frames and {len(captions)} captions;"
            " expected one caption for each frame, and at least one frame"
        )
    pictures = [f if isinstance(f, bytes) else _small_png(f) for f in frames]
    uris = [f"data:image/png;base64,{b64encode(p).decode()}" for p in pictures]
    name = (
        "player-"
        + hashlib.sha256("".join([*uris, *captions]).encode()).hexdigest()[:10]
    )
    count = len(frames)
    lines = [f"Step {k} of {count}. {text}" for k, text in enumerate(captions, 1)]
    first, described = html.escape(lines[0]), html.escape(f"{alt} {lines[0]}")
    content = {"frames": uris, "lines": lines, "alt": alt}
    if seconds:
        content["milliseconds"] = round(1000 * seconds)
    data = json.dumps(content).replace("<", "\\u003c")
    return HTML(
        f'<div id="{name}" role="group" aria-label="{html.escape(alt)}">\n'
        f'<img src="{uris[0]}" alt="{described}" style="max-width:100%;height:auto">\n'
        f'<p aria-live="polite" style="min-height:3.2em;margin:.3em 0">{first}</p>\n'
        f"</div>\n<script>\n({_PLAYER_SCRIPT})('{name}', {data});\n</script>"
    )


def _small_png(figure: Figure) -> bytes:
    """A figure as a PNG of few colours, a quarter of the usual size."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB").quantize(64)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


_PLAYER_SCRIPT = """\
function (name, data) {
  document.querySelectorAll("#" + name).forEach(function (box) {
    if (box.dataset.ready) return;
    box.dataset.ready = "yes";
    const img = box.querySelector("img"), text = box.querySelector("p");
    const bar = document.createElement("div");
    bar.style.cssText = "display:flex;gap:.5em;align-items:center;max-width:40em";
    const make = function (tag, label, style) {
      const part = document.createElement(tag);
      part.style.cssText = "color:inherit;" + style;
      part.setAttribute("aria-label", label);
      return bar.appendChild(part);
    };
    const look = "background:none;border:1px solid;border-radius:.4em;" +
      "min-width:2.75em;min-height:2.75em;cursor:pointer;font:inherit";
    const back = make("button", "Previous step", look);
    const slide = make("input", "Step", "flex:1;min-width:6em;min-height:2.75em");
    const next = make("button", "Next step", look);
    back.textContent = "\\u25c0";
    next.textContent = "\\u25b6";
    back.type = next.type = "button";
    slide.type = "range";
    slide.min = 1;
    slide.max = data.frames.length;
    slide.value = 1;
    const show = function () {
      const k = slide.value - 1;
      img.src = data.frames[k];
      img.alt = data.alt + " " + data.lines[k];
      text.textContent = data.lines[k];
      slide.setAttribute("aria-valuetext", data.lines[k]);
      back.disabled = k === 0;
      next.disabled = k === data.frames.length - 1;
    };
    back.addEventListener("click", function () { slide.stepDown(); show(); });
    next.addEventListener("click", function () { slide.stepUp(); show(); });
    slide.addEventListener("input", show);
    if (data.milliseconds) {
      const play = make("button", "Play", look);
      let timer = null;
      const stop = function () {
        clearInterval(timer);
        timer = null;
        play.textContent = "Play";
        play.setAttribute("aria-label", "Play");
        text.setAttribute("aria-live", "polite");
      };
      const tick = function () {
        slide.stepUp();
        show();
        if (Number(slide.value) === data.frames.length) stop();
      };
      play.type = "button";
      play.style.padding = "0 .6em";
      play.textContent = "Play";
      play.addEventListener("click", function () {
        if (timer !== null) return stop();
        if (Number(slide.value) === data.frames.length) slide.value = 1;
        show();
        play.textContent = "Pause";
        play.setAttribute("aria-label", "Pause");
        text.setAttribute("aria-live", "off");
        timer = setInterval(tick, data.milliseconds);
      });
      bar.insertBefore(play, back);
      [back, next].forEach(function (b) { b.addEventListener("click", stop); });
      slide.addEventListener("input", stop);
    }
    box.insertBefore(bar, text);
    show();
  });
}"""


def digit_scatter(
    points: Tensor | np.ndarray, labels: Tensor, ax: Axes | None = None, size: float = 4
) -> Axes:
    """Points in the plane, coloured by digit, each digit written at its median.

    Args:
        points: (N, 2).
        labels: (N,) of 0..9.
        ax: where to draw; a new figure if None.
        size: of a point.
    """
    points, labels = as_array(points), as_array(labels)
    if ax is None:
        _, ax = plt.subplots(figsize=(6.0, 5.0))
    colors = np.array(DIGIT_COLORS)[labels]
    ax.scatter(*points.T, s=size, c=colors, alpha=0.6, linewidths=0)
    outline = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "0.3", "alpha": 0.85}
    for digit in np.unique(labels):
        x, y = np.median(points[labels == digit], axis=0)
        ax.text(x, y, str(digit), ha="center", va="center", bbox=outline)
    return ax


def graphical_model(
    ax: Axes, theta: str, phi: str = "", label: str = "", observed: bool = True
) -> Axes:
    """Draw z -> x in a plate over N examples, and q(z | x) dashed if ``phi`` is given.

    Args:
        theta: label of the generative parameters, which point to x.
        phi: label of the inference parameters, which point to z; no q without it.
        label: where the label y points to: ``"both"`` z and x, the ``"prior"`` of z,
            the ``"likelihood"`` of x; no y without it. q then depends on y as well.
        observed: whether y is, which is shaded; otherwise q infers it from x.

    Raises:
        ValueError: unknown ``label``.
    """
    targets = {"": "", "both": "zx", "prior": "z", "likelihood": "x"}
    if label not in targets:
        raise ValueError(f"label is {label!r}; expected one of {tuple(targets)}")
    left = -0.45 if label else 0.75
    ax.set(xlim=(left - 0.75, 4), ylim=(0, 2.6), aspect="equal")
    ax.axis("off")
    ax.add_patch(plt.Rectangle((left, 0.2), 2.25 - left, 2.2, fill=False))
    ax.text(2.18, 0.28, "N", ha="right", fontsize=9)
    nodes = [((1.4, 1.9), "z", "white"), ((1.4, 0.75), "x", "0.85")]
    if label:
        nodes.append(((0.05, 1.325), "y", "0.85" if observed else "white"))
    for place, name, face in nodes:
        ax.add_patch(plt.Circle(place, 0.3, fc=face, ec="black"))
        ax.text(*place, name, ha="center", va="center", style="italic")
    arrow = {"arrowstyle": "-|>", "color": COLORS["blue"], "lw": 1.5}
    ax.annotate("", (1.4, 1.06), (1.4, 1.6), arrowprops=arrow)
    ax.annotate("", (1.72, 0.75), (2.6, 0.75), arrowprops=arrow)
    ax.text(2.7, 0.75, theta, va="center", color=COLORS["blue"])
    if "z" in targets[label]:
        ax.annotate("", (1.13, 1.785), (0.32, 1.44), arrowprops=arrow)
    if "x" in targets[label]:
        ax.annotate("", (1.13, 0.865), (0.32, 1.21), arrowprops=arrow)
    if phi:
        arrow |= {"color": COLORS["vermillion"], "ls": "--"}
        ax.annotate("", (1.72, 1.9), (2.6, 1.9), arrowprops=arrow)
        ax.text(2.7, 1.9, phi, va="center", color=COLORS["vermillion"])
        if label:
            curve = {"connectionstyle": "arc3,rad=-0.35"}
            ax.annotate("", (1.1, 2.0), (0.1, 1.64), arrowprops=arrow | curve)
        if label and not observed:
            curve = {"connectionstyle": "arc3,rad=-0.35"}
            ax.annotate("", (0.1, 1.01), (1.1, 0.65), arrowprops=arrow | curve)
        arrow |= {"connectionstyle": "arc3,rad=0.4"}
        ax.annotate("", (1.62, 1.67), (1.62, 0.97), arrowprops=arrow)
    return ax
