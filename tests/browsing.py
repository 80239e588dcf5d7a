"""A browser for the tests: Chromium without a network, and the sites that it visits.

The fixtures are those of every test (see `conftest.py`). Tests that take them have the
mark ``needs_browser``. axe-core, from the npm package, is used where it is found
(AXE_JS, or `_build/node_modules`).
"""

import functools
import http.server
import os
import threading
from pathlib import Path

import made_up
import pytest

from tools import conventions as c
from tools import pdf, site

AXE = Path(
    os.environ.get("AXE_JS")
    or c.ROOT / "_build" / "node_modules" / "axe-core" / "axe.min.js"
)
SITE = c.ROOT / "_build" / "html"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars "
    "--disable-dev-shm-usage"
).split()
FORMULAS = "() => !window.MathJax || MathJax.startup?.promise?.then(() => true)"
PATIENCE = 120_000  # milliseconds; a busy machine is slower than any phone
# Nothing but this machine can be reached: the book works offline.
FLAGS.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")

needs_browser = pytest.mark.skipif(
    not pdf.chromium(), reason="no Chromium: install it, or name it in CHROMIUM"
)
WIDE = (
    "A wide formula and a wide table scroll inside their own boxes.\n\n"
    "$$\n" + " + ".join(f"x_{{{k}}}^2" for k in range(60)) + "\n$$\n\n"
    "| | " + " | ".join(f"column{k}" for k in range(1, 30)) + " |\n"
    "|" + "---|" * 30 + "\n"
    "| " + " | ".join(f"value{k}" for k in range(30)) + " |\n\n"
    "`"
    + "a_very_long_name" * 12
    + "` and $"
    + " + ".join(f"y_{{{k}}}" for k in range(40))
    + "$."
)


@pytest.fixture(scope="module")
def wide_book(tmp_path_factory):
    root = made_up.book(tmp_path_factory.mktemp("w") / "a", "02-first", "07-second")
    made_up.replace_in_cell(root / "book/07-second.ipynb", 6, "See", WIDE + "\n\nSee")
    status, said = site.build(root)
    assert status == 0, said
    return root / "_build" / "html"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=3600")  # asked for once
        super().end_headers()


@pytest.fixture(scope="module")
def serve():
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def this_site(serve):
    assert SITE.exists(), "the site is not built: run `make book` first"
    return serve(SITE)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=pdf.chromium(), args=FLAGS)
        yield browser
        browser.close()


class Visits:
    """One page of the browser, and all that it asks for and complains about."""

    def __init__(self, browser):
        self.page = browser.new_page(reduced_motion="reduce")
        self.page.set_default_timeout(PATIENCE)
        self.base, self.complaints = "", []
        self.page.on("request", self.request)
        self.page.on("requestfailed", self.failed)
        self.page.on("response", lambda r: r.status < 400 or self.note(r.status, r.url))
        self.page.on("pageerror", lambda e: self.note("error", e))
        self.page.on("console", self.console)

    def failed(self, request):
        if request.failure != "net::ERR_ABORTED":  # given up, for the next page
            self.note("failed", request.failure, request.url)

    def note(self, *words):
        self.complaints.append(" ".join(map(str, words))[:300])

    def request(self, request):
        if not request.url.startswith((self.base, "data:")):
            self.note("elsewhere", request.url)

    def console(self, message):
        if message.type in ("error", "warning"):
            self.note(message.type, message.text)

    def look(self, width, scheme="light"):
        """Another window and theme, without loading the page again."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        self.page.wait_for_function(
            "s => document.documentElement.dataset.theme === s", arg=scheme
        )
        self.page.evaluate(  # the page's own answer to its new width
            "() => new Promise(r => requestAnimationFrame("
            "() => requestAnimationFrame(r)))"
        )

    def open(self, base, path, width=1440, scheme="light"):
        """Go to a page and wait until its formulas stand."""
        self.page.goto("about:blank")  # the last page asks for nothing more
        self.base, self.complaints = base, []
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(
            media="screen", color_scheme=scheme, reduced_motion="reduce"
        )
        self.page.goto(base + path)
        self.page.wait_for_function(FORMULAS)
        assert not self.complaints, self.complaints
        return self.page


@pytest.fixture(scope="module")
def visits(browser):
    return Visits(browser)


def axe(page, where="document", options=None):
    """The violations that axe-core finds in a part of a page."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate(
        f"options => axe.run({where}, options).then(r => r.violations.map("
        "v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 300)]))",
        options or {},
    )
