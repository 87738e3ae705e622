"""What ``nox -s bench`` measures of flash attention: the fixed form at every length, packed sequences, and decoding from a cache."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.launch import target_of
from rundoku.gpu.peers import compare
from rundoku.papers.flash_attention import attention_reference, tiled_attention

TOKENS = 16_384  # batch times length
LENGTHS = (4096, 1, 2048, 777, 1024, 246)  # of the packed sequences
CACHES = [(1, 16_384), (8, 4096), (8, 16_384), (64, 4096)]  # (B, M), every place filled


def benchmarks() -> list[Bench]:
    """Return what is measured: causal, forward alone and with backward, always TOKENS; packed; and one new token against caches."""
    sizes = [(length, width) for width in (64, 128) for length in (512, 1024, 2048, 4096, 8192, 16_384)]
    return [
        *(_fixed(case, *size) for case in ("forward", "forward and backward") for size in sizes),
        *(_packed(case) for case in ("packed forward", "packed backward")),
        *(_decode(*size) for size in CACHES),
    ]


def _fixed(case: str, length: int, width: int) -> Bench:
    heads = 16 if length > 8192 else 2048 // width  # plain torch, which holds the scores, must fit into 80 GB
    batch, backward = TOKENS // length, case != "forward"
    shape = (batch, heads, length, width)
    products = 7 if backward else 2  # 2 forward, 5 backward, as FlashAttention counts: our own two more are not credited
    flops = 2.0 * products * batch * heads * length * length * width / 2  # half of the scores are masked
    tensors = 12 if backward else 4  # forward q, k, v, o; backward reads these and do, writes dq, dk, dv
    moved = 2.0 * tensors * batch * heads * length * width
    return Bench(case, dict(zip("BHND", shape, strict=True)), "bfloat16", flops, moved, partial(_calls, shape, backward), _tiles(width))


def _tiles(width: int) -> dict[str, int]:
    if not torch.cuda.is_available():
        return {}
    from rundoku.papers.flash_attention.kernel import config_for  # needs triton

    config = config_for(target_of(torch.empty(0, device="cuda")), "forward", width, 2)
    return {**config.tiles, "num_warps": config.num_warps, "num_stages": config.num_stages}


def _calls(shape: tuple[int, ...], backward: bool, device: str) -> tuple[dict[str, Call], Sequence[Tensor]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from rundoku.papers.flash_attention.kernel import flash_attention  # needs triton

    generator = torch.Generator(device).manual_seed(0)
    tensors = [torch.randn(shape, device=device, generator=generator).bfloat16() for _ in range(4)]

    def call(attend: Callable[..., Any], dtype: torch.dtype = torch.bfloat16) -> Call:
        *leaves, grad = (x.to(dtype).requires_grad_(backward) for x in tensors)

        def run() -> tuple[Tensor, ...]:
            out = attend(*leaves)
            return (out.detach(), *torch.autograd.grad(out, leaves, grad.detach())) if backward else (out,)

        return run

    def backend(which: SDPBackend) -> Callable[..., Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(which):
                return scaled_dot_product_attention(query, key, value, is_causal=True)

        return attend

    calls = {
        "rundoku": call(lambda q, k, v: flash_attention(q, k, v, causal=True)),
        "torch": call(lambda q, k, v: attention_reference(q, k, v, causal=True, upcast=False)[0]),
        "SDPA flash": call(backend(SDPBackend.FLASH_ATTENTION)),
        "SDPA efficient": call(backend(SDPBackend.EFFICIENT_ATTENTION)),
    }
    if not torch.version.hip:
        calls["SDPA cuDNN"] = call(backend(SDPBackend.CUDNN_ATTENTION))
    if device != "cpu":
        calls["FlexAttention"] = call(_flex(shape[2], device))
    return calls, call(lambda q, k, v: tiled_attention(q, k, v, causal=True, sram=2**22), torch.float64)()


def _flex(length: int, device: str) -> Callable[..., Tensor]:
    """Return torch's FlexAttention, causal: a kernel that torch.compile writes from the mask's function."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=device)
    return partial(torch.compile(flex_attention), block_mask=mask)


def _packed(case: str, lengths: Sequence[int] = LENGTHS, heads: int = 16, width: int = 128, dtype: str = "bfloat16") -> Bench:
    products, tensors = (5, 8) if case.endswith("backward") else (2, 4)  # backward: q k v o do in, dq dk dv out
    pairs = heads * sum(n * (n + 1) // 2 for n in lengths)
    sizes = {"B": len(lengths), "T": sum(lengths), "H": heads, "D": width}
    prepare = partial(_packed_calls, case.endswith("backward"), lengths, heads, width, dtype)
    return Bench(case, sizes, dtype, 2.0 * products * pairs * width, 2.0 * tensors * sum(lengths) * heads * width, prepare)


def _packed_calls(backward: bool, lengths: Sequence[int], heads: int, width: int, dtype: str, device: str):
    from rundoku.papers.flash_attention.kernel import flash_attention_varlen  # needs triton

    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(sum(lengths), heads, width, device=device, dtype=getattr(torch, dtype)) for _ in range(4))
    starts, longest = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device), max(lengths)

    def plain(q, k, v):
        parts = zip(*(x.transpose(0, 1)[None].split(lengths, 2) for x in (q, k, v)), strict=True)
        return torch.cat([attention_reference(*part, causal=True, upcast=False)[0] for part in parts], 2)[0].transpose(0, 1)

    def ours(q, k, v):
        return flash_attention_varlen(q, k, v, starts, starts, longest, longest, causal=True)

    return compare(ours, plain, (q, k, v), (grad,) if backward else ())


def _decode(batch: int, places: int, heads: int = 32, kv_heads: int = 8, width: int = 128, dtype: str = "bfloat16") -> Bench:
    sizes = {"B": batch, "H": heads, "G": kv_heads, "N": 1, "M": places, "D": width}
    moved = 2.0 * (2 * batch * kv_heads * places * width + 2 * batch * heads * width)
    prepare = partial(_decode_calls, batch, places, heads, kv_heads, width, dtype)
    return Bench("decode", sizes, dtype, 4.0 * batch * heads * places * width, moved, prepare)


def _decode_calls(batch: int, places: int, heads: int, kv_heads: int, width: int, dtype: str, device: str):
    from rundoku.papers.flash_attention.kernel import flash_decode  # needs triton

    torch.manual_seed(0)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    query, key, value = torch.randn(batch, heads, 1, width, **kind), *torch.randn(2, batch, kv_heads, places, width, **kind)
    lengths = torch.full((batch,), places, dtype=torch.int32, device=device)
    found: tuple[dict[str, Call], Sequence[torch.Tensor]] = compare(
        lambda q, k, v: flash_decode(q, k, v, lengths),
        lambda q, k, v: attention_reference(q, k, v, upcast=False)[0],
        (query, key, value),
    )
    found[0]["SDPA"] = lambda: (scaled_dot_product_attention(query, key, value, enable_gqa=True),)
    return found
