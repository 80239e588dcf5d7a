"""The editions for a class: nothing given away, nothing missing, and all of it runs."""

import re
import subprocess
import sys

import made_up
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from aevb.exercises import NO_ANSWER
from tools import conventions as c
from tools import editions, repository, run_notebooks

CHAPTERS = c.chapters()
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("editions")
    editions.make(output)
    return output


def code(notebook):
    return [(x.id, x.source) for x in notebook.cells if x.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(x.source for x in notebook.cells if x.cell_type == "markdown")


def tried(source):
    """The ids of the stubs and checks."""
    return {
        source.cells[i].id
        for x in c.exercises(source.cells)
        for i in (x.stub, *x.checks)
        if i is not None
    }


def bodies(spans, text):
    return [text[start:end].split("</summary>")[1] for _, start, end in spans]


@every_chapter
def test_the_student_edition_gives_nothing_away(made, path):
    source, student = made_up.read(path), made_up.read(made / "student" / path.name)
    given = [x for x in source.cells if "solution" in c.tags(x)]
    assert not {x.id for x in given} & {x.id for x in student.cells}
    text, before = prose(student), prose(source)
    assert before.count("<details") == len(c.details(before))  # none is overlooked
    assert not c.answers(text)
    for answer in bodies(c.answers(before), before):
        assert editions.linked(answer, repository.home()).strip() not in text
    hints = [d[0] for d in c.details(before) if d not in c.answers(before)]
    assert [summary for summary, _, _ in c.details(text)] == hints
    for cell in student.cells:
        assert not (cell.id in tried(source) and cell.outputs)


@every_chapter
def test_the_student_edition_is_the_chapter_without_its_solutions(made, path):
    """Up to a stub the two run alike, and the tests run the chapter."""
    source, student = made_up.read(path), made_up.read(made / "student" / path.name)
    cleared = tried(source)
    source.cells = [x for x in source.cells if "solution" not in c.tags(x)]
    assert code(student) == code(source)
    assert [x.id for x in student.cells] == [x.id for x in source.cells]
    for one, other in zip(student.cells, source.cells, strict=True):
        if one.id not in cleared:
            assert one.get("outputs") == other.get("outputs")
            assert one.metadata == other.metadata


@every_chapter
def test_there_is_a_place_for_every_answer(made, path):
    student = made_up.read(made / "student" / path.name)
    found = c.exercises(student.cells)
    assert [x.number for x in found] == [
        x.number for x in c.exercises(made_up.read(path).cells)
    ]
    text = prose(student)
    parts = re.split(r"> \*\*Exercise (\d+\.\d+)", text)
    places = dict(zip(parts[1::2], parts[2::2], strict=True))
    for exercise in found:
        written = editions.WRITE in places[exercise.number]
        assert written or exercise.stub is not None, exercise.number


@every_chapter
def test_the_instructor_edition_shows_everything(made, path):
    source, shown = made_up.read(path), made_up.read(made / "instructor" / path.name)
    assert code(shown) == code(source)
    assert [x.id for x in shown.cells] == [x.id for x in source.cells]
    for one, other in zip(shown.cells, source.cells, strict=True):
        assert one.get("outputs") == other.get("outputs")
        if "solution" in c.tags(one):
            assert "hide-cell" not in c.tags(one)
            assert not {"cellView", "jupyter"} & set(one.metadata)
            image = other.metadata.get("mystnb", {}).get("image")
            assert one.metadata.get("mystnb", {}).get("image") == image
    text = prose(shown)
    assert not c.answers(text)  # none that is closed
    assert text.count("<details open>") == len(c.answers(prose(source)))


@pytest.mark.parametrize("edition", editions.EDITIONS)
@every_chapter
def test_every_link_leads_somewhere(made, path, edition):
    home = repository.home()
    notebook = nbformat.read(made / edition / path.name, as_version=4)
    nbformat.validate(notebook)
    text = c.without_code(prose(notebook))
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if not re.match(r"https?:", target):
            assert (made / edition / target).exists(), target
    for page in re.findall(re.escape(home.site) + r"([\w-]+)\.html", text):
        assert (path.parent / f"{page}.md").exists()
    branch = "student" if edition == "student" else home.branch
    badges = re.findall(r"colab\.research\.google\.com/github/[^)]+", text)
    assert badges == [
        f"colab.research.google.com/github/{home.owner}/{home.name}"
        f"/blob/{branch}/book/{path.name}"
    ]
    setup = next(x for x in notebook.cells if "setup" in c.tags(x))
    assert home.package in setup.source  # the package is the main branch's


def undefined(folder):
    """What no cell defines: ruff, of one rule alone."""
    command = (sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    return done.stdout if done.returncode else ""


def test_no_cell_needs_what_only_a_solution_defines(made):
    assert not undefined(made / "student")


def test_a_name_of_a_solution_would_be_noticed(tmp_path):
    root = made_up.book(tmp_path / "a", "07-second")
    path = root / "book" / "07-second.ipynb"
    for name in ("one", "of_the_solution"):
        notebook = made_up.read(path)
        notebook.cells[11].source += "\n\nof_the_solution = one()"
        notebook.cells.append(new_code_cell(name))
        made_up.save(notebook, path)
        editions.make(tmp_path / name, root)
        found = undefined(tmp_path / name / "student")
        assert ("of_the_solution" in found) == (name != "one")


def test_the_same_bytes_every_time(made, tmp_path):
    editions.make(tmp_path)
    files = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()
    )
    for file in files:
        assert (made / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_what_was_there_before_is_gone(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "14-gone.ipynb").write_text("{}")
    root = made_up.book(tmp_path / "a", "07-second")
    assert editions.main(["--root", str(root), "--output", str(tmp_path)]) == 0
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["07-second.ipynb"]


@every_chapter
def test_a_property_is_missed_by_some_answer(path):
    """The other checks try their wrong answers when they are made."""
    cells = made_up.read(path).cells
    for exercise in c.exercises(cells):
        below = "\n".join(cells[i].source for i in exercise.checks)
        if "PropertyCheck(" in below:
            solution = cells[exercise.solution].source
            assert re.search(r'^assert .*"[^"]+" in .*message$', solution, re.M), (
                f"the solution of {exercise.number} asserts no message"
            )
        elif exercise.in_code:
            assert re.search(r"(Number|Function)Check\(", below), exercise.number
            assert "wrong=[" in below, exercise.number


REFUSED = """
from aevb.exercises import FunctionCheck, NumberCheck

for name, check in list(globals().items()):
    if isinstance(check, (FunctionCheck, NumberCheck)):
        assert check.wrong, name
        for answer, message in check.wrong:
            assert repr(check(answer)) == message, name
"""


@pytest.mark.parametrize("number", [1, 2, 4])
def test_it_runs_alone_and_the_solutions_fit(made, tmp_path, number):
    """In a folder of its own, to the end; then with the solutions put back."""
    (path,) = [p for p in CHAPTERS if c.chapter_of(p) == number]
    notebook = made_up.read(made / "student" / path.name)
    source = made_up.read(path).cells
    checks = [
        i
        for i, x in enumerate(notebook.cells)
        if x.cell_type == "code" and c.CHECKS.search(x.source.splitlines()[-1])
    ]
    notebook.cells += [new_code_cell(REFUSED)]
    notebook.cells += [x for x in source if "solution" in c.tags(x)]
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=run_notebooks.environment(tmp_path, fast=True))
    assert len(checks) >= 3
    for i in checks:
        assert notebook.cells[i].outputs[-1].data["text/plain"] == NO_ANSWER
