"""The book's home: named once, in `_config.yml`; everything else follows.

    python -m tools.repository https://github.com/you/your-fork [branch]

(`make repository URL=... BRANCH=...`.)  Rewrites the address in the configuration, the
badges and the setup cells of the chapters, the pages, the README and CITATION.cff.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools import conventions as c

HOST = "github.com"


@dataclass(frozen=True)
class Home:
    owner: str
    name: str
    branch: str = "main"

    @property
    def url(self) -> str:
        return f"https://{HOST}/{self.owner}/{self.name}"

    @property
    def site(self) -> str:
        """Where the workflow publishes the site."""
        pages = f"{self.owner.lower()}.github.io"
        return f"https://{pages}/" + ("" if self.name == pages else f"{self.name}/")

    @property
    def package(self) -> str:
        """What the setup cell installs."""
        return f"git+{self.url}@{self.branch}"

    def colab(self, chapter: str) -> str:
        """The address under which Colab opens a chapter."""
        return (
            f"https://colab.research.google.com/github/{self.owner}/{self.name}"
            f"/blob/{self.branch}/book/{chapter}"
        )


def parse(address: str, branch: str = "main") -> Home:
    """The home at an address such as ``https://github.com/you/fork``."""
    m = re.fullmatch(
        r"(?:(?:https?://|ssh://git@|git@)?github\.com[/:])?"
        r"([A-Za-z0-9-]+)/([\w.-]+?)(?:\.git)?/?",
        address.strip(),
    )
    if not m:
        raise ValueError(
            f"{address!r} is no repository on GitHub: expected "
            "https://github.com/OWNER/NAME (Colab opens notebooks from there)"
        )
    return Home(m[1], m[2], branch)


def home(root: Path = c.ROOT) -> Home:
    """The home that `_config.yml` names."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return parse(config["repository"]["url"], config["repository"]["branch"])


def followers(root: Path = c.ROOT) -> list[Path]:
    """The files that name the home, the configuration first."""
    pages = sorted((root / "book").glob("*.md"))
    others = [root / name for name in ("_config.yml", "README.md", "CITATION.cff")]
    return [p for p in [*others, *pages, *c.chapters(root)] if p.exists()]


def disagreements(root: Path = c.ROOT) -> list[str]:
    """Where an address differs from the home, one sentence each."""
    here = home(root)
    found = []
    for path in followers(root):
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(root)
        for m in re.finditer(r"git\+https?://[^\s\"'\\`]+", text):
            if m[0] != here.package:
                found.append(f"{where} installs {m[0]}, not {here.package}")
        for m in re.finditer(
            r"https://colab\.research\.google\.com/github/[^\s)\"\\]+", text
        ):
            chapter = m[0].rpartition("/")[2]
            if m[0] != here.colab(chapter):
                found.append(f"{where} opens {m[0]}, not {here.colab(chapter)}")
        for m in re.finditer(r"github\.com/([A-Za-z0-9-]+)/([\w.-]*\w)", text):
            name = m[2].removesuffix(".git")
            if name == here.name and m[1] != here.owner:
                found.append(f"{where} names {m[0]}, not {here.url}")
        for m in re.finditer(r"https://[\w-]+\.github\.io/(?:[\w.-]+/)?", text):
            if m[0].rstrip("/").endswith(f"/{here.name}") and m[0] != here.site:
                found.append(f"{where} names {m[0]}, not {here.site}")
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    if config["html"]["baseurl"] != here.site:
        found.append(f"_config.yml: baseurl is not {here.site}")
    return found


def move(new: Home, root: Path = c.ROOT) -> list[Path]:
    """Point every follower at a new home; the files that changed."""
    old = home(root)
    changed = []
    for path in followers(root):
        before = text = path.read_text(encoding="utf-8")
        if path.name == "_config.yml":
            text = re.sub(r"(?m)^(  branch:) .*$", rf"\1 {new.branch}", text)
        text = text.replace(old.colab(""), new.colab(""))
        text = text.replace(old.package, new.package)
        text = text.replace(old.site, new.site)
        text = re.sub(re.escape(old.url) + r"(?![\w-])", new.url, text)
        if text != before:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?", help="https://github.com/OWNER/NAME")
    parser.add_argument("branch", nargs="?", default="main")
    parser.add_argument("--root", type=Path, default=c.ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.url is None:
        print(f"The book's home is {home(options.root).url}.")
        print("To move it: make repository URL=https://github.com/OWNER/NAME")
        return 0
    try:
        new = parse(options.url, options.branch)
    except ValueError as problem:
        parser.error(str(problem))
    for path in move(new, options.root):
        print(f"{path.relative_to(options.root)} follows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
