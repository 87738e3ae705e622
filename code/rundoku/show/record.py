"""What a snippet shows while a build listens: an ordered list of items, named values, and the files it opened."""

import ast
import linecache
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal

Cell = str | int | float | bool | None


class LeftOut(Exception):
    """What a snippet needs and this build was told to do without; the page says so where the snippet stands."""


@dataclass
class Recording:
    """What one snippet has shown so far."""

    items: list[dict[str, Any]] = field(default_factory=list)  # figures, tables, claims, in order
    values: dict[str, int | float | str] = field(default_factory=dict)
    experiments: list[dict[str, Any]] = field(default_factory=list)  # name and arguments of each one asked
    opened: set[Path] = field(default_factory=set)


current: Recording | None = None  # one process runs one session, so a module variable is enough


def listen(recording: Recording | None) -> None:
    """Send what is shown from now on to ``recording``; None shows it at once again."""
    global current
    current = recording


def _plain(value: Any, what: str) -> Any:
    """Return a number or text as Python's own type: a 0-d tensor or a numpy scalar becomes int, float or bool."""
    if hasattr(value, "item"):  # numpy's float64 is a float, too
        value = value.item()
    if not isinstance(value, Cell):
        raise TypeError(f"{what} is {value!r} of type {type(value).__name__}; expected a number or text")
    return value


def publish(**values: float | str) -> None:
    """Give values names by which the note's prose can quote them.

    Raises TypeError for what is neither number nor text, ValueError for a name that already has another value.
    """
    for name, value in values.items():
        plain = _plain(value, f"published value {name!r}")
        if plain is None or isinstance(plain, bool):
            raise TypeError(f"published value {name!r} is {plain!r}; expected a number or text")
        if current is None:
            print(f"{name} = {plain}")
        elif current.values.setdefault(name, plain) != plain:
            raise ValueError(f"value {name!r} is published twice: {current.values[name]!r}, then {plain!r}")


def table(name: str, *, columns: Sequence[str], rows: Sequence[Sequence[Cell]], formats: Sequence[str] = ()) -> None:
    """Show a table; ``formats`` holds one format specification a column, empty for the value as it is.

    Raises ValueError where a row or ``formats`` has another length than ``columns``.
    """
    specifications = tuple(formats) or ("",) * len(columns)
    cells = [[_plain(cell, f"a cell of table {name!r}") for cell in row] for row in rows]
    for what, length in [("formats", len(specifications)), *((f"row {i}", len(row)) for i, row in enumerate(cells))]:
        if length != len(columns):
            raise ValueError(f"{what} of table {name!r} has {length} entries; expected {len(columns)}, one a column")
    if current is None:
        for row in [columns, *cells]:
            print(" | ".join(map(str, row)))
    else:
        current.items.append({"kind": "table", "name": name, "columns": list(columns), "rows": cells, "formats": list(specifications)})


def claim(name: str, *, ours: float | str, holds: bool, kind: Literal["exact", "reproduced", "recorded"], format: str = "") -> None:
    """State what this code finds where the paper claims something; the verdict is computed from ``holds``.

    ``format`` is the format specification of ``ours``. The source of the argument ``holds`` is shown as the threshold.
    Raises ValueError for an unknown kind, TypeError where ``holds`` is no truth value.
    """
    if kind not in ("exact", "reproduced", "recorded"):
        raise ValueError(f"kind of claim {name!r} is {kind!r}; expected 'exact', 'reproduced' or 'recorded'")
    holds = _plain(holds, f"holds of claim {name!r}")
    if not isinstance(holds, bool):
        raise TypeError(f"holds of claim {name!r} is {holds!r}; expected True or False")
    item = {
        "kind": "claim",
        "name": name,
        "ours": _plain(ours, f"ours of claim {name!r}"),
        "format": format,
        "verdict": kind if holds else "not reproduced",
        "threshold": _argument_source(sys._getframe(1), "holds"),
    }
    if current is None:
        print(f"{name}: {item['ours']} ({item['verdict']})")
    else:
        current.items.append(item)


def _argument_source(frame: FrameType, argument: str) -> str:
    """Return the source text of a keyword argument of the call that ``frame`` is in, or '' where there is no source."""
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except SyntaxError:
        return ""
    place = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset) == place:
            return "".join(ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == argument)
    return ""
