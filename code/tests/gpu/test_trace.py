import sys

import numpy
import pytest
import torch

from rundoku.gpu import trace
from rundoku.gpu.launch import tl, triton
from rundoku.gpu.trace import Traffic, accesses, steps, traffic
from rundoku.papers.rms_norm import kernel


@triton.jit
def _sums(x, y, n, BLOCK: tl.constexpr):
    """Add up a row in blocks."""
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        total += tl.load(
            x + row * n + column,
            mask=column < n,
            other=0.0,
        )
    if n > 0:
        tl.store(y + row, tl.sum(total, 0))


@triton.jit
def _count(counts, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.atomic_add(counts + at * 0, at, mask=at < n)


@triton.jit
def _swap(locks):
    tl.atomic_cas(locks + tl.program_id(0), 0, 1)


@triton.jit
def _overwrite(x, y):
    tl.store(y, tl.load(x + tl.program_id(1) * 4 + tl.program_id(0)))


def launch(x, y, block=4):
    _sums[(len(x),)](x, y, x.shape[1], block)


def test_every_turn_of_a_loop_is_a_step_with_what_it_made():
    x, y = torch.arange(12.0).view(2, 6), torch.full((2,), torch.nan)
    found = steps(_sums, lambda: launch(x, y), program=1)
    torch.testing.assert_close(y, x.sum(1))
    turn = [("column", "int32"), ("total", "fp32")]
    assert [(step.name, step.dtype) for step in found] == [("row", "int32"), ("total", "fp32"), *turn, *turn, ("", "")]
    totals = [step.value.tolist() for step in found if step.name == "total"]
    assert totals == [[0, 0, 0, 0], [6, 7, 8, 9], [16, 18, 8, 9]]
    assert [step.value.tolist() for step in found if step.name == "column"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found[-1].name == "" and found[-1].source == "tl.store(y + row, tl.sum(total, 0))"
    assert "tl.load(x + row * n + column, mask=column < n, other=0.0)" in next(s.source for s in found if "load" in s.source)
    assert found[0].value == 1 and "row: scalar int32" in str(found[0])


def test_values_are_copies_and_the_shown_mask_is_of_ones_and_zeros():
    x = torch.ones(1, 3)
    found = {step.name: step for step in steps(kernel._forward, lambda: kernel.rms_norm(x))}
    assert found["inside"].dtype == "int1" and found["inside"].value.sum() == 3 and "[1 1 1 ..." in str(found["inside"])
    assert not numpy.shares_memory(found["tile"].value, found["result"].value)


def test_a_program_that_does_not_run_is_named_and_tracing_ends():
    x, y = torch.ones(2, 6), torch.empty(2)
    before = sys.gettrace()
    with pytest.raises(ValueError, match=r"program: got \(2, 0\), expected the index of a program of _sums that the call runs"):
        steps(_sums, lambda: launch(x, y), program=(2, 0))
    with pytest.raises(ZeroDivisionError):
        steps(_sums, lambda: 1 / 0)
    assert sys.gettrace() is before


def test_bytes_are_counted_without_masked_elements_and_addresses_once():
    x, y = torch.ones(2, 6), torch.empty(2)
    assert traffic(lambda: launch(x, y)) == Traffic(loaded=48, stored=8, loaded_once=48, stored_once=8)
    assert traffic(lambda: (launch(x, y), launch(x, y))) == Traffic(loaded=96, stored=16, loaded_once=48, stored_once=8)
    counts = torch.zeros(1, dtype=torch.int32)
    assert traffic(lambda: _count[(1,)](counts, 3, 4)) == Traffic(loaded=12, stored=12, loaded_once=4, stored_once=4)
    assert counts.item() == 3
    locks = torch.tensor([0, 1, 0], dtype=torch.int32)
    assert traffic(lambda: _swap[(2,)](locks)) == Traffic(loaded=8, stored=8, loaded_once=8, stored_once=8)
    assert locks.tolist() == [1, 1, 0]
    assert traffic(lambda: None) == Traffic(0, 0, 0, 0)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 65), (33, 197)])
def test_rms_norm_moves_what_its_formula_says(rows, columns):
    x, weight = torch.randn(rows, columns).half(), torch.ones(columns).half()
    found = traffic(lambda: kernel.rms_norm(x, weight))
    assert found.loaded_once + found.stored == 2 * rows * columns * 2 + 2 * columns + 4 * rows


def test_accesses_say_which_program_touched_which_element():
    wide = torch.arange(21.0).view(3, 7)
    x, y = wide[:, 1:6].contiguous(), torch.full((3,), torch.nan)
    found = accesses(lambda: launch(x, y))
    assert found.writer(y).tolist() == [0, 1, 2] and found.stores(y).tolist() == [1, 1, 1]
    assert found.loads(x).tolist() == [[1] * 5] * 3 and found.writer(x).tolist() == [[-1] * 5] * 3
    assert found.loads(x, program=1).tolist() == [[0] * 5, [1] * 5, [0] * 5]
    assert found.stores(y, program=(2, 0)).tolist() == [0, 0, 1] and not found.stores(y, program=3).any()
    assert found.traffic == Traffic(loaded=60, stored=12, loaded_once=60, stored_once=12)
    assert found.loads(wide).sum() == 0 and found.loads(torch.empty(0)).shape == (0,)


def test_accesses_follow_strides():
    wide = torch.randn(4, 10).half()
    x = wide[:, 3:8]
    found = accesses(lambda: kernel.rms_norm(x))
    assert found.loads(x).tolist() == [[1] * 5] * 4
    inside = found.loads(wide)
    assert inside[:, 3:8].all() and inside.sum() == 20
    transposed = found.loads(x.T)
    assert transposed.shape == (5, 4) and transposed.all()
    y = kernel.rms_norm(x)
    assert accesses(lambda: None).writer(y).max() == -1


def test_elements_that_share_an_address_are_all_met_where_one_is():
    x = torch.arange(1.0, 6.0)
    rows = x.expand(3, 5)
    found = accesses(lambda: kernel.rms_norm(rows))
    assert found.loads(x).tolist() == [3] * 5 and found.loads(rows).tolist() == [[3] * 5] * 3
    assert found.loads(x.as_strided((3, 2), (1, 1)), program=0).tolist() == [[3, 3]] * 3  # windows that overlap
    assert found.loads(x.flip(0).expand(2, 5)).tolist() == [[0] * 5] * 2  # a copy, which nobody has read
    y = torch.full((3,), torch.nan)
    found = accesses(lambda: launch(torch.ones(3, 4), y))
    assert found.writer(y[:, None].expand(3, 2)).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert found.stores(y.expand(2, 3)).tolist() == [[1] * 3] * 2 and found.writer(torch.empty(0, 3)).shape == (0, 3)
    assert found.loads(torch.tensor(1.0)).shape == found.stores(y[0]).shape == ()


def test_the_last_writer_and_the_grids_axis_count():
    y = torch.zeros(1)
    x = torch.ones(3, 4)
    found = accesses(lambda: _overwrite[(2, 3)](x, y))
    assert found.writer(y).tolist() == [1] and found.writer(y, axis=1).tolist() == [2]
    assert found.stores(y).item() == 6 and found.stores(y, program=(1, 2)).item() == 1


def test_both_need_the_interpreter(monkeypatch):
    monkeypatch.setattr(trace, "INTERPRETED", False)
    for call in (lambda: traffic(print), lambda: accesses(print), lambda: steps(_sums, print)):
        with pytest.raises(RuntimeError, match="compiled for a GPU here; expected the interpreter: TRITON_INTERPRET=1"):
            call()
