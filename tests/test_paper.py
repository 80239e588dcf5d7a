"""What is shown to a class or printed: slides, pages on paper, the book as a PDF.

In a real browser, like `test_browser.py`, and skipped without one.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from browsing import AXE, axe, needs_browser
from pypdf import PdfReader

from tools import conventions as c
from tools import pdf

pytestmark = [needs_browser, pytest.mark.filterwarnings("default")]
READY = "() => window.Reveal && Reveal.isReady()"
# Lays all slides out at once; says what leaves its slide, and where type is too small.
OVERFLOW = """() => {
  document.documentElement.classList.add("measured");
  const found = [];
  document.querySelectorAll(".slide").forEach((slide) => {
    const box = slide.getBoundingClientRect(), body = slide.querySelector(".body");
    const inner = body?.getBoundingClientRect();
    slide.querySelectorAll("*").forEach((e) => {
      if (e.closest("mjx-assistive-mml")) return;
      const r = e.getBoundingClientRect();
      const by = Math.max(r.right - box.right, r.bottom - box.bottom, box.left - r.left,
        body?.contains(e) ? Math.max(inner.top - r.top, r.bottom - inner.bottom) : 0);
      if (r.width && r.height && by > 3)  // of 720
        found.push([slide.parentElement.id, e.tagName, Math.round(by)]);
    });
    const size = parseFloat(body?.style.fontSize || 1);
    if (size < SMALLEST) found.push([slide.parentElement.id, "type", size]);
  });
  return found;
}""".replace("SMALLEST", "0.62")

ALL_AT_ONCE = """() => document.querySelectorAll(".slides > section").forEach((e) => {
  e.removeAttribute("hidden");
  e.removeAttribute("aria-hidden");
  e.style.cssText = "display: block; position: static; transform: none";
})"""


def open_deck(visits, base, path, options=""):
    page = visits.open(base, path + options, width=1280)
    page.wait_for_function(READY)
    return page


@pytest.mark.parametrize("name", [p.stem for p in c.chapters()])
def test_slides_hold_what_is_on_them(visits, this_site, name):
    page = open_deck(visits, this_site, f"slides/{name}.html")
    assert page.evaluate(OVERFLOW) == []
    if AXE.exists():
        page.evaluate(ALL_AT_ONCE)
        assert axe(page, "{exclude: [['mjx-container']]}") == []


def test_slides_are_accessible(visits, serve, wide_book):
    if not AXE.exists():
        pytest.skip("no axe-core: npm install --prefix _build axe-core, or AXE_JS")
    base = serve(wide_book)
    for options in ("", "#/section-7-1-1"):
        page = open_deck(visits, base, "slides/07-second.html", options)
        assert axe(page) == []
    page = visits.open(base, "slides/index.html")
    assert axe(page) == []


def test_a_slide_with_too_much_is_fitted(visits, serve, wide_book):
    """Sixty summands in a line and a table of thirty columns."""
    page = open_deck(visits, serve(wide_book), "slides/07-second.html")
    assert [x for x in page.evaluate(OVERFLOW) if x[1] != "type"] == []


def test_slides_obey_the_keys(visits, serve, wide_book):
    page = open_deck(visits, serve(wide_book), "slides/07-second.html")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => location.hash === '#/section-7-1-1'")
    heading = page.get_by_role("heading", name="What changed")
    heading.wait_for()
    box = page.locator("section.present").bounding_box()
    assert box["width"] > 1000 and box["y"] >= 0, f"the slide fills the window: {box}"


def test_slides_print_one_on_a_page(visits, serve, wide_book, tmp_path):
    page = open_deck(visits, serve(wide_book), "slides/07-second.html", "?print-pdf")
    slides = page.evaluate("() => document.querySelectorAll('.slide').length")
    page.pdf(path=tmp_path / "deck.pdf", prefer_css_page_size=True)
    printed = PdfReader(tmp_path / "deck.pdf").pages
    assert len(printed) == slides
    assert "A made-up chapter" in printed[0].extract_text()
    assert printed[0].mediabox.width > printed[0].mediabox.height


# --- a page on paper ----------------------------------------------------------------

A4 = 650  # CSS pixels between the margins
OUTSIDE = """(but) => [...document.querySelectorAll("article *")].filter((e) =>
  !e.closest("mjx-assistive-mml") && !(but && e.closest(but)) &&
  e.getBoundingClientRect().right > innerWidth + 2
).map((e) => e.outerHTML.slice(0, 200)).slice(0, 3)"""


def on_paper(visits, base, path, scheme="light"):
    page = visits.open(base, path, A4, scheme)
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme=scheme)
    return page


def test_paper_has_no_controls(visits, serve, wide_book):
    page = on_paper(visits, serve(wide_book), "07-second.html")
    for name in (
        ".bd-header-article",
        ".bd-sidebar-primary",
        ".bd-sidebar-secondary",
        ".prev-next-footer",
        ".bd-footer",
        "a.headerlink",
        "article button",
        "details.hide",
    ):
        shown = page.locator(name).locator("visible=true").count()
        assert shown == 0, name
    assert page.locator("article h1", has_text="A made-up chapter").is_visible()
    assert page.get_by_text("Subtract.").count() == 1  # a solution, closed
    assert not page.get_by_text("Subtract.").is_visible()


@pytest.mark.parametrize("path", ["07-second.html", "references.html"])
def test_nothing_is_wider_than_the_paper(visits, serve, wide_book, path):
    """Displays and tables shrink; a formula within a line must not be that long."""
    page = on_paper(visits, serve(wide_book), path)
    assert page.evaluate(OUTSIDE, "span.math") == []


@pytest.mark.parametrize("name", [p.stem for p in c.chapters()])
def test_chapters_fit_the_paper(visits, this_site, name):
    page = on_paper(visits, this_site, f"{name}.html")
    assert page.evaluate(OUTSIDE, "") == []


def test_a_dark_page_prints_black_on_white(visits, serve, wide_book):
    page = on_paper(visits, serve(wide_book), "07-second.html", "dark")
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    colours = page.evaluate(
        "() => ['body', 'article p', 'h1', 'article pre span', '.admonition p']"
        ".map(s => { const style = getComputedStyle(document.querySelector(s));"
        " return [s, style.color, style.backgroundColor]; })"
    )
    for name, ink, ground in colours:
        assert brightness(ink) < 0.4, (name, ink)
        assert "rgba(0, 0, 0, 0)" in ground or brightness(ground) > 0.9, (name, ground)


def brightness(colour):
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / (3 * 255)


# --- the book -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def printed(wide_book, tmp_path_factory):
    target = tmp_path_factory.mktemp("pdf") / "book.pdf"
    with ThreadPoolExecutor() as pool:  # a thread has a Playwright of its own
        pool.submit(pdf.build, wide_book.parents[1], target).result()
    return PdfReader(target)


def titles(outline):
    for item in outline:
        if isinstance(item, list):
            yield from titles(item)
        else:
            yield item.title


def test_the_book_has_its_parts_in_order(printed):
    texts = [page.extract_text() for page in printed.pages]
    assert "from EM up" in texts[0]
    assert "Contents" in texts[1]
    starts = [
        next(k for k, t in enumerate(texts) if k > 1 and re.search(name, t[:400]))
        for name in ("Welcome", "2. A made-up", "7. A made-up")
    ]
    assert starts == sorted(set(starts))


def test_the_contents_say_the_pages(printed):
    contents = printed.pages[1].extract_text()
    for title in ("2. A made-up chapter", "7. A made-up chapter", "7.2 Pitfalls"):
        number = int(re.search(re.escape(title) + r"\s*(\d+)", contents)[1])
        assert title in printed.pages[number - 1].extract_text()


def test_the_book_has_an_outline(printed):
    found = list(titles(printed.outline))
    for title in ("2. A made-up chapter", "7.1 What changed since the last model"):
        assert title in found


def test_pages_are_numbered_and_headed(printed):
    for number, page in enumerate(printed.pages[1:], 2):
        assert re.search(rf"(?m)^\s*{number}\s*$", page.extract_text()), number


def test_solutions_are_open_and_setups_gone(printed):
    text = "\n".join(page.extract_text() for page in printed.pages)
    assert "Subtract." in text
    assert "return 1" in text
    assert "import aevb" not in text
    assert "Show the" not in text


def test_fonts_are_embedded(printed):
    for page in printed.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            font = font.get_object()
            inside = font.get("/DescendantFonts", [font])[0].get_object()
            descriptor = inside.get("/FontDescriptor", {})
            assert inside["/Subtype"] == "/Type3" or any(
                k.startswith("/FontFile") for k in descriptor.get_object()
            ), font


def test_a_missing_browser_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(pdf, "chromium", lambda: None)
    with pytest.raises(FileNotFoundError, match="CHROMIUM"):
        pdf.build(tmp_path, tmp_path / "book.pdf")
