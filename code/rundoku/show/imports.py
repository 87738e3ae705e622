"""What a module rests on, read from source without importing it: the family tree and the store of experiments use it."""

import ast
import os
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package rundoku


def path_of(module: str, root: Path = SOURCE_ROOT) -> Path | None:
    """Return the file of a dotted module name below ``root``, or None where there is none."""
    base = os.path.join(root, *module.split("."))  # noqa: PTH118 - asked thousands of times a build, where a Path takes ten times as long
    return next((Path(path) for path in (f"{base}/__init__.py", f"{base}.py") if os.path.isfile(path)), None)  # noqa: PTH113


@cache
def _read(path: Path, mtime_ns: int) -> ast.Module:  # mtime_ns only makes an edited file a new entry
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file, read again when the file changed."""
    return _read(path, path.stat().st_mtime_ns)


def imported(module: str, root: Path = SOURCE_ROOT) -> set[str]:
    """Return the modules below ``root`` that ``module`` imports anywhere in its source, with the packages that hold them."""
    path = path_of(module, root)
    if path is None:
        return set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    here = {entry.partition(".")[0] for entry in os.listdir(root)}  # noqa: PTH208
    names = _names(path, path.stat().st_mtime_ns, package)
    return {name for name in names if name.partition(".")[0] in here and path_of(name, root)}


@cache
def _names(path: Path, mtime_ns: int, package: str) -> frozenset[str]:
    """Return the dotted names that a file may import, whether they are modules or not."""
    names: set[str] = set()
    for node in ast.walk(_read(path, mtime_ns)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return frozenset(names | {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)})  # a.b runs a too


def closure(module: str, root: Path = SOURCE_ROOT) -> dict[str, Path]:
    """Return every module below ``root`` that runs when ``module`` is imported, itself included, with its file."""
    found: dict[str, Path] = {}
    waiting = [".".join(module.split(".")[: i + 1]) for i in range(module.count(".") + 1)]
    while waiting:
        name = waiting.pop()
        path = path_of(name, root)
        if path and name not in found:
            found[name] = path
            waiting.extend(imported(name, root))
    return found
