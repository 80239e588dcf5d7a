"""The workflows of GitHub: no rights, targets or versions but those that are meant."""

import os
import re
import subprocess

import pytest
import yaml

from tools import conventions as c

FOLDER = c.ROOT / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yml"))
ACTION = re.compile(r"actions/[a-z-]+@v\d+|\./\.github/tell")  # GitHub's own, or ours
# Who may write what.
WRITES = {
    ("publish", "deploy"): {"pages", "id-token"},
    ("publish", "students"): {"contents"},
    ("publish", "release"): {"contents"},
    ("links", "links"): {"issues"},
    ("colab", "image"): {"issues"},
    ("colab", "newest"): {"issues"},
}


def read(path):
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    found["on"] = found.pop(True)  # as YAML 1.1 reads the word
    return found


def jobs():
    return [
        pytest.param(workflow.stem, name, job, id=f"{workflow.stem}-{name}")
        for workflow in WORKFLOWS
        for name, job in read(workflow)["jobs"].items()
    ]


def commands(text):
    """What a step runs, without the line breaks that only fold it."""
    return re.sub(r"\\\n\s*", " ", text)


@pytest.mark.parametrize("workflow, name, job", jobs())
def test_job(workflow, name, job):
    assert job["timeout-minutes"] <= 90
    writes = {k for k, v in job.get("permissions", {}).items() if v != "read"}
    assert writes == WRITES.get((workflow, name), set())
    for step in job["steps"]:
        assert "run" in step or ACTION.fullmatch(step["uses"])
        python = step.get("with", {}).get("python-version", "3.13")
        assert python in ("3.13", "${{ matrix.python }}")
    for python in job.get("strategy", {}).get("matrix", {}).get("python", []):
        assert python in ("3.11", "3.13")  # words, not numbers: 3.10 is 3.1


@pytest.mark.parametrize("workflow, name, job", jobs())
def test_commands(workflow, name, job):
    makefile = (c.ROOT / "Makefile").read_text(encoding="utf-8")
    for text in (commands(s["run"]) for s in job["steps"] if "run" in s):
        done = subprocess.run(["bash", "-n"], input=text, text=True)
        assert done.returncode == 0, text
        for target in set(re.findall(r"\bmake (\w+)", text)):
            assert re.search(rf"^{target}:", makefile, re.M), f"no target {target}"
        for module in re.findall(r"-m (tools\.\w+)", text):
            assert (c.ROOT / f"{module.replace('.', '/')}.py").exists(), module
        assert "${{" not in text, "what GitHub fills in comes through env"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    named = str(workflow["on"])
    assert "main" not in named, "a fork may call its branch otherwise"
    if "schedule" in workflow["on"]:
        for job in workflow["jobs"].values():
            last = job["steps"][-1]
            assert (last["if"], last["uses"]) == ("failure()", "./.github/tell")


def test_tell():
    (step,) = yaml.safe_load((FOLDER / "tell" / "action.yml").read_text())["runs"][
        "steps"
    ]
    assert "${{" not in step["run"]
    done = subprocess.run(["bash", "-n"], input=step["run"], text=True)
    assert done.returncode == 0


def test_students_branch(tmp_path):
    """The step that makes the branch, on a repository of its own."""
    steps = read(FOLDER / "workflows" / "publish.yml")["jobs"]["students"]["steps"]
    (step,) = (
        s["run"] for s in steps if s.get("name") == "the branch student, made anew"
    )
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"HOME": str(tmp_path), "GITHUB_ACTOR": "teacher", "GITHUB_SHA": "0123"}

    def run(command, folder=clone):
        command = ["bash", "-ec", command]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    run("git init -q --bare origin.git && git clone -q origin.git clone", tmp_path)
    run("mkdir book; echo solved > book/01-a.ipynb; echo _build/ > .gitignore")
    run("git checkout -q -b main; git add .")
    run("git -c user.name=x -c user.email=x commit -qm x")
    for edition in ("first", "second"):
        run("git checkout -q main; git branch -qD student || true")
        run("echo moved > book/01-a.ipynb")
        run(
            f"mkdir -p _build/editions/student; cd _build/editions/student; "
            f"echo {edition} > 01-a.ipynb"
        )
        run(step)
    assert run("git ls-tree -r --name-only student", origin) == ["book/01-a.ipynb"]
    assert run("git show student:book/01-a.ipynb", origin) == ["second"]
    assert run("git rev-list student", origin) == run("git rev-parse student", origin)


def test_dependabot():
    found = yaml.safe_load((FOLDER / "dependabot.yml").read_text(encoding="utf-8"))
    kinds = {x["package-ecosystem"]: x for x in found["updates"]}
    assert kinds["github-actions"]["schedule"]["interval"] == "weekly"
    assert kinds["pip"]["schedule"]["interval"] == "monthly"
