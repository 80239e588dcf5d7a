"""The pictures of the welcome page: the argument in three steps, and the five models.

    python -m tools.pictures       # part of make renumber

Each is an SVG of its own in `book/images/`, small enough to be legible on a phone; the
site's style sheet lays them out.  Nothing is drawn freehand: evidence and bound belong
to a mixture of two Gaussians with one unknown mean, on a handful of observations, and
the paths climb one ELBO.  The standard library is enough.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from tools import conventions as c

FOLDER = "book/images"
INK, PALE = "#222", "#777"
EVIDENCE, BOUND, GAP, SHADE = "#00654a", "#005a8f", "#a84300", "#ddd"  # dark enough
Point = tuple[float, float]


# --- drawing ------------------------------------------------------------------


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A picture on a white card, which is legible on any background."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img"'
            f' font-family="sans-serif" font-size="14" fill="none">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def curve(points: list[Point], color: str, width: float = 2, dashes: str = "") -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" stroke="{color}" stroke-width="{width:g}"{dashed}/>'


def arrow(start: Point, end: Point, color: str, dashes: str = "") -> str:
    """A line with a head at its end."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [
        (end[0] - 9 * math.cos(angle + turn), end[1] - 9 * math.sin(angle + turn))
        for turn in (0.4, -0.4)
    ]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in (end, *wings))
    neck = (end[0] - 6 * math.cos(angle), end[1] - 6 * math.sin(angle))
    line = curve([start, neck], color, dashes=dashes)
    return f'{line}<polygon points="{head}" fill="{color}"/>'


def text(x: float, y: float, words: str, color: str = INK, anchor: str = "middle"):
    """Words; those between asterisks are in italics, "_" puts one sign lower."""
    shown, italic = "", False
    for k, part in enumerate(words.split("*")):
        italic = k % 2 == 1
        base, _, below = part.partition("_") if italic else (part, "", "")
        piece = escape(base)
        if below:
            piece += f'<tspan dy="4" font-size="10">{escape(below)}</tspan>'
        shown += f'<tspan font-style="italic">{piece}</tspan>' if italic else piece
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">'
        f"{shown}</text>"
    )


def dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'


# --- evidence and bound -------------------------------------------------------

DATA = [-2.1, -1.5, -1.0, 0.2, 2.7, 3.1, 3.4, 3.6, 3.9, 4.4]
FIXED = -1.0  # the mean of the other component


def normal(x: float, mean: float) -> float:
    return math.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi)


def evidence(mean: float) -> float:
    """Mean log-density of `DATA` under the mixture with this mean, nats."""
    logs = [math.log((normal(x, FIXED) + normal(x, mean)) / 2) for x in DATA]
    return sum(logs) / len(logs)


def weights(mean: float) -> list[float]:
    """E-step: the probability of each observation to come from the component."""
    return [normal(x, mean) / (normal(x, FIXED) + normal(x, mean)) for x in DATA]


def bound(mean: float, q: list[float]) -> float:
    """The ELBO at this mean with these q, nats per observation."""
    total = 0.0
    for x, r in zip(DATA, q, strict=True):
        for share, density in ((r, normal(x, mean)), (1 - r, normal(x, FIXED))):
            if share > 0:
                total += share * math.log(density / 2 / share)
    return total / len(DATA)


def best_mean(q: list[float]) -> float:
    """M-step."""
    return sum(r * x for x, r in zip(DATA, q, strict=True)) / sum(q)


START, BLUR = 1.3, 0.22  # the mean; how much of a loose q is a coin
LEFT, RIGHT, LOW, HIGH = 0.4, 5.5, -3.9, -1.45
WIDTH, HEIGHT = 300, 230


def place(mean: float, value: float) -> Point:
    x = 14 + (mean - LEFT) / (RIGHT - LEFT) * (WIDTH - 28)
    return x, 14 + (HIGH - value) / (HIGH - LOW) * (HEIGHT - 48)


def graph(function: Callable[[float], float], *style) -> str:
    means = [LEFT + (RIGHT - LEFT) * k / 80 for k in range(81)]
    values = [(m, function(m)) for m in means]
    return curve([place(m, v) for m, v in values if LOW <= v <= HIGH], *style)


def axes(horizontal: str) -> list[str]:
    corner, end, top = (14, HEIGHT - 30), (WIDTH - 8, HEIGHT - 30), (14, 8)
    name = text(WIDTH - 10, HEIGHT - 10, horizontal, anchor="end")
    return [arrow(corner, end, PALE), arrow(corner, top, PALE), name]


def upright(mean: float) -> str:
    bottom = (place(mean, 0)[0], HEIGHT - 30)
    return curve([bottom, place(mean, HIGH)], PALE, 1, "2 4")


def e_step() -> str:
    """q closes the gap: the bound rises until it touches the evidence."""
    tight = weights(START)
    loose = [(1 - BLUR) * r + BLUR / 2 for r in tight]
    low, high = place(START, bound(START, loose)), place(START, evidence(START))
    return svg(
        WIDTH,
        HEIGHT,
        "E-step: the bound is lifted until it touches the evidence",
        [
            *axes("generative parameters *θ*"),
            upright(START),
            graph(evidence, EVIDENCE, 3),
            graph(lambda m: bound(m, loose), BOUND, 2, "5 4"),
            graph(lambda m: bound(m, tight), BOUND, 2.5),
            arrow(low, (high[0], high[1] + 5), GAP),
            dot(*low, BOUND),
            dot(*high, EVIDENCE),
            text(low[0] + 6, low[1] + 22, "gap", GAP, "start"),
            text(*place(4.6, -1.6), "evidence", EVIDENCE),
            text(*place(3.0, -3.1), "bound", BOUND),
        ],
    )


def m_step() -> str:
    """θ moves to the top of the bound; the evidence is higher there."""
    tight = weights(START)
    after = best_mean(tight)
    old, top = place(START, evidence(START)), place(after, bound(after, tight))
    new = place(after, evidence(after))
    return svg(
        WIDTH,
        HEIGHT,
        "M-step: the parameters move to the top of the bound",
        [
            *axes("generative parameters *θ*"),
            upright(START),
            upright(after),
            graph(evidence, EVIDENCE, 3),
            graph(lambda m: bound(m, tight), BOUND, 2.5),
            arrow((old[0], HEIGHT - 40), (new[0], HEIGHT - 40), GAP),
            dot(*old, EVIDENCE),
            dot(*top, BOUND),
            dot(*new, EVIDENCE),
            text(new[0] + 5, top[1] + 40, "new gap", GAP, "start"),
            text(*place(4.6, -1.6), "evidence", EVIDENCE),
            text(*place(3.0, -3.1), "bound", BOUND),
        ],
    )


# --- both at once -------------------------------------------------------------

CURVATURE = 0.35  # the ELBO of the landscape: -CURVATURE θ² / 2 - (φ - θ)² / 2


def spot(theta: float, phi: float) -> Point:
    return 24 + (theta + 3.0) * 62, HEIGHT - 40 - (phi + 3.0) * 31


def level(height: float) -> list[Point]:
    """A line of equal ELBO, an ellipse."""
    points = []
    for k in range(61):
        theta = math.sqrt(2 * height / CURVATURE) * math.cos(k * math.pi / 30)
        phi = theta + math.sqrt(2 * height) * math.sin(k * math.pi / 30)
        points.append(spot(theta, phi))
    return points


def in_turn(theta: float, phi: float, steps: int) -> list[Point]:
    """EM: the best φ, the best θ, and so on."""
    path = [(theta, phi)]
    for _ in range(steps):
        path.append((theta, theta))
        theta = theta / (1 + CURVATURE)
        path.append((theta, path[-1][1]))
    return [spot(*point) for point in path]


def at_once(theta: float, phi: float, steps: int) -> list[Point]:
    """AEVB: both gradients, with noise, and a rate that falls."""
    path, noise = [(theta, phi)], random.Random(3)
    for k in range(steps):
        rate = 0.2 / (1 + k / 25)
        slope_theta = -CURVATURE * theta + (phi - theta) + noise.gauss(0, 0.7)
        slope_phi = -(phi - theta) + noise.gauss(0, 0.7)
        theta, phi = theta + rate * slope_theta, phi + rate * slope_phi
        path.append((theta, phi))
    return [spot(*point) for point in path]


def both() -> str:
    """EM takes turns on the ELBO's landscape; AEVB climbs in both directions."""
    start = -2.6, 1.6
    turns, walk = in_turn(*start, 7), at_once(*start, 60)
    return svg(
        WIDTH,
        HEIGHT,
        "Two ways up one bound: in turn, and both at once",
        [
            *axes("generative *θ*"),
            text(22, 20, "inference *φ*", anchor="start"),
            *(curve(level(h), "#bbb", 1) for h in (0.02, 0.08, 0.18, 0.32)),
            curve(turns, GAP, 2.5),
            curve(walk, BOUND, 1.8),
            dot(*turns[0], INK),
            dot(*spot(0, 0), EVIDENCE),
            text(turns[3][0] + 8, turns[1][1] + 4, "EM: in turn", GAP, "start"),
            text(*spot(-1.6, 1.2), "AEVB: at once", BOUND, "start"),
            text(*spot(0.2, -0.1), "top", EVIDENCE, "start"),
        ],
    )


# --- the models ---------------------------------------------------------------

Z, X, Y = (92, 34), (92, 126), (28, 80)
RADIUS = 17


def node(at: Point, name: str, seen: bool = False, square: bool = False) -> str:
    x, y = at
    fill, style = SHADE if seen else "#fff", f'stroke="{INK}" stroke-width="1.5"'
    shape = f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{fill}" {style}/>'
    if square:
        side = 2 * RADIUS - 4
        corner = f'x="{x - side / 2:g}" y="{y - side / 2:g}"'
        shape = f'<rect {corner} width="{side}" height="{side}" fill="{fill}" {style}/>'
    return shape + text(x, y + 5, f"*{name}*")


def link(start: Point, end: Point, aside: float = 0, inferred: bool = False) -> str:
    """An arrow from node to node; `aside` moves it to its right, in pixels."""
    length = math.dist(start, end)
    u, v = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    first = start[0] + RADIUS * u - aside * v, start[1] + RADIUS * v + aside * u
    last = end[0] - RADIUS * u - aside * v, end[1] - RADIUS * v + aside * u
    return arrow(first, last, GAP if inferred else BOUND, "4 3" if inferred else "")


def graphical_model(title: str, label: str = "", both: bool = True) -> str:
    """z and x; a label y, "seen" or "hidden", that leads to z, or to `both`."""
    parts = [link(Z, X, 6), link(X, Z, 6, inferred=True)]
    if label:
        parts += [link(Y, Z, 5), link(Y, Z, -5, inferred=True)]
        parts.append(node(Y, "y", seen=label == "seen"))
    if label and both:
        parts.append(link(Y, X))
    if label == "hidden":
        parts.append(link(X, Y, inferred=True))
    parts += [node(Z, "z"), node(X, "x", seen=True)]
    if not label:
        parts = ['<g transform="translate(-32 0)">', *parts, "</g>"]  # to the middle
    return svg(120, 160, title, parts)


def bow(start: Point, end: Point, aside: float, inferred: bool = False) -> str:
    """An arrow that leaves and enters sideways, past what lies between the nodes."""
    color, dashes = (GAP, "4 3") if inferred else (BOUND, "")
    edge = math.copysign(RADIUS, aside)
    (x1, y1), (x2, y2) = (start[0] + edge, start[1]), (end[0] + edge, end[1])
    points = []
    for k in range(21):  # a cubic Bézier curve
        t = k / 20
        x = (1 - t) ** 3 * x1 + 3 * t * (1 - t) * (x1 + aside) + t**3 * x2
        y = y1 + (y2 - y1) * (3 * t**2 - 2 * t**3)
        points.append((x, y))
    points[-1] = x2, y2
    return curve(points[:-2], color, dashes=dashes) + arrow(*points[-3::2], color)


def recurrent_model() -> str:
    parts = []
    for k in range(3):
        z, h, x = ((42 + 84 * k, y) for y in (26, 84, 142))
        parts += [link(h, z, 5), link(h, z, -5, inferred=True), link(h, x)]
        parts += [bow(z, x, -20), bow(x, z, 20, inferred=True)]
        if k < 2:
            for start, turn in ((z, 10), (h, 0), (x, -10)):
                goal = h[0] + 84 - RADIUS, h[1] - turn
                parts.append(arrow((start[0] + 17, start[1] + turn / 2), goal, PALE))
        parts += [node(z, f"z_{k + 1}"), node(x, f"x_{k + 1}", seen=True)]
        parts.append(node(h, f"h_{k + 1}", square=True))
    return svg(260, 168, "Variational RNN: the graph over three time steps", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "e-step": e_step,
    "m-step": m_step,
    "both": both,
    "one-latent": lambda: graphical_model("One latent variable: the graph"),
    "conditional-vae": lambda: graphical_model("Conditional VAE: the graph", "seen"),
    "gaussian-mixture-vae": lambda: graphical_model(
        "Gaussian-mixture VAE: the graph", "hidden", both=False
    ),
    "variational-rnn": recurrent_model,
}


def complaints(root: Path = c.ROOT) -> Iterator[str]:
    """A picture is not what this script draws."""
    for name, draw in PICTURES.items():
        path = root / FOLDER / f"{name}.svg"
        if path.parent.exists() and (
            not path.exists() or path.read_text(encoding="utf-8") != draw()
        ):
            yield f"{FOLDER}/{path.name} is not what is drawn: run `make renumber`"


def main() -> int:
    (c.ROOT / FOLDER).mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        c.store_page(f"images/{name}.svg", draw())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
