"""What ``nox -s bench`` measures of the rotation, apart from the experiments so that a kernel's edit repeats no training."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import FLASH, LIGER, compare, flash_operator, liger
from rundoku.papers.roformer.rotary import LAYOUTS, Layout, rotary_tables, rotate

SIZES = (  # of real models: query heads, key heads, head width
    ("SmolLM2-135M", 9, 3, 64), ("Llama 2 7B", 32, 32, 128), ("Llama 3 8B", 32, 8, 128), ("Llama 3 70B", 64, 8, 128),
)  # fmt: skip
LENGTHS = ((4, 4096), (1, 32_768), (64, 1))  # batch and length of a prefill, a long one, and a decoding step
CASES = tuple(f"{direction}, {layout}" for direction in ("forward", "backward") for layout in LAYOUTS)


def benchmarks() -> list[Bench]:
    """Return what is measured: both directions and layouts at the sizes of real models, decoding included."""
    return [_bench(case, *sizes[1:], *lengths) for sizes in SIZES for lengths in LENGTHS for case in CASES]


def _bench(case: str, heads: int, groups: int, width: int, batch: int, length: int) -> Bench:
    config = {}
    if torch.cuda.is_available():
        from rundoku.papers.roformer import kernel  # needs triton

        config = kernel.config_for(torch.empty(0, width, device="cuda")).launch()
    sizes, elements = {"B": batch, "H": heads, "G": groups, "N": length, "D": width}, batch * (heads + groups) * length * width
    moved = 4.0 * elements + 4.0 * length * width  # bfloat16 read and written, and the tables
    return Bench(case, sizes, "bfloat16", 3.0 * elements, moved, partial(_calls, case, sizes, "bfloat16"), config)


def _calls(case: str, sizes: dict[str, int], dtype: str, device: str) -> tuple[dict[str, Call], Sequence[Tensor]]:
    from rundoku.papers.roformer import kernel  # needs triton

    torch.manual_seed(0)
    batch, heads, groups, length, width = (sizes[axis] for axis in "BHGND")
    made = [torch.randn(batch, count, length, width, device=device, dtype=getattr(torch, dtype)) for count in (heads, groups) * 2]
    layout: Layout = "interleaved" if "interleaved" in case else "half"
    tables = rotary_tables(torch.arange(length, device=device), width)
    theirs: Any = liger("liger_rope") if layout == "half" else None  # it has no other
    operator: Any = flash_operator("apply_rotary_emb")

    def plain(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(query, *tables, layout), rotate(key, *tables, layout)

    def ours(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return kernel.rotary(query, key, *tables, layout)

    doubled = [torch.cat((table, table), -1)[None] for table in tables]  # Liger-Kernel's tables hold each angle twice

    def ligers(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return theirs(query, key, *doubled)[:2]

    def flash(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:  # turns one tensor a launch, [B, N, H, D]
        return tuple(operator(x.transpose(1, 2), *tables, interleaved=layout == "interleaved").transpose(1, 2) for x in (query, key))

    def heads_second(x: Tensor) -> Tensor:  # the layout that both turn; Liger-Kernel copies any other first
        return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)

    others = {LIGER: theirs and ligers, FLASH: operator and flash}
    return compare(ours, plain, made[:2], made[2:] if "backward" in case else (), others=others, layout=heads_second)
