"""The pages of the built site, read again for the slides and the printed book.

What the site shows is what they show, so that conventions, numbers and links are turned
into HTML in one place only, by Sphinx and the extensions in `book/_ext/`.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from bs4 import BeautifulSoup, Tag

MATHJAX = re.compile(r"<script>(window\.MathJax = .*?)</script>", re.S)


def chapters(site: Path) -> list[Path]:
    """The pages of the chapters, in order."""
    return sorted(site.glob("[0-9][0-9]-*.html"))


def is_control(element: Tag) -> bool:
    """Whether an element means nothing outside its page."""
    classes = {"headerlink", "ways-to-run"}
    return element.name == "button" or not classes.isdisjoint(element.get("class", []))


def article(text: str) -> Tag:
    """What the text of a page says, without the controls around it."""
    start, end = text.index("<article"), text.rindex("</article>")
    found = BeautifulSoup(text[start:end] + "</article>", "html.parser").article
    assert found is not None
    for control in found.find_all(is_control):
        control.decompose()
    return found


def mathjax(pages: Iterable[Path]) -> str:
    """The site's settings of MathJax, from the first page that has formulas."""
    for page in pages:
        if m := MATHJAX.search(page.read_text(encoding="utf-8")):
            return m[1]
    return "window.MathJax = {}"


def move_links(part: Tag, where: Callable[[str], str]) -> None:
    """Let every relative address in a part of a page be what `where` makes of it."""
    for element in part.find_all(True):
        for key in ("href", "src"):
            address = element.get(key)
            if isinstance(address, str) and not re.match(r"[a-z]+:|//", address):
                element[key] = where(address)


def copy_files(package: str, folder: str, wanted: Iterable[str], target: Path) -> None:
    """Copy files below a folder of an installed package: those that are named, and
    whatever lies in the folders that are named (with a final "/")."""
    names = tuple(wanted)
    for file in importlib.metadata.files(package) or []:
        _, _, inside = file.as_posix().partition(folder)
        if inside in names or any(
            name.endswith("/") and inside.startswith(name) for name in names
        ):
            to = target / inside
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(file.locate())), to)
