"""The Triton gate: the 2× rule against float64, ragged and strided shapes, both gradients, and what compiles.

On a machine without a GPU the kernels run in Triton's interpreter, in float16 and float32; on a GPU bfloat16 is tested too.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, laid_out

triton = pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.gpu.check import twice_rule  # noqa: E402 after the check for triton
from rundoku.gpu.launch import INTERPRETED  # noqa: E402
from rundoku.gpu.report import compile_report, problems  # noqa: E402
from rundoku.gpu.targets import TARGETS  # noqa: E402
from rundoku.papers.glu_variants import ACTIVATIONS, kernel  # noqa: E402
from rundoku.papers.glu_variants.kernel import gated, reference  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, under the interpreter: a GPU says nothing of it either


@pytest.fixture(autouse=True)
def poisoned():
    """Fill what is not yet written with NaN, so that an element which a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def make(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)


def plain(gate, up, activation):
    return reference(gate, up, activation, upcast=False)


def run(compute, gate, up, gradient, activation, asked=("gate", "up")):
    """Return the output of one way to compute and the gradients that are asked for."""
    double = compute is reference
    own = [(tensor.double() if double else tensor).detach() for tensor in (gate, up)]  # strides stay
    wanted = [tensor.requires_grad_() for name, tensor in zip(("gate", "up"), own) if name in asked]
    hidden = compute(*own, activation)
    return [hidden.detach(), *(torch.autograd.grad(hidden, wanted, gradient.to(hidden.dtype)) if wanted else ())]


def assert_right(gate, up, gradient, activation, asked=("gate", "up")):
    found, theirs, wanted = (run(way, gate, up, gradient, activation, asked) for way in (gated, plain, reference))
    names = ["h", *(f"gradient of {name}" for name in ("gate", "up") if name in asked)]
    for name, one, other, truth in zip(names, found, theirs, wanted, strict=True):
        assert one.dtype == gate.dtype
        assert one.shape == truth.shape
        wrong = twice_rule(one, other, truth)
        assert wrong is None, f"{name} of {activation} at {tuple(gate.shape)}, {gate.dtype}: {wrong}"


def assert_right_at(shape, dtype, activation, *, seed=0, scale=1.0):
    assert_right(*(make(*shape, dtype=dtype, seed=seed + i, scale=scale if i == 0 else 1.0) for i in range(3)), activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_values_and_both_gradients(dtype, activation, scale):
    assert_right_at((7, 197), dtype, activation, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 63, 64, 65, 197, 1023, 1024, 1025])
@pytest.mark.parametrize("rows", [1, 3])
def test_ragged_widths(dtype, width, rows):
    assert_right_at((rows, width), dtype, "silu")


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3).flatmap(lambda lead: st.integers(1, 300).map(lambda width: (*lead, width))),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(list(ACTIVATIONS)),
    scale=st.sampled_from([0.01, 1.0, 20.0]),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    asked=st.sets(st.sampled_from(["gate", "up"])),
    seed=st.integers(0, 1000),
)
def test_any_call(shape, dtype, activation, scale, layouts, asked, seed):
    made = [make(*shape, dtype=dtype, seed=seed + i, scale=scale if i == 0 else 1.0) for i in range(3)]
    assert_right(*map(laid_out, made, layouts), activation, asked)


VIEWS = {
    "every second row": lambda x: x[::2],
    "columns of a wider tensor": lambda x: x[:, 3:20],
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x.unsqueeze(1).expand(-1, 3, -1),
    "batch second": lambda x: x.reshape(4, 2, 24).transpose(0, 1),
    "every second column": lambda x: x[:, ::2],
    "one column": lambda x: x[:, 5:6],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("contiguous", ["none", "gate", "up", "gradient"])
def test_strided_inputs_and_gradients(view, contiguous):
    made = {name: view(make(8, 24, seed=i)) for i, name in enumerate(("gate", "up", "gradient"))}
    if contiguous != "none":
        made[contiguous] = made[contiguous].contiguous()
    found = run(gated, *made.values(), "silu")
    wanted = run(gated, *(tensor.contiguous() for tensor in made.values()), "silu")
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    if contiguous == "none":
        assert_right(*made.values(), "silu")


def test_both_halves_of_one_projection_are_taken_without_a_copy(monkeypatch):
    projected = make(6, 140).requires_grad_()
    seen, rows = [], kernel._rows
    monkeypatch.setattr(kernel, "_rows", lambda *tensors: seen.append((tensors, made := rows(*tensors))) or made)
    hidden = gated(*projected.chunk(2, -1))
    gradient = make(6, 70, seed=1)
    (found,) = torch.autograd.grad(hidden, projected, gradient)
    for tensors, made in seen:
        assert [tensor.data_ptr() for tensor in tensors] == [tensor.data_ptr() for tensor in made]
    (wanted,) = torch.autograd.grad(plain(*projected.chunk(2, -1), "silu"), projected, gradient)
    torch.testing.assert_close(found, wanted)


def test_one_tensor_as_gate_and_up_gets_both_gradients():
    x = make(5, 33).requires_grad_()
    (found,) = torch.autograd.grad(gated(x, x, "identity").sum(), x)
    torch.testing.assert_close(found, 2 * x)


def test_a_gradient_with_strides_of_zero():
    gate, up = (make(5, 33, seed=i).requires_grad_() for i in range(2))
    found = torch.autograd.grad(gated(gate, up).sum(), (gate, up))
    wanted = torch.autograd.grad(plain(gate, up, "silu").sum(), (gate, up))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out_the_gate_is_open_or_shut_and_nothing_is_lost(activation):
    gate = torch.tensor([-1e18, -3e4, -100.0, -0.0, 0.0, 100.0, 3e4, 1e18], device=DEVICE)
    ones = torch.ones_like(gate)
    found, wanted = (run(way, gate, ones, ones, activation) for way in (gated, reference))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden(activation):
    gate, up = torch.full((4,), float("nan"), device=DEVICE), torch.ones(4, device=DEVICE)
    assert gated(gate, up, activation).isnan().all()
    assert gated(up, gate, activation).isnan().all()


def test_a_product_beyond_float16_is_infinite_as_in_torch():
    gate, up = torch.full((3,), 300.0, device=DEVICE).half(), torch.full((3,), 300.0, device=DEVICE).half()
    assert torch.equal(gated(gate, up), plain(gate, up, "silu"))
    assert gated(gate, up).isinf().all()


@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7)])
def test_an_empty_batch_gives_empty_results_and_gradients(shape):
    gate, up = (torch.ones(shape, device=DEVICE, requires_grad=True) for _ in range(2))
    hidden = gated(gate, up)
    hidden.sum().backward()
    assert hidden.shape == gate.grad.shape == up.grad.shape == shape


def test_gradients_that_nobody_asks_for_are_not_returned():
    gate, up = make(6, 33), make(6, 33, seed=1).requires_grad_()
    gated(gate, up).sum().backward()
    assert gate.grad is None
    assert up.grad is not None
    (gradient,) = torch.autograd.grad(gated(gate.requires_grad_(), up.detach()).sum(), gate)
    assert gradient.isfinite().all()


def test_only_gate_and_up_are_kept_for_backward():
    gate, up = (make(6, 33, seed=i).requires_grad_() for i in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor):
        gated(gate, up)
    assert kept == [gate.data_ptr(), up.data_ptr()]


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_opcheck(activation):
    gate, up = (make(3, 4, 33, seed=i).requires_grad_() for i in range(2))
    torch.use_deterministic_algorithms(False)  # opcheck compares outputs that a bare call leaves empty
    torch.library.opcheck(kernel._op, (gate, up, activation))
    torch.library.opcheck(kernel._op, (*make(4, 66).requires_grad_().chunk(2, -1), activation))
    torch.library.opcheck(kernel._backward_op, (make(3, 4, 33, seed=2), gate.detach(), up.detach(), activation))


def test_torch_compile_keeps_it_whole():
    gate, up = make(4, 33).requires_grad_(), make(4, 33, seed=1)

    def model(gate):
        return gated(gate * 2, up).sin()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(function(gate).sum(), gate)[0] for function in (compiled, model)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_the_reference(activation):
    gate, up = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *made: reference(*made, activation), (gate, up))


def test_the_reference_upcasts_only_where_asked():
    gate, up = make(2, 9, dtype=torch.float16), make(2, 9, dtype=torch.float16, seed=1)
    assert reference(gate, up).dtype == torch.float64
    assert reference(gate, up, upcast=False).dtype == torch.float16


X = torch.ones(2, 4, device=DEVICE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gated(X, X, "swish"), "activation: got 'swish', expected one of sigmoid, identity, relu"),
        (lambda: gated(X.double(), X), r"gate: got a tensor of shape \(2, 4\).*float64.*expected one of torch\.float16"),
        (lambda: gated(X, X.half()), r"up: got .*float16.*expected one of torch\.float32"),
        (lambda: gated(X.to_sparse(), X), "gate: got .*expected a dense"),
        (lambda: gated(X, X[:1]), r"up: got .*\(1, 4\).*the shape \(2, 4\) of gate"),
        (lambda: gated(X[:, :0], X[:, :0]), r"gate: got .*\(2, 0\).*F at least 1"),
        (lambda: gated(torch.ones((), device=DEVICE), X), "gate: got .*F at least 1"),
        (lambda: gated(X, torch.ones(2, 4, device="meta")), "up: got .*on meta, expected the device"),
        (lambda: gated(X, None), "up: got None, expected a dense torch.Tensor"),
        (lambda: gated(X.long(), X), r"gate: got .*int64.*expected one of torch\.float16, torch\.bfloat16, torch\.float32"),
        (lambda: gated(X, X[:, :3]), r"up: got .*\(2, 3\).*the shape \(2, 4\) of gate"),
        (lambda: gated(X, X, None), "activation: got None, expected one of sigmoid, identity, relu"),
        (lambda: gated([1.0], X), r"gate: got \[1.0\], expected a dense torch.Tensor"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_published_compiles_for_every_target_without_spill_or_overflow():
    reports = compile_report("rundoku.papers.glu_variants.kernel")
    assert problems(reports) == []
    assert {report.target for report in reports} == set(TARGETS)
    assert len(reports) == len(TARGETS) * len(ACTIVATIONS) * 2 * 2  # forward and backward, bf16 and fp32
    assert all(report.shared == 0 and report.registers <= 64 for report in reports)
    assert not any(report.tensor_core for report in reports)  # nothing to multiply
    assert problems([replace(reports[0], spill=4)])


def test_every_table_has_its_entry():
    assert set(kernel.CONFIGS) == {*TARGETS, "other", "interpreter"}
    assert all(len(entries) == 1 for entries in kernel.CONFIGS.values())
    assert kernel.config_for(X) in kernel.CONFIGS["interpreter" if INTERPRETED else kernel.target_of(X)]
