"""One self-contained file from a room: its public names and all they need from other rooms, in dependency order, without the rest."""

import ast
import builtins
import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rundoku.site.edits import edited
from rundoku.site.layout import DEFINITION, header, indented, join, licence, listed, title
from rundoku.site.lineage import modules, rooms
from rundoku.site.notebook import notebook
from rundoku.site.scopes import Builtin, External, Import, Inside, Symbol, Target, Use, bindings
from rundoku.site.sources import ExportError, Item, Library, Module, for_type_checker

__all__ = ["ExportError", "copies", "copy", "notebook"]

CARRIED = ("rundoku.papers.", "rundoku.concepts.", "rundoku.gpu.")  # the packages that a copy may take code from
ALLOWED = {"torch", "triton", *sys.stdlib_module_names}
MOVED = {"__file__", "__path__", "__package__", "__spec__", "__loader__"}  # they say where the original lies
IN_PLACE = {"triton"}  # imported where the original does: what stands above (the interpreter switch) must run first
GUARD = External("importlib.util", "find_spec", "find_spec")


def copy(room: str, root: Path, library: Library | None = None) -> str:
    """Return a room of the repository at ``root``, or a part of one ("layer_norm.kernel"), as one file.

    It imports only torch, triton and the standard library. Raises ExportError for a room or part that there is not, and where the
    source does something that a copy cannot. A ``library`` that is given keeps what it has read for the next copy.
    """
    known = rooms(root)
    slug, _, part = room.replace("_", "-").partition(".")
    if slug not in known:
        near = difflib.get_close_matches(slug, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ExportError(f"there is no room {slug!r}; {hint}")
    package = ".".join(known[slug].relative_to(root / "code").parts)
    name = ".".join([package, *([part.replace("-", "_")] if part else [])])
    if name not in modules(root, slug):
        parts = [module.removeprefix(f"{package}.") for module in modules(root, slug) if module != package]
        raise ExportError(f"room {slug!r} has no part {part!r}; it has {', '.join(parts) or 'none'}")
    return Copy(library or Library(root), name).text()


def copies(slug: str, root: Path, library: Library | None = None) -> tuple[str, ...]:
    """Return what of a room there is to copy: the room where it has public names, and its kernels where these do not bring them."""
    room = slug.replace("-", "_")
    package = ".".join(rooms(root)[slug].relative_to(root / "code").parts)
    library = library or Library(root)
    kernel = [f"{package}.kernel"] if f"{package}.kernel" in modules(root, slug) else []
    if not library.module(package).items:
        return tuple(f"{room}.kernel" for _ in kernel)
    carried = {item.module.name for item in Copy(library, package).items}
    return (room, *(f"{room}.kernel" for name in kernel if name not in carried))


class Copy:
    """A room's public names, the statements they need, and the names these get in one file."""

    def __init__(self, library: Library, package: str):
        self.library, self.room = library, library.module(package)
        self.public = self._public()
        self.order, self.always = self._order()
        self.guarded = self._guarded()
        self.items = self._reach()
        self.uses = [use for item in self.items for use in item.uses.names]
        self.names = self._names()

    def _public(self) -> dict[str, Symbol | External]:
        room, stated = self.room, [item for item in self.room.items if "__all__" in {symbol.name for symbol in item.defines}]
        where = stated[0].nodes[0] if stated else ast.Module([], [])
        if stated:
            value = getattr(where, "value", None)
            if (
                len(stated) > 1
                or not isinstance(value, ast.List | ast.Tuple)
                or not all(isinstance(part, ast.Constant) for part in value.elts)
            ):
                raise room.error(where, "__all__ is computed; a copy needs a plain list of names")
            names = list(ast.literal_eval(value))
        else:
            own = [name for name, node in room.imports.items() if room.base(node)] if room.path.name == "__init__.py" else []
            own += sorted(room.defined, key=[name for item in room.items for name, _ in bindings(item.nodes)].index)
            names = [name for name in own if not name.startswith("_") and not isinstance(room.resolve(name), Inside)]
        found = {name: room.attribute(where, room.name, name) for name in names}
        if not found:
            raise room.error(where, "the room has no public names to copy")
        for name, target in found.items():
            if isinstance(target, Inside):
                raise room.error(where, f"the public name {name} is a module; a copy has names only")
        return {name: target for name, target in found.items() if isinstance(target, Symbol | External)}

    def _order(self) -> tuple[list[Module], set[str]]:
        """Return the modules in the order in which they are to run, and which of them importing the room always runs."""
        order: list[Module] = []
        seen: set[str] = set()
        always: set[str] = set()

        def walk(name: str, sure: bool) -> None:
            if (name in seen and (name in always or not sure)) or not name.startswith(CARRIED):
                return
            first = name not in seen
            seen.add(name)
            if sure:
                always.add(name)
            module = self.library.module(name)
            for item in module.items:
                for node, inner in item.uses.imports:
                    if not inner and not for_type_checker(item.nodes[0]):
                        for needed in module.runs(node):
                            walk(needed, sure and node in item.nodes)
            if first:
                order.append(module)

        walk(self.room.name, True)
        for module in order:  # grows: what functions import comes last, so that it cannot come before what it is built on
            for item in module.items:
                for node, _ in item.uses.imports:
                    for needed in module.runs(node):
                        walk(needed, False)
        return order, always

    def _guarded(self) -> set[str]:
        """Return the modules that need triton and that the room can be imported without."""
        found: set[str] = set()
        for module in self.order:
            plain = [node for item in module.items for node in item.nodes if isinstance(node, Import)]
            tops = {name.partition(".")[0] for node in plain if not module.base(node) for name in outside(node)}
            if module.name not in self.always and (tops & IN_PLACE or found & {name for node in plain for name in module.runs(node)}):
                found.add(module.name)
        return found

    def _reach(self) -> list[Item]:
        """Return the statements that the public names need, in the order in which they are to run."""
        every = [item for module in self.order for item in module.items if not item.is_import and not is_script(item)]
        waiting: list[Target] = list(self.public.values())
        kept: dict[int, Item] = {}
        done: set[Target] = set()
        running: set[str] = set()

        def keep(item: Item) -> None:
            if id(item) in kept:
                return
            kept[id(item)] = item
            module = item.module
            for use in item.uses.names:
                self._check(module, use)
                waiting.append(use.target)
            waiting.extend([*item.uses.operators, *item.defines])
            for node, _ in item.uses.imports:
                for name in () if module.base(node) else outside(node):
                    self._check(module, Use(node, External(name, None, name), None, frozenset()))
            for near in {
                module.name,
                *(name for top in module.items for node in top.nodes if isinstance(node, Import) for name in module.runs(node)),
            }:
                if near not in running:  # what a module that is needed, or one it imports itself, does on import
                    running.add(near)
                    for other in every:
                        if other.module.name == near and other.acts_on == set():
                            keep(other)

        while waiting:
            target = waiting.pop()
            if target not in done:
                done.add(target)
                for item in every:
                    if target in item.defines or target in (item.acts_on or ()):
                        keep(item)
        return [item for item in every if id(item) in kept]

    def _check(self, module: Module, use: Use) -> None:
        target = use.target
        if isinstance(target, External) and target.module.partition(".")[0] not in ALLOWED:
            raise module.error(
                use.node, f"{target.name} comes from {target.module}; a copy may need torch, triton and the standard library"
            )
        if isinstance(target, Symbol) and not target.module.startswith(CARRIED):
            raise module.error(use.node, f"{target.name} comes from {target.module}, which a copy cannot carry")
        if isinstance(target, Builtin) and (target.name in MOVED or not (hasattr(builtins, target.name) or target.name.startswith("__"))):
            why = "says where the original lies" if target.name in MOVED else "is defined nowhere"
            raise module.error(use.node, f"{target.name} {why}")

    def _names(self) -> dict[Target, str]:
        """Return the name that everything gets in the copy: its own where that is free."""
        names: dict[Target, str] = {}
        for name, public in self.public.items():
            names.setdefault(public, name)
        hidden: dict[Target, set[str]] = {}
        for use in self.uses:
            hidden.setdefault(use.target, set()).update(use.hidden)
        taken = {use.target.name for use in self.uses if isinstance(use.target, Builtin)}
        for wanted, name in list(names.items()):
            if name in taken | hidden.get(wanted, set()):
                use = next(use for use in self.uses if (name in use.hidden and use.target == wanted) or use.target == Builtin(name))
                item = next(item for item in self.items if use in item.uses.names)
                raise item.module.error(use.node, f"the public name {name} means something else here; rename the one or the other")
        taken |= set(self.public)
        lines = [line for item in self.items for line in item.module.lines[item.start - 1 : item.end]]
        written = {word for line in lines for word in re.findall(r"\w+", line)}
        guard = [GUARD] if any(item.module.name in self.guarded for item in self.items) else []
        every: list[Target] = [*(use.target for use in self.uses), *guard]
        for target in (target for target in every if target not in names and isinstance(target, Symbol | External)):
            parts = target.module.split(".")[2:4] if isinstance(target, Symbol) else [target.module.replace(".", "_")]
            parts = parts[::-1] if parts[0] == self.room.name.split(".")[2] else parts  # in its own room the part says more
            options = [target.name, *(f"{target.name}_{end}" for end in [*parts, "_".join(parts)])]
            options += [f"{target.name}_{i}" for i in range(2, len(self.uses) + 3)]
            avoid = taken | hidden.get(target, set())
            names[target] = next(name for i, name in enumerate(options) if name not in avoid and not (i and name in written))
            taken.add(names[target])
        return names

    def text(self) -> str:
        """Return the file."""
        every = [*(use.target for use in self.uses), *self.names]  # names: those that the file itself needs and public ones too
        used = list({(target, target.home): target for target in every if isinstance(target, External)}.values())
        sources = list(dict.fromkeys(item.module for item in self.items))
        always = {root_of(target) for target in used if target.home not in self.guarded} - sys.stdlib_module_names
        kernels = {root_of(target) for target in used} - always - sys.stdlib_module_names
        blocks = [header(self.library.root, self.room, sources, sorted(always), sorted(kernels))]
        if any(module.future for module in sources):
            blocks.append("from __future__ import annotations")
        blocks.append(self._imports(target for target in used if root_of(target) not in IN_PLACE))
        blocks.append(listed("__all__ = [", [f'"{name}"' for name in self.public], "]"))
        present: set[str] = set()
        for module in self.order:
            body = self._body(module, [target for target in used if root_of(target) in IN_PLACE and target.home == module.name], present)
            if body and module.name in self.guarded:
                body = [
                    f'if {self.names[GUARD]}("triton") is not None:  # without it, all but this works\n' + indented(join(body, apart=1))
                ]
            blocks += [title(self.library.root, module, module is self.room), *body] if body else []
        blocks += [f"{name} = {self.names[target]}" for name, target in self.public.items() if self.names[target] != name]
        return join(block for block in blocks if block) + "\n\n\n" + licence(self.library.root)

    def _body(self, module: Module, used: list[External], present: set[str]) -> list[str]:
        """Return the statements of a module that are kept, as text; triton is imported where the original does."""
        blocks: list[str] = []
        last = None
        for item in module.items:
            if item.is_import:
                lines = self._imports(target for target in used if module.imports[target.name] in item.statements).split("\n")
                lines = [line for line in lines if line and line not in present]
                if module.name not in self.guarded:
                    present.update(lines)
                if lines and last and last.is_import and blocks:
                    blocks[-1] = "\n".join([blocks[-1], *lines])
                elif lines:
                    blocks.append("\n".join(lines))
            elif item in self.items:
                text = edited(item, self.names, "import triton  # noqa: F401 - what follows needs it", self.guarded)
                if last and not last.is_import and item.start == last.end + 1 and not DEFINITION.search(text):
                    blocks[-1] += "\n" + text
                else:
                    blocks.append(text)
            last = item if item in self.items or (item.is_import and lines) else None
        return blocks

    def _imports(self, wanted: Iterable[External]) -> str:
        """Return the import statements for names, merged and sorted as ruff does."""
        plain: set[str] = set()
        taken: dict[str, set[tuple[str, str]]] = {}
        for target in wanted:
            new = self.names[target]
            if target.attribute is not None:
                taken.setdefault(target.module, set()).add((target.attribute, new))
            elif new != target.module:
                plain.add(f"import {target.module} as {new}")
            else:  # `import torch.library` binds torch too
                items = self.library.module(target.home).items if target.home else []
                statements = [node for item in items for node in item.statements]
                dotted = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names if not alias.asname}
                plain |= {f"import {full}" for full in dotted if full.partition(".")[0] == new} or {f"import {new}"}
        lines = [(0, line.split()[1], line) for line in plain]
        for base, pairs in taken.items():
            names = sorted(pairs, key=lambda pair: (0 if pair[0].isupper() else 1 if pair[0][0].isupper() else 2, pair))
            lines.append((1, base, listed(f"from {base} import ", [old if old == new else f"{old} as {new}" for old, new in names], "")))
        groups = [sorted(line for line in lines if (line[1].partition(".")[0] in sys.stdlib_module_names) == own) for own in (True, False)]
        return "\n\n".join("\n".join(text for _, _, text in group) for group in groups if group)


def outside(node: Import) -> list[str]:
    """Return the modules that an import statement names."""
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def root_of(target: External) -> str:
    """Return the package that an import takes from."""
    return target.module.partition(".")[0]


def is_script(item: Item) -> bool:
    """Return whether a statement runs only when its file is run as a program."""
    return any(isinstance(node, ast.If) and "__name__" in (test := ast.unparse(node.test)) and "__main__" in test for node in item.nodes)
