"""What ``nox -s bench`` measures of the gates, apart from the experiments so that a kernel's edit repeats no training."""

from collections.abc import Sequence
from functools import partial

import torch

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import compare, liger
from rundoku.papers.glu_variants.gating import glu

# Names of cases are the activation's and the direction's; FLOP an element as kernel.py counts them
FLOPS = {("silu", "forward"): 6, ("silu", "backward"): 12, ("gelu", "forward"): 6, ("gelu", "backward"): 14}
MOVED = {"forward": 3, "backward": 5}  # tensors of [R, F] read or written
WIDTHS = (1024, 2048, 4096, 8192, 16_384, 1536, 11_008, 22_016)  # the last three: SmolLM2, LLaMA 7B, LLaMA 65B
PEERS = {"silu": "liger_swiglu"}  # Liger-Kernel's GEGLU is the tanh approximation, another function than the one measured here


def benchmarks() -> list[Bench]:
    """Return what is measured: SwiGLU and GEGLU, both ways, at powers of two, at widths of real models and at one that is odd."""
    sizes = (*((8192, width) for width in WIDTHS), (8191, 2047))
    return [_bench(activation, direction, *size) for size in sizes for activation, direction in FLOPS]


def _bench(activation: str, direction: str, rows: int, width: int) -> Bench:
    config = {}
    if torch.cuda.is_available():
        from rundoku.papers.glu_variants import kernel  # needs triton

        config = kernel.config_for(torch.empty(0, width, device="cuda")).launch()
    size, work = {"R": rows, "F": width}, rows * width
    prepare = partial(_calls, activation, direction, size, "bfloat16")
    flops, moved = FLOPS[activation, direction], MOVED[direction]
    return Bench(f"{activation} {direction}", size, "bfloat16", float(flops * work), 2.0 * moved * work, prepare, config)


def _calls(
    activation: str, direction: str, size: dict[str, int], dtype: str, device: str
) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    from rundoku.papers.glu_variants import kernel  # needs triton

    torch.manual_seed(0)
    gate, up, gradient = (torch.randn(size["R"], size["F"], device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    ours, plain = (partial(way, activation=activation) for way in (kernel.gated, glu))
    peer = liger(PEERS[activation]) if activation in PEERS else None  # its backward writes into gate and up: timed, never looked at
    return compare(ours, plain, (gate, up), (gradient,) if direction == "backward" else (), liger=peer)
