"""The published configurations of flash attention's kernels, and the cases in which the compiler has to show that they hold."""

from collections.abc import Sequence
from functools import partial

import torch

from rundoku.gpu.launch import Case, Choice, Config, grid
from rundoku.papers.flash_attention.kernel_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from rundoku.papers.flash_attention.kernel_costs import cost_of, delta_cost
from rundoku.papers.flash_attention.kernel_decode import combine_kernel, split_kernel
from rundoku.papers.flash_attention.kernel_forward import forward_kernel

HEAD_WIDTHS = (16, 32, 64, 128)
MAX_SPLITS = 128  # that `flash_decode` divides the keys into
RESIDENT = 2  # programs of its first kernel that a processor holds at once
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Use = tuple[str, int, int]  # (kernel, widest D, bytes of an element)


def _table(**entries: tuple[int, int, int, int]) -> dict[Use, Config]:
    """Read entries such as forward_64_2=(BLOCK_N, BLOCK_M, warps, stages)."""
    table: dict[Use, Config] = {("combine", 128, size): Config({"BLOCK_R": MAX_SPLITS}, num_warps=8, num_stages=1) for size in (2, 4)}
    for name, (n, m, warps, stages) in entries.items():
        kernel, width, size = name.rsplit("_", 2)
        table[kernel, int(width), int(size)] = Config({"BLOCK_N": n, "BLOCK_M": m}, num_warps=warps, num_stages=stages)
    return table


# Chosen from compile reports, tried from the larger tile down: the first that spills nothing and fits the target's shared memory, causal
# and with every option switched on, fixed and packed; "packed_" marks an entry for packed sequences alone. "rows16" and "rows64" are the
# decode form's, for so many rows of queries: of them RESIDENT programs fit on a processor, in bf16. "other" is for GPUs that were not
# compiled for: it spills neither on sm_80 nor on gfx942, in 64 KiB. None of it has been tuned on a GPU.
CONFIGS: dict[str, dict[Use, Config]] = {
    "sm_80": _table(
        forward_64_2=(128, 128, 8, 3), queries_64_2=(128, 64, 8, 3), keys_64_2=(32, 128, 8, 3),
        forward_128_2=(128, 64, 8, 3), queries_128_2=(128, 64, 8, 3), keys_128_2=(64, 64, 8, 3),
        forward_128_4=(64, 32, 8, 2), queries_128_4=(32, 32, 8, 1), keys_128_4=(16, 32, 8, 1),
        packed_queries_128_2=(128, 32, 8, 3), packed_keys_128_2=(32, 64, 8, 3),
        rows16_64_2=(16, 128, 4, 3), rows16_128_2=(16, 64, 4, 3), rows16_128_4=(16, 16, 4, 2),
        rows64_64_2=(64, 64, 4, 3), rows64_128_2=(64, 32, 4, 3), rows64_128_4=(64, 16, 8, 2),
    ),
    "sm_90": _table(
        forward_64_2=(128, 64, 8, 3), queries_64_2=(128, 64, 8, 3), keys_64_2=(64, 128, 8, 3),
        forward_128_2=(128, 64, 8, 2), queries_128_2=(128, 64, 8, 3), keys_128_2=(32, 64, 8, 3),
        forward_128_4=(32, 16, 4, 2), queries_128_4=(32, 32, 8, 1), keys_128_4=(16, 32, 8, 1),
        packed_forward_128_2=(128, 32, 8, 3),
        rows16_64_2=(16, 128, 4, 3), rows16_128_2=(16, 64, 4, 3), rows16_128_4=(16, 16, 4, 2),
        rows64_64_2=(64, 64, 4, 3), rows64_128_2=(64, 64, 4, 3), rows64_128_4=(64, 16, 8, 2),
    ),
    "sm_100": _table(
        forward_64_2=(128, 64, 8, 3), queries_64_2=(128, 128, 8, 3), keys_64_2=(64, 64, 8, 3),
        forward_128_2=(128, 64, 8, 3), queries_128_2=(64, 64, 4, 3), keys_128_2=(64, 32, 8, 3),
        forward_128_4=(32, 16, 4, 2), queries_128_4=(32, 32, 8, 1), keys_128_4=(16, 32, 8, 1),
        rows16_64_2=(16, 128, 4, 3), rows16_128_2=(16, 64, 4, 3), rows16_128_4=(16, 16, 4, 2),
        rows64_64_2=(64, 64, 4, 3), rows64_128_2=(64, 32, 4, 3), rows64_128_4=(64, 16, 8, 2),
    ),
    "gfx942": _table(
        forward_64_2=(128, 128, 4, 1), queries_64_2=(128, 128, 4, 2), keys_64_2=(64, 64, 4, 1),
        forward_128_2=(128, 64, 4, 2), queries_128_2=(128, 64, 4, 2), keys_128_2=(32, 128, 4, 1),
        forward_128_4=(64, 32, 8, 2), queries_128_4=(32, 32, 4, 1), keys_128_4=(32, 32, 4, 1),
        rows16_64_2=(16, 64, 4, 1), rows16_128_2=(16, 64, 4, 1), rows16_128_4=(16, 16, 4, 1),
        rows64_64_2=(64, 64, 4, 1), rows64_128_2=(64, 32, 4, 1), rows64_128_4=(64, 16, 4, 1),
    ),
    "other": _table(
        forward_64_2=(64, 64, 4, 1), queries_64_2=(64, 32, 4, 1), keys_64_2=(32, 64, 4, 1),
        forward_128_2=(64, 32, 4, 1), queries_128_2=(32, 32, 4, 1), keys_128_2=(32, 32, 4, 1),
        forward_128_4=(32, 16, 4, 1), queries_128_4=(32, 16, 4, 1), keys_128_4=(16, 16, 4, 1),
        packed_keys_128_4=(16, 32, 8, 1),
        rows16_64_2=(16, 64, 4, 1), rows16_128_2=(16, 32, 4, 1), rows16_128_4=(16, 16, 4, 1),
        rows64_64_2=(64, 64, 4, 1), rows64_128_2=(64, 32, 4, 1), rows64_128_4=(64, 16, 4, 1),
    ),
    "interpreter": _table(
        forward_128_2=(32, 32, 4, 1), queries_128_2=(32, 32, 4, 1), keys_128_2=(32, 32, 4, 1),
        forward_128_4=(32, 32, 4, 1), queries_128_4=(32, 32, 4, 1), keys_128_4=(32, 32, 4, 1),
        rows16_128_2=(16, 32, 4, 1), rows16_128_4=(16, 32, 4, 1),
        rows64_128_2=(64, 32, 4, 1), rows64_128_4=(64, 32, 4, 1),
    ),
}  # fmt: skip


def config_for(target: str, kernel: str, head_width: int, itemsize: int, packed: bool = False) -> Config:
    """Return the published configuration of a kernel ("forward", "keys", "queries", "rows16", "rows64" or "combine").

    It is the entry with the least width that suffices, for packed sequences one of their own where there is one.
    """
    names = (kernel, f"packed_{kernel}") if packed else (kernel,)
    fitting = [use for use in CONFIGS[target] if use[0] in names and use[1] >= head_width and use[2] == itemsize]
    return CONFIGS[target][min(fitting, key=lambda use: (use[1], use[0] == kernel))]


def compile_cases(target: str) -> list[Case]:
    """Return every entry of CONFIGS[target] at its widest D: causal alone, and in bf16 at D = 128 with every option switched on.

    Forward and backward both fixed and packed; the combining of splits at the most that there can be; and at the end the kernel that
    makes Δ, in the blocks of queries of backward.
    """
    uses = CONFIGS[target].items()
    blocks = dict.fromkeys((config.tiles["BLOCK_N"], *use[1:]) for use, config in uses if use[0].endswith("queries"))
    return [*(case for use, config in uses for case in _cases(target, use, config)), *(_delta_case(*block) for block in blocks)]


def _delta_case(block: int, width: int, itemsize: int) -> Case:
    dtype = {2: "bf16", 4: "fp32"}[itemsize]
    constants = {"D": width, "HAS_GRAD_LSE": True}
    kinds = dict.fromkeys(("out", "grad_out"), f"*{dtype}") | dict.fromkeys(("grad_lse", "delta"), "*fp32")
    types = {name: kinds.get(name, "i32") for name in delta_kernel.arg_names if name not in constants and name != "BLOCK_N"}
    name = f"backward, delta of {block} rows, D = {width}, {dtype}"
    return Case(name, delta_kernel, types, Config({"BLOCK_N": block}), constants, cost=delta_cost(width, itemsize))


def candidates(target: str) -> list[Choice]:
    """Return every entry of CONFIGS[target] with what could stand in its place: what `rundoku tune` compiles and compares."""
    choices = []
    for use, published in CONFIGS[target].items():
        kernel, width, size = use
        sizes = [32, 64, 128] if size == 2 else [16, 32, 64]
        rows = [int(kernel.removeprefix("rows"))] if kernel.startswith("rows") else sizes
        tiles: dict[str, Sequence[int]] = {"BLOCK_N": rows, "BLOCK_M": sizes}
        others = grid({"BLOCK_R": [MAX_SPLITS]}, (4, 8)) if kernel == "combine" else grid(tiles, (4, 8), (1, 2, 3))
        choices.append(Choice(f"{kernel}_{width}_{size}", published, others, partial(_cases, target, use)))
    return choices


def _cases(target: str, use: Use, config: Config) -> list[Case]:
    """Return every kernel that a call with this entry of the table can launch."""
    kernel = use[0].removeprefix("packed_")
    fixed = kernel == use[0]
    packs = kernel in ("forward", "keys", "queries") and (not fixed or (f"packed_{kernel}", *use[1:]) not in CONFIGS[target])
    options = (False, True) if use[1:] == (128, 2) and kernel != "combine" else (False,)
    forms = [packed for packed, there in ((False, fixed), (True, packs)) if there]
    return [_case((kernel, *use[1:]), config, packed, every_option) for every_option in options for packed in forms]


def _case(use: Use, config: Config, packed: bool, every_option: bool) -> Case:
    function, title = {
        "forward": (forward_kernel, "forward"),
        "keys": (backward_keys_kernel, "backward, keys"),
        "queries": (backward_queries_kernel, "backward, queries"),
        "rows16": (split_kernel, "decode, 16 rows"),
        "rows64": (split_kernel, "decode, 64 rows"),
        "combine": (combine_kernel, "decode, combine"),
    }[use[0]]
    dtype, precision = {2: ("bf16", "tf32"), 4: ("fp32", "ieee")}[use[2]]
    flags = {"HAS_LEFT": every_option, "HAS_RIGHT": True, "ALIBI": every_option, "SOFTCAP": every_option, "PACKED": packed}
    absent = [name for name, given in (("slopes", every_option), ("starts_q", packed), ("starts_k", packed)) if not given]
    known = {"D": use[1], "PRECISION": precision, **flags, **dict.fromkeys(absent)}
    constants = {name: value for name, value in known.items() if name in function.arg_names}
    tensors = ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value")
    kinds = {
        **dict.fromkeys(tensors, f"*{dtype}"),
        **dict.fromkeys(("lse", "delta", "slopes", "part", "part_lse"), "*fp32"),
        **dict.fromkeys(("starts_q", "starts_k", "lengths"), "*i32"),
        **dict.fromkeys(("scale", "softcap"), "fp32"),
    }
    types = {name: kinds.get(name, "i32") for name in function.arg_names if name not in constants and name not in config.tiles}
    options = ", every option" if every_option else ""
    name = f"{title}{', packed' if packed else ''}, D = {use[1]}, {dtype}{options}"
    return Case(name, function, types, config, constants, cost=cost_of(*use, packed))
