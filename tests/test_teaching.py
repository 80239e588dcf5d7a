"""The teaching guide: its tables are computed, and its plans hold together."""

import doctest
import json
import re
import subprocess
import sys

import made_up
import pytest

from tools import conventions as c
from tools import teaching

CHAPTERS = teaching.read()
GUIDE = (c.ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
PLANS = re.findall(r"(?ms)^## [^\n]+\n(?:(?!^## ).)*?made: sessions.*?(?=^## )", GUIDE)


def test_the_tables_are_what_the_chapters_give():
    assert teaching.page() == GUIDE, "run `make renumber`"


def test_examples():
    assert doctest.testmod(teaching).failed == 0


def test_it_needs_no_torch():
    """The site's environment has none."""
    code = "import sys, tools.teaching as t; t.page(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=c.ROOT).returncode == 0


@pytest.mark.parametrize("number", CHAPTERS)
def test_times(number):
    chapter = CHAPTERS[number]
    stamp = json.loads(chapter.path.read_text(encoding="utf-8"))["metadata"]["aevb"]
    assert chapter.seconds == stamp["seconds"]
    assert chapter.fast, "run benchmarks/chapters.py"
    assert 1800 < chapter.reading < 3 * 3600


def test_every_exercise_is_counted():
    for path in c.chapters():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        boxes = [
            d.number
            for cell in cells
            if cell["cell_type"] == "markdown"
            for d in c.definitions("".join(cell["source"]))
            if d.kind == "Exercise"
        ]
        assert list(CHAPTERS[str(c.chapter_of(path))].exercises) == boxes


def test_plans():
    """Every session covers something, and no exercise is set twice in a plan."""
    weeks, day = PLANS
    assert len(teaching.SESSION.findall(weeks)) == 4 * 3
    for plan in (weeks, day):
        found = [m["text"] for m in teaching.SESSION.finditer(plan)]
        assert all(
            teaching.covered(teaching.bullet(x, "Cover"), CHAPTERS) for x in found
        )
        tasks = [
            number
            for text in found
            for number in teaching.mentioned(teaching.bullet(text, "Set"), "Exercise")
        ]
        assert len(tasks) == len(set(tasks))


def test_misconceptions():
    """Some for every chapter, each with a question and its answer."""
    (part,) = re.findall(r"(?ms)^## What students get wrong\n(.*?)^## ", GUIDE)
    sections = re.split(r"(?m)^### ", part)[1:]
    chapters = [re.search(r"\(Chapter (\d+)\)", s)[1] for s in sections]
    assert chapters == list(CHAPTERS)
    for section in sections:
        beliefs = re.findall(r"(?m)^\* .*$", section)
        assert 3 <= len(beliefs) <= 6
        for belief in beliefs:
            assert re.fullmatch(
                r'\* \*".+"\* \*\*Ask:\*\* .+\? .*\*\*Answer:\*\* .+', belief
            )


# --- on a made-up book --------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    root = made_up.book(tmp_path / "made-up", "02-first", "07-second")
    (root / "book" / "teaching.md").write_text(
        "# Guide\n\n<!-- made: times -->\n<!-- end -->\n\n"
        "<!-- made: effort -->\nold\n<!-- end -->\n\n"
        "## A plan\n\n<!-- made: sessions -->\n<!-- end -->\n\n"
        "### One\n\n* **Cover.** Sections 2.1 to 2.3.\n* **Run.** Chapter 2.\n"
        "* **Set.** Exercises 2.1\n  and 7.2.\n\n"
        "### Two\n\n* **Cover.** Chapter 7.\n\n"
        "## Another plan\n\n### Three\n\n* **Cover.** Section 7.1.\n"
    )
    return root


def test_made_up_guide(root):
    assert len(list(teaching.complaints(root))) == 1
    page = root / "book" / "teaching.md"
    page.write_text(teaching.page(root))
    assert not list(teaching.complaints(root))
    text = page.read_text()
    assert "old" not in text and "| Three |" not in text
    sections = teaching.read(root)["2"].sections
    covered = teaching.time(sum(sections[f"2.{k}"] for k in (1, 2, 3)))
    tasks = teaching.time(60 * 2 * teaching.MINUTES[1])
    assert f"| One | {covered} | {tasks} |  |  |" in text
    assert "| [Chapter 2](02-first.ipynb) | 2 | 0 | 0 | 1 | 2 |" in text
    assert "| all together | 4 | 0 | 0 | 2 | 4 |" in text


def test_times_of_the_made_up_book(root):
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "chapters_latest.json").write_text(
        json.dumps({"machine": {}, "seconds": {"02-first": 7.4}})
    )
    notebook = made_up.read(root / "book" / "02-first.ipynb")
    notebook.metadata["accelerator"] = "GPU"
    made_up.save(notebook, root / "book" / "02-first.ipynb")
    line = next(x for x in teaching.page(root).splitlines() if "first.ipynb" in x)
    assert line.endswith("|  | 7 s | MNIST | yes |")


def test_solutions_and_exercises_take_no_reading_time(root):
    path = root / "book" / "02-first.ipynb"
    before = teaching.chapter(path).sections
    more = "Subtract. " * 500
    made_up.replace_in_cell(path, 8, "Subtract.", more)
    made_up.replace_in_cell(path, 8, "Prove (2.1).", "Prove (2.1). " * 100)
    assert teaching.chapter(path).sections == before
    made_up.replace_in_cell(path, 6, "See", more + "See")
    assert teaching.chapter(path).sections["2.2"] > before["2.2"] + 200


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("2.1 to 2.3", "2.1 to 2.9", "no Section 2.6"),
        ("and 7.2", "and 7.5", "no Exercise 7.5"),
    ],
)
def test_a_plan_that_leads_nowhere_is_refused(root, old, new, message):
    page = root / "book" / "teaching.md"
    page.write_text(page.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        teaching.page(root)
