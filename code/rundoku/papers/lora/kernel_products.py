"""The three kernels of a linear layer with its low-rank update; what they compute, and why they are three, is said in kernel.py.

Layout: x, wide, y [R, ·], a row's elements side by side; weight strided along one axis; thin (u or t) [R, r] with zeros up to the next
multiple of 16; factor (A or Bᵀ) [r, ·], contiguous. The rank is masked where it ends within a tile, so it may be any number.
"""

from rundoku.gpu.launch import tl, triton


@triton.jit
def linear_kernel(
    x, weight, thin, factor, bias, y, n_rows, n_inputs, n_outputs, rank, thin_stride, scale, x_stride, weight_out, weight_in,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x·weightᵀ + scale·thin·factor + bias, one tile a program; ⌈R/BLOCK_M⌉·⌈O/BLOCK_N⌉ programs, ordered to share the L2 cache."""
    tall, wide = tl.cdiv(n_rows, BLOCK_M), tl.cdiv(n_outputs, BLOCK_N)  # tiles
    group, within = tl.program_id(0) // (GROUP * wide), tl.program_id(0) % (GROUP * wide)
    height = tl.minimum(tall - group * GROUP, GROUP)  # the last group may be lower
    row = ((group * GROUP + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)  # [BLOCK_M] int64: R·I may pass 2³¹
    column = (within // height * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)  # [BLOCK_N] int64: O·I, too
    in_rows, in_columns = (row < n_rows)[:, None], (column < n_outputs)[None, :]  # [BLOCK_M, 1], [1, BLOCK_N]
    depth, narrow = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_R)  # [BLOCK_K], [BLOCK_R]

    x += row[:, None] * x_stride + depth[None, :]  # [BLOCK_M, BLOCK_K]
    weight += column[None, :] * weight_out + depth[:, None] * weight_in  # [BLOCK_K, BLOCK_N]
    thin += row[:, None] * thin_stride + narrow[None, :]  # [BLOCK_M, BLOCK_R]
    factor += narrow[:, None] * n_outputs + column[None, :]  # [BLOCK_R, BLOCK_N]
    # --8<-- [start:main-loop]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in tl.range(0, rank, BLOCK_R):  # s·u·Bᵀ, up to r = 64 in one step
        u = tl.load(thin + first, mask=in_rows & (narrow < thin_stride - first)[None, :], other=0.0)  # [BLOCK_M, BLOCK_R]
        b = tl.load(factor, mask=(narrow < rank - first)[:, None] & in_columns, other=0.0)  # [BLOCK_R, BLOCK_N]
        acc = tl.dot(u, b, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N] fp32
        factor += BLOCK_R * n_outputs
    acc *= scale
    for first in tl.range(0, n_inputs, BLOCK_K):  # x·Wᵀ, added to what is there
        a = tl.load(x + first, mask=in_rows & (depth < n_inputs - first)[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        w = tl.load(weight, mask=(depth < n_inputs - first)[:, None] & in_columns, other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
        weight += BLOCK_K * weight_in
    # --8<-- [end:main-loop]
    if bias is not None:
        acc += tl.load(bias + column, mask=column < n_outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(y + row[:, None] * n_outputs + column[None, :], acc.to(y.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def narrow_kernel(
    x, factor, thin, n_rows, n_inputs, rank, thin_stride, x_stride,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """thin = x·factorᵀ for BLOCK_M rows and BLOCK_R of the rank; programs that read the same rows stand side by side."""
    blocks = tl.cdiv(rank, BLOCK_R)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] int64
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R] int64
    depth = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    in_rows, in_rank = (row < n_rows)[:, None], (column < rank)[None, :]  # [BLOCK_M, 1], [1, BLOCK_R]
    x += row[:, None] * x_stride + depth[None, :]  # [BLOCK_M, BLOCK_K]
    factor += column[None, :] * n_inputs + depth[:, None]  # [BLOCK_K, BLOCK_R]
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for first in tl.range(0, n_inputs, BLOCK_K):
        tile = tl.load(x + first, mask=in_rows & (depth < n_inputs - first)[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        part = tl.load(factor + first, mask=(depth < n_inputs - first)[:, None] & in_rank, other=0.0)  # [BLOCK_K, BLOCK_R]
        acc = tl.dot(tile, part, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_R] fp32
    acc = tl.where(in_rank, acc, 0.0)  # the columns that pad r are read by the other kernels; ∞·0 would make them NaN
    tl.store(
        thin + row[:, None] * thin_stride + column[None, :], acc.to(thin.dtype.element_ty), mask=in_rows & (column < thin_stride)[None, :]
    )


@triton.jit
def sums_kernel(
    wide, thin, partial, n_rows, n_columns, rank, thin_stride, scale, wide_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial[p] = scale·Σ wideᵀ·thin over every num_programs(1)-th block of rows from the p-th on: dAᵀ from x and t, dB from dy and u."""
    blocks = tl.cdiv(rank, BLOCK_R)
    program = tl.program_id(1).to(tl.int64)
    step = tl.num_programs(1).to(tl.int64) * BLOCK_M
    row = program * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] int64
    column = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] int64
    narrow = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R] int64
    in_columns, in_thin = (column < n_columns)[None, :], (narrow < thin_stride)[None, :]  # [1, BLOCK_N], [1, BLOCK_R]
    wide += row[:, None] * wide_stride + column[None, :]  # [BLOCK_M, BLOCK_N]
    thin += row[:, None] * thin_stride + narrow[None, :]  # [BLOCK_M, BLOCK_R]
    acc = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for first in tl.range(program * BLOCK_M, n_rows, step):
        in_rows = (tl.arange(0, BLOCK_M) < n_rows - first)[:, None]  # [BLOCK_M, 1]
        tile = tl.load(wide, mask=in_rows & in_columns, other=0.0)  # [BLOCK_M, BLOCK_N]
        part = tl.load(thin, mask=in_rows & in_thin, other=0.0)  # [BLOCK_M, BLOCK_R]
        acc = tl.dot(tl.trans(tile), part, acc, input_precision=PRECISION)  # [BLOCK_N, BLOCK_R] fp32
        wide += step * wide_stride
        thin += step * thin_stride
    place = (program * n_columns + column[:, None]) * rank + narrow[None, :]  # [BLOCK_N, BLOCK_R] int64
    tl.store(partial + place, acc * scale, mask=(column < n_columns)[:, None] & (narrow < rank)[None, :])
