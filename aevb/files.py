"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write a new version of a file, which replaces the old one at the end.

    What is written lies beside the file until it is complete. Where writing fails, the
    file is as it was. Missing folders are made.

    Raises:
        OSError: no room, or no right to write.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/results/numbers.txt") as beside:
        ...         n = beside.write_text("1 2 3")
        ...     Path(folder, "results", "numbers.txt").read_text()
        '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
