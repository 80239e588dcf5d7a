"""How to cite the book: CITATION.cff says what the rest of the repository says."""

import re
import tomllib

import yaml

from tools import conventions as c
from tools import references, repository

CITATION = yaml.safe_load((c.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CONFIG = yaml.safe_load((c.ROOT / "_config.yml").read_text(encoding="utf-8"))
# What version 1.2.0 of the format requires, and what it knows of what we use.
REQUIRED = {"cff-version", "message", "title", "authors"}
KNOWN = REQUIRED | {"abstract", "date-released", "keywords", "license"}
KNOWN |= {"preferred-citation", "references", "repository-code", "type", "url"}
KNOWN |= {"version"}


def test_it_is_valid():
    assert CITATION["cff-version"] == "1.2.0"
    assert REQUIRED <= CITATION.keys() <= KNOWN
    assert CITATION["type"] in ("software", "dataset")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", CITATION["date-released"])
    for work in (CITATION["preferred-citation"], *CITATION["references"]):
        assert {"type", "title", "authors"} <= work.keys()
        assert isinstance(work["year"], int)
    for text in (CITATION["version"], CITATION["preferred-citation"]["version"]):
        assert isinstance(text, str), "a version is quoted, or it has two dots"


def test_it_agrees_with_the_configuration_and_the_package():
    project = tomllib.loads((c.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    home = repository.home()
    assert CITATION["repository-code"] == home.url
    assert CITATION["license"] == project["project"]["license"]
    for work in (CITATION, CITATION["preferred-citation"]):
        assert work["title"] == CONFIG["title"]
        assert work["authors"] == [{"name": CONFIG["author"]}]
        assert work["version"] == project["project"]["version"]
        assert work["url"] == home.site
    released = CITATION["date-released"]
    assert CITATION["preferred-citation"]["year"] == int(released[:4])


def test_the_release_is_the_newest_of_the_change_log():
    page = (c.ROOT / "book" / "changelog.md").read_text(encoding="utf-8")
    version, date = re.search(r"(?m)^## ([\d.]+), (\d{4}-\d\d-\d\d)$", page).groups()
    assert (version, date) == (CITATION["version"], CITATION["date-released"])


def test_the_tutorial_is_the_one_of_the_bibliography():
    (work,) = CITATION["references"]
    entry = references.entries()["yang2022"]
    title = references.plain(entry.fields["title"])
    assert " ".join(title.split()) == work["title"]
    (author,) = entry.persons["author"]
    assert author.last_names == [work["authors"][0]["family-names"]]
    assert author.first_names == [work["authors"][0]["given-names"]]
    assert int(entry.fields["year"]) == work["year"]
    eprint = entry.fields["eprint"]
    assert work["url"].endswith(eprint)
    assert work["identifiers"][0]["value"] == f"arXiv:{eprint}"
