"""Chapters as other programs show them, without the book's extension.

GitHub's view of a notebook is nbconvert.  JupyterLab and VS Code read Markdown with
formulas between dollars; VS Code's own packages are used where npm has put them into
`_build/node_modules`.
"""

import json
import os
import re
import shutil
import subprocess

import made_up
import nbformat
import pytest
from bs4 import BeautifulSoup, Comment
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbconvert.filters import markdown2html

from tools import conventions as c

MODULES = c.ROOT / "_build" / "node_modules"
VS_CODE = """
const md = require("markdown-it")({html: true});
md.use(require("@vscode/markdown-it-katex").default);
const texts = JSON.parse(require("fs").readFileSync(0, "utf-8"));
console.log(JSON.stringify(texts.map(text => md.render(text))));
"""
LEFTOVERS = {
    "a directive": r":::|\{[a-z][\w:-]*\}|\{[#.%]",
    "a target": r"^\([\w:-]+\)=",
    "a footnote": r"\[\^",
    "an alert": r"\[![A-Z]+\]",
    "a comment": r"<!--|-->",
    "a tag": r"</?[a-z]+>",
    "a dollar": r"\$",
    "TeX": r"\\[A-Za-z]{2,}",
    "emphasis": r"\*\*|(?<=\s)\*(?=\S)",
    "a backtick": r"`",
    "a link": r"\]\(|\]\[",
    "a heading": r"^#+ ",
    "a table": r"^\|",
}


def texts(path):
    """What a chapter has in Markdown: its cells, and what code displays."""
    for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "markdown":
            yield i, cell.source
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                yield i, output.data["text/markdown"]


def visible(page):
    """The text that a reader sees, less code."""
    soup = BeautifulSoup(page, "html.parser")
    for hidden in [*soup(["code", "pre"]), *soup(string=lambda x: type(x) is Comment)]:
        hidden.extract()
    return soup.get_text()


def as_github(text):
    """The text without its formulas, the formulas, and the rows of tables."""
    page = markdown2html(text)
    shown = visible(page)
    pairs = r"(?s)\$\$(.+?)\$\$|\$([^$]+)\$"  # as MathJax looks for them
    formulas = [a or b for a, b in re.findall(pairs, shown)]
    return re.sub(pairs, "", shown), formulas, page.count("<tr>")


def as_jupyterlab(text):
    """The same, by the rules of CommonMark with formulas between dollars."""
    formulas = []
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.use(
        dollarmath_plugin,
        allow_labels=False,
        allow_space=False,
        double_inline=True,
        renderer=lambda tex, _: formulas.append(tex) or "",
    )
    page = parser.render(text)
    return visible(page), formulas, page.count("<tr>")


PROGRAMS = {"GitHub": as_github, "JupyterLab": as_jupyterlab}


def complaints(text, program):
    """What a reader of the program would take for an error."""
    shown, formulas, rows = PROGRAMS[program](text)
    for what, rx in LEFTOVERS.items():
        if m := re.search(rx, shown, re.M):
            around = shown[max(m.start() - 30, 0) : m.end() + 30]
            yield f"{what} is left over in {around!r}"
    if differing := unlike(formulas, c.formulas(text)):
        yield f"another formula: {differing}"
    lines = re.findall(r"^\|.*$", c.without_code(text), re.M)
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    if rows != len(lines) - sum(bool(re.fullmatch(r"[|:\s-]+", x)) for x in lines):
        yield f"{rows} rows of tables from {len(lines)} lines"
    for k in range(1, len(lines)):
        if f"{lines[k - 1]}\n{lines[k]}" in text and cells[k] != cells[k - 1]:
            yield f"{cells[k] - 1} columns below {cells[k - 1] - 1}: {lines[k]}"


def unlike(found, written):
    """The first formula that is not as it was written."""
    found, written = ([" ".join(x.split()) for x in both] for both in (found, written))
    for got, want in zip(found, written, strict=False):
        if got != want:
            return f"{got!r} where {want!r} is written"
    if len(found) != len(written):
        return f"{len(found)} formulas where {len(written)} are written"
    return None


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("path", c.chapters(), ids=lambda p: p.stem)
def test_chapter(path, program):
    found = [f"cell {i}: {x}" for i, t in texts(path) for x in complaints(t, program)]
    if found:
        pytest.fail("\n".join(f"{path.name}, {x}" for x in found), pytrace=False)


FAULTS = {
    "Equation {eq}`x`.": "a directive",
    ":::{note}\nText.\n:::": "a directive",
    "![A picture](x.png){.only-light}": "a directive",
    "## Title {#here}": "a directive",
    "(here)=\n\n## Title": "a target",
    "Text.[^1]\n\n[^1]: More of it.": "a footnote",
    "> [!NOTE]\n> Text.": "an alert",
    "<details>\n<summary>A</summary>\n**Text** $x$.\n</details>": "another formula",
    "It costs $ 5 or 6.": "a dollar",
    "By \\tag{2.1} it holds.": "TeX",
    "A ** bold** word.": "emphasis",
    "One ` backtick.": "a backtick",
    "See [the paper] (x).\n\nSee [it][gone].": "a link",
    "#Title\n\n####### Title": "a heading",
    "| a | b |\n| 1 | 2 |": "a table",
    "Text\n\n| a | b |\n|---|---|\n| $x|y$ | 2 |": "3 columns below 2",
    "A formula $x and no end.": "a dollar",
    "> $$\n> x\n> $$": "another formula",
    "<!- no comment -->": "a comment",
}


@pytest.mark.parametrize("text, expected", FAULTS.items())
def test_a_fault_is_noticed(text, expected):
    found = [x for program in PROGRAMS for x in complaints(text, program)]
    assert expected in " | ".join(found)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_good_chapter(tmp_path, program):
    root = made_up.book(tmp_path / "a", "02-first")
    for _, text in texts(root / "book" / "02-first.ipynb"):
        assert not list(complaints(text, program))


def as_vs_code(many):
    """The pages of VS Code, or a skip."""
    if not (shutil.which("node") and (MODULES / "@vscode").exists()):
        pytest.skip("no packages of VS Code: see .ci/run")
    done = subprocess.run(
        ["node", "-e", VS_CODE],
        env=os.environ | {"NODE_PATH": str(MODULES)},
        input=json.dumps(many),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_vs_code():
    """KaTeX takes every formula, and takes it for the same formula."""
    where, many = zip(
        *((f"{p.name}, cell {i}", t) for p in c.chapters() for i, t in texts(p)),
        strict=True,
    )
    found = []
    for place, text, page in zip(where, many, as_vs_code(many), strict=True):
        soup = BeautifulSoup(page, "html.parser")
        found += [f"{place}: {x['title']}" for x in soup(class_="katex-error")]
        formulas = [x.get_text() for x in soup("annotation")]
        if differing := unlike(formulas, c.formulas(text)):
            found.append(f"{place}: another formula: {differing}")
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_vs_code_refuses():
    for text in (r"$\nonsense$", r"$$\frac{1}$$"):
        assert "katex-error" in as_vs_code([text])[0]
