"""What contributors are told exists, and the form for errors asks what we need."""

import re

import yaml

from tools import conventions as c

PAGE = (c.ROOT / "book" / "contributing.md").read_text(encoding="utf-8")
FORM = c.ROOT / ".github" / "ISSUE_TEMPLATE" / "error.yml"


def test_the_commands_exist():
    makefile = (c.ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z]+):", makefile))
    named = set(re.findall(r"`make ([a-z]+)", PAGE))
    assert named and named <= targets


def test_the_files_exist():
    for name in re.findall(r"`([\w/]+(?:/|\.(?:py|yml|bib|md)))`", PAGE):
        assert name == "MNIST/raw/" or (c.ROOT / name).exists(), name


def test_the_form_asks_for_place_machine_and_setup_line():
    form = yaml.safe_load(FORM.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    fields = {field["id"]: field for field in form["body"]}
    assert list(fields) == ["chapter", "what", "where", "device", "setup"]
    for field in fields.values():
        assert field["type"] in ("input", "textarea", "dropdown")
        assert field["attributes"]["label"]
        options = field["attributes"].get("options", [])
        assert (field["type"] == "dropdown") == bool(options)
