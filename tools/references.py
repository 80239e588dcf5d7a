"""The page of references, made from `book/references.bib`.

    python -m tools.references     # part of make renumber

A chapter cites with a plain link, ``[Dempster (1977)](references.md#dempster1977)``.
The page lists what is cited, each entry under an anchor that is its key.  The site
makes the page afresh; the copy in `book/` is for those who read the repository itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pybtex.database import Entry, Person, parse_file
from pybtex.richtext import Text

from tools import conventions as c

CITATION = re.compile(r"\[([^\]]*)\]\(references\.md#([A-Za-z0-9-]+)\)")
HEAD = """# References

The works that the chapters cite, by first author.
"""


def cited(root: Path = c.ROOT) -> Iterator[tuple[str, str, Path]]:
    """Every citation: key, words of the link, file."""
    for path in c.pages(root):
        for words, key in CITATION.findall(path.read_text(encoding="utf-8")):
            yield key, words, path
    for path in c.chapters(root):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                for words, key in CITATION.findall("".join(cell["source"])):
                    yield key, words, path


def entries(root: Path = c.ROOT) -> dict[str, Entry]:
    return dict(parse_file(str(root / "book" / "references.bib")).entries)


def plain(latex: str) -> str:
    return str(Text.from_latex(latex)).replace("\u00a0", " ")


def name(person: Person) -> str:
    """First names shortened: "D. P. Kingma", "L. van der Maaten"."""
    given = [
        "-".join(f"{part[0]}." for part in word.split("-"))
        for word in map(plain, person.first_names + person.middle_names)
    ]
    family = [plain(x) for x in person.prelast_names + person.last_names]
    return " ".join(given + family + [plain(x) for x in person.lineage_names])


def surnames(entry: Entry) -> list[str]:
    return [
        " ".join(plain(x) for x in p.prelast_names + p.last_names)
        for p in entry.persons["author"]
    ]


def item(key: str, entry: Entry) -> str:
    """One line of the list."""
    f = {k.lower(): plain(v) for k, v in entry.fields.items() if k.lower() != "url"}
    people = [name(p) for p in entry.persons["author"]]
    who = " and ".join([", ".join(people[:-1]), people[-1]]).removeprefix(" and ")
    parts = [f'<a id="{key}"></a>{who} ({f["year"]}).']
    if entry.type == "book":
        parts.append(f"*{f['title']}.*")
        parts.append(f"{f['publisher']}.")
    else:
        parts.append(f"{f['title']}.")
        if "journal" in f:
            where = f"*{f['journal']}*"
            if "volume" in f:
                where += f" {f['volume']}"
                where += f"({f['number']})" if "number" in f else ""
            if "pages" in f:
                where += (", " if "volume" in f else " ") + pages(f["pages"])
            parts.append(where + ".")
        elif "booktitle" in f:
            where = f"In *{f['booktitle']}*"
            where += f", pages {pages(f['pages'])}" if "pages" in f else ""
            parts.append(where + ".")
    if "eprint" in f:
        parts.append(f"[arXiv:{f['eprint']}](https://arxiv.org/abs/{f['eprint']})")
    elif "doi" in f:
        parts.append(f"[doi:{f['doi']}](https://doi.org/{f['doi']})")
    elif "url" in entry.fields:
        url = entry.fields["url"]
        parts.append(f"[{url.split('/')[2].removeprefix('www.')}]({url})")
    return "- " + " ".join(parts)


def pages(text: str) -> str:
    return re.sub(r"-+", "–", text)


def page(root: Path = c.ROOT) -> str:
    """The text of `book/references.md`."""
    keys = {key for key, _, _ in cited(root)}
    known = entries(root)
    listed = sorted(
        (k for k in known if k in keys),
        key=lambda k: (surnames(known[k])[0].lower(), known[k].fields["year"], k),
    )
    return HEAD + "\n" + "\n".join(item(k, known[k]) for k in listed) + "\n"


def main() -> int:
    return c.store_page("references.md", page())


if __name__ == "__main__":
    raise SystemExit(main())
