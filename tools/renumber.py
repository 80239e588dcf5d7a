"""Number the book: sections, equations, figures, tables, boxes and exercises.

    python -m tools.renumber            # make renumber
    python -m tools.renumber --check    # change nothing, tell what would change

Everything is numbered in the order of the text, and every mention follows: "(2.3)",
"Figure 2.1", "Exercises 2.1 and 2.2", "Chapter 7", in prose, in the words of a formula,
in comments of code, in alternative texts, in every chapter and every page.  A mention
by name, "(eq-elbo)" or "(fig-bound)", becomes the number.  A chapter is inserted by
renaming the files behind it (``git mv book/07-... book/08-...``): the links, the table
of contents and the numbers follow.  Nothing is written if a mention is ambiguous.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from tools import conventions as c

Edit = tuple[int, int, str]


@dataclass
class Chapter:
    path: Path
    notebook: nbformat.NotebookNode
    number: str
    old_number: str = ""
    definitions: list[tuple[c.Definition, str]] = field(default_factory=list)


@dataclass
class Target:
    """Where an old number or a name leads."""

    chapter: Chapter
    kind: str
    number: str


class Ambiguous(Exception):
    """Mentions that cannot be resolved; each of the arguments tells of one."""


def apply(text: str, edits: list[Edit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


class Book:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        self.by_number: dict[tuple[str, str], list[Target]] = defaultdict(list)
        self.by_name: dict[str, list[Target]] = defaultdict(list)
        self.chapters = [self.read(path) for path in c.chapters(root)]
        self.slugs = {p.stem[3:]: p.stem for p in c.chapters(root)}

    def read(self, path: Path) -> Chapter:
        notebook = nbformat.read(path, as_version=4)
        chapter = Chapter(path, notebook, str(c.chapter_of(path)))
        counters: dict[str, int] = defaultdict(int)
        for i, cell in enumerate(notebook.cells):
            if cell.cell_type != "markdown":
                continue
            title = c.CHAPTER_TITLE.search(c.without_code(cell.source))
            if title and not chapter.old_number:
                chapter.old_number = title["num"]
                self.by_number["Chapter", title["num"]].append(
                    Target(chapter, "Chapter", chapter.number)
                )
            for d in c.definitions(cell.source, i):
                counters[d.family] += 1
                number = f"{chapter.number}.{counters[d.family]}"
                chapter.definitions.append((d, number))
                target = Target(chapter, d.kind, number)
                self.by_number[d.family, d.number].append(target)
                if d.name:
                    self.by_name[d.name].append(target)
        return chapter

    def resolve(self, mention: c.Mention, chapter: Chapter | None) -> Target | None:
        """The one thing that is meant: one's own chapter comes first."""
        if mention.kind == "name":
            found = self.by_name.get(mention.number, [])
        else:
            key = c.FAMILIES[mention.kind], mention.number
            found = self.by_number.get(key, [])
        own = [t for t in found if t.chapter is chapter]
        found = own or found
        if len(found) > 1:
            places = " and ".join(t.chapter.path.name for t in found)
            raise Ambiguous(
                f"{mention.kind} {mention.number} stands twice, in {places}: "
                "mention it by its name, or give the new one the number '?'"
            )
        return found[0] if found else None

    def mention_edits(
        self, text: str, plain: str, chapter: Chapter | None, place: str
    ) -> list[Edit]:
        edits = []
        for m in c.mentions(plain):
            try:
                target = self.resolve(m, chapter)
            except Ambiguous as problem:
                self.problems.append(f"{place}: {problem}")
                continue
            if target is None:
                if m.kind == "name":
                    self.problems.append(f"{place}: nothing has the name {m.number}")
            elif m.kind != "name":
                edits.append((m.start, m.end, target.number))
            elif target.kind == "Equation":
                edits.append((m.start, m.end, target.number))
            else:  # the parentheses go too
                shown = f"{target.kind} {target.number}"
                edits.append((m.start - 1, m.end + 1, shown))
        return edits

    def prose(self, text: str, chapter: Chapter | None, place: str) -> list[Edit]:
        """The mentions of a Markdown text, definitions left out."""
        plain = list(c.masked(text))
        for d in c.definitions(text):
            plain[d.start : d.end] = "\0" * (d.end - d.start)
        return self.mention_edits(text, "".join(plain), chapter, place)

    def code(self, text: str, chapter: Chapter, place: str) -> list[Edit]:
        """The mentions in the comments of a code cell."""
        plain = ["\0"] * len(text)
        for start, end in c.comments(text):
            plain[start:end] = text[start:end]
        return self.mention_edits(text, "".join(plain), chapter, place)

    def files(self, text: str) -> str:
        """Names of chapters' files, after a chapter was renamed: the words decide."""

        def current(m: re.Match[str]) -> str:
            return self.slugs.get(m[2], m[0])

        return re.sub(r"(?<![\w-])" + c.CHAPTER_FILE.pattern, current, text)

    def renumber_chapter(self, chapter: Chapter) -> None:
        edits: dict[int, list[Edit]] = defaultdict(list)
        for d, number in chapter.definitions:
            new = number if d.number else f"\\tag{{{number}}}\n"
            cell = chapter.notebook.cells[d.cell]
            if not d.number and "\n" not in cell.source[: d.start].rpartition("$$")[2]:
                new = f"\\tag{{{number}}} "
            edits[d.cell].append((d.start, d.end, new))
        titled = False
        for i, cell in enumerate(chapter.notebook.cells):
            place = f"{chapter.path.name}, cell {i}"
            if cell.cell_type == "markdown":
                edits[i] += self.prose(cell.source, chapter, place)
                title = c.CHAPTER_TITLE.search(c.without_code(cell.source))
                if title and not titled:
                    titled = True
                    edits[i].append((*title.span("num"), chapter.number))
            elif cell.cell_type == "code":
                edits[i] += self.code(cell.source, chapter, place)
                image = cell.metadata.get("mystnb", {}).get("image", {})
                if "alt" in image:
                    alt = image["alt"]
                    found = self.mention_edits(alt, alt, chapter, f"{place}, alt")
                    image["alt"] = apply(alt, found)
            cell.source = self.files(apply(cell.source, edits[i]))
        stamp = chapter.notebook.metadata.get("aevb")
        if stamp and "chapter" in stamp:
            stamp["chapter"] = chapter.path.stem

    def renumber(self) -> dict[Path, str]:
        """The new text of every file that changes."""
        new: dict[Path, str] = {}
        for chapter in self.chapters:
            self.renumber_chapter(chapter)
            new[chapter.path] = nbformat.writes(chapter.notebook) + "\n"
        for page in c.pages(self.root):
            text = page.read_text(encoding="utf-8")
            text = apply(text, self.prose(text, None, page.name))
            new[page] = self.files(text)
        toc = self.root / "_toc.yml"
        if toc.exists():
            new[toc] = self.files(toc.read_text(encoding="utf-8"))
        if self.problems:
            raise Ambiguous(*self.problems)
        return {
            path: text
            for path, text in new.items()
            if text != path.read_text(encoding="utf-8")
        }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        changed = Book(options.root).renumber()
    except Ambiguous as problem:
        print(*problem.args, sep="\n", file=sys.stderr)
        return 1
    for path, text in changed.items():
        if not options.check:
            path.write_text(text, encoding="utf-8")
        verb = "would be" if options.check else "is"
        print(f"{path.relative_to(options.root)} {verb} renumbered")
    if options.check and changed:
        print("Run `make renumber`.")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
