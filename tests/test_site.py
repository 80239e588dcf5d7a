"""The built site: complete, self-contained, every link and every reference sound."""

import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import made_up
import pytest

from tools import conventions as c
from tools import repository, rules, site

SITE = c.ROOT / "_build" / "html"
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
}


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.no_alt, self.h1 = [], [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if a.get("id"):
            self.ids.append(a["id"])
        self.h1 += tag == "h1"
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        fetched = tag != "link" or a.get("rel") in ("stylesheet", "icon", "preload")
        if tag in LOADS and a.get(LOADS[tag]) and fetched:
            self.loads.append(a[LOADS[tag]])
        # MyST-NB's own fallback is the path of the image.
        if tag == "img" and (not a.get("alt", "").strip() or "_images/" in a["alt"]):
            self.no_alt.append(a.get("src"))


def html_of(folder):
    return sorted(p for p in folder.rglob("*.html") if "_static" not in p.parts)


@pytest.fixture(scope="module", params=["this book", "a made-up book"])
def folder(request, tmp_path_factory):
    if request.param == "this book":
        assert SITE.exists(), "the site is not built: run `make book` first"
        return SITE
    root = made_up.book(tmp_path_factory.mktemp("x") / "a", "02-first", "07-second")
    status, said = site.build(root)
    assert status == 0, said
    return root / "_build" / "html"


@pytest.fixture(scope="module")
def pages(folder):
    return {p: Page(p) for p in html_of(folder)}


def test_it_is_not_older_than_its_sources():
    sources = [*c.chapters(), *c.pages(), c.ROOT / "_config.yml", c.ROOT / "_toc.yml"]
    newest = max(p.stat().st_mtime for p in sources)
    built = (SITE / "index.html").stat().st_mtime
    assert newest <= built, "the site is out of date: run `make book` first"


def test_every_page_is_there():
    for name in rules.toc_entries(c.ROOT):
        assert (SITE / f"{name}.html").exists(), name
    assert "http-equiv" not in (SITE / "index.html").read_text()  # no redirection


def test_nothing_is_loaded_from_outside(folder, pages):
    bad = [
        (p.name, u[:80])
        for p, x in pages.items()
        for u in x.loads
        if "//" in u.split("?")[0] and not u.startswith("data:")
    ]
    assert not bad
    for path in folder.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text()), path.name
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for host in ("jsdelivr", "cdnjs", "unpkg", "googleapis", "fonts.g"):
            assert host not in text, (path.name, host)


def test_links_and_files_exist(folder, pages):
    bad, top = [], urlparse(repository.home().site).path  # 404.html starts from there
    for path, page in pages.items():
        for url in page.links + page.loads:
            if url.startswith(("http:", "https:", "mailto:", "data:", "javascript:")):
                continue
            file, fragment = urldefrag(url)
            file = unquote(file.split("?")[0])
            start = folder if file.startswith(top) else path.parent
            file = file.removeprefix(top) if start is folder else file
            target = (start / file).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                bad.append((path.name, url))
            elif fragment and target in pages:
                if unquote(fragment) not in pages[target].ids:
                    bad.append((path.name, url))
    assert not bad


def test_ids_are_unique(pages):
    for path, page in pages.items():
        double = {i for i in page.ids if page.ids.count(i) > 1}
        assert not double, (path.name, double)


def test_one_title_each(pages):
    for path in pages:
        text = path.read_text()
        redirects = 'http-equiv="refresh"' in text
        if path.name not in ("search.html", "genindex.html") and not redirects:
            article = re.search(r"(?s)<article.*?</article>", text)
            assert article and article[0].count("<h1") == 1, path.name


def test_images_have_alternative_text(pages):
    assert not [(p.name, s) for p, x in pages.items() for s in x.no_alt]


def test_no_unrendered_markup(pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for trace in ("system-message", "Unknown interpreted", "problematic"):
            assert trace not in text, (path.name, trace)
        assert not re.search(r"<!--\s*" + c.NAME, text), path.name


def test_chapters_open_in_colab_and_download():
    home = repository.home()
    for path in c.chapters():
        text = (SITE / f"{path.stem}.html").read_text(encoding="utf-8")
        assert home.colab(path.name) in text, path.name
        assert f'href="_sources/{path.name}"' in text, path.name
        assert (SITE / "_sources" / path.name).read_bytes() == path.read_bytes()


def test_numbered_things_have_their_anchors():
    for path in c.chapters():
        ids = set(Page(SITE / f"{path.stem}.html").ids)
        for d in rules.Chapter(path, c.ROOT).definitions:
            assert c.anchor(d.kind, d.number) in ids, (path.name, d)
            if d.name and d.kind != "Section":
                assert d.name in ids, (path.name, d)


def test_mathjax_is_there_and_small(folder):
    mathjax = folder / "_static" / "mathjax"
    assert (mathjax / "tex-chtml.js").stat().st_size > 1e6
    assert list(mathjax.glob("output/chtml/fonts/woff-v2/*.woff"))
    assert list(mathjax.glob("input/tex/extensions/*.js"))
    assert sum(p.stat().st_size for p in mathjax.rglob("*") if p.is_file()) < 4e6


def test_weight_of_the_site():
    outside = sum(
        p.stat().st_size
        for p in SITE.rglob("*")
        if p.is_file() and "_sources" not in p.parts and "_images" not in p.parts
    )
    assert outside < 25e6


# --- the extension, on a made-up book ---------------------------------------------


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    root = made_up.book(tmp_path_factory.mktemp("y") / "a", "02-first", "07-second")
    path = root / "book" / "07-second.ipynb"
    made_up.replace_in_cell(
        path,
        6,
        "See Figure 7.1.",
        "See Figures 7.1 and 2.1, (2.1), equation (2.2), Theorem 2.1, Chapter 2, "
        "Sections 2.1 and 7.1, Exercise 2.1, a value of (0.5), `eq-first-bound`.\n\n"
        "*Proof by example.* One line.\n\n$$\nx = x\n$$\n\nDone. ∎\n\n"
        "Life goes on.\n\n*Proof of more.* See\n\n$$\ny = y \\text{. ∎}\n$$\n\n"
        "> **Theorem 7.2.** More.\n\n*Proof.* Left to the reader.",
    )
    status, said = site.build(root)
    assert status == 0, said
    return (root / "_build" / "html" / "07-second.html").read_text(encoding="utf-8")


def link(html, words):
    m = re.search(r'href="([^"]*)"><span class="std std-ref">' + re.escape(words), html)
    return m and m[1]


def test_mentions_become_links(second):
    expected = {
        "Figures 7.1": "#figure-7-1",
        "2.1": "02-first.html#figure-2-1",
        "(2.1)": "02-first.html#eq-first-bound",
        "(2.2)": "02-first.html#eq-first-jensen",
        "Theorem 2.1": "02-first.html#theorem-2-1",
        "Chapter 2": "02-first.html",
        "Sections 2.1": "02-first.html#",
        "Exercise 2.1": "02-first.html#exercise-2-1",
        "(7.1)": "#eq-second-bound",
        "Theorem 7.1": "#theorem-7-1",
    }
    for words, target in expected.items():
        found = link(second, words + "<") or link(second, words)
        assert found and found.startswith(target), (words, found)
    assert "a value of (0.5)" in second
    assert re.search('href="02-first.html#eq-first-bound"><code', second)


def test_names_are_anchors_in_and_out_of_a_quote(second):
    for name, number in (("eq-second-bound", "7-1"), ("eq-second-jensen", "7-2")):
        m = re.search(rf'<div class="math[^"]*" id="{name}">.*?</div>', second, re.S)
        assert m
        assert f'id="eq-{number}"' in second
        assert "\\[" in m[0] and "split" not in m[0]
    box = re.search(r'<div class="theorem note admonition" id="theorem-7-1">.*', second)
    assert box
    assert second.index(box[0]) < second.index('id="eq-second-jensen"')


def test_boxes_and_captions(second):
    assert re.search(
        r'class="note admonition">\s*<p class="admonition-title">Note', second
    )
    assert re.search(r'<p class="portable-caption" id="figure-7-1">', second)
    assert re.search(r'<p class="portable-caption" id="table-7-1">', second)
    assert 'class="exercise tip admonition" id="exercise-7-1"' in second


def test_a_proof_can_be_folded(second):
    folds = re.findall(r"(?s)<details class=.proof. open>(.*?)</details>", second)
    assert len(folds) == 2  # what has no end is left as it is
    assert folds[0].startswith("<summary>Proof by example</summary>")
    assert "One line." in folds[0] and "math" in folds[0] and "∎" in folds[0]
    assert "Life goes on." not in folds[0]
    assert folds[1].startswith("<summary>Proof of more</summary>")
    assert "y = y" in folds[1] and "Theorem 7.2" not in folds[1]
    assert "<em>Proof.</em> Left to the reader." in second


def test_a_chapter_says_in_words_how_to_run_it(second):
    home = repository.home()
    links = re.search(r'(?s)<p class="ways-to-run">.*?</p>', second)[0]
    assert f'href="{home.colab("07-second.ipynb")}">Open in Colab<' in links
    assert 'href="_sources/07-second.ipynb" download>Download the notebook<' in links
    assert second.index("<h1>") < second.index(links)


def test_citation(second):
    assert 'href="references.html#kingma2014"' in second


def test_command_says_where(tmp_path, capsys):
    root = made_up.book(tmp_path / "a", "02-first", "07-second")
    assert site.main(["--root", str(root)]) == 0
    said = capsys.readouterr().out
    page = Path(re.search(r"file://(\S+)", said)[1])
    assert page == root / "_build" / "html" / "index.html"
    assert page.exists()
    with zipfile.ZipFile(page.parent / "editions" / "student.zip") as packed:
        names = ["student/02-first.ipynb", "student/07-second.ipynb"]
        assert packed.namelist() == names


def test_the_site_needs_no_torch():
    """The extension and what it imports get by without the chapters' packages."""
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'matplotlib', 'sklearn', 'scipy', 'pytest'):\n"
        "    sys.modules[name] = None\n"
        "sys.path.insert(0, 'book/_ext')\n"
        "import portable, tools.site, tools.repository\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=c.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
