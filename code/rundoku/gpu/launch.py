"""What a kernel settles before it launches: where it runs, with which configuration, and whether its arguments are what it takes.

Import `tl`, `triton` and the helpers from here. On a machine without a GPU this module turns Triton's interpreter on before any kernel is
decorated, so that the same call computes the same thing (slowly) on a CPU; whoever sets TRITON_INTERPRET keeps what they set.
It rests on torch and triton alone: an exported kernel carries it along.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

INTERPRETED: bool = triton.knobs.runtime.interpret


def _interpret_language() -> None:
    """Let the interpreter run Triton's own tl.sum, tl.max and the like where triton was imported before it was turned on."""
    from triton.runtime.interpreter import InterpretedFunction

    homes = (tl, tl.core, tl.standard, tl.random, tl.math)
    compiled = {id(fn): fn for home in (*homes, tl.tensor) for fn in vars(home).values() if isinstance(fn, JITFunction)}
    interpreted = {key: InterpretedFunction(fn.fn) for key, fn in compiled.items()}
    for home in homes:
        for name, fn in list(vars(home).items()):
            if id(fn) in interpreted:
                setattr(home, name, interpreted[id(fn)])
    for name, fn in list(vars(tl.tensor).items()):
        if id(fn) in interpreted:
            setattr(tl.tensor, name, _method(interpreted[id(fn)]))


def _method(run: Any) -> Any:
    return lambda *args, **kwargs: run(*args, **kwargs)  # a plain function binds as a method, an InterpretedFunction does not


if INTERPRETED:
    _interpret_language()


@dataclass(frozen=True)
class Config:
    """One line of a kernel's published table: its tile sizes (the constexprs it sets) and how it is scheduled."""

    tiles: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    def launch(self) -> dict[str, Any]:
        """Return the keywords of a launch: tiles, warps, stages, and FP contraction stated (Triton's default differs by version)."""
        return {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Cost:
    """What one launch of a kernel works and moves at one stated size, by formula: what the roofline asks for."""

    flops: float  # floating-point operations; a division, root or exponential counts as one
    bytes: float  # to and from the GPU's memory, each tensor once where the kernel reads it once
    dtype: str  # of the arithmetic, which decides the peak: "float16" or "bfloat16" on the matrix units, "float32" on the plain ones
    size: str  # as the report's table shows it: "R = 4,096, C = 4,096, bfloat16"

    def __post_init__(self) -> None:
        expect(self.flops >= 0, "flops", self.flops, "a count, not below 0")
        expect(self.bytes > 0, "bytes", self.bytes, "more than 0")
        expect(self.dtype in ("float16", "bfloat16", "float32"), "dtype", self.dtype, "float16, bfloat16 or float32")


@dataclass(frozen=True)
class Case:
    """One kernel as the compile report compiles it: the type of every run-time argument and the value of every other constexpr."""

    name: str  # as the report's table shows it: "forward, D = 128"
    kernel: Any  # the function under @triton.jit
    types: dict[str, str]  # argument -> "*bf16", "i32", "i64", "fp32"; pointers and sizes count as divisible by 16
    config: Config
    constants: dict[str, Any] = field(default_factory=dict)  # constexprs besides config.tiles
    divisible: bool = True  # False: no argument is known to be divisible by 16, the worst case for vector loads
    cost: Cost | None = None  # at the size that the report states; None where it is not counted


@dataclass(frozen=True)
class Choice:
    """One entry of a kernel's published table and what could stand in its place: what ``rundoku tune`` compiles and compares.

    A kernel module offers ``candidates(target: str) -> list[Choice]``, in the order of its table.
    """

    name: str  # the entry, as the proposal names it: "C up to 4,096"
    published: Config
    others: tuple[Config, ...]  # the published one may be among them
    cases: Callable[[Config], list[Case]]  # every kernel that a call with this entry can launch, so that a choice is right for all


def grid(tiles: dict[str, Sequence[int]], num_warps: Sequence[int], num_stages: Sequence[int] = (1,)) -> tuple[Config, ...]:
    """Return every combination of tile sizes, warps and stages, in a fixed order."""
    sizes = [dict(zip(tiles, each, strict=True)) for each in itertools.product(*tiles.values())]
    return tuple(Config(size, warps, stages) for size, warps, stages in itertools.product(sizes, num_warps, num_stages))


def target_of(tensor: torch.Tensor) -> str:
    """Return the key of the configuration table for the tensor's device: a published target, "other" or "interpreter".

    "other" holds for GPUs that were not compiled for, so its entries must fit the least of them (64 KiB of shared memory).
    """
    if INTERPRETED:
        return "interpreter"
    properties = torch.cuda.get_device_properties(tensor.device)
    if torch.version.hip:
        return "gfx942" if properties.gcnArchName.split(":")[0] == "gfx942" else "other"
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100"}.get((properties.major, properties.minor), "other")


def expect(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise ValueError naming the argument, the value it received and what was expected, unless ``holds``."""
    if not holds:
        raise ValueError(f"{name}: got {describe(value)}, expected {wanted}")


def describe(value: object) -> str:
    """Return a tensor's shape, dtype and device (never its elements), and anything else as it prints."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, strides {value.stride()}, {value.dtype}, on {value.device}"
    return repr(value)


def expect_tensor(name: str, tensor: torch.Tensor, *, like: torch.Tensor | None = None, dtypes: tuple[torch.dtype, ...] = ()) -> None:
    """Raise ValueError unless ``tensor`` is a dense tensor that a kernel can run on here, beside ``like`` and of one of ``dtypes``.

    Under the interpreter bfloat16 is refused: its arithmetic is wrong there (triton 3.9), and a wrong answer is worse than none.
    """
    expect(isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided, name, tensor, "a dense torch.Tensor")
    expect(not dtypes or tensor.dtype in dtypes, name, tensor, f"one of {', '.join(map(str, dtypes))}")
    if like is not None:
        expect(tensor.device == like.device, name, tensor, f"the device {like.device}")
    if INTERPRETED:
        expect(tensor.dtype != torch.bfloat16, name, tensor, "float16 or float32: Triton's interpreter computes bfloat16 wrongly")
    else:
        expect(tensor.is_cuda, name, tensor, "a tensor on a GPU, or TRITON_INTERPRET=1 set before the first import of triton")
