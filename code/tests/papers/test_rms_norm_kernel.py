"""The Triton RMSNorm: the 2× rule against float64, ragged and strided shapes, every gradient, and what compiles.

On a machine without a GPU the kernels run in Triton's interpreter, in float16 and float32; on a GPU bfloat16 is tested too.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, laid_out
from torch.nn import functional as F

triton = pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.gpu.check import twice_rule  # noqa: E402 after the check for triton
from rundoku.gpu.launch import INTERPRETED  # noqa: E402
from rundoku.gpu.report import compile_report, problems  # noqa: E402
from rundoku.gpu.targets import TARGETS  # noqa: E402
from rundoku.papers.layer_norm import kernel as layer_norm_kernel  # noqa: E402
from rundoku.papers.rms_norm import kernel  # noqa: E402
from rundoku.papers.rms_norm.kernel import reference, rms_norm  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned():
    """Fill what is not yet written with NaN, so that an element which a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def make(*shape, dtype, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)


def plain(x, weight, residual, eps):
    """Return plain torch's result in the same dtype, the yardstick of the 2× rule."""
    h = x if residual is None else x + residual
    return F.rms_norm(h, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps), h


def ours(x, weight, residual, eps):
    return (rms_norm(x, weight, eps), x) if residual is None else rms_norm(x, weight, eps, residual=residual)


def exact(x, weight, residual, eps):
    return reference(x, weight, eps, residual)


NAMES = ("x", "weight", "residual")


def run(compute, inputs, gradients, eps, asked=NAMES):
    """Return the outputs of one way to compute and the gradients of every input that there is and that is asked for."""
    double = compute is exact
    own = [None if tensor is None else (tensor.double() if double else tensor).detach() for tensor in inputs]  # strides stay
    wanted = [tensor.requires_grad_() for name, tensor in zip(NAMES, own) if tensor is not None and name in asked]
    y, h = compute(*own, eps)
    outputs = [y, h] if own[2] is not None else [y]
    pairs = [(output, gradient.to(output.dtype)) for output, gradient in zip(outputs, gradients) if output.requires_grad]
    found = torch.autograd.grad([output for output, _ in pairs], wanted, [gradient for _, gradient in pairs]) if wanted else ()
    return [output.detach() for output in outputs], found


def assert_right(
    shape, dtype, *, gain=True, residual=True, eps=1e-6, seed=0, scale=1.0, gain_dtype=None, asked=NAMES, layouts=(), unit=0.0
):
    made = [make(*shape, dtype=dtype, seed=seed, scale=scale), make(shape[-1], dtype=gain_dtype or dtype, seed=seed + 1) if gain else None]
    made += [make(*shape, dtype=dtype, seed=seed + 2) if residual else None]
    gradients = [make(*shape, dtype=dtype, seed=seed + i) for i in (3, 4)]
    for place, layout in zip((0, 2), layouts):
        made[place] = None if made[place] is None else laid_out(made[place], layout)
    gradients = [laid_out(gradient, layout) for gradient, layout in zip(gradients, layouts[2:] or ["contiguous"] * 2)]
    names = ["y", "h"] if residual else ["y"]
    names += [f"gradient of {name}" for name, tensor in zip(NAMES, made) if tensor is not None and name in asked]
    ways = (run(way, made, gradients, eps, asked) for way in (ours, plain, exact))
    found, theirs, wanted = ([*outputs, *grads] for outputs, grads in ways)
    assert len(found) == len(names)
    h = made[0].double() + (made[2].double() if residual else 0)
    largest = gradients[0].abs().max().item() * (made[1].abs().max().item() if gain else 1)
    terms = largest * (h.square().mean(-1) + eps).rsqrt().max().item()  # the gradient of x is a difference of terms of this size
    for name, one, other, truth in zip(names, found, theirs, wanted):
        assert one.shape == truth.shape
        wrong = twice_rule(one, other, truth, terms if name in ("gradient of x", "gradient of residual") else 0.0, unit)
        assert wrong is None, f"{name} at {shape}, {dtype}: {wrong}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 197, 1023])
@pytest.mark.parametrize("rows", [1, 37])
def test_values_and_every_gradient_at_ragged_widths(dtype, width, rows):
    assert_right((rows, width), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gain", "residual"), [(False, False), (True, False), (False, True)])
def test_what_may_be_left_out(dtype, gain, residual):
    assert_right((3, 5, 65), dtype, gain=gain, residual=residual)


@pytest.mark.parametrize(("rows", "width", "dtype"), [(3, 8192, torch.float16), (17, 8193, torch.float16), (3, 16384, torch.float32)])
def test_wide_rows_whose_gradient_sum_has_a_kernel_of_its_own(rows, width, dtype):
    assert_right((rows, width), dtype)


def test_more_rows_than_programs_in_backward(monkeypatch):
    monkeypatch.setattr(layer_norm_kernel, "PROGRAMS", 3)
    assert_right((200, 65), torch.float32)
    monkeypatch.setattr(kernel, "SPLIT_ABOVE", 64)
    assert_right((200, 65), torch.float32)


def test_mixed_precision_gain_in_float32():
    assert_right((9, 130), torch.float16, gain_dtype=torch.float32)


def test_values_whose_squares_overflow_or_vanish_in_float16():
    assert_right((4, 200), torch.float16, residual=False, scale=2000)
    assert_right((4, 200), torch.float16, residual=False, scale=1e-3, eps=1e-12)


def test_a_row_of_zeros():
    x = torch.zeros(2, 50, device=DEVICE, requires_grad=True)
    result = rms_norm(x, eps=1e-6)
    result.sum().backward()
    assert torch.equal(result, torch.zeros_like(x))
    torch.testing.assert_close(x.grad, torch.full_like(x, 1e3))  # 1 / √eps: nothing else divides


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=2).flatmap(lambda lead: st.integers(1, 150).map(lambda width: (*lead, width))),
    dtype=st.sampled_from(DTYPES),
    gain_dtype=st.sampled_from(DTYPES),
    parts=st.tuples(st.booleans(), st.booleans()),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 4),
    asked=st.sets(st.sampled_from(NAMES)),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
    seed=st.integers(0, 1000),
)
def test_any_call(shape, dtype, gain_dtype, parts, layouts, asked, eps, seed):
    given_parts = dict(zip(("gain", "residual"), parts))
    unit = torch.finfo(dtype).eps / 2
    assert_right(shape, dtype, gain_dtype=gain_dtype, layouts=layouts, asked=asked, eps=eps, seed=seed, **given_parts, unit=unit)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 3:68],
        lambda x: x.t(),
        lambda x: x.unsqueeze(1).expand(-1, 3, -1),
        lambda x: x.reshape(4, 10, 70).transpose(0, 1),
        lambda x: x[:, ::2],
    ],
    ids=["every second row", "columns of a wider tensor", "transposed", "expanded", "batch second", "every second column"],
)
def test_strided_inputs_and_gradients(view):
    base, other = make(40, 70, dtype=torch.float32), make(40, 70, dtype=torch.float32, seed=1)
    (x, residual), weight = (view(base), view(other)), make(view(base).shape[-1], dtype=torch.float32, seed=2)
    found = run(ours, [x, weight, residual], [view(other), view(base)], 1e-6)
    wanted = run(ours, [x.contiguous(), weight, residual.contiguous()], [view(other).contiguous(), view(base).contiguous()], 1e-6)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    strided = view(base).detach().requires_grad_()
    assert torch.equal(rms_norm(strided, weight), rms_norm(strided.contiguous(), weight))
    (gradient,) = torch.autograd.grad(rms_norm(strided, weight).sum(), strided)  # a gradient with strides 0
    (wanted,) = torch.autograd.grad(F.rms_norm(strided, weight.shape, weight, 1e-6).sum(), strided)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7)])
def test_an_empty_batch_gives_empty_results_and_zero_gradients(shape):
    x, residual = (torch.ones(shape, device=DEVICE, requires_grad=True) for _ in range(2))
    weight = torch.ones(7, device=DEVICE, requires_grad=True)
    y, h = rms_norm(x, weight, residual=residual)
    (y.sum() + h.sum()).backward()
    assert y.shape == h.shape == x.grad.shape == residual.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_of_the_two_results_used(used):
    made = [make(6, 33, dtype=torch.float32, seed=i) for i in range(2)]
    found, wanted = ([tensor.clone().requires_grad_() for tensor in made] for _ in range(2))
    rms_norm(found[0], residual=found[1])[used].square().sum().backward()
    plain(wanted[0], None, wanted[1], 1e-6)[used].square().sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in found], [tensor.grad for tensor in wanted])


def test_gradients_that_nobody_asks_for_are_not_computed():
    x, weight = make(6, 33, dtype=torch.float32), make(33, dtype=torch.float32, seed=1).requires_grad_()
    rms_norm(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    rms_norm(x.requires_grad_(), weight.detach()).sum().backward()
    assert x.grad is not None


def test_the_same_call_twice_gives_the_same_bits():
    made = [make(300, 65, dtype=torch.float32), make(65, dtype=torch.float32), None]
    first, second = (run(ours, made, [made[0]], 1e-6) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("parts", ["all", "bare"])
def test_opcheck(parts):
    x, residual = (make(3, 4, 33, dtype=torch.float32, seed=i).requires_grad_() for i in range(2))
    weight = make(33, dtype=torch.float32).requires_grad_()
    torch.use_deterministic_algorithms(False)  # opcheck compares outputs that a bare call leaves empty
    torch.library.opcheck(kernel._op, (x, residual, weight, 1e-6) if parts == "all" else (x, None, None, 1e-6))
    rows = make(3, 4, dtype=torch.float32).abs()
    given_dh, gain = (residual.detach(), weight.detach()) if parts == "all" else (None, None)
    torch.library.opcheck(kernel._backward_op, (x.detach(), given_dh, x.detach(), gain, rows, parts == "all"))


def test_torch_compile_keeps_it_whole():
    x, weight = make(4, 33, dtype=torch.float32).requires_grad_(), make(33, dtype=torch.float32, seed=1)

    def model(x):
        y, h = rms_norm(x * 2, weight, residual=x)
        return y.sin() + h

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(function(x).sum(), x)[0] for function in (compiled, model)]
    torch.testing.assert_close(*gradients)


def test_gradcheck_of_the_reference():
    x, weight, residual = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 6), (6,), (3, 6)])
    assert torch.autograd.gradcheck(lambda *made: reference(*made[:2], 1e-6, made[2]), (x, weight, residual))


def test_the_reference_upcasts_only_where_asked():
    x = make(2, 9, dtype=torch.float16)
    assert [tensor.dtype for tensor in reference(x)] == [torch.float64] * 2
    assert [tensor.dtype for tensor in reference(x, upcast=False)] == [torch.float16] * 2
    assert (reference(x, upcast=False)[0] - reference(x)[0]).abs().max() < 1e-2


X = torch.ones(2, 4, device=DEVICE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(X.double()), r"x: got a tensor of shape \(2, 4\).*float64.*expected one of torch\.float16"),
        (lambda: rms_norm(X.to_sparse()), "x: got .*expected a dense"),
        (lambda: rms_norm(torch.ones(2, 16385, device=DEVICE)), "x: got .*16385.*C from 1 to 16384"),
        (lambda: rms_norm(torch.ones(2, 0, device=DEVICE)), "C from 1 to"),
        (lambda: rms_norm(torch.ones((), device=DEVICE)), "C from 1 to"),
        (lambda: rms_norm(X, torch.ones(5, device=DEVICE)), r"weight: got .*\(5,\).*of shape \(4,\)"),
        (lambda: rms_norm(X, torch.ones(8, device=DEVICE)[::2]), "weight: got .*strides.*contiguous"),
        (lambda: rms_norm(X, torch.ones(4, dtype=torch.int64, device=DEVICE)), "weight: got .*int64"),
        (lambda: rms_norm(X, torch.ones(4, device="meta")), "weight: got .*on meta, expected the device"),
        (lambda: rms_norm(X, eps=0.0), "eps: got 0.0, expected a positive float"),
        (lambda: rms_norm(X, eps=1), "eps: got 1, expected a positive float"),
        (lambda: rms_norm(X, eps=float("nan")), "eps: got nan, expected a positive float"),
        (lambda: rms_norm(X, eps=float("inf")), "eps: got inf, expected a positive float"),
        (lambda: rms_norm(X.long()), r"x: got .*int64.*expected one of torch\.float16, torch\.bfloat16, torch\.float32"),
        (lambda: rms_norm(X, X), r"weight: got .*\(2, 4\).*contiguous, of shape \(4,\)"),
        (lambda: rms_norm(X, 1.0), r"weight: got 1.0, expected a dense torch.Tensor"),
        (lambda: rms_norm(X, residual=2.0), "residual: got 2.0, expected a dense torch.Tensor"),
        (lambda: rms_norm(X, residual=torch.ones(2, 4, device="meta")), "residual: got .*on meta, expected the device"),
        (lambda: rms_norm(X, residual=X[:1]), r"residual: got .*\(1, 4\).*the shape \(2, 4\) of x"),
        (lambda: rms_norm(X, residual=X.half()), r"residual: got .*expected one of torch\.float32"),
        (lambda: rms_norm([1.0]), r"x: got \[1.0\], expected a dense torch.Tensor"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_published_compiles_for_every_target_without_spill_or_overflow():
    reports = compile_report("rundoku.papers.rms_norm.kernel")
    assert problems(reports) == []
    assert {report.target for report in reports} == set(TARGETS)
    assert max(report.tiles["COLUMNS"] for report in reports) == kernel.WIDEST
    assert all(report.shared <= 64 * 1024 for report in reports)  # also on a card that was not compiled for
    assert not any(report.tensor_core for report in reports)  # nothing to multiply
    assert problems([replace(reports[0], spill=4)])
