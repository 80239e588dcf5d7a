"""The whole book as one PDF, printed from the built site by Chromium.

    python -m tools.pdf     # make pdf

The pages stand one behind the other, in the order of `_toc.yml`, behind a cover and a
table of contents.  Links lead to pages of the PDF where they can, else to the site.
Hints, proofs and solutions are open, where they stand; the code of the set-up and of
the figures is left out; of a player there is the first picture.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml
from bs4 import Tag

from tools import built
from tools import conventions as c

STYLES = re.compile(r'<link [^>]*href="(_static/[^"?]+\.css)[^>]*>')
CHROMIUM = "chromium", "chromium-browser", "google-chrome"
FLAGS = ["--no-sandbox", "--disable-gpu"]
WIDTH = 657  # CSS pixels between the margins of pdf.css
READY = "() => !window.MathJax || MathJax.startup.promise.then(() => true)"


def chromium() -> str | None:
    """The browser: the one that CHROMIUM names, or the system's."""
    return os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, CHROMIUM)), None
    )


# --- the book as one page -----------------------------------------------------------


def parts(root: Path) -> list[tuple[str, list[str]]]:
    """The parts of the book, each with the names of its pages."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = [("", [toc["root"]])]
    for part in toc["parts"]:
        found.append((part["caption"], [x["file"] for x in part["chapters"]]))
    return found


def article(name: str, site: Path, names: list[str], home: str) -> Tag:
    """A page, with anchors and links that hold in the whole book."""
    page = built.article((site / f"{name}.html").read_text(encoding="utf-8"))

    def where(address: str) -> str:
        path, _, anchor = address.partition("#")
        target = path.removesuffix(".html") or name
        if path and not (path.endswith(".html") and target in names):
            inside = path.startswith(("_images/", "_static/"))
            return f"{site.as_uri()}/{address}" if inside else home + address
        return f"#{target}--{anchor}" if anchor else f"#{target}"

    built.move_links(page, where)
    for element in page.find_all(id=True):
        element["id"] = f"{name}--{element['id']}"
    page["id"] = name
    page["class"] = "bd-article"
    page["style"] = f"page: {paper(name)}"
    unfold(page)
    return page


def unfold(page: Tag) -> None:
    """Open what is folded, but for the code that no reader should need on paper."""
    for script in page.select("script"):
        script.decompose()
    for details in page.select("details"):
        cell = details.find_parent(class_="cell")
        if cell is None:
            details["open"] = ""
        elif "tag_solution" in cell["class"]:
            details.summary.decompose()
            details.unwrap()
        else:
            details.decompose()


def paper(name: str) -> str:
    """The kind of paper, in the sense of CSS, that carries a page's running head."""
    return "p-" + re.sub(r"\W", "-", name)


def contents(articles: dict[str, Tag], book: list[tuple[str, list[str]]]) -> str:
    """The table of contents; the first print says the numbers of the pages."""

    def line(level: int, ident: str, title: str) -> str:
        return (
            f'<p class="level-{level}"><a href="#{ident}">{title}</a>'
            f'<span class="number" data-to="{ident}"></span></p>'
        )

    lines = []
    for caption, names in book:
        if caption:
            lines.append(f'<p class="part">{html.escape(caption)}</p>')
        for name in names:
            page = articles[name]
            lines.append(line(1, name, page.h1.decode_contents()))
            if c.CHAPTER_FILE.fullmatch(name):
                lines += [
                    line(2, x.parent["id"], x.decode_contents())
                    for x in page.select("h2")
                ]
    return '<nav class="book-contents"><h1>Contents</h1>' + "\n".join(lines) + "</nav>"


def compose(root: Path, site: Path) -> str:
    """The book as one page."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    home = config["html"]["baseurl"]
    book = parts(root)
    names = [name for _, part in book for name in part]
    articles = {name: article(name, site, names, home) for name in names}
    heads = "\n".join(
        f'@page {paper(name)} {{ @top-left {{ content: "{text}" }} }}'
        for name, page in articles.items()
        for text in [page.h1.get_text().replace("\\", r"\\").replace('"', r"\"")]
    )
    first = site / f"{names[0]}.html"
    styles = dict.fromkeys(STYLES.findall(first.read_text(encoding="utf-8")))
    links = "\n".join(
        f'<link rel="stylesheet" href="{site.as_uri()}/{x}">' for x in styles
    )
    settings = built.mathjax(site / f"{name}.html" for name in names)
    css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = "\n".join(map(str, articles.values()))
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<title>{html.escape(config["title"])}</title>
<meta name="author" content="{html.escape(config["author"])}">
{links}
<style>
{css}
{heads}
</style>
<script>{settings}</script>
<script defer src="{site.as_uri()}/_static/mathjax/tex-chtml.js"></script>
<script defer src="{site.as_uri()}/_static/print.js"></script>
</head>
<body>
<div class="cover">
<p class="title">{html.escape(config["title"])}</p>
<p>{html.escape(config["author"])}</p>
<p>{html.escape(str(config["copyright"]))}</p>
<p><a href="{home}">{home}</a></p>
</div>
{contents(articles, book)}
<main class="bd-main"><div class="bd-content"><div class="bd-article-container">
{body}
</div></div></main>
</body>
</html>
"""


# --- printing -----------------------------------------------------------------------


def page_numbers(pdf: Path) -> dict[str, int]:
    """On which page each target of a link stands."""
    from pypdf import PdfReader

    reader = PdfReader(pdf)
    numbers = {}
    for name, target in reader.named_destinations.items():
        number = reader.get_destination_page_number(target)
        if number is not None:
            numbers[name.removeprefix("/")] = number + 1
    return numbers


def pack(pdf: Path) -> None:
    """Compress what Chromium leaves open: half of the file is the tags of formulas."""
    import pikepdf

    with pikepdf.open(pdf, allow_overwriting_input=True) as book:
        book.save(pdf, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def print_page(source: Path, target: Path, browser_path: str) -> None:
    """Print a composed book: once for the numbers of its pages, and once with them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(600_000)
        page.emulate_media(media="print")
        page.goto(source.as_uri())
        page.wait_for_function(READY)
        options = {
            "path": str(target),
            "prefer_css_page_size": True,
            "print_background": True,
            "outline": True,
            "tagged": True,
        }
        page.pdf(**options)
        numbers = page_numbers(target)
        page.evaluate(
            "numbers => document.querySelectorAll('[data-to]').forEach("
            "e => { e.textContent = numbers[e.dataset.to] ?? ''; })",
            numbers,
        )
        page.pdf(**options)
        browser.close()
    pack(target)


def build(root: Path, target: Path) -> None:
    """Print the built site of a book."""
    browser = chromium()
    if browser is None:
        raise FileNotFoundError(
            "no Chromium: expected chromium or google-chrome on the PATH, or its path "
            "in CHROMIUM"
        )
    site = (root / "_build" / "html").resolve()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "book.html")
        source.write_text(compose(root, site), encoding="utf-8")
        print_page(source, target, browser)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args(arguments)
    target = c.ROOT / "_build" / "aevb-book.pdf"
    if not (c.ROOT / "_build" / "html" / "index.html").exists():
        print("The site is not built: run `make book` first.", file=sys.stderr)
        return 1
    start = time.perf_counter()
    try:
        build(c.ROOT, target)
    except FileNotFoundError as problem:
        print(problem, file=sys.stderr)
        return 1
    size = target.stat().st_size / 1e6
    print(
        f"The book is printed ({time.perf_counter() - start:.0f} s, {size:.1f} MB): "
        f"{target.as_uri()}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
