"""RMSNorm in Triton, forward and backward, with the residual addition that stands before it fused in where wanted.

What it computes, for each row of C elements (Zhang & Sennrich, Eq. 4; r is the residual, if any):
    h = x + r,   ρ = 1 / √(mean(h²) + eps),   ĥ = h·ρ,   y = ĥ·w
and, from the gradients dy and (with a residual) dh, with g = dy·w:
    dx = dr = (g − ĥ·mean(g·ĥ))·ρ + dh,   dw = Σ_rows dy·ĥ

Layout: x, residual, y, h, dy, dh, dx: [R, C], rows may be strided, elements of a row lie side by side; weight: [C]; ρ: [R] in float32.
All arithmetic is in float32. h is rounded to the dtype of x before it is normalised, as x + r in torch is; y is rounded after the gain.

Cost in FLOP and in bytes to and from memory, s bytes an element: forward 4·R·C and 2·R·C·s (with residual 5·R·C and 4·R·C·s),
backward 9·R·C and 3·R·C·s (with dh 10·R·C and 4·R·C·s). Above C = 8,192 dw takes a second reading: R·C and 2·R·C·s more. Beside that
stand gain and ρ, and 4·C bytes for each program of backward, which leaves a sum of dw. The kernel of layer normalisation needs more
operations and moves the same bytes, and as there memory is the bound: a row is read once, stays in registers, and is written once.
The table of configurations is layer normalisation's too, and so is the kernel that sums dw of wide rows, with a mean of 0.
pRMSNorm has no kernel: all that it leaves out are operations on elements which have to be read all the same.
"""

from typing import overload

import torch

from rundoku.gpu.launch import Case, Choice, Config, expect, expect_tensor, tl, triton
from rundoku.papers.layer_norm.kernel import (
    CONFIGS,
    COUNTED,
    DTYPES,
    SPLIT_ABOVE,
    SUMS_CONFIG,
    _rows,
    _strides,
    _sums,
    _types,
    choices,
    config_for,
    counted,
    programs,
)
from rundoku.papers.rms_norm import norm

__all__ = ["reference", "rms_norm"]  # what a copy brings

WIDEST = 16_384  # C: wider rows do not fit into a block's registers


# --8<-- [start:forward]
@triton.jit
def _forward(
    x, residual, weight, y, h, rstd, n_rows, n_columns, x_stride, residual_stride, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS] int64: R·C may pass 2³¹
    column = tl.arange(0, COLUMNS)  # [COLUMNS]
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]  # [ROWS, COLUMNS]
    tile = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS] fp32
    packed = row[:, None] * n_columns + column[None, :]  # [ROWS, COLUMNS] int64: where y and h have their elements
    if residual is not None:
        tile += tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        rounded = tile.to(h.dtype.element_ty)
        tl.store(h + packed, rounded, mask=inside)
        tile = rounded.to(tl.float32)  # what backward will read
    rho = 1.0 / tl.sqrt(tl.sum(tile * tile, 1) / n_columns + eps)  # [ROWS] fp32; the masked elements are 0 and stay 0
    result = tile * rho[:, None]
    if weight is not None:
        result *= tl.load(weight + column, mask=column < n_columns, other=0.0).to(tl.float32)[None, :]
    tl.store(y + packed, result.to(y.dtype.element_ty), mask=inside)
    tl.store(rstd + row, rho, mask=row < n_rows)
    # --8<-- [end:forward]


@triton.jit
def _backward(
    dy, dh, h, weight, rstd, dx, dweight, n_rows, n_columns, dy_stride, dh_stride, h_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)  # [COLUMNS]
    dweight_sum = tl.zeros([ROWS, COLUMNS], tl.float32)  # kept in registers over all rows of this program, summed once at the end
    for first in range(program * ROWS, n_rows, tl.num_programs(0).to(tl.int64) * ROWS):
        row = first + tl.arange(0, ROWS)  # [ROWS] int64
        inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]  # [ROWS, COLUMNS]
        rho = tl.load(rstd + row, mask=row < n_rows, other=0.0)  # [ROWS] fp32
        tile = tl.load(h + row[:, None] * h_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS] fp32
        grad = tl.load(dy + row[:, None] * dy_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if dweight is not None:
            dweight_sum += grad * tile * rho[:, None]
        if weight is not None:  # read for each row again, from the cache, so that it takes no registers
            grad *= tl.load(weight + column, mask=column < n_columns, other=0.0).to(tl.float32)[None, :]
        along = tl.sum(grad * tile, 1) * rho / n_columns  # mean(g·ĥ): [ROWS]; ĥ = h·ρ is never held, for it would take registers too
        result = (grad - tile * (along * rho)[:, None]) * rho[:, None]
        if dh is not None:
            result += tl.load(dh + row[:, None] * dh_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row[:, None] * n_columns + column[None, :], result.to(dx.dtype.element_ty), mask=inside)
    if dweight is not None:
        tl.store(dweight + program * n_columns + column, tl.sum(dweight_sum, 0), mask=column < n_columns)


@torch.library.custom_op("rundoku::rms_norm", mutates_args=())
def _op(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y, h, rstd = _outputs(x, residual, weight, eps)
    rows, n_columns = _rows(x), x.shape[-1]
    if rows.shape[0]:
        config = config_for(x)
        other = None if residual is None else _rows(residual)
        _forward[(triton.cdiv(rows.shape[0], config.tiles["ROWS"]),)](
            rows, other, weight, y, None if other is None else h, rstd, rows.shape[0], n_columns,
            rows.stride(0), 0 if other is None else other.stride(0), eps, **config.launch(),
        )  # fmt: skip
    return y, h, rstd


@_op.register_fake
def _outputs(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h = x.new_empty(x.shape if residual is not None else (0,))  # an operator returns no input of its own: without a residual h is x
    return x.new_empty(x.shape), h, x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("rundoku::rms_norm_backward", mutates_args=())
def _backward_op(
    dy: torch.Tensor, dh: torch.Tensor | None, h: torch.Tensor, weight: torch.Tensor | None, rstd: torch.Tensor, sums: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dweight = _gradients(dy, dh, h, weight, rstd, sums)
    grad, tile, more = _rows(dy), _rows(h), None if dh is None else _rows(dh)
    n_rows, n_columns = tile.shape
    if not n_rows:
        return dx, dweight.zero_()
    config = config_for(h)
    apart = sums and n_columns > SPLIT_ABOVE
    walking = programs(n_rows, SUMS_CONFIG if apart else config)
    partial = h.new_empty(walking, n_columns, dtype=torch.float32) if sums else None
    _backward[(walking if sums and not apart else triton.cdiv(n_rows, config.tiles["ROWS"]),)](
        grad, more, tile, weight, rstd, dx, None if apart else partial, n_rows, n_columns,
        grad.stride(0), 0 if more is None else more.stride(0), tile.stride(0), **config.launch(),
    )  # fmt: skip
    if partial is not None and apart:
        mean = rstd.new_zeros(n_rows)
        _sums[(triton.cdiv(n_columns, SUMS_CONFIG.tiles["COLUMNS"]), walking)](
            grad, tile, mean, rstd, partial, None, n_rows, n_columns, grad.stride(0), tile.stride(0), **SUMS_CONFIG.launch()
        )
    if partial is not None:
        torch.sum(partial, 0, out=dweight)
    return dx, dweight


@_backward_op.register_fake
def _gradients(
    dy: torch.Tensor, dh: torch.Tensor | None, h: torch.Tensor, weight: torch.Tensor | None, rstd: torch.Tensor, sums: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape[-1] if sums else 0, dtype=torch.float32)


def _save(ctx, inputs, output) -> None:
    x, residual, weight, _ = inputs
    _, h, rstd = output
    ctx.save_for_backward(x if residual is None else h, weight, rstd)
    ctx.fused = residual is not None
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dh, *_):
    h, weight, rstd = ctx.saved_tensors
    _, by_residual, by_weight, _ = ctx.needs_input_grad
    dy = torch.zeros_like(h) if dy is None else dy  # where only h is used
    dx, dweight = _backward_op(dy, dh if ctx.fused else None, h, weight, rstd, by_weight)
    return dx, dx if by_residual else None, dweight.to(weight.dtype) if by_weight else None, None


_op.register_autograd(_differentiate, setup_context=_save)


@overload
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, residual: None = None) -> torch.Tensor: ...
@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, *, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]: ...
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return ``x`` [..., C] divided by its root mean square over the last axis, in the dtype of ``x`` (Eq. 4).

    With a ``residual`` [..., C] of the shape and dtype of x, return the normalised sum of both, and the sum itself, which the next residual
    branch starts from. weight: [C] or None, of any of DTYPES. x: any strides; a last axis that is not contiguous is copied first.
    Raises ValueError for a wrong shape, dtype or device, for C above WIDEST, and for an ``eps`` that is not positive.
    """
    expect_tensor("x", x, dtypes=DTYPES)
    expect(x.dim() > 0 and 0 < x.shape[-1] <= WIDEST, "x", x, f"shape [..., C] with C from 1 to {WIDEST}")
    if residual is not None:
        expect_tensor("residual", residual, like=x, dtypes=(x.dtype,))
        expect(residual.shape == x.shape, "residual", residual, f"the shape {tuple(x.shape)} of x")
    if weight is not None:
        expect_tensor("weight", weight, like=x, dtypes=DTYPES)
        expect(weight.shape == x.shape[-1:] and weight.is_contiguous(), "weight", weight, f"contiguous, of shape {tuple(x.shape[-1:])}")
    expect(isinstance(eps, float) and 0 < eps < float("inf"), "eps", eps, "a positive float")
    y, h, _ = _op(x, residual, weight, eps)
    return y if residual is None else (y, h)


def reference(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, residual: torch.Tensor | None = None, upcast: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised and plain sum as plain torch computes them: in float64 with ``upcast``, else in the dtypes given."""
    if upcast:
        x = x.double()
        weight, residual = (None if tensor is None else tensor.double() for tensor in (weight, residual))
    h = x if residual is None else x + residual
    return norm.rms_norm(h, weight, eps), h


def compile_cases(target: str) -> list[Case]:
    """Return every kernel at every entry of the target's tables, with nothing left out that takes registers."""
    cases = []
    for dtype in ("bf16", "fp32"):
        cases += [case for kernel in ("forward", "backward") for case in _cases(kernel, dtype, CONFIGS[target])]
        cases += _cases("sums", dtype, (SUMS_CONFIG,))
    return cases


def _cases(kernel: str, dtype: str, entries: tuple[Config, ...]) -> list[Case]:
    """Return one kernel at the given entries; its costs are those of a launch with residual, or with dh."""
    cases, gain = [], _types("fp32", "weight rstd")  # as in mixed precision
    for config in entries:
        width, constants = config.tiles["COLUMNS"], {}
        if kernel == "forward":
            run, types = _forward, _types(dtype, "x residual y h") | gain | _strides("x residual") | {"eps": "fp32"}
            cost = counted(5, 4, dtype, width, columns=4, rows=4)
        elif kernel == "sums":
            run, types = _sums, _types(dtype, "dy h") | _types("fp32", "mean rstd dweight") | _strides("dy h")
            constants, cost = {"dbias": None}, counted(4, 2, dtype, WIDEST, columns=4 * programs(COUNTED, config))
        else:
            run, types = _backward, _types(dtype, "dy dh h dx") | gain | _strides("dy dh h")
            if width > SPLIT_ABOVE:
                constants, cost = {"dweight": None}, counted(7, 4, dtype, width, columns=4, rows=4)
            else:
                types |= _types("fp32", "dweight")
                cost = counted(10, 4, dtype, width, columns=4 + 4 * programs(COUNTED, config), rows=4)
        cases.append(Case(f"{kernel}, {dtype}", run, types, config, constants, cost=cost))
    return cases


def candidates(target: str) -> list[Choice]:
    """Return what could stand in the target's table, which is layer normalisation's too: take what is proposed for both."""
    cases = [("forward", "bf16"), ("forward", "fp32"), ("backward", "bf16"), ("backward", "fp32")]
    return choices(target, lambda config: [case for each in cases for case in _cases(*each, (config,))])
