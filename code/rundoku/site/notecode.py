"""What a `note.py` says, read from its source without running it: values, figures, tables, claims and labels by name."""

import ast
from dataclasses import dataclass, field

from rundoku.site.fields import CatalogueError

_SHOWING = {"print", "publish", "figure", "table", "compile_table", "cost_table", "claim"}
_LABELLING = {"set_xlabel", "set_ylabel", "set_title", "text", "annotate", "suptitle"}
_LABEL_KEYWORDS = {"label", "xlabel", "ylabel"}
_LABEL_LISTS = {"columns", "labels", "xlabels", "ylabels"}


@dataclass
class Said:
    """Names with the line that says them; `publishes` is None where the names are only known when the code runs."""

    publishes: set[str] | None = field(default_factory=set)
    figures: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    labels: list[tuple[str, int]] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)  # every plain text: a helper that shows a figure or table is given its name


def said(source: str, name: str) -> Said:
    """Reads a note's code; CatalogueError if it is not Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise CatalogueError(f"{name}: line {error.lineno}: found {error.msg}, expected Python") from None
    found = Said(texts={node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)})
    for call in sorted((node for node in ast.walk(tree) if isinstance(node, ast.Call)), key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(call.func, ast.Name):
            _spoken(call, call.func.id, found)
        _labels(call, found)
    return found


def shows(section: str) -> dict[str, int]:
    """Return what a section shows by itself (print, publish, table, …) with the line in it; a helper that shows is seen where it runs."""
    found: dict[str, int] = {}
    try:
        todo: list[ast.AST] = [*ast.parse(section).body]
    except SyntaxError:  # not whole by itself, which running it will say
        return found
    for node in todo:
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue  # it is only said here, and done where it is called
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SHOWING:
            found.setdefault(node.func.id, node.lineno)
        todo.extend(ast.iter_child_nodes(node))
    return found


def _spoken(call: ast.Call, word: str, found: Said) -> None:
    if word == "publish":
        names = {keyword.arg for keyword in call.keywords}
        if found.publishes is not None:
            found.publishes = None if None in names else found.publishes | {name for name in names if name}
        return
    tables = dict.fromkeys(("table", "compile_table", "cost_table"), found.tables)
    names_of = {"figure": found.figures, **tables, "claim": found.claims}
    if word not in names_of:
        return
    name = next((text for text in map(_text, call.args[:1])), None)
    if name is None:
        found.faults.append((call.lineno, f"the name of this {word} is not a plain text; expected one, so that its words can be checked"))
    elif names_of[word].setdefault(name, call.lineno) != call.lineno:
        found.faults.append((call.lineno, f"{word} {name!r} stands here and at line {names_of[word][name]}; expected each name once"))


def _labels(call: ast.Call, found: Said) -> None:
    """The labels that are plain texts; a label that is put together in the run is checked when the page is rendered."""
    nodes = [keyword.value for keyword in call.keywords if keyword.arg in _LABEL_KEYWORDS]
    for keyword in call.keywords:
        if keyword.arg in _LABEL_LISTS and isinstance(keyword.value, ast.Tuple | ast.List):
            nodes.extend(keyword.value.elts)
    if isinstance(call.func, ast.Attribute) and call.func.attr in _LABELLING:
        nodes.extend(call.args)
    texts = ((text, node.lineno) for node in nodes if (text := _text(node)))
    found.labels.extend(label for label in texts if label not in found.labels and not label[0].startswith("_"))


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
