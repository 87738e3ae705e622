"""Flash attention on a GPU: the call, its configurations and its place in torch. The kernels are in `kernel_forward`, `kernel_backward`.

The same call runs on NVIDIA, on AMD and, with Triton's interpreter and small sizes, on a CPU. It is one operator to `torch.compile`.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rundoku.gpu.launch import Case, Config, expect, expect_tensor, target_of
from rundoku.papers.flash_attention.kernel_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from rundoku.papers.flash_attention.kernel_forward import forward_kernel

HEAD_WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Use = tuple[str, int, int]  # (kernel, widest D, bytes of an element)


def _table(**entries: tuple[int, int, int, int]) -> dict[Use, Config]:
    """Read entries such as forward_64_2=(BLOCK_N, BLOCK_M, warps, stages)."""
    uses = {name: name.rsplit("_", 2) for name in entries}
    return {
        (uses[name][0], int(uses[name][1]), int(uses[name][2])): Config({"BLOCK_N": n, "BLOCK_M": m}, num_warps=warps, num_stages=stages)
        for name, (n, m, warps, stages) in entries.items()
    }


# Chosen from compile reports, tried from the larger tile down: the first that spills nothing and fits the target's shared memory, causal
# and with every option switched on. "other" is for GPUs that were not compiled for: it spills neither on sm_80 nor on gfx942, in 64 KiB.
CONFIGS: dict[str, dict[Use, Config]] = {
    "sm_80": _table(
        forward_64_2=(128, 128, 8, 3), queries_64_2=(128, 64, 8, 3), keys_64_2=(32, 128, 8, 3),
        forward_128_2=(128, 64, 8, 3), queries_128_2=(128, 64, 8, 3), keys_128_2=(64, 64, 8, 3),
        forward_128_4=(64, 32, 8, 2), queries_128_4=(32, 32, 8, 1), keys_128_4=(16, 16, 4, 1),
    ),
    "sm_90": _table(
        forward_64_2=(128, 64, 8, 3), queries_64_2=(128, 64, 8, 3), keys_64_2=(64, 128, 8, 3),
        forward_128_2=(128, 64, 8, 2), queries_128_2=(128, 64, 8, 3), keys_128_2=(32, 64, 8, 3),
        forward_128_4=(32, 16, 4, 2), queries_128_4=(32, 32, 8, 1), keys_128_4=(16, 16, 4, 1),
    ),
    "sm_100": _table(
        forward_64_2=(128, 64, 8, 3), queries_64_2=(128, 128, 8, 3), keys_64_2=(64, 64, 8, 3),
        forward_128_2=(128, 64, 8, 3), queries_128_2=(128, 64, 8, 3), keys_128_2=(64, 32, 8, 3),
        forward_128_4=(32, 16, 4, 2), queries_128_4=(32, 32, 8, 1), keys_128_4=(16, 16, 4, 1),
    ),
    "gfx942": _table(
        forward_64_2=(128, 128, 4, 1), queries_64_2=(128, 128, 4, 2), keys_64_2=(64, 64, 4, 1),
        forward_128_2=(128, 64, 4, 2), queries_128_2=(128, 64, 4, 2), keys_128_2=(32, 128, 4, 1),
        forward_128_4=(64, 32, 8, 2), queries_128_4=(32, 32, 4, 1), keys_128_4=(32, 32, 4, 1),
    ),
    "other": _table(
        forward_64_2=(64, 64, 4, 1), queries_64_2=(64, 32, 4, 1), keys_64_2=(32, 64, 4, 1),
        forward_128_2=(64, 32, 4, 1), queries_128_2=(32, 32, 4, 1), keys_128_2=(32, 32, 4, 1),
        forward_128_4=(32, 16, 4, 1), queries_128_4=(32, 16, 4, 1), keys_128_4=(16, 16, 4, 1),
    ),
    "interpreter": _table(
        forward_128_2=(32, 32, 4, 1), queries_128_2=(32, 32, 4, 1), keys_128_2=(32, 32, 4, 1),
        forward_128_4=(32, 32, 4, 1), queries_128_4=(32, 32, 4, 1), keys_128_4=(32, 32, 4, 1),
    ),
}  # fmt: skip


def config_for(target: str, kernel: str, head_width: int, itemsize: int) -> Config:
    """Return the published configuration of a kernel ("forward", "keys" or "queries"): the entry with the least width that suffices."""
    fitting = [use for use in CONFIGS[target] if use[0] == kernel and use[1] >= head_width and use[2] == itemsize]
    return CONFIGS[target][min(fitting)]


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
    expect_tensor("query", query, dtypes=DTYPES)
    expect(query.ndim == 4, "query", query, "the shape [B, H, N, D]")
    batch, heads, _, width = query.shape
    expect(width in HEAD_WIDTHS, "query", query, f"a head width D (last axis) among {HEAD_WIDTHS}")
    for name, tensor in (("key", key), ("value", value)):
        expect_tensor(name, tensor, like=query, dtypes=(query.dtype,))
        fits = tensor.ndim == 4 and (tensor.shape[0], tensor.shape[3]) == (batch, width)
        expect(fits, name, tensor, f"the shape [{batch}, G, M, {width}]")
    kv_heads = key.shape[1]
    expect(kv_heads > 0 and heads % kv_heads == 0, "key", key, f"a number of heads G (second axis) that divides the query's {heads}")
    expect(value.shape == key.shape, "value", value, f"the key's shape {tuple(key.shape)}")
    if alibi_slopes is not None:
        expect_tensor("alibi_slopes", alibi_slopes, like=query, dtypes=(torch.float32,))
        shapes = ((heads,), (batch, heads))
        expect(alibi_slopes.shape in shapes, "alibi_slopes", alibi_slopes, f"the shape {shapes[0]} or {shapes[1]}")
        expect(not alibi_slopes.requires_grad, "alibi_slopes", alibi_slopes, "slopes that require no gradient: they are constants here")
    expect(len(window_size) == 2 and min(window_size) >= -1, "window_size", window_size, "(left, right), each −1 (without bound) or more")
    expect(softcap >= 0 and math.isfinite(softcap), "softcap", softcap, "0 (none) or a positive number")
    scale = 1 / math.sqrt(width) if softmax_scale is None else softmax_scale
    expect(math.isfinite(scale), "softmax_scale", softmax_scale, "a finite number")
    left, right = window_size[0], 0 if causal else window_size[1]
    out, lse = _forward(query, key, value, alibi_slopes, left, right, float(scale), float(softcap))
    return (out, lse) if return_lse else out


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


@torch.library.custom_op("rundoku::flash_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, left: int, right: int, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    batch, heads, n_queries, width = query.shape
    out, lse = _empty_forward(query, key, value, slopes, left, right, scale, softcap)
    if out.numel() == 0:
        return out, lse
    query, key, value, n_keys = _readable(query), _readable(key), _readable(value), key.shape[2]
    left, right = min(left, n_queries + n_keys), min(right, n_queries + n_keys)  # further than any pair is apart; the sums stay below 2³¹
    config = config_for(target_of(query), "forward", width, query.itemsize)
    programs = -(-n_queries // config.tiles["BLOCK_N"]) * heads * batch
    with _on_device_of(query):
        forward_kernel[(programs,)](
            query, key, value, slopes, out, lse,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3], *_slope_strides(slopes),
            heads, heads // key.shape[1], n_queries, n_keys, scale, softcap, left, right,
            **_flags(query, slopes, softcap, left, right), **config.launch(),
        )  # fmt: skip
    return out, lse


@_forward.register_fake
def _empty_forward(query, key, value, slopes, left, right, scale, softcap):
    return _empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("rundoku::flash_attention_backward", mutates_args=())
def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, out: Tensor, lse: Tensor,
    left: int, right: int, scale: float, softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (batch, heads, n_queries, width), (_, kv_heads, n_keys, _) = query.shape, key.shape
    grad_query, grad_key, grad_value = _empty_backward(grad_out, grad_lse, query, key, value, slopes, out, lse, left, right, scale, softcap)
    query, key, value, grad_out = _readable(query), _readable(key), _readable(value), _readable(grad_out)
    left, right = min(left, n_queries + n_keys), min(right, n_queries + n_keys)
    sizes = (heads, heads // kv_heads, n_queries, n_keys, scale, softcap, left, right)
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *grad_out.stride()[:3])
    flags, target, slope_strides = _flags(query, slopes, softcap, left, right), target_of(query), _slope_strides(slopes)
    delta = torch.empty_like(lse)
    with _on_device_of(query):
        if grad_query.numel():
            config = config_for(target, "queries", width, query.itemsize)
            rows = -(-n_queries // config.tiles["BLOCK_N"])
            delta_kernel[(rows * heads * batch,)](
                out, grad_out, None if grad_lse is None else grad_lse.contiguous(), delta, *out.stride()[:3], *grad_out.stride()[:3],
                heads, n_queries, width, config.tiles["BLOCK_N"], grad_lse is not None,
            )  # fmt: skip
            backward_queries_kernel[(rows * heads * batch,)](
                query, key, value, slopes, lse, delta, grad_out, grad_query, *strides, *grad_query.stride()[:3], *slope_strides, *sizes,
                **flags, **config.launch(),
            )  # fmt: skip
        if grad_key.numel():
            config = config_for(target, "keys", width, query.itemsize)
            backward_keys_kernel[(-(-n_keys // config.tiles["BLOCK_M"]) * kv_heads * batch,)](
                query, key, value, slopes, lse, delta, grad_out, grad_key, grad_value,
                *strides, *grad_key.stride()[:3], *grad_value.stride()[:3], *slope_strides, *sizes, **flags, **config.launch(),
            )  # fmt: skip
    return grad_query, grad_key, grad_value


@_backward.register_fake
def _empty_backward(grad_out, grad_lse, query, key, value, slopes, out, lse, left, right, scale, softcap):
    return _empty_like(query), _empty_like(key), _empty_like(value)


def _save(ctx, inputs, output):
    query, key, value, slopes, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, slopes, *output)
    ctx.set_materialize_grads(False)  # most callers use out alone: no zeros for lse


def _differentiate(ctx, grad_out, grad_lse):
    query, key, value, slopes, out, lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = _backward(grad_out, grad_lse, query, key, value, slopes, out, lse, *ctx.settings)
    return *grads, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def compile_cases(target: str) -> list[Case]:
    """Return every entry of CONFIGS[target], causal at its widest D; in bf16 at D = 128 also with every option switched on."""
    uses = [(use, False) for use in CONFIGS[target]] + [(use, True) for use in CONFIGS[target] if use[1:] == (128, 2)]
    return [_case(use, CONFIGS[target][use], every_option) for use, every_option in uses]


def _case(use: Use, config: Config, every_option: bool) -> Case:
    function, title = {
        "forward": (forward_kernel, "forward"),
        "keys": (backward_keys_kernel, "backward, keys"),
        "queries": (backward_queries_kernel, "backward, queries"),
    }[use[0]]
    dtype, precision = {2: ("bf16", "tf32"), 4: ("fp32", "ieee")}[use[2]]
    flags = {"HAS_LEFT": every_option, "HAS_RIGHT": True, "ALIBI": every_option, "SOFTCAP": every_option}
    constants = {"D": use[1], "PRECISION": precision, **flags, **({} if every_option else {"slopes": None})}
    tensors = ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value")
    kinds = {
        **dict.fromkeys(tensors, f"*{dtype}"),
        **dict.fromkeys(("lse", "delta", "slopes"), "*fp32"),
        "scale": "fp32",
        "softcap": "fp32",
    }
    types = {name: kinds.get(name, "i32") for name in function.arg_names if name not in constants and name not in config.tiles}
    return Case(f"{title}, D = {use[1]}, {dtype}{', every option' if every_option else ''}", function, types, config, constants)
