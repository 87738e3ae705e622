"""Flash attention on a GPU, backward: the weights are computed again, tile by tile, from q, k and the saved L (FlashAttention-2, Alg. 2).

What it computes, with dL the gradient of lse where the caller used it:

    p_ij  = exp(s_ij − L_i)                     Δ_i = do_i·o_i − dL_i
    dv_j  = Σ_i p_ij do_i
    ds_ij = p_ij (do_i·v_j − Δ_i) · softcap'    softcap'(x) = 1 − tanh²(x/c), or 1 where c = 0
    dq_i  = τ Σ_j ds_ij k_j                     dk_j = τ Σ_i ds_ij q_i

Two kernels, one that keeps a block of keys and walks over the queries of every head that reads them (dk, dv), one that keeps a block of
queries and walks over the keys (dq). The paper does both in one with 5 products a tile and adds dq atomically; here it is 7 products,
no atomics, so the same input gives the same bits, and heads that share keys need no second pass to be summed. Every tile is masked:
a second copy of the loop for the tiles that need none, as in the forward pass, costs registers, and the compile report shows spills.

Layout: as in the forward pass, PACKED too; grad_* like the tensor they belong to; lse, delta [B, H, N] float32, contiguous.

Cost: 14·B·H·N·M·D floating-point operations (half when causal and N = M) against reads of q, k, v, o, do and writes of dq, dk, dv:
bound by the tensor cores, as forward, and by the registers that hold two accumulators of BLOCK_M × D.
"""

from rundoku.gpu.launch import tl, triton
from rundoku.papers.flash_attention.kernel_forward import LOG2E, biased_scores, capped_scores, key_range, may_attend, sequence


@triton.jit
def delta_kernel(
    out, grad_out, grad_lse, delta, stride_ob, stride_oh, stride_on, stride_gb, stride_gh, stride_gn, n_heads, n_queries,
    D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """Write Δ_i = do_i·o_i − dL_i for one block of queries of one head (Alg. 2, line 4); grid: ⌈N/BLOCK_N⌉·H·B programs.

    It asks for no keys, so packed sequences are one long one here.
    """
    blocks = tl.cdiv(n_queries, BLOCK_N)
    block = tl.program_id(0) % blocks
    head = (tl.program_id(0) // blocks % n_heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // n_heads).to(tl.int64)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] i32
    width = tl.arange(0, D)[None, :]  # [1, D] i32
    at = rows.to(tl.int64)[:, None]  # [BLOCK_N, 1] i64
    inside = rows < n_queries  # [BLOCK_N] bool
    o = tl.load(out + batch * stride_ob + head * stride_oh + at * stride_on + width, mask=inside[:, None], other=0.0)  # [BLOCK_N, D]
    do = tl.load(grad_out + batch * stride_gb + head * stride_gh + at * stride_gn + width, mask=inside[:, None], other=0.0)  # [BLOCK_N, D]
    total = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)  # [BLOCK_N] f32
    here = (batch * n_heads + head) * n_queries + rows  # [BLOCK_N] i64
    if HAS_GRAD_LSE:
        total -= tl.load(grad_lse + here, mask=inside, other=0.0)
    tl.store(delta + here, total, mask=inside)


@triton.jit
def _weights(
    product, rows, columns, lse, n_keys, offset, scale, softcap, slope, left, right,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, ALIBI: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """(p_ij, ds/d(τ q·k)) from q·k, either way round: rows, columns and lse are shaped to broadcast against the tile."""
    scores = capped_scores(product, scale, softcap, SOFTCAP)
    slack = 1.0
    if SOFTCAP:
        slack = 1.0 - (scores / softcap) * (scores / softcap)
    scores = biased_scores(scores, rows, columns, offset, slope, ALIBI)
    allowed = may_attend(rows, columns, n_keys, offset, left, right, HAS_LEFT, HAS_RIGHT)
    return tl.where(allowed, tl.exp2((scores - lse) * LOG2E), 0.0), slack


@triton.jit
def backward_keys_kernel(
    query, key, value, starts_q, starts_k, slopes, lse, delta, grad_out, grad_key, grad_value,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kg, stride_km, stride_vb, stride_vg, stride_vm, stride_gb, stride_gh, stride_gn,
    stride_dkb, stride_dkg, stride_dkm, stride_dvb, stride_dvg, stride_dvm,
    stride_sb, stride_sh, n_heads, group, n_queries, n_keys, longest, scale, softcap, left, right,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    ALIBI: tl.constexpr, SOFTCAP: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write grad_key and grad_value for one block of keys of one key-value head; grid: ⌈longest/BLOCK_M⌉·G·B programs.

    longest is n_keys or, PACKED, what no sequence has more keys than.
    """
    blocks = tl.cdiv(longest, BLOCK_M)
    block = tl.program_id(0) % blocks
    kv_heads = n_heads // group
    kv_head = (tl.program_id(0) // blocks % kv_heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // kv_heads).to(tl.int64)
    slopes_of = batch * stride_sb
    axis = n_queries
    batch, first_query, first_key, n_queries, n_keys = sequence(batch, starts_q, starts_k, n_queries, n_keys, PACKED)
    if PACKED:  # noqa: SIM102 `and` would make of it a test at run time
        if block * BLOCK_M >= n_keys:
            return
    key += batch * stride_kb + kv_head * stride_kg + first_key * stride_km
    value += batch * stride_vb + kv_head * stride_vg + first_key * stride_vm
    columns = block * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] i32
    width = tl.arange(0, D)[None, :]  # [1, D] i32
    at = columns.to(tl.int64)[:, None]  # [BLOCK_M, 1] i64
    inside = (columns < n_keys)[:, None]  # [BLOCK_M, 1] bool
    k = tl.load(key + at * stride_km + width, mask=inside, other=0.0)  # [BLOCK_M, D]
    v = tl.load(value + at * stride_vm + width, mask=inside, other=0.0)  # [BLOCK_M, D]
    dk = tl.zeros([BLOCK_M, D], tl.float32)
    dv = tl.zeros([BLOCK_M, D], tl.float32)

    # Which queries see these keys is the same question with the roles exchanged: left becomes right and M − N its negative.
    offset = n_keys - n_queries
    last = tl.minimum(block * BLOCK_M + BLOCK_M, n_keys) - 1
    start, _, _, stop = key_range(block * BLOCK_M, last, n_queries, -offset, right, left, BLOCK_N, HAS_RIGHT, HAS_LEFT)
    inner = tl.arange(0, BLOCK_N)  # [BLOCK_N] i32
    for member in range(group):  # the heads that read this key-value head
        head = kv_head * group + member
        of_head = (batch * n_heads + head) * axis + first_query
        q_block = query + batch * stride_qb + head * stride_qh + (first_query + start) * stride_qn  # 64 bits, once a block
        do_block = grad_out + batch * stride_gb + head * stride_gh + (first_query + start) * stride_gn
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes + slopes_of + head * stride_sh)
        for first in tl.range(start, stop, BLOCK_N):
            rows = first + inner  # [BLOCK_N] i32
            real = rows < n_queries  # [BLOCK_N] bool
            q = tl.load(q_block + inner[:, None] * stride_qn + width, mask=real[:, None], other=0.0)  # [BLOCK_N, D] input dtype
            do = tl.load(do_block + inner[:, None] * stride_gn + width, mask=real[:, None], other=0.0)  # [BLOCK_N, D] input dtype
            row_lse = tl.load(lse + of_head + rows, mask=real, other=float("inf"))  # [BLOCK_N] f32
            row_delta = tl.load(delta + of_head + rows, mask=real, other=0.0)  # [BLOCK_N] f32
            row_lse = tl.where(row_lse == float("-inf"), float("inf"), row_lse)  # a row that sees no key: its weights are 0
            product = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N] f32: transposed, so that pᵀ is at hand
            weights, slack = _weights(
                product, rows[None, :], columns[:, None], row_lse[None, :], n_keys, offset, scale, softcap, slope, left, right,
                HAS_LEFT, HAS_RIGHT, ALIBI, SOFTCAP,
            )  # fmt: skip
            dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)  # [BLOCK_M, D] f32
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N] f32
            ds = weights * (dp - row_delta[None, :]) * slack  # [BLOCK_M, BLOCK_N] f32
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)  # [BLOCK_M, D] f32, τ is multiplied in at the end
            q_block += BLOCK_N * stride_qn
            do_block += BLOCK_N * stride_gn

    grad_key += batch * stride_dkb + kv_head * stride_dkg + first_key * stride_dkm
    grad_value += batch * stride_dvb + kv_head * stride_dvg + first_key * stride_dvm
    tl.store(grad_key + at * stride_dkm + width, (dk * scale).to(grad_key.dtype.element_ty), mask=inside)
    tl.store(grad_value + at * stride_dvm + width, dv.to(grad_value.dtype.element_ty), mask=inside)


@triton.jit
def backward_queries_kernel(
    query, key, value, starts_q, starts_k, slopes, lse, delta, grad_out, grad_query,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kg, stride_km, stride_vb, stride_vg, stride_vm, stride_gb, stride_gh, stride_gn,
    stride_dqb, stride_dqh, stride_dqn, stride_sb, stride_sh, n_heads, group, n_queries, n_keys, longest, scale, softcap, left, right,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    ALIBI: tl.constexpr, SOFTCAP: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write grad_query for one block of queries of one head; grid as in the forward pass."""
    blocks = tl.cdiv(longest, BLOCK_N)
    block = blocks - 1 - tl.program_id(0) % blocks
    head = (tl.program_id(0) // blocks % n_heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // n_heads).to(tl.int64)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * stride_sb + head * stride_sh)
    axis = n_queries
    batch, first_query, first_key, n_queries, n_keys = sequence(batch, starts_q, starts_k, n_queries, n_keys, PACKED)
    if PACKED:  # noqa: SIM102 `and` would make of it a test at run time
        if block * BLOCK_N >= n_queries:
            return
    query += batch * stride_qb + head * stride_qh + first_query * stride_qn
    key += batch * stride_kb + head // group * stride_kg + first_key * stride_km
    value += batch * stride_vb + head // group * stride_vg + first_key * stride_vm
    grad_out += batch * stride_gb + head * stride_gh + first_query * stride_gn

    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] i32
    width = tl.arange(0, D)[None, :]  # [1, D] i32
    at = rows.to(tl.int64)[:, None]  # [BLOCK_N, 1] i64
    inside = rows < n_queries  # [BLOCK_N] bool
    q = tl.load(query + at * stride_qn + width, mask=inside[:, None], other=0.0)  # [BLOCK_N, D]
    do = tl.load(grad_out + at * stride_gn + width, mask=inside[:, None], other=0.0)  # [BLOCK_N, D]
    here = (batch * n_heads + head) * axis + first_query + rows  # [BLOCK_N] i64
    row_lse = tl.load(lse + here, mask=inside, other=float("inf"))  # [BLOCK_N] f32
    row_lse = tl.where(row_lse == float("-inf"), float("inf"), row_lse)  # a row that sees no key: its weights are 0
    row_delta = tl.load(delta + here, mask=inside, other=0.0)  # [BLOCK_N] f32
    dq = tl.zeros([BLOCK_N, D], tl.float32)

    offset = n_keys - n_queries
    last = tl.minimum(block * BLOCK_N + BLOCK_N, n_queries) - 1
    start, _, _, stop = key_range(block * BLOCK_N, last, n_keys, offset, left, right, BLOCK_M, HAS_LEFT, HAS_RIGHT)
    key += tl.cast(start, tl.int64) * stride_km  # 64 bits, once a block
    value += tl.cast(start, tl.int64) * stride_vm
    inner = tl.arange(0, BLOCK_M)  # [BLOCK_M] i32
    for first in tl.range(start, stop, BLOCK_M):
        columns = first + inner  # [BLOCK_M] i32
        real = (columns < n_keys)[:, None]  # [BLOCK_M, 1] bool
        k = tl.load(key + inner[:, None] * stride_km + width, mask=real, other=0.0)  # [BLOCK_M, D] input dtype
        v = tl.load(value + inner[:, None] * stride_vm + width, mask=real, other=0.0)  # [BLOCK_M, D] input dtype
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M] f32
        weights, slack = _weights(
            product, rows[:, None], columns[None, :], row_lse[:, None], n_keys, offset, scale, softcap, slope, left, right,
            HAS_LEFT, HAS_RIGHT, ALIBI, SOFTCAP,
        )  # fmt: skip
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M] f32
        ds = weights * (dp - row_delta[:, None]) * slack  # [BLOCK_N, BLOCK_M] f32
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)  # [BLOCK_N, D] f32, τ is multiplied in at the end
        key += BLOCK_M * stride_km
        value += BLOCK_M * stride_vm
    grad_query += batch * stride_dqb + head * stride_dqh + first_query * stride_dqn
    tl.store(grad_query + at * stride_dqn + width, (dq * scale).to(grad_query.dtype.element_ty), mask=inside[:, None])
