"""What ``nox -s bench`` measures of the fused layer, apart from the experiments so that a kernel's edit repeats no training."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import compare

SIZES = (  # of real models: rows, inputs, outputs
    (8192, 576, 576),  # SmolLM2-135M, query and output
    (8192, 4096, 4096),  # LLaMA 7B, query, key, value and output
    (8192, 4096, 11_008),  # LLaMA 7B, gate and up
    (8192, 11_008, 4096),  # LLaMA 7B, down
    (8192, 8192, 1024),  # Llama 3 70B, key and value
    (512, 4096, 4096),  # few rows
    (1, 4096, 4096),  # a decoding step, for which the weight had better be merged
    (8191, 2047, 2049),  # odd
)
RANKS = (8, 16, 64, 256)
SCALE = 2.0


def benchmarks() -> list[Bench]:
    """Return what is measured: both directions, at real models' sizes with r = 16 and for LLaMA 7B's square weights at every rank."""
    square = (8192, 4096, 4096)
    cases = [(size, 16) for size in SIZES] + [(square, rank) for rank in RANKS if rank != 16]
    return [_bench(direction, *size, rank) for size, rank in cases for direction in ("forward", "backward")]


def _bench(case: str, rows: int, inputs: int, outputs: int, rank: int) -> Bench:
    config = {}
    if torch.cuda.is_available():
        from rundoku.papers.lora import kernel  # needs triton

        odd = any(size % 16 for size in (inputs, outputs))
        config = kernel.config_for(kernel.target_of(torch.empty(0, device="cuda")), "linear_odd" if odd else "linear", 2).launch()
    sizes = {"R": rows, "I": inputs, "O": outputs, "r": rank}
    both, weight, thin = rows * (inputs + outputs), inputs * outputs, rank * (inputs + outputs)
    # Each tensor once: x, W, A, B and y; backward dy, x, W, A, B, dx, dA and dB. What is read twice counts against whoever reads it.
    products, elements = (1, both + weight + thin) if case == "forward" else (2, both + rows * inputs + weight + 2 * thin)
    flops = 2.0 * rows * (weight + products * thin)
    return Bench(case, sizes, "bfloat16", flops, 2.0 * elements, partial(_calls, case, sizes, "bfloat16"), config)


def _calls(case: str, sizes: dict[str, int], dtype: str, device: str) -> tuple[dict[str, Call], Sequence[Tensor]]:
    from rundoku.papers.lora import kernel  # needs triton

    torch.manual_seed(0)
    rows, inputs, outputs, rank = sizes.values()

    def made(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=device) * scale).to(getattr(torch, dtype))

    x, a, b = made(rows, inputs), made(rank, inputs, scale=inputs**-0.5), made(outputs, rank, scale=rank**-0.5)
    weight, gradients = made(outputs, inputs, scale=inputs**-0.5), [made(rows, outputs)] if case == "backward" else []

    def ours(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return kernel.lora_linear(x, weight, a, b, SCALE)

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype)) + SCALE * F.linear(F.linear(x, a), b)

    def in_place(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(
            F.linear(x, weight.to(x.dtype)), F.linear(x, a), b.t(), alpha=SCALE
        )  # the fewest bytes that cuBLAS alone can do with

    calls, exact = compare(ours, plain, [x, a, b], gradients)
    calls["torch, in place"] = compare(in_place, in_place, [x, a, b], gradients)[0]["torch"]
    merged = (weight + SCALE * b @ a).detach()  # the bound: one product, and in training nothing learned by A and B

    def bound(x: Tensor) -> Tensor:
        return F.linear(x, merged.to(x.dtype))

    calls["merged weight"] = compare(bound, bound, [x], gradients)[0]["torch"]
    return calls, exact
