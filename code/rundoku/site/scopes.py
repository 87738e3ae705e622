"""What the names in a statement mean, by Python's scopes: a parameter or local variable is never taken for the global of its name."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rundoku.site.sources import Module

Import = ast.Import | ast.ImportFrom
OPERATOR = re.compile(r"([A-Za-z_]\w*::\w+)(?:\.\w+)?(?:\(.*)?", re.DOTALL)  # "rundoku::layer_norm", also with overload or schema


@dataclass(frozen=True)
class Symbol:
    """A name defined at the top of a module of the repository, or (module "") an operator of torch.library."""

    module: str
    name: str


@dataclass(frozen=True)
class External:
    """A name taken from outside the repository: `import module as name`, or `from module import attribute as name`."""

    module: str
    attribute: str | None
    name: str
    home: str = field(default="", compare=False)  # the module of ours that has the statement


@dataclass(frozen=True)
class Inside:
    """A module of the repository, as a value."""

    module: str


@dataclass(frozen=True)
class Builtin:
    """A name that its module does not define."""

    name: str


Target = Symbol | External | Inside | Builtin


@dataclass(frozen=True)
class Use:
    """A place that names a global: its node, what it means, the string it stands in, the local names that would hide a new name there."""

    node: ast.AST
    target: Target
    within: ast.expr | None
    hidden: frozenset[str]


def bindings(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that statements bind (or declare global or nonlocal) in their own scope, each with the node that does."""
    waiting = list(nodes)[::-1]
    while waiting:
        match node := waiting.pop():
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                yield from ((inner.target.id, inner) for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr))
                continue
            case ast.Import() | ast.ImportFrom():
                yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name, node
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node
            case ast.MatchMapping(rest=str(name)):
                yield name, node
            case ast.Global() | ast.Nonlocal():
                yield from ((name, node) for name in node.names)
        waiting.extend(list(ast.iter_child_nodes(node))[::-1])


@dataclass
class Scope:
    """The names of a function, comprehension or class: None for a local one, else what it means."""

    names: dict[str, Target | None]
    is_class: bool = False


@dataclass
class Uses(ast.NodeVisitor):
    """What nodes take from outside themselves: globals, operators named in text, and their import statements."""

    module: "Module"
    nodes: Iterable[ast.AST]
    names: list[Use] = field(default_factory=list)
    operators: set[Symbol] = field(default_factory=set)
    imports: list[tuple[Import, bool]] = field(default_factory=list)  # with: does it stand in a function or class?
    strings: dict[int, ast.expr] = field(default_factory=dict)  # id of an annotation given as a string -> what it says

    def __post_init__(self) -> None:
        self.scopes: list[Scope] = []
        self.within: ast.expr | None = None
        self.annotating = False
        for node in self.nodes:
            self.visit(node)

    def lookup(self, name: str) -> Target | None:
        """Return what a name means here, None for a local one."""
        for depth, scope in enumerate(reversed(self.scopes)):
            if name in scope.names and not (depth and scope.is_class):  # what a class defines is not seen from its methods
                return scope.names[name]
        return self.module.resolve(name)

    def add(self, node: ast.AST, target: Target | None) -> None:
        """Note a use, unless it is of a local name."""
        if isinstance(target, Inside):
            raise self.module.error(node, f"the module {target.module} is used as a value; a copy has its names, not the module")
        if target is not None:
            seen = [scope.names for depth, scope in enumerate(reversed(self.scopes)) if not (depth and scope.is_class)]
            self.names.append(Use(node, target, self.within, frozenset(name for names in seen for name in names if names[name] is None)))

    def local(self, nodes: Iterable[ast.AST]) -> dict[str, Target | None]:
        """Return the scope that the statements of a function make."""
        names: dict[str, Target | None] = {}
        declared: dict[str, ast.AST] = {}
        for name, node in bindings(nodes):
            if isinstance(node, ast.Global | ast.Nonlocal):
                declared[name] = node
            else:
                names[name] = self.module.imported(node, name) if isinstance(node, Import) and self.module.base(node) else None
        for name, node in declared.items():
            names.pop(name, None)
            if isinstance(node, ast.Global):
                names[name] = self.module.resolve(name)
        return names

    def inside(self, names: dict[str, Target | None], nodes: Iterable[ast.AST]) -> None:
        """Visit nodes in a scope of their own."""
        self.scopes.append(Scope(names))
        for node in nodes:
            self.visit(node)
        self.scopes.pop()

    def annotation(self, node: ast.expr | None, on: bool = True) -> None:
        """Visit an annotation, in whose strings names are names too."""
        before, self.annotating = self.annotating, on
        if node is not None:
            self.visit(node)
        self.annotating = before

    def definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        """Visit what stands around a definition and note its name, where that is a global one."""
        for decorator in node.decorator_list:
            self.visit(decorator)
        if self.scopes and self.scopes[-1].is_class:
            self.scopes[-1].names[node.name] = None
        else:
            self.add(node, self.lookup(node.name))

    def visit_Name(self, node: ast.Name) -> None:  # noqa: D102 - the visitor's own interface, as below
        if self.scopes and self.scopes[-1].is_class and isinstance(node.ctx, ast.Store):
            self.scopes[-1].names[node.id] = None
        else:
            self.add(node, self.lookup(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: D102
        chain = [node]
        while isinstance(chain[-1].value, ast.Attribute):
            chain.append(chain[-1].value)
        chain.reverse()
        root = chain[0].value
        target = self.lookup(root.id) if isinstance(root, ast.Name) else None
        if isinstance(target, External) and target.module == "torch" and chain[0].attr == "ops" and len(chain) > 2:
            self.operators.add(Symbol("", f"{chain[1].attr}::{chain[2].attr}"))
        if not isinstance(target, Inside):
            return self.generic_visit(node)
        for part in chain:
            target = self.module.attribute(part, target.module, part.attr)
            if not isinstance(target, Inside):
                break
        if not isinstance(part.ctx, ast.Load):
            raise self.module.error(part, f"{ast.unparse(part)} is assigned to from outside its module")
        return self.add(part, target)

    def visit_Constant(self, node: ast.Constant) -> None:  # noqa: D102
        if not isinstance(node.value, str):
            return
        if match := OPERATOR.fullmatch(node.value):
            self.operators.add(Symbol("", match[1]))
        elif self.annotating and self.within is None:
            try:
                self.strings[id(node)] = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return
            self.within = node
            self.visit(self.strings[id(node)])
            self.within = None
        elif self.module.is_module(node.value):
            raise self.module.error(node, f"{node.value!r} names a module as text, and a copy has no such module")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:  # noqa: D102
        before, self.within = self.within, self.within or node
        self.generic_visit(node)
        self.within = before

    def visit_Subscript(self, node: ast.Subscript) -> None:  # noqa: D102
        self.visit(node.value)
        self.annotation(node.slice, self.annotating and ast.unparse(node.value).rpartition(".")[2] != "Literal")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: D102
        self.annotation(node.annotation)
        self.annotation(node.value, False)
        self.visit(node.target)

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: D102
        for part in (node.value, *node.targets):  # `size = size` in a class takes the global
            self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:  # noqa: D102
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        parameters = [argument for argument in every if argument]
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.annotation(default, False)
        if isinstance(node, ast.Lambda):
            return self.inside({argument.arg: None for argument in parameters}, [node.body])
        self.definition(node)
        for argument in parameters:
            self.annotation(argument.annotation)
        self.annotation(node.returns)
        return self.inside(self.local(node.body) | {argument.arg: None for argument in parameters}, node.body)

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: D102
        self.definition(node)
        for part in (*node.bases, *node.keywords):
            self.visit(part)
        self.scopes.append(Scope({}, is_class=True))
        for statement in node.body:
            self.visit(statement)
            self.scopes[-1].names = self.local([statement]) | self.scopes[-1].names
        self.scopes.pop()

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:  # noqa: D102
        first = node.generators[0].iter
        self.visit(first)  # in the scope outside, as Python does
        parts = [part for generator in node.generators for part in (generator.target, generator.iter, *generator.ifs) if part is not first]
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self.inside({name: None for generator in node.generators for name, _ in bindings([generator.target])}, [*parts, *results])

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:  # noqa: D102
        if node.name and not self.scopes:
            self.add(node, self.lookup(node.name))
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:  # noqa: D102
        self.names.extend(Use(node, self.module.resolve(name), None, frozenset()) for name in node.names)

    def visit_Import(self, node: Import) -> None:  # noqa: D102
        self.imports.append((node, bool(self.scopes)))
        if not self.scopes and not self.module.base(node):
            for alias in node.names:
                self.add(alias, self.module.resolve(alias.asname or alias.name.partition(".")[0]))

    visit_ImportFrom = visit_Import
