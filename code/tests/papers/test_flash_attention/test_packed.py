"""The packed form: every sequence as if it were alone, forward and backward; offsets that it refuses."""

import itertools

import pytest
import torch

from rundoku.gpu.launch import INTERPRETED
from rundoku.papers.flash_attention import attention_reference, flash_attention, flash_attention_varlen

DEVICE = "cpu" if INTERPRETED else "cuda"


def offsets(lengths) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def one_by_one(call, query, key, value, queries, keys):
    """Return call(b, [1, H, N, D], [1, G, M, D], …) of every sequence b, packed as the packed form returns it."""
    parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    outs, lses = zip(*(call(b, *(x.transpose(0, 1)[None] for x in part)) for b, part in enumerate(parts)), strict=True)
    return torch.cat([out[0].transpose(0, 1) for out in outs]), torch.cat([lse[0] for lse in lses], dim=1)


@pytest.fixture(scope="session")
def compare(hold, surrounded):
    """Return a function that holds out, lse and every gradient to the 2× rule, against the reference sequence by sequence."""

    def compare(queries, keys, heads=2, kv_heads=1, width=16, dtype=torch.float32, slopes=None, seed=0, **flags) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        t, s = sum(queries), sum(keys)
        tensors = [surrounded(size, dtype, generator) for size in ((t, heads, width), (s, kv_heads, width), (s, kv_heads, width))]
        slope = {None: None, "head": torch.rand(heads, generator=generator), "batch": torch.rand(len(queries), heads, generator=generator)}
        slope = None if slopes is None else slope[slopes].to(DEVICE)

        def ours(q, k, v):
            lengths = (offsets(queries), offsets(keys), max(queries), max(keys))
            return flash_attention_varlen(q, k, v, *lengths, slope, return_lse=True, **flags)

        def reference(upcast):
            def call(b, q, k, v):
                own = None if slope is None else (slope if slope.ndim == 1 else slope[b : b + 1]).to(q.dtype if upcast else slope.dtype)
                return attention_reference(q, k, v, own, upcast=upcast, **flags)

            return lambda q, k, v: one_by_one(call, q, k, v, queries, keys)

        grads = (torch.randn(t, heads, width, generator=generator), torch.randn(heads, t, generator=generator))
        return hold(tensors, grads, ours, plain=reference(False), exact=reference(True))[0]

    return compare


RAGGED = [1, 63, 0, 64, 65, 5]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [RAGGED, RAGGED[::-1]])
def test_ragged_lengths(compare, causal, keys):
    out = compare(RAGGED, keys, causal=causal)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_option_at_once(compare, dtype):
    flags = {"window_size": (30, 2), "softcap": 4.0, "softmax_scale": 0.4, "slopes": "batch"}
    compare([33, 0, 7, 40], [21, 9, 0, 70], heads=4, kv_heads=2, dtype=dtype, causal=True, **flags)
    compare([5, 40], [50, 3], heads=3, kv_heads=3, width=64, dtype=dtype, **{**flags, "slopes": "head"})


@pytest.mark.skipif(INTERPRETED, reason="bfloat16 arithmetic is wrong in Triton's interpreter; this needs a GPU")
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_bfloat16(compare, width):
    compare([257, 0, 1, 130], [300, 5, 0, 1023], heads=4, kv_heads=2, width=width, dtype=torch.bfloat16, causal=True)


def test_a_long_sequence_between_short_ones(compare):
    compare([1, 1023, 2], [3, 197, 1], heads=1, causal=True, window_size=(100, -1))


@pytest.mark.parametrize("queries, keys", [([0, 0], [3, 4]), ([3, 4], [0, 0]), ([0], [0]), ([1], [1])])
def test_nothing_or_one_token(compare, queries, keys):
    out = compare(queries, keys)
    assert sum(keys) or (out == 0).all()


def test_no_sequence_at_all():
    empty = [torch.zeros(0, heads, 16, device=DEVICE, requires_grad=True) for heads in (2, 1, 1)]
    out, lse = flash_attention_varlen(*empty, offsets([]), offsets([]), 0, 0, return_lse=True)
    assert out.shape == (0, 2, 16) and lse.shape == (2, 0)
    assert all(grad.shape == x.shape for grad, x in zip(torch.autograd.grad(out.sum(), empty), empty, strict=True))


def run(queries, keys, tensors, grad, **flags):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = flash_attention_varlen(*leaves, offsets(queries), offsets(keys), max(queries), max(keys), return_lse=True, **flags)
    return out, lse.T, *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize("flags", [{}, {"causal": True}, {"window_size": (9, 9), "softcap": 2.0}])
def test_nan_in_the_neighbours_changes_no_bit(flags):
    queries, keys = [20, 35, 18], [17, 37, 40]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(sum(n), heads, 16, generator=generator).to(DEVICE) for n, heads in ((queries, 2), (keys, 1), (keys, 1))]
    grad = torch.randn(tensors[0].shape, generator=generator).to(DEVICE)
    expected = run(queries, keys, tensors, grad, **flags)
    inside = [torch.arange(sum(n), device=DEVICE) for n in (queries, keys)]
    inside = [(at >= n[0]) & (at < n[0] + n[1]) for at, n in zip(inside, (queries, keys), strict=True)]
    poisoned = [x.masked_fill(~own[:, None, None], float("nan")) for x, own in zip((*tensors, grad), [*inside, inside[1], inside[0]])]
    found = run(queries, keys, poisoned[:3], poisoned[3], **flags)
    for a, b, own in zip(found, expected, (inside[0], inside[0], *inside, inside[1]), strict=True):
        assert torch.equal(a[own], b[own]) and a[~own].isnan().any()


def test_equal_lengths_are_the_fixed_form_bit_for_bit():
    """In float32, where no target has another configuration for packed sequences."""
    generator = torch.Generator().manual_seed(0)
    fixed = [torch.randn(3, heads, n, 32, generator=generator).to(DEVICE).requires_grad_() for heads, n in ((4, 37), (2, 45), (2, 45))]
    slopes = torch.rand(3, 4, generator=generator).to(DEVICE)
    flags = {"causal": True, "window_size": (20, -1), "softcap": 3.0}
    out, lse = flash_attention(*fixed, slopes, return_lse=True, **flags)
    packed = [x.detach().transpose(1, 2).flatten(0, 1).requires_grad_() for x in fixed]  # [B·N, H, D]
    ours, own_lse = flash_attention_varlen(
        *packed, offsets([37] * 3), offsets([45] * 3), 64, 100, slopes, return_lse=True, **flags
    )  # bounds above
    assert torch.equal(ours.unflatten(0, (3, 37)).transpose(1, 2), out)
    assert torch.equal(own_lse.unflatten(1, (3, 37)).transpose(0, 1), lse)
    grads = torch.autograd.grad(ours.square().sum(), packed)
    for a, b in zip(grads, torch.autograd.grad(out.square().sum(), fixed), strict=True):
        assert torch.equal(a.unflatten(0, (3, -1)).transpose(1, 2), b)


def test_torch_sequence_by_sequence():
    lengths, generator = [9, 33, 1], torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 16, generator=generator).to(DEVICE) for heads in (4, 2, 2))

    def theirs(b, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), q.new_zeros(q.shape[:3])

    ours = flash_attention_varlen(q, k, v, offsets(lengths), offsets(lengths), 33, 33, causal=True)
    torch.testing.assert_close(ours, one_by_one(theirs, q, k, v, lengths, lengths)[0])


def test_layouts():
    """A slice of a fused projection, tokens behind heads, and every second offset of a longer list: the result is that of copies."""
    fused = torch.randn(50, 3, 4, 16, device=DEVICE)  # [T, (q, k, v), H, D]
    across = torch.randn(4, 16, 50, device=DEVICE).permute(2, 0, 1)
    twice = offsets([20, 30]).repeat_interleave(2)[::2]
    q, k, v = fused.unbind(1)
    for tensors in ((q, k, v), (across, k, across), (q, across, v)):
        copies = [x.clone(memory_format=torch.contiguous_format) for x in tensors]
        out = flash_attention_varlen(*tensors, twice, twice, 30, 30, causal=True)
        assert torch.equal(out, flash_attention_varlen(*copies, offsets([20, 30]), offsets([20, 30]), 30, 30, causal=True))


def arguments(**change):
    given = {"query": torch.zeros(7, 4, 16), "key": torch.zeros(9, 2, 16), "value": torch.zeros(9, 2, 16)}
    given |= {"cu_seqlens_q": offsets([3, 4]), "cu_seqlens_k": offsets([4, 5]), "max_seqlen_q": 4, "max_seqlen_k": 5} | change
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) and x.device.type == "cpu" else x for name, x in given.items()}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": torch.zeros(1, 7, 4, 16)}, r"query: .*expected the shape \[T, H, D\]"),
        ({"key": torch.zeros(9, 2, 32)}, r"key: .*expected the shape \[S, G, 16\]"),
        ({"key": torch.zeros(9, 3, 16)}, "key: .*expected a number of heads G"),
        ({"value": torch.zeros(8, 2, 16)}, r"value: .*expected the key's shape \(9, 2, 16\)"),
        ({"cu_seqlens_q": [0, 3, 7]}, "cu_seqlens_q: .*expected a dense torch.Tensor"),
        ({"cu_seqlens_q": torch.tensor([0, 3, 7])}, "cu_seqlens_q: .*int64.*expected one of torch.int32"),
        ({"cu_seqlens_k": torch.tensor([[0, 4, 9]], dtype=torch.int32)}, r"cu_seqlens_k: .*expected the shape \[B \+ 1\]"),
        ({"cu_seqlens_k": torch.zeros(0, dtype=torch.int32)}, r"cu_seqlens_k: .*expected the shape \[B \+ 1\]"),
        ({"cu_seqlens_k": torch.tensor([0, 4, 5, 9], dtype=torch.int32)}, "cu_seqlens_k: .*expected the 2 sequences of cu_seqlens_q"),
        ({"cu_seqlens_q": torch.zeros(3, dtype=torch.int32, device="meta")}, "cu_seqlens_q: .*expected the device"),
        ({"max_seqlen_q": -1}, "max_seqlen_q: got -1"),
        ({"max_seqlen_k": 5.0}, "max_seqlen_k: got 5.0, expected a whole number"),
        ({"max_seqlen_q": 3}, "max_seqlen_q: got 3, expected enough for 2 sequences to hold 7 tokens"),
        ({"alibi_slopes": torch.zeros(3, 4)}, r"alibi_slopes: .*expected the shape \(4,\) or \(2, 4\)"),
        ({"window_size": (3, -2)}, r"window_size: got \(3, -2\)"),
    ],
)
def test_what_it_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        flash_attention_varlen(**arguments(**change))


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the values of the offsets are not read")
@pytest.mark.parametrize(
    "change, message",
    [
        ({"cu_seqlens_q": torch.tensor([1, 3, 7], dtype=torch.int32)}, r"cu_seqlens_q: got \[1, 3, 7\], expected offsets from 0 to 7"),
        ({"cu_seqlens_q": torch.tensor([0, 3, 6], dtype=torch.int32)}, r"cu_seqlens_q: got \[0, 3, 6\], expected offsets from 0 to 7"),
        ({"cu_seqlens_k": torch.tensor([0, 10, 9], dtype=torch.int32)}, r"cu_seqlens_k: got \[0, 10, 9\].*never decrease"),
        ({"cu_seqlens_k": torch.tensor([0, 2, 9], dtype=torch.int32)}, "max_seqlen_k: got 5, expected at least the longest sequence, 7"),
    ],
)
def test_offsets_that_it_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        flash_attention_varlen(**arguments(**change))


@pytest.mark.skipif(
    not INTERPRETED, reason="whether the kernels cut wrong offsets is asked of the interpreter, where nothing else is at stake"
)
@pytest.mark.parametrize("wrong", [[-5, 3, 7], [0, 3, 99], [0, 99, 7], [2**31 - 1, -1, 2**31 - 1]])
def test_wrong_offsets_never_lead_outside(monkeypatch, surrounded, wrong):
    """As on a GPU, where they are not read: the inputs lie in the midst of NaN, and what is computed is computed from them alone."""
    monkeypatch.setattr("rundoku.papers.flash_attention.kernel_operators.expect_offsets", lambda *_: None)
    generator = torch.Generator().manual_seed(0)
    tensors = [surrounded((7, 2, 16), torch.float32, generator).requires_grad_() for _ in range(3)]
    starts = torch.tensor(wrong, dtype=torch.int32)
    out, lse = flash_attention_varlen(*tensors, starts, starts, 7, 7, return_lse=True)
    computed = ~lse.isnan()
    assert not out.transpose(0, 1)[computed].isnan().any()
    torch.autograd.grad(out, tensors, torch.ones_like(out))  # no address outside: the interpreter would read NaN or crash


def test_opcheck():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, 16, generator=generator).to(DEVICE).requires_grad_() for heads, n in ((2, 9), (1, 12), (1, 12)))
    options = (None, 3, 0, 0.25, 2.0, offsets([4, 5]), offsets([0, 12]), 5, 12)
    torch.library.opcheck(torch.ops.rundoku.flash_attention.default, (q, k, v, *options))
    out, lse = (x.detach() for x in torch.ops.rundoku.flash_attention(q, k, v, *options))
    saved = [x.detach() for x in (torch.randn_like(out), torch.randn_like(lse), q, k, v)]
    torch.library.opcheck(torch.ops.rundoku.flash_attention_backward.default, (*saved, None, out, lse, *options[1:]))


def test_compiled_is_the_same():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(20, heads, 16, generator=generator).to(DEVICE).requires_grad_() for heads in (2, 1, 1)]
    starts = offsets([8, 0, 12])

    def layer(q, k, v):
        return flash_attention_varlen(q * 2, k, v, starts, starts, 12, 12, causal=True).tanh()

    out, expected = torch.compile(layer, backend="aot_eager", fullgraph=True)(*tensors), layer(*tensors)
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out.sum(), tensors), torch.autograd.grad(expected.sum(), tensors), strict=True):
        torch.testing.assert_close(a, b)
