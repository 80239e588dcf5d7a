"""The step-through player of :mod:`aevb.plotting`."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from aevb.plotting import player


def figures(count):
    made = []
    for k in range(count):
        fig, ax = plt.subplots(figsize=(6, 3.7))
        ax.plot([0, 1], [0, k], label="a line")
        ax.legend()
        made.append(fig)
    return made


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_it_is_light_and_asks_for_nothing():
    captions = [f'a < b & "c" </script> {k}' for k in range(12)]
    text = player(figures(12), captions, "A line & its slope").data
    assert len(text) < 400_000
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert text.count("</script>") == 1  # the captions do not end it early
    assert plt.get_fignums() == []


def test_without_scripts_the_first_frame_remains():
    text = player(figures(3), ["one & all", "two", "three"], 'the "alt" of all').data
    tags = Page(text).tags
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == 1
    assert images[0]["alt"] == 'the "alt" of all Step 1 of 3. one & all'
    assert not [tag for tag, _ in tags if tag in ("button", "input")]
    png = base64.b64decode(images[0]["src"].partition(",")[2])
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG" and picture.width > 500
    assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_the_script_has_every_frame():
    text = player([b"first", b"second"], ["one", "two"], "alt").data
    payload = re.search(r"\('player-\w{10}', (\{.*\})\);", text)[1]
    frames = json.loads(payload)["frames"]
    assert [base64.b64decode(f.partition(",")[2]) for f in frames] == [
        b"first",
        b"second",
    ]
    assert text == player([b"first", b"second"], ["one", "two"], "alt").data
    assert text != player([b"first", b"other"], ["one", "two"], "alt").data


@pytest.mark.parametrize(
    ("frames", "captions"), [([], []), ([b"x"], []), ([b"x"], "ab")]
)
def test_bad_input(frames, captions):
    with pytest.raises(ValueError, match=r"player: \d frames and \d captions"):
        player(frames, captions, "alt")


def test_it_plays_where_that_is_asked_for():
    captions = ["one", "two"]
    still = player(figures(2), captions, "A line").data
    moving = player(figures(2), captions, "A line", seconds=0.25).data
    assert '"milliseconds": 250' in moving and 'milliseconds":' not in still
    script = moving.partition("<script>")[2]
    assert '"Play"' in script and '"Pause"' in script and "autoplay" not in script
