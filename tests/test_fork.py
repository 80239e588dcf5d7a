"""From a fork: after `make repository`, nothing on its site leads to this home."""

import re
import subprocess
import sys

import made_up
import pytest

from tools import conventions as c
from tools import repository, site
from tools.repository import Home

HERE = repository.home()
FORK = Home("another-course", "Vae.class", "autumn")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of this repository after the command that the README names."""
    folder = tmp_path_factory.mktemp("fork")
    copy = made_up.repository_of_this(folder)
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", copy, clone], check=True)
    made = f"{sys.prefix}/.made"  # the environment is this one
    command = ["make", f"--assume-old={made}", f"SITE={sys.prefix}", "repository"]
    settings = [f"PYTHON={sys.executable}", f"URL={FORK.url}", f"BRANCH={FORK.branch}"]
    subprocess.run([*command, *settings], cwd=clone, check=True, capture_output=True)
    return clone


def traces(folder):
    """The files that name this home, with what they say."""
    names = re.compile(
        f"{re.escape(HERE.owner)}/{re.escape(HERE.name)}(?![\\w-])|{re.escape(HERE.site)}",
        re.I,
    )
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git" not in path.parts:
            if m := names.search(path.read_text(encoding="utf-8", errors="ignore")):
                yield f"{path.relative_to(folder)} names {m[0]}"


def test_sources(clone):
    assert not list(traces(clone))
    assert repository.home(clone) == FORK
    assert not repository.disagreements(clone)


@pytest.fixture(scope="module", params=["a made-up book", "this book"])
def root(request, tmp_path_factory, pytestconfig):
    if request.param == "this book":
        if not pytestconfig.option.thorough:
            pytest.skip("the site of a whole fork is built with --thorough")
        return request.getfixturevalue("clone")
    root = made_up.book(tmp_path_factory.mktemp("x") / "a", "02-first", "07-second")
    repository.move(FORK, root)
    return root


def test_site(root):
    status, said = site.build(root)
    assert status == 0, said
    folder = root / "_build" / "html"
    assert not list(traces(folder))
    for path in [*c.chapters(root), *(root / "book").glob("*.md")]:
        page = (folder / f"{path.stem}.html").read_text(encoding="utf-8")
        assert f'<link rel="canonical" href="{FORK.site}{path.stem}.html"' in page
        assert f'property="og:url" content="{FORK.site}{path.stem}.html"' in page
        assert f'href="{FORK.url}"' in page
        assert f'href="{FORK.url}/issues/new?' in page
        if path.suffix == ".ipynb":
            assert f'href="{FORK.colab(path.name)}"' in page
            notebook = (folder / "_sources" / path.name).read_text(encoding="utf-8")
            assert FORK.package in notebook
            assert FORK.colab(path.name) in notebook
