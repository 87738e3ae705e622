"""The note's runs, small: what they compare must be what they say, and the benchmarks must measure the same thing for everyone."""

import inspect

import pytest
import torch

from rundoku.data import smollm2
from rundoku.data.shakespeare import plays
from rundoku.data.source import MissingData
from rundoku.gpu.bench import measure
from rundoku.papers.layer_norm import LayerNorm
from rundoku.papers.rms_norm import RMSNorm, benchmarks, experiments


def available(read):
    try:
        return read()
    except MissingData as missing:
        pytest.skip(str(missing))


def test_table_1_follows_from_the_definitions():
    found = experiments.invariances(seed=1)
    scales = {"Weight matrix re-scaling", "Dataset re-scaling", "Single case re-scaling"}
    for method in ("RMSNorm", "pRMSNorm"):
        assert {change for change, distance in found[method].items() if distance < 1e-9} == scales
    for moved in (moved for _, moved in found.items()):
        assert all(distance < 1e-9 or distance > 0.05 for _, distance in moved.items())


def test_the_gradient_shrinks_with_the_weights_and_not_with_the_data():
    found = experiments.gradients(scales=(0.5, 8.0), seed=3)
    assert list(found.rms.weight) == pytest.approx([2.0, 0.125])
    assert list(found.rms.data) == pytest.approx([1.0, 1.0])
    assert found.none.data[1] > 4


def test_traffic_is_counted_by_hand():
    with experiments._Count() as count:
        x = torch.ones(3, 4)  # written: 12
        (x[:2] * 2.0).sum()  # the view costs nothing; read 8, written 8, read 8, written 1
    assert (count.moved, count.operations) == (12 + 8 + 8 + 8 + 1, 12 + 8 + 8)


def test_unfused_passes_are_those_of_the_formulas():
    found = experiments.traffic(rows=64, width=512)
    assert found.LayerNorm.operations == pytest.approx(6, abs=0.02)  # mean, difference, square, mean, two products
    assert found.RMSNorm.operations == pytest.approx(4, abs=0.02)  # square, mean, two products
    assert found.LayerNorm.forward == pytest.approx(10, abs=0.05)
    assert found.RMSNorm.forward == pytest.approx(7, abs=0.05)
    assert found.pRMSNorm.forward < found.RMSNorm.forward < found.LayerNorm.forward
    assert found.pRMSNorm.both < found.RMSNorm.both < found.LayerNorm.both


def test_the_real_model_is_that_of_the_llama_room():
    llama = pytest.importorskip("rundoku.papers.llama")
    metadata, weights = available(smollm2.read)
    ids = experiments._text(12)
    seen: list[torch.Tensor] = []
    assert len(ids) == 12
    model = llama.from_gguf(metadata, weights)
    with torch.no_grad():
        found = experiments._hidden(weights, ids, experiments.NORMS["RMSNorm"], seen) @ weights["token_embd.weight"].T
        torch.testing.assert_close(found, model(ids[None])[0], rtol=1e-3, atol=1e-3)
    assert len(seen) == 61
    assert torch.equal(seen[0], weights["token_embd.weight"][ids])


def test_rounding_twice_is_worse_and_zeros_become_nan():
    available(lambda: smollm2.tensor("blk.0.attn_norm.weight"))
    found = experiments.cast_order(rows=64)
    assert 0 < found.differ < 1
    assert found.early < found.late
    assert found.nan == 1


def test_only_the_norms_of_the_character_model_differ_and_a_run_is_its_seeds():
    available(plays)
    model = experiments.before.CharacterModel(9, "layer", d_model=8, length=4)
    before = dict(model.named_parameters())
    experiments._replace(model, 0.25)
    kinds = {type(part) for part in model.modules()}
    assert LayerNorm not in kinds
    assert RMSNorm in kinds
    assert all(own is before[name] for name, own in model.named_parameters() if "norm" not in name)
    for norm in ("none", "layer", "rms"):
        run = experiments.character_model(norm=norm, length=6, steps=40, seed=3)
        assert run.loss[-1] < run.loss[0] < 6
    again = inspect.unwrap(experiments.character_model)  # not what is stored
    first, second = (again(norm="partial", length=6, steps=20, seed=3)["loss"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_shifted_start_is_invisible_to_layer_normalisation():
    available(plays)
    usual, shifted = (experiments.character_model(norm="layer", center=center, length=6, steps=20, seed=0) for center in (0.0, 0.2))
    assert shifted.loss[-1] == pytest.approx(usual.loss[-1], abs=1e-3)


def test_centered_weights_make_the_conversion_exact():
    found = experiments.loaded(epochs=1, seed=2)
    assert found.moved < 1e-12
    assert found.centered == found.layer


@pytest.mark.parametrize("case", ["forward", "add and forward", "backward"])
def test_benchmarks_compare_like_with_like(case, monkeypatch):
    launch = pytest.importorskip("rundoku.gpu.launch", reason="the kernels need triton, which exists for Linux", exc_type=ImportError)
    device = "cpu" if launch.INTERPRETED else "cuda"
    monkeypatch.setattr(torch, "compile", lambda function: function)
    bench = next(bench for bench in benchmarks.benchmarks() if bench.case == case)
    small = {"R": 6, "C": 96}

    def prepare(device):
        calls, exact = benchmarks._calls(case, small, "float16", device)
        assert {len(call()) for call in calls.values()} == {len(exact)}
        return calls, exact

    rows = measure(bench.__class__(case, small, "float16", 1.0, 1.0, prepare), device, "a card", lambda call: (1.0, 1.0, 1.0))
    assert [row.provider for row in rows] == ["rundoku", "torch", "torch.compile"]


def test_bytes_are_counted_by_the_formulas_of_the_kernel():
    found = {(bench.case, bench.sizes["C"]): bench for bench in benchmarks.benchmarks()}
    elements = 8192 * 1024
    assert found["forward", 1024].bytes == 2 * elements * 2
    assert found["add and forward", 1024].bytes == 4 * elements * 2
    assert found["backward", 1024].bytes == 3 * elements * 2
    assert found["backward", 16384].bytes == 5 * 4096 * 16384 * 2
