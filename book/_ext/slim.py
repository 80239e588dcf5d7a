"""Sphinx extension: pages that are light to fetch, and valid HTML.

1.  Pictures are lossless WebP, half the bytes of the PNG of a notebook; a page says how
    large they are before they come, and fetches all but its first when they are near.
2.  The icon fonts and their style sheet keep the icons that the site shows.
3.  The search and its index, which the theme loads everywhere for a search box that
    answers while one types (it is off), are loaded by the page of the search alone.
4.  What MyST-NB writes is made valid: a ``<summary>`` holds no paragraphs, and the
    empty corner of a table is no header of anything.
5.  The script of a player, which holds its frames, is a file of its own that nothing
    waits for: the text comes first.
"""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.images import get_image_size

IMAGE = re.compile(r'<img [^>]*?src="_images/([^"]+)"[^>]*?(?= ?/?>)')
TOGGLE = re.compile(r'<p class="(collapsed|expanded) admonition-title">(.*?)</p>')
CORNER = re.compile(r"<th\b([^>]*)>\s*(?:<p>\s*</p>\s*)?</th>")
ICON = re.compile(
    r'(?:\.fa-[a-z0-9-]+:before,?)+\{content:"\\([0-9a-f]+) ?"\}'  # .fa-x:before{...}
)
SEARCH = re.compile(
    r'\s*<script src="[^"]*\b(?:searchtools|language_data|searchindex)\.js[^"]*">'
    r"</script>"
)
PLAYER = re.compile(
    r"<script>(\s*\(function \(name, data\).*?\('(player-\w+)', .*?)</script>",
    re.DOTALL,
)

logging.getLogger("fontTools").setLevel("WARNING")  # it reports each table of a font


def page(
    app: Sphinx,
    name: str,
    template: str,
    context: dict[str, object],
    doctree: nodes.document | None,
) -> None:
    """Steps 1 and 4, while a page is written."""
    if doctree is None or app.builder.format != "html":
        return
    sources = {name: Path(app.srcdir, uri) for uri, name in app.builder.images.items()}
    first = True

    def complete(tag: re.Match[str]) -> str:
        nonlocal first
        text = tag[0].replace(".png", ".webp")
        size = get_image_size(sources[unquote(tag[1])])
        if size and not re.search(r"\b(width|height)=", text):
            text += f' width="{size[0]}" height="{size[1]}"'
        if not first and app.builder.name == "html":  # one long page is for printing
            text += ' loading="lazy"'
        first = False
        return f'{text} decoding="async"'

    body = IMAGE.sub(complete, context["body"])
    body = re.sub(r'(href="_images/[^"]+)\.png"', r'\1.webp"', body)
    body = CORNER.sub(r"<td\1></td>", body)
    context["body"] = TOGGLE.sub(r'<span class="\1 admonition-title">\2</span>', body)


def to_webp(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path.with_suffix(".webp"), lossless=True, method=3, quality=30)
    path.unlink()


def subset(path: Path, characters: set[int]) -> None:
    """Keep some characters of a font."""
    with TTFont(path, recalcTimestamp=False) as font:
        keep = Subsetter(Options())
        keep.populate(unicodes=characters)
        keep.subset(font)
        font.save(path)


def icons(site: Path) -> None:
    """Step 2."""
    static = site / "_static"
    script = static / "scripts" / "fontawesome.js"
    if script.exists():  # the same icons as 1.5 MB of script
        script.write_text("/* the icons come from the web fonts */\n")
    using = [*site.glob("*.html"), *static.rglob("*.js")]
    names = set(re.findall(r"\bfa-[a-z0-9-]+", " ".join(map(read, using))))
    characters = set()
    for path in static.rglob("*.css"):
        text = read(path)

        def used(rule: re.Match[str]) -> str:
            known = set(re.findall(r"fa-[a-z0-9-]+", rule[0]))
            return rule[0] if known & names else ""

        text = ICON.sub(used, text)
        characters |= {int(x, 16) for x in re.findall(r'"\\(f[0-9a-f]{3})', text)}
        path.write_text(text, encoding="utf-8")
    for path in (static / "vendor" / "fontawesome").rglob("*.woff2"):
        subset(path, characters)


def scripts(site: Path) -> None:
    """Steps 3 and 5."""

    def file(script: re.Match[str]) -> str:
        name = f"_static/{script[2]}.js"
        (site / name).write_text(script[1], encoding="utf-8")
        return f'<script defer src="{name}"></script>'

    for path in site.glob("*.html"):
        text = PLAYER.sub(file, read(path))
        if path.name != "search.html":
            text = SEARCH.sub("", text)
        path.write_text(text, encoding="utf-8")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    with ThreadPoolExecutor() as pool:
        list(pool.map(to_webp, (site / "_images").glob("*.png")))
    icons(site)
    scripts(site)
    # What selects the paragraphs that are spans now.
    for path in (site / "_static").glob("mystnb.*.css"):
        path.write_text(read(path).replace(">summary>p.", ">summary>."))


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("html-page-context", page)
    app.connect("build-finished", finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
