"""The kernel's place in torch: what it refuses, how it is registered, and that its reference is differentiated rightly."""

import pytest
import torch

from rundoku.gpu.launch import INTERPRETED
from rundoku.papers.flash_attention import attention_reference, flash_attention

DEVICE = "cpu" if INTERPRETED else "cuda"


def tensors(*sizes, dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*size, dtype=torch.float64, generator=generator).to(DEVICE, dtype).requires_grad_(grad) for size in sizes]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": torch.zeros(2, 4, 8)}, r"query: got a tensor of shape \(2, 4, 8\).*expected the shape \[B, H, N, D\]"),
        ({"query": torch.zeros(1, 4, 8, 48)}, r"query: .*\(1, 4, 8, 48\).*expected a head width D .*\(16, 32, 64, 128\)"),
        ({"query": torch.zeros(1, 4, 8, 16, dtype=torch.float64)}, "query: .*float64.*expected one of torch.float16"),
        ({"query": [1.0]}, "query: got .*expected a dense torch.Tensor"),
        ({"key": torch.zeros(1, 3, 8, 16)}, "key: .*expected a number of heads G .* divides the query's 4"),
        ({"key": torch.zeros(1, 0, 8, 16)}, "key: .*expected a number of heads G"),
        ({"key": torch.zeros(2, 2, 8, 16)}, r"key: .*expected the shape \[1, G, M, 16\]"),
        ({"key": torch.zeros(1, 2, 8, 16, dtype=torch.float16)}, "key: .*expected one of torch.float32"),
        ({"value": torch.zeros(1, 2, 9, 16)}, r"value: .*expected the key's shape \(1, 2, 8, 16\)"),
        ({"alibi_slopes": torch.zeros(3)}, r"alibi_slopes: .*expected the shape \(4,\) or \(1, 4\)"),
        ({"alibi_slopes": torch.zeros(4, dtype=torch.float16)}, "alibi_slopes: .*expected one of torch.float32"),
        ({"alibi_slopes": torch.zeros(4, requires_grad=True)}, "alibi_slopes: .*constants"),
        ({"window_size": (3, -2)}, r"window_size: got \(3, -2\)"),
        ({"window_size": (3,)}, r"window_size: got \(3,\)"),
        ({"softcap": -1.0}, "softcap: got -1.0"),
        ({"softmax_scale": float("nan")}, "softmax_scale: got nan"),
    ],
)
def test_what_it_refuses(change, message):
    arguments = {"query": torch.zeros(1, 4, 8, 16), "key": torch.zeros(1, 2, 8, 16), "value": torch.zeros(1, 2, 8, 16), **change}
    arguments = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) and not x.requires_grad else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        flash_attention(**arguments)


@pytest.mark.skipif(not INTERPRETED, reason="bfloat16 is refused by the interpreter only")
def test_bfloat16_is_refused_by_the_interpreter():
    x = torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"query: .*bfloat16.*interpreter computes bfloat16 wrongly"):
        flash_attention(x, x, x)


@pytest.mark.parametrize("slopes", [None, torch.tensor([0.5, 0.25])])
def test_opcheck(slopes):
    q, k, v = tensors((2, 2, 9, 16), (2, 1, 12, 16), (2, 1, 12, 16))
    slopes = None if slopes is None else slopes.to(DEVICE)
    torch.library.opcheck(torch.ops.rundoku.flash_attention.default, (q, k, v, slopes, 3, 0, 0.25, 2.0))
    out, lse = torch.ops.rundoku.flash_attention(q, k, v, slopes, 3, 0, 0.25, 2.0)
    saved = [x.detach() for x in (torch.randn_like(out), torch.randn_like(lse), q, k, v)]
    arguments = (*saved, slopes, out.detach(), lse.detach(), 3, 0, 0.25, 2.0)
    torch.library.opcheck(torch.ops.rundoku.flash_attention_backward.default, arguments)


def test_compiled_is_the_same():
    q, k, v = tensors((1, 2, 20, 16), (1, 1, 24, 16), (1, 1, 24, 16))

    def layer(q, k, v):
        return flash_attention(q * 2, k, v, causal=True, window_size=(7, -1)).tanh()

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    out, expected = compiled(q, k, v), layer(q, k, v)
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("flags", [{}, {"causal": True, "softcap": 1.5}, {"window_size": (2, 1)}, {"alibi": True, "causal": True}])
def test_gradcheck_of_the_reference(flags):
    q, k, v = tensors((1, 2, 5, 4), (1, 1, 3, 4), (1, 1, 3, 4), dtype=torch.float64)
    slopes = torch.tensor([0.3, 0.7], dtype=torch.float64, device=DEVICE, requires_grad=True) if flags.pop("alibi", False) else None

    def call(*inputs):
        out, lse = attention_reference(*inputs, **flags)
        return out, lse.masked_fill(lse == -float("inf"), 0.0)

    assert torch.autograd.gradcheck(call, (q, k, v) if slopes is None else (q, k, v, slopes))


def test_the_reference_is_torch():
    q, k, v = tensors((2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8), dtype=torch.float64)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attention_reference(q, k, v, causal=True)[0], theirs)
    half = [x.detach().half() for x in (q, k, v)]
    upcast, plain = attention_reference(*half)[0], attention_reference(*half, upcast=False)[0]
    exact = attention_reference(*(x.double() for x in half))[0]
    assert upcast.dtype == plain.dtype == torch.float16
    assert (upcast - exact).abs().max() < (plain - exact).abs().max()


def test_it_is_differentiable_once():
    q, k, v = tensors(*[(1, 1, 4, 16)] * 3)
    (grad,) = torch.autograd.grad(flash_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), q)
