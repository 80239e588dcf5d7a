"""Each chapter alone in an empty folder, with what its own setup cell installs.

Two chapters stand for the others, which need nothing else; all of them run with

    python -m pytest tests/test_colab.py --thorough
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import made_up
import pytest

from tools import conventions as c
from tools import repository

# One with the bundled digits, one with trained weights, studies and images.
CHAPTERS = ["02", "11"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that has all that this one has, but `aevb`."""
    folder = tmp_path_factory.mktemp("python")
    rest = folder / "rest"
    rest.mkdir()
    for kind in ("purelib", "platlib"):
        for path in Path(sysconfig.get_path(kind)).iterdir():
            if "aevb" not in path.name and not (rest / path.name).exists():
                (rest / path.name).symlink_to(path)
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    said = subprocess.run([python, "-c", where], capture_output=True, text=True)
    Path(said.stdout.strip(), "rest.pth").write_text(f"{rest}\n")
    return python


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Git finds this folder, as it is, where the setup cells name GitHub."""
    folder = tmp_path_factory.mktemp("repository")
    copy = made_up.repository_of_this(folder)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{copy.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository.home().url,
        "PIP_NO_BUILD_ISOLATION": "0",  # which means: with the setuptools that is here
        "JUPYTER_DATA_DIR": str(folder),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def run(python, settings, *chapters):
    return subprocess.run(
        [python, "-m", "tools.colab", *chapters],
        cwd=c.ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )


def test_chapters_alone_with_what_they_install(python, settings, request):
    chapters = [] if request.config.option.thorough else CHAPTERS
    done = run(python, settings, *chapters)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(chapters or c.chapters())
    for line in lines:
        assert str(python.parents[1]) in line
        assert "the numbers are those stored" in line


def test_what_fails(python, settings, tmp_path):
    """An error, and a setup cell that is not quiet when it is run again."""
    root = made_up.book(tmp_path / "a", "02-first", "07-second")
    made_up.replace_in_cell(root / "book" / "02-first.ipynb", 4, "1 + 1", "1 / 0")
    path = root / "book" / "07-second.ipynb"
    notebook = made_up.read(path)
    notebook.cells[2].source += "import time\nprint(time.time())"
    notebook.cells[
        4
    ].source = 'from aevb.notebook import fingerprint\nfingerprint("07-second", elbo=2)'
    made_up.save(notebook, path)
    done = run(python, settings, "--root", str(root))
    assert done.returncode == 1
    first, second = done.stderr.split("07-second.ipynb fails. ")
    assert "02-first.ipynb fails. " in first and "ZeroDivisionError" in first
    assert second.startswith("its setup cell says, when it is run again")


def test_a_python_that_has_the_package_is_refused(settings):
    done = run(sys.executable, settings)
    assert done.returncode == 2
    assert "has aevb already" in done.stderr
