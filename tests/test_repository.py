"""The book's home is named in one place, and everything follows it."""

import subprocess

import made_up
import pytest

from tools import conventions as c
from tools import repository
from tools.repository import Home, parse

SUFFIXES = (".py", ".toml", ".yml", ".txt", ".css", ".js", ".md", ".cff", "")


@pytest.fixture
def root(tmp_path):
    root = made_up.book(tmp_path / "made-up", "02-first", "07-second")
    home = repository.home(root)
    with (root / "README.md").open("a") as readme:
        readme.write(f"[site]({home.site}) [Colab]({home.colab('02-first.ipynb')})\n")
    citation = f"url: {home.site}\nrepository-code: {home.url}\n"
    (root / "CITATION.cff").write_text(citation)
    return root


def test_this_book_agrees():
    assert not repository.disagreements()


def test_nothing_else_names_the_home():
    home = repository.home()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=c.ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    followers = {p.relative_to(c.ROOT).as_posix() for p in repository.followers()}
    for name in set(tracked) - followers:
        path = c.ROOT / name
        if path.suffix in SUFFIXES:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            for address in (f"{home.owner}/{home.name}", home.site):
                assert address not in text, f"{name} names {address}"


def test_moving(root):
    new = Home("My-Course", "vae", "autumn")
    changed = {p.name for p in repository.move(new, root)}
    assert changed == {
        "_config.yml",
        "README.md",
        "CITATION.cff",
        "02-first.ipynb",
        "07-second.ipynb",
    }
    assert repository.home(root) == new
    assert not repository.disagreements(root)
    first = made_up.read(root / "book" / "02-first.ipynb").cells
    badge = "github/My-Course/vae/blob/autumn/book/02-first.ipynb"
    assert badge in first[0].source
    assert f"git+{new.url}@autumn" in first[2].source
    assert "baseurl: https://my-course.github.io/vae/" in (
        (root / "_config.yml").read_text()
    )
    assert new.url in (root / "README.md").read_text()
    citation = "url: https://my-course.github.io/vae/\nrepository-code: "
    assert (root / "CITATION.cff").read_text() == f"{citation}{new.url}\n"


def test_moving_there_and_back_changes_nothing(root):
    old = repository.home(root)
    before = {p: p.read_bytes() for p in repository.followers(root)}
    repository.move(Home("you", "aevb-book-fork", "main"), root)
    repository.move(old, root)
    assert {p: p.read_bytes() for p in before} == before


def test_outputs_stay_fresh(root):
    path = root / "book" / "02-first.ipynb"
    before = made_up.stamps.notebook_sha256(made_up.read(path))
    repository.move(Home("you", "fork"), root)
    assert made_up.stamps.notebook_sha256(made_up.read(path)) == before


@pytest.mark.parametrize("place", ["badge", "setup", "readme", "page", "baseurl"])
def test_a_disagreement_is_found(root, place):
    home = repository.home(root)
    path = root / "book" / "02-first.ipynb"
    other = Home("someone", home.name)
    if place == "badge":
        made_up.replace_in_cell(path, 0, home.owner, "someone")
    elif place == "setup":
        made_up.replace_in_cell(path, 2, home.package, home.package + "2")
    elif place == "readme":
        (root / "README.md").write_text(f"See {other.url}.")
    elif place == "page":
        (root / "book" / "index.md").write_text(f"# X\n\nSee {other.site}.")
    else:
        config = (root / "_config.yml").read_text()
        (root / "_config.yml").write_text(config.replace(home.site, other.site))
    assert repository.disagreements(root)


def test_addresses():
    fork = Home("you", "a.fork-1")
    for address in (
        "https://github.com/you/a.fork-1",
        "https://github.com/you/a.fork-1.git",
        "https://github.com/you/a.fork-1/",
        "git@github.com:you/a.fork-1.git",
        "you/a.fork-1",
    ):
        assert parse(address) == fork
    assert Home("You", "you.github.io").site == "https://you.github.io/"
    for address in ("https://example.org/you/fork", "fork", "", "you/fork/deeper"):
        with pytest.raises(
            ValueError, match=r"expected https://github\.com/OWNER/NAME"
        ):
            parse(address)


def test_command(root, capsys):
    assert repository.main(["--root", str(root)]) == 0
    assert "make repository URL=" in capsys.readouterr().out
    assert repository.main(["you/fork", "--root", str(root)]) == 0
    assert "02-first.ipynb follows" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        repository.main(["fork", "--root", str(root)])
    assert repository.home(root) == Home("you", "fork")
