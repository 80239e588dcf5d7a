"""Studies: what every script of `experiments/` does besides its own computation.

A study has settings and a list of jobs. Each job is computed once and its result is
written at once, with a stamp that tells which code made it, so that a study can be
stopped and started again. The result lies in `book/results/`, where a chapter loads it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aevb.files import replacing
from aevb.training import choose_device
from tools import conventions as c
from tools.stamps import script_sha256

Job = dict[str, Any]


def conduct(
    script: str,
    settings: dict[str, Any],
    jobs: Callable[[list[int]], list[Job]],
    run: Callable[..., dict[str, Any]],
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Run the jobs that are not in the result file yet, in order, and write each.

    The command line takes ``--seeds``, ``--only`` and ``--out``.

    Args:
        script: the study's own ``__file__``.
        settings: kept with the result; if they change, all is computed again.
        jobs: ``jobs(seeds)`` lists what to do; a job names one run, ``{"seed": 0}``,
            say, and becomes the first entries of its result.
        run: ``run(**job)`` gives the rest: numbers and text.
        seeds: what ``--seeds`` is if it is not given.
    """
    path = Path(script).resolve()
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--only", help="jobs that have this value, as in VAE")
    result = c.ROOT / "book" / "results" / f"{path.stem}.json"
    parser.add_argument("--out", type=Path, default=result)
    arguments = parser.parse_args()
    settings = json.loads(json.dumps(settings))  # as they are read back: lists
    runs = finished(arguments.out, path, settings)
    for job in jobs(arguments.seeds):
        if arguments.only not in (None, *job.values()):
            continue
        name = ", ".join(f"{key} {value}" for key, value in job.items())
        if any(old | job == old for old in runs):
            print(f"{name}: there already")
            continue
        start = time.perf_counter()
        new = job | run(**job)
        new["seconds"] = round(time.perf_counter() - start, 1)
        runs.append(new)
        write(arguments.out, path, settings, runs)
        numbers = {k: v for k, v in new.items() if not isinstance(v, str)}
        print(f"{name}: {numbers}", flush=True)


def stamp(script: Path, seconds: float) -> dict[str, str | float]:
    """Where the numbers come from."""
    return {
        "script": script.relative_to(c.ROOT).as_posix(),
        "code_sha256": script_sha256(script),
        "torch": torch.__version__,
        "device": str(choose_device()),
        "seconds": round(seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def finished(path: Path, script: Path, settings: dict[str, Any]) -> list[Job]:
    """The runs in the file, if this code made them with these settings."""
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    same = old.get("stamp", {}).get("code_sha256") == script_sha256(script)
    return old["runs"] if same and old["settings"] == settings else []


def write(path: Path, script: Path, settings: dict[str, Any], runs: list[Job]) -> None:
    """Replace the file in one step: it is never half written."""
    seconds = sum(run["seconds"] for run in runs)
    result = {"stamp": stamp(script, seconds), "settings": settings, "runs": runs}
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
