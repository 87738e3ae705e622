"""A kernel watched in Triton's interpreter: what each of its lines makes, and what it reads from memory and writes to it.

    for step in steps(kernel, lambda: call(x), program=1):
        print(step)

    touched = accesses(lambda: call(x))
    touched.writer(x), touched.loads(weight), touched.traffic

The kernel is the very one that a GPU runs; nothing is rewritten for the purpose. A GPU is not needed, and must not be in use.
"""

import ast
import contextlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy
from numpy.typing import NDArray
from torch import Tensor

from rundoku.gpu.launch import INTERPRETED


@dataclass(frozen=True)
class Step:
    """One statement as one program has executed it, and one of the variables that it set."""

    line: int  # in the kernel's file
    source: str  # the statement, on one line
    name: str  # the variable; "" for a statement that sets none, such as a store
    dtype: str  # as Triton prints it: "fp32", "pointer<fp16>", "int1" (a mask); "" for a Python value
    value: NDArray[Any]  # a copy; for pointers, addresses in bytes

    def __str__(self) -> str:
        """Return the statement, and below it the variable with shape and dtype and its first elements."""
        if not self.name:
            return self.source
        shape = "×".join(map(str, self.value.shape)) or "scalar"
        head = f"{self.name}: {shape} {self.dtype}".rstrip()
        if "pointer" in self.dtype:  # where something lies differs from run to run
            return f"{self.source}\n    {head}"
        values = self.value.astype(int) if self.dtype == "int1" else self.value
        shown = numpy.array2string(values, precision=3, suppress_small=True, threshold=80, separator=" ", prefix=" " * 8)
        return f"{self.source}\n    {head}\n        {shown}"


@dataclass(frozen=True)
class Traffic:
    """Bytes that went to and from memory, masked elements left out."""

    loaded: int  # every load counted, as if there were no cache
    stored: int
    loaded_once: int  # every address counted once, as if a cache held all that was ever read
    stored_once: int


def steps(kernel: Any, call: Callable[[], object], program: int | tuple[int, ...] = 0) -> list[Step]:
    """Run ``call`` and return what one program of ``kernel``, a function under ``@triton.jit``, did in it, statement by statement.

    ``program`` is the program's index in the grid. A statement in a loop stands there once for each turn; helpers that the kernel calls
    are watched by themselves. Raises ValueError where ``call`` runs no such program, RuntimeError without the interpreter.
    """
    _interpreted()
    from triton.runtime.interpreter import interpreter_builder

    index = program if isinstance(program, tuple) else (program,)
    wanted, code = (*index, 0, 0)[:3], kernel.fn.__code__
    statements, begin = _statements(kernel.fn)
    found: list[Step] = []
    ran = False

    def watch(frame: FrameType, event: str, _: object) -> Any:
        nonlocal ran
        here = (frame.f_code.co_filename, frame.f_code.co_name) == (code.co_filename, code.co_name)
        if not here or tuple(interpreter_builder.grid_idx) != wanted:
            return None
        ran = True
        before, current = dict(frame.f_locals), 0

        def line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal before, current
            at = begin.get(frame.f_lineno, 0)
            if event == "return" or (event == "line" and (at == 0 or at != current)):  # the statement before this one has ended
                now = dict(frame.f_locals)
                if current:
                    changed = {name: value for name, value in now.items() if name not in before or before[name] is not value}
                    made = [_step(current, statements[current], name, value) for name, value in changed.items() if _is_data(value)]
                    found.extend(made or [Step(current, statements[current], "", "", numpy.empty(0))])
                before, current = now, at
            return line

        return line

    earlier = sys.gettrace()
    sys.settrace(watch)
    try:
        call()
    finally:
        sys.settrace(earlier)
    if not ran:
        raise ValueError(f"program: got {program!r}, expected the index of a program of {kernel.fn.__name__} that the call runs")
    return found


class Accesses:
    """Every load and store of a call's kernels, element by element; ask for a tensor that the call was given or has returned.

    Memory is known by its address. What the call frees and takes again is counted as one, so for a tensor that it makes on its way, or
    returns after having freed others, watch the kernels one by one.
    """

    def __init__(self, loads: list[NDArray[Any]], stores: list[NDArray[Any]]) -> None:
        nothing = numpy.empty((5, 0), numpy.int64)  # address, bytes, and the three indices of the program
        self._loads, self._stores = (numpy.concatenate([nothing, *noted], 1) for noted in (loads, stores))

    def loads(self, tensor: Tensor, program: int | tuple[int, ...] | None = None) -> NDArray[numpy.int64]:
        """Return how often each element was loaded, in the shape of ``tensor``; with ``program``, by that one of every grid."""
        return _times(self._loads, tensor, program)

    def stores(self, tensor: Tensor, program: int | tuple[int, ...] | None = None) -> NDArray[numpy.int64]:
        """Return how often each element was stored, as in ``loads``."""
        return _times(self._stores, tensor, program)

    def writer(self, tensor: Tensor, axis: int = 0) -> NDArray[numpy.int64]:
        """Return the index, along an axis of the grid, of the program that stored each element last; -1 where none did."""
        found = numpy.full(tensor.numel(), -1)
        order, at, place = _places(self._stores, tensor)
        found[at] = self._stores[2 + axis][order]
        return found[place].reshape(tensor.shape)

    @property
    def traffic(self) -> Traffic:
        """The bytes of all loads and stores."""
        (loaded, loaded_once), (stored, stored_once) = _bytes(self._loads), _bytes(self._stores)
        return Traffic(loaded, stored, loaded_once, stored_once)


def accesses(call: Callable[[], object]) -> Accesses:
    """Run ``call`` and return what its kernels loaded and stored, masked elements left out; raises RuntimeError without the interpreter.

    Atomic operations count as a load and a store.
    """
    _interpreted()
    from triton.runtime.interpreter import interpreter_builder

    loads: list[NDArray[Any]] = []
    stores: list[NDArray[Any]] = []

    def note(into: list[list[NDArray[Any]]], pointers: Any, mask: Any = None) -> None:
        width = pointers.get_element_ty().primitive_bitwidth // 8
        kept = numpy.broadcast_to(True if mask is None else mask.data, pointers.data.shape).astype(bool)
        addresses = pointers.data[kept].astype(numpy.int64).reshape(-1)
        found = [addresses, *(numpy.full_like(addresses, each) for each in (width, *interpreter_builder.grid_idx))]
        for noted in into:
            noted.append(numpy.stack(found))

    with _noting(
        create_masked_load=lambda pointers, mask, *_: note([loads], pointers, mask),
        create_masked_store=lambda pointers, _, mask, *__: note([stores], pointers, mask),
        create_atomic_cas=lambda pointers, *_: note([loads, stores], pointers),
        create_atomic_rmw=lambda _, pointers, __, mask, *___: note([loads, stores], pointers, mask),
    ):
        call()
    return Accesses(loads, stores)


def traffic(call: Callable[[], object]) -> Traffic:
    """Run ``call`` and return the bytes that its kernels loaded and stored, as ``accesses`` counts them."""
    return accesses(call).traffic


def _interpreted() -> None:
    if not INTERPRETED:
        raise RuntimeError(
            "kernels are compiled for a GPU here; expected the interpreter: TRITON_INTERPRET=1, set before triton is imported"
        )


@contextlib.contextmanager
def _noting(**notes: Callable[..., None]) -> Iterator[None]:
    """Let the interpreter's operations call these first, with their own arguments."""
    from triton.runtime.interpreter import interpreter_builder

    def noted(name: str) -> Callable[..., Any]:
        operation = getattr(interpreter_builder, name)

        def both(*arguments: Any, **more: Any) -> Any:
            notes[name](*arguments, *more.values())
            return operation(*arguments, **more)

        return both

    replaced = {name: noted(name) for name in notes}
    vars(interpreter_builder).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            delattr(interpreter_builder, name)


def _bytes(noted: NDArray[Any]) -> tuple[int, int]:
    """Return the bytes of all accesses, and those of the addresses counted once."""
    return int(noted[1].sum()), int(numpy.unique(noted[:2], axis=1)[1].sum())


def _places(noted: NDArray[Any], tensor: Tensor) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return which accesses, in their order, met a tensor, and at which of its addresses; and the address of each of its elements.

    Addresses are counted from the lowest on. Elements that share one, as in an expanded tensor, were all met where one was.
    """
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    places = [numpy.arange(size).reshape(-1, *[1] * (tensor.dim() - 1 - i)) * stride for i, (size, stride) in enumerate(strides)]
    offsets = numpy.broadcast_to(sum(places, numpy.zeros((), numpy.int64)), tuple(tensor.shape)).reshape(-1)
    known, place = numpy.unique(tensor.data_ptr() + offsets * tensor.element_size(), return_inverse=True)
    if not len(known):
        return numpy.empty(0, int), numpy.empty(0, int), place
    at = numpy.searchsorted(known, noted[0]).clip(max=len(known) - 1)
    order = numpy.flatnonzero(known[at] == noted[0])
    return order, at[order], place.reshape(tensor.shape)


def _times(noted: NDArray[Any], tensor: Tensor, program: int | tuple[int, ...] | None) -> NDArray[numpy.int64]:
    if program is not None:
        index = program if isinstance(program, tuple) else (program,)
        noted = noted[:, (noted[2:] == numpy.array((*index, 0, 0)[:3])[:, None]).all(0)]
    _, at, place = _places(noted, tensor)
    return numpy.bincount(at, minlength=tensor.numel())[place].reshape(tensor.shape)


def _statements(function: Callable[..., Any]) -> tuple[dict[int, str], dict[int, int]]:
    """Return a function's simple statements, each on one line without its comment, by their first lines; and that of every line of one."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    simple = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr)]
    doing = [node for node in simple if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    begin = {line: node.lineno for node in doing for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return {node.lineno: ast.unparse(node) for node in doing}, begin


def _is_data(value: object) -> bool:
    """Whether a variable holds a tile, a pointer or a number."""
    return hasattr(value, "handle") or isinstance(value, int | float)


def _step(line: int, source: str, name: str, value: Any) -> Step:
    handle = getattr(value, "handle", None)
    if handle is None:
        return Step(line, source, name, "", numpy.asarray(value))
    shape = tuple(int(size) for size in value.shape)
    return Step(line, source, name, str(value.type.scalar), numpy.array(handle.data).reshape(shape))
