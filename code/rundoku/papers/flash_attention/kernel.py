"""Flash attention on a GPU: the three calls, and what they accept. The same calls run on NVIDIA, on AMD and, with Triton's interpreter and
small sizes, on a CPU; to `torch.compile` each is one operator.

    flash_attention           [B, H, N, D]: every sequence of the batch has the same length; forward and backward
    flash_attention_varlen    [T, H, D]: sequences of any lengths, packed one after the other; forward and backward
    flash_decode              few queries against a long cache, filled to a length of its own in every sequence; forward only

The kernels, with formulas, layouts and costs, are in `kernel_forward`, `kernel_backward` and `kernel_decode`, their configurations in
`kernel_configs`, their place in torch in `kernel_operators`.
"""

import math

import torch
from torch import Tensor

from rundoku.gpu.launch import expect, expect_tensor, target_of
from rundoku.papers.flash_attention.kernel_configs import CONFIGS, DTYPES, HEAD_WIDTHS, MAX_SPLITS, candidates, compile_cases, config_for
from rundoku.papers.flash_attention.kernel_operators import attention_operator, decode_operator, split_count

__all__ = [
    "CONFIGS", "DTYPES", "HEAD_WIDTHS", "MAX_SPLITS", "candidates", "compile_cases", "config_for", "flash_attention",
    "flash_attention_varlen", "flash_decode", "split_count", "target_of",
]  # fmt: skip


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alibi_slopes: Tensor | None = None,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return exact attention [B, H, N, D] of query [B, H, N, D] and key, value [B, G, M, D] without holding the N × M scores.

    Dtypes: float16, bfloat16 or float32 (then without TF32), accumulated in float32; D is 16, 32, 64 or 128; G divides H and head h reads
    key-value head h·G/H. `alibi_slopes` [H] or [B, H] float32 subtracts slope·|distance| from the scores. `window_size` (left, right)
    limits how far a query sees, −1 means without bound; `causal` sets right to 0. N may differ from M: the last query is aligned with
    the last key. `softmax_scale` is 1/√D unless given; `softcap` c > 0 replaces a score s by c·tanh(s/c). A query that sees no key
    gives zeros. With `return_lse` also the log-sum-exp of the scores [B, H, N] float32, −∞ for such a query.

    Differentiable once in query, key, value, through out and lse; slopes are constants. Raises ValueError naming the argument at fault.
    """
    _expect_tensors(query, key, value, "[B, H, N, D]")
    options = _options(query, len(query), alibi_slopes, causal, window_size, softmax_scale, softcap)
    out, lse = attention_operator(query, key, value, alibi_slopes, *options)
    return (out, lse) if return_lse else out


def flash_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: Tensor | None = None,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return attention [T, H, D] of B sequences packed one after the other: query [T, H, D], key and value [S, G, D].

    Sequence b has the queries `cu_seqlens_q[b]` ≤ t < `cu_seqlens_q[b + 1]` and the keys that `cu_seqlens_k` gives it, and sees no other;
    both are [B + 1] int32 on the query's device, from 0 to T and S, and a sequence may have no queries or no keys. `max_seqlen_q` and
    `max_seqlen_k` are the greatest lengths, or bounds above them. Names and order are those of flash-attn's `flash_attn_varlen_func`,
    without dropout and paging; the other arguments, the alignment of the last query with the last key and the derivatives are those of
    `flash_attention`, for every sequence by itself. With `return_lse` also the log-sum-exp [H, T] float32.

    Raises ValueError naming the argument at fault. The values of the offsets are checked where they lie on a CPU (the interpreter); to read
    them from a GPU would hold up its stream. There wrong offsets are cut to the tensors, so that nothing outside of them is touched, but
    the rows of a sequence longer than its bound, or of no sequence, are left unwritten.
    """
    _expect_tensors(query, key, value, "[T, H, D]")
    for name, offsets, longest, total in (
        ("cu_seqlens_q", cu_seqlens_q, max_seqlen_q, len(query)),
        ("cu_seqlens_k", cu_seqlens_k, max_seqlen_k, len(key)),
    ):
        expect_tensor(name, offsets, like=query, dtypes=(torch.int32,))
        expect(offsets.ndim == 1 and len(offsets) > 0, name, offsets, "the shape [B + 1]")
        sequences = len(offsets) - 1
        name = name.replace("cu_seqlens", "max_seqlen")
        expect(isinstance(longest, int) and longest >= 0, name, longest, "a whole number, 0 or more")
        expect(longest * sequences >= total, name, longest, f"enough for {sequences} sequences to hold {total} tokens")
    sequences = len(cu_seqlens_q) - 1
    expect(len(cu_seqlens_k) == len(cu_seqlens_q), "cu_seqlens_k", cu_seqlens_k, f"the {sequences} sequences of cu_seqlens_q")
    options = _options(query, sequences, alibi_slopes, causal, window_size, softmax_scale, softcap)
    packed = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))  # [1, H, T, D], no copy
    longest_q, longest_k = min(max_seqlen_q, len(query)), min(max_seqlen_k, len(key))
    starts_q, starts_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    out, lse = attention_operator(*packed, alibi_slopes, *options, starts_q, starts_k, longest_q, longest_k)
    out = out[0].transpose(0, 1)
    return (out, lse[0]) if return_lse else out


def flash_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache_lengths: Tensor,
    alibi_slopes: Tensor | None = None,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    num_splits: int = 0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return attention [B, H, N, D] of few queries [B, H, N, D], the last of their sequences, against a cache, key and value [B, G, M, D].

    Sequence b has filled the first `cache_lengths[b]` of the cache's M places (lengths [B] int32 on the query's device, its N newest tokens
    among them); what lies beyond is never read, and an empty cache gives zeros and a log-sum-exp of −∞. The keys are divided into
    `num_splits` parts that run side by side, 1 to MAX_SPLITS; 0 takes `split_count`. Everything else as in `flash_attention`, which
    computes the same for one length and many queries.

    Forward only: raises ValueError where gradients are recorded and an input asks for one. Raises ValueError naming the argument at fault;
    the values of the lengths are checked where they lie on a CPU, elsewhere they are cut to 0 … M.
    """
    _expect_tensors(query, key, value, "[B, H, N, D]")
    batch = len(query)
    expect_tensor("cache_lengths", cache_lengths, like=query, dtypes=(torch.int32,))
    expect(cache_lengths.shape == (batch,), "cache_lengths", cache_lengths, f"the shape ({batch},)")
    expect(isinstance(num_splits, int) and 0 <= num_splits <= MAX_SPLITS, "num_splits", num_splits, f"a number from 0 to {MAX_SPLITS}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        recorded = torch.is_grad_enabled() and tensor.requires_grad
        expect(not recorded, name, tensor, "a tensor that requires no gradient, or torch.no_grad(): flash_decode is forward only")
    options = _options(query, batch, alibi_slopes, causal, window_size, softmax_scale, softcap)
    out, lse = decode_operator(query, key, value, cache_lengths.contiguous(), alibi_slopes, *options, num_splits)
    return (out, lse) if return_lse else out


def _expect_tensors(query: Tensor, key: Tensor, value: Tensor, axes: str) -> None:
    """Raise ValueError unless the three fit each other; the heads are their second axis, fixed and packed alike."""
    expect_tensor("query", query, dtypes=DTYPES)
    expect(query.ndim == axes.count(",") + 1, "query", query, f"the shape {axes}")
    heads, width = query.shape[1], query.shape[-1]
    expect(width in HEAD_WIDTHS, "query", query, f"a head width D (last axis) among {HEAD_WIDTHS}")
    batch = query.shape[:-3]  # () where the sequences are packed
    wanted = f"[{', '.join([*map(str, batch), *('GM' if batch else 'SG')])}, {width}]"
    for name, tensor in (("key", key), ("value", value)):
        expect_tensor(name, tensor, like=query, dtypes=(query.dtype,))
        fits = tensor.ndim == query.ndim and tensor.shape[:-3] == batch and tensor.shape[-1] == width
        expect(fits, name, tensor, f"the shape {wanted}")
    kv_heads = key.shape[1]
    expect(kv_heads > 0 and heads % kv_heads == 0, "key", key, f"a number of heads G (second axis) that divides the query's {heads}")
    expect(value.shape == key.shape, "value", value, f"the key's shape {tuple(key.shape)}")


def _options(
    query: Tensor, batch: int, slopes: Tensor | None, causal: bool, window: tuple[int, int], scale: float | None, softcap: float
) -> tuple[int, int, float, float]:
    """Return (left, right, scale, softcap) as the operators take them; raises ValueError naming the option at fault."""
    heads, width = query.shape[1], query.shape[-1]
    if slopes is not None:
        expect_tensor("alibi_slopes", slopes, like=query, dtypes=(torch.float32,))
        shapes = ((heads,), (batch, heads))
        expect(slopes.shape in shapes, "alibi_slopes", slopes, f"the shape {shapes[0]} or {shapes[1]}")
        expect(not slopes.requires_grad, "alibi_slopes", slopes, "slopes that require no gradient: they are constants here")
    expect(len(window) == 2 and min(window) >= -1, "window_size", window, "(left, right), each −1 (without bound) or more")
    expect(softcap >= 0 and math.isfinite(softcap), "softcap", softcap, "0 (none) or a positive number")
    used = 1 / math.sqrt(width) if scale is None else scale
    expect(math.isfinite(used), "softmax_scale", scale, "a finite number")
    return window[0], 0 if causal else window[1], float(used), float(softcap)
