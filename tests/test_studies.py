"""What studies share: jobs, resuming, stamps."""

import json
import sys

import pytest

from tools import conventions as c
from tools import stamps, studies


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "ROOT", tmp_path)
    path = tmp_path / "experiments" / "07_made_up.py"
    path.parent.mkdir()
    path.write_text("print(1)\n")
    return path


def conduct(monkeypatch, script, *arguments, settings=None, fail_at=None):
    """Run the study; the jobs that were computed, in order."""
    done = []

    def run(kind, seed):
        if (kind, seed) == fail_at:
            raise KeyboardInterrupt
        done.append((kind, seed))
        return {"value": 10 * seed, "text": kind}

    def jobs(seeds):
        return [{"kind": k, "seed": s} for s in seeds for k in ("a", "b")]

    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    studies.conduct(str(script), settings or {"sizes": (1, 2)}, jobs, run, (0, 1))
    return done


def test_all_jobs_are_computed_once(script, monkeypatch, capsys):
    everything = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert conduct(monkeypatch, script) == everything
    path = script.parents[1] / "book" / "results" / "07_made_up.json"
    result = json.loads(path.read_text())
    runs = result["runs"]
    assert [(r["kind"], r["seed"]) for r in runs] == everything
    assert runs[2]["value"] == 10 and runs[2]["seconds"] >= 0
    assert result["settings"] == {"sizes": [1, 2]}
    assert result["stamp"]["script"] == "experiments/07_made_up.py"
    assert result["stamp"]["code_sha256"] == stamps.script_sha256(script)
    assert conduct(monkeypatch, script) == []
    assert "kind a, seed 0: there already" in capsys.readouterr().out


def test_a_stopped_study_goes_on(script, monkeypatch, tmp_path):
    out = ("--out", str(tmp_path / "other.json"))
    with pytest.raises(KeyboardInterrupt):
        conduct(monkeypatch, script, *out, fail_at=("a", 1))
    assert conduct(monkeypatch, script, *out) == [("a", 1), ("b", 1)]
    assert not (script.parents[1] / "book").exists()


def test_more_seeds_add_to_the_runs(script, monkeypatch):
    conduct(monkeypatch, script, "--seeds", "3")
    assert conduct(monkeypatch, script, "--seeds", "3", "5") == [("a", 5), ("b", 5)]


def test_one_kind_of_job_alone(script, monkeypatch):
    assert conduct(monkeypatch, script, "--only", "b") == [("b", 0), ("b", 1)]
    assert conduct(monkeypatch, script) == [("a", 0), ("a", 1)]


def test_other_code_or_settings_begin_anew(script, monkeypatch):
    conduct(monkeypatch, script, "--seeds", "0")
    assert len(conduct(monkeypatch, script, "--seeds", "0", settings={"n": 1})) == 2
    script.write_text("print(2)\n")
    assert len(conduct(monkeypatch, script, "--seeds", "0", settings={"n": 1})) == 2
