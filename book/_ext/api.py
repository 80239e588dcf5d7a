"""Sphinx extension: the reference of the package, read from its source.

``.. package:: aevb.data`` describes the public names of a module: signatures and
docstrings, in the order of the file, each with a link to its lines.  Nothing is
imported, so the site needs none of the packages that the code needs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective

from tools import conventions as c
from tools import equations, repository

Function = ast.FunctionDef | ast.AsyncFunctionDef
LINES: dict[str, tuple[str, int]] = {}  # full name -> file, line
LETTER = re.compile(r"(?m)^( +\w+: )([A-Za-z]\.)(?=\s|$)")  # "x: D." is no list


def escape(docstring: str) -> str:
    """Bars are mathematics here, not substitutions; literals and examples stay."""
    parts = re.split(r"(``.*?``|(?m:^ *(?:>>>|\.\.\.) .*$))", docstring, flags=re.S)
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "".join(parts)


def decorators(node: Function | ast.ClassDef) -> set[str]:
    return {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}


def is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def arguments(function: Function, *, method: bool) -> str:
    """The signature; defaults that are code objects stay as they are written."""
    inside = function.args
    if method and "staticmethod" not in decorators(function):
        plain = inside.posonlyargs or inside.args
        plain.pop(0)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(inside)}){returns}"


def fields(node: ast.ClassDef) -> str:
    """The signature of a dataclass or of a named tuple."""
    found = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            default = f" = {ast.unparse(item.value)}" if item.value else ""
            found.append(f"{item.target.id}: {ast.unparse(item.annotation)}{default}")
    return f"({', '.join(found)})"


def class_signature(node: ast.ClassDef) -> str:
    for item in node.body:
        if isinstance(item, Function) and item.name == "__init__":
            item.returns = None
            return arguments(item, method=True)
    bases = {ast.unparse(b).split(".")[-1] for b in node.bases}
    if "NamedTuple" in bases or "dataclass" in decorators(node):
        return fields(node)
    return ""


class Package(SphinxDirective):
    """``.. package:: aevb.data``, with the options of `SphinxDirective`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        path = Path(self.env.srcdir).parent.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.env.note_dependency(str(path))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lines = [f".. py:module:: {module}", ""]
        lines += self.docstring(tree, "module")
        for node in tree.body:
            if isinstance(node, Function | ast.ClassDef) and is_public(node.name):
                if ast.get_docstring(node):
                    lines += self.describe(node, module, path)
        holder = nodes.Element()
        self.state.nested_parse(
            StringList(lines, source=str(path)), self.content_offset, holder
        )
        return holder.children

    def docstring(self, node: ast.AST, what: str) -> list[str]:
        text = escape(ast.get_docstring(node) or "")
        text = LETTER.sub(r"\1\\\2", text)
        return [*GoogleDocstring(text, self.config, self.env.app, what).lines(), ""]

    def describe(
        self, node: Function | ast.ClassDef, module: str, path: Path, owner: str = ""
    ) -> Iterator[str]:
        name = f"{owner}.{node.name}" if owner else node.name
        file = path.relative_to(Path(self.env.srcdir).parent).as_posix()
        LINES[f"{module}.{name}"] = file, node.lineno
        if isinstance(node, ast.ClassDef):
            kind, signature = "class", class_signature(node)
        elif not owner:
            kind, signature = "function", arguments(node, method=False)
        elif decorators(node) & {"property", "cached_property"}:
            kind, signature = "property", ""
        else:
            kind, signature = "method", arguments(node, method=True)
        yield f".. py:{kind}:: {name}{signature}"
        if kind == "property" and node.returns:
            yield f"   :type: {ast.unparse(node.returns)}"
        for special in ("classmethod", "staticmethod"):
            if kind == "method" and special in decorators(node):
                yield f"   :{special}:"
        yield ""
        inside = self.docstring(node, kind)
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, Function) and is_public(item.name):
                    if ast.get_docstring(item):
                        inside += self.describe(item, module, path, name)
        yield from (f"   {line}".rstrip() for line in inside)
        yield ""


class Equations(SphinxDirective):
    """The table of equations, of the code that implements them, and of their tests."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir).parent
        lines = equations.markdown(root).splitlines()
        holder = nodes.Element()
        self.state.nested_parse(
            StringList(lines, source="equations"), self.content_offset, holder
        )
        return holder.children


def source_of(domain: str, info: dict[str, str]) -> str | None:
    """The address of the lines that define a name."""
    found = LINES.get(f"{info.get('module')}.{info.get('fullname')}")
    if domain != "py" or not found:
        return None
    home = repository.home(c.ROOT)
    return f"{home.url}/blob/{home.branch}/{found[0]}#L{found[1]}"


def follow(app: Sphinx, config: Config) -> None:
    config.linkcode_resolve = source_of


def setup(app: Sphinx) -> dict[str, object]:
    app.setup_extension("sphinx.ext.linkcode")
    app.connect("config-inited", follow)
    app.add_directive("package", Package)
    app.add_directive("equations", Equations)
    return {"version": "1", "parallel_read_safe": False}
