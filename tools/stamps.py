"""Stamps: what tells whether stored outputs still belong to the code beside them.

A chapter's stamp is the entry ``aevb`` of its metadata, written by `make notebooks`:
the hash of its code, the data set, device and torch it ran with, its wall time and
date, and its fingerprint, the handful of numbers that it reaches in fast mode on a CPU.
A study of `experiments/` keeps the same stamp, less the fingerprint, under ``stamp`` in
its result in `book/results/`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools import conventions as c

# Another CPU sums in another order; a change of the package shows far above this.
TOLERANCE = 5e-3


def code_sha256(*sources: str) -> str:
    """Hash of code: comments, blank lines, the repository's address and the chapter's
    number in a file name do not count, since no number depends on them."""
    text = "\n\n".join(c.bare_code(s) for s in sources)
    text = re.sub(r"git\+https?://[^\s\"']+", "git+URL", text)
    text = re.sub(r"(?<=[\"'/])\d\d-(?=[a-z])", "", text)
    return hashlib.sha256(text.encode()).hexdigest()


def notebook_sha256(notebook: Mapping[str, Any]) -> str:
    """Hash of the code cells of a notebook."""
    return code_sha256(
        *(x["source"] for x in notebook["cells"] if x["cell_type"] == "code")
    )


def script_sha256(script: Path) -> str:
    """Hash of a study's script."""
    return code_sha256(script.read_text(encoding="utf-8"))


def is_fallback(dataset: str | None) -> bool:
    """Whether the bundled digits stood in for MNIST."""
    name = (dataset or "").lower()
    return "digits" in name and "mnist" not in name


def differences(stored: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """What differs between two fingerprints, one sentence each."""
    out = []
    for key in sorted({*stored, *found}):
        if key not in found:
            out.append(f"{key} is no longer reported")
        elif key not in stored:
            out.append(f"{key} is new")
        elif not math.isclose(stored[key], found[key], rel_tol=TOLERANCE, abs_tol=1e-6):
            out.append(f"{key} was {stored[key]:.6g} and is {found[key]:.6g}")
    return out
