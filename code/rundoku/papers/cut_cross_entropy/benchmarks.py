"""What ``nox -s bench`` measures of cut cross-entropy, at the output layers of real models.

The filter is not timed: what it saves is a matter of the text that a trained model reads, and random logits have nothing to leave out.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import FLASH, LIGER, compare, flash_operator, liger

SIZES = ((4096, 576, 49_152), (4096, 4096, 32_000), (2048, 4096, 128_256), (2048, 2304, 256_000))  # N, C, V
CASES = {"forward": 2, "backward": 8}  # floating-point operations a token, word and unit of width


def benchmarks() -> list[Bench]:
    """Return what is measured: forward and backward, at SIZES."""
    return [_bench(case, *size) for size in SIZES for case in CASES]


def _bench(case: str, n: int, c: int, v: int) -> Bench:
    config, size = {}, {"N": n, "C": c, "V": v}
    if torch.cuda.is_available():
        from rundoku.papers.cut_cross_entropy import kernel  # needs triton

        used = "logsumexp" if case == "forward" else "hidden"
        config = kernel.config_for(torch.empty(0, c, device="cuda", dtype=torch.bfloat16), used).launch()
    moved = 2.0 * c * (n + v) * (1 if case == "forward" else 3)  # both read once a pass, and in backward both gradients written
    return Bench(case, size, "bfloat16", float(CASES[case] * n * v * c), moved, partial(_calls, case, size, "bfloat16"), config)


def _calls(case: str, size: dict[str, int], dtype: str, device: str) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    from rundoku.papers.cut_cross_entropy import kernel  # needs triton

    torch.manual_seed(0)
    hidden, weight = (torch.randn(size[axis], size["C"], device=device, dtype=getattr(torch, dtype)) for axis in "NV")
    weight *= 4 / size["C"] ** 0.5  # logits of deviation 4
    targets = torch.randint(size["V"], (size["N"],), device=device)
    theirs, operator = liger("liger_fused_linear_cross_entropy"), flash_operator("cross_entropy_loss")

    def plain(hidden, weight):
        return F.cross_entropy(F.linear(hidden, weight), targets)

    def ours(hidden, weight):
        return kernel.linear_cross_entropy(hidden, weight, targets)

    def ligers(hidden, weight):  # makes its gradients in forward, so that its backward alone would say little
        return theirs(hidden, weight, targets)

    def flash(hidden, weight):  # of logits that are there in full
        return operator(F.linear(hidden, weight), targets)[0].mean()

    backward = case != "forward"
    gradient = (torch.ones((), device=device),) if backward else ()
    others = {LIGER: None if backward else theirs and ligers, FLASH: operator and flash}
    return compare(ours, plain, (hidden, weight), gradient, others=others)
