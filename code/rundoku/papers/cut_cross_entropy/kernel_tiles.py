"""Cut cross-entropy on a GPU: the four kernels. `kernel` calls them and says what they compute.

Every kernel walks over tiles of the N × V logits and makes each of them itself, in registers, from C-long rows of hidden and weight.
`tokens` [N] int64 lists the rows of hidden that are counted, and `n_tokens` [1] says how many there are, so that ignored tokens cost
nothing and nobody waits for their number. `order` [V] int64 is the order in which a filtered backward pass walks over the vocabulary.
"""

from rundoku.gpu.launch import tl, triton
from rundoku.papers.flash_attention.kernel_forward import LN2, LOG2E, capped_scores


@triton.jit
def product_tile(
    left, right, left_rows, right_rows, left_inside, right_inside, left_stride, right_stride, width,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return left[left_rows] · right[right_rows]ᵀ, [LEFT, RIGHT] float32; rows are int64, those outside count as zeros."""
    acc = tl.zeros([LEFT, RIGHT], tl.float32)
    left += left_rows[:, None] * left_stride  # [LEFT, 1], int64 offsets: V·C passes 2³¹
    right += right_rows[:, None] * right_stride  # [RIGHT, 1]
    for first in range(0, width, BLOCK_C):
        inner = first + tl.arange(0, BLOCK_C)[None, :]  # [1, BLOCK_C]
        a = tl.load(left + inner, mask=left_inside[:, None] & (inner < width), other=0.0)  # [LEFT, BLOCK_C] input dtype
        b = tl.load(right + inner, mask=right_inside[:, None] & (inner < width), other=0.0)  # [RIGHT, BLOCK_C] input dtype
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)  # [LEFT, RIGHT] fp32
    return acc


# --8<-- [start:forward]
@triton.jit
def dot_kernel(
    hidden, weight, bias, targets, tokens, n_tokens, lse, loss, n_vocab, width, hidden_stride, weight_stride, softcap,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Write loss = lse − the target's own logit, one row of weight a token (Alg. 1); grid: ⌈N/BLOCK_N⌉."""
    at = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    counted = at < tl.load(n_tokens)
    row = tl.load(tokens + at, mask=counted, other=0)  # [BLOCK_N] int64
    target = tl.load(targets + row, mask=counted, other=0)  # [BLOCK_N] int64
    known = counted & (target >= 0) & (target < n_vocab)  # a target outside is never an address
    acc = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_C):
        inner = first + tl.arange(0, BLOCK_C)  # [BLOCK_C]
        inside = known[:, None] & (inner < width)[None, :]
        a = tl.load(hidden + row[:, None] * hidden_stride + inner[None, :], mask=inside, other=0.0).to(tl.float32)  # [BLOCK_N, BLOCK_C]
        b = tl.load(weight + target[:, None] * weight_stride + inner[None, :], mask=inside, other=0.0).to(tl.float32)
        acc += tl.sum(a * b, 1)
    if bias is not None:
        acc += tl.load(bias + target, mask=known, other=0.0).to(tl.float32)
    acc = capped_scores(acc, 1.0, softcap, SOFTCAP)
    found = tl.load(lse + row, mask=counted, other=0.0) - acc
    tl.store(loss + row, tl.where(known, found, float("nan")), mask=counted)


@triton.jit
def logsumexp_kernel(
    hidden, weight, bias, tokens, n_tokens, partial, n_rows, n_vocab, width, hidden_stride, weight_stride, softcap, n_blocks, n_splits,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the log-sum-exp of BLOCK_N tokens over one of n_splits parts of the vocabulary (Alg. 2); grid: ⌈N/BLOCK_N⌉·n_splits."""
    row_blocks = tl.cdiv(n_rows, BLOCK_N)
    split = tl.program_id(0) // row_blocks  # neighbours read the same rows of weight
    at = tl.program_id(0) % row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    counted = at < tl.load(n_tokens)
    if tl.program_id(0) % row_blocks * BLOCK_N >= tl.load(n_tokens):
        return
    row = tl.load(tokens + at, mask=counted, other=0)  # [BLOCK_N] int64
    total = tl.zeros([BLOCK_N], tl.float32)  # Σ exp(z − peak)
    peak = tl.full([BLOCK_N], float("-inf"), tl.float32)  # in units of log2
    for block in range(split * n_blocks // n_splits, (split + 1) * n_blocks // n_splits):
        column = block * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V] i32
        inside = column < n_vocab
        z = product_tile(
            hidden, weight, row, column.to(tl.int64), counted, inside, hidden_stride, weight_stride, width,
            BLOCK_N, BLOCK_V, BLOCK_C, PRECISION,
        )  # [BLOCK_N, BLOCK_V] fp32  # fmt: skip
        if bias is not None:
            z += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        z = capped_scores(z, 1.0, softcap, SOFTCAP) * LOG2E
        z = tl.where(inside[None, :], z, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(z, 1))  # [BLOCK_N] fp32
        anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # a bias of −∞ may rule out all words so far
        total = total * tl.exp2(peak - anchor) + tl.sum(tl.exp2(z - anchor[:, None]), 1)
        peak = new_peak
    tl.store(partial + split.to(tl.int64) * n_rows + row, (peak + tl.log2(total)) * LN2, mask=counted)
    # --8<-- [end:forward]


# --8<-- [start:gradient]
@triton.jit
def gradient_tile(z, lse, target, column, inside, by_loss, by_both, softcap, SOFTCAP: tl.constexpr):
    """Return ∂/∂z of a tile of logits, and the largest |softmax − 1 at the target| in it; all arguments are shaped to broadcast."""
    z = capped_scores(z, 1.0, softcap, SOFTCAP)
    p = tl.where(inside, tl.exp2((z - lse) * LOG2E), 0.0)  # the softmax: forward has kept its sum
    is_target = (target == column) & inside
    largest = tl.max(tl.max(tl.abs(tl.where(is_target, p - 1.0, p)), 1), 0)  # scalar
    g = p * by_both - tl.where(is_target, by_loss, 0.0)
    if SOFTCAP:
        g *= 1.0 - (z / softcap) * (z / softcap)  # c·tanh(x/c) has the slope 1 − tanh²(x/c)
    return g, largest
    # --8<-- [end:gradient]


@triton.jit
def add_product(
    total, g, other, total_rows, other_rows, total_inside, other_inside, other_stride, width,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add g · other[other_rows] to total[total_rows], [·, C] float32 rows of `width`; this program is the only one that touches them."""
    g = g.to(other.dtype.element_ty)
    total += total_rows[:, None] * width  # int64 offsets
    other += other_rows[:, None] * other_stride
    for first in range(0, width, BLOCK_C):
        inner = first + tl.arange(0, BLOCK_C)[None, :]  # [1, BLOCK_C]
        b = tl.load(other + inner, mask=other_inside[:, None] & (inner < width), other=0.0)  # [·, BLOCK_C] input dtype
        inside = total_inside[:, None] & (inner < width)
        acc = tl.load(total + inner, mask=inside, other=0.0)  # [·, BLOCK_C] fp32
        tl.store(total + inner, tl.dot(g, b, acc, input_precision=PRECISION), mask=inside)
    tl.debug_barrier()  # another thread of this block may read next what this one has written


# --8<-- [start:backward-hidden]
@triton.jit
def hidden_kernel(
    hidden, weight, bias, targets, tokens, n_tokens, order, lse, by_loss, by_both, total,
    n_rows, n_vocab, width, hidden_stride, weight_stride, softcap, eps, n_blocks, n_splits,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTCAP: tl.constexpr, FILTER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add up the gradient of BLOCK_N rows of hidden over one of n_splits parts of the vocabulary (Alg. 3); grid: ⌈N/BLOCK_N⌉·n_splits."""
    row_blocks = tl.cdiv(n_rows, BLOCK_N)
    split = tl.program_id(0) // row_blocks
    at = tl.program_id(0) % row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    counted = at < tl.load(n_tokens)
    if tl.program_id(0) % row_blocks * BLOCK_N >= tl.load(n_tokens):
        return
    row = tl.load(tokens + at, mask=counted, other=0)  # [BLOCK_N] int64
    target = tl.load(targets + row, mask=counted, other=-1)[:, None]  # [BLOCK_N, 1] int64
    row_lse = tl.load(lse + row, mask=counted, other=float("inf"))[:, None]  # +∞: probabilities of 0
    row_loss = tl.load(by_loss + row, mask=counted, other=0.0)[:, None]
    row_both = tl.load(by_both + row, mask=counted, other=0.0)[:, None]
    total += split.to(tl.int64) * n_rows * width
    for block in range(split, n_blocks, n_splits):  # in turn, so that each split has its share of the likely tokens
        place = block * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V] i32
        inside = place < n_vocab
        column = place.to(tl.int64)  # [BLOCK_V] int64
        if FILTER:
            column = tl.load(order + place, mask=inside, other=0)
        z = product_tile(
            hidden, weight, row, column, counted, inside, hidden_stride, weight_stride, width, BLOCK_N, BLOCK_V, BLOCK_C, PRECISION
        )  # [BLOCK_N, BLOCK_V] fp32
        if bias is not None:
            z += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        g, largest = gradient_tile(z, row_lse, target, column[None, :], inside[None, :], row_loss, row_both, softcap, SOFTCAP)
        if (not FILTER) or (largest >= eps):
            add_product(total, g, weight, row, column, counted, inside, weight_stride, width, BLOCK_C, PRECISION)
    # --8<-- [end:backward-hidden]


@triton.jit
def weight_kernel(
    hidden, weight, bias, targets, tokens, n_tokens, order, lse, by_loss, by_both, total, grad_bias,
    first_block, n_vocab, width, hidden_stride, weight_stride, softcap, eps,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTCAP: tl.constexpr, FILTER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add up the gradient of BLOCK_V rows of weight over all tokens (Alg. 3); grid: the blocks of the vocabulary from first_block on."""
    place = (first_block + tl.program_id(0)) * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V] i32
    inside = place < n_vocab
    column = place.to(tl.int64)  # [BLOCK_V] int64
    if FILTER:
        column = tl.load(order + place, mask=inside, other=0)
    own = (tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)).to(tl.int64)  # its rows of total
    column_bias = tl.zeros([BLOCK_V], tl.float32)
    if bias is not None:
        column_bias = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    bias_sum = tl.zeros([BLOCK_V], tl.float32)
    count = tl.load(n_tokens)
    for first in range(0, count, BLOCK_N):
        at = first + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        counted = at < count
        row = tl.load(tokens + at, mask=counted, other=0)  # [BLOCK_N] int64
        target = tl.load(targets + row, mask=counted, other=-1)[None, :]  # [1, BLOCK_N] int64
        row_lse = tl.load(lse + row, mask=counted, other=float("inf"))[None, :]
        row_loss = tl.load(by_loss + row, mask=counted, other=0.0)[None, :]
        row_both = tl.load(by_both + row, mask=counted, other=0.0)[None, :]
        z = product_tile(
            weight, hidden, column, row, inside, counted, weight_stride, hidden_stride, width, BLOCK_V, BLOCK_N, BLOCK_C, PRECISION
        )  # [BLOCK_V, BLOCK_N] fp32: the tile of hidden_kernel lying on its side
        z += column_bias[:, None]
        g, largest = gradient_tile(z, row_lse, target, column[:, None], inside[:, None], row_loss, row_both, softcap, SOFTCAP)
        if (not FILTER) or (largest >= eps):
            add_product(total, g, hidden, own, row, inside, counted, hidden_stride, width, BLOCK_C, PRECISION)
            bias_sum += tl.sum(g, 1)
    if grad_bias is not None:
        tl.store(grad_bias + column, bias_sum, mask=inside)
