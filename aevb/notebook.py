"""What a chapter's setup cell needs: seed, device, style, budget, data."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import aevb
from aevb import data
from aevb.training import choose_device

_report: dict[str, str] = {"dataset": "synthetic"}


def fast() -> bool:
    """Whether ``AEVB_FAST=1`` asks for a handful of steps in place of real training."""
    return os.environ.get("AEVB_FAST", "") not in ("", "0")


def setup(seed: int = 0, device: str | None = None) -> None:
    """Seed torch, set the figures' style and say what the notebook runs on.

    Args:
        device: where the notebook trains if it does not say otherwise; see
            :func:`aevb.training.choose_device` for None. Small models are faster on
            the CPU, where a chapter's own tensors are.
    """
    from aevb.plotting import book_style

    torch.manual_seed(seed)
    if device is not None:
        os.environ["AEVB_DEVICE"] = device
    book_style()
    device = choose_device()
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{device.type}, {torch.get_num_threads()} threads"
    speed = "fast" if fast() else "full"
    print(f"aevb {aevb.__version__}, torch {torch.__version__}, {place}, {speed} speed")


def budget(full: int, fast: int) -> int:
    """``full``, or ``fast`` where ``AEVB_FAST=1``: epochs, steps, samples.

    Example:
        >>> budget(50, fast=1) in (50, 1)
        True
    """
    return fast if globals()["fast"]() else full


def images(kind: str = "continuous") -> tuple[data.Examples, data.Examples]:
    """MNIST at full speed, else the digits that ship with scikit-learn; says which.

    The digits stand in where ``AEVB_FAST=1`` or where MNIST cannot be had.

    Args:
        kind: see :mod:`aevb.data`.

    Returns:
        ``train, test``.
    """
    name = "scikit-learn's digits"
    if fast():
        train, test = data.digits(kind)
    else:
        try:
            train, test = data.mnist(kind)
            name = "MNIST"
        except data.DataError as error:
            print(f"MNIST could not be had, so the figures below show digits. {error}")
            train, test = data.digits(kind)
    _report["dataset"] = name
    print(f"{name}, {kind}: {len(train)} training and {len(test)} test images")
    return train, test


def source(thing: object) -> None:
    """Show the package's own code of a function, method or class as a code block.

    Each docstring is cut to its first line: the reference has the rest.
    """
    from IPython.display import Markdown, display

    code = _short_docstrings(textwrap.dedent(inspect.getsource(thing)))
    display(Markdown(f"```python\n{code}\n```"))


def _short_docstrings(code: str) -> str:
    lines = code.rstrip().splitlines()
    documented = ast.FunctionDef | ast.ClassDef
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    for node in sorted(nodes, key=lambda node: -node.lineno):  # from the last line up
        if ast.get_docstring(node):
            text = node.body[0]
            if text.end_lineno > text.lineno:
                lines[text.lineno - 1] = lines[text.lineno - 1].rstrip() + '"""'
                del lines[text.lineno : text.end_lineno]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Iterable[Sequence], digits: int = 4) -> None:
    """Show words and numbers as a Markdown table.

    Args:
        header: names of the columns; not a formula alone, which a screen reader skips.
        rows: a string or a number for each column; numbers get ``digits`` decimals.

    Raises:
        ValueError: a column's name is a formula and nothing else.
    """
    from IPython.display import Markdown, display

    for name in header:
        if re.fullmatch(r"\$[^$]*\$", name):
            raise ValueError(f"table: the name {name!r} is a formula; expected a word")

    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1)]
    for row in rows:
        lines.append([v if isinstance(v, str) else f"{v:.{digits}f}" for v in row])
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


def study(name: str) -> dict:
    """The stored result of ``experiments/<name>.py``: stamp, settings and runs.

    A study takes longer than a reader should wait; its script makes the result again.
    It lies in ``book/results/`` and is installed with the package.

    Raises:
        FileNotFoundError: no such study.
    """
    package = Path(aevb.__file__).parent
    folders = (package.parent / "book" / "results", package / "results")
    for folder in folders:
        if (path := folder / f"{name}.json").exists():
            return json.loads(path.read_text(encoding="utf-8"))
    raise FileNotFoundError(
        f"study: no result called {name!r}; expected one of a script"
        f" in experiments/, as {name}.json in book/results/"
    )


def fingerprint(chapter: str, **numbers: float) -> None:
    """Print the chapter's key numbers and report them where ``AEVB_REPORT_DIR`` says.

    The tests compare the numbers that a chapter reaches in fast mode with the ones
    stored when its outputs were made: if they differ, the package behaves differently
    and the chapter must be run again.

    Args:
        chapter: the notebook's name without its ending.
        numbers: a handful of results.
    """
    rounded = {name: float(f"{float(value):.6g}") for name, value in numbers.items()}
    for name, value in rounded.items():
        print(f"{name.replace('_', ' ')}: {value:g}")
    folder = os.environ.get("AEVB_REPORT_DIR")
    if folder:
        report = {
            "chapter": chapter,
            "fast": fast(),
            "device": str(choose_device()),
            "torch": torch.__version__,
            "dataset": _report["dataset"],
            "numbers": rounded,
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{chapter}.json").write_text(json.dumps(report, indent=1))
