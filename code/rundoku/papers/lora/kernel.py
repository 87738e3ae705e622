"""A linear layer with its low-rank update in Triton, forward and backward: the sum starts from the update, so y is written once.

What it computes (Hu et al., Eq. 3, with the scale s = α/r of §4.1), for each row of x, and from the gradient dy:
    u  = x·Aᵀ                        y  = x·Wᵀ + s·u·Bᵀ + bias
    t  = dy·B                        dx = dy·W + s·t·A
    dA = s·tᵀ·x,   dB = s·dyᵀ·u      dW = dyᵀ·x,   dbias = Σ_rows dy: by torch, and only where asked, since LoRA freezes both

Layout, as the layers of this room have it: x [R, I], y, dy [R, O], rows may be strided; W [O, I], strided along one axis at most;
A [r, I]; B [O, r]; bias [O]; u, t [R, r] with r rounded up to a multiple of 16. Sums are in float32; u and t are rounded to the dtype of
x, as in plain torch. float32 A and B beside a half-precision x are rounded first, as under autocast; their gradients are float32 and were
never rounded. float32 is multiplied without TF32. Dropout has no place here: it is on the adapter's input alone, so the two products read
different x (layers.py does it).

Cost, s bytes an element: 2·R·I·O + 2·R·r·(I + O) FLOP forward. Plain torch writes x·Wᵀ, writes u·Bᵀ, reads and writes it for the scale,
and reads both and writes the sum: 7·R·O elements. Here the sum starts from s·u·Bᵀ and y is written once, at least
    (2·R·I + I·O + r·(I + O) + 2·R·r + R·O)·s bytes,  against  (R·I + I·O + R·O)·s  of a merged weight.
The second R·I is for u, which has a kernel of its own; so is 2·R·r, with r rounded up. One pass over x would do if each program, with its
BN columns of y, made u for itself: 2·R·I·r·(⌈O/BN⌉ − 1) FLOP more, or r/BN of all the work (for r = 16 and BN = 256 a sixteenth, for r = 64
a quarter), and as large a share of reads more, of A. Making u once costs R·I·s bytes whatever r is: s·F/(2·O·M) of the product's least time
on a card of F FLOP/s and M bytes/s, 5 % on an H200 for O = 4,096 in bfloat16; and backward needs u for dB. So u is made once. The product
is bound by the matrix units from some hundred rows on, the thin ones by memory.

Backward: dx is the forward kernel with W read along its other axis, at the same cost. dA and dB read x and dy once more, in sums over rows
that are split over programs and added up in a fixed order: the same call gives the same bits. For a handful of rows, as in decoding,
merge the weight instead.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rundoku.gpu.launch import Case, Config, Cost, expect, expect_tensor, target_of, triton
from rundoku.papers.lora.kernel_products import linear_kernel, narrow_kernel, sums_kernel

__all__ = ["lora_linear", "reference"]  # what a copy brings

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HIGHEST_RANK = 256
GROUP = 8  # tiles of y, one below the other, that run before the next column
PROGRAMS = 512  # that sum over rows for dA or dB, where there are rows enough: each leaves a partial sum
FARTHEST = 2**24  # elements between neighbours along an axis of W: a step of a tile stays within 2³¹

_TILES = {"linear": ("BLOCK_M", "BLOCK_N", "BLOCK_K"), "narrow": ("BLOCK_M", "BLOCK_K"), "sums": ("BLOCK_M", "BLOCK_N")}
Use = tuple[str, int]  # (kernel, bytes of an element)


def _table(**entries: tuple[int, ...]) -> dict[Use, Config]:
    """Read entries such as linear_2=(BLOCK_M, BLOCK_N, BLOCK_K, warps, stages)."""
    table = {}
    for name, (*tiles, warps, stages) in entries.items():
        kernel, size = name.rsplit("_", 1)
        table[kernel, int(size)] = Config(dict(zip(_TILES[kernel.partition("_")[0]], tiles, strict=True)), warps, stages)
    return table


# From compile reports: tiles that spill nothing and fit. Sizes, strides and addresses that 16 does not divide take the entries "odd": their
# loads are narrow, and pointers of a large tile would take all registers. "other" is for GPUs that were not compiled for, within 64 KiB.
_EVERYWHERE = _table(
    linear_odd_2=(64, 64, 32, 8, 2), narrow_odd_2=(64, 32, 8, 2), sums_odd_2=(32, 64, 8, 2),
    linear_4=(64, 64, 32, 8, 2), narrow_4=(64, 32, 4, 2), sums_4=(32, 64, 4, 2),
    linear_odd_4=(64, 32, 16, 8, 2), narrow_odd_4=(64, 16, 4, 2), sums_odd_4=(16, 64, 4, 2),
)  # fmt: skip
CONFIGS: dict[str, dict[Use, Config]] = {
    "sm_80": _EVERYWHERE | _table(linear_2=(128, 128, 64, 8, 3), narrow_2=(64, 64, 4, 4), sums_2=(64, 128, 4, 3)),
    "sm_90": _EVERYWHERE | _table(linear_2=(128, 256, 64, 8, 3), narrow_2=(64, 128, 4, 4), sums_2=(64, 128, 4, 3)),
    "sm_100": _EVERYWHERE | _table(linear_2=(128, 256, 64, 8, 3), narrow_2=(64, 128, 4, 4), sums_2=(64, 128, 4, 3)),
    "gfx942": _EVERYWHERE | _table(linear_2=(128, 128, 64, 4, 2), narrow_2=(64, 128, 4, 2), sums_2=(64, 128, 4, 2)),
    "other": _EVERYWHERE | _table(linear_2=(64, 64, 32, 4, 2), narrow_2=(64, 64, 4, 2), sums_2=(32, 64, 4, 2)),
}
CONFIGS["interpreter"] = {use: Config(dict.fromkeys(config.tiles, 64), num_stages=1) for use, config in CONFIGS["other"].items()}


def config_for(target: str, kernel: str, itemsize: int) -> Config:
    """Return the published configuration of "linear", "narrow" or "sums", or of one's "…_odd", for so many bytes an element."""
    return CONFIGS[target][kernel, itemsize]


@torch.library.custom_op("rundoku::lora_linear", mutates_args=())
def _op(x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    y, u = _outputs(x, weight, lora_a, lora_b, bias, scale)
    if u.numel():
        rows, rank = _rows(x), lora_a.shape[0]
        _launch_narrow(rows, _factor(lora_a, x), u)
        _launch_linear(rows, _walkable(weight), u, _factor(lora_b.t(), x), None if bias is None else bias.contiguous(), y, rank, scale)
    return y, u


@_op.register_fake
def _outputs(x, weight, lora_a, lora_b, bias, scale):
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(x.numel() // x.shape[-1], triton.cdiv(lora_a.shape[0], 16) * 16)


@torch.library.custom_op("rundoku::lora_linear_backward", mutates_args=())
def _backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, u: Tensor, scale: float, by_x: bool, by_a: bool, by_b: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, da, db = _gradients(dy, x, weight, lora_a, lora_b, u, scale, by_x, by_a, by_b)
    if not u.numel():
        return dx, da.zero_(), db.zero_()
    grad, rows, rank = _rows(dy), _rows(x), lora_a.shape[0]
    if by_x or by_a:
        t = torch.empty_like(u)
        _launch_narrow(grad, _factor(lora_b.t(), x), t)
        if by_x:
            _launch_linear(grad, _walkable(weight).t(), t, _factor(lora_a, x), None, dx, rank, scale)
        if by_a:
            da.copy_(_sum_over_rows(rows, t, rank, scale).t())
    if by_b:
        db.copy_(_sum_over_rows(grad, u, rank, scale))
    return dx, da, db


@_backward_op.register_fake
def _gradients(dy, x, weight, lora_a, lora_b, u, scale, by_x, by_a, by_b):
    asked = ((x, by_x), (lora_a, by_a), (lora_b, by_b))
    return tuple(like.new_empty(like.shape if wanted else (0,)) for like, wanted in asked)  # (0,): a gradient that nobody asks for


def _launch_linear(
    x: Tensor, weight: Tensor, thin: Tensor, factor: Tensor, bias: Tensor | None, y: Tensor, rank: int, scale: float
) -> None:
    """Fill y [..., O] from x [R, I], weight [O, I], thin [R, r] and factor [r, O]."""
    (n_rows, n_inputs), n_outputs = x.shape, weight.shape[0]
    numbers = (n_inputs, n_outputs, x.stride(0), x.data_ptr(), weight.data_ptr(), max(weight.stride()), factor.data_ptr())
    config, constants = _choose("linear", x, rank, *numbers)
    grid = (triton.cdiv(n_rows, config.tiles["BLOCK_M"]) * triton.cdiv(n_outputs, config.tiles["BLOCK_N"]),)
    with _on_device_of(x):
        linear_kernel[grid](
            x, weight, thin, factor, bias, y, n_rows, n_inputs, n_outputs, rank, thin.stride(0), scale, x.stride(0), *weight.stride(),
            GROUP=GROUP, **constants, **config.launch(),
        )  # fmt: skip


def _launch_narrow(x: Tensor, factor: Tensor, thin: Tensor) -> None:
    """Fill thin [R, r] from x [R, I] and factor [r, I]."""
    (n_rows, n_inputs), rank = x.shape, factor.shape[0]
    config, constants = _choose("narrow", x, rank, n_inputs, x.stride(0), x.data_ptr(), factor.data_ptr())
    grid = (triton.cdiv(n_rows, config.tiles["BLOCK_M"]) * triton.cdiv(rank, constants["BLOCK_R"]),)
    with _on_device_of(x):
        narrow_kernel[grid](x, factor, thin, n_rows, n_inputs, rank, thin.stride(0), x.stride(0), **constants, **config.launch())


def _sum_over_rows(wide: Tensor, thin: Tensor, rank: int, scale: float) -> Tensor:
    """Return scale·wideᵀ·thin [C, r] in float32 of wide [R, C] and thin [R, r]."""
    n_rows, n_columns = wide.shape
    config, constants = _choose("sums", wide, rank, n_columns, wide.stride(0), wide.data_ptr())
    tiles = triton.cdiv(n_columns, config.tiles["BLOCK_N"]) * triton.cdiv(rank, constants["BLOCK_R"])
    parts = min(triton.cdiv(PROGRAMS, tiles), triton.cdiv(n_rows, config.tiles["BLOCK_M"]))
    partial = wide.new_empty(parts, n_columns, rank, dtype=torch.float32)
    with _on_device_of(wide):
        sums_kernel[(tiles, parts)](
            wide, thin, partial, n_rows, n_columns, rank, thin.stride(0), scale, wide.stride(0), **constants, **config.launch()
        )
    return partial.sum(0)


def _choose(kernel: str, x: Tensor, rank: int, *numbers: int) -> tuple[Config, dict[str, Any]]:
    """Return a kernel's configuration and its other constants; the numbers are sizes, strides and addresses that wide loads rest on."""
    odd = any(number % 16 for number in numbers)
    return config_for(target_of(x), kernel + "_odd" * odd, x.itemsize), _constants(x.itemsize, rank, odd)


def _constants(itemsize: int, rank: int, odd: bool) -> dict[str, Any]:
    """Return how much of the rank a product takes at once (a matrix instruction wants 16 or more), and how it multiplies."""
    # Half precision is exact in either; float32 would lose 13 bits to TF32.
    return {"BLOCK_R": 16 if itemsize == 4 or (rank <= 16 and not odd) else 64, "PRECISION": "ieee" if itemsize == 4 else "tf32"}


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the tensor's GPU, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _rows(tensor: Tensor) -> Tensor:
    """Return a [R, C] view whose rows lie side by side in themselves; copies only where strides allow no such view."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _walkable(matrix: Tensor) -> Tensor:
    """Return the matrix, or a copy where neither axis lies side by side or a step along one does not fit into 32 bits."""
    return matrix if min(matrix.stride()) == 1 and max(matrix.stride()) < FARTHEST else matrix.contiguous()


def _factor(matrix: Tensor, x: Tensor) -> Tensor:
    """Return A or Bᵀ [r, C], contiguous and in the dtype of x; small as it is, a copy costs next to nothing."""
    return matrix.to(x.dtype).contiguous()


def _save(ctx, inputs, output) -> None:
    x, weight, lora_a, lora_b, _, ctx.scale = inputs
    ctx.save_for_backward(x, weight, lora_a, lora_b, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, _):
    if dy is None:
        return (None,) * 6
    x, weight, lora_a, lora_b, u = ctx.saved_tensors
    by_x, by_weight, by_a, by_b, by_bias, _ = ctx.needs_input_grad
    dx = da = db = None
    if by_x or by_a or by_b:
        dx, da, db = _backward_op(dy, x, weight, lora_a, lora_b, u, ctx.scale, by_x, by_a, by_b)
    rows = dy.reshape(-1, dy.shape[-1])
    dweight = torch.mm(rows.t(), x.reshape(-1, x.shape[-1])) if by_weight else None
    return dx if by_x else None, dweight, da if by_a else None, db if by_b else None, rows.sum(0) if by_bias else None, None


_op.register_autograd(_differentiate, setup_context=_save)


def lora_linear(x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return x·Wᵀ + scale·(x·Aᵀ)·Bᵀ + bias [..., O] in the dtype of x (Eq. 3): `LoRALinear` with one adapter and no dropout.

    x [..., I], weight [O, I], bias [O]: of one dtype, float16, bfloat16 or float32; lora_A [r, I] and lora_B [O, r], r from 1 to 256: of
    that dtype or, as in mixed precision, both float32. Any strides; what a kernel cannot walk is copied. Differentiable once.
    Raises ValueError naming the argument for a wrong shape, dtype, device or scale.
    """
    expect_tensor("x", x, dtypes=DTYPES)
    expect(x.dim() > 0 and x.shape[-1] > 0, "x", x, "shape [..., I] with I at least 1")
    inputs = x.shape[-1]
    expect_tensor("weight", weight, like=x, dtypes=(x.dtype,))
    expect(weight.dim() == 2 and weight.shape[0] > 0 and weight.shape[1] == inputs, "weight", weight, f"the shape [O, {inputs}]")
    expect_tensor("lora_A", lora_A, like=x, dtypes=tuple(dict.fromkeys((x.dtype, torch.float32))))
    fits = lora_A.dim() == 2 and 0 < lora_A.shape[0] <= HIGHEST_RANK and lora_A.shape[1] == inputs
    expect(fits, "lora_A", lora_A, f"the shape [r, {inputs}] with a rank r from 1 to {HIGHEST_RANK}")
    wanted = (weight.shape[0], lora_A.shape[0])
    expect_tensor("lora_B", lora_B, like=x, dtypes=(lora_A.dtype,))
    expect(lora_B.shape == wanted, "lora_B", lora_B, f"the shape {wanted}, by weight and lora_A")
    expect(isinstance(scale, int | float) and math.isfinite(scale), "scale", scale, "a finite number")
    if bias is not None:
        expect_tensor("bias", bias, like=x, dtypes=(x.dtype,))
        expect(bias.shape == weight.shape[:1], "bias", bias, f"the shape {tuple(weight.shape[:1])}")
    return _op(x, weight, lora_A, lora_B, bias, float(scale))[0]


def reference(
    x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, bias: Tensor | None = None, upcast: bool = True
) -> Tensor:
    """Return what `lora_linear` does as plain torch computes it: in float64 with ``upcast``, else in the dtype of x, as under autocast."""
    dtype = torch.float64 if upcast else x.dtype
    x, weight, a, b = (tensor.to(dtype) for tensor in (x, weight, lora_A, lora_B))
    return F.linear(x, weight, None if bias is None else bias.to(dtype)) + scale * F.linear(F.linear(x, a), b)


def moved(rows: int, inputs: int, outputs: int, rank: int, itemsize: int) -> dict[str, int]:
    """Return the least bytes of a forward pass without bias: of a merged weight, of these kernels, of plain torch operator by operator."""
    merged = rows * inputs + inputs * outputs + rows * outputs
    adapter = rows * inputs + rank * (inputs + outputs)
    fused = merged + adapter + 2 * rows * triton.cdiv(rank, 16) * 16
    plain = merged + adapter + 2 * rows * rank + 6 * rows * outputs
    return {name: itemsize * one for name, one in (("merged", merged), ("fused kernel", fused), ("plain torch", plain))}


def compile_cases(target: str) -> list[Case]:
    """Return every kernel at every entry of the target's table, forward and backward; half precision at both tiles of the rank."""
    # Forward, the weight's elements lie side by side along what is summed; backward the same tensor is read along its other axis.
    linear = (
        ("forward", linear_kernel, {"weight_in": 1, "GROUP": GROUP}),
        ("backward", linear_kernel, {"weight_out": 1, "GROUP": GROUP, "bias": None}),
    )
    kernels = {"linear": linear, "narrow": (("u or t", narrow_kernel, {}),), "sums": (("dA or dB", sums_kernel, {}),)}
    cases = []
    for (use, size), config in CONFIGS[target].items():
        kernel, odd, dtype = use.partition("_")[0], use.endswith("odd"), {2: "bf16", 4: "fp32"}[size]
        kinds = dict.fromkeys(("x", "weight", "thin", "factor", "bias", "y", "wide"), f"*{dtype}") | {"partial": "*fp32", "scale": "fp32"}
        for rank in (16, 64) if size == 2 and not odd else (16,):
            details = ", unaligned" if odd else ", r ≤ 16" if size == 2 and rank == 16 else ""
            for name, function, own in kernels[kernel]:
                constants = _constants(size, rank, odd) | own
                names = [arg for arg in function.arg_names if arg not in constants and arg not in config.tiles]
                types, cost = {arg: kinds.get(arg, "i32") for arg in names}, None if odd else _cost(kernel, size, rank)
                cases.append(Case(f"{name}, {dtype}{details}", function, types, config, constants, not odd, cost))
    return cases


def _cost(kernel: str, itemsize: int, rank: int, rows: int = 8192, width: int = 4096) -> Cost:
    """Return what one launch with R = 8,192 rows and I = O = 4,096 works and moves; of the sums without the partial ones."""
    product = kernel == "linear"
    flops = 2.0 * rows * width * (rank + product * width)
    elements = rows * width + rows * rank + rank * width + product * (width * width + rows * width)
    dtype = {2: "bfloat16", 4: "float32"}[itemsize]
    return Cost(flops, float(itemsize * elements), dtype, f"R = {rows:,}, I = O = {width:,}, r = {rank}, {dtype}")
