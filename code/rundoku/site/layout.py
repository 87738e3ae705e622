"""How a copy looks: its header, the comment above each part, the blank lines between them."""

import ast
import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from rundoku.site.lineage import room_of
from rundoku.site.sources import Module

DEFINITION = re.compile(r"^(?:async def|def|class|@)", re.MULTILINE)


def join(blocks: Iterable[str], apart: int = 2) -> str:
    """Return blocks as one text, with ``apart`` blank lines around definitions and one elsewhere."""
    text, last = "", ""
    for block in blocks:
        text += "\n" * (1 + (apart if DEFINITION.search(f"{last}\n{block}") else 1)) * bool(text) + block
        last = block
    return text


def listed(before: str, parts: list[str], after: str) -> str:
    """Return a list of names on one line, or one a line where that is too long."""
    line = f"{before}{', '.join(parts)}{after}"
    opened, closed = (before, after) if after else (f"{before}(", ")")
    return line if len(line) <= 100 else "\n".join([opened, *(f"    {part}," for part in parts), closed])


def indented(text: str) -> str:
    """Return statements one level deeper; the lines inside a string stay, save in docstrings."""
    tree = ast.parse(text)
    fixed: set[int] = set()
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
        ):
            fixed.update(range(node.lineno + 1, (node.end_lineno or 0) + 1))
    return "\n".join(f"    {line}" if line and number not in fixed else line for number, line in enumerate(text.split("\n"), 1))


def header(root: Path, room: Module, sources: list[Module], needs: list[str], kernels: list[str]) -> str:
    """Return the copy's docstring: what it is, where it is from, what it needs at once and for its kernels."""
    project = read(root / "pyproject.toml", tomllib.loads).get("project", {})
    wanted = [*project.get("dependencies", []), *(one for more in project.get("optional-dependencies", {}).values() for one in more)]
    stated = {re.split(r"[^\w-]", one)[0]: one.partition(";")[0].strip() for one in wanted}
    # Not the commit: what did not change keeps its bytes.
    digest = hashlib.sha256("".join(module.text for module in sources).encode()).hexdigest()[:12]
    origin = " ".join(["Rundoku", *([project["version"]] if "version" in project else []), f"(sources {digest})"])
    text = (room.docstring or "").replace("\\", r"\\").replace('"""', r"\"\"\"")
    needed = ", ".join(stated.get(name, name) for name in needs) or "Python only"
    needed += f"; {', '.join(stated.get(name, name) for name in kernels)} for the kernels" if kernels else ""
    origin = f"Copied from {origin}: {room.name} and what it needs of other rooms."
    return f'"""{text}\n\n{origin}\nNeeds {needed}. MIT licence, at the end of this file.\n"""'


def title(root: Path, module: Module, is_room: bool) -> str:
    """Return the comment above a module's part: its paper, its name, and its own docstring and remarks."""
    slug = room_of(module.name) or ""
    paper = read(root / "notes" / slug / "paper.yml", yaml.safe_load) if slug else {}
    name = paper.get("title") or slug.replace("-", " ") or "Shared by every kernel"
    said = [] if is_room else (module.docstring or "").split("\n")
    for item in module.items:
        if item.is_import:  # remarks that stand above imports but apart from them
            above = enumerate(module.lines[item.first - 1 : item.start - 1], item.first)
            apart = "\n".join([*(line for number, line in above if number not in module.markers), ""]).split("\n\n")[:-1]
            said += ["", *(line[1:].removeprefix(" ") for line in "\n".join(apart).split("\n") if line.startswith("#"))]
    rule = "# " + "-" * 100
    lines = [f"{name}, arXiv {paper['arxiv']}" if paper.get("arxiv") else name, module.name, "", *said]
    return "\n".join([rule, *(f"# {line}".rstrip() for line in "\n".join(lines).strip().split("\n")), rule])


def licence(root: Path) -> str:
    """Return the licence as comments."""
    text = read(root / "LICENSE", str) or ""
    return "".join(f"# {line}".rstrip() + "\n" for line in text.strip().split("\n") if text)


def read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Return what a file says, an empty mapping where there is none."""
    return parse(path.read_text(encoding="utf-8")) if path.is_file() else {}
