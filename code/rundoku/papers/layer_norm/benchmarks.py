"""What ``nox -s bench`` measures of layer normalisation, apart from the experiments so that a kernel's edit repeats no training."""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import FLASH, LIGER, compare, flash_operator, liger

# FLOP and tensors of [R, C] read or written, an element, as kernel.py counts them
COSTS = {"forward": (7, 2), "add and forward": (8, 4), "backward": (13, 3)}
WIDE = (2, 2)  # more of both for backward above C = 8,192, where dw and db take a second reading
SIZES = ((8192, 512), (8192, 1024), (8192, 2048), (8192, 4096), (8192, 8192), (4096, 16_384))  # R and C


def benchmarks() -> list[Bench]:
    """Return what is measured: forward, backward, and forward with the residual addition, at widths of real models."""
    return [_bench(case, *size) for size in SIZES for case in COSTS]


def _bench(case: str, rows: int, width: int) -> Bench:
    wide = case == "backward" and width > 8192
    flops, moved = (cost + more * wide for cost, more in zip(COSTS[case], WIDE, strict=True))
    config = {}
    if torch.cuda.is_available():
        from rundoku.papers.layer_norm import kernel  # needs triton

        config = kernel.config_for(torch.empty(0, width, device="cuda")).launch()
    size, work = {"R": rows, "C": width}, rows * width
    return Bench(case, size, "bfloat16", float(flops * work), 2.0 * moved * work, partial(_calls, case, size, "bfloat16"), config)


def _calls(case: str, size: dict[str, int], dtype: str, device: str) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    from rundoku.papers.layer_norm import kernel  # needs triton

    torch.manual_seed(0)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    x, residual, gradient = (torch.randn(size["R"], size["C"], **kind) for _ in range(3))
    weight, bias = (torch.randn(size["C"], **kind) for _ in range(2))
    theirs, operator = liger("liger_layer_norm"), flash_operator("layer_norm_fn")

    def plain(x, residual, weight, bias):
        h = x if residual is None else x + residual
        return F.layer_norm(h, bias.shape, weight, bias), h

    def ours(x, residual, weight, bias):
        return (kernel.layer_norm(x, weight, bias), x) if residual is None else kernel.add_layer_norm(x, residual, weight, bias)

    def ligers(x, residual, weight, bias):  # it has no kernel with the addition
        h = x if residual is None else x + residual
        return theirs(h, weight, bias, 1e-5), h

    def flash(x, residual, weight, bias):
        if residual is None:
            return operator(x, weight, bias, eps=1e-5), x
        return operator(x, weight, bias, residual=residual, eps=1e-5, prenorm=True)

    inputs = (x, residual if case == "add and forward" else None, weight, bias)
    others = {LIGER: theirs and ligers, FLASH: operator and flash}
    return compare(ours, plain, inputs, (gradient,) if case == "backward" else (), others=others)
