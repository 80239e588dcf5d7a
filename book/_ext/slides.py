"""Sphinx extension: a deck of slides for each chapter, and its link on the page.

`tools/slides.py` makes the decks once the pages are written; reveal.js, which shows
them, comes from an installed package.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from tools import built, slides
from tools import conventions as c

REVEAL = {"dist/": ("reveal.css", "reveal.js"), "plugin/notes/": ("notes.js",)}


def add_button(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict,
    doctree: nodes.document | None,
) -> None:
    """A button in the header of a chapter."""
    if c.CHAPTER_FILE.fullmatch(pagename):
        context["header_buttons"].append(
            {
                "type": "link",
                "url": f"slides/{pagename}.html",
                "icon": "fas fa-chalkboard",
                "tooltip": "Slides of this chapter",
                "label": "slides-button",
            }
        )


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    site = Path(app.outdir)
    for folder, names in REVEAL.items():
        built.copy_files(
            "sphinx-revealjs", f"/revealjs/{folder}", names, site / "_static/reveal"
        )
    built.copy_files(
        "sphinx-revealjs", "/revealjs/", ["LICENSE"], site / "_static/reveal"
    )
    slides.build(site, app.config.project)


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("html-page-context", add_button, priority=502)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
