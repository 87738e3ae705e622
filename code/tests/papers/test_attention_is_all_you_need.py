"""Attention against torch's: values, gradients, masks of both kinds, rows with nothing to attend to."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rundoku.papers.attention_is_all_you_need import MultiHeadAttention, attention_weights, causal_mask, scaled_dot_product_attention

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad((output * draw(*output.shape, seed=99)).sum(), inputs, retain_graph=True))


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Give `ours` the weights of `theirs`, whose three input projections are stacked in one matrix."""
    with torch.no_grad():
        for i, part in enumerate((ours.query, ours.key, ours.value)):
            part.weight.copy_(theirs.in_proj_weight.chunk(3)[i])
            if part.bias is not None:
                part.bias.copy_(theirs.in_proj_bias.chunk(3)[i])
        ours.output.load_state_dict(theirs.out_proj.state_dict())


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3), heads=st.integers(1, 3), n=st.integers(1, 9), m=st.integers(1, 9), width=st.integers(1, 8),
    value_width=st.integers(1, 8), mask=st.sampled_from(["none", "bool", "float"]), scale=st.sampled_from([None, 1.0, 0.3]),
)  # fmt: skip
def test_attention_is_torchs(batch, heads, n, m, width, value_width, mask, scale):
    inputs = [draw(batch, heads, n, width, seed=1), draw(batch, heads, m, width, seed=2), draw(batch, heads, m, value_width, seed=3)]
    for x in inputs:
        x.requires_grad_()
    allowed = draw(batch, 1, n, m, seed=4) > 0
    attn_mask = {"none": None, "bool": allowed, "float": torch.where(allowed, draw(n, m, seed=5), -math.inf)}[mask]
    ours = scaled_dot_product_attention(*inputs, attn_mask=attn_mask, scale=scale)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        theirs = F.scaled_dot_product_attention(*inputs, attn_mask=attn_mask, scale=scale)
        their_gradients = gradients(theirs, inputs)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, inputs), their_gradients):
        torch.testing.assert_close(mine, other)


def test_gradcheck_with_a_fully_masked_row():
    inputs = [draw(1, 2, 3, 4, seed=s).requires_grad_() for s in (1, 2, 3)]
    allowed = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda q, k, v: scaled_dot_product_attention(q, k, v, allowed), inputs)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_fully_masked_rows_give_zeros_and_no_nan_gradient(kind):
    inputs = [draw(2, 5, 4, seed=s).requires_grad_() for s in (1, 2, 3)]
    allowed = causal_mask(5)
    allowed[0] = False
    mask = allowed if kind == "bool" else torch.zeros(5, 5, dtype=F64).masked_fill(~allowed, -math.inf)
    output = scaled_dot_product_attention(*inputs, mask)
    assert (output[:, 0] == 0).all() and (output[:, 1:] != 0).all()
    grads = gradients(output, inputs)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][:, 0] == 0).all()  # the query of an empty row decides nothing


def test_weights_sum_to_one_and_vanish_where_masked():
    allowed = causal_mask(7)
    weights = attention_weights(draw(3, 7, 4), draw(3, 7, 4, seed=1), allowed)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 7, dtype=F64))
    assert (weights[:, ~allowed] == 0).all() and (weights[:, allowed] > 0).all()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("kind", ["boolean", "floating"])
def test_an_empty_row_makes_no_nan_on_the_way_back_either(kind):
    query, key, value = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[False, False, False], [True, False, False], [True, True, True]])
    attn_mask = mask if kind == "boolean" else torch.zeros(3, 3).masked_fill(~mask, -torch.inf)
    with torch.autograd.detect_anomaly():  # raises for a NaN that a later step would hide
        scaled_dot_product_attention(query, key, value, attn_mask).sum().backward()


def test_causal_mask_hides_the_future_only():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.booleans(), st.booleans())
def test_multi_head_attention_is_torchs(n_heads, width, n, m, bias, masked):
    torch.manual_seed(n_heads * 100 + width)
    theirs = nn.MultiheadAttention(n_heads * width, n_heads, bias=bias, batch_first=True, dtype=F64)
    ours = MultiHeadAttention(n_heads * width, n_heads, bias=bias).double()
    copy_attention(ours, theirs)
    inputs = [draw(2, length, n_heads * width, seed=s).requires_grad_() for s, length in ((1, n), (2, m), (3, m))]
    blocked = draw(n, m, seed=4) > 0.5
    blocked[:, 0] = False
    mine = ours(*inputs, attn_mask=~blocked if masked else None)
    # torch's module reads a boolean mask the other way round: True = blocked
    their, their_weights = theirs(*inputs, attn_mask=blocked if masked else None, average_attn_weights=False)
    torch.testing.assert_close(mine, their)
    torch.testing.assert_close(ours.weights(inputs[0], inputs[1], ~blocked if masked else None), their_weights)
    parameters = [ours.query.weight, ours.key.weight, ours.value.weight]
    for a, b in zip(gradients(mine, inputs), gradients(their, inputs)):
        torch.testing.assert_close(a, b)
    stacked = torch.cat(gradients(mine, parameters))
    torch.testing.assert_close(stacked, gradients(their, [theirs.in_proj_weight])[0])


def test_head_widths_of_table_3_b():
    attention = MultiHeadAttention(32, 4, d_k=3, d_v=5)
    assert attention.query.weight.shape == attention.key.weight.shape == (12, 32)
    assert attention.value.weight.shape == (20, 32) and attention.output.weight.shape == (32, 20)
    assert attention(torch.zeros(2, 6, 32), torch.zeros(2, 7, 32), torch.zeros(2, 7, 32)).shape == (2, 6, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaled_dot_product_attention(draw(1, 2, 3), draw(1, 2, 4), draw(1, 2, 4)), "key: its last axis is 4"),
        (lambda: scaled_dot_product_attention(draw(1, 2, 3), draw(1, 2, 3), draw(1, 5, 3)), "value: its length is 5"),
        (
            lambda: scaled_dot_product_attention(draw(2, 3), draw(2, 3), draw(2, 3), torch.ones(2, 2, dtype=torch.long)),
            "attn_mask: its dtype",
        ),
        (lambda: MultiHeadAttention(10, 3), "n_heads: 3 does not divide"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
