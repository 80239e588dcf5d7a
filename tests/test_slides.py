"""The decks of slides: what a chapter shows is in them, and nothing that it hides."""

import re
from html import unescape

import pytest
from bs4 import BeautifulSoup

from tools import conventions as c
from tools import rules, slides

SITE = c.ROOT / "_build" / "html"
CHAPTERS = [pytest.param(p, id=p.stem) for p in c.chapters()]


def deck_of(path):
    deck = SITE / "slides" / f"{path.stem}.html"
    assert deck.exists(), "the site is not built: run `make book` first"
    return deck.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CHAPTERS)
def test_numbered_things_are_on_slides(path):
    text = deck_of(path)
    for d in rules.Chapter(path, c.ROOT).definitions:
        if d.kind == "Equation":
            assert f"\\tag{{{d.number}}}" in text, d
        elif d.kind != "Section":
            assert re.search(rf">{d.kind} {re.escape(d.number)}\b", text), d


@pytest.mark.parametrize("path", CHAPTERS)
def test_every_figure_is_on_a_slide(path):
    page = (SITE / f"{path.stem}.html").read_text(encoding="utf-8")
    shown = BeautifulSoup(page, "html.parser").article
    for solution in shown.select(".tag_solution"):
        solution.decompose()
    images = re.findall(r'src="(_images/[^"]+)', str(shown))
    assert images
    text = deck_of(path)
    assert [x for x in images if f'src="../{x}"' not in text] == []


@pytest.mark.parametrize("path", CHAPTERS)
def test_sections_are_there_and_lead_back(path):
    text = deck_of(path)
    for d in rules.Chapter(path, c.ROOT).definitions:
        if d.kind == "Section":
            titles = re.findall(rf'id="section-{d.number.replace(".", "-")}-1"', text)
            page = (SITE / f"{path.stem}.html").read_text(encoding="utf-8")
            title = re.search(rf"<h2>{re.escape(d.number)} (.*?)<a", page)[1]
            expected = not slides.SKIPPED.search(title)
            assert bool(titles) == expected, d


@pytest.mark.parametrize("path", CHAPTERS)
def test_nothing_hidden_and_no_leftovers(path):
    text = re.sub(r"(?s)<script.*?</script>", "", deck_of(path))
    for trace in ("<!--", "<details", "<summary", "tag_solution", "headerlink", "**"):
        assert trace not in text, trace
    assert "NotImplementedError" not in text


def test_chapter_and_deck_know_each_other():
    listed = (SITE / "slides" / "index.html").read_text(encoding="utf-8")
    for path in c.chapters():
        assert f'href="{path.stem}.html"' in listed
        page = (SITE / f"{path.stem}.html").read_text(encoding="utf-8")
        assert f'href="slides/{path.stem}.html"' in page
        assert f'href="../{path.stem}.html' in deck_of(path)
    assert "slides/index" not in (SITE / "glossary.html").read_text(encoding="utf-8")


def test_reveal_comes_with_its_licence():
    folder = SITE / "_static" / "reveal"
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text()
    assert {p.name for p in folder.iterdir()} == {
        "LICENSE",
        "notes.js",
        "reveal.css",
        "reveal.js",
    }


# --- the rules, on a made-up page ---------------------------------------------------

LONG = "A word or two about nothing much, again and again and again. " * 12
PAGE = r"""<article class="bd-article"><section id="top"><h1>7. Title &amp; all</h1>
<p>Opening words.</p>
<p><strong>Objectives.</strong> After this you can</p><ul><li><p>see;</p></li></ul>
<section id="first"><span id="section-7-1"></span><h2>7.1 First<a class="headerlink"
href="#first">#</a></h2>
<p>Some prose with <span class="math">\(x\)</span>. It follows from
<a href="02-other.html#eq-2-1">(2.1)</a> that</p>
<p>We know this. The bound is therefore</p>
<p>Many things are said. The bound of <a href="#figure-7-1">Figure 7.1</a> is:</p>
<div class="math" id="eq-bound"><span id="eq-7-1"></span>\[x = y \tag{7.1}\]</div>
<div class="math">\[x = z\]</div>
<div class="math">\[\begin{aligned} x &= 1 \\ &= 2 \end{aligned}\]</div>
<div class="note admonition"><p class="admonition-title">Note.</p><p>Aside.</p></div>
<div class="tip admonition"><p class="admonition-title">Tip.</p>
<div class="math">\[t \tag{7.2}\]</div></div>
<details><summary>Proof</summary><p>Hidden words.</p>
<div class="math">\[p \tag{7.3}\]</div></details>
</section>
<section id="plain"><h2>7.2 Only words</h2><p>A first sentence. LONG</p>
<ul><li><p>A point. LONG</p></li></ul></section>
<section id="box"><h2>7.3 A long box</h2>
<div class="theorem note admonition"><p class="admonition-title">Theorem 7.1.</p>
<p>LONG</p><p>LONG</p><p>LONG</p></div></section>
<section id="ex"><h2>7.4 Exercises</h2>
<div class="exercise tip admonition"><p class="admonition-title">Exercise 7.1.</p>
<p>Do it.</p></div>
<details><summary>Solution</summary><p>Done so.</p></details>
<div class="cell tag_solution"><div class="cell_output">
<img src="_images/s.svg" alt="s"></div></div></section>
<section id="pit"><h2>7.6 Pitfalls</h2><ul>POINTS</ul></section>
<section id="refs"><h2>7.5 References</h2><p>A list.</p></section>
</section></article>"""
PAGE = PAGE.replace("POINTS", "<li><p>LONG</p></li>" * 9).replace("LONG", LONG)


@pytest.fixture(scope="module")
def made_up_deck(tmp_path_factory):
    page = tmp_path_factory.mktemp("site") / "07-second.html"
    page.write_text(PAGE, encoding="utf-8")
    text, count = slides.deck(page, "A book", "window.MathJax = {}")
    found = BeautifulSoup(text, "html.parser").select(".slides > section")
    assert len(found) == count
    return {x["id"]: x for x in found}


def test_title_and_objectives(made_up_deck):
    assert made_up_deck["title"].select_one(".name").text == "7. Title & all"
    assert made_up_deck["title"].aside.text == "Opening words."
    assert "After this you can" in made_up_deck["objectives"].text
    assert made_up_deck["objectives"].li.text.strip() == "see;"


def test_an_equation_comes_with_the_words_that_lead_to_it(made_up_deck):
    shown = made_up_deck["section-7-1-1"]
    assert shown.h2.text == "First"
    assert shown.select_one(".body p").text == "The bound of Figure 7.1 is:"
    assert shown.select_one(".body a")["href"] == "../07-second.html#figure-7-1"
    assert shown.select_one(".place a")["href"] == "../07-second.html#first"


def test_which_displays_are_shown(made_up_deck):
    text = "".join(
        x.text for k, x in made_up_deck.items() if k.startswith("section-7-1")
    )
    for tex in (r"\tag{7.1}", r"\tag{7.2}", r"\tag{7.3}", r"&= 2"):
        assert tex in text
    assert "x = z" not in text
    assert "Hidden words" not in text


def test_what_is_not_shown_is_in_the_notes(made_up_deck):
    notes = made_up_deck["section-7-1-1"].aside.text
    assert "Some prose with $x$." in notes
    assert (
        len(max((x.aside.text for x in made_up_deck.values() if x.aside), key=len))
        < 1000
    )


def test_words_are_cut_at_a_sentence(made_up_deck):
    shown = made_up_deck["section-7-2-1"]
    paragraph, item = shown.select_one(".body p").text, shown.li.text
    assert paragraph.startswith("A first sentence.")
    for text in (paragraph, item):
        assert len(text) <= 330 and text.endswith(".")


def test_a_long_box_goes_on_on_the_next_slide(made_up_deck):
    titles = [
        x.select_one(".admonition-title").text
        for k, x in made_up_deck.items()
        if k.startswith("section-7-3")
    ]
    assert titles == ["Theorem 7.1."] + ["Theorem 7.1. (continued)"] * (len(titles) - 1)
    assert len(titles) > 1


def test_a_long_list_goes_on_on_the_next_slide(made_up_deck):
    slides = [x for k, x in made_up_deck.items() if k.startswith("section-7-6")]
    assert len(slides) > 2
    assert sum(len(x.select("li")) for x in slides) == 9


def test_exercises_without_solutions_and_no_references(made_up_deck):
    text = made_up_deck["section-7-4-1"].text
    assert "Do it." in text and "Done so" not in text
    assert not [k for k in made_up_deck if k.startswith("section-7-5")]
    assert "_images/s.svg" not in unescape(str(made_up_deck))
