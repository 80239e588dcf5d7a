r"""A deck of slides for each chapter, made from its page of the built site.

The extension `book/_ext/slides.py` calls `build` when Sphinx is done.  What a lecturer
shows is chosen by rules, not by hand.  Of every section but the references, in order:

* numbered equations, with the words that lead up to them, and derivations (displays of
  several lines);
* theorems, definitions, algorithms and key ideas; of the other remarks only those that
  hold a numbered equation;
* figures with their captions, players, short tables, and the source of a function that
  a chapter displays, if it is short;
* the lists of the pitfalls and the take-aways; the exercises, without their solutions;
* of a section that has none of these, the first sentences of its paragraphs and lists.

What is not shown is what a lecturer says: the prose is in the notes of the slides.
`book/_site/slides.js` fits each slide, and shows the deck with reveal.js.
"""

from __future__ import annotations

import base64
import copy
import html
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import NavigableString, Tag

from tools import built
from tools import conventions as c

FULL = 13  # lines of text on a slide
LINE = 74  # characters of a line
ROWS = 10  # of a table
CODE = 18  # lines of a function
NOTES = 700  # characters
TOPICS = 4  # paragraphs of a section that has nothing but words
BOXES = "theorem", "algorithm", "important"
SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)]*\s+(?=[A-Z“(])")
INPUT = re.compile(r'<div class="cell_input.*?</pre>', re.S)  # most of a page
SKIPPED = re.compile(r"\breferences\b", re.I)
SUMMARIES = re.compile(r"\b(pitfalls|take-?aways)\b", re.I)


@dataclass
class Block:
    """Something to show."""

    parts: list[Tag]
    weight: float  # in lines of text
    heading: str = ""  # of the subsection
    said: list[str] = field(default_factory=list)  # the prose that leads up to it
    style: str = ""


@dataclass
class Slide:
    number: str  # of the section: "2.1"
    title: str  # HTML
    address: str  # of the section in the site, as seen from the deck
    blocks: list[Block] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def weight(self) -> float:
        return sum(b.weight for b in self.blocks)


# --- text -------------------------------------------------------------------------


def words(part: Tag) -> str:
    """The text, with formulas as TeX between dollars."""
    text = re.sub(r"\\[()]", "$", " ".join(part.get_text().split()))
    return re.sub(r"\s*\\[\[\]]\s*", " $$ ", text).strip()


def until(text: str, limit: int) -> str:
    """The first sentences that fit, one at least."""
    found = ""
    for sentence in SENTENCE_END.split(text):
        if found and len(found) + len(sentence) > limit:
            break
        found = f"{found} {sentence}".strip()
    return found


def first_sentences(part: Tag, limit: int) -> Tag:
    """A paragraph, cut after the sentences that fit."""
    cut = copy.copy(part)
    length, ends = 0, []
    for child in list(cut.children):
        if type(child) is NavigableString:
            ends += [
                (length + m.start(), child, m.start())
                for m in SENTENCE_END.finditer(child)
            ]
        length += len(child.get_text())
    if length <= limit or not ends:
        return cut
    _, child, place = max((e for e in ends if e[0] <= limit), default=ends[0])
    for later in list(child.next_siblings):
        later.extract()
    child.replace_with(child[:place])
    return cut


def lead(part: Tag) -> Tag | None:
    """The last sentence of a paragraph, if it goes on in what comes next."""
    if not words(part).endswith((":", ",")):
        return None
    cut = copy.copy(part)
    for child in reversed(list(cut.children)):
        if type(child) is NavigableString and (
            ends := list(SENTENCE_END.finditer(child))
        ):
            for earlier in list(child.previous_siblings):
                earlier.extract()
            child.replace_with(child[ends[-1].end() :])
            break
    return cut


def lines(part: Tag) -> float:
    """How many lines of a slide something takes, roughly."""
    if part.name in ("table", "div") and part.select("tr"):
        return 1.4 * len(part.select("tr")) + 0.5
    if "math" in part.get("class", []):
        tex = part.get_text()
        tall = r"\\d?frac|\\int|\\sum|\\prod|\\begin\{[pb]?matrix"
        rows = re.split(r"\\\\", tex)
        return 0.8 + sum(2.2 if re.search(tall, row) else 1.5 for row in rows)
    nested = part.find_all(["p", "li", "div", "pre"], recursive=False)
    if nested:
        return sum(lines(x) for x in nested) + 0.3
    length = len(re.sub(r"\\[a-zA-Z]+|[{}$\\^_]", "", part.get_text()))
    return 1.4 * math.ceil(length / LINE)


# --- what to show -----------------------------------------------------------------


def is_numbered(part: Tag) -> bool:
    return "\\tag{" in part.get_text()


def shape(image: Tag, site: Path) -> float:
    """Width over height of a PNG, 1.5 of anything else."""
    source = str(image["src"])
    if source.startswith("data:image/png"):
        head = base64.b64decode(source.partition(",")[2][:64])
    elif source.endswith(".png"):
        with (site / source.removeprefix("../")).open("rb") as file:
            head = file.read(24)
    else:
        return 1.5
    width, height = struct.unpack(">II", head[16:24])
    return width / height


class Reader:
    """Walks through a section and collects what a slide may show."""

    def __init__(self, site: Path):
        self.site = site
        self.blocks: list[Block] = []
        self.said: list[str] = []
        self.heading = ""
        self.before: Tag | None = None  # the paragraph just above

    def add(self, parts: list[Tag], weight: float, style: str = "") -> None:
        self.blocks.append(Block(parts, weight, self.heading, self.said, style))
        self.said = []

    def with_lead(self, part: Tag, style: str) -> None:
        said = lead(self.before) if self.before is not None else None
        parts = [part] if said is None else [said, part]
        self.add(parts, sum(map(lines, parts)), style)

    def box(self, box: Tag) -> None:
        """A box, over several slides where it is too long for one."""
        title, *content = box.find_all(True, recursive=False)
        groups: list[list[Tag]] = [[]]
        for part in content:
            if groups[-1] and sum(map(lines, [*groups[-1], part])) > 1.2 * FULL:
                groups.append([])
            groups[-1].append(part)
        for k, group in enumerate(groups):
            copied = copy.copy(box)
            copied.clear()
            copied.append(copy.copy(title))
            if k:
                copied.find(True).append(" (continued)")
            copied.extend(copy.copy(x) for x in group)
            self.add([copied], 1.6 + sum(map(lines, group)), "box")

    def figure(self, cell: Tag, caption: Tag | None) -> None:
        shown = [copy.copy(x) for x in pictures(cell)]
        images = [x if x.name == "img" else x.img for x in shown]
        wide = len(shown) > 1 or shape(images[0], self.site) > 1.9
        if caption is not None:
            short = first_sentences(caption, 240)
            if len(words(short)) < len(words(caption)):
                self.said.append(words(caption))
            shown.append(short)
        beside = not wide and caption is not None
        self.add(shown, FULL, "figure beside" if beside else "figure")

    def read(self, section: Tag) -> None:
        children = section.find_all(True, recursive=False)
        for child, after in zip(children, [*children[1:], None], strict=True):
            self.visit(child, after)
            self.before = child if child.name == "p" else None

    def visit(self, part: Tag, after: Tag | None) -> None:
        classes = part.get("class", [])
        if part.name == "section":
            title = part.find(re.compile("^h[3-6]$"))
            self.heading = title.decode_contents()
            self.read(part)
        elif part.name == "details":
            for display in part.select("div.math"):
                if is_numbered(display):
                    self.with_lead(copy.copy(display), "formula")
        elif "math" in classes:
            if is_numbered(part) or re.search(r"aligned.*\\\\", part.get_text(), re.S):
                self.with_lead(copy.copy(part), "formula")
        elif "admonition" in classes:
            if any(x in classes for x in (*BOXES, "exercise")) or is_numbered(part):
                self.box(part)
            else:
                self.said.append(words(part))
        elif "cell" in classes:
            self.cell(part, after)
        elif tables(part):
            self.tables(part)
        elif part.name == "p" and "portable-caption" not in classes:
            self.said.append(words(part))
        elif part.name in ("ul", "ol"):
            self.said += [words(x) for x in part.find_all("li", recursive=False)]

    def cell(self, cell: Tag, after: Tag | None) -> None:
        if "tag_solution" in cell["class"]:
            return
        caption = (
            after
            if after is not None and "portable-caption" in after.get("class", [])
            else None
        )
        if pictures(cell):
            self.figure(cell, caption)
            return
        self.tables(cell)
        for code in cell.select("div.cell_output > div.highlight-python"):
            length = code.get_text().strip().count("\n") + 1
            if length <= CODE:
                self.add([copy.copy(code)], 0.8 * length, "code")

    def tables(self, part: Tag) -> None:
        for table in tables(part):
            if len(table.select("tr")) <= ROWS + 1:
                self.with_lead(copy.copy(table), "table")


def pictures(cell: Tag) -> list[Tag]:
    """The images of a cell's output; a player counts as one."""
    found = []
    for output in cell.select("div.cell_output"):
        players = output.select("div.text_html")
        found += [x for x in players if x.img]
        found += [
            x for x in output.select("img") if not x.find_parent(class_="text_html")
        ]
    return found


def tables(part: Tag) -> list[Tag]:
    if part.name == "div" and "cell" in part.get("class", []):
        return [t for t in part.select("div.cell_output table")]
    return [part] if part.name == "table" else part.select("table")


def summary(section: Tag) -> list[Block]:
    """The points of a list, a sentence or two of each."""
    found = []
    for item in section.select("li"):
        if item.find_parent("li") or item.find_parent("details"):
            continue
        text = item.find("p") or item
        short = first_sentences(text, 200)
        said = [] if words(short) == words(item) else [words(item)]
        weight = lines(short) + 0.2
        point = copy.copy(item)
        point.clear()
        point.extend(list(short.children) if short.name == "p" else [short])
        kind = "ol" if item.parent.name == "ol" else "ul"
        found.append(Block([point], weight, "", said, kind))
    return found


def blocks(section: Tag, site: Path) -> tuple[list[Block], list[str]]:
    """What a section has to show, and what remains to be said at its end."""
    title = section.find("h2").get_text()
    if SUMMARIES.search(title) and (points := summary(section)):
        return points, []
    reader = Reader(site)
    reader.read(section)
    if not reader.blocks:
        for text in section.find_all("p", recursive=False)[:TOPICS]:
            short = first_sentences(text, 150)
            reader.blocks.append(Block([short], lines(short), "", [], "text"))
        reader.blocks += summary(section)
    return reader.blocks, reader.said


# --- the deck ---------------------------------------------------------------------


def slides_of(section: Tag, page: str, site: Path) -> Iterator[Slide]:
    """The slides of a section: as many blocks on each as it holds."""
    heading = section.find("h2")
    title = heading.decode_contents()
    m = re.match(c.NUM, heading.get_text())
    number = m[0] if m else ""
    title = title.removeprefix(number).strip()
    address = f"../{page}#{section['id']}"
    shown, rest = blocks(section, site)
    slide = Slide(number, title, address)
    for block in shown:
        full = slide.weight + block.weight > FULL
        other = slide.blocks and slide.blocks[-1].heading != block.heading
        if slide.blocks and (full or other):
            yield slide
            slide = Slide(number, title, address)
        slide.blocks.append(block)
        slide.said += block.said
    slide.said += rest
    yield slide


def section_html(slide: Slide, ident: str, chapter: str) -> str:
    body = []
    for block in slide.blocks:
        inside = "".join(map(str, block.parts))
        if block.style in ("ul", "ol"):
            if body and body[-1].endswith(end := f"</{block.style}>"):
                body[-1] = body[-1].removesuffix(end) + inside + end
            else:
                body.append(f"<{block.style}>{inside}</{block.style}>")
        else:
            body.append(f'<div class="{block.style}">{inside}</div>')
    heading = next((b.heading for b in slide.blocks if b.heading), "")
    under = f'<p class="under">{heading}</p>' if heading else ""
    notes = until(" ".join(slide.said), NOTES)
    aside = f'<aside class="notes">{html.escape(notes)}</aside>' if notes else ""
    return (
        f'<section id="{ident}"><div class="slide">\n<h2>{slide.title}</h2>{under}\n'
        f'<div class="body">{"".join(body)}</div>\n'
        f'<p class="place"><a href="{slide.address}">{slide.number}'
        f" <span>{chapter}</span></a></p>\n</div>{aside}</section>"
    )


def opening(chapter: Tag, page: str, book: str) -> list[str]:
    """The first slides: the title and the objectives."""
    title = chapter.h1.decode_contents()
    said: list[str] = []
    goals = ""
    for part in chapter.h1.find_next_siblings():
        if part.name == "section" or "cell" in part.get("class", []):
            break
        if part.name == "p":
            said.append(words(part))
        elif part.name in ("ul", "ol") and not goals:
            goals = str(part.find_previous_sibling("p")) + str(part)
            said.pop()
    notes = html.escape(until(" ".join(said), NOTES))
    first = (
        f'<section id="title"><div class="slide title">\n'
        f'<p class="book">{html.escape(book)}</p>\n'
        f'<p class="name">{title}</p>\n<p class="place">'
        f'<a href="../{page}">Read the chapter</a></p>\n</div>'
        f'<aside class="notes">{notes}</aside></section>'
    )
    if not goals:
        return [first]
    goals = re.sub(r"<strong>Objectives\.</strong>\s*", "", goals)
    return [
        first,
        '<section id="objectives"><div class="slide">\n<h2>Objectives</h2>\n'
        '<div class="body">'
        f'<div class="text">{goals}</div></div>\n<p class="place"><a href="../{page}">'
        f"<span>{title}</span></a></p>\n</div></section>",
    ]


def relocate(chapter: Tag, page: str) -> None:
    """A deck lies in a folder of the site; what it shows has no anchors of its own."""

    def where(address: str) -> str:
        return f"../{page}{address}" if address.startswith("#") else f"../{address}"

    built.move_links(chapter, where)
    for element in chapter.find_all(id=True):
        if element.name != "section" and not element["id"].startswith("player-"):
            del element["id"]


HEAD = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta name="description" content="{title}: slides of the book {book}">
{preview}<link rel="icon" href="../_static/favicon.svg">
"""
PREVIEW = re.compile(r'<meta property="og:(?:site_name|type|image[:a-z]*)".*?>')
CANONICAL = re.compile(r'<link rel="canonical" href="([^"]*/)[^"/]*"')
DECK = (
    HEAD
    + """<link rel="stylesheet" href="../_static/reveal/reveal.css">
<link rel="stylesheet" href="../_static/pygments.css">
<link rel="stylesheet" href="../_static/slides.css">
<script>{mathjax}</script>
<script defer src="../_static/mathjax/tex-chtml.js"></script>
<script defer src="../_static/reveal/reveal.js"></script>
<script defer src="../_static/reveal/notes.js"></script>
<script defer src="../_static/slides.js"></script>
</head>
<body>
<main>
<article class="reveal">
<h1 class="unseen">{title}</h1>
<div class="slides">
{slides}
</div>
</article>
</main>
</body>
</html>
"""
)
INDEX = (
    HEAD
    + """<link rel="stylesheet" href="../_static/slides.css">
</head>
<body class="index">
<main>
<article>
<h1>Slides</h1>
<p>One deck for each chapter of <a href="../index.html">{book}</a>.</p>
<ol>
{decks}
</ol>
<p>Arrow keys turn the slides, <kbd>O</kbd> shows all of them, <kbd>S</kbd> opens the
speaker's view with notes, <kbd>F</kbd> fills the screen, <kbd>?</kbd> lists the other
keys. The number in the corner leads to the section. To print a deck, or to save it as a
PDF, open it with <code>?print-pdf</code> at the end of its address.</p>
</article>
</main>
</body>
</html>
"""
)


def preview(page: str, title: str, name: str) -> str:
    """What a link to slides shows: their title, and the picture of a page of the book.

    Args:
        page: the page, as HTML.
        title: of the slides.
        name: of their file.
    """
    home = CANONICAL.search(page)
    if home is None:
        return ""
    address = f"{home[1]}slides/{name}"
    tags = [
        f'<link rel="canonical" href="{address}">',
        f'<meta property="og:url" content="{address}">',
        f'<meta property="og:title" content="Slides: {title}">',
        '<meta name="twitter:card" content="summary_large_image">',
        *PREVIEW.findall(page),
    ]
    return "\n".join(tags) + "\n"


def deck(page: Path, book: str, mathjax: str) -> tuple[str, int]:
    """The slides of a chapter as a page, and their number."""
    text = INPUT.sub("<div><div><div><pre></pre>", page.read_text(encoding="utf-8"))
    chapter = built.article(text)
    relocate(chapter, page.name)
    title = chapter.h1.decode_contents()
    shown = opening(chapter, page.name, book)
    for section in chapter.select("section > section:has(> h2)"):
        if SKIPPED.search(section.h2.get_text()):
            continue
        for k, slide in enumerate(slides_of(section, page.name, page.parent), 1):
            ident = f"section-{slide.number.replace('.', '-')}-{k}"
            shown.append(section_html(slide, ident, title))
    name = html.escape(chapter.h1.get_text())
    text = DECK.format(
        title=name,
        book=html.escape(book),
        preview=preview(text, name, page.name),
        mathjax=mathjax,
        slides="\n".join(shown),
    )
    return text, len(shown)


def build(site: Path, book: str) -> list[Path]:
    """Make the decks of a built site and the page that lists them."""
    folder = site / "slides"
    folder.mkdir(exist_ok=True)
    found, listed = [], []
    chapters = built.chapters(site)
    mathjax = built.mathjax(chapters)
    for page in chapters:
        text, count = deck(page, book, mathjax)
        found.append(folder / page.name)
        found[-1].write_text(text, encoding="utf-8")
        title = re.search("<title>(.*)</title>", text)[1]
        number, _, name = title.partition(". ")
        link = f'<a href="{page.name}">{name}</a>'
        listed.append(f'<li value="{number}">{link}, {count} slides</li>')
    home = (site / "index.html").read_text(encoding="utf-8")
    index = INDEX.format(
        title="Slides",
        book=html.escape(book),
        preview=preview(home, "one deck for each chapter", "index.html"),
        decks="\n".join(listed),
    )
    (folder / "index.html").write_text(index, encoding="utf-8")
    return found
