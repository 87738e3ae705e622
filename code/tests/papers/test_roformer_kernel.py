"""The Triton rotation: the 2× rule against float64, both layouts, ragged and strided shapes, grouped heads, and what compiles.

On a machine without a GPU the kernel runs in Triton's interpreter, in float16 and float32; on a GPU bfloat16 is tested too.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS as PLACES
from layouts import laid_out

triton = pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.gpu.check import twice_rule  # noqa: E402 after the check for triton
from rundoku.gpu.launch import INTERPRETED  # noqa: E402
from rundoku.gpu.report import compile_report, problems  # noqa: E402
from rundoku.gpu.targets import TARGETS  # noqa: E402
from rundoku.papers.roformer import kernel, rotary_tables  # noqa: E402
from rundoku.papers.roformer.kernel import reference, rotary  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["half", "interleaved"]


@pytest.fixture(autouse=True)
def poisoned():
    """Fill what is not yet written with NaN, so that an element which the kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def make(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def tables(batch, length, width, seed=0):
    """Return tables of random positions: one row of them, or one for each sequence where ``batch`` is a number."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 100_000, (length,) if batch is None else (batch, length), generator=generator)
    return [table.to(DEVICE) for table in rotary_tables(positions, width, 100_000.0)]


def run(compute, inputs, gradients):
    """Return both outputs and the gradients of query and key."""
    own = [tensor.detach().requires_grad_() for tensor in inputs]  # not cloned: the strides reach the kernel
    outputs = compute(*own)
    return [output.detach() for output in outputs], torch.autograd.grad(outputs, own, [g.to(outputs[0].dtype) for g in gradients])


def assert_right(batch, heads, groups, length, width, dtype, layout, *, own_positions=False, seed=0):
    query, key = make(batch, heads, length, width, dtype=dtype, seed=seed), make(batch, groups, length, width, dtype=dtype, seed=seed + 1)
    gradients = [make(*tensor.shape, dtype=dtype, seed=seed + 2 + i) for i, tensor in enumerate((query, key))]
    cos, sin = tables(batch if own_positions else None, length, width, seed)
    found = run(lambda q, k: rotary(q, k, cos, sin, layout), (query, key), gradients)
    plain = run(lambda q, k: reference(q, k, cos, sin, layout, upcast=False), (query, key), gradients)
    exact = run(lambda q, k: reference(q, k, cos, sin, layout), (query, key), gradients)
    names = ("query", "key", "gradient of query", "gradient of key")
    for name, ours, theirs, truth in zip(names, *([*outputs, *grads] for outputs, grads in (found, plain, exact)), strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous()
        wrong = twice_rule(ours, theirs, truth)
        assert wrong is None, f"{name} at {tuple(truth.shape)}, {dtype}, {layout}: {wrong}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 197, 1023])
def test_values_and_both_gradients_at_ragged_lengths(dtype, layout, length):
    assert_right(1, 3, 1, length, 64, dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [2, 6, 32, 34, 80, 96, 128, 200, 256, 512])
def test_every_width(layout, width):
    assert_right(2, 2, 1, 17, width, torch.float16, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (5, 5), (9, 3), (8, 1), (1, 6)])
def test_grouped_heads_and_positions_of_each_sequence(layout, heads, groups):
    assert_right(2, heads, groups, 33, 20, torch.float32, layout, own_positions=True)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 6), groups=st.integers(1, 6), length=st.integers(1, 80), half=st.integers(1, 40),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)), layout=st.sampled_from(LAYOUTS), own_positions=st.booleans(),
    places=st.tuples(*[st.sampled_from(PLACES)] * 6), asked=st.sets(st.sampled_from([0, 1])), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_call(batch, heads, groups, length, half, dtypes, layout, own_positions, places, asked, seed):
    shapes = [(batch, heads, length, 2 * half), (batch, groups, length, 2 * half)]
    made = [make(*shape, dtype=dtype, seed=seed + i) for i, (shape, dtype) in enumerate(zip(shapes * 2, dtypes * 2))]
    query, key, *gradients = map(laid_out, made, places)
    cos, sin = map(laid_out, tables(batch if own_positions else None, length, 2 * half, seed), places[4:])

    def computed(way):
        own = [query.detach(), key.detach()]
        wanted = [own[i].requires_grad_() for i in sorted(asked)]
        outputs = way(*own)
        pairs = [(output, gradient.to(output.dtype)) for output, gradient in zip(outputs, gradients) if output.requires_grad]
        found = torch.autograd.grad([output for output, _ in pairs], wanted, [gradient for _, gradient in pairs]) if wanted else ()
        return [output.detach() for output in outputs] + list(found)

    ours = computed(lambda q, k: rotary(q, k, cos, sin, layout))
    plain = computed(lambda q, k: reference(q, k, cos, sin, layout, upcast=False))
    exact = computed(lambda q, k: reference(q, k, cos, sin, layout))
    for place, one, other, truth in zip((0, 1, *sorted(asked)), ours, plain, exact, strict=True):
        assert one.dtype == dtypes[place]
        wrong = twice_rule(one, other, truth)
        assert wrong is None, f"{place} at {tuple(truth.shape)}, {layout}: {wrong}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(2, 10, 4, 20).transpose(1, 2),
        lambda x: x[:, :, ::2],
        lambda x: x[..., 5:13],
        lambda x: x.mT,
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
        lambda x: x[..., ::2],
    ],
    ids=[
        "heads second",
        "every second position",
        "part of a head",
        "transposed",
        "batch expanded",
        "heads expanded",
        "every second element",
    ],
)
def test_strided_inputs_and_gradients(view, layout):
    query, key, *gradients = (view(make(2, 4, 10, 20, seed=seed)) for seed in range(4))
    cos, sin = tables(None, *query.shape[2:])

    def ours(q, k):
        return rotary(q, k, cos, sin, layout)

    found = run(ours, (query, key), gradients)
    wanted = run(ours, (query.contiguous(), key.contiguous()), [gradient.contiguous() for gradient in gradients])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(list(found[0]), list(reference(query, key, cos, sin, layout, upcast=False)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_of_any_strides(layout):
    query, key = make(3, 2, 7, 12), make(3, 1, 7, 12, seed=1)
    cos, sin = tables(None, 7, 12)
    wanted = rotary(query, key, cos, sin, layout)
    for change in (lambda t: t[None], lambda t: t.expand(3, -1, -1), lambda t: t.t().contiguous().t()):
        assert all(map(torch.equal, rotary(query, key, change(cos), change(sin), layout), wanted))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 3, 0, 8)])
def test_an_empty_batch_gives_empty_results_and_gradients(layout, shape):
    query, key = make(*shape).requires_grad_(), make(shape[0], 1, *shape[2:]).requires_grad_()
    outputs = rotary(query, key, *tables(None, *shape[2:]), layout)
    sum(output.sum() for output in outputs).backward()
    assert [tensor.shape for tensor in (*outputs, query.grad, key.grad)] == [query.shape, key.shape] * 2


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_of_the_two_results_used(used):
    query, key = make(2, 3, 9, 8).requires_grad_(), make(2, 1, 9, 8, seed=1).requires_grad_()
    cos, sin = tables(None, 9, 8)
    found = torch.autograd.grad(rotary(query, key, cos, sin)[used].square().sum(), (query, key))
    wanted = torch.autograd.grad(reference(query, key, cos, sin)[used].square().sum(), (query, key)[used])[0]
    torch.testing.assert_close(found[used], wanted, check_dtype=False)
    assert torch.equal(found[1 - used], torch.zeros_like(found[1 - used]))


def test_query_and_key_keep_dtypes_of_their_own():
    query, key = make(1, 2, 9, 8, dtype=torch.float16), make(1, 1, 9, 8)
    cos, sin = tables(None, 9, 8)
    found, wanted = rotary(query, key, cos, sin), reference(query, key, cos, sin, upcast=False)
    assert [tensor.dtype for tensor in found] == [torch.float16, torch.float32]
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_turns_back_and_can_be_differentiated_again(layout):
    query, key = make(2, 3, 9, 8).requires_grad_(), make(2, 1, 9, 8, seed=1).requires_grad_()
    cos, sin = tables(None, 9, 8)
    gradients = [make(*tensor.shape, seed=5).requires_grad_() for tensor in (query, key)]
    back = torch.autograd.grad(rotary(query, key, cos, sin, layout), (query, key), gradients, create_graph=True)
    again = torch.autograd.grad(back, gradients, [query.detach(), key.detach()])
    torch.testing.assert_close(back, rotary(*gradients, cos, -sin, layout))
    torch.testing.assert_close(again, rotary(query, key, cos, sin, layout))  # linear: its second derivative is itself


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("interleaved", [True, False])
def test_opcheck(interleaved):
    query, key = make(2, 3, 9, 8).requires_grad_(), make(2, 4, 9, 8).mT.contiguous().mT.requires_grad_()
    torch.use_deterministic_algorithms(False)  # opcheck compares outputs that a bare call leaves empty
    torch.library.opcheck(kernel._op, (query, key, *tables(2, 9, 8), interleaved, False))


def test_torch_compile_keeps_it_whole():
    query, key = make(2, 3, 9, 8).requires_grad_(), make(2, 1, 9, 8, seed=1)
    cos, sin = tables(None, 9, 8)

    def model(query):
        turned, other = rotary(query * 2, key, cos, sin)
        return turned.sin().sum() + other.sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(function(query), query)[0] for function in (compiled, model)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck_of_the_reference(layout):
    query, key = (torch.randn(2, heads, 3, 4, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    cos, sin = rotary_tables(torch.randint(0, 99, (2, 3)), 4)
    assert torch.autograd.gradcheck(lambda *made: reference(*made, cos, sin, layout), (query, key))


def test_the_reference_upcasts_only_where_asked():
    query, key, (cos, sin) = make(1, 2, 9, 8, dtype=torch.float16), make(1, 1, 9, 8, dtype=torch.float16), tables(None, 9, 8)
    assert [tensor.dtype for tensor in reference(query, key, cos, sin)] == [torch.float64] * 2
    assert [tensor.dtype for tensor in reference(query, key, cos, sin, upcast=False)] == [torch.float16] * 2


Q, K = torch.ones(2, 4, 5, 6, device=DEVICE), torch.ones(2, 1, 5, 6, device=DEVICE)
COS, SIN = tables(None, 5, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotary(Q.double(), K, COS, SIN), r"query: got a tensor of shape \(2, 4, 5, 6\).*float64.*expected one of torch\.float16"),
        (lambda: rotary(Q[0], K, COS, SIN), r"query: got .*\(4, 5, 6\).*shape \[B, H, N, D\]"),
        (lambda: rotary(Q[..., :5], K, COS, SIN), "query: got .*D even"),
        (lambda: rotary(Q[:, :0], K, COS, SIN), "query: got .*H at least 1"),
        (lambda: rotary(torch.ones(1, 1, 1, 514, device=DEVICE), K, COS, SIN), "query: got .*D even, from 2 to 512"),
        (lambda: rotary(Q, K[:1], COS, SIN), r"key: got .*\(1, 1, 5, 6\).*shape \(2, G, 5, 6\)"),
        (lambda: rotary(Q, K[..., :4], COS, SIN), r"key: got .*\(2, 1, 5, 4\)"),
        (lambda: rotary(Q, torch.ones(2, 1, 5, 6, device="meta"), COS, SIN), "key: got .*on meta, expected the device"),
        (lambda: rotary(Q, K, COS[:4], SIN[:4]), r"cos: got .*\(4, 3\).*expected shape \(5, 3\) or \(2, 5, 3\)"),
        (lambda: rotary(Q, K, COS.half(), SIN.half()), r"cos: got .*float16.*expected one of torch\.float32"),
        (lambda: rotary(Q, K, COS, SIN.expand(2, 5, 3)), r"sin: got .*expected the shape \(5, 3\) of cos"),
        (lambda: rotary(Q, K, COS.expand(2, 1, 5, 3), SIN), r"cos: got .*\(2, 1, 5, 3\)"),
        (lambda: rotary(Q, K, COS, SIN.clone().requires_grad_()), "sin: got .*expected a constant"),
        (lambda: rotary(Q, K, COS, SIN, "neox"), "layout: got 'neox', expected one of half, interleaved"),
        (lambda: rotary(Q, None, COS, SIN), "key: got None, expected a dense torch.Tensor"),
        (lambda: rotary(Q, K.long(), COS, SIN), r"key: got .*int64.*expected one of torch\.float16, torch\.bfloat16, torch\.float32"),
        (lambda: rotary(Q, K[0], COS, SIN), r"key: got .*\(1, 5, 6\).*shape \(2, G, 5, 6\)"),
        (lambda: rotary(Q, K[:, :0], COS, SIN), "key: got .*G at least 1"),
        (lambda: rotary(Q[..., :0], K, COS, SIN), "query: got .*D even, from 2 to 512"),
        (lambda: rotary(Q, K, None, SIN), "cos: got None, expected a dense torch.Tensor"),
        (lambda: rotary(Q, K, COS, torch.ones(5, 3, device="meta")), "sin: got .*on meta, expected the device"),
        (lambda: rotary(Q, K, COS.clone().requires_grad_(), SIN), "cos: got .*expected a constant"),
        (lambda: rotary([1.0], K, COS, SIN), r"query: got \[1.0\], expected a dense torch.Tensor"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_published_compiles_for_every_target_without_spill_or_overflow():
    reports = compile_report("rundoku.papers.roformer.kernel")
    assert problems(reports) == []
    assert {report.target for report in reports} == set(TARGETS)
    assert all(report.shared <= 64 * 1024 for report in reports)  # also on a card that was not compiled for
    assert not any(report.tensor_core for report in reports)  # nothing to multiply
    assert problems([replace(reports[0], spill=4)])


def test_every_table_has_an_entry_for_every_width():
    assert set(kernel.CONFIGS) == {*TARGETS, "other", "interpreter"}
    for entries in kernel.CONFIGS.values():
        assert [entry.tiles["PAIRS"] for entry in entries] == [16, 32, 64, 128, 256]
        assert 2 * entries[-1].tiles["PAIRS"] == kernel.WIDEST
