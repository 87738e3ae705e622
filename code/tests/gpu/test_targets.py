"""Occupancy against values known from NVIDIA's occupancy calculator and the compiler's own remark for AMD, and the roofline."""

import pytest

from rundoku.gpu.roofline import bound
from rundoku.gpu.targets import CARDS, TARGETS


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "resident"),
    [
        ("sm_80", 32, 0, 4, 64),  # 65,536 / (32 · 32) = 64 warps
        ("sm_80", 33, 0, 4, 48),  # 40 registers are handed out: 512 // 40 = 12 warps a scheduler
        ("sm_80", 255, 0, 4, 8),
        ("sm_90", 128, 0, 4, 16),
        ("sm_90", 32, 100 * 1024, 4, 8),  # two blocks of 101 KiB fit into 228
        ("sm_90", 32, 227 * 1024, 8, 8),
        ("sm_90", 32, 228 * 1024, 8, 0),  # more than a block may have
        ("sm_80", 16, 0, 1, 32),  # 32 blocks at most
        ("gfx942", 64, 0, 4, 32),  # 512 / 64 = 8 waves a SIMD
        ("gfx942", 33, 0, 4, 32),
        ("gfx942", 128, 0, 4, 16),
        ("gfx942", 512, 0, 4, 4),
        ("gfx942", 32, 48 * 1024, 4, 4),
    ],
)
def test_occupancy(target, registers, shared, warps, resident):
    assert TARGETS[target].occupancy(registers, shared, warps) == resident / TARGETS[target].warps


def test_the_roofline_turns_at_the_ridge():
    card = CARDS["NVIDIA H200"]
    copy = bound(card, flops=0, bytes=4.8e9, dtype="bfloat16")
    assert (copy.by, copy.seconds) == ("memory", pytest.approx(1e-3))
    assert bound(card, flops=copy.ridge * 1e6 * 1.01, bytes=1e6, dtype="bfloat16").by == "compute"
    assert bound(card, flops=copy.ridge * 1e6 * 0.99, bytes=1e6, dtype="bfloat16").by == "memory"
    with pytest.raises(ValueError, match="dtype: got 'int4'"):
        bound(card, flops=1, bytes=1, dtype="int4")
    with pytest.raises(ValueError, match="more than 0 bytes"):
        bound(card, flops=1, bytes=0, dtype="float32")
