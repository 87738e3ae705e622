"""Flash attention on a GPU for decoding: few queries, a long cache of keys and values, its keys split over programs (Flash-Decoding).

What it computes: o_i and L_i as the forward pass does, for N queries that are the last of their sequence, where sequence b has filled
M_b = lengths[b] of the cache's M places. Query i stands at position i + M_b − N. Two steps, since a softmax can be put together from
parts. Split r of the R into which the keys are divided gives

    L_i^r = log Σ_{j in split r} exp(s_ij)      o_i^r = Σ_{j in split r} exp(s_ij − L_i^r) v_j

and together they give L_i = log Σ_r exp(L_i^r) and o_i = Σ_r exp(L_i^r − L_i) o_i^r. A split without a key has o = 0 and L = −∞.

One program takes one split for the N queries of all H/G heads that read one key-value head: row r of its tile is query r mod N of
the group's head ⌊r/N⌋. So a key is loaded once for all of them, and a matrix instruction's 16 rows are filled where the group is large.
What is divided is a sequence's own visible keys, so that a short sequence or a window leaves no program with all of the work.

Layout: query, out [B, H, N, D]; key, value [B, G, M, D], head h reads key-value head h·G/H; lengths [B] int32; lse [B, H, N] float32.
Of the splits: out [R, B, H, N, D], lse [R, B, H, N], float32, contiguous. Other axes may have any stride, the last has stride 1.

Cost: 4·H·N·D·Σ M_b floating-point operations. The caches' 2·G·D·Σ M_b elements, which dwarf all else, cross the memory once; in half
precision that is N·H/G operations a byte, so the memory bounds it until a group has some hundred rows. Every tile is masked: the mask
hides behind the loads. The splits' own results add 8·R·B·H·N·(D + 1) bytes, written and read.
"""

from rundoku.gpu.launch import tl, triton
from rundoku.papers.flash_attention.kernel_forward import LOG2E, _attend, finished, key_range


@triton.jit
def split_kernel(
    query, key, value, lengths, slopes, out, lse,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kg, stride_km, stride_vb, stride_vg, stride_vm,
    stride_or, stride_ob, stride_oh, stride_on, stride_lr, stride_sb, stride_sh,
    n_heads, group, n_queries, n_keys, splits, scale, softcap, left, right,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    ALIBI: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write out and lse of one split of the keys for BLOCK_N rows of one key-value head; grid: ⌈N·H/G/BLOCK_N⌉·R·G·B programs."""
    n_rows = group * n_queries
    blocks = tl.cdiv(n_rows, BLOCK_N)
    kv_heads = n_heads // group
    block = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks % splits
    kv_head = (tl.program_id(0) // blocks // splits % kv_heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // splits // kv_heads).to(tl.int64)
    n_keys = tl.minimum(tl.maximum(tl.load(lengths + batch), 0), n_keys)  # a wrong length never leads past the cache

    row = block * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] i32
    real = row < n_rows  # [BLOCK_N] bool
    queries = row % n_queries  # [BLOCK_N] i32
    head = kv_head * group + row // n_queries  # [BLOCK_N] i64
    width = tl.arange(0, D)[None, :]  # [1, D] i32
    at = queries.to(tl.int64)  # [BLOCK_N] i64
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * stride_sb + head * stride_sh, mask=real, other=0.0)[:, None]  # [BLOCK_N, 1] f32
    q = tl.load(query + (batch * stride_qb + head * stride_qh + at * stride_qn)[:, None] + width, mask=real[:, None], other=0.0)
    acc = tl.zeros([BLOCK_N, D], tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    peak = tl.full([BLOCK_N], float("-inf"), tl.float32)

    offset = n_keys - n_queries
    start, _, _, stop = key_range(0, n_queries - 1, n_keys, offset, left, right, BLOCK_M, HAS_LEFT, HAS_RIGHT)
    size = tl.cdiv(tl.cdiv(tl.maximum(stop - start, 0), BLOCK_M), splits) * BLOCK_M  # of a split, in whole blocks
    first = start + split * size
    acc, total, peak = _attend(
        acc, total, peak, q, key + batch * stride_kb + kv_head * stride_kg, value + batch * stride_vb + kv_head * stride_vg,
        stride_km, stride_vm, queries, first, tl.minimum(first + size, stop), n_keys, offset, scale, softcap, slope, left, right,
        D, BLOCK_M, True, HAS_LEFT, HAS_RIGHT, ALIBI, SOFTCAP, PRECISION,
    )  # fmt: skip
    o, row_lse = finished(acc, total, peak)
    to = out + (split.to(tl.int64) * stride_or + batch * stride_ob + head * stride_oh + at * stride_on)[:, None] + width
    tl.store(to, o.to(out.dtype.element_ty), mask=real[:, None])
    tl.store(lse + split.to(tl.int64) * stride_lr + (batch * n_heads + head) * n_queries + at, row_lse, mask=real)


@triton.jit
def combine_kernel(
    part, part_lse, out, lse, stride_ob, stride_oh, stride_on, n_heads, n_queries, n_rows, splits, D: tl.constexpr, BLOCK_R: tl.constexpr
):
    """Write out and lse of one query of one head from all of its splits, BLOCK_R ≥ R; grid: B·H·N programs."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_R)  # [BLOCK_R] i32
    here = split.to(tl.int64) * n_rows + row  # [BLOCK_R] i64
    width = tl.arange(0, D)  # [D] i32
    lses = tl.load(part_lse + here, mask=split < splits, other=float("-inf"))  # [BLOCK_R] f32
    parts = tl.load(part + here[:, None] * D + width[None, :], mask=(split < splits)[:, None], other=0.0)  # [BLOCK_R, D] f32
    peak = tl.max(lses, 0)
    anchor = tl.where(peak == float("-inf"), 0.0, peak)  # no split has seen a key: −∞ − (−∞) would be NaN
    weights = tl.exp2((lses - anchor) * LOG2E)  # [BLOCK_R] f32
    total = tl.sum(weights, 0)
    total = tl.where(total == 0.0, 1.0, total)
    o = tl.sum(parts * weights[:, None], 0) / total  # [D] f32
    to = row // n_queries // n_heads * stride_ob + row // n_queries % n_heads * stride_oh + row % n_queries * stride_on
    tl.store(out + to + width, o.to(out.dtype.element_ty))
    tl.store(lse + row, peak + tl.log(total))
