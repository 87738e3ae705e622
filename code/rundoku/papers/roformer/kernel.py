"""Rotary position embedding in Triton: queries and keys in one launch, forward and backward, in both layouts.

What it computes, for every pair (a, b) of elements of a head, with c = cos(m·θᵢ) and s = sin(m·θᵢ) of its position (Eq. 34):
    a' = a·c − b·s,   b' = b·c + a·s
and backward the rotation by the opposite angle, since the transpose of a rotation is its inverse:
    da = da'·c + db'·s,   db = db'·c − da'·s

Layout: query: [B, H, N, D], key: [B, G, N, D], any strides of B, heads and N, elements of a head side by side; the rotated ones are
contiguous. cos, sin: [N, D/2] or [B, N, D/2] in float32. Pairs are (i, i + D/2) in the half layout, (2i, 2i + 1) in the interleaved one.
All arithmetic is in float32, rounded once.

Cost: 3·B·(H + G)·N·D FLOP, and 2·s·B·(H + G)·N·D bytes with s bytes an element, plus 4·N·D of tables (B times that where each sequence
has its own): below 1 FLOP a byte in bfloat16, so memory bounds it. A program reads its part of the tables once for HEADS heads.
"""

import torch

from rundoku.gpu.launch import Case, Choice, Config, Cost, expect, expect_tensor, grid, target_of, tl, triton
from rundoku.papers.roformer import rotary as plain

__all__ = ["reference", "rotary"]  # what a copy brings

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 512  # D
COUNTED = {"B": 4, "H": 32, "G": 8, "N": 4096}  # at which the compile report states costs: a prefill of Llama 3 8B

# One table serves every target: none asks for another to stay free of spills. A tile holds 1,024 pairs of each head in turn.
_TABLE = tuple(Config({"ROWS": max(4, 1024 // pairs), "PAIRS": pairs, "HEADS": 4}, 4, num_stages=1) for pairs in (16, 32, 64, 128, 256))
CONFIGS: dict[str, tuple[Config, ...]] = dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942", "other", "interpreter"), _TABLE)


def config_for(tensor: torch.Tensor) -> Config:
    """Return the entry of CONFIGS for a tensor's device and last axis."""
    return next(config for config in CONFIGS[target_of(tensor)] if 2 * config.tiles["PAIRS"] >= tensor.shape[-1])


# --8<-- [start:turn]
@triton.jit
def _turn(
    x, y, c, s, row, n_rows, n_pairs, first_head, n_heads, head_stride, row_stride,
    PAIRS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Rotate rows of HEADS heads; x and y: one sequence's, c and s: [ROWS, PAIRS] fp32, row: [ROWS] int64, first_head: int64."""
    pair = tl.arange(0, PAIRS)  # [PAIRS]
    column = tl.arange(0, 2 * PAIRS)  # [2·PAIRS]
    inside = (row < n_rows)[:, None] & (pair < n_pairs)[None, :]  # [ROWS, PAIRS]
    whole = (row < n_rows)[:, None] & (column < 2 * n_pairs)[None, :]  # [ROWS, 2·PAIRS]
    for head in range(first_head, min(first_head + HEADS, n_heads)):
        source = x + head * head_stride + row[:, None] * row_stride  # [ROWS, 1]
        target = y + (head * n_rows + row)[:, None] * (2 * n_pairs)  # [ROWS, 1]
        if INTERLEAVED:  # one load of whole rows, pulled apart in registers
            tile = tl.load(source + column[None, :], mask=whole, other=0.0).to(tl.float32)
            a, b = tl.split(tl.reshape(tile, [tile.shape[0], PAIRS, 2]))  # [ROWS, PAIRS] fp32 each
        else:
            a = tl.load(source + pair[None, :], mask=inside, other=0.0).to(tl.float32)
            b = tl.load(source + n_pairs + pair[None, :], mask=inside, other=0.0).to(tl.float32)
        turned_a, turned_b = a * c - b * s, b * c + a * s  # [ROWS, PAIRS] fp32
        if INTERLEAVED:
            tile = tl.reshape(tl.join(turned_a, turned_b), [tile.shape[0], 2 * PAIRS])
            tl.store(target + column[None, :], tile.to(y.dtype.element_ty), mask=whole)
        else:
            tl.store(target + pair[None, :], turned_a.to(y.dtype.element_ty), mask=inside)
            tl.store(target + n_pairs + pair[None, :], turned_b.to(y.dtype.element_ty), mask=inside)
    # --8<-- [end:turn]


@triton.jit
def _rotary(
    query, key, cos, sin, query_out, key_out, n_query_heads, n_key_heads, n_rows, n_pairs,
    query_batch, query_head, query_row, key_batch, key_head, key_row, table_batch,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(n_rows, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    row = (tl.program_id(0) % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS] int64: B·H·N·D may pass 2³¹
    pair = tl.arange(0, PAIRS)  # [PAIRS]
    inside = (row < n_rows)[:, None] & (pair < n_pairs)[None, :]  # [ROWS, PAIRS]
    table = batch * table_batch + row[:, None] * n_pairs + pair[None, :]  # [ROWS, PAIRS] int64
    c = tl.load(cos + table, mask=inside, other=0.0)  # [ROWS, PAIRS] fp32
    s = tl.load(sin + table, mask=inside, other=0.0)
    if INVERSE:
        s = -s
    blocks = tl.cdiv(n_query_heads, HEADS)  # the first programs turn queries, the rest keys
    block = tl.program_id(1).to(tl.int64)
    if block < blocks:
        _turn(
            query + batch * query_batch, query_out + batch * n_query_heads * n_rows * (2 * n_pairs), c, s, row, n_rows, n_pairs,
            block * HEADS, n_query_heads, query_head, query_row, PAIRS, HEADS, INTERLEAVED,
        )  # fmt: skip
    else:
        _turn(
            key + batch * key_batch, key_out + batch * n_key_heads * n_rows * (2 * n_pairs), c, s, row, n_rows, n_pairs,
            (block - blocks) * HEADS, n_key_heads, key_head, key_row, PAIRS, HEADS, INTERLEAVED,
        )  # fmt: skip


@torch.library.custom_op("rundoku::rotary", mutates_args=())
def _op(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    turned = _outputs(query, key, cos, sin, interleaved, inverse)
    batch, n_heads, length, width = query.shape
    if not batch * length:
        return turned
    query, key = (each if each.stride(-1) == 1 else each.contiguous() for each in (query, key))
    config = config_for(query)
    tiles, heads = triton.cdiv(length, config.tiles["ROWS"]), config.tiles["HEADS"]
    _rotary[(batch * tiles, triton.cdiv(n_heads, heads) + triton.cdiv(key.shape[1], heads))](
        query, key, cos.contiguous(), sin.contiguous(), *turned, n_heads, key.shape[1], length, width // 2,
        *query.stride()[:3], *key.stride()[:3], length * width // 2 if cos.dim() == 3 and cos.shape[0] > 1 else 0,
        INTERLEAVED=interleaved, INVERSE=inverse, **config.launch(),
    )  # fmt: skip
    return turned


@_op.register_fake
def _outputs(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _save(ctx, inputs, output) -> None:
    _, _, cos, sin, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx, d_query, d_key):
    d_query, d_key = _op(d_query, d_key, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return d_query, d_key, None, None, None, None


_op.register_autograd(_differentiate, setup_context=_save)


def rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: plain.Layout = "half"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query [B, H, N, D] and key [B, G, N, D] rotated by their positions, contiguous and each in its own dtype.

    cos and sin: [N, D/2], or [B, N, D/2] where sequences have positions of their own, in float32, as ``rotary_tables`` makes them;
    constants, so tables that require a gradient are refused. A last axis of query or key that is not contiguous is copied first.
    Raises ValueError for a wrong shape, dtype, device or layout, and for D above WIDEST.
    """
    expect(layout in plain.LAYOUTS, "layout", layout, f"one of {', '.join(plain.LAYOUTS)}")
    expect_tensor("query", query, dtypes=DTYPES)
    expect_tensor("key", key, like=query, dtypes=DTYPES)
    even = query.dim() == 4 and query.shape[1] > 0 and query.shape[-1] % 2 == 0 and 0 < query.shape[-1] <= WIDEST
    expect(even, "query", query, f"shape [B, H, N, D] with H at least 1 and D even, from 2 to {WIDEST}")
    batch, _, length, width = query.shape
    same = key.dim() == 4 and key.shape[1] > 0 and (key.shape[0], *key.shape[2:]) == (batch, length, width)
    expect(same, "key", key, f"shape ({batch}, G, {length}, {width}) with G at least 1")
    for name, table in (("cos", cos), ("sin", sin)):
        expect_tensor(name, table, like=query, dtypes=(torch.float32,))
        fits = table.shape in ((length, width // 2), (1, length, width // 2), (batch, length, width // 2))
        expect(fits, name, table, f"shape ({length}, {width // 2}) or ({batch}, {length}, {width // 2})")
        expect(not table.requires_grad, name, table, "a constant: no gradient goes to the tables")
    expect(cos.shape == sin.shape, "sin", sin, f"the shape {tuple(cos.shape)} of cos")
    return _op(query, key, cos, sin, layout == "interleaved", False)


def reference(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: plain.Layout = "half", upcast: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``rotary`` returns as plain torch computes it: in float64 with ``upcast``, else in the dtypes given, tables too."""
    turned = []
    for x in (query, key):
        dtype = torch.float64 if upcast else x.dtype
        c, s = ((table.unsqueeze(1) if table.dim() == 3 else table).to(dtype) for table in (cos, sin))
        turned.append(plain.rotate(x.to(dtype), c, s, layout))
    return turned[0], turned[1]


def compile_cases(target: str) -> list[Case]:
    """Return the kernel in both layouts at every entry of the target's table; backward differs by a sign."""
    return [case for dtype in ("bf16", "fp32") for layout in plain.LAYOUTS for case in _cases(layout, dtype, CONFIGS[target])]


def _cases(layout: str, dtype: str, entries: tuple[Config, ...]) -> list[Case]:
    sizes = "n_query_heads n_key_heads n_rows n_pairs query_batch query_head query_row key_batch key_head key_row table_batch"
    types = dict.fromkeys(("query", "key", "query_out", "key_out"), f"*{dtype}") | {"cos": "*fp32", "sin": "*fp32"}
    types |= dict.fromkeys(sizes.split(), "i32")
    constants = {"INTERLEAVED": layout == "interleaved", "INVERSE": False}
    return [Case(f"{layout}, {dtype}", _rotary, types, config, constants, cost=_cost(config, dtype)) for config in entries]


def _cost(config: Config, dtype: str) -> Cost:
    sizes = COUNTED | {"D": 2 * config.tiles["PAIRS"]}
    elements = sizes["B"] * (sizes["H"] + sizes["G"]) * sizes["N"] * sizes["D"]
    moved = 2 * elements * (2 if dtype == "bf16" else 4) + 4 * sizes["N"] * sizes["D"]
    return Cost(3 * elements, moved, "float32", ", ".join(f"{axis} = {size:,}" for axis, size in sizes.items()))


def candidates(target: str) -> list[Choice]:
    """Return what could stand in the target's table: other numbers of rows and heads of a program, and of warps."""

    def cases(config: Config) -> list[Case]:
        return [case for dtype in ("bf16", "fp32") for layout in plain.LAYOUTS for case in _cases(layout, dtype, (config,))]

    found = []
    for config in CONFIGS[target]:
        pairs = config.tiles["PAIRS"]
        rows = sorted({max(1, each // pairs) for each in (512, 1024, 2048, 4096)})
        others = grid({"ROWS": rows, "PAIRS": (pairs,), "HEADS": (1, 2, 4, 8)}, (2, 4, 8))
        found.append(Choice(f"D up to {2 * pairs}", config, others, cases))
    return found
