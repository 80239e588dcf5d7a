"""Sphinx extension: what the world outside sees of the site.

1.  Each page gets a description of its own, the start of its first paragraph, and a
    preview picture, a chapter's first wide figure or the picture of the book;
    `sphinxext.opengraph` writes the tags.
2.  The site gets a map, `sitemap.xml`, a `robots.txt` that names it, and `404.html`,
    the page that is shown for an unknown address, however deep.
3.  `redirects.toml` becomes pages that lead on.

Every absolute address follows `html.baseurl` of the configuration.
"""

from __future__ import annotations

import html
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from docutils import nodes
from PIL import Image, ImageOps
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

from portable import first_inline

logger = logging.getLogger(__name__)

LONG = 200  # characters of a description, unless its first sentence is longer
SENTENCE = re.compile(r".+?[.?!](?=\s+[A-Z]|$)")
CARD = (1200, 630)  # what the previews of links show
BOOK_CARD = "_static/preview.png"  # made by tools/preview.py
UNWRITTEN = {  # pages that Sphinx makes
    "404": "There is no page at this address.",
    "genindex": "Every public name of the package aevb, in alphabetical order.",
    "py-modindex": "The modules of the package aevb.",
    "search": "Search the chapters, the glossary and the reference of the package.",
}
REDIRECT = """\
<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>Moved</title>
    <meta http-equiv="refresh" content="0; url={target}">
    <meta name="robots" content="noindex">
    <link rel="canonical" href="{base}{target}">
  </head>
  <body>
    <p>This page is now <a href="{target}">{target}</a>.</p>
  </body>
</html>
"""

# Step 1.


def prose(paragraph: nodes.paragraph) -> str:
    """The words of a paragraph, up to its first formula."""
    words = []
    for node in paragraph.findall():
        if isinstance(node, nodes.math):
            break
        if isinstance(node, nodes.Text):
            words.append(node.astext())
    return " ".join("".join(words).split())


def description(doctree: nodes.document) -> str:
    """The first sentences of the first plain paragraph, one without a bold label."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(first_inline(paragraph), nodes.strong):
            continue
        sentences = SENTENCE.findall(prose(paragraph))
        if isinstance(paragraph.parent, nodes.section) and sentences:
            text = sentences.pop(0)
            while sentences and len(text) + len(sentences[0]) < LONG:
                text += sentences.pop(0)
            return text
    return ""


def source(app: Sphinx, address: str) -> Path | None:
    """The file of a picture that a page shows."""
    name = address.rpartition("/")[2]
    found = (uri for uri, known in app.builder.images.items() if known == name)
    return next((Path(app.srcdir, uri) for uri in found), None)


def figure(app: Sphinx, doctree: nodes.document) -> tuple[Path, str] | None:
    """The first picture of a page that fills a preview, and its words."""
    for node in doctree.findall(nodes.image):
        path = source(app, node["uri"])
        if path and path.suffix == ".png":
            with Image.open(path) as image:
                width, height = image.size
            if width >= CARD[0] / 2 and 1.2 <= width / height <= 2.6:
                return path, node.get("alt", "")
    return None


def card(picture: Path, target: Path) -> None:
    """A figure on white, in the shape of a preview."""
    border = 30
    inside = CARD[0] - 2 * border, CARD[1] - 2 * border
    with Image.open(picture) as image:
        framed = ImageOps.pad(image.convert("RGB"), inside, color="white")
    framed = ImageOps.expand(framed, border, "white").quantize(256)
    target.parent.mkdir(exist_ok=True)
    framed.save(target, optimize=True)


def named(name: str, content: str) -> str:
    return f'<meta name="{name}" content="{html.escape(content)}">\n'


def head(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, object],
    doctree: nodes.document | None,
) -> None:
    """Before opengraph, which takes what it finds in ``meta``."""
    if app.builder.name != "html":
        return
    if doctree is None:
        if page in UNWRITTEN:
            context["metatags"] = (
                context.get("metatags", "")
                + named("description", UNWRITTEN[page])
                + named("robots", "noindex")
            )
        return
    text = description(doctree)
    if not text:
        logger.warning("no paragraph to describe the page by", location=page)
    shown, alt = BOOK_CARD, app.config.project
    if found := figure(app, doctree):
        shown, alt = f"_previews/{page}.png", found[1]
        card(found[0], Path(app.outdir, shown))
    context["meta"] = (context["meta"] or {}) | {
        "og:description": html.escape(text, quote=False),
        "og:image": app.config.html_baseurl + shown,
        "og:image:alt": html.escape(alt, quote=False),
        "og:image:width": str(CARD[0]),
        "og:image:height": str(CARD[1]),
    }
    context["metatags"] += named("description", text)
    context["metatags"] += named("twitter:card", "summary_large_image")


# Step 2.


def in_order(app: Sphinx, page: str) -> Iterator[str]:
    """The pages of the book, as the table of contents has them."""
    yield page
    for below in app.env.toctree_includes.get(page, []):
        yield from in_order(app, below)


def not_found(app: Sphinx) -> list[tuple[str, dict[str, str], str]]:
    """The page for an unknown address: search, and the pages that there are."""
    if app.builder.name != "html":
        return []
    items = "\n".join(
        f'<li><a href="{app.builder.get_target_uri(page)}">'
        f"{html.escape(app.env.titles[page].astext())}</a></li>"
        for page in in_order(app, app.config.root_doc)
    )
    body = (
        "<h1>Page not found</h1>\n"
        "<p>There is no page at this address. It may have moved: search the book, or "
        "choose a page.</p>\n"
        '<form action="search.html" method="get" role="search">\n'
        '<input type="search" name="q" aria-label="Words to search for" required>\n'
        '<button type="submit">Search</button>\n</form>\n'
        f"<ul>\n{items}\n</ul>\n"
    )
    return [("404", {"title": "Page not found", "body": body}, "page.html")]


def rooted(text: str, top: str) -> str:
    """A page of the top folder, with every relative address counted from `top`."""
    outside = r"#|/|data:|mailto:|https?:"
    return re.sub(
        rf'\b(href|src|action|data-content_root)="(?!{outside})(?:\./)?([^"]*)"',
        rf'\1="{top}\2"',
        text,
    )


def sitemap(app: Sphinx) -> str:
    addresses = (
        app.config.html_baseurl + app.builder.get_target_uri(page)
        for page in in_order(app, app.config.root_doc)
    )
    urls = "".join(f"  <url><loc>{html.escape(x)}</loc></url>\n" for x in addresses)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        f"{urls}</urlset>\n"
    )


# Step 3.


def redirects(folder: Path) -> dict[str, str]:
    """Old or short name -> where it leads, relative to the site."""
    path = folder / "redirects.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    site, base = Path(app.outdir), app.config.html_baseurl
    (site / "sitemap.xml").write_text(sitemap(app), encoding="utf-8")
    (site / "robots.txt").write_text(
        f"User-agent: *\nAllow: /\nSitemap: {base}sitemap.xml\n"
    )
    page = site / "404.html"
    text = rooted(page.read_text(encoding="utf-8"), urlparse(base).path)
    page.write_text(text, encoding="utf-8")
    for name, target in redirects(Path(app.srcdir)).items():
        page = REDIRECT.format(target=html.escape(target), base=base)
        (site / f"{name}.html").write_text(page, encoding="utf-8")


def follow_home(app: Sphinx, config: Config) -> None:
    config.ogp_site_url = config.html_baseurl


def setup(app: Sphinx) -> dict[str, object]:
    app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", follow_home, priority=1)
    app.connect("html-collect-pages", not_found)
    app.connect("html-page-context", head, priority=300)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
