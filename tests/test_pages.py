"""What search engines, previews of links and validators see of the built site."""

import html
import json
import os
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag
from xml.etree import ElementTree

import made_up
import pytest
from PIL import Image

from tools import conventions as c
from tools import preview, repository, rules, site

SITE = c.ROOT / "_build" / "html"
BASE = repository.home().site
NAMES = ["index", *(n for n in rules.toc_entries(c.ROOT) if n != "index")]
VALIDATE = Path(
    os.environ.get("HTML_VALIDATE")
    or c.ROOT / "_build" / "node_modules" / ".bin" / "html-validate"
)


class Head(HTMLParser):
    """What a page says of itself: meta tags, canonical address, addresses."""

    def __init__(self, path):
        super().__init__()
        self.meta, self.canonical, self.addresses = {}, None, []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag == "meta" and "content" in a:
            name = a.get("name") or a.get("property") or a.get("http-equiv")
            assert name == "viewport" or name not in self.meta, f"{name} is said twice"
            self.meta[name] = a["content"]
        if tag == "link" and a.get("rel") == "canonical":
            self.canonical = a["href"]
        self.addresses += [a[k] for k in ("href", "src", "action") if a.get(k)]


@pytest.fixture(scope="module")
def heads():
    assert SITE.exists(), "the site is not built: run `make book` first"
    return {name: Head(SITE / f"{name}.html") for name in NAMES}


def in_site(address, root=SITE, base=BASE):
    """The file behind an absolute address of the site."""
    assert address.startswith(base), address
    return root / address.removeprefix(base)


# --- descriptions and previews ------------------------------------------------------


def test_every_page_has_a_description_of_its_own(heads):
    said = {name: head.meta["description"] for name, head in heads.items()}
    for name, text in said.items():
        assert 30 <= len(text) <= 300, (name, text)
        assert text[-1] in ".?!" and "..." not in text, (name, text)
        assert not re.search(r"[\\$]|\*\*|Objectives|&\w+;", text), (name, text)
        assert heads[name].meta["og:description"] == text, name
    assert len(set(said.values())) == len(said)


def test_the_pages_that_sphinx_makes_are_described_and_not_indexed():
    for name in ("404", "search", "genindex", "py-modindex"):
        head = Head(SITE / f"{name}.html")
        assert head.meta["description"] and head.meta["robots"] == "noindex", name


def test_every_page_has_a_title_and_an_address(heads):
    for name, head in heads.items():
        assert head.canonical == head.meta["og:url"] == f"{BASE}{name}.html"
        title = re.search(r'<h1>(.*?)<a class="headerlink"', head.text)
        if title:
            words = html.unescape(re.sub("<[^>]*>", "", title[1]))
            assert head.meta["og:title"] == words
        assert head.meta["og:title"] and head.meta["twitter:card"], name


def test_every_page_has_a_preview(heads):
    for name, head in heads.items():
        with Image.open(in_site(head.meta["og:image"])) as image:
            assert image.size == (1200, 630), name
        assert head.meta["og:image:alt"], name
        assert (head.meta["og:image:width"], head.meta["og:image:height"]) == (
            "1200",
            "630",
        )


def test_a_chapters_preview_is_one_of_its_figures(heads):
    shown = {head.meta["og:image"] for head in heads.values()}
    for path in c.chapters():
        meta = heads[path.stem].meta
        assert meta["og:image"] == f"{BASE}_previews/{path.stem}.png"
        assert f'alt="{meta["og:image:alt"]}"' in html.unescape(heads[path.stem].text)
        assert in_site(meta["og:image"]).stat().st_size < 300e3
    assert len(shown) == len(c.chapters()) + 1
    assert heads["index"].meta["og:image"] == f"{BASE}_static/preview.png"


def test_slides_have_the_preview_of_their_page(heads):
    for name in ["index", *(p.stem for p in c.chapters())]:
        head, page = Head(SITE / "slides" / f"{name}.html"), heads[name]
        assert head.canonical == head.meta["og:url"] == f"{BASE}slides/{name}.html"
        assert head.meta["og:title"].startswith("Slides: ")
        assert head.meta["description"] != page.meta["description"]
        for key in ("og:image", "og:image:alt", "og:image:width", "og:image:height"):
            assert head.meta[key] == page.meta[key], (name, key)


def test_the_picture_of_the_book_shows_a_true_bound():
    _, evidence, bounds, means = preview.curves()
    for bound in bounds:
        assert (bound <= evidence + 1e-9).all() and (evidence - bound).min() < 1e-4
    assert means == sorted(means)


# --- the site -----------------------------------------------------------------------


def test_the_sitemap_names_every_page_once():
    space = "{http://www.sitemaps.org/schemas/sitemap/0.9}"
    root = ElementTree.parse(SITE / "sitemap.xml").getroot()
    found = [loc.text for loc in root.iter(f"{space}loc")]
    assert found == [f"{BASE}{name}.html" for name in NAMES]
    robots = (SITE / "robots.txt").read_text()
    assert f"Sitemap: {BASE}sitemap.xml\n" in robots and "Disallow" not in robots


def test_the_page_for_an_unknown_address_works_from_everywhere():
    """GitHub shows it under any address, so that nothing on it may be relative."""
    prefix = "/" + BASE.split("/", 3)[3]
    head = Head(SITE / "404.html")
    for address in head.addresses:
        if address.startswith(("https:", "#")):
            continue
        assert address.startswith(prefix), address
        file = urldefrag(address)[0].split("?")[0].removeprefix(prefix)
        assert (SITE / (file or "index.html")).is_file(), address
    for name in NAMES:
        assert f'<li><a href="{prefix}{name}.html">' in head.text, name
    assert f'action="{prefix}search.html"' in head.text


def test_redirects_lead_somewhere(heads):
    redirects = tomllib.loads((c.ROOT / "book" / "redirects.toml").read_text())
    pages = {p.stem for p in (c.ROOT / "book").glob("*.*")} | set(NAMES)
    pages |= {"404", "search", "genindex", "py-modindex"}
    for name, target in redirects.items():
        assert re.fullmatch(r"[\w-]+", name) and name not in pages, name
        page, _, anchor = target.partition("#")
        assert page.removesuffix(".html") in NAMES, (name, target)
        assert not anchor or f'id="{anchor}"' in (SITE / page).read_text(), target
        head = Head(SITE / f"{name}.html")
        assert head.meta["refresh"] == f"0; url={target}"
        assert head.canonical == BASE + target and target in head.addresses
    assert redirects


def test_a_forks_site_names_the_fork(tmp_path):
    root = made_up.book(tmp_path / "a", "02-first")
    new = repository.parse("https://github.com/teacher/their-fork")
    repository.move(new, root)
    (root / "book" / "redirects.toml").write_text('first = "02-first.html"\n')
    status, said = site.build(root)
    assert status == 0, said
    built = root / "_build" / "html"
    files = "index.html 02-first.html 404.html first.html sitemap.xml robots.txt"
    text = "".join((built / f).read_text(encoding="utf-8") for f in files.split())
    assert BASE not in text and "/aevb-book/" not in text
    head = Head(built / "02-first.html")
    assert head.canonical == f"{new.site}02-first.html"
    picture = in_site(head.meta["og:image"], built, new.site)
    assert picture.name == "preview.png" and picture.exists()  # its figure is too small


def test_the_reference_has_no_list_where_a_size_is_meant():
    """``data_dim: D.`` says D; to reStructuredText it is the fourth item of a list."""
    text = (SITE / "api.html").read_text(encoding="utf-8")
    assert "<strong>data_dim</strong> – D.</p>" in text
    assert not re.search(r'<ol class="(upper|lower)', text)


# --- validity ------------------------------------------------------------------------


@pytest.mark.skipif(
    not (shutil.which("node") and VALIDATE.exists()),
    reason="no html-validate: npm install --prefix _build html-validate, "
    "or HTML_VALIDATE",
)
def test_the_html_is_valid(tmp_path):
    config = c.ROOT / "tests" / "htmlvalidate.json"
    pages = sorted(SITE.glob("*.html"))
    report = tmp_path / "report.json"
    done = subprocess.run(
        [VALIDATE, "--config", config, "--formatter", f"json={report}", *pages],
        capture_output=True,
        text=True,
    )
    found = [
        (Path(result["filePath"]).name, m["line"], m["ruleId"], m["message"])
        for result in json.loads(report.read_text(encoding="utf-8"))
        for m in result["messages"]
    ]
    assert not found and done.returncode == 0, found[:10] or done.stderr
