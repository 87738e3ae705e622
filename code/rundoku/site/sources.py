"""The repository's modules as top-level statements, nothing being imported: what `export` copies from."""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path

from rundoku.show import imports
from rundoku.site.scopes import Builtin, External, Import, Inside, Symbol, Target, Uses, bindings


class ExportError(ValueError):
    """What cannot be copied: the message names the file and line, what stands there and why it cannot be carried over."""


@dataclass(eq=False)
class Item:
    """A top-level statement (several where they share a line) with the lines between it and the one before."""

    module: "Module"
    nodes: list[ast.stmt]
    first: int  # lines count from 1; first to start - 1 hold comments and blank lines
    start: int
    end: int

    @cached_property
    def uses(self) -> Uses:
        """What the statement takes from outside itself."""
        return Uses(self.module, self.nodes)

    @property
    def statements(self) -> list[ast.stmt]:
        """The statements, those for the type checker without their `if`."""
        return [inner for node in self.nodes for inner in (for_type_checker(node) or [node])]

    @property
    def is_import(self) -> bool:
        """Whether it does nothing but import, always or for the type checker."""
        return all(isinstance(node, Import) for node in self.statements)

    @cached_property
    def defines(self) -> set[Symbol]:
        """The names it gives a meaning to, and the operators it registers."""
        names = {name for name, _ in bindings(self.nodes) if name in self.module.defined}
        calls = [part for node in self.nodes for part in getattr(node, "decorator_list", []) if isinstance(part, ast.Call) and part.args]
        new = [call.args[0] for call in calls if ast.unparse(call.func).rpartition(".")[2] in ("custom_op", "triton_op")]
        return {target for target in map(self.module.resolve, names) if isinstance(target, Symbol)} | Uses(self.module, new).operators

    @cached_property
    def acts_on(self) -> set[Symbol] | None:
        """What of ours it acts on (an operator, a table, a class); empty: it acts, on nothing of ours; None: it only defines names."""
        acted, found = False, set()
        for node in self.nodes:
            for part in getattr(node, "decorator_list", []):  # @operator.register_fake; but not @triton.jit
                called = part.func if isinstance(part, ast.Call) else part
                acted |= isinstance(called, ast.Name) and called.id in self.module.defined  # @register("name"): no telling what it does
                found |= self._acted_on(part, decorator=True)
            for part in actions(node):
                acted, found = True, found | self._acted_on(part)
        return found - self.defines if acted or found - self.defines else None

    def _acted_on(self, node: ast.expr, decorator: bool = False) -> set[Symbol]:
        uses = Uses(self.module, [node])
        if uses.operators:
            return uses.operators
        called = node.func if isinstance(node, ast.Call) else node
        own = [(use.node, use.target) for use in Uses(self.module, [called]).names if isinstance(use.target, Symbol)]
        if methods := {target for root, target in own if root is not called}:  # TABLE["name"], TABLE.update, operator.register_autograd
            return methods
        if decorator or own:  # a call of our own function: no telling either
            return set()
        return {use.target for use in uses.names if isinstance(use.target, Symbol)}


def actions(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what a statement does beside defining names: the calls it makes for their effect, the places it stores to or deletes."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.expr() | ast.Expr(value=ast.Constant()):
            return
        case ast.Expr(value=value) | ast.Assert(test=value):
            yield value
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            yield from (target for target in targets if isinstance(target, ast.Attribute | ast.Subscript))
        case ast.AugAssign(target=ast.Attribute() | ast.Subscript() as target):
            yield target
    for inner in ast.iter_child_nodes(node):
        yield from actions(inner)


def for_type_checker(node: ast.AST) -> list[ast.stmt]:
    """Return the imports of a statement `if TYPE_CHECKING:` that has nothing else, of any other statement none."""
    if not isinstance(node, ast.If) or node.orelse or ast.unparse(node.test).rpartition(".")[2] != "TYPE_CHECKING":
        return []
    return node.body if all(isinstance(inner, Import) for inner in node.body) else []


class Module:
    """A module of the repository: its statements, and what its global names mean."""

    def __init__(self, library: "Library", name: str, path: Path):
        self.library, self.name, self.path = library, name, path
        self.text = path.read_text(encoding="utf-8")
        self.lines = self.text.split("\n")
        body = list(imports.parse(path).body)
        self.docstring = ast.get_docstring(ast.Module(body, []))
        self.begin = (body.pop(0).end_lineno or 1) + 1 if self.docstring is not None else 1  # the line below the docstring
        self.items = list(self._items(body))
        self.imports: dict[str, Import] = {}  # the names that import statements bind; those in blocks only from the repository
        declared = [node.names for top in body for node in ast.walk(top) if isinstance(node, ast.Global)]
        self.defined = {name for names in declared for name in names}
        for item in self.items:
            for name, node in bindings(item.statements):
                if name == "*":
                    raise self.error(node, f"{ast.unparse(node)}; name what is imported")
                taken, plain = self.imports.get(name), item.is_import
                if isinstance(node, Import) and (plain or self.base(node)):
                    self.imports[name] = node
                else:
                    self.defined.add(name)
                if name in self.defined and (plain or taken in body):
                    raise self.error(node, f"{name} is both imported and defined")

    @cached_property
    def markers(self) -> set[int]:
        """The lines that hold a section marker and nothing else."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {token.start[0] for token in tokens if token.type == tokenize.COMMENT and token.line.lstrip().startswith("# --8<--")}

    @property
    def future(self) -> bool:
        """Whether annotations are not evaluated."""
        return any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for item in self.items for node in item.nodes)

    def _items(self, body: list[ast.stmt]) -> Iterator[Item]:
        item = None
        for node in body:
            start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if item and (start <= item.end or (is_text and not item.is_import)):  # a text below a definition documents it
                item.nodes.append(node)
                item.end = node.end_lineno or start
                continue
            if item:
                yield item
            item = Item(self, [node], item.end + 1 if item else self.begin, start, node.end_lineno or start)
        if item:
            yield item

    def error(self, node: ast.AST, why: str) -> ExportError:
        """Return an error that names this file, a node's line and the reason."""
        return ExportError(f"{self.path.relative_to(self.library.root).as_posix()}:{getattr(node, 'lineno', 1)}: {why}")

    def is_module(self, name: str) -> bool:
        """Return whether a text is the dotted name of a module of the repository."""
        return "." in name and all(map(str.isidentifier, name.split("."))) and imports.path_of(name, self.library.code) is not None

    def resolve(self, name: str) -> Target:
        """Return what a global name of this module means."""
        if name in self.imports:
            return self.imported(self.imports[name], name)
        return Symbol(self.name, name) if name in self.defined else Builtin(name)

    def base(self, node: Import) -> str | None:
        """Return the module of the repository that an import statement names, None where it imports from elsewhere."""
        if isinstance(node, ast.ImportFrom):
            package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
            name = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
        else:
            name = next((alias.name for alias in node.names if self.is_ours(alias.name)), "")
            if name and len(node.names) > 1:
                raise self.error(node, "several modules in one import statement; give each its own")
        return name if self.is_ours(name) else None

    def is_ours(self, name: str) -> bool:
        """Return whether a dotted name lies in a package of the repository."""
        return imports.path_of(name.partition(".")[0], self.library.code) is not None

    def imported(self, node: Import, name: str) -> Target:
        """Return what an import statement of this module binds to a name."""
        alias = next(alias for alias in node.names if name == (alias.asname or alias.name.partition(".")[0]))
        base = self.base(node)
        if isinstance(node, ast.Import):
            full = alias.name if alias.asname else name
            return Inside(full) if base else External(full, None, name, self.name)
        return self.attribute(node, base, alias.name) if base else External(node.module or "", alias.name, name, self.name)

    def attribute(self, node: ast.AST, base: str, name: str) -> Target:
        """Return what a name of another module means, as taken at a node of this one."""
        path, inner = imports.path_of(base, self.library.code), f"{base}.{name}"
        if path is None:
            raise self.error(node, f"there is no module {base}")
        module = self.library.module(base)
        found = module.resolve(name)
        if isinstance(found, Builtin) and imports.path_of(inner, self.library.code):
            return Inside(inner)
        lazy = [top for item in module.items for top in item.nodes if isinstance(top, ast.FunctionDef) and top.name == "__getattr__"]
        for bound, statement in bindings(part for top in lazy for part in top.body) if isinstance(found, Builtin) else ():
            if bound == name and isinstance(statement, Import):
                return module.imported(statement, name)
        if isinstance(found, Builtin):
            raise self.error(node, f"{base} has no name {name} that can be read from its source")
        return found

    def runs(self, node: Import) -> list[str]:
        """Return the modules of the repository that an import statement runs, packages before what they hold."""
        base = self.base(node)
        if base and imports.path_of(base, self.library.code) is None:
            raise self.error(node, f"there is no module {base}")
        names = [".".join(base.split(".")[:i]) for i in range(1, base.count(".") + 2)] if base else []
        inner = [f"{base}.{alias.name}" for alias in node.names] if base and isinstance(node, ast.ImportFrom) else []
        return names + [name for name in inner if imports.path_of(name, self.library.code)]


class Library:
    """The modules of a repository, each read once."""

    def __init__(self, root: Path):
        self.root, self.code = root, root / "code"
        self.modules: dict[str, Module] = {}

    def module(self, name: str) -> Module:
        """Return a module by its dotted name; KeyError where there is none."""
        if name not in self.modules:
            path = imports.path_of(name, self.code)
            if path is None:
                raise KeyError(name)
            self.modules[name] = Module(self, name, path)
        return self.modules[name]
