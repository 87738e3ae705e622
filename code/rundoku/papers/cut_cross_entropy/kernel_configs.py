"""The published configurations of cut cross-entropy's kernels, a table for each target."""

from torch import Tensor

from rundoku.gpu.launch import Config, target_of

Use = tuple[str, int]  # (kernel, bytes of an element)


def _table(**entries: tuple[int, int, int, int, int]) -> dict[Use, Config]:
    """Read entries such as hidden_2=(BLOCK_N, BLOCK_V, BLOCK_C, warps, stages)."""
    names = ("BLOCK_N", "BLOCK_V", "BLOCK_C")
    return {
        (name.rsplit("_", 1)[0], int(name[-1])): Config(dict(zip(names, tiles, strict=True)), num_warps=warps, num_stages=stages)
        for name, (*tiles, warps, stages) in entries.items()
    }


# Chosen from compile reports, tried from the larger tile down: the first that spills nothing and fits the target's shared memory, with
# every option switched on. "other" is for GPUs that were not compiled for: it spills neither on sm_80 nor on gfx942, in 64 KiB.
CONFIGS: dict[str, dict[Use, Config]] = {
    "sm_80": _table(
        logsumexp_2=(128, 128, 32, 8, 3), hidden_2=(128, 128, 32, 8, 3), weight_2=(128, 64, 32, 8, 3),
        logsumexp_4=(64, 64, 16, 8, 2), hidden_4=(32, 64, 32, 8, 2), weight_4=(64, 32, 16, 8, 2),
    ),
    "sm_90": _table(
        logsumexp_2=(128, 128, 64, 8, 3), hidden_2=(128, 128, 32, 8, 3), weight_2=(128, 64, 64, 8, 3),
        logsumexp_4=(64, 64, 16, 8, 2), hidden_4=(32, 64, 32, 8, 2), weight_4=(64, 32, 16, 8, 2),
    ),
    "sm_100": _table(
        logsumexp_2=(128, 128, 64, 8, 3), hidden_2=(64, 128, 64, 8, 3), weight_2=(64, 64, 64, 8, 3),
        logsumexp_4=(64, 64, 16, 8, 2), hidden_4=(32, 64, 32, 8, 2), weight_4=(64, 64, 32, 8, 2),
    ),
    "gfx942": _table(
        logsumexp_2=(128, 128, 32, 8, 2), hidden_2=(128, 128, 32, 8, 2), weight_2=(128, 64, 32, 8, 2),
        logsumexp_4=(64, 64, 16, 8, 2), hidden_4=(64, 64, 32, 8, 2), weight_4=(64, 64, 32, 8, 2),
    ),
    "other": _table(
        logsumexp_2=(64, 64, 32, 4, 2), hidden_2=(64, 64, 32, 4, 2), weight_2=(64, 64, 32, 4, 2),
        logsumexp_4=(32, 32, 32, 4, 1), hidden_4=(32, 32, 16, 4, 1), weight_4=(32, 16, 16, 4, 1),
    ),
    "interpreter": _table(
        logsumexp_2=(32, 32, 32, 4, 1), hidden_2=(32, 32, 32, 4, 1), weight_2=(32, 32, 32, 4, 1),
        logsumexp_4=(32, 32, 32, 4, 1), hidden_4=(32, 32, 32, 4, 1), weight_4=(32, 32, 32, 4, 1),
    ),
}  # fmt: skip
DOT_CONFIG = Config({"BLOCK_N": 16, "BLOCK_C": 128}, num_warps=4, num_stages=1)


def config_for(tensor: Tensor, kernel: str) -> Config:
    """Return the published configuration of a kernel ("logsumexp", "hidden" or "weight") for a tensor's device and dtype."""
    return CONFIGS[target_of(tensor)][kernel, tensor.itemsize]
