"""Ask every address outside the site whether it still answers.

    python -m tools.links     # make links

An answer that refuses a program, or asks it to come back later, still comes from
something that is there: publishers give it to whatever is no browser.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from tools import conventions as c
from tools import site

THERE = re.compile(r"^(403|406|418|429) ")


def asked(root: Path = c.ROOT) -> list[dict[str, str]]:
    """What Sphinx found out about every address, page by page."""
    with tempfile.TemporaryDirectory() as folder:
        _, said = site.build(root, Path(folder), builder="linkcheck")
        found = Path(folder, "_build", "html", "output.json")
        if not found.exists():
            raise RuntimeError(
                f"no address was asked, for the book is not read: {said}"
            )
        lines = found.read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda x: (x["filename"], x["uri"]))


def is_dead(link: dict[str, str]) -> bool:
    return link["status"] in ("broken", "timeout") and not THERE.match(link["info"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    links = asked(parser.parse_args(arguments).root)
    dead = [x for x in links if is_dead(x)]
    for x in dead:
        print(f"{x['filename']}: {x['uri']}: {x['info']}", file=sys.stderr)
    print(f"{len(dead)} of {len({x['uri'] for x in links})} addresses do not answer")
    return int(bool(dead))


if __name__ == "__main__":
    raise SystemExit(main())
