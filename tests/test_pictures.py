"""The pictures of the welcome page: up to date, true, and readable."""

import re
import xml.etree.ElementTree as ET

import pytest

from tools import conventions as c
from tools import pictures


def test_they_are_what_the_script_draws(tmp_path):
    assert not list(pictures.complaints())
    folder = tmp_path / pictures.FOLDER
    folder.mkdir(parents=True)
    for name, draw in pictures.PICTURES.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")
    assert not list(pictures.complaints(tmp_path))
    (folder / "both.svg").write_text("<svg/>", encoding="utf-8")
    assert [x for x in pictures.complaints(tmp_path) if "both.svg" in x]


def test_the_welcome_page_shows_each_with_words():
    page = (c.ROOT / "book" / "index.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"!\[([^\]]*)\]\(images/([\w-]+)\.svg\)", page))
    assert set(shown.values()) == set(pictures.PICTURES)
    assert min(map(len, shown)) > 40


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_stands_alone(name):
    """Valid, with a title, on a card of its own, nothing cut off, no small print."""
    root = ET.fromstring(pictures.PICTURES[name]())
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text
    card = root.find(f"{space}rect").attrib
    assert (card["width"], card["height"], card["fill"]) == (
        root.get("width"),
        root.get("height"),
        "#fff",
    )
    width, height = float(root.get("width")), float(root.get("height"))
    sizes = [float(e.get("font-size")) for e in root.iter() if e.get("font-size")]
    assert max(sizes) >= 14 and min(sizes) >= 10  # px; the smaller are subscripts
    for path in root.iter(f"{space}path"):
        for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d")):
            assert 0 <= float(x) <= width and 0 <= float(y) <= height


def test_bound_and_evidence_are_what_they_seem():
    start, tight = pictures.START, pictures.weights(pictures.START)
    means = [pictures.LEFT + 0.1 * k for k in range(50)]
    assert pictures.bound(start, tight) == pytest.approx(pictures.evidence(start))
    assert all(pictures.bound(m, tight) <= pictures.evidence(m) + 1e-12 for m in means)
    top = pictures.best_mean(tight)
    assert pictures.bound(top, tight) >= max(pictures.bound(m, tight) for m in means)
    assert (
        pictures.evidence(top) > pictures.bound(top, tight) > pictures.evidence(start)
    )


def test_both_ways_lead_to_the_top():
    start, top = (-2.6, 1.6), pictures.spot(0, 0)
    for path in (pictures.in_turn(*start, 7), pictures.at_once(*start, 60)):
        assert path[0] == pictures.spot(*start)
        assert abs(path[-1][0] - top[0]) < 40 and abs(path[-1][1] - top[1]) < 40
