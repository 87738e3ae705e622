"""The runs behind the note: exactness, accesses counted against Theorem 2, memory held, and what goes wrong."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as torch_attention
from torch.utils.flop_counter import FlopCounterMode

from rundoku.gpu.check import error, twice_rule
from rundoku.papers.attention_is_all_you_need import scaled_dot_product_attention
from rundoku.papers.flash_attention.attention import tiled_attention
from rundoku.papers.flash_attention.kernel import flash_attention
from rundoku.papers.flash_attention.online_softmax import Running, absorb, finish, nothing_seen
from rundoku.papers.flash_attention.reference import allowed_pairs, attention_reference
from rundoku.papers.flash_attention.tiling import (
    Memory,
    block_sizes,
    flash2_forward,
    flash_backward,
    flash_forward,
    standard_backward,
    standard_forward,
)
from rundoku.show import experiment


@experiment
def softmax_trace(*, scores: tuple[float, ...], values: tuple[float, ...], block: int) -> dict:
    """Follow one row through the online softmax: after each block its m, the factor that shrinks the past, ℓ, Õ and Õ/ℓ."""
    row, value = torch.tensor([scores], dtype=torch.float64), torch.tensor(values, dtype=torch.float64)[:, None]
    seen, steps = nothing_seen(row[..., :1], 1), []
    for start in range(0, len(scores), block):
        before, part = seen.peak, slice(start, start + block)
        seen = absorb(seen, row[:, part], value[part])
        shrink = torch.exp(before - seen.peak)
        now = (seen.peak, shrink, seen.total, seen.acc, finish(seen)[0])
        steps.append([list(scores[part]), *(x.item() for x in now)])
    return {"steps": steps, "whole": (torch.softmax(row, -1) @ value).item()}


@experiment
def exactness(*, length: int, width: int, seed: int) -> dict:
    """Hold three implementations in float32 against float64: the largest error of the output and of each gradient, causal."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(1, 2, length, width, generator=generator) for _ in range(3)]
    gradient = torch.randn(1, 2, length, width, generator=generator)
    mask = allowed_pairs(length, length, causal=True)

    def run(attend: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        out = attend(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, gradient.to(dtype))

    exact = run(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), torch.float64)
    runs = {
        "standard": run(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask)),
        "tiled": run(lambda q, k, v: tiled_attention(q, k, v, causal=True, sram=16 * width * width)),
        "kernel": run(lambda q, k, v: flash_attention(q, k, v, causal=True)),
    }
    errors = {name: [error(a, b) for a, b in zip(found, exact, strict=True)] for name, found in runs.items()}
    rules = {
        name: [twice_rule(a, p, e) is None for a, p, e in zip(found, runs["standard"], exact, strict=True)] for name, found in runs.items()
    }
    return {"errors": errors, "within": {name: all(each) for name, each in rules.items()}}


def _inputs(batch: int, heads: int, length: int, width: int) -> list[Tensor]:
    """Return query, key, value and dO that have a shape but no numbers: the loops over them count and compute nothing."""
    return [torch.empty(batch, heads, length, width, dtype=torch.float16, device="meta") for _ in range(4)]


@experiment
def count_accesses(*, length: int, width: int, sram: int) -> dict:
    """Count the elements that one head's forward pass reads and writes: Algorithm 1, FlashAttention-2's Algorithm 1, Algorithm 0."""
    query, key, value = torch.zeros(3, length, width)
    memories = [Memory() for _ in range(3)]
    flash_forward(query, key, value, sram, memories[0])
    flash2_forward(query, key, value, sram, memories[1])
    standard_forward(query, key, value, memories[2])
    return dict(zip(("flash", "flash2", "standard"), (memory.accesses for memory in memories), strict=True))


def exponent(sizes: Sequence[int], counts: Sequence[int]) -> float:
    """Return the slope of log count over log size, by least squares."""
    x, y = (torch.tensor(numbers, dtype=torch.float64).log() for numbers in (sizes, counts))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@experiment
def traffic(*, batch: int, heads: int, length: int, width: int, sram: int, dropout: float) -> dict:
    """Count the bytes of forward and backward in half precision, and the FLOPs of their matrix products.

    "plain" is Algorithms 0 and 3 as printed; "masked" adds a pass for the padding mask, "standard" one for dropout too; "flash" is 1 and 4.
    """
    query, key, value, grad = _inputs(batch, heads, length, width)
    padding = torch.empty(batch, 1, 1, length, dtype=torch.bool, device="meta")
    found = {}
    for name, mask, rate in (("plain", None, 0.0), ("masked", padding, 0.0), ("standard", padding, dropout)):
        memory, flops = Memory(), FlopCounterMode(display=False)
        with flops:
            _, saved = standard_forward(query, key, value, memory, mask, rate)
            standard_backward(grad, query, key, value, saved, memory, rate)
        found[name] = {"bytes": memory.bytes, "flops": flops.get_total_flops()}
    memory, flops = Memory(), FlopCounterMode(display=False)
    with flops:
        flash_backward(grad, query, key, value, *flash_forward(query, key, value, sram, memory), sram, memory)
    rows, columns = block_sizes(sram, width)
    return {**found, "flash": {"bytes": memory.bytes, "flops": flops.get_total_flops()}, "rows": rows, "columns": columns}


@experiment
def held_bytes(*, lengths: tuple[int, ...], heads: int, width: int) -> dict:
    """Count the bytes that autograd keeps between forward and backward, beyond query, key, value and output, in half precision."""

    def held(attend: Callable[..., Tensor], length: int) -> int:
        kept: dict[int, Tensor] = {}
        inputs = [tensor.requires_grad_() for tensor in _inputs(1, heads, length, width)[:3]]
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.setdefault(id(tensor), tensor), lambda tensor: tensor):
            out = attend(*inputs)
        known = {tensor.untyped_storage()._cdata for tensor in (*inputs, out)}
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept.values()}
        return sum(size for storage, size in storages.items() if storage not in known)

    return {
        "standard": [held(scaled_dot_product_attention, length) for length in lengths],
        "tiled": [held(lambda q, k, v: tiled_attention(q, k, v, sram=2**22), length) for length in lengths],  # few tiles: they keep nothing
    }


def absorb_without_rescaling(seen: Running, scores: Tensor, value: Tensor) -> Running:
    """Do what `absorb` does, with its mistake: the old sums stay as they were when the maximum moves."""
    now = absorb(seen, scores, value)
    shrink = torch.exp(seen.peak - now.peak)
    return Running(now.acc + (1 - shrink)[..., None] * seen.acc, now.total + (1 - shrink) * seen.total, now.peak)


@experiment
def without_rescaling(*, length: int, width: int, block: int, seed: int) -> dict:
    """Measure the largest error of both: taking the blocks in as they come, and with every row's largest score in the first block."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(length, width, generator=generator, dtype=torch.float64) for _ in range(3))
    scores = query @ key.T / math.sqrt(width)
    exact = torch.softmax(scores, -1) @ value
    found = {}
    for name, step in (("right", absorb), ("wrong", absorb_without_rescaling)):
        seen = nothing_seen(query, width)
        for start in range(0, length, block):
            seen = step(seen, scores[:, start : start + block], value[start : start + block])
        found[name] = error(finish(seen)[0], exact)
    found["first"] = (scores.argmax(-1) < block).double().mean().item()  # the rows that the mistake leaves right
    return found


@experiment
def empty_rows(*, queries: int, keys: int) -> dict:
    """Count the rows that are NaN when exp(S − m) is written without a guard, and with the one in `absorb`, causal and N > M."""
    query, value = torch.randn(queries, 8, generator=torch.Generator().manual_seed(0)), torch.ones(keys, 8)
    allowed = allowed_pairs(queries, keys, causal=True)
    scores = torch.zeros(queries, keys).masked_fill(~allowed, -math.inf)
    peak = scores.amax(-1)
    weights = torch.exp(scores - peak[:, None])
    naive = weights @ value / weights.sum(-1, keepdim=True)
    guarded, _ = finish(absorb(nothing_seen(query, 8), scores, value))
    seen = allowed.any(-1)
    return {
        "naive": int(naive.isnan().any(-1).sum()),
        "guarded": int(guarded.isnan().any(-1).sum()),
        "empty": int((~seen).sum()),
        "zeros": bool((guarded[~seen] == 0).all()),
    }


@experiment
def alignment(*, length: int, width: int, seed: int) -> dict:
    """Compute the last token with all keys in a cache, its mask aligned at either corner, and compare with the whole causal pass."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, 1, length, width, generator=generator, dtype=torch.float64) for _ in range(3))
    whole = torch_attention(query, key, value, is_causal=True)[:, :, -1:]
    last = query[:, :, -1:]
    return {
        "bottom_right": error(attention_reference(last, key, value, causal=True)[0], whole),
        "top_left": error(torch_attention(last, key, value, is_causal=True), whole),
        "ours": [[int(x) for x in row] for row in allowed_pairs(2, 5, causal=True)],
        "torch": [[int(x) for x in row] for row in torch.ones(2, 5, dtype=torch.bool).tril()],
    }


@experiment
def overflow(*, length: int, width: int, seed: int) -> dict:
    """Count the rows of scores in float16 whose sum of exponentials is infinite, and with the maximum taken off first."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(length, width, generator=generator) for _ in range(2))
    scores = (3 * query @ key.T / math.sqrt(width)).half()
    bare = torch.exp(scores).sum(-1)
    shifted = torch.exp(scores - scores.amax(-1, keepdim=True)).sum(-1)
    limit = math.log(torch.finfo(torch.float16).max)
    return {
        "rows": length,
        "bare": int(bare.isinf().sum()),
        "shifted": int(shifted.isinf().sum()),
        "limit": limit,
        "largest": scores.max().item(),
    }
