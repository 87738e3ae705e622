"""Layer normalisation in Triton, forward and backward, with the residual addition that stands before it fused in where wanted.

What it computes, for each row of C elements (Ba et al., Eq. 3 and 5; r is the residual, if any):
    h = x + r,   μ = mean(h),   ρ = 1 / √(mean((h − μ)²) + eps),   ĥ = (h − μ)·ρ,   y = ĥ·w + b
and, from the gradients dy and (with a residual) dh, with g = dy·w:
    dx = dr = (g − mean(g) − ĥ·mean(g·ĥ))·ρ + dh,   dw = Σ_rows dy·ĥ,   db = Σ_rows dy

Layout: x, residual, y, h, dy, dh, dx: [R, C], rows may be strided, elements of a row lie side by side; weight, bias: [C];
μ and ρ: [R] in float32. All arithmetic is in float32. h is rounded to the dtype of x before it is normalised, as x + r in torch is.

Cost in FLOP and in bytes to and from memory, s bytes an element: forward 7·R·C and 2·R·C·s (with residual 8·R·C and 4·R·C·s),
backward 13·R·C and 3·R·C·s (with dh 14·R·C and 4·R·C·s). Above C = 8,192 dw and db take a second reading: 2·R·C and 2·R·C·s more. Beside
that stand gain, bias, μ and ρ, and 8·C bytes for each program of backward, which leaves a sum of dw and of db. In bfloat16 that is below
3 FLOP a byte, where an H200 can do 14 in float32 alone: memory bounds it, so a row is read once, stays in registers, and is written once.
"""

from collections.abc import Callable

import torch

from rundoku.gpu.launch import Case, Choice, Config, Cost, expect, expect_tensor, grid, target_of, tl, triton
from rundoku.papers.layer_norm import norm
from rundoku.papers.layer_norm.kernel_backward import _backward, _sums

__all__ = ["add_layer_norm", "layer_norm", "reference"]  # what a copy brings

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = {torch.float16: 16_384, torch.bfloat16: 16_384, torch.float32: 8_192}  # C: wider rows do not fit into a block's registers
SPLIT_ABOVE = 8_192  # C: from here on the sums over rows for dw and db do not fit beside the row, and a kernel of their own takes them
COUNTED = 4096  # R at which the compile report states costs
PROGRAMS = 512  # that walk over rows in backward, at most: each leaves one partial sum of dw and db, added up in a fixed order


# One table serves every target: none asks for another to stay free of spills. Narrow rows share a tile of 2,048 elements.
_WARPS = {128: 4, 256: 4, 512: 4, 1024: 4, 2048: 4, 4096: 8, 8192: 16, 16_384: 16}  # by C, rounded up to a power of two
_TABLE = tuple(Config({"ROWS": max(1, 2048 // width), "COLUMNS": width}, warps, num_stages=1) for width, warps in _WARPS.items())
CONFIGS: dict[str, tuple[Config, ...]] = dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942", "other", "interpreter"), _TABLE)
SUMS_CONFIG = Config({"ROWS": 16, "COLUMNS": 128}, num_warps=4, num_stages=1)


def config_for(tensor: torch.Tensor) -> Config:
    """Return the entry of CONFIGS for a tensor's device and last axis, forward and backward alike."""
    return next(config for config in CONFIGS[target_of(tensor)] if config.tiles["COLUMNS"] >= tensor.shape[-1])


def programs(n_rows: int, config: Config) -> int:
    """Return how many programs walk over the rows where they leave sums."""
    return min(PROGRAMS, triton.cdiv(n_rows, config.tiles["ROWS"]))


# --8<-- [start:forward]
@triton.jit
def _forward(
    x, residual, weight, bias, y, h, mean, rstd, n_rows, n_columns, x_stride, residual_stride, eps,
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
    mu = tl.sum(tile, 1) / n_columns  # [ROWS] fp32; the masked elements are 0
    centred = tl.where(inside, tile - mu[:, None], 0.0)  # [ROWS, COLUMNS] fp32; masked again, or they would count as −μ
    rho = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / n_columns + eps)  # [ROWS] fp32
    result = centred * rho[:, None]
    if weight is not None:
        result *= tl.load(weight + column, mask=column < n_columns, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        result += tl.load(bias + column, mask=column < n_columns, other=0.0).to(tl.float32)[None, :]
    tl.store(y + packed, result.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, mu, mask=row < n_rows)
    tl.store(rstd + row, rho, mask=row < n_rows)
    # --8<-- [end:forward]


@torch.library.custom_op("rundoku::layer_norm", mutates_args=())
def _op(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    y, h, mean, rstd = _outputs(x, residual, weight, bias, eps)
    rows, n_columns = _rows(x), x.shape[-1]
    if rows.shape[0]:
        config = config_for(x)
        other = None if residual is None else _rows(residual)
        _forward[(triton.cdiv(rows.shape[0], config.tiles["ROWS"]),)](
            rows, other, weight, bias, y, None if other is None else h, mean, rstd, rows.shape[0], n_columns,
            rows.stride(0), 0 if other is None else other.stride(0), eps, **config.launch(),
        )  # fmt: skip
    return y, h, mean, rstd


@_op.register_fake
def _outputs(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    y = x.new_empty(x.shape)
    h = x.new_empty(x.shape if residual is not None else (0,))  # an operator returns no input of its own: without a residual h is x
    return y, h, x.new_empty(x.shape[:-1], dtype=torch.float32), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("rundoku::layer_norm_backward", mutates_args=())
def _backward_op(
    dy: torch.Tensor, dh: torch.Tensor | None, h: torch.Tensor, weight: torch.Tensor | None, mean: torch.Tensor, rstd: torch.Tensor,
    sums: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    dx, dweight, dbias = _gradients(dy, dh, h, weight, mean, rstd, sums)
    grad, tile, more = _rows(dy), _rows(h), None if dh is None else _rows(dh)
    n_rows, n_columns = tile.shape
    if not n_rows:
        return dx, dweight.zero_(), dbias.zero_()
    config = config_for(h)
    apart = sums and n_columns > SPLIT_ABOVE
    walking = programs(n_rows, SUMS_CONFIG if apart else config)
    partial = h.new_empty(2, walking, n_columns, dtype=torch.float32) if sums else None  # of dw and of db
    _backward[(walking if sums and not apart else triton.cdiv(n_rows, config.tiles["ROWS"]),)](
        grad, more, tile, weight, mean, rstd, dx, *((None, None) if apart or partial is None else partial), n_rows, n_columns,
        grad.stride(0), 0 if more is None else more.stride(0), tile.stride(0), **config.launch(),
    )  # fmt: skip
    if partial is not None and apart:
        _sums[(triton.cdiv(n_columns, SUMS_CONFIG.tiles["COLUMNS"]), walking)](
            grad, tile, mean, rstd, *partial, n_rows, n_columns, grad.stride(0), tile.stride(0), **SUMS_CONFIG.launch()
        )
    if partial is not None:
        torch.sum(partial[0], 0, out=dweight)
        torch.sum(partial[1], 0, out=dbias)
    return dx, dweight, dbias


@_backward_op.register_fake
def _gradients(
    dy: torch.Tensor, dh: torch.Tensor | None, h: torch.Tensor, weight: torch.Tensor | None, mean: torch.Tensor, rstd: torch.Tensor,
    sums: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    width = h.shape[-1] if sums else 0
    return h.new_empty(h.shape), h.new_empty(width, dtype=torch.float32), h.new_empty(width, dtype=torch.float32)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a [R, C] view whose rows lie side by side in themselves; copies only where strides allow no such view."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _save(ctx, inputs, output) -> None:
    x, residual, weight, bias, _ = inputs
    _, h, mean, rstd = output
    ctx.save_for_backward(x if residual is None else h, weight, mean, rstd)
    ctx.fused = residual is not None
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dh, *_):
    h, weight, mean, rstd = ctx.saved_tensors
    _, by_residual, by_weight, by_bias, _ = ctx.needs_input_grad
    dy = torch.zeros_like(h) if dy is None else dy  # where only h is used
    dx, dweight, dbias = _backward_op(dy, dh if ctx.fused else None, h, weight, mean, rstd, by_weight or by_bias)
    dweight = dweight.to(weight.dtype) if by_weight else None
    dbias = dbias.to(ctx.bias_dtype) if by_bias else None
    return dx, dx if by_residual else None, dweight, dbias, None


_op.register_autograd(_differentiate, setup_context=_save)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """Return ``x`` [..., C] normalised over its last axis, in the dtype of ``x`` (Eq. 3 and 5).

    weight and bias: [C] or None, of any of DTYPES. x: any strides; a last axis that is not contiguous is copied first.
    Raises ValueError for a wrong shape, dtype or device, for C above WIDEST[x.dtype], and for an ``eps`` that is not positive.
    """
    _check(x, None, weight, bias, eps)
    return _op(x, None, weight, bias, eps)[0]


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised sum of ``x`` and ``residual``, and the sum itself, which the next residual branch starts from.

    x and residual: [..., C] of one shape and dtype; the rest, and what raises ValueError, as in ``layer_norm``.
    """
    expect(isinstance(residual, torch.Tensor), "residual", residual, "a dense torch.Tensor: without one, call layer_norm")
    _check(x, residual, weight, bias, eps)
    y, h, _, _ = _op(x, residual, weight, bias, eps)
    return y, h


def _check(x, residual, weight, bias, eps) -> None:
    expect_tensor("x", x, dtypes=DTYPES)
    expect(x.dim() > 0 and 0 < x.shape[-1] <= WIDEST[x.dtype], "x", x, f"shape [..., C] with C from 1 to {WIDEST[x.dtype]}")
    if residual is not None:
        expect_tensor("residual", residual, like=x, dtypes=(x.dtype,))
        expect(residual.shape == x.shape, "residual", residual, f"the shape {tuple(x.shape)} of x")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            expect_tensor(name, tensor, like=x, dtypes=DTYPES)
            expect(tensor.shape == x.shape[-1:] and tensor.is_contiguous(), name, tensor, f"contiguous, of shape {tuple(x.shape[-1:])}")
    expect(isinstance(eps, float) and 0 < eps < float("inf"), "eps", eps, "a positive float")


def reference(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    upcast: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised and plain sum as plain torch computes them: in float64 with ``upcast``, else in the dtypes given."""
    if upcast:
        x = x.double()
        weight, bias, residual = (None if tensor is None else tensor.double() for tensor in (weight, bias, residual))
    h = x if residual is None else x + residual
    return norm.layer_norm(h, weight, bias, eps), h


def compile_cases(target: str) -> list[Case]:
    """Return every kernel at every entry of the target's tables, with nothing left out that takes registers."""
    entries = CONFIGS[target]
    cases = [case for dtype in ("bf16", "fp32") for kernel in ("forward", "backward") for case in _cases(kernel, dtype, entries)]
    return [*cases, *_cases("sums", "bf16", (SUMS_CONFIG,))]


def _cases(kernel: str, dtype: str, entries: tuple[Config, ...]) -> list[Case]:
    """Return one kernel at the given entries; its costs are those of a launch with residual, or with dh."""
    cases, gain = [], _types("fp32", "weight bias mean rstd")  # as in mixed precision
    for config in entries:
        width = config.tiles["COLUMNS"]
        if width > (WIDEST[torch.float32] if dtype == "fp32" else WIDEST[torch.bfloat16]):
            continue
        constants: dict[str, None] = {}
        if kernel == "forward":
            run, types = _forward, _types(dtype, "x residual y h") | gain | _strides("x residual") | {"eps": "fp32"}
            cost = counted(8, 4, dtype, width, columns=8)
        elif kernel == "sums":
            width = WIDEST[torch.bfloat16]
            run, types = _sums, _types(dtype, "dy h") | _types("fp32", "mean rstd dweight dbias") | _strides("dy h")
            cost = counted(5, 2, dtype, width, columns=8 * programs(COUNTED, config))
        else:
            run, types = _backward, _types(dtype, "dy dh h dx") | _types("fp32", "weight mean rstd") | _strides("dy dh h")
            if width > SPLIT_ABOVE:
                constants, cost = dict.fromkeys(("dweight", "dbias")), counted(11, 4, dtype, width, columns=4)
            else:
                types |= _types("fp32", "dweight dbias")
                cost = counted(14, 4, dtype, width, columns=4 + 8 * programs(COUNTED, config))
        cases.append(Case(f"{kernel}, {dtype}", run, types, config, constants, cost=cost))
    return cases


def candidates(target: str) -> list[Choice]:
    """Return what could stand in the target's tables: other numbers of rows in a tile, and of warps."""
    cases = [("forward", "bf16"), ("forward", "fp32"), ("backward", "bf16"), ("backward", "fp32")]
    found = choices(target, lambda config: [case for each in cases for case in _cases(*each, (config,))])
    others = grid({"ROWS": (8, 16, 32, 64), "COLUMNS": (64, 128, 256)}, (2, 4, 8), (1, 2))
    return [*found, Choice("SUMS_CONFIG", SUMS_CONFIG, others, lambda config: _cases("sums", "bf16", (config,)))]


def choices(target: str, cases: Callable[[Config], list[Case]]) -> list[Choice]:
    """Return one choice for each entry of the target's table, whose width stays."""
    widths = {config.tiles["COLUMNS"]: config for config in CONFIGS[target]}
    rows = {width: sorted({max(1, elements // width) for elements in (1024, 2048, 4096, 8192)}) for width in widths}
    warps = (4, 8, 16) if target == "gfx942" else (2, 4, 8, 16, 32)  # 1,024 threads at most
    return [
        Choice(f"C up to {width:,}", config, grid({"ROWS": rows[width], "COLUMNS": (width,)}, warps), cases)
        for width, config in widths.items()
    ]


def counted(flops: int, tensors: int, dtype: str, width: int, columns: int, rows: int = 8) -> Cost:
    """Return the cost of a launch over COUNTED rows: FLOP and tensors an element, and bytes for each column and each row."""
    work = COUNTED * width
    moved = tensors * work * (2 if dtype == "bf16" else 4) + columns * width + rows * COUNTED
    return Cost(flops * work, moved, "float32", f"R = {COUNTED:,}, C = {width:,}")


def _types(dtype: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"*{dtype}")


def _strides(names: str) -> dict[str, str]:
    return dict.fromkeys(("n_rows", "n_columns", *(f"{name}_stride" for name in names.split())), "i32")
