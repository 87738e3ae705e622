"""What ``nox -s bench`` measures of RMSNorm, apart from the experiments so that a kernel's edit repeats no training."""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import FLASH, LIGER, compare, flash_operator, liger
from rundoku.papers.layer_norm.benchmarks import SIZES

# FLOP and tensors of [R, C] read or written, an element, as kernel.py counts them
COSTS = {"forward": (4, 2), "add and forward": (5, 4), "backward": (9, 3)}
WIDE = (1, 2)  # more of both for backward above C = 8,192, where dw takes a second reading


def benchmarks() -> list[Bench]:
    """Return what is measured: forward, backward, and forward with the residual addition, at widths of real models."""
    return [_bench(case, *size) for size in SIZES for case in COSTS]


def _bench(case: str, rows: int, width: int) -> Bench:
    wide = case == "backward" and width > 8192
    flops, moved = (cost + more * wide for cost, more in zip(COSTS[case], WIDE, strict=True))
    config = {}
    if torch.cuda.is_available():
        from rundoku.papers.rms_norm import kernel  # needs triton

        config = kernel.config_for(torch.empty(0, width, device="cuda")).launch()
    size, work = {"R": rows, "C": width}, rows * width
    return Bench(case, size, "bfloat16", float(flops * work), 2.0 * moved * work, partial(_calls, case, size, "bfloat16"), config)


def _calls(case: str, size: dict[str, int], dtype: str, device: str) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    from rundoku.papers.rms_norm import kernel  # needs triton

    torch.manual_seed(0)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    x, residual, gradient = (torch.randn(size["R"], size["C"], **kind) for _ in range(3))
    weight, adds = torch.randn(size["C"], **kind), case == "add and forward"
    theirs, operator = liger("liger_fused_add_rms_norm" if adds else "liger_rms_norm"), flash_operator("rms_norm_fn")

    def plain(x, residual, weight):
        h = x if residual is None else x + residual
        return F.rms_norm(h, weight.shape, weight, 1e-6), h

    def ours(x, residual, weight):
        return (kernel.rms_norm(x, weight), x) if residual is None else kernel.rms_norm(x, weight, residual=residual)

    def ligers(x, residual, weight):  # not in place: its backward would write over the gradient that it is given each time
        return (theirs(x, weight, 1e-6, in_place=False), x) if residual is None else theirs(x, residual, weight, 1e-6, in_place=False)

    def flash(x, residual, weight):
        if residual is None:
            return operator(x, weight, None, eps=1e-6), x
        return operator(x, weight, None, residual=residual, eps=1e-6, prenorm=True)

    inputs = (x, residual if adds else None, weight)
    others = {LIGER: theirs and ligers, FLASH: operator and flash}
    return compare(ours, plain, inputs, (gradient,) if case == "backward" else (), others=others)
