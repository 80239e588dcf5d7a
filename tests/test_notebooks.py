"""Every chapter keeps every rule, and every rule notices what it is there for."""

import made_up
import pytest

from tools import conventions as c
from tools import rules

CHAPTERS = c.chapters()


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_rule(path, rule):
    complaints = list(rules.RULES[rule](rules.Chapter(path, c.ROOT)))
    if complaints:
        pytest.fail("\n".join(f"{path.name}: {x}" for x in complaints), pytrace=False)


def test_book():
    complaints = list(rules.book_complaints())
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def root(tmp_path):
    return made_up.book(tmp_path / "made-up", "02-first", "07-second")


def complaints(root, rule, stem="07-second"):
    chapter = rules.Chapter(root / "book" / f"{stem}.ipynb", root)
    return " | ".join(rules.RULES[rule](chapter))


def change(root, index, old, new):
    made_up.replace_in_cell(root / "book" / "07-second.ipynb", index, old, new)


def edit(root, function):
    """Change the notebook itself; its stamp follows."""
    path = root / "book" / "07-second.ipynb"
    notebook = made_up.read(path)
    function(notebook)
    made_up.save(notebook, path)


def test_a_good_book_has_no_complaints(root):
    for path in c.chapters(root):
        for name, rule in rules.RULES.items():
            assert not list(rule(rules.Chapter(path, root))), name
    assert not list(rules.book_complaints(root))


@pytest.mark.parametrize(
    "rule, index, old, new, expected",
    [
        ("plain_markdown", 1, "# 7", "(label)=\n\n# 7", "a target"),
        ("plain_markdown", 6, "See", "See {cite:t}`kingma2014`.", "a role"),
        ("plain_markdown", 6, "See", ":::{note}\nx\n:::", "a directive"),
        ("plain_markdown", 6, "See", "```{note}\nx\n```\n", "a directive"),
        ("plain_markdown", 6, "See", r"$\operatorname{x}$", "GitHub refuses"),
        ("plain_markdown", 6, "See", "> $$\n> x\n> $$", "on one line"),
        ("plain_markdown", 8, "</summary>\n\n", "</summary>\n", "</summary>"),
        ("plain_markdown", 8, "\n\n</details>", "\n</details>", "before </details>"),
        ("plain_markdown", 3, "bounded,\n\n", "bounded,\n", "above the display"),
        ("plain_markdown", 3, "\n\nas (7.1)", "\nas (7.1)", "below the display"),
        ("plain_markdown", 3, r"| $\mathcal{L}$", r"| $\|x\|$", "inside a table"),
        ("names", 3, "<!-- eq-second-bound -->\n", "", "has no name"),
        ("names", 3, "eq-second-bound -->\n", "eq-second-bound -->\n\n", "no name"),
        ("names", 3, "eq-second-bound", "fig-second-bound", "name of no equation"),
        ("names", 3, "eq-second-bound", "eq-first-bound", "given in 02-first.ipynb"),
        ("names", 3, "eq-second-bound", "eq-second-jensen", "given twice"),
        ("names", 3, "eq-second-bound", "the bound", "a comment that is no name"),
        ("numbers", 3, r"\tag{7.2}", r"\tag{7.3}", "Equation numbers are 7.1, 7.3"),
        ("numbers", 5, "Figure 7.1", "Figure 7.2", "Figure numbers are 7.2"),
        ("numbers", 1, "# 7.", "# 8.", "the title"),
        ("mentions", 6, "Figure 7.1", "Figure 7.4", "Figure 7.4 is mentioned"),
        ("mentions", 6, "Figure 7.1", "(2.9)", "Equation 2.9 is mentioned"),
        ("mentions", 6, "Figure 7.1", "Chapter 5", "there is no Chapter 5"),
        ("mentions", 6, "Figure 7.1", "Lemma 7.1", "it is a Theorem"),
        ("mentions", 6, "Figure 7.1", "(eq-second-bound)", "still a name"),
        ("no_numbers_in_code", 4, "1 + 1", "'Figure 7.1'", "in a string"),
        ("links", 6, "See", "[x](03-gone.ipynb)", "there is no 03-gone.ipynb"),
        ("links", 6, "See", "[x](references.md#nobody1900)", "no entry"),
        ("links", 6, "See", "[x](#eq-7-1)", "leads nowhere"),
        ("rooms", 1, "Prerequisites", "Needs", "prerequisites"),
        ("rooms", 6, "Pitfalls", "Traps", "pitfalls"),
        ("rooms", 3, "What changed since", "Since", "What changed"),
        ("exercises", 8, "Solution", "Hint", "Exercise 7.1 has no solution"),
        ("exercises", 8, "Solution", "Why", "begins with none of Hint, Proof"),
        ("exercises", 11, "Exercise 7.2", "Exercise 7.3", "7.2 has no solution"),
        ("checked", 10, "check_one(one)", "", "7.2 has no check"),
        ("checked", 11, "assert check_one(one)", "", "does not assert"),
        ("spelling", 6, "See", "We maximize.", "American"),
        ("outputs", 6, "See", "See /home/me/file", "a path of one machine"),
        ("proportions", 4, "1 + 1", "1 + 1\n" * 41, "at most 40"),
        ("proportions", 4, "1 + 1", "1 + 1\n" * 30, "lines of code; at least"),
        ("colab", 0, "blob/main", "blob/other", "does not link"),
        ("colab", 2, "git+", "", "the setup cell, lacks"),
        ("colab", 2, "--no-deps ", "", "the setup cell, lacks"),
        ("shown_source_is_checked", 4, "1 + 1", "source(one)", "nbval-check-output"),
    ],
)
def test_rule_notices(root, rule, index, old, new, expected):
    change(root, index, old, new)
    assert expected in complaints(root, rule)


def test_unmentioned_equation(root):
    change(root, 3, "Theorem 7.1 with its equation (7.2) gives (7.1).", "Done.")
    change(root, 3, "(by (7.2))", "(by a theorem)")
    assert "(7.2) eq-second-jensen is mentioned nowhere" in complaints(
        root, "every_equation_is_used"
    )
    (root / "aevb").mkdir()
    (root / "aevb" / "x.py").write_text('"""Implements ``eq-second-jensen``."""\n')
    assert not complaints(root, "every_equation_is_used")


def test_figure_needs_a_text_and_a_caption(root):
    def spoil(notebook):
        del notebook.cells[4].metadata["mystnb"]
        del notebook.cells[5]

    edit(root, spoil)
    found = complaints(root, "figures")
    assert "alt does not say" in found
    assert "not its caption" in found


def test_an_exercise_in_code_needs_a_stub(root):
    def no_stub(notebook):
        notebook.cells[9].metadata["tags"] = []

    edit(root, no_stub)
    assert "7.2 has no stub" in complaints(root, "checked")


def test_a_stub_stands_above_its_solution(root):
    def upside_down(notebook):
        cells = notebook.cells
        cells[9], cells[11] = cells[11], cells[9]

    edit(root, upside_down)
    assert "no solution in code below its stub" in complaints(root, "checked")


@pytest.mark.parametrize("label", ["(★, code.)", "(★, checked.)", "(code, checked.)"])
def test_an_exercise_says_what_it_is(root, label):
    def other_label(notebook):
        cell = next(x for x in notebook.cells if "Exercise 7.2" in x.source)
        cell.source = cell.source.replace("(★, code, checked.)", label)

    edit(root, other_label)
    assert f"its label is {label}, not (★, code, checked.)" in complaints(
        root, "labelled"
    )


def test_outputs(root):
    def spoil(notebook):
        notebook.cells[4].execution_count = 7
        notebook.cells[9].outputs = [
            made_up.new_output("stream", name="stderr", text="a warning"),
            made_up.new_output("error", ename="E", evalue="", traceback=["x"]),
        ]

    edit(root, spoil)
    found = complaints(root, "outputs")
    assert "ran in order" in found
    assert "stderr is stored" in found
    assert "an error" in found


def test_metadata(root):
    def spoil(notebook):
        notebook.metadata["widgets"] = {}
        notebook.cells[9].metadata["tags"] = ["raises-exception"]

    edit(root, spoil)
    found = complaints(root, "metadata")
    assert "'widgets'" in found
    assert "unknown tag 'raises-exception'" in found


def test_accelerator(root):
    def train(notebook):
        notebook.cells[4].source = "train, _ = images()\nfit(model, train)"

    edit(root, train)
    assert 'is not "GPU"' in complaints(root, "accelerator")

    def ask(notebook):
        notebook.metadata |= {"accelerator": "GPU", "colab": {"gpuType": "T4"}}

    edit(root, ask)
    assert not complaints(root, "accelerator")
    change(root, 4, "fit(", "evaluate(")
    assert "trains nothing on MNIST" in complaints(root, "accelerator")


def test_device(root):
    def train(notebook):
        notebook.cells[4].source = "fit(model, train)"

    edit(root, train)
    assert "where there is a GPU" in complaints(root, "device")
    change(root, 4, "fit(model, train)", "fit(model, train)\nmodel.cpu()")
    assert not complaints(root, "device")


def test_size(root):
    def spoil(notebook):
        notebook.cells[4].outputs[0].data["image/png"] = "A" * 1_600_000

    edit(root, spoil)
    found = complaints(root, "size")
    assert "MB" in found
    assert "a figure of 1200 kB" in found


def test_stamp(root):
    path = root / "book" / "07-second.ipynb"
    notebook = made_up.read(path)
    notebook.cells[4].source = "1 + 2"
    made_up.save(notebook, path, stamped=False)
    assert "make notebooks CHAPTER=07" in complaints(root, "stamp")
    del notebook.metadata["aevb"]
    made_up.save(notebook, path, stamped=False)
    assert "no stamp" in complaints(root, "stamp")
    made_up.save(notebook, path)
    assert not complaints(root, "stamp")
    notebook.metadata["aevb"]["dataset"] = "bundled digits"
    made_up.save(notebook, path, stamped=False)
    assert "not from MNIST" in complaints(root, "stamp")


def test_table_of_contents(root):
    (root / "book" / "07-second.ipynb").rename(root / "book" / "08-third.ipynb")
    found = " | ".join(rules.book_complaints(root))
    assert "does not list 08-third" in found
    assert "lists 07-second, which does not exist" in found


def test_citations(root):
    change(root, 6, "See", "See [Burda et al. (2016)](references.md#burda2016).")
    assert "run `make renumber`" in " | ".join(rules.book_complaints(root))
    change(root, 6, "burda2016", "burda1916")
    found = " | ".join(rules.book_complaints(root))
    assert "cites 'burda1916', which references.bib does not have" in found


def test_command(root, capsys):
    assert rules.main(["--root", str(root)]) == 0
    assert "no complaints" in capsys.readouterr().out
    change(root, 6, "Pitfalls", "Traps")
    assert rules.main(["--root", str(root)]) == 1
    assert (
        "07-second.ipynb: there is no section for pitfalls" in capsys.readouterr().out
    )
