"""The glossary: in order, short, and with a place for every term."""

import re

from tools import conventions as c

TEXT = (c.ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^### (.+)\n\n(.+)$", TEXT, re.M)


def test_terms_stand_in_alphabetical_order():
    names = [name.lower().replace("–", "-") for name, _ in TERMS]
    assert len(names) >= 35
    assert names == sorted(names)
    assert len(TERMS) == len(re.findall(r"^### ", TEXT, re.M))


def test_every_term_is_under_its_letters():
    for first, last, part in re.findall(
        r"^## (\w) to (\w)$(.*?)(?=^## |\Z)", TEXT, re.S | re.M
    ):
        for name in re.findall(r"^### (\w)", part, re.M):
            assert first <= name <= last


def test_terms_are_explained_in_a_few_sentences():
    for name, words in TERMS:
        assert 8 <= len(words.split()) <= 75, name
        assert words.endswith("."), name
