"""Flash attention on a GPU, forward: one program makes BLOCK_N rows of the output while it walks over the keys (FlashAttention-2, Alg. 1).

What it computes, for query i of head h and the keys j that it may see:

    s_ij = softcap(τ q_i·k_j) − slope_h |i + M − N − j|        softcap(x) = c tanh(x/c), or x where c = 0
    L_i  = log Σ_j exp(s_ij)
    o_i  = Σ_j exp(s_ij − L_i) v_j

Query i stands at position i + M − N of the keys: the last query is aligned with the last key (bottom-right, as in FlashAttention-2.1 and
later). Causal means j ≤ i + M − N, a window (left, right) means i + M − N − left ≤ j ≤ i + M − N + right. A query that sees no key
has o_i = 0 and L_i = −∞.

Layout: query, out [B, H, N, D]; key, value [B, G, M, D], head h reads key-value head h·G/H; lse [B, H, N] float32, contiguous. Axes may
have any stride, the last has stride 1. PACKED, there is no axis of the batch: query, out [1, H, T, D], key, value [1, G, S, D] and lse
[1, H, T] hold the sequences one after the other, and N and M are those of one sequence, from starts_q and starts_k [B + 1] int32.

Cost: 4·B·H·N·M·D floating-point operations (half of it when causal and N = M). Q and O cross the memory once, K and V once for every
BLOCK_N queries, most of it served by the L2 cache, since neighbouring programs share a head: at least 2·B·D·(H·N + G·M) elements. In
half precision with H = G and N = M that is N/2 operations a byte, so beyond some hundred keys the tensor cores bound it and not the
memory. What bounds attention without tiles is the N·M scores, which here never leave the chip. PACKED, N·M becomes the sum over the
sequences of their N·M, and no operation is spent on padding.
"""

from rundoku.gpu.launch import tl, triton

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x·log2 e): exp2 is one instruction
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _tanh(x):
    """Tanh to float32 accuracy: a Padé approximant near zero, where the other form would cancel. Libdevice has none for the interpreter."""
    x2 = x * x
    near = x * (135135.0 + x2 * (17325.0 + x2 * (378.0 + x2))) / (135135.0 + x2 * (62370.0 + x2 * (3150.0 + x2 * 28.0)))
    far = 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)
    return tl.where(tl.abs(x) < 1.0, near, far)


@triton.jit
def capped_scores(product, scale, softcap, SOFTCAP: tl.constexpr):
    """softcap(τ q·k) from q·k, any tile shape, float32: the part of s_ij that depends on q and k."""
    scores = product * scale
    if SOFTCAP:
        scores = softcap * _tanh(scores / softcap)
    return scores


@triton.jit
def biased_scores(scores, rows, columns, offset, slope, ALIBI: tl.constexpr):
    """Subtract the ALiBi bias slope·|i + M − N − j|; rows and columns are the tile's i and j, shaped to broadcast against each other."""
    if ALIBI:
        scores -= slope * tl.abs(rows + offset - columns).to(tl.float32)
    return scores


@triton.jit
def may_attend(rows, columns, n_keys, offset, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """True where query i may see key j; rows and columns are the tile's i and j, shaped to broadcast against each other.

    Rows past the last query are not asked for: nothing of them is stored, and backward their L is +∞.
    """
    allowed = columns < n_keys
    if HAS_RIGHT:
        allowed &= columns <= rows + offset + right
    if HAS_LEFT:
        allowed &= columns >= rows + offset - left
    return allowed


@triton.jit
def key_range(first, last, n_keys, offset, left, right, BLOCK_M: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Which keys the queries first … last see: start ≤ j < stop, and within it full_start ≤ j < full_stop, seen by every one of them.

    start, full_start and full_stop are multiples of BLOCK_M, so the blocks between the latter two need no mask.
    """
    start, stop = 0, n_keys
    full_start, full_stop = 0, n_keys
    if HAS_RIGHT:
        stop = tl.maximum(tl.minimum(n_keys, last + offset + right + 1), 0)
        full_stop = tl.maximum(tl.minimum(n_keys, first + offset + right + 1), 0)
    if HAS_LEFT:
        start = tl.maximum(first + offset - left, 0) // BLOCK_M * BLOCK_M
        full_start = (tl.maximum(last + offset - left, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    full_stop = tl.maximum(full_stop // BLOCK_M * BLOCK_M, start)
    return start, full_start, full_stop, stop


@triton.jit
def sequence(batch, starts_q, starts_k, n_queries, n_keys, PACKED: tl.constexpr):
    """Where a sequence lies: its index on the axis of the batch, its first query and first key, and how many of each it has.

    Given the lengths of the axes N and M. Offsets are cut to them, so that wrong ones give wrong numbers but never a wild address.
    """
    first_query, first_key = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    if PACKED:
        start_q = tl.minimum(tl.maximum(tl.load(starts_q + batch), 0), n_queries)
        start_k = tl.minimum(tl.maximum(tl.load(starts_k + batch), 0), n_keys)
        n_queries = tl.maximum(tl.minimum(tl.load(starts_q + batch + 1), n_queries) - start_q, 0)
        n_keys = tl.maximum(tl.minimum(tl.load(starts_k + batch + 1), n_keys) - start_k, 0)
        batch, first_query, first_key = tl.cast(0, tl.int64), start_q.to(tl.int64), start_k.to(tl.int64)
    return batch, first_query, first_key, n_queries, n_keys


@triton.jit
def _attend(
    acc, total, peak, q, key, value, stride_km, stride_vm, rows, start, stop, n_keys, offset, scale, softcap, slope, left, right,
    D: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    ALIBI: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the keys start ≤ j < stop into the running softmax (acc, total, peak): Alg. 1, lines 6-11."""
    key += tl.cast(start, tl.int64) * stride_km  # 64 bits once a block: j times a stride passes 2³¹ at long contexts
    value += tl.cast(start, tl.int64) * stride_vm
    inner = tl.arange(0, BLOCK_M)  # [BLOCK_M] i32
    width = tl.arange(0, D)[None, :]  # [1, D] i32
    for first in tl.range(start, stop, BLOCK_M):
        columns = first + inner  # [BLOCK_M] i32
        inside = (columns < n_keys)[:, None]  # [BLOCK_M, 1] bool
        if MASKED:
            k = tl.load(key + inner[:, None] * stride_km + width, mask=inside, other=0.0)  # [BLOCK_M, D] input dtype
        else:
            k = tl.load(key + inner[:, None] * stride_km + width)
        scores = capped_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, SOFTCAP)  # [BLOCK_N, BLOCK_M] f32
        scores = biased_scores(scores, rows[:, None], columns[None, :], offset, slope, ALIBI) * LOG2E
        if MASKED:
            allowed = may_attend(rows[:, None], columns[None, :], n_keys, offset, left, right, HAS_LEFT, HAS_RIGHT)
            scores = tl.where(allowed, scores, float("-inf"))

        # --8<-- [start:update]
        new_peak = tl.maximum(peak, tl.max(scores, 1))  # [BLOCK_N] f32, in units of log2
        anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # a row that has seen nothing yet: −∞ − (−∞) would be NaN
        weights = tl.exp2(scores - anchor[:, None])  # [BLOCK_N, BLOCK_M] f32, exp(s − m)
        shrink = tl.exp2(peak - anchor)  # [BLOCK_N] f32: what the sums so far were measured against has moved
        total = total * shrink + tl.sum(weights, 1)
        # --8<-- [end:update]
        if MASKED:
            v = tl.load(value + inner[:, None] * stride_vm + width, mask=inside, other=0.0)  # [BLOCK_M, D] input dtype
        else:
            v = tl.load(value + inner[:, None] * stride_vm + width)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)  # [BLOCK_N, D] f32
        peak = new_peak
        key += BLOCK_M * stride_km
        value += BLOCK_M * stride_vm
    return acc, total, peak


@triton.jit
def finished(acc, total, peak):
    """(o, L) of the rows whose running softmax this is: Alg. 1, lines 12 and 13. Zeros and −∞ for a row that saw nothing."""
    total = tl.where(total == 0.0, 1.0, total)  # o = 0/1, L = −∞ + log 1; a NaN stays one
    return acc / total[:, None], (peak + tl.log2(total)) * LN2


@triton.jit
def forward_kernel(
    query, key, value, starts_q, starts_k, slopes, out, lse,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kg, stride_km, stride_vb, stride_vg, stride_vm, stride_ob, stride_oh, stride_on,
    stride_sb, stride_sh, n_heads, group, n_queries, n_keys, longest, scale, softcap, left, right,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    ALIBI: tl.constexpr, SOFTCAP: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write out and lse for one block of queries of one head; grid: ⌈longest/BLOCK_N⌉·H·B programs, the blocks of a head side by side.

    n_queries and n_keys are the lengths of the axes N and M; longest is n_queries or, PACKED, what no sequence has more queries than.
    """
    blocks = tl.cdiv(longest, BLOCK_N)
    block = blocks - 1 - tl.program_id(0) % blocks  # causal rows grow longer towards the end: start the longest first
    head = (tl.program_id(0) // blocks) % n_heads
    batch = (tl.program_id(0) // blocks // n_heads).to(tl.int64)
    kv_head = (head // group).to(tl.int64)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * stride_sb + head * stride_sh)
    axis = n_queries
    batch, first_query, first_key, n_queries, n_keys = sequence(batch, starts_q, starts_k, n_queries, n_keys, PACKED)
    if PACKED:  # noqa: SIM102 `and` would make of it a test at run time
        if block * BLOCK_N >= n_queries:
            return
    query += batch * stride_qb + head.to(tl.int64) * stride_qh + first_query * stride_qn
    key += batch * stride_kb + kv_head * stride_kg + first_key * stride_km
    value += batch * stride_vb + kv_head * stride_vg + first_key * stride_vm
    out += batch * stride_ob + head.to(tl.int64) * stride_oh + first_query * stride_on
    lse += (batch * n_heads + head) * axis + first_query

    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] i32
    width = tl.arange(0, D)  # [D] i32
    at = rows.to(tl.int64)[:, None]  # [BLOCK_N, 1] i64
    inside = (rows < n_queries)[:, None]  # [BLOCK_N, 1] bool
    q = tl.load(query + at * stride_qn + width[None, :], mask=inside, other=0.0)  # [BLOCK_N, D] input dtype
    acc = tl.zeros([BLOCK_N, D], tl.float32)  # Õ_i, not yet divided by its sum
    total = tl.zeros([BLOCK_N], tl.float32)  # ℓ_i
    peak = tl.full([BLOCK_N], float("-inf"), tl.float32)  # m_i, in units of log2

    offset = n_keys - n_queries
    last = tl.minimum(block * BLOCK_N + BLOCK_N, n_queries) - 1
    start, full_start, full_stop, stop = key_range(block * BLOCK_N, last, n_keys, offset, left, right, BLOCK_M, HAS_LEFT, HAS_RIGHT)
    if HAS_LEFT:  # blocks that the window's left edge cuts
        acc, total, peak = _attend(
            acc, total, peak, q, key, value, stride_km, stride_vm, rows, start, tl.minimum(full_start, full_stop),
            n_keys, offset, scale, softcap, slope, left, right, D, BLOCK_M, True, HAS_LEFT, HAS_RIGHT, ALIBI, SOFTCAP, PRECISION,
        )  # fmt: skip
    acc, total, peak = _attend(  # blocks that every row sees whole
        acc, total, peak, q, key, value, stride_km, stride_vm, rows, full_start, full_stop, n_keys, offset,
        scale, softcap, slope, left, right, D, BLOCK_M, False, HAS_LEFT, HAS_RIGHT, ALIBI, SOFTCAP, PRECISION,
    )  # fmt: skip
    acc, total, peak = _attend(  # blocks that the diagonal, the window's right edge or the end of the keys cuts
        acc, total, peak, q, key, value, stride_km, stride_vm, rows, full_stop, stop, n_keys, offset,
        scale, softcap, slope, left, right, D, BLOCK_M, True, HAS_LEFT, HAS_RIGHT, ALIBI, SOFTCAP, PRECISION,
    )  # fmt: skip

    o, row_lse = finished(acc, total, peak)
    tl.store(out + at * stride_on + width[None, :], o.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + rows, row_lse, mask=rows < n_queries)
