"""The site in a real browser: formulas, requests, controls, accessibility.

Skipped where there is no Chromium.
"""

from base64 import b64decode

import made_up
import pytest
from browsing import AXE, axe, needs_browser

from aevb import plotting
from tools import conventions as c

pytestmark = [needs_browser, pytest.mark.filterwarnings("default")]

VIEWS = [(w, scheme) for w in (1440, 768, 390) for scheme in ("light", "dark")]
# Colours are those of the scheme, and take most of the time of a check; all the rest is
# that of the window.
COLOURS = ["color-contrast", "link-in-text-block"]
AXE_VIEWS = {
    (1440, "light"): {},
    (1440, "dark"): {"runOnly": COLOURS},
    (390, "light"): {"rules": {rule: {"enabled": False} for rule in COLOURS}},
}
# What is the same everywhere: the inside of a formula, and blocks of code all of whose
# kinds of words another block has shown. They are looked at on a page that has some of
# all.
THIN = """() => {
  document.querySelectorAll("mjx-container").forEach((e) => {
    const box = e.getBoundingClientRect();
    Object.assign(e.style, {display: "inline-block", height: `${box.height}px`,
      width: `${box.width}px`});
    e.replaceChildren();
  });
  const seen = new Set();
  document.querySelectorAll(".highlight pre").forEach((e) => {
    const kinds = [...e.querySelectorAll("*")].map(part => part.className);
    if (kinds.every(kind => seen.has(kind))) e.textContent = e.textContent;
    kinds.forEach(kind => seen.add(kind));
  });
}"""


def check(visits, base, path, thin=True):
    """Hold a page, in every window and theme, to what every page must be."""
    page = visits.open(base, path)
    all_, typeset, wrong = page.evaluate(
        "() => ['.math', '.math mjx-container', 'mjx-merror'].map("
        "s => document.querySelectorAll(s).length)"
    )
    assert (all_, wrong) == (typeset, 0), "formulas that MathJax did not render"
    found = []
    for width, scheme in VIEWS:
        visits.look(width, scheme)
        wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        if wide > 0:
            found.append((width, scheme, f"scrolls sideways by {wide} px"))
    if thin:
        page.evaluate(THIN)
    if AXE.exists():
        for (width, scheme), options in AXE_VIEWS.items():
            visits.look(width, scheme)
            page.wait_for_timeout(400)  # the theme answers to a new width after 300
            violations = axe(page, options=options)
            found += [(width, scheme, *violation) for violation in violations]
    assert not found + visits.complaints, found + visits.complaints


@pytest.mark.parametrize("path", ["07-second.html", "index.html", "search.html"])
def test_made_up_pages(visits, serve, wide_book, path):
    check(visits, serve(wide_book), path, thin=False)


def pages_of_this_site():
    toc = (c.ROOT / "_toc.yml").read_text(encoding="utf-8")
    return [
        f"{line.split(':')[1].strip()}.html"
        for line in toc.splitlines()
        if line.strip().startswith(("root:", "- file:"))
    ]


@pytest.mark.parametrize("path", pages_of_this_site())
def test_page(visits, this_site, path):
    check(visits, this_site, path)


def test_axe_is_there():
    if not AXE.exists():
        pytest.skip("no axe-core: npm install --prefix _build axe-core, or AXE_JS")


def test_the_network_is_blocked(visits, serve, wide_book):
    """What a page asks for elsewhere is refused, and noticed."""
    page = visits.open(serve(wide_book), "index.html")
    reached = page.evaluate(
        "() => fetch('http://example.org/').then(() => true, () => false)"
    )
    assert not reached
    assert "elsewhere http://example.org/" in visits.complaints


def test_the_menu_opens_on_a_phone(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "07-second.html", 390)
    link = page.locator(".sidebar-primary-item a", has_text="2. A made-up").first
    assert not link.is_visible()
    page.locator(".primary-toggle").first.click()
    link.wait_for()


@pytest.mark.parametrize("width", [390, 1440])
def test_colab_and_download_are_named(visits, serve, wide_book, width):
    page = visits.open(serve(wide_book), "07-second.html", width)
    top = page.get_by_role("article")
    colab = top.get_by_role("link", name="Open in Colab")
    assert colab.is_visible()
    assert colab.get_attribute("href").endswith("/book/07-second.ipynb")
    with page.expect_download() as download:
        top.get_by_role("link", name="Download the notebook").click()
    assert download.value.suggested_filename == "07-second.ipynb"


def test_hidden_code_can_be_shown(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "07-second.html")
    code = page.get_by_text("import aevb").first
    assert not code.is_visible()
    page.get_by_text("Show the setup").first.click()
    assert code.is_visible()


def test_a_mention_leads_to_its_formula(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "07-second.html")
    page.get_by_role("link", name="(7.2)").first.click()
    page.wait_for_function(
        "() => { const formula = document.getElementById('eq-second-jensen');"
        " const { top } = formula.getBoundingClientRect();"
        " return 0 <= top && top < innerHeight; }"
    )
    assert page.url.endswith("#eq-second-jensen")


def test_dark_mode_can_be_chosen(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "index.html")
    before = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
        theme = page.evaluate("() => document.documentElement.dataset.theme")
        after = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        if theme == "dark":
            break
    page.evaluate("() => localStorage.clear()")
    assert (theme, before != after) == ("dark", True)


def test_search_finds(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "search.html?q=pitfalls")
    page.locator("ul.search li a").first.wait_for()
    assert page.locator("ul.search li a").count() >= 2


# --- the keyboard -----------------------------------------------------------------

# What Tab should stop at, and a description of it.
STOPS = """() => {
  const kinds = "a[href], button, input, summary, [tabindex='0']";
  const seen = e => e.checkVisibility({visibilityProperty: true})
    && e.tabIndex >= 0 && !e.disabled && !e.closest("dialog:not([open])");
  const all = [...document.querySelectorAll(kinds)].filter(seen);
  all.forEach((e, k) => { e.dataset.stop = k; });
  return all.map(e => e.outerHTML.slice(0, 120));
}"""
FOCUS = """() => {
  const e = document.activeElement, look = getComputedStyle(e);
  const marked = look.outlineStyle !== "none" || look.boxShadow !== "none";
  return [Number(e.dataset.stop ?? -1), marked, e.outerHTML.slice(0, 120)];
}"""


@pytest.mark.parametrize("width", [390, 1440])
def test_tab_reaches_every_control_and_shows_where_it_is(
    visits, serve, wide_book, width
):
    page = visits.open(serve(wide_book), "07-second.html", width)
    stops = page.evaluate(STOPS)
    reached, unmarked = set(), []
    for _ in range(len(stops) + 5):
        page.keyboard.press("Tab")
        stop, marked, html = page.evaluate(FOCUS)
        reached.add(stop)
        if stop >= 0 and not marked:
            unmarked.append(html)
    missed = [html for k, html in enumerate(stops) if k not in reached]
    assert not missed + unmarked, [missed, unmarked]


def test_the_first_stop_skips_to_the_text(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "07-second.html")
    page.keyboard.press("Tab")
    link = page.locator("#pst-skip-link a")
    assert link.evaluate("e => e === document.activeElement")
    assert link.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate(
        "() => document.querySelector('main').contains(document.activeElement)"
    )


def test_a_solution_opens_with_enter(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "07-second.html")
    box = page.locator("details:not(.hide):not(.proof)").first
    box.locator("summary").focus()
    assert box.get_attribute("open") is None
    page.keyboard.press("Enter")
    assert box.get_attribute("open") is not None


def test_the_address_opens_what_is_folded(visits, serve, wide_book):
    base = serve(wide_book)
    page = visits.open(base, "07-second.html")
    page.evaluate("() => document.querySelector('details:not(.hide) p').id = 'inside'")
    page.evaluate("() => { location.hash = 'inside' }")
    page.wait_for_function("() => document.querySelector('details[open] #inside')")


# --- the player -------------------------------------------------------------------


@pytest.fixture
def player(visits, serve, wide_book):
    """A page of the site that shows a player with a button that plays it."""
    frames = [b64decode(made_up.white_square())] * 3
    words = ["first words", "second words", "third words"]
    html = plotting.player(frames, words, "A white square.", seconds=0.1).data
    page = visits.open(serve(wide_book), "07-second.html")
    page.evaluate(
        "html => { const range = document.createRange();"
        " const article = document.querySelector('article');"
        " article.prepend(range.createContextualFragment(html)); }",
        html,
    )
    return page.get_by_role("group", name="A white square.")


def test_a_player_is_operated_by_keys(player):
    step = player.get_by_role("slider")
    forward = player.get_by_role("button", name="Next step")
    forward.focus()
    forward.press("Enter")
    assert player.get_by_text("Step 2 of 3. second words").is_visible()
    step.focus()
    step.press("ArrowRight")
    assert player.get_by_text("Step 3 of 3. third words").is_visible()
    assert forward.is_disabled()
    player.get_by_role("button", name="Previous step").press("Space")
    assert player.get_by_role("img").get_attribute("alt").endswith("second words")


def test_a_player_has_names_for_a_screen_reader(player, visits):
    step = player.get_by_role("slider", name="Step", exact=True)
    assert step.get_attribute("aria-valuetext") == "Step 1 of 3. first words"
    words = player.get_by_text("Step 1 of 3")
    assert words.get_attribute("aria-live") == "polite"
    if AXE.exists():
        visits.page.evaluate(AXE.read_text(encoding="utf-8"))
        assert not axe(visits.page)


def test_a_player_moves_only_when_asked(player):
    page = player.page
    page.wait_for_timeout(300)  # three frames long
    assert player.get_by_text("Step 1 of 3").is_visible()
    player.get_by_role("button", name="Play").press("Enter")
    player.get_by_text("Step 3 of 3").wait_for()
    player.get_by_role("button", name="Play").wait_for()


def test_nothing_glides_where_less_motion_is_asked_for(visits, serve, wide_book):
    page = visits.open(serve(wide_book), "07-second.html", 390)
    page.locator(".primary-toggle").first.click()
    moving = (
        "() => [document.getAnimations().length,"
        " getComputedStyle(document.documentElement).scrollBehavior]"
    )
    assert page.evaluate(moving) == [0, "auto"]
