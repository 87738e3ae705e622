"""RMSNorm against torch's own, against transformers' and against the paper's formulas written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rundoku.papers.layer_norm import layer_norm
from rundoku.papers.rms_norm import RMSNorm, rms_norm
from rundoku.papers.rms_norm.norm import units

SEEDS = st.integers(0, 2**31)
EPS = st.sampled_from([1e-12, 1e-6, 1e-5, 0.1])
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def results(norm, x, weight, target):
    """Return a norm's output and the gradients of its input and gain."""
    x, weight = leaves(x, weight)
    y = norm(x, weight)
    return [y, *torch.autograd.grad((y - target).square().sum(), (x, weight))]


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), eps=EPS, seed=SEEDS)
def test_values_and_gradients_are_those_of_torch(shape, eps, seed):
    torch.manual_seed(seed)
    x, target = torch.randn(2, *shape, dtype=torch.float64) * 3 + 1
    ours, theirs = RMSNorm(shape[-1], eps).double(), nn.RMSNorm(shape[-1], eps, dtype=torch.float64)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for module in (ours, theirs):
        (own,) = leaves(x)
        result = module(own)
        (result - target).square().sum().backward()
        found.append([result, own.grad, module.weight.grad])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(rms_norm(x, eps=eps), F.rms_norm(x, x.shape[-1:], eps=eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_as_exact_as_torchs_in_float32(dtype):
    torch.manual_seed(0)
    x, weight, target = (
        (300 * torch.randn(40, 96)).to(dtype),
        torch.randn(96).to(dtype),
        torch.randn(40, 96).to(dtype),
    )  # x² overflows float16
    exact = results(lambda x, weight: rms_norm(x, weight), x.double(), weight.double(), target.double())
    found = results(rms_norm, x, weight, target)
    rounded = [tensor.to(dtype) for tensor in exact]  # as near as the dtype can come
    assert {tensor.dtype for tensor in found} == {dtype}
    for ours, best, truth in zip(found, rounded, exact, strict=True):
        assert (ours - truth).abs().max() <= 3 * (best - truth).abs().max() + 1e-6 * truth.abs().max()


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 80), eps=EPS, dtype=st.sampled_from(DTYPES), seed=SEEDS)
def test_values_are_those_of_transformers(width, eps, dtype, seed):
    llama = pytest.importorskip(
        "transformers.models.llama.modeling_llama", reason="compares with transformers, which the tests' group brings"
    )
    torch.manual_seed(seed)
    theirs, x = llama.LlamaRMSNorm(width, eps).to(dtype), (3 * torch.randn(5, width)).to(dtype)
    torch.testing.assert_close(rms_norm(x, None, eps), theirs(x), rtol=0, atol=0)  # with a gain of 1 there is one rounding in both
    nn.init.normal_(theirs.weight)
    step = torch.finfo(dtype).eps  # with another gain theirs rounds twice
    torch.testing.assert_close(rms_norm(x, theirs.weight, eps), theirs(x), rtol=2 * step, atol=0)


@settings(deadline=None)
@given(width=st.integers(1, 40), partial=st.floats(0.01, 1), eps=EPS, seed=SEEDS)
def test_the_partial_norm_is_the_papers_formula(width, partial, eps, seed):
    torch.manual_seed(seed)
    x, module = torch.randn(3, width, dtype=torch.float64), RMSNorm(width, eps, partial).double()
    nn.init.normal_(module.weight)
    k = units(width, partial)
    assert 1 <= k <= width
    written_out = torch.stack([row / math.sqrt(sum(value**2 for value in row[:k].tolist()) / k + eps) * module.weight for row in x])
    torch.testing.assert_close(module(x), written_out)


def test_the_share_is_rounded_up():
    assert [units(100, share) for share in (0.0625, 0.07, 0.001, 1.0)] == [7, 7, 1, 100]
    assert [units(64, share) for share in (0.0625, 0.1, 0.5)] == [4, 7, 32]


def test_without_gain_the_root_mean_square_is_1_and_zeros_stay_zeros():
    normal = rms_norm(torch.randn(5, 7, 64, dtype=torch.float64) * 4 - 9, eps=1e-12)
    torch.testing.assert_close(normal.square().mean(-1), torch.ones(5, 7, dtype=torch.float64))
    (x,) = leaves(torch.zeros(2, 8))
    result = rms_norm(x, torch.full((8,), 3.0))
    result.sum().backward()
    assert torch.equal(result, torch.zeros(2, 8))
    assert x.grad.isfinite().all()


def test_of_a_row_with_mean_0_it_is_layer_normalisation():
    torch.manual_seed(0)
    x, weight = torch.randn(6, 32, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    x -= x.mean(-1, keepdim=True)
    torch.testing.assert_close(rms_norm(x, weight, eps=1e-5), layer_norm(x, weight, eps=1e-5))


@pytest.mark.parametrize("partial", [1.0, 0.4])
def test_gradcheck(partial):
    x, weight = leaves(torch.randn(3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, partial=partial), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, weight: rms_norm(x, weight, partial=partial), (x, weight))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4)), r"weight: got shape \(4,\), expected \(3,\)"),
        ((torch.ones(2, 3), torch.ones(1)), r"weight: got shape \(1,\), expected \(3,\)"),
        ((torch.ones(2, 3, dtype=torch.int64),), "x: got torch.int64"),
        ((torch.tensor(1.0),), r"x: got .* of shape \(\)"),
        ((torch.ones(2, 0),), "with C at least 1"),
        ((torch.ones(2, 3), None, 1e-6, 0.0), "partial: got 0.0, expected a share above 0 and at most 1"),
        ((torch.ones(2, 3), None, 1e-6, 6.25), "partial: got 6.25"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(*arguments)


def test_bad_arguments_of_the_module_are_named():
    with pytest.raises(ValueError, match="d_model: got 0"):
        RMSNorm(0)
    with pytest.raises(ValueError, match="partial: got -1"):
        RMSNorm(4, partial=-1.0)
    assert repr(RMSNorm(4)) == "RMSNorm(4, eps=1e-06)"
    assert repr(RMSNorm(4, partial=0.5)) == "RMSNorm(4, eps=1e-06, partial=0.5)"
