"""The site in a real browser: formulas, requests, controls, accessibility.

Skipped where there is no Chromium; axe-core, from the npm package, is used where it is
found (AXE_JS, or `_build/node_modules`).
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import made_up
import pytest

from tools import conventions as c
from tools import site

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
AXE = Path(
    os.environ.get("AXE_JS")
    or c.ROOT / "_build" / "node_modules" / "axe-core" / "axe.min.js"
)
SITE = c.ROOT / "_build" / "html"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars"
).split()
VIEWS = [(1300, "light"), (1300, "dark"), (390, "light")]

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.skipif(
        not CHROMIUM, reason="no Chromium: install it, or name it in CHROMIUM"
    ),
    pytest.mark.filterwarnings("default"),
]
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
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visit(browser, base, path, width=1300, scheme="light"):
    """Open a page, wait for its formulas, hold it to what every page must be."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    outside, errors = [], []
    page.on("request", lambda r: r.url.startswith(base) or outside.append(r.url))
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: m.type == "error" and errors.append(m.text))
    page.goto(base + path)
    page.wait_for_function(
        "() => !window.MathJax || MathJax.startup?.promise?.then(() => true)"
    )
    assert not outside, f"fetched from elsewhere: {outside}"
    assert not errors, errors
    formulas, rendered, wrong = page.evaluate(
        "() => ['.math', '.math mjx-container', 'mjx-merror'].map("
        "s => document.querySelectorAll(s).length)"
    )
    assert (formulas, wrong) == (rendered, 0), "formulas that MathJax did not render"
    wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"the page scrolls sideways by {wide} px"
    return page


def violations(page):
    page.wait_for_timeout(200)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate(
        "() => axe.run().then(r => r.violations.map("
        "v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 300)]))"
    )


def check(browser, base, path, width, scheme):
    page = visit(browser, base, path, width, scheme)
    try:
        if AXE.exists():
            found = violations(page)
            assert not found, found
    finally:
        page.close()


@pytest.mark.parametrize("width, scheme", VIEWS)
@pytest.mark.parametrize("path", ["07-second.html", "index.html", "search.html"])
def test_made_up_pages(browser, serve, wide_book, path, width, scheme):
    check(browser, serve(wide_book), path, width, scheme)


def pages_of_this_site():
    toc = (c.ROOT / "_toc.yml").read_text(encoding="utf-8")
    return [
        f"{line.split(':')[1].strip()}.html"
        for line in toc.splitlines()
        if line.strip().startswith(("root:", "- file:"))
    ]


@pytest.mark.parametrize("width, scheme", VIEWS)
@pytest.mark.parametrize("path", pages_of_this_site())
def test_page(browser, this_site, path, width, scheme):
    check(browser, this_site, path, width, scheme)


def test_axe_is_there():
    if not AXE.exists():
        pytest.skip("no axe-core: npm install --prefix _build axe-core, or AXE_JS")


def test_the_menu_opens_on_a_phone(browser, serve, wide_book):
    page = visit(browser, serve(wide_book), "07-second.html", 390)
    link = page.locator(".sidebar-primary-item a", has_text="2. A made-up").first
    assert not link.is_visible()
    page.locator(".primary-toggle").first.click()
    page.wait_for_timeout(400)
    assert link.is_visible()
    page.close()


def test_hidden_code_can_be_shown(browser, serve, wide_book):
    page = visit(browser, serve(wide_book), "07-second.html")
    code = page.get_by_text("import aevb").first
    assert not code.is_visible()
    page.get_by_text("Show the setup").first.click()
    assert code.is_visible()
    page.close()


def test_a_mention_leads_to_its_formula(browser, serve, wide_book):
    page = visit(browser, serve(wide_book), "07-second.html")
    page.get_by_role("link", name="(7.2)").first.click()
    page.wait_for_timeout(300)
    top = page.evaluate(
        "() => document.getElementById('eq-second-jensen').getBoundingClientRect().top"
    )
    assert 0 <= top < 900
    assert page.url.endswith("#eq-second-jensen")
    page.close()


def test_dark_mode_can_be_chosen(browser, serve, wide_book):
    page = visit(browser, serve(wide_book), "index.html")
    before = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
        theme = page.evaluate("() => document.documentElement.dataset.theme")
        after = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        if theme == "dark":
            break
    assert (theme, before != after) == ("dark", True)
    page.close()


def test_search_finds(browser, serve, wide_book):
    page = browser.new_page()
    page.goto(serve(wide_book) + "search.html?q=pitfalls")
    page.locator("ul.search li a").first.wait_for(timeout=10_000)
    assert page.locator("ul.search li a").count() >= 2
    page.close()
