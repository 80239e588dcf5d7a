"""What a first visit costs: bytes over the wire, and the wait on a phone.

A chapter transfers at most 1 MB (2 MB with an animation), and its largest paint comes
within 2.5 s on a mid-range phone with a slow mobile connection. What the paint waits
for on the line is counted in bytes and round trips, the same on every machine. The
seconds themselves are measured, on a quiet machine, by

    python -m pytest tests/test_weight.py --thorough
"""

import collections
import contextlib
import functools
import gzip
import http.server
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsing import FORMULAS, PATIENCE, SITE, needs_browser
from PIL import Image

from tools import conventions as c

COMPRESSED = {".html", ".css", ".js", ".svg", ".json"}  # as GitHub Pages does
LIMIT, LIMIT_WITH_PLAYER = 1e6, 2e6
FONTS = 220e3  # of MathJax, which fetches what the formulas of a page need
SECONDS = 2.5
WORK = 1.0  # of them, for the phone to parse, style and lay out
# What Lighthouse calls a slow 4G connection and a mid-range phone.
ROUND_TRIP, BYTES_A_SECOND, BYTES_UP, SLOWER = 0.15, 1.6e6 / 8, 750e3 / 8, 4


@functools.cache
def sent(path: Path) -> bytes:
    """A file as it goes over the wire."""
    data = path.read_bytes()
    return gzip.compress(data, 6, mtime=0) if path.suffix in COMPRESSED else data


def limit(page: Path) -> float:
    text = page.read_text(encoding="utf-8")
    return LIMIT_WITH_PLAYER if 'id="player-' in text else LIMIT


def weight(page: Path) -> float:
    """All that a page names, the icons, and the formulas' fonts."""
    text = page.read_text(encoding="utf-8")
    files = r"_static/[^\"?]+|_images/[^\"?]+|searchindex\.js"
    named = re.findall(rf'(?:src|href)="({files})', text)
    fetched = {page, *(SITE / name for name in named)}
    fetched |= set((SITE / "_static/vendor").rglob("*.woff2"))
    fonts = FONTS if any("mathjax" in name for name in named) else 0
    return sum(len(sent(file)) for file in fetched) + fonts


@pytest.mark.parametrize("path", c.chapters(), ids=lambda p: p.stem)
def test_a_chapter_is_light(path):
    page = SITE / f"{path.stem}.html"
    assert weight(page) <= limit(page), f"{weight(page) / 1e6:.2f} MB"


def test_other_pages_are_light():
    for page in SITE.glob("*.html"):
        assert weight(page) <= limit(page), (page.name, weight(page))


def test_only_pages_with_formulas_load_mathjax():
    for page in SITE.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert ("mathjax/" in text) == ('class="math' in text), page.name


def test_only_the_search_loads_its_index():
    for page in SITE.glob("*.html"):
        loads = "searchindex.js" in page.read_text(encoding="utf-8")
        assert loads == (page.name == "search.html"), page.name


def test_the_icons_are_there_and_nothing_else():
    css = (SITE / "_static/styles/pydata-sphinx-theme.css").read_text()
    assert ".fa-magnifying-glass" in css and ".fa-hippo" not in css
    fonts = list((SITE / "_static/vendor").rglob("*.woff2"))
    assert len(fonts) == 3 and sum(f.stat().st_size for f in fonts) < 20e3
    assert (SITE / "_static/scripts/fontawesome.js").stat().st_size < 100


class Images(HTMLParser):
    """The attributes of each picture of a page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag == "img" and a["src"].startswith("_images/"):
            self.found.append(a)


def test_images_say_their_size_and_wait_their_turn():
    for page in SITE.glob("*.html"):
        for k, a in enumerate(Images(page).found):
            assert a.get("width") and a.get("height"), (page.name, a)
            assert a["decoding"] == "async"
            assert (a.get("loading") == "lazy") == (k > 0), (page.name, a)
            if not a["src"].endswith(".svg"):
                with Image.open(SITE / a["src"]) as image:
                    assert image.format == "WEBP"
                    assert image.size == (int(a["width"]), int(a["height"]))


def test_a_picture_is_the_picture_of_the_notebook(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(c.ROOT / "book" / "_ext")
    import slim

    drawn = Image.radial_gradient("L").convert("RGBA")
    drawn.save(tmp_path / "x.png")
    slim.to_webp(tmp_path / "x.png")
    with Image.open(tmp_path / "x.webp") as image:
        assert image.convert("RGBA").tobytes() == drawn.tobytes()
    assert not (tmp_path / "x.png").exists()


# --- in a browser -------------------------------------------------------------------


class Compressing(http.server.BaseHTTPRequestHandler):
    """Serves the site as GitHub Pages does: compressed, connections kept open."""

    protocol_version = "HTTP/1.1"
    types = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css",
        ".js": "text/javascript",
        ".svg": "image/svg+xml",
        ".webp": "image/webp",
    }

    def do_GET(self):
        path = SITE / self.path.split("?")[0].lstrip("/")
        body = sent(path) if path.is_file() else b""
        self.send_response(200 if path.is_file() else 404)
        kind = self.types.get(path.suffix, "application/octet-stream")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if path.suffix in COMPRESSED:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def base():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Compressing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


PAINTS = """
window.paints = [];
new PerformanceObserver(list => list.getEntries().forEach(e => paints.push(
    [e.startTime / 1000, e.element?.tagName, e.element?.textContent?.slice(0, 60)])))
    .observe({type: "largest-contentful-paint", buffered: true});
"""
SCROLL = """async () => {
    for (let y = 0; y < document.body.scrollHeight; y += innerHeight) {
        scrollTo(0, y);
        await new Promise(done => setTimeout(done, 30));
    }
}"""
BEFORE_THE_PAINT = """() => performance.getEntries()
    .filter(e => e.entryType === "navigation" || e.renderBlockingStatus === "blocking")
    .map(e => e.encodedBodySize)"""


@contextlib.contextmanager
def phone(browser):
    """A page that notes its paints, of a visitor with nothing in the cache."""
    with browser.new_context(
        viewport={"width": 390, "height": 844},
        device_scale_factor=3,
        is_mobile=True,
        has_touch=True,
    ) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(PAINTS)
        devtools = context.new_cdp_session(page)
        devtools.send("Network.enable")
        yield page, devtools


@needs_browser
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", [None, *c.chapters()], ids=lambda p: p and p.stem)
def test_a_first_visit(browser, base, path):
    name = f"{path.stem if path else 'index'}.html"
    kinds, received = {}, collections.Counter()
    with phone(browser) as (page, devtools):
        devtools.on(
            "Network.responseReceived",
            lambda e: kinds.update({e["requestId"]: e["type"]}),
        )
        devtools.on(
            "Network.loadingFinished",
            lambda e: received.update(
                {kinds.get(e["requestId"], "?"): e["encodedDataLength"]}
            ),
        )
        page.goto(base + name)
        page.wait_for_function(FORMULAS)
        page.wait_for_load_state("networkidle")
        page.wait_for_function("() => paints.length")
        _, element, text = page.evaluate("() => paints.at(-1)")
        before = page.evaluate(BEFORE_THE_PAINT)
        page.evaluate(SCROLL)
        page.wait_for_load_state("networkidle")
    assert received.total() <= limit(SITE / name), received
    assert received["Font"] <= FONTS, "FONTS is less than what formulas need"
    assert element != "IMG", "the largest paint waits for more than text and styles"
    # To connect, to be sure with whom, for the page, and for what it asks for at once.
    wait = 4 * ROUND_TRIP + sum(before) / BYTES_A_SECOND
    assert wait <= SECONDS - WORK, f"{wait:.1f} s pass before {text!r} can be drawn"


def heaviest():
    pages = [SITE / f"{path.stem}.html" for path in c.chapters()]
    known = [page for page in pages if page.exists()]
    return [page.stem for page in sorted(known, key=weight)[-2:]]


@needs_browser
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["index", *heaviest()])
def test_the_largest_paint_on_a_phone(browser, base, name, pytestconfig):
    if not pytestconfig.option.thorough:
        pytest.skip("seconds of a quiet machine are measured with --thorough")
    with phone(browser) as (page, devtools):
        devtools.send(
            "Network.emulateNetworkConditions",
            {
                "offline": False,
                "latency": 1000 * ROUND_TRIP,
                "downloadThroughput": BYTES_A_SECOND,
                "uploadThroughput": BYTES_UP,
            },
        )
        devtools.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        page.goto(f"{base}{name}.html")
        page.wait_for_function(FORMULAS)
        page.wait_for_load_state("networkidle")
        *_, (seconds, element, text) = page.evaluate("() => paints")
    assert seconds <= SECONDS, (element, text)
