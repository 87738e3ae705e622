"""The note's runs, small: what they compare must be what they say, and the benchmarks must measure the same thing for everyone."""

import pytest
import torch
from torch import nn

from rundoku.data.digits import FILE, digits, make
from rundoku.data.shakespeare import plays
from rundoku.data.source import MissingData
from rundoku.gpu.bench import measure
from rundoku.papers.layer_norm import RecurrentConfig, benchmarks, experiments


def test_table_1_follows_from_the_definitions():
    found = experiments.invariances(seed=1)
    invariant = {
        "Batch norm": {"Weight matrix re-scaling", "Weight vector re-scaling", "Dataset re-scaling", "Dataset re-centering"},
        "Weight norm": {"Weight matrix re-scaling", "Weight vector re-scaling"},
        "Layer norm": {"Weight matrix re-scaling", "Weight matrix re-centering", "Dataset re-scaling", "Single case re-scaling"},
    }
    for method, moved in found.items():
        assert {change for change, distance in moved.items() if distance < 1e-9} == invariant[method]
        assert all(distance < 1e-9 or distance > 0.05 for _, distance in moved.items())


def test_batch_normalisation_of_the_lstm_is_torchs_at_every_step():
    torch.manual_seed(0)
    model, x = experiments.BatchNormLSTM(RecurrentConfig(5, 7), length=4), torch.randn(6, 4, 5)
    for bias in (model.bias, model.norm_cell.bias):
        nn.init.normal_(bias)
    outputs, _ = model(x)
    hidden, cell = torch.zeros(6, 7), torch.zeros(6, 7)

    def normal(part, summed):
        layer = nn.BatchNorm1d(summed.shape[1])
        layer.load_state_dict({"weight": part.gain, "bias": part.bias}, strict=False)
        return layer(summed)

    for step in range(4):
        summed = normal(model.norm_hidden, hidden @ model.hidden.weight.T) + normal(model.norm_input, x[:, step] @ model.input.weight.T)
        forget, write, read, new = (summed + model.bias).chunk(4, 1)
        cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
        hidden = read.sigmoid() * normal(model.norm_cell, cell).tanh()
        torch.testing.assert_close(outputs[:, step], hidden)
    assert model.norm_hidden.mean[1:].abs().sum(1).min() > 0  # statistics of every step; the first hidden state is 0
    before = model.norm_cell.mean.clone()
    model.eval()
    model(x)
    assert torch.equal(model.norm_cell.mean, before)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_every_model_learns_and_a_run_is_its_seeds(norm):
    try:
        plays()
    except MissingData as missing:
        pytest.skip(str(missing))
    first, second = (experiments.character_model(norm=norm, batch_size=4, d_model=16, length=10, steps=40, seed=3) for _ in range(2))
    assert first.as_dict() == second.as_dict()
    assert first.loss[-1] < first.loss[0] < 6
    run = experiments.digit_classifier(norm=norm, batch_size=128, epochs=2, seeds=(0,))
    assert run.loss[1] < run.loss[0]
    assert 0 < run.error[1] < 0.9


def test_what_the_pitfalls_show_follows_from_arithmetic():
    (scale,) = experiments.epsilon(scales=(1e-3,)).below
    assert scale == pytest.approx((1e-6 / (1e-6 + 1e-5)) ** 0.5, rel=0.01)
    assert experiments.unbiased(widths=(8,)).shrink[0] == pytest.approx(1 - (7 / 8) ** 0.5)
    moved = experiments.leak(seed=1)
    assert moved.C == 0
    assert min(moved["N and C"], moved.N) > 0.1


def test_the_digits_are_those_of_scikit_learn(tmp_path):
    images, labels = digits()
    assert images.shape == (1797, 64)
    assert labels.bincount().min() > 170
    assert (images.min(), images.max()) == (0, 1)
    pytest.importorskip("sklearn", reason="compares with scikit-learn's copy, which the project itself does not need")
    make(tmp_path / "digits.npz")
    assert (tmp_path / "digits.npz").read_bytes() == FILE.read_bytes()


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


def test_traffic_is_counted_by_the_formulas_of_the_kernel():
    found = {(bench.case, bench.sizes["C"]): bench for bench in benchmarks.benchmarks()}
    elements = 8192 * 1024
    assert found["forward", 1024].bytes == 2 * elements * 2
    assert found["add and forward", 1024].bytes == 4 * elements * 2
    assert found["backward", 1024].bytes == 3 * elements * 2
    assert found["backward", 16384].bytes == 5 * 4096 * 16384 * 2
