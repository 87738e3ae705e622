"""The family tree of the rooms, read from what their source imports: nobody maintains it."""

from functools import lru_cache
from pathlib import Path

from rundoku.show.imports import imported

KINDS = ("papers", "concepts")
NOT_LINEAGE = {"note"}  # the code side of the note compares with anything; the room itself builds on what it imports


def room_of(module: str) -> str | None:
    """Return the slug of the room that holds a module (`rundoku.papers.layer_norm.kernel` -> `layer-norm`), None outside the rooms."""
    parts = module.split(".")
    return parts[2].replace("_", "-") if len(parts) > 2 and parts[0] == "rundoku" and parts[1] in KINDS else None


def rooms(root: Path) -> dict[str, Path]:
    """Return every room of the repository at ``root``: its slug and its folder, papers before concepts, by name."""
    folders = [path.parent for kind in KINDS for path in sorted(root.glob(f"code/rundoku/{kind}/*/__init__.py"))]
    return {folder.name.replace("_", "-"): folder for folder in folders}


def modules(root: Path, slug: str) -> list[str]:
    """Return the dotted names of the modules of a room, in a fixed order; KeyError for a room that there is not."""
    return _modules(root, rooms(root)[slug])


def _modules(root: Path, room: Path) -> list[str]:
    paths = sorted(path.relative_to(root / "code").with_suffix("") for path in room.rglob("*.py"))
    return [".".join(path.parts[:-1] if path.name == "__init__" else path.parts) for path in paths]


@lru_cache(maxsize=4)
def lineage(root: Path) -> dict[str, set[str]]:
    """Return for every room of the repository the rooms it imports, in implementation, kernels and experiments, itself left out.

    Nothing is imported to find out; imports inside functions and under TYPE_CHECKING count, those of note.py do not.
    Every note asks: the answer is kept until ``lineage.cache_clear()``, which each build calls.
    """
    known = rooms(root)
    tree = {}
    for slug, room in known.items():
        parts = [module for module in _modules(root, room) if module.rpartition(".")[2] not in NOT_LINEAGE]
        found = {room_of(name) for module in parts for name in imported(module, root / "code")}
        tree[slug] = {name for name in found if name in known and name != slug}
    return tree
