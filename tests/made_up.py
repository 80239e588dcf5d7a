"""A made-up book of small chapters, to try the tools on."""

from __future__ import annotations

import base64
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import conventions as c
from tools import references, repository, rules, stamps

HIDDEN = {"cellView": "form", "jupyter": {"source_hidden": True}}
SETUP_METADATA = HIDDEN | {
    "tags": ["hide-input", "setup"],
    "mystnb": {"code_prompt_show": "Show the setup", "code_prompt_hide": "Hide it"},
}
CHECK_METADATA = HIDDEN | {
    "tags": ["hide-input"],
    "mystnb": {"code_prompt_show": "Show the check", "code_prompt_hide": "Hide it"},
}
SOLUTION_METADATA = HIDDEN | {
    "tags": ["hide-cell", "solution"],
    "mystnb": {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide it"},
}
ALT = "A white square, which stands for any figure that a chapter may show its readers."


def white_square() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 40, 40, 8, 0, 0, 0, 0)
    rows = (b"\0" + b"\xff" * 40) * 40
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()


def chapter(path: Path, home: repository.Home, *, extra: str = "", code: str = "1 + 1"):
    """A chapter that obeys every rule; `extra` is one more cell of Markdown."""
    n, stem = c.chapter_of(path), path.stem
    slug = stem[3:]
    cells = [
        new_markdown_cell(
            f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({home.colab(path.name)})",
            metadata={"tags": ["remove-cell"]},
        ),
        new_markdown_cell(
            f"# {n}. A made-up chapter\n\n**Objectives.** See how it looks.\n\n"
            "**Prerequisites.** None.\n\n**Time and cost.** No time at all.\n\n"
            + "Some words, to fill the page with prose as a chapter does. "
            * 12
        ),
        new_code_cell(rules.INSTALL.format(home.package), metadata=SETUP_METADATA),
        new_markdown_cell(
            f"## {n}.1 What changed since the last model\n\n"
            "The evidence is bounded,\n\n"
            f"<!-- eq-{slug}-bound -->\n$$\n\\begin{{aligned}}\n\\log p(x)\n"
            "&= \\mathcal{L} + \\mathrm{KL} && \\text{(an identity)} \\\\\n"
            f"&\\ge \\mathcal{{L}}. && \\text{{(by ({n}.2))}}\n\\end{{aligned}}\n"
            f"\\tag{{{n}.1}}\n$$\n\n"
            f"as ({n}.1) says; see [Kingma and Welling (2014)]"
            "(references.md#kingma2014).\n\n"
            f"> **Theorem {n}.1.** For a concave $f$,\n>\n"
            f"> <!-- eq-{slug}-jensen -->\n"
            f"> $$f(\\mathbb{{E}}[X]) \\ge \\mathbb{{E}}[f(X)]. \\tag{{{n}.2}}$$\n"
            ">\n> Equality holds for an affine $f$.\n\n"
            f"Theorem {n}.1 with its equation ({n}.2) gives ({n}.1).\n\n"
            "> **Note.** A remark.\n\n"
            "| term | meaning |\n|---|---|\n| $\\mathcal{L}$ | the bound |\n\n"
            f"**Table {n}.1.** A symbol, used in Section {n}.1."
        ),
        new_code_cell(
            f"{code}  # the number of Exercise {n}.1",
            metadata={"mystnb": {"image": {"alt": ALT}}},
            execution_count=2,
            outputs=[
                new_output(
                    "display_data",
                    {"image/png": white_square(), "text/plain": "<Figure>"},
                )
            ],
        ),
        new_markdown_cell(f"**Figure {n}.1.** A white square."),
        new_markdown_cell(f"## {n}.2 Pitfalls\n\nSee Figure {n}.1.\n\n" + extra),
        new_markdown_cell(f"## {n}.3 Take-aways\n\nTable {n}.1 says it."),
        new_markdown_cell(
            f"## {n}.4 Exercises\n\n> **Exercise {n}.1.** (★.) Prove ({n}.1).\n\n"
            "<details>\n<summary>Solution</summary>\n\nSubtract.\n\n</details>\n\n"
            f"> **Exercise {n}.2.** (★, code, checked.) Write `one()`."
        ),
        new_code_cell(
            'def one():\n    raise NotImplementedError("your code here")',
            metadata={"tags": ["exercise"]},
            execution_count=3,
        ),
        new_code_cell(
            "from aevb.exercises import FunctionCheck\n\n"
            "check_one = FunctionCheck(\n    lambda: 1, inputs=[()], "
            'wrong=[(lambda: 2, "This is two.")]\n)\ncheck_one(one)',
            metadata=CHECK_METADATA,
            execution_count=4,
        ),
        new_code_cell(
            f"# @title Solution of Exercise {n}.2\ndef one():\n    return 1\n\n\n"
            "assert check_one(one)",
            metadata=SOLUTION_METADATA,
            execution_count=5,
        ),
        new_markdown_cell(f"## {n}.5 References\n\nNone but those above."),
    ]
    cells[2].execution_count = 1
    for k, cell in enumerate(cells):
        cell["id"] = f"c{n:02}-{k:03}"
    notebook = new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            },
            "language_info": {"name": "python"},
        },
    )
    save(notebook, path)


def save(notebook: nbformat.NotebookNode, path: Path, *, stamped: bool = True) -> None:
    if stamped:
        notebook.metadata["aevb"] = {
            "code_sha256": stamps.notebook_sha256(notebook),
            "dataset": "MNIST",
            "fingerprint": {"elbo": 1.0},
        }
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def text(path: Path) -> str:
    """The sources of all cells."""
    return "\n\n".join(cell.source for cell in read(path).cells)


def write_toc(root: Path) -> None:
    stems = [p.stem for p in c.chapters(root)]
    pages = sorted(p.stem for p in (root / "book").glob("*.md") if p.stem != "index")
    files = "".join(f"      - file: {x}\n" for x in [*stems, *pages])
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nparts:\n  - caption: All\n    chapters:\n"
        + files
    )


def book(root: Path, *names: str) -> Path:
    """A book with the configuration, extension and bibliography of the real one."""
    (root / "book").mkdir(parents=True)
    config = (c.ROOT / "_config.yml").read_text(encoding="utf-8")
    extension = c.ROOT / "book" / "_ext"
    config = config.replace(": book/_ext", f": {extension}")
    (root / "_config.yml").write_text(config, encoding="utf-8")
    shutil.copytree(c.ROOT / "book" / "_site", root / "book" / "_site")
    shutil.copy(c.ROOT / "book" / "references.bib", root / "book")
    home = repository.home(root)
    for name in names:
        chapter(root / "book" / f"{name}.ipynb", home)
    (root / "book" / "index.md").write_text("# Welcome\n\nRead it.\n")
    (root / "book" / "references.md").write_text(references.page(root))
    (root / "README.md").write_text(f"The book: {home.url}\n")
    write_toc(root)
    return root


def repository_of_this(folder: Path) -> Path:
    """A Git repository of this folder as it is, whatever is committed here."""
    copy = folder / "copy.git"

    def git(*arguments: str) -> None:
        command = ["git", f"--git-dir={copy}", f"--work-tree={c.ROOT}", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    git("init", f"--initial-branch={repository.home().branch}")
    git("add", "--all", ".")
    author = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    git(*author, "commit", "--message=x", "--no-gpg-sign")
    return copy


def replace_in_cell(path: Path, index: int, old: str, new: str) -> None:
    """Change one cell of a chapter."""
    notebook = read(path)
    assert old in notebook.cells[index].source
    notebook.cells[index].source = notebook.cells[index].source.replace(old, new)
    save(notebook, path)
