"""What the note on cut cross-entropy counts with: bytes that live, blocks that are kept, and the kernel's own memory."""

import pytest
import torch

from rundoku.gpu.bench import OURS, PLAIN
from rundoku.gpu.check import twice_rule
from rundoku.papers.cut_cross_entropy import benchmarks
from rundoku.papers.cut_cross_entropy.experiments import EPS, Peak, held, kept, words


def test_the_peak_is_of_what_lives_at_once():
    x = torch.ones(100)
    with Peak() as peak:
        a = x + 1  # 400 bytes
        b = a.view(10, 10).T  # nothing
        del a, b
        assert (peak.now, peak.most) == (0, 400)
        c, d = x * 2, x.double()  # 400 and 800
        x.add_(1)
        assert peak.now == peak.most == 1200
        del c, d
        kept_one = x.half()
    assert (peak.now, peak.most) == (kept_one.nbytes, 1200)


def test_a_block_is_kept_for_one_entry():
    difference = torch.zeros(5, 7)  # blocks of 2 × 2: three rows of four blocks, the last ones smaller
    order = torch.arange(7)
    assert kept(difference, order, tile=2) == 0
    difference[4, 6] = difference[0, 1] = difference[1, 0] = EPS
    assert kept(difference, order, tile=2) == pytest.approx(2 / 12)
    assert kept(difference, torch.tensor([1, 0, 6, 2, 3, 4, 5]), tile=2) == pytest.approx(2 / 12)
    assert kept(difference, torch.tensor([1, 2, 0, 3, 6, 4, 5]), tile=2) == pytest.approx(3 / 12)


def test_what_the_kernel_holds_by_hand():
    pytest.importorskip("triton")
    one = held(tokens=8192, vocabulary=256_000, width=2304, target="sm_80")
    assert one["gradients"] == 1161  # (8,192 + 256,000) · 2,304 · 2 bytes
    # 64 blocks of tokens in 2 parts of the vocabulary: sums of 2 · 8,192 · 2,304 · 4 bytes, and what they add up to
    assert one["both"] - one["gradients"] - one["loss"] == 3 * 72
    assert one["loss"] == 8192 * (2 * 4 + 2 * 4 + 2 * 8) / 2**20
    twice = held(tokens=8192, vocabulary=512_000, width=2304, target="sm_80")
    assert twice["loss"] == one["loss"]


def test_words_are_numbered_from_the_commonest():
    train, held_out = words(100)
    assert held_out.shape == (20_000,)
    counts = torch.bincount(torch.cat([train, held_out]), minlength=100)
    assert (counts.diff() <= 0).all()
    assert counts[-1] > 0


@pytest.mark.parametrize("case", benchmarks.CASES)
def test_benchmarks_compare_like_with_like(case):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls, exact = benchmarks._calls(case, {"N": 40, "C": 16, "V": 70}, "float32", device)
    found, plain = calls[OURS](), calls[PLAIN]()
    assert len(found) == len(plain) == len(exact) == (1 if case == "forward" else 2)
    assert all(twice_rule(*outputs) is None for outputs in zip(found, plain, exact))


def test_benchmarks_count_by_formula():
    forward, backward = benchmarks.benchmarks()[:2]
    n, c, v = forward.sizes.values()
    assert (forward.flops, backward.flops) == (2 * n * c * v, 8 * n * c * v)
    assert (forward.bytes, backward.bytes) == (2 * c * (n + v), 6 * c * (n + v))
