"""`make renumber`: numbers in the order of the text, and every mention follows."""

import made_up
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import conventions as c
from tools import renumber


def write(root, name, *cells):
    """A chapter from texts; a text that starts with "code:" is a code cell."""
    made = [
        new_code_cell(x.removeprefix("code:"))
        if x.startswith("code:")
        else new_markdown_cell(x)
        for x in cells
    ]
    for k, cell in enumerate(made):
        cell["id"] = f"x{k}"
    (root / "book").mkdir(exist_ok=True)
    made_up.save(new_notebook(cells=made), root / "book" / f"{name}.ipynb")


def run(root, *options):
    return renumber.main([*options, "--root", str(root)])


def texts(root, name):
    return made_up.text(root / "book" / f"{name}.ipynb")


EQUATION = "<!-- eq-{0} -->\n$$\nx = {0} \\tag{{{1}}}\n$$"


def test_a_new_equation_moves_the_others(tmp_path):
    write(
        tmp_path,
        "02-first",
        "# 2. First\n\n## 2.1 One",
        EQUATION.format("new", "?"),
        EQUATION.format("old", "2.1"),
        "The new one is (eq-new), the old one (2.1); equations (2.1) and (eq-new).",
    )
    write(tmp_path, "07-second", "# 7. Second\n\nAs (2.1) and equation (2.1) say.")
    assert run(tmp_path) == 0
    first = texts(tmp_path, "02-first")
    assert "x = new \\tag{2.1}" in first
    assert "x = old \\tag{2.2}" in first
    assert (
        "The new one is (2.1), the old one (2.2); equations (2.2) and (2.1)." in first
    )
    assert "As (2.2) and equation (2.2) say." in texts(tmp_path, "07-second")


def test_twice_is_once(tmp_path):
    made_up.book(tmp_path / "a", "02-first", "07-second")
    path = tmp_path / "a" / "book" / "07-second.ipynb"
    new = f"(eq-new) is new.\n\n{EQUATION.format('new', '?')}"
    made_up.replace_in_cell(path, 1, "**Objectives.**", new + "\n\n**Objectives.**")
    assert run(tmp_path / "a", "--check") == 1
    assert run(tmp_path / "a") == 0
    once = path.read_bytes()
    assert run(tmp_path / "a", "--check") == 0
    assert run(tmp_path / "a") == 0
    assert path.read_bytes() == once
    assert "(7.1) is new." in texts(tmp_path / "a", "07-second")


def test_a_book_in_order_stays_as_it_is(tmp_path):
    root = made_up.book(tmp_path / "a", "02-first", "07-second")
    before = {p: p.read_bytes() for p in (root / "book").iterdir() if p.is_file()}
    assert run(root) == 0
    assert {p: p.read_bytes() for p in before} == before


def test_every_kind_is_numbered_and_followed(tmp_path):
    write(
        tmp_path,
        "03-all",
        "# 9. All",
        "## 9.4 A section",
        "> **Definition 9.2.** Words.\n\n> **Theorem 9.7 (with a name).** Words.",
        "**Figure 9.3.** A caption.\n\n**Table 9.3.** Another.",
        "> **Algorithm 9.2.** Steps.",
        "> **Exercise 9.5.** Do.\n\n> **Exercise 9.6.** Do.",
        "code:# @title Solution of Exercise 9.6\nx = 9.5  # see Figure 9.3",
        "Definition 9.2, Theorem 9.7, Figure 9.3, Table 9.3, Algorithm 9.2, "
        "Exercises 9.5 and 9.6, Section 9.4, Chapter 9.",
        "<details>\n<summary>Solution of Exercise 9.6</summary>\n\nx\n\n</details>",
    )
    assert run(tmp_path) == 0
    found = texts(tmp_path, "03-all")
    assert (
        "Definition 3.1, Theorem 3.2, Figure 3.1, Table 3.1, Algorithm 3.1, "
        "Exercises 3.1 and 3.2, Section 3.1, Chapter 3." in found
    )
    assert "# 3. All" in found
    assert "## 3.1 A section" in found
    assert "> **Theorem 3.2 (with a name).**" in found
    assert "**Figure 3.1.** A caption." in found
    assert "# @title Solution of Exercise 3.2\nx = 9.5  # see Figure 3.1" in found
    assert "<summary>Solution of Exercise 3.2</summary>" in found


def test_what_is_no_mention_stays(tmp_path):
    prose = (
        "`(2.1)` and `Figure 2.1` in code, $f(2.1)$ in a formula, version 2.1, "
        "a value of (0.5), (2.15), [a link](https://example.org/(2.1)/x).\n\n"
        "```\nFigure 2.1\n```\n\n$$\ny = (2.1)\n$$"
    )
    write(
        tmp_path,
        "02-first",
        "# 2. First",
        EQUATION.format("new", "?"),
        EQUATION.format("old", "2.1"),
        "**Figure 2.2.** A.",
        prose,
        "code:f(2.1)\nprint('(2.1)')",
    )
    assert run(tmp_path) == 0
    found = texts(tmp_path, "02-first")
    assert prose in found
    assert "f(2.1)\nprint('(2.1)')" in found


def test_the_words_of_a_formula_follow(tmp_path):
    write(
        tmp_path,
        "02-first",
        "# 2. First",
        EQUATION.format("new", "?"),
        EQUATION.format("old", "2.1"),
        "$$\n\\begin{aligned}\na &= b(2.1) && \\text{(by (2.1))} \\\\\n"
        "&= c && \\text{by (eq-new)}\n\\end{aligned}\n$$",
    )
    assert run(tmp_path) == 0
    found = texts(tmp_path, "02-first")
    assert "a &= b(2.1) && \\text{(by (2.2))}" in found
    assert "\\text{by (2.1)}" in found


def test_a_named_display_gets_its_tag(tmp_path):
    write(
        tmp_path,
        "02-first",
        "# 2. First",
        "<!-- eq-one -->\n$$\nx = 1\n$$",
        "> **Lemma ?.** For all,\n>\n> <!-- eq-two -->\n> $$ y = 2 $$\n\n(eq-two)",
    )
    assert run(tmp_path) == 0
    found = texts(tmp_path, "02-first")
    assert "$$\nx = 1\n\\tag{2.1}\n$$" in found
    assert "> $$ y = 2 \\tag{2.2} $$" in found
    assert "> **Lemma 2.1.** For all," in found
    assert found.endswith("(2.2)")


def test_names_of_other_things(tmp_path):
    write(
        tmp_path,
        "02-first",
        "# 2. First",
        "<!-- fig-bound -->\n**Figure ?.** The bound.",
        "> <!-- thm-main -->\n> **Theorem 2.?.** Words.",
        "(fig-bound) and (thm-main); (fig-bound)",
    )
    assert run(tmp_path) == 0
    assert "Figure 2.1 and Theorem 2.1; Figure 2.1" in texts(tmp_path, "02-first")


def test_a_chapter_is_inserted(tmp_path):
    root = made_up.book(tmp_path / "a", "02-first", "07-second", "08-third")
    book = root / "book"
    (book / "notation.md").write_text(
        "# Notation\n\nSee (7.1), Theorem 8.1 and [Chapter 8](08-third.ipynb).\n"
    )
    link = "See [Chapter 7](07-second.ipynb), Chapter 8, equation (8.2), Figure 7.1"
    made_up.replace_in_cell(book / "02-first.ipynb", 6, "See Figure 2.1", link)
    (book / "08-third.ipynb").rename(book / "09-third.ipynb")
    (book / "07-second.ipynb").rename(book / "08-second.ipynb")
    assert run(root) == 0
    first = texts(root, "02-first")
    assert (
        "See [Chapter 8](08-second.ipynb), Chapter 9, equation (9.2), Figure 8.1"
        in first
    )
    assert "# 9. A made-up chapter" in texts(root, "09-third")
    assert "book/09-third.ipynb" in texts(root, "09-third")  # the badge
    assert (book / "notation.md").read_text() == (
        "# Notation\n\nSee (8.1), Theorem 9.1 and [Chapter 9](09-third.ipynb).\n"
    )
    assert "09-third" in (root / "_toc.yml").read_text()
    made_up.chapter(book / "07-new.ipynb", made_up.repository.home(root))
    assert run(root, "--check") == 0
    for path in c.chapters(root):  # the code is the same: the outputs still belong
        notebook = made_up.read(path)
        stamp = notebook.metadata["aevb"]["code_sha256"]
        assert stamp == made_up.stamps.notebook_sha256(notebook)


@pytest.mark.parametrize(
    "mention, message",
    [
        ("(2.1)", "Equation 2.1 stands twice, in 02-first.ipynb and 02-first.ipynb"),
        ("(eq-three)", "nothing has the name eq-three"),
    ],
)
def test_nothing_is_written_in_doubt(tmp_path, capsys, mention, message):
    write(
        tmp_path,
        "02-first",
        "# 2. First",
        EQUATION.format("one", "2.1"),
        EQUATION.format("two", "2.1"),
        mention,
    )
    before = texts(tmp_path, "02-first")
    assert run(tmp_path) == 1
    assert message in capsys.readouterr().err
    assert texts(tmp_path, "02-first") == before


def test_a_mention_prefers_its_own_chapter(tmp_path):
    for name in ("02-first", "03-copy"):
        write(tmp_path, name, "# 2. X", EQUATION.format(name[3:], "2.1"), "As (2.1).")
    assert run(tmp_path) == 0
    assert "As (2.1)." in texts(tmp_path, "02-first")
    assert "As (3.1)." in texts(tmp_path, "03-copy")


def test_this_book_is_in_order(capsys):
    assert renumber.main(["--check"]) == 0, capsys.readouterr()
