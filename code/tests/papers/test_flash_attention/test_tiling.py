"""The tiled loops against torch, and their count of memory accesses against what the algorithms say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rundoku.gpu.check import twice_rule
from rundoku.papers.attention_is_all_you_need import scaled_dot_product_attention
from rundoku.papers.flash_attention import absorb, allowed_pairs, attention_reference, finish, nothing_seen, tiled_attention
from rundoku.papers.flash_attention.tiling import (
    Memory,
    block_sizes,
    flash2_forward,
    flash_backward,
    flash_forward,
    standard_backward,
    standard_forward,
)


def inputs(*sizes: tuple[int, ...], dtype=torch.float64, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for size in sizes]


def with_grads(call, tensors, seed=1):
    out = call(*tensors)
    return out, *torch.autograd.grad(out, tensors, torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 197])
@pytest.mark.parametrize("causal", [False, True])
def test_tiled_is_torch(length, causal):
    tensors = inputs(*[(2, 3, length, 16)] * 3)
    ours = with_grads(lambda q, k, v: tiled_attention(q, k, v, causal, sram=1500), tensors)
    theirs = with_grads(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal), tensors)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 20), m=st.integers(1, 20), d=st.integers(1, 9), sram=st.integers(9, 300), causal=st.booleans())
def test_any_shape_and_any_tile(n, m, d, sram, causal):
    tensors = inputs((2, n, d), (2, m, d), (2, m, d))
    ours = with_grads(lambda q, k, v: tiled_attention(q, k, v, causal, sram=sram), tensors)
    mask = allowed_pairs(n, m, causal)
    theirs = with_grads(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), tensors)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    q, k, v = (x.detach() for x in tensors)
    out, lse = flash2_forward(q, k, v, sram, Memory(), causal)
    exact, exact_lse = attention_reference(q[:, None], k[:, None], v[:, None], causal=causal)
    torch.testing.assert_close(out, exact[:, 0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, exact_lse[:, 0], rtol=1e-10, atol=1e-12)


def test_rows_without_a_key_give_zeros_and_zero_gradients():
    tensors = inputs((1, 9, 8), (1, 4, 8), (1, 4, 8))
    out, *grads = with_grads(lambda q, k, v: tiled_attention(q, k, v, causal=True, sram=64), tensors)
    assert (out[:, :5] == 0).all() and (out[:, 5:] != 0).any()
    assert all(grad.isfinite().all() for grad in grads) and (grads[0][:, :5] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_twice_rule(dtype):
    tensors = inputs(*[(1, 2, 65, 32)] * 3, dtype=dtype)
    ours = with_grads(lambda q, k, v: tiled_attention(q, k, v, sram=2048), tensors)
    plain = with_grads(lambda q, k, v: attention_reference(q, k, v, upcast=False)[0], tensors)
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    exact = torch.nn.functional.scaled_dot_product_attention(*doubles)
    gradient = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype).double()
    for a, b, c in zip(ours, plain, (exact, *torch.autograd.grad(exact, doubles, gradient)), strict=True):
        assert twice_rule(a, b, c) is None


def test_shapes_that_do_not_fit_are_named():
    q, k = torch.zeros(2, 5, 8), torch.zeros(2, 6, 8)
    with pytest.raises(ValueError, match=r"value \(2, 5, 8\)"):
        tiled_attention(q, k, q)
    with pytest.raises(ValueError, match="sram: 4 elements"):
        tiled_attention(q, k, k, sram=4)


def test_absorbing_blocks_is_the_softmax_of_all():
    scores, value = torch.randn(3, 12, dtype=torch.float64) * 50, torch.randn(12, 4, dtype=torch.float64)
    seen = nothing_seen(torch.zeros(3, 4, dtype=torch.float64), 4)
    for block in (slice(0, 1), slice(1, 8), slice(8, 12)):
        seen = absorb(seen, scores[:, block], value[block])
    out, lse = finish(seen)
    torch.testing.assert_close(out, torch.softmax(scores, -1) @ value)
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1))


def test_the_count_is_that_of_the_algorithms():
    n, d, sram = 96, 8, 256
    rows, columns = block_sizes(sram, d)
    assert (rows, columns) == (8, 8) and block_sizes(sram, 16) == (4, 4) and block_sizes(8 * sram, d) == (8, 64)
    q, k, v = (x.detach() for x in inputs(*[(n, d)] * 3))
    passes = n // columns
    memory = Memory()
    out, total, peak = flash_forward(q, k, v, sram, memory)
    assert memory.loaded == 2 * n * d + passes * (2 * n * d + 2 * n)  # K and V once; Q, O, ℓ and m once a block of keys
    assert memory.stored == (n * d + 2 * n) * (1 + passes)  # set to zero, then written once a block of keys
    assert memory.bytes == 8 * memory.accesses

    memory = Memory()
    flash_backward(q, q, k, v, out, total, peak, sram, memory)
    assert memory.loaded == 2 * n * d + passes * (4 * n * d + 2 * n) and memory.stored == 3 * n * d + passes * n * d + 2 * n * d

    memory = Memory()
    flash2_forward(q, k, v, sram, memory)
    assert memory.loaded == n * d + passes * 2 * n * d and memory.stored == n * d + n  # Q, O and L once, K and V once a block of queries

    memory = Memory()
    out, saved = standard_forward(q, k, v, memory)
    assert memory.accesses == 4 * n * n + 4 * n * d
    memory = Memory()
    standard_backward(q, q, k, v, saved, memory)
    assert memory.accesses == 7 * n * n + 8 * n * d


def test_counting_needs_no_numbers():
    counts = []
    for device in ("cpu", "meta"):
        q, k, v = (torch.zeros(2, 40, 8, dtype=torch.float16, device=device) for _ in range(3))
        memory = Memory()
        flash_backward(q, q, k, v, *flash_forward(q, k, v, 200, memory), 200, memory)
        counts.append((memory.loaded, memory.stored, memory.bytes))
    assert counts[0] == counts[1]


def test_standard_attention_with_mask_and_dropout():
    q, k, v = inputs(*[(2, 9, 4)] * 3)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    torch.manual_seed(0)
    out, saved = standard_forward(q.detach(), k.detach(), v.detach(), Memory(), mask, dropout=0.25)
    assert saved.keep is not None and not saved.keep.all()
    kept = saved.keep / 0.75  # the same dropout, differentiated by autograd
    scores = (q @ k.mT / 2).masked_fill(~mask, -math.inf)
    expected = (torch.softmax(scores, -1) * kept) @ v
    torch.testing.assert_close(out, expected.detach())
    grads = standard_backward(torch.ones_like(out), q.detach(), k.detach(), v.detach(), saved, Memory(), dropout=0.25)
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_mask_is_aligned_bottom_right():
    assert allowed_pairs(2, 5, causal=True).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert allowed_pairs(5, 2, causal=True).int().tolist() == [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]]
    assert allowed_pairs(3, 3, window_size=(1, 0)).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
