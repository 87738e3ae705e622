"""Flash attention's kernels as torch operators: what is launched for a call, what it returns, how it is differentiated.

The three calls, with what they accept and refuse, are in `kernel`. The fixed and the packed form are one operator: packed tokens are a
batch of one, [1, H, T, D], with the offsets of the sequences beside it.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rundoku.gpu.launch import INTERPRETED, expect, target_of, triton
from rundoku.papers.flash_attention.kernel_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from rundoku.papers.flash_attention.kernel_configs import MAX_SPLITS, RESIDENT, config_for
from rundoku.papers.flash_attention.kernel_decode import combine_kernel, split_kernel
from rundoku.papers.flash_attention.kernel_forward import forward_kernel

LEAST_KEYS = 256  # of a split: with fewer, to put the splits together would cost more than they save


def _readable(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where the kernels cannot walk it: a row's elements side by side, a tile of rows within 2³¹ elements."""
    return tensor if tensor.stride(-1) == 1 and tensor.stride(-2) < 2**24 else tensor.contiguous()


def _empty_like(tensor: Tensor) -> Tensor:
    """Return an empty tensor laid out like this one, so that [B, N, H, D] seen as [B, H, N, D] stays so, but contiguous along D."""
    empty = torch.empty_like(tensor)
    return empty if empty.stride(-1) == 1 else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the tensor's GPU, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _flags(query: Tensor, slopes: Tensor | None, softcap: float, left: int, right: int) -> dict[str, Any]:
    precision = "ieee" if query.dtype == torch.float32 else "tf32"  # half precision is exact in either, fp32 would lose 13 bits to TF32
    flags = {"HAS_LEFT": left >= 0, "HAS_RIGHT": right >= 0, "ALIBI": slopes is not None, "SOFTCAP": softcap > 0}
    return {"D": query.shape[-1], "PRECISION": precision, **flags}


def _slope_strides(slopes: Tensor | None) -> tuple[int, int]:
    if slopes is None:
        return 0, 0
    return (0 if slopes.ndim == 1 else slopes.stride(0)), slopes.stride(-1)


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def expect_offsets(name: str, offsets: Tensor, total: int, longest: int) -> None:
    """Raise ValueError for offsets that do not divide ``total`` tokens, or sequences longer than ``longest``, where they are on a CPU."""
    if offsets.device.type == "cpu":  # elsewhere to read them would hold the stream up; the kernels cut them to the tensor
        values = offsets.tolist()
        rising = all(a <= b for a, b in pairwise(values))
        expect(values[0] == 0 and values[-1] == total and rising, name, values, f"offsets from 0 to {total} that never decrease")
        needed = max((b - a for a, b in pairwise(values)), default=0)
        expect(longest >= needed, name.replace("cu_seqlens", "max_seqlen"), longest, f"at least the longest sequence, {needed}")


@torch.library.custom_op("rundoku::flash_attention", mutates_args=())
def attention_operator(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, left: int, right: int, scale: float, softcap: float,
    starts_q: Tensor | None = None, starts_k: Tensor | None = None, longest_q: int = 0, longest_k: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return out and lse [B, H, N]; with starts_q and starts_k [B + 1] the tensors are packed, [1, H, T, D] and [1, G, S, D]."""
    batch, heads, n_queries, width = query.shape
    n_keys = key.shape[2]
    if starts_q is not None and starts_k is not None:
        expect_offsets("cu_seqlens_q", starts_q, n_queries, longest_q)
        expect_offsets("cu_seqlens_k", starts_k, n_keys, longest_k)
        batch = len(starts_q) - 1
    else:
        longest_q = n_queries
    out, lse = _empty_forward(query, key, value, slopes, left, right, scale, softcap)
    if out.numel() == 0:
        return out, lse
    query, key, value = _readable(query), _readable(key), _readable(value)
    left, right = min(left, n_queries + n_keys), min(right, n_queries + n_keys)  # further than any pair is apart; the sums stay below 2³¹
    packed = starts_q is not None
    config = config_for(target_of(query), "forward", width, query.itemsize, packed)
    with _on_device_of(query):
        forward_kernel[(_blocks(longest_q, config.tiles["BLOCK_N"]) * heads * batch,)](
            query, key, value, starts_q, starts_k, slopes, out, lse,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3], *_slope_strides(slopes),
            heads, heads // key.shape[1], n_queries, n_keys, longest_q, scale, softcap, left, right,
            **_flags(query, slopes, softcap, left, right), PACKED=packed, **config.launch(),
        )  # fmt: skip
    return out, lse


@attention_operator.register_fake
def _empty_forward(
    query, key, value, slopes, left, right, scale, softcap, starts_q=None, starts_k=None, longest_q=0, longest_k=0
) -> tuple[Tensor, Tensor]:
    return _empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("rundoku::flash_attention_backward", mutates_args=())
def attention_backward_operator(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, out: Tensor, lse: Tensor,
    left: int, right: int, scale: float, softcap: float,
    starts_q: Tensor | None = None, starts_k: Tensor | None = None, longest_q: int = 0, longest_k: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value."""
    (batch, heads, n_queries, width), (_, kv_heads, n_keys, _) = query.shape, key.shape
    grad_query, grad_key, grad_value = _empty_backward(grad_out, grad_lse, query, key, value, slopes, out, lse, left, right, scale, softcap)
    query, key, value, grad_out = _readable(query), _readable(key), _readable(value), _readable(grad_out)
    left, right = min(left, n_queries + n_keys), min(right, n_queries + n_keys)
    packed = starts_q is not None
    sequences = batch
    if starts_q is None:
        longest_q, longest_k = n_queries, n_keys
    else:
        sequences = len(starts_q) - 1
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *grad_out.stride()[:3])
    flags, target, slope_strides = _flags(query, slopes, softcap, left, right), target_of(query), _slope_strides(slopes)
    delta = torch.empty_like(lse)
    with _on_device_of(query):
        if grad_query.numel():
            config = config_for(target, "queries", width, query.itemsize, packed)
            block = config.tiles["BLOCK_N"]
            delta_kernel[(_blocks(n_queries, block) * heads * batch,)](
                out, grad_out, None if grad_lse is None else grad_lse.contiguous(), delta, *out.stride()[:3], *grad_out.stride()[:3],
                heads, n_queries, width, block, grad_lse is not None,
            )  # fmt: skip
            backward_queries_kernel[(_blocks(longest_q, block) * heads * sequences,)](
                query, key, value, starts_q, starts_k, slopes, lse, delta, grad_out, grad_query,
                *strides, *grad_query.stride()[:3], *slope_strides,
                heads, heads // kv_heads, n_queries, n_keys, longest_q, scale, softcap, left, right,
                **flags, PACKED=packed, **config.launch(),
            )  # fmt: skip
        if grad_key.numel():
            config = config_for(target, "keys", width, query.itemsize, packed)
            backward_keys_kernel[(_blocks(longest_k, config.tiles["BLOCK_M"]) * kv_heads * sequences,)](
                query, key, value, starts_q, starts_k, slopes, lse, delta, grad_out, grad_key, grad_value,
                *strides, *grad_key.stride()[:3], *grad_value.stride()[:3], *slope_strides,
                heads, heads // kv_heads, n_queries, n_keys, longest_k, scale, softcap, left, right,
                **flags, PACKED=packed, **config.launch(),
            )  # fmt: skip
    return grad_query, grad_key, grad_value


@attention_backward_operator.register_fake
def _empty_backward(
    grad_out, grad_lse, query, key, value, slopes, out, lse, left, right, scale, softcap,
    starts_q=None, starts_k=None, longest_q=0, longest_k=0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_like(query), _empty_like(key), _empty_like(value)


def _save(ctx, inputs, output):
    query, key, value, slopes, *settings, starts_q, starts_k, longest_q, longest_k = inputs
    ctx.settings, ctx.longest = settings, (longest_q, longest_k)
    ctx.save_for_backward(query, key, value, slopes, starts_q, starts_k, *output)
    ctx.set_materialize_grads(False)  # most callers use out alone: no zeros for lse


def _differentiate(ctx, grad_out, grad_lse):
    query, key, value, slopes, starts_q, starts_k, out, lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    tensors = (grad_out, grad_lse, query, key, value, slopes, out, lse)
    grads = attention_backward_operator(*tensors, *ctx.settings, starts_q, starts_k, *ctx.longest)
    return *grads, *[None] * 9


attention_operator.register_autograd(_differentiate, setup_context=_save)


def split_count(programs: int, n_keys: int, processors: int) -> int:
    """Return into how many splits `flash_decode` divides the keys, given the programs that there would be without.

    As many as make no more programs than the processors hold at once, RESIDENT each, so that none waits for a second round; none
    of fewer than LEAST_KEYS keys; between 1 and MAX_SPLITS.
    """
    return max(1, min(RESIDENT * processors // programs, n_keys // LEAST_KEYS, MAX_SPLITS))


@torch.library.custom_op("rundoku::flash_decode", mutates_args=())
def decode_operator(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, slopes: Tensor | None,
    left: int, right: int, scale: float, softcap: float, splits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return out and lse [B, H, N] of few queries against a cache of which sequence b has filled lengths[b] places."""
    (batch, heads, n_queries, width), (_, kv_heads, n_keys, _) = query.shape, key.shape
    if lengths.device.type == "cpu":
        values = lengths.tolist()
        expect(all(0 <= value <= n_keys for value in values), "cache_lengths", values, f"lengths from 0 to the cache's {n_keys}")
    out, lse = _empty_decode(query, key, value, lengths, slopes, left, right, scale, softcap, splits)
    if out.numel() == 0:
        return out, lse
    query, key, value = _readable(query), _readable(key), _readable(value)
    left, right = min(left, n_queries + n_keys), min(right, n_queries + n_keys)
    rows, target = heads // kv_heads * n_queries, target_of(query)
    config = config_for(target, "rows16" if rows <= 16 else "rows64", width, query.itemsize)
    programs = _blocks(rows, config.tiles["BLOCK_N"]) * kv_heads * batch
    if splits == 0:
        processors = 1 if INTERPRETED else torch.cuda.get_device_properties(query.device).multi_processor_count
        splits = split_count(programs, n_keys if left < 0 else min(n_keys, left + n_queries), processors)
    part, part_lse = out, lse  # with one split these are the result
    if splits > 1:
        part = query.new_empty((splits, *query.shape), dtype=torch.float32)
        part_lse = query.new_empty((splits, *lse.shape), dtype=torch.float32)
    with _on_device_of(query):
        split_kernel[(programs * splits,)](
            query, key, value, lengths, slopes, part, part_lse,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], part[0].numel(), *part.stride()[-4:-1], lse.numel(),
            *_slope_strides(slopes), heads, heads // kv_heads, n_queries, n_keys, splits, scale, softcap, left, right,
            **_flags(query, slopes, softcap, left, right), **config.launch(),
        )  # fmt: skip
        if splits > 1:
            config = config_for(target, "combine", width, query.itemsize)
            launch = {**config.launch(), "BLOCK_R": triton.next_power_of_2(splits)}
            combine_kernel[(lse.numel(),)](
                part, part_lse, out, lse, *out.stride()[:3], heads, n_queries, lse.numel(), splits, D=width, **launch
            )
    return out, lse


@decode_operator.register_fake
def _empty_decode(query, key, value, lengths, slopes, left, right, scale, softcap, splits) -> tuple[Tensor, Tensor]:
    return _empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
