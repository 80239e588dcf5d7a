r"""Sphinx extension: let plain-Markdown notebooks become a rich site.

The notebooks use only Markdown that reads the same on Colab, GitHub, JupyterLab, VS
Code and the site.  At build time, and only for the site, this extension

1.  gives every display with a ``\tag{2.1}`` its anchors, the permanent name from the
    comment above it and ``eq-2-1``, and renders it without the ``split`` that Sphinx
    puts around ``\\`` (MathJax refuses ``\tag`` inside ``split``);
2.  turns a block quote that starts with a bold label (``> **Note.** ...``) into an
    admonition, and gives numbered ones (``> **Theorem 2.1.**``) their anchors;
3.  gives a paragraph that starts with ``**Figure 2.1.**`` the look of a caption and
    its anchors;
4.  links the plain mentions "(2.1)", "Figure 2.1", "Section 2.1", "Chapter 2" to
    these anchors, across pages, and warns of a mention without a target;
5.  makes the page of references from `references.bib`, with the keys as anchors;
6.  puts MathJax, out of an installed package, into the site;
7.  lets a proof, from ``*Proof.*`` to its ∎, be folded, and puts the ways to run a
    chapter below its title.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # also for the API page, where aevb is not installed
    sys.path.insert(0, str(ROOT))

from tools import built, references, repository
from tools import conventions as c

logger = logging.getLogger(__name__)

TAG = re.compile(r"\\tag\{(" + c.NUM + r")\}")
LABEL = re.compile(r"(" + "|".join(c.BOXES + c.CAPTIONS) + r") (" + c.NUM + r")\b")
PROOF = re.compile(r"Proof\b[^.]*\.$")
SECTION = re.compile(r"(" + c.NUM + r") ")
CHAPTER = re.compile(r"(\d+)\. ")
STYLES = {
    "Note": ["note"],
    "Tip": ["tip"],
    "Hint": ["hint"],
    "Key idea": ["important"],
    "Warning": ["warning"],
    "Algorithm": ["algorithm", "note"],
    "Exercise": ["exercise", "tip"],
}
NUMBERED_STYLE = ["theorem", "note"]

Targets = dict[tuple[str, str], tuple[str, str]]


def targets(env: BuildEnvironment) -> Targets:
    """Family and number of every numbered thing -> page and anchor."""
    if not hasattr(env, "portable_targets"):
        env.portable_targets = {}
    return env.portable_targets


def first_inline(paragraph: nodes.paragraph) -> nodes.Node | None:
    """First child with text (MyST puts an empty Text before a leading bold)."""
    return next((x for x in paragraph.children if x.astext()), None)


def take_name(node: nodes.Element) -> str:
    """The permanent name in the comment above a node; the comment goes."""
    siblings = node.parent.children
    index = siblings.index(node)
    if index == 0:
        return ""
    above = siblings[index - 1]
    if not isinstance(above, nodes.raw | nodes.comment):
        return ""
    text = (
        above.astext() if isinstance(above, nodes.raw) else f"<!--{above.astext()}-->"
    )
    m = c.NAME_COMMENT.fullmatch(text.strip())
    if not m:
        return ""
    node.parent.remove(above)
    return m[1]


class Portable(SphinxTransform):
    """Steps 1 to 3 and the proofs, while a page is read."""

    default_priority = 400

    def note(self, kind: str, number: str, node: nodes.Element, name: str) -> None:
        key = c.FAMILIES[kind], number
        old = targets(self.env).get(key)
        if key in self.seen or (old is not None and old[0] != self.env.docname):
            logger.warning("%s %s is numbered twice", kind, number, location=node)
            return
        self.seen.add(key)
        alias = c.anchor(kind, number)
        anchors = [name, alias] if name else [alias]
        node["ids"] += anchors
        if name:
            targets(self.env)["Name", name] = self.env.docname, name
        targets(self.env)[key] = self.env.docname, anchors[0]

    def apply(self, **kwargs: object) -> None:
        self.seen: set[tuple[str, str]] = set()
        for math in list(self.document.findall(nodes.math_block)):
            self.display(math)
        for quote in list(self.document.findall(nodes.block_quote)):
            self.box(quote)
        for paragraph in list(self.document.findall(nodes.paragraph)):
            lead = first_inline(paragraph)
            if isinstance(lead, nodes.strong):
                m = LABEL.match(lead.astext())
                if m and m[1] in c.CAPTIONS:
                    paragraph["classes"].append("portable-caption")
                    self.note(m[1], m[2], paragraph, take_name(paragraph))
        self.proofs()
        self.headings()

    def display(self, math: nodes.math_block) -> None:
        if math.get("label") or math.get("nowrap"):
            return
        text = math.astext().strip()
        math.clear()
        math += nodes.Text(rf"\[{text}\]")
        math["nowrap"] = True
        name = take_name(math)
        for number in TAG.findall(text):
            self.note("Equation", number, math, name)

    def box(self, quote: nodes.block_quote) -> None:
        paragraph = quote.children[0] if quote.children else None
        if not isinstance(paragraph, nodes.paragraph):
            return
        lead = first_inline(paragraph)
        if not isinstance(lead, nodes.strong):
            return
        label = lead.astext().rstrip(". ")
        m = LABEL.match(label)
        word = m[1] if m else label
        if m is None and word not in c.REMARKS:
            return
        box = nodes.admonition("", classes=list(STYLES.get(word, NUMBERED_STYLE)))
        box.source, box.line = quote.source, quote.line
        name = take_name(quote)
        if m:
            self.note(m[1], m[2], box, name)
        paragraph.remove(lead)
        rest = first_inline(paragraph)
        if isinstance(rest, nodes.Text):
            paragraph.replace(rest, nodes.Text(rest.astext().lstrip()))
        box += nodes.title("", "", *lead.children)
        if not paragraph.astext().strip():
            quote.remove(paragraph)
        box += quote.children
        quote.replace_self(box)

    def proofs(self) -> None:
        """A proof becomes a box that can be folded; it stands open at first."""
        for paragraph in list(self.document.findall(nodes.paragraph)):
            lead = first_inline(paragraph)
            if not (isinstance(lead, nodes.emphasis) and PROOF.match(lead.astext())):
                continue
            siblings = paragraph.parent.children
            start = end = siblings.index(paragraph)
            while "∎" not in siblings[end].astext():
                end += 1
                if end == len(siblings) or isinstance(siblings[end], nodes.section):
                    break
            else:
                title = lead.astext().rstrip(".")
                opening = f'<details class="proof" open><summary>{title}</summary>'
                paragraph.remove(lead)
                siblings.insert(end + 1, nodes.raw("", "</details>", format="html"))
                siblings.insert(start, nodes.raw("", opening, format="html"))

    def headings(self) -> None:
        """Sections and the chapter itself can be mentioned too."""
        for section in self.document.findall(nodes.section):
            title = section.next_node(nodes.title)
            if title is None:
                continue
            if m := SECTION.match(title.astext()):
                self.note("Section", m[1], section, "")
            elif (m := CHAPTER.match(title.astext())) and section["ids"]:
                targets(self.env)["Chapter", m[1]] = self.env.docname, ""


def address(app: Sphinx, docname: str, found: tuple[str, str]) -> str:
    """Where a page finds a target."""
    target, ident = found
    uri = "" if target == docname else app.builder.get_relative_uri(docname, target)
    return uri + (f"#{ident}" if ident else "")


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """An equation's name in a docstring leads to the equation."""
    known = targets(app.env)
    for literal in list(doctree.findall(nodes.literal)):
        found = known.get(("Name", literal.astext()))
        if found:
            link = nodes.reference("", "", internal=True)
            link["refuri"] = address(app, docname, found)
            literal.replace_self(link)
            link += literal


def link_mentions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Step 4, once every page has been read."""
    known = targets(app.env)
    own = next(
        (n for (k, n), t in known.items() if k == "Chapter" and t[0] == docname),
        "",
    )
    skip = (
        nodes.reference,
        nodes.literal,
        nodes.literal_block,
        nodes.math,
        nodes.math_block,
        nodes.title,
        nodes.raw,
    )
    for text in list(doctree.findall(nodes.Text)):
        parent = up = text.parent
        while up is not None and not isinstance(up, skip):
            up = up.parent
        if up is not None:
            continue
        if isinstance(parent, nodes.strong) and LABEL.match(parent.astext()):
            continue
        raw, out, done = text.astext(), [], 0
        for m in c.mentions(raw):
            if m.kind == "name":
                logger.warning(
                    "%s is still a name: run `make renumber`",
                    m.number,
                    location=(docname, parent.line),
                )
                continue
            found = known.get((c.FAMILIES[m.kind], m.number))
            if found is None:
                chapter = m.number.partition(".")[0]
                elsewhere = m.kind == "Section" and ("Chapter", chapter) not in known
                if (m.strict and not elsewhere) or chapter == own:
                    logger.warning(
                        "%s %s is mentioned but not defined",
                        m.kind,
                        m.number,
                        location=(docname, parent.line),
                    )
                continue
            reference = nodes.reference("", "", internal=True)
            reference["refuri"] = address(app, docname, found)
            if not reference["refuri"]:  # a chapter that mentions itself
                continue
            start, end = m.shown
            reference += nodes.inline("", raw[start:end], classes=["std", "std-ref"])
            out += [nodes.Text(raw[done:start]), reference]
            done = end
        if out:
            out.append(nodes.Text(raw[done:]))
            parent.replace(text, [x for x in out if x.astext()])


# Step 7.  Icons in the header are not for everyone: these say in words what they do.


def add_ways_to_run(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.name != "html" or not c.CHAPTER_FILE.fullmatch(docname):
        return
    title = doctree.next_node(nodes.title)
    if title is None:
        return
    file = f"{docname}.ipynb"
    colab = repository.home(Path(app.srcdir).parent).colab(file)
    links = (
        f'<p class="ways-to-run"><a href="{colab}">Open in Colab</a>'
        f'<a href="_sources/{file}" download>Download the notebook</a></p>'
    )
    title.parent.insert(
        title.parent.index(title) + 1, nodes.raw("", links, format="html")
    )


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    env.portable_targets = {k: v for k, v in targets(env).items() if v[0] != docname}


def merge(
    app: Sphinx,
    env: BuildEnvironment,
    docnames: set[str],
    other: BuildEnvironment,
) -> None:
    targets(env).update({k: v for k, v in targets(other).items() if v[0] in docnames})


# Step 5.  The page is `references`.


def make_references(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "references":
        source[0] = references.page(Path(app.srcdir).parent)


def name_references(app: Sphinx, doctree: nodes.document) -> None:
    """Let links of the form ``references.md#key`` find their entries."""
    if app.env.docname == "references":
        slugs = app.env.metadata["references"].setdefault("myst_slugs", {})
        for key in references.entries(Path(app.srcdir).parent):
            if f'id="{key}"' in "".join(x.astext() for x in doctree.findall(nodes.raw)):
                slugs[key] = (0, key, key)


# Step 6.


MATHJAX = (
    "tex-chtml.js",
    "input/tex/extensions/",
    "output/chtml/fonts/woff-v2/",
)


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    built.copy_files(
        "sphinx-mathjax-offline", "/static/mathjax/", MATHJAX, static / "mathjax"
    )
    Path(app.outdir, ".nojekyll").touch()


def setup(app: Sphinx) -> dict[str, object]:
    app.add_transform(Portable)
    app.connect("source-read", make_references)
    app.connect("doctree-read", name_references)
    app.connect("doctree-resolved", link_mentions)
    app.connect("doctree-resolved", link_names)
    app.connect("doctree-resolved", add_ways_to_run)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("build-finished", finish)
    return {
        "version": "2",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
