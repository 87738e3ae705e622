"""What ``nox -s bench`` measures of flash attention: the fixed form as in the experiments, packed sequences, and decoding from a cache."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import compare
from rundoku.papers.flash_attention import attention_reference, experiments

LENGTHS = (4096, 1, 2048, 777, 1024, 246)  # of the packed sequences, BENCH_TOKENS in all
CACHES = [(1, 16_384), (8, 4096), (8, 16_384), (64, 4096)]  # (B, M), every place filled


def benchmarks() -> list[Bench]:
    """Return what is measured: the experiments' sizes, packed forward and backward, and one new token against caches."""
    return [
        *experiments.benchmarks(),
        *(_packed(case) for case in ("packed forward", "packed backward")),
        *(_decode(*size) for size in CACHES),
    ]


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
