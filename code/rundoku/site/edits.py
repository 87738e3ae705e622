"""A statement's source with its names replaced: the layout and every comment stay."""

import ast
import copy
import json
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, groupby

from rundoku.site.scopes import Symbol, Target, Use
from rundoku.site.sources import Item

Position = tuple[int, int]  # line of the item from 0, column in UTF-8 bytes, as ast counts
Edit = tuple[Position, Position, str]


def edited(item: Item, names: dict[Target, str], instead: str, when: set[str]) -> str:
    """Return the source with the names replaced and section markers and our own imports dropped.

    An import that runs a module in ``when`` becomes the statement ``instead``.
    """
    lines = [*item.module.lines, ""]
    markers = {line: not lines[line - 2].strip() + lines[line].strip() for line in item.module.markers if item.first <= line <= item.end}
    edits = [((line - item.first, 0), (line - item.first + 1 + apart, 0), "") for line, apart in markers.items()]  # and one blank line
    edits += without_imports(item, instead, when)
    for within, group in groupby(item.uses.names, key=lambda use: use.within):
        changed = [(use.node, names[use.target]) for use in group if use.target in names and names[use.target] != written(use)]
        if within is None:
            edits += [renamed(item, node, new) for node, new in changed]
        elif changed:  # inside a string positions are not to be relied on
            memo = {id(node): ast.Name(new, ast.Load()) for node, new in changed}
            said = item.uses.strings.get(id(within))
            new = ast.unparse(copy.deepcopy(said or within, memo))
            edits.append((*span(item, within), json.dumps(new, ensure_ascii=False) if said else new))
    return rewrite(item.module.lines[item.first - 1 : item.end], edits).strip("\n")


def span(item: Item, node: ast.AST) -> tuple[Position, Position]:
    """Return where a node begins and ends."""
    assert isinstance(node, ast.stmt | ast.expr | ast.alias | ast.excepthandler)
    return (node.lineno - item.first, node.col_offset), ((node.end_lineno or 0) - item.first, node.end_col_offset or 0)


def renamed(item: Item, node: ast.AST, new: str) -> Edit:
    """Return the edit that puts another name where a node has one."""
    begin, end = span(item, node)
    if isinstance(node, ast.alias):
        return begin, end, f"{node.name} as {new}"
    if isinstance(node, ast.expr):
        return begin, end, new
    line = item.module.lines[begin[0] + item.first - 1].encode()  # a definition: its name stands behind the keyword
    found = re.compile(rb"(?:async\s+)?(?:def|class)\s+(\w+)|except\b.*?\bas\s+(\w+)").match(line, begin[1])
    if isinstance(node, ast.Global) or not found:
        raise item.module.error(node, f"the copy must use the name {new} here and cannot put it in")
    return (begin[0], found.start(found.lastindex or 0)), (begin[0], found.end(found.lastindex or 0)), new


def without_imports(item: Item, instead: str, when: set[str]) -> Iterator[Edit]:
    """Yield the edits that take our own imports out of functions and blocks."""
    ours = [node for node, _ in item.uses.imports if item.module.base(node)]
    parents = [parent for node in item.nodes for parent in ast.walk(node)]
    bodies = [getattr(parent, name, None) for parent in parents for name in ("body", "orelse", "finalbody")]
    for body in (body for body in bodies if isinstance(body, list)):
        gone = [node for node in body if node in ours]
        for node in gone:
            begin, end = span(item, node)
            line = item.module.lines[node.lineno - 1]
            if when & set(item.module.runs(node)):
                yield begin, end, instead
            elif (len(gone) == len(body) and node is gone[0]) or line[: begin[1]].strip():
                yield begin, end, "pass"
            else:
                yield (begin[0], 0), (end[0] + 1, 0), ""


def written(use: Use) -> str:
    """Return how a use spells its name, "" for a path of attributes."""
    match use.node:
        case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.alias(name=name, asname=new):
            return new or name.partition(".")[0]
        case ast.ExceptHandler(name=str(name)):
            return name
    return use.target.name if isinstance(use.node, ast.Global) and isinstance(use.target, Symbol) else ""


def rewrite(lines: list[str], edits: Iterable[Edit]) -> str:
    """Return lines with the spans between two positions (line from 0, column in UTF-8 bytes, as ast counts) replaced."""
    starts = list(accumulate((len(line.encode()) + 1 for line in lines), initial=0))
    text = "\n".join([*lines, ""]).encode()
    for begin, end, new in sorted(edits, reverse=True):
        text = text[: starts[begin[0]] + begin[1]] + new.encode() + text[starts[end[0]] + end[1] :]
    return text.decode()
