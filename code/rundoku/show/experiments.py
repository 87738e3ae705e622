"""Experiments: pure functions whose results are stored, so that redrawing a figure never repeats a training."""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rundoku.show import record
from rundoku.show.imports import closure, parse
from rundoku.show.store import Store, default_store, digests, fingerprint, versions

MACHINE = ("rundoku.show",)  # what records and draws; a result does not rest on it


class Result:
    """What an experiment found: a read-only mapping with attribute access, nested mappings too."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(*error.args) from None

    def __getitem__(self, name: str) -> Any:
        if name not in self._content:
            raise KeyError(f"the result has no {name!r}; it has {', '.join(self._content)}")
        return _wrap(self._content[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def items(self) -> list[tuple[str, Any]]:
        """Return the pairs of name and value."""
        return [(name, self[name]) for name in self._content]

    def as_dict(self) -> dict[str, Any]:
        """Return a copy as plain dictionaries and lists."""
        return json.loads(json.dumps(self._content))

    def __repr__(self) -> str:
        return f"Result({self._content!r})"


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return Result(value)
    return [_wrap(entry) for entry in value] if isinstance(value, list) else value


def plain(value: Any, where: str) -> Any:
    """Return a value as JSON knows it; tensors and arrays become nested lists.

    Raises TypeError, naming ``where``, for what JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where)
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{where} has the key {wrong[0]!r} of type {type(wrong[0]).__name__}; expected text")
        return {key: plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if hasattr(value, "tolist"):  # torch and numpy
        return value.tolist()
    raise TypeError(f"{where} is {value!r} of type {type(value).__name__}; expected numbers, text, lists, dicts, tensors or dataclasses")


class Experiment:
    """A function whose results are stored by its arguments and the source it rests on.

    Comments and docstrings are no source: editing them repeats nothing. Fresh and stored results are the same, since both have been
    through JSON. Two processes that ask for the same run at once share it.
    """

    def __init__(self, function: Callable[..., dict[str, Any]]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._signature = function, inspect.signature(function)
        self._name = f"{function.__module__}.{function.__qualname__}"
        for parameter in self._signature.parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                raise TypeError(f"parameter {parameter.name!r} of experiment {function.__qualname__} must be keyword-only")

    def __call__(self, **arguments: Any) -> Result:
        """Return the stored result for these arguments; run the function where there is none."""
        bound, given, store, key = self._place(arguments)
        kept = store.recall(key) if store else None
        if kept is None and store:
            with _slot(store), store.alone(key):  # in this order: who waits for a result holds nothing that its maker needs
                kept = store.recall(key)
                if kept is None:
                    kept = _run(self._function, bound, self._name)
                    store.keep(key, kept)
        elif kept is None:
            kept = _run(self._function, bound, self._name)
        if record.current:
            record.current.experiments.append({"name": self._name, "arguments": given})
            record.current.opened.update((store.root if store else Path()) / file for file in kept["files"])
        return Result(kept["result"])

    def each(self, cases: Iterable[Mapping[str, Any]]) -> list[Result]:
        """Return the results for several sets of arguments; those that are missing run side by side, one process a core.

        However many sessions and sweeps go on at once, no more experiments run than this machine has cores.
        A terminal shows a progress bar. Every result is kept as it comes, so that an interrupted sweep goes on with what is missing.
        """
        cases = list(cases)
        places = [self._place(case) for case in cases]
        missing = [case for case, (_, _, store, key) in zip(cases, places, strict=True) if store and store.recall(key) is None]
        cores = _cores()
        if min(len(missing), cores) > 1:
            from tqdm import tqdm

            with (
                ProcessPoolExecutor(min(len(missing), cores), multiprocessing.get_context("fork")) as pool,
                tqdm(total=len(missing), desc=self.__name__, unit="run", disable=None) as bar,
            ):
                for done in as_completed([pool.submit(_ask, self, case) for case in missing]):
                    done.result()
                    bar.update()
        return [self(**case) for case in cases]

    def _place(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Store | None, str]:
        """Return the arguments with their defaults, the same as JSON knows them, and where the result is kept."""
        bound = self._signature.bind(**arguments)
        bound.apply_defaults()
        given = plain(dict(bound.arguments), f"the arguments of {self._name}")
        source = source_digest(self.__module__)
        store = default_store() if source else None
        return dict(bound.arguments), given, store, fingerprint(["experiment", self._name, given, source, versions()])

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self.__module__, self.__qualname__)


_computing = False  # whether this process, or one that it was forked from, holds a slot


@contextlib.contextmanager
def _slot(store: Store) -> Iterator[None]:
    """Hold one of the machine's slots, a core each; an experiment that another one asks for runs in the slot of that one."""
    global _computing
    if _computing:
        yield
        return
    with store.slot(_cores()):
        _computing = True
        try:
            yield
        finally:
            _computing = False


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _find(module: str, name: str) -> Any:
    """Return an experiment by its place, as a process that was handed one does."""
    return getattr(import_module(module), name)


def _ask(asked: Experiment, arguments: Mapping[str, Any]) -> None:
    """Run an experiment for its place in the store."""
    asked(**arguments)


def experiment(function: Callable[..., dict[str, Any]]) -> Experiment:
    """Store what ``function`` returns by its arguments and the source it rests on; it takes keyword arguments and returns a dict."""
    return Experiment(function)


def _run(function: Callable[..., dict[str, Any]], arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """Run an experiment with a recording of its own, so that only the files which it opened count as its own."""
    outer, inner = record.current, record.Recording()
    if outer:
        record.listen(inner)
    try:
        found = function(**arguments)
    finally:
        record.listen(outer)
    if not isinstance(found, dict):
        raise TypeError(f"experiment {name} returned {type(found).__name__}; expected a dict")
    if inner.items or inner.values:
        raise TypeError(
            f"experiment {name} shows or publishes something; that belongs into note.py, since a stored run would not repeat it"
        )
    result = json.loads(json.dumps(plain(found, f"the result of {name}")))
    return {"result": result, "files": digests(inner.opened)}


def source_digest(module: str) -> str | None:
    """Return a digest of all code that runs when ``module`` is imported, without comments and docstrings.

    None where the module lies outside the source root (a notebook, say): nothing vouches for its code, so nothing is stored.
    """
    modules = {name: path for name, path in closure(module).items() if not name.startswith(MACHINE)}
    return fingerprint({name: _code_digest(path, path.stat().st_mtime_ns) for name, path in modules.items()}) if modules else None


@functools.cache
def _code_digest(path: Path, mtime_ns: int) -> str:
    """Return the digest of a file's syntax tree; ``mtime_ns`` makes an edited file a new entry."""
    tree = parse(path)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse(ast.unparse(tree))  # a copy: the parsed tree is shared
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
