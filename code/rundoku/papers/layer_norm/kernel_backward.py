"""The backward kernels of layer normalisation: gradients of a row, and the sums over rows apart where rows are wide.

Formulas, layout and cost stand in kernel.py, whose table of configurations is theirs too.
"""

from rundoku.gpu.launch import tl, triton


@triton.jit
def _backward(
    dy, dh, h, weight, mean, rstd, dx, dweight, dbias, n_rows, n_columns, dy_stride, dh_stride, h_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)  # [COLUMNS]
    if weight is not None:
        gain = tl.load(weight + column, mask=column < n_columns, other=0.0).to(tl.float32)  # [COLUMNS] fp32
    dweight_sum = tl.zeros([ROWS, COLUMNS], tl.float32)  # kept in registers over all rows of this program, summed once at the end
    dbias_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(program * ROWS, n_rows, tl.num_programs(0).to(tl.int64) * ROWS):
        row = first + tl.arange(0, ROWS)  # [ROWS] int64
        inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]  # [ROWS, COLUMNS]
        grad = tl.load(dy + row[:, None] * dy_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS] fp32
        tile = tl.load(h + row[:, None] * h_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        mu = tl.load(mean + row, mask=row < n_rows, other=0.0)  # [ROWS] fp32
        rho = tl.load(rstd + row, mask=row < n_rows, other=0.0)
        normal = tl.where(inside, (tile - mu[:, None]) * rho[:, None], 0.0)  # ĥ: [ROWS, COLUMNS] fp32
        if dweight is not None:
            dweight_sum += grad * normal
        if dbias is not None:
            dbias_sum += grad
        if weight is not None:
            grad = grad * gain[None, :]
        along_ones = tl.sum(grad, 1) / n_columns  # [ROWS]: what the mean takes away
        along_normal = tl.sum(grad * normal, 1) / n_columns  # [ROWS]: what the variance takes away
        result = (grad - along_ones[:, None] - normal * along_normal[:, None]) * rho[:, None]
        if dh is not None:
            result += tl.load(dh + row[:, None] * dh_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row[:, None] * n_columns + column[None, :], result.to(dx.dtype.element_ty), mask=inside)
    partial = program * n_columns + column  # [COLUMNS] int64
    if dweight is not None:
        tl.store(dweight + partial, tl.sum(dweight_sum, 0), mask=column < n_columns)
    if dbias is not None:
        tl.store(dbias + partial, tl.sum(dbias_sum, 0), mask=column < n_columns)


@triton.jit
def _sums(
    dy, h, mean, rstd, dweight, dbias, n_rows, n_columns, dy_stride, h_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    program = tl.program_id(1).to(tl.int64)
    dweight_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    dbias_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(program * ROWS, n_rows, tl.num_programs(1).to(tl.int64) * ROWS):
        row = first + tl.arange(0, ROWS)  # [ROWS] int64
        inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]  # [ROWS, COLUMNS]
        grad = tl.load(dy + row[:, None] * dy_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS] fp32
        tile = tl.load(h + row[:, None] * h_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        mu = tl.load(mean + row, mask=row < n_rows, other=0.0)  # [ROWS] fp32
        rho = tl.load(rstd + row, mask=row < n_rows, other=0.0)
        dweight_sum += grad * (tile - mu[:, None]) * rho[:, None]  # grad is 0 outside
        if dbias is not None:
            dbias_sum += grad
    partial = program * n_columns + column  # [COLUMNS] int64
    if dweight is not None:
        tl.store(dweight + partial, tl.sum(dweight_sum, 0), mask=column < n_columns)
    if dbias is not None:
        tl.store(dbias + partial, tl.sum(dbias_sum, 0), mask=column < n_columns)
