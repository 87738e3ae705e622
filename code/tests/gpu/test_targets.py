"""Occupancy against values known from NVIDIA's occupancy calculator and the compiler's own remark for AMD, and the roofline."""

import pytest

from rundoku.gpu.launch import Cost
from rundoku.gpu.report import roof
from rundoku.gpu.roofline import bound
from rundoku.gpu.targets import CARD_OF, CARDS, TARGETS


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


def test_every_target_has_a_card_whose_peaks_stand_for_it():
    assert set(CARD_OF) == set(TARGETS)
    assert set(CARD_OF.values()) <= set(CARDS)


def test_a_case_with_a_cost_is_held_against_its_targets_card():
    card = CARDS["NVIDIA A100-SXM4-80GB"]
    scarce = roof(Cost(flops=1e9, bytes=1e9, dtype="float32", size="N = 1"), "sm_80")
    assert scarce == {
        "size": "N = 1", "dtype": "float32", "intensity": 1.0, "bound": "memory", "least_us": pytest.approx(1e9 / 2.039e12 * 1e6),
        "peak_share": pytest.approx(2.039e12 / 19.5e12),
    }  # fmt: skip
    plenty = roof(Cost(flops=1e12, bytes=1e9, dtype="bfloat16", size="N = 1"), "sm_80")
    assert (plenty["bound"], plenty["peak_share"], plenty["least_us"]) == ("compute", 1.0, pytest.approx(1e12 / card.half * 1e6))
    assert roof(None, "sm_80") == {}


@pytest.mark.parametrize(
    ("flops", "moved", "dtype", "named"), [(-1, 1, "float32", "flops"), (1, 0, "float32", "bytes"), (1, 1, "fp32", "dtype")]
)
def test_a_cost_that_cannot_be_is_refused_by_name(flops, moved, dtype, named):
    with pytest.raises(ValueError, match=f"^{named}: got"):
        Cost(flops, moved, dtype, "")
