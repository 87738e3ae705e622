"""The kernel against float64, in every mode; without a GPU by Triton's interpreter, so the sizes are small."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rundoku.gpu.launch import INTERPRETED, Config
from rundoku.papers.flash_attention import attention_reference, flash_attention
from rundoku.papers.flash_attention import kernel as module
from rundoku.papers.flash_attention import kernel_operators as operators

DEVICE = "cpu" if INTERPRETED else "cuda"


@dataclasses.dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int


@pytest.fixture(scope="session")
def compare(hold, surrounded):
    """Return a function that holds out, lse and every gradient to the 2× rule, and returns out."""

    def compare(shape: Shape, dtype=torch.float32, slopes: str | None = None, seed=0, use_lse=True, **flags) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        b, h, g, n, m, d = dataclasses.astuple(shape)
        tensors = [surrounded(size, dtype, generator) for size in ((b, h, n, d), (b, g, m, d), (b, g, m, d))]
        slope = {None: None, "head": torch.rand(h, generator=generator), "batch": torch.rand(b, h, generator=generator)}[slopes]
        slope = None if slope is None else slope.to(DEVICE)
        grad_out, grad_lse = (torch.randn(size, generator=generator) for size in ((b, h, n, d), (b, h, n)))
        return hold(
            tensors,
            (grad_out, grad_lse if use_lse else None),
            ours=lambda q, k, v: flash_attention(q, k, v, slope, return_lse=True, **flags),
            plain=lambda q, k, v: attention_reference(q, k, v, slope, upcast=False, **flags),
            exact=lambda q, k, v: attention_reference(q, k, v, None if slope is None else slope.double(), **flags),
        )[0]

    return compare


@pytest.mark.parametrize("length", [1, 63, 64, 65, 197])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(compare, length, causal):
    compare(Shape(1, 1, 1, length, length, 16), causal=causal)


@pytest.mark.parametrize("width", module.HEAD_WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_widths_and_dtypes(compare, width, dtype):
    compare(Shape(1, 2, 2, 40, 40, width), dtype, causal=True)


@pytest.mark.skipif(INTERPRETED, reason="bfloat16 arithmetic is wrong in Triton's interpreter; this needs a GPU")
@pytest.mark.parametrize("width", module.HEAD_WIDTHS)
def test_bfloat16(compare, width):
    compare(Shape(2, 4, 2, 257, 300, width), torch.bfloat16, causal=True)


@pytest.mark.parametrize("queries, keys", [(5, 70), (70, 5), (1, 50), (64, 65)])
@pytest.mark.parametrize("causal", [False, True])
def test_unequal_lengths(compare, queries, keys, causal):
    out = compare(Shape(1, 2, 1, queries, keys, 16), causal=causal)
    if causal and queries > keys:  # the first queries stand before every key
        assert (out[:, :, : queries - keys] == 0).all() and (out[:, :, queries - keys :] != 0).any()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads(compare, kv_heads):
    compare(Shape(2, 4, kv_heads, 33, 47, 16), causal=True)


@pytest.mark.parametrize("window", [(0, 0), (20, -1), (-1, 9), (17, 3), (300, 300), (3, 40)])
@pytest.mark.parametrize("queries, keys", [(70, 90), (90, 70)])
def test_windows(compare, window, queries, keys):
    compare(Shape(1, 1, 1, queries, keys, 16), window_size=window)


def test_a_causal_window(compare):
    compare(Shape(1, 1, 1, 97, 97, 16), causal=True, window_size=(21, 50))


@pytest.mark.parametrize("slopes", ["head", "batch"])
@pytest.mark.parametrize("causal", [False, True])
def test_alibi(compare, slopes, causal):
    compare(Shape(2, 3, 1, 40, 66, 16), slopes=slopes, causal=causal)


@pytest.mark.parametrize("softcap", [0.5, 3.0, 50.0])
def test_softcap(compare, softcap):
    compare(Shape(1, 2, 2, 40, 50, 16), softcap=softcap, softmax_scale=1.0)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_scale(compare, scale):
    compare(Shape(1, 1, 1, 40, 40, 16), softmax_scale=scale)


def test_everything_at_once(compare):
    flags = {"window_size": (30, 2), "softcap": 4.0, "softmax_scale": 0.4}
    compare(Shape(2, 2, 1, 65, 97, 32), torch.float16, slopes="batch", causal=True, **flags)
    compare(Shape(2, 2, 1, 97, 65, 32), slopes="head", use_lse=False, **flags)


@settings(max_examples=12, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))  # to shrink would take minutes
@given(
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]), queries=st.integers(1, 40), keys=st.integers(1, 40), causal=st.booleans(),
    window=st.tuples(st.integers(-1, 30), st.integers(-1, 30)), slopes=st.sampled_from([None, "head"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(compare, heads, queries, keys, causal, window, slopes, seed):
    compare(Shape(1, *heads, queries, keys, 16), slopes=slopes, seed=seed, window_size=window, causal=causal)


@pytest.mark.parametrize("tiles", [(16, 16), (16, 64), (64, 16), (64, 64)])
def test_any_tile(compare, monkeypatch, tiles):
    config = Config({"BLOCK_N": tiles[0], "BLOCK_M": tiles[1]}, num_warps=4, num_stages=1)
    monkeypatch.setattr(operators, "config_for", lambda *use: config)
    compare(Shape(1, 2, 1, 65, 97, 16), causal=True, window_size=(40, -1))


@pytest.mark.parametrize("shape", [Shape(0, 2, 1, 5, 5, 16), Shape(2, 2, 1, 0, 5, 16), Shape(2, 2, 1, 5, 0, 16), Shape(1, 1, 1, 1, 1, 128)])
def test_nothing_or_one_token(compare, shape):
    out = compare(shape, causal=True)
    assert out.shape == (shape.batch, shape.heads, shape.queries, shape.width)


def test_layouts():
    """Heads behind tokens, a slice of a fused projection, a broadcast batch, and D not innermost: the result is that of copies."""
    fused = torch.randn(2, 37, 3, 4, 16, device=DEVICE)  # [B, N, (q, k, v), H, D]
    across = torch.randn(2, 4, 16, 37, device=DEVICE).transpose(-1, -2)
    shared = torch.randn(1, 4, 37, 16, device=DEVICE).expand(2, -1, -1, -1)
    q, k, v = (part.transpose(1, 2) for part in fused.unbind(2))
    for tensors in ((q, k, v), (across, k, shared), (shared, across, across)):
        leaves = [x.detach().requires_grad_() for x in tensors]
        copies = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in tensors]
        out, expected = flash_attention(*leaves, causal=True), flash_attention(*copies, causal=True)
        assert torch.equal(out, expected)
        grads = torch.autograd.grad(out.sum(), leaves)  # the gradient of a sum is expanded: its strides are zero
        for a, b in zip(grads, torch.autograd.grad(expected.sum(), copies), strict=True):
            assert torch.equal(a, b)
    tokens_first = flash_attention(q, k, v).transpose(1, 2)
    assert q.is_contiguous() is False and tokens_first.is_contiguous()  # ready for the output projection without a copy


def test_only_lse():
    q, k, v = (torch.randn(1, 1, 20, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    ours = torch.autograd.grad(flash_attention(q, k, v, return_lse=True)[1].sum(), (q, k, v))
    exact = torch.autograd.grad(attention_reference(q, k, v)[1].sum(), (q, k))
    for a, b in zip(ours, (*exact, torch.zeros_like(v)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_bits_twice():
    q, k, v = (torch.randn(2, 4, 70, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    runs = [(out := flash_attention(q, k, v, causal=True), *torch.autograd.grad(out.sum(), (q, k, v))) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_large_scores_do_not_overflow():
    q, k, v = (torch.randn(1, 1, 40, 16, device=DEVICE) for _ in range(3))
    out = flash_attention(q * 300, k * 300, v)
    assert out.isfinite().all()
    torch.testing.assert_close(out, attention_reference(q * 300, k * 300, v)[0], rtol=1e-3, atol=1e-3)


def test_slopes_that_reward_distance():
    """Scores then grow to where exp overflows, in the rows past the last query too: nothing of these may reach a gradient."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 1, n, 16, generator=generator).to(DEVICE).requires_grad_() for n in (5, 70, 70)]
    slopes = torch.tensor([-5.0], device=DEVICE)
    ours, theirs = flash_attention(*tensors, slopes), attention_reference(*tensors, slopes)[0]
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours.sum(), tensors), torch.autograd.grad(theirs.sum(), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # a score of 350 is rounded to 3e-5
