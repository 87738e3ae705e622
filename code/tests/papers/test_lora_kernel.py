"""The fused LoRA layer in Triton: the 2× rule against float64, ragged and strided shapes, every gradient, peft's and the room's own layer.

On a machine without a GPU the kernels run in Triton's interpreter, in float16 and float32; on a GPU bfloat16 is tested too.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.gpu.bench import benchmarks_of, measure  # noqa: E402 after the check for triton
from rundoku.gpu.check import error, twice_rule  # noqa: E402
from rundoku.gpu.launch import INTERPRETED, Config  # noqa: E402
from rundoku.gpu.report import compile_report, problems  # noqa: E402
from rundoku.gpu.targets import TARGETS  # noqa: E402
from rundoku.papers.lora import LoRAConfig, LoRALinear, benchmarks, kernel  # noqa: E402
from rundoku.papers.lora.kernel import lora_linear, reference  # noqa: E402
from rundoku.show.imports import closure  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
NAMES = ("x", "weight", "lora_A", "lora_B", "bias")


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


def surrounded(*shape, dtype=torch.float32, seed=0, scale=1.0):
    """Return random numbers in the midst of NaN: a read past the end of any axis is seen."""
    whole = torch.full([size + 2 for size in shape], float("nan"), dtype=dtype, device=DEVICE)
    inner = whole[tuple(slice(1, -1) for _ in shape)]
    return inner.copy_(make(*shape, dtype=dtype, seed=seed, scale=scale))


def tensors(rows, inputs, outputs, rank, dtype=torch.float32, adapter=None, seed=0, new=make):
    """Return x, weight, lora_A, lora_B and bias, scaled as a trained layer is: x·Wᵀ and the update both of the order of one."""
    adapter = adapter or dtype
    x, bias = new(rows, inputs, dtype=dtype, seed=seed), new(outputs, dtype=dtype, seed=seed + 4)
    weight = new(outputs, inputs, dtype=dtype, seed=seed + 1, scale=inputs**-0.5)
    a = new(rank, inputs, dtype=adapter, seed=seed + 2, scale=inputs**-0.5)
    return [x, weight, a, new(outputs, rank, dtype=adapter, seed=seed + 3, scale=rank**-0.5), bias]


def plain(*made, **more):
    return reference(*made, **more, upcast=False)


def run(compute, made, gradient, scale=0.75, asked=NAMES):
    """Return the output of one way to compute, and the gradients of the tensors asked for."""
    double = compute is reference
    own = [None if one is None else (one.double() if double else one).detach() for one in made]  # strides stay
    leaves = [one.requires_grad_() for name, one in zip(NAMES, own) if name in asked and one is not None]
    x, weight, a, b, bias = own
    y = compute(x, weight, a, b, scale=scale, bias=bias)
    return [y.detach(), *(torch.autograd.grad(y, leaves, gradient.to(y.dtype)) if leaves else ())]


def assert_right(made, gradient=None, scale=0.75, asked=NAMES):
    if gradient is None:
        gradient = make(*made[0].shape[:-1], made[1].shape[0], dtype=made[0].dtype, seed=99)
    found, theirs, wanted = (run(way, made, gradient, scale, asked) for way in (lora_linear, plain, reference))
    given = {"y": made[0]} | {name: one for name, one in zip(NAMES, made) if name in asked and one is not None}
    assert len(found) == len(given)
    for (name, like), one, other, truth in zip(given.items(), found, theirs, wanted):
        assert one.dtype == like.dtype
        assert one.shape == truth.shape
        wrong = twice_rule(one, other, truth)
        # Half precision rounds twice, u or t and the result, each by half a unit; with few elements plain torch can be right by luck.
        lucky = like.dtype != torch.float32 and error(one, truth) <= torch.finfo(like.dtype).eps * truth.abs().max()
        assert wrong is None or lucky, f"{name} at {[tuple(each.shape) for each in made if each is not None]}, {made[0].dtype}: {wrong}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 16, 17, 64, 65, 256])
def test_any_rank(dtype, rank):
    assert_right(tensors(30, 50, 64, rank, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 1, 1), (63, 64, 65), (64, 65, 63), (65, 197, 1), (197, 63, 65), (1023, 5, 3), (3, 1023, 5), (5, 3, 1023), (1, 64, 64)],
)
def test_ragged_sizes_read_nothing_beside_themselves(dtype, rows, inputs, outputs):
    assert_right(tensors(rows, inputs, outputs, 5, dtype, new=surrounded))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_float32_adapters_beside_half_precision(dtype):
    made = tensors(70, 96, 65, 24, dtype, torch.float32)
    assert_right(made)
    _, *gradients = run(lora_linear, made, make(70, 65, dtype=dtype, seed=7))
    assert [one.dtype for one in gradients] == [dtype, dtype, torch.float32, torch.float32, dtype]
    assert not torch.equal(gradients[2], gradients[2].to(dtype).float())  # it was never rounded


@pytest.mark.parametrize("scale", [0.0, -2.0, 64, 1e-3])
def test_any_scale(scale):
    assert_right(tensors(17, 33, 20, 4), scale=scale)


@settings(max_examples=25, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))  # to shrink would take minutes
@given(
    lead=st.lists(st.integers(0, 6), max_size=3),
    inputs=st.integers(1, 100), outputs=st.integers(1, 100), rank=st.integers(1, 80),
    dtype=st.sampled_from(DTYPES), mixed=st.booleans(), bias=st.booleans(),
    asked=st.lists(st.sampled_from(NAMES), unique=True), transposed=st.lists(st.sampled_from(NAMES[:4]), unique=True),
    step=st.sampled_from([1, 2, 3]), scale=st.sampled_from([0.1, 1.0, -4.0]), seed=st.integers(0, 999),
)  # fmt: skip
def test_whatever_is_given_is_what_float64_says(
    lead, inputs, outputs, rank, dtype, mixed, bias, asked, transposed, step, scale, seed
):  # fmt: skip
    rows = torch.Size(lead).numel()
    made = tensors(max(rows, 1) * step, inputs, outputs, rank, dtype, torch.float32 if mixed else dtype, seed)
    made[0] = made[0][::step][:rows]  # rows that lie apart
    made = [one.t().contiguous().t() if name in transposed else one for name, one in zip(NAMES, made)]
    made[0] = made[0].reshape(*lead, inputs)
    assert_right([*made[:4], made[4] if bias else None], scale=scale, asked=asked)


VIEWS = {
    "every second row": lambda x: x[::2],
    "columns of a wider tensor": lambda x: x[:, 3:20],
    "every second column": lambda x: x[:, ::2],
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x[:1].expand(9, -1),
    "a batch in front": lambda x: x.reshape(4, 6, 24).transpose(0, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strided_inputs_and_gradients(view):
    x = view(make(24, 24))
    made = tensors(1, x.shape[-1], 24, 6)
    gradient = make(24, *x.shape[:-1], seed=9).movedim(0, -1)  # its last axis is not the innermost
    made[0] = x
    assert not gradient.is_contiguous()
    assert_right(made, gradient)
    found = run(lora_linear, made, gradient)
    wanted = run(lora_linear, [one.contiguous() for one in made], gradient.contiguous())
    ours = (0, 1, 3, 4)  # y, dx, dA and dB: torch's own sums for weight and bias depend on strides
    assert all(torch.equal(found[i], wanted[i]) for i in ours)


@pytest.mark.parametrize("name", ["weight", "lora_A", "lora_B", "bias"])
def test_strided_weights(name):
    made = tensors(20, 48, 32, 16)
    at = NAMES.index(name)
    wider = make(*(2 * size for size in made[at].shape), seed=5)
    made[at] = wider[tuple(slice(None, None, 2) for _ in made[at].shape)]
    assert_right(made)
    if name != "bias":
        made[at] = made[at].contiguous().t().contiguous().t()
        assert_right(made)


def test_a_transposed_weight_is_taken_without_a_copy_and_one_with_gaps_is_not():
    weight = make(32, 48)
    assert kernel._walkable(weight.t()).data_ptr() == weight.data_ptr()
    assert kernel._walkable(weight[:, 8:40]).data_ptr() == weight[:, 8:].data_ptr()
    assert kernel._walkable(weight[::2, ::2]).is_contiguous()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "FARTHEST", 64)
        assert kernel._walkable(weight) is weight
        assert kernel._walkable(make(3, 100)[:, :7]).stride() == (7, 1)


def test_gradients_with_strides_of_zero():
    made = [one.requires_grad_() for one in tensors(9, 33, 20, 4)]
    found = torch.autograd.grad(lora_linear(*made[:4], 0.5, made[4]).sum(), made)
    wanted = torch.autograd.grad(plain(*made[:4], 0.5, made[4]).sum(), made)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("tiles", [(16, 32, 64), (32, 16, 16)])
@pytest.mark.parametrize("group", [1, 3])
def test_any_tile_in_any_order(monkeypatch, tiles, group):
    names = {"linear": ("BLOCK_M", "BLOCK_N", "BLOCK_K"), "narrow": ("BLOCK_M", "BLOCK_K"), "sums": ("BLOCK_M", "BLOCK_N")}

    def config(target, use, itemsize):
        return Config(dict(zip(names[use.partition("_")[0]], tiles)), 4, 1)

    monkeypatch.setattr(kernel, "config_for", config)
    monkeypatch.setattr(kernel, "GROUP", group)
    assert_right(tensors(83, 30, 40, 20))


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_rows_split_over_any_number_of_programs(monkeypatch, programs):
    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    assert_right(tensors(200, 20, 24, 3))


def test_what_16_does_not_divide_takes_a_configuration_of_its_own(monkeypatch):
    taken, look = [], kernel.config_for
    monkeypatch.setattr(kernel, "config_for", lambda target, use, itemsize: taken.append(use) or look(target, use, itemsize))

    def uses(x, weight, a, b, asked=("lora_A",)):
        taken.clear()
        run(lora_linear, [x, weight, a, b, None], make(3, len(weight)), asked=asked)
        return taken.copy()

    x, weight, a, b, _ = tensors(3, 64, 48, 8)
    assert uses(x, weight, a, b) == ["narrow", "linear", "narrow", "sums"]
    assert uses(x, weight[:47], a, b[:47]) == ["narrow", "linear_odd", "narrow_odd", "sums"]
    assert uses(x[:, :63], weight[:, :63], a[:, :63], b, ("lora_B",)) == ["narrow_odd", "linear_odd", "sums"]
    assert uses(make(3, 70)[:, 3:67], weight, a, b) == ["narrow_odd", "linear_odd", "narrow", "sums_odd"]


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, under the interpreter
def test_infinity_stays_where_it_is_and_does_not_become_nan():
    x, weight, a, b, bias = (one.abs() for one in tensors(4, 20, 24, 5))  # 5 columns of 16: the others must not add ∞·0
    x[1, 3] = float("inf")
    found, wanted = (way(x, weight, a, b, 1.0, bias) for way in (lora_linear, plain))
    assert found[1].isposinf().all() and wanted[1].isposinf().all() and found[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("lead", [(0,), (3, 0, 2)])
def test_an_empty_batch_gives_an_empty_result_and_gradients_of_zero(lead):
    made = [make(*lead, 12), *tensors(1, 12, 7, 3)[1:]]
    y, dx, *others = run(lora_linear, made, make(*lead, 7))
    assert y.shape == (*lead, 7) and dx.shape == (*lead, 12)
    assert all(one.shape == like.shape and not one.any() for one, like in zip(others, made[1:]))


def test_one_row_without_a_batch():
    made = tensors(1, 40, 20, 3)
    made[0] = made[0][0]
    assert_right(made)


@pytest.mark.parametrize("asked", [("lora_A", "lora_B"), ("lora_B",), ("x",), ("weight",), ("bias", "lora_A"), ()])
def test_gradients_that_nobody_asks_for_cost_nothing(monkeypatch, asked):
    launched = []
    for name in ("_launch_linear", "_launch_narrow", "_sum_over_rows"):
        work = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *given, name=name, work=work: launched.append(name) or work(*given))
    assert_right(tensors(10, 20, 24, 5), asked=asked)
    forward = ["_launch_narrow", "_launch_linear"]
    needed = {"x": ["_launch_linear"], "lora_A": ["_sum_over_rows"], "lora_B": ["_sum_over_rows"]}
    more = [name for one in asked for name in needed.get(one, [])] + ["_launch_narrow"] * bool({"x", "lora_A"} & set(asked))
    assert sorted(launched) == sorted(forward + more)


def test_kept_for_backward_are_the_inputs_and_the_thin_product():
    made = [one.requires_grad_() for one in tensors(6, 33, 20, 4)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lora_linear(*made[:4], 0.5, made[4])
    assert [one.data_ptr() for one in kept[:4]] == [one.data_ptr() for one in made[:4]]
    assert [tuple(one.shape) for one in kept[4:]] == [(6, 16)]


def test_the_same_bits_twice():
    made, gradient = tensors(200, 50, 60, 7), make(200, 60, seed=9)
    first, second = (run(lora_linear, made, gradient) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("config", [LoRAConfig(rank=3, alpha=8), LoRAConfig(rank=20, alpha=5)])
def test_it_is_the_rooms_layer_and_pefts(bias, config):
    peft = pytest.importorskip("peft", reason="peft is in the test environment only")
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(40, 24, bias=bias), config).to(DEVICE)
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    nn.init.normal_(b)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha)
    twin = peft.tuners.lora.Linear(nn.Linear(40, 24, bias=bias), "default", settings, r=config.rank, lora_alpha=config.alpha).to(DEVICE)
    with torch.no_grad():
        twin.lora_A["default"].weight.copy_(a)
        twin.lora_B["default"].weight.copy_(b)
        twin.base_layer.load_state_dict(layer.base.state_dict())
    x, gradient = make(2, 9, 40).requires_grad_(), make(2, 9, 24, seed=1)
    base = layer.base
    theirs = (x, twin.lora_A["default"].weight, twin.lora_B["default"].weight)
    found = [lora_linear(x, base.weight, a, b, config.scale, base.bias), layer(x), twin(x)]
    gradients = [torch.autograd.grad(y, leaves, gradient) for y, leaves in zip(found, ((x, a, b), (x, a, b), theirs))]
    for y, own in zip(found[1:], gradients[1:]):
        torch.testing.assert_close(found[0], y, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradients[0], own, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(found[0], base(x))


def test_the_merged_weight_gives_the_same():
    x, weight, a, b, bias = tensors(30, 48, 40, 8)
    torch.testing.assert_close(lora_linear(x, weight, a, b, 0.5, bias), nn.functional.linear(x, weight + 0.5 * b @ a, bias))


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("mixed", [False, True])
def test_opcheck(mixed):
    made = tensors(6, 33, 20, 4, torch.float16 if mixed else torch.float32, torch.float32)
    x, *others = (one.requires_grad_() for one in made)
    x = x.detach().reshape(2, 3, 33).requires_grad_()
    torch.use_deterministic_algorithms(False)  # opcheck compares outputs that a bare call leaves empty
    torch.library.opcheck(kernel._op, (x, *others, 0.5))
    torch.library.opcheck(kernel._op, (x, *others[:3], None, 0.5))
    y, u = kernel._op(x, *others, 0.5)
    arguments = [one.detach() for one in (torch.ones_like(y), x, *others[:3], u)]
    torch.library.opcheck(kernel._backward_op, (*arguments, 0.5, True, True, True))
    torch.library.opcheck(kernel._backward_op, (*arguments, 0.5, False, True, False))


def test_torch_compile_keeps_it_whole():
    x, weight, a, b, bias = tensors(8, 33, 20, 4)
    a.requires_grad_(), b.requires_grad_(), x.requires_grad_()

    def model(x, a, b):
        return lora_linear(x * 2, weight, a, b, 0.5, bias).sin()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(way(x, a, b).sum(), (x, a, b)) for way in (compiled, model)))


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_of_the_reference(bias):
    made = [one.double().requires_grad_() for one in tensors(3, 5, 4, 2)]
    assert torch.autograd.gradcheck(lambda *own: reference(*own[:4], 0.5, own[4] if bias else None), made[: 5 if bias else 4])


def test_the_reference_upcasts_only_where_asked():
    made = tensors(2, 9, 5, 2, torch.float16, torch.float32)[:4]
    assert reference(*made, 1.0).dtype == torch.float64
    assert plain(*made, 1.0).dtype == torch.float16


X, W, A, B = tensors(2, 4, 3, 2)[:4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lora_linear(X.double(), W, A, B, 1.0), r"x: got a tensor of shape \(2, 4\).*float64.*expected one of torch\.float16"),
        (lambda: lora_linear([1.0], W, A, B, 1.0), r"x: got \[1.0\], expected a dense torch.Tensor"),
        (lambda: lora_linear(X[:, :0], W, A, B, 1.0), r"x: got .*\(2, 0\).*I at least 1"),
        (lambda: lora_linear(X.sum(), W, A, B, 1.0), r"x: got .*I at least 1"),
        (lambda: lora_linear(X, W.half(), A, B, 1.0), "weight: got .*float16.*expected one of torch.float32"),
        (lambda: lora_linear(X, W.t(), A, B, 1.0), r"weight: got .*\(4, 3\).*the shape \[O, 4\]"),
        (lambda: lora_linear(X, W[:0], A, B, 1.0), r"weight: got .*\(0, 4\).*the shape \[O, 4\]"),
        (lambda: lora_linear(X, W, A.half(), B, 1.0), "lora_A: got .*float16.*expected one of torch.float32"),
        (lambda: lora_linear(X, W, A.t(), B, 1.0), r"lora_A: got .*\(4, 2\).*the shape \[r, 4\] with a rank r from 1 to 256"),
        (lambda: lora_linear(X, W, A.expand(200, 2, 4).reshape(400, 4), B, 1.0), r"lora_A: got .*\(400, 4\).*from 1 to 256"),
        (lambda: lora_linear(X, W, A[:0], B, 1.0), r"lora_A: got .*\(0, 4\)"),
        (lambda: lora_linear(X.half(), W.half(), A, B.half(), 1.0), "lora_B: got .*float16.*expected one of torch.float32"),
        (lambda: lora_linear(X, W, A, B.t(), 1.0), r"lora_B: got .*\(2, 3\).*the shape \(3, 2\)"),
        (lambda: lora_linear(X, W, A, B.to("meta"), 1.0), "lora_B: got .*on meta, expected the device"),
        (lambda: lora_linear(X, W, A, B, float("nan")), "scale: got nan, expected a finite number"),
        (lambda: lora_linear(X, W, A, B, "1"), "scale: got '1'"),
        (lambda: lora_linear(X, W, A, B, 1.0, X[0]), r"bias: got .*\(4,\).*the shape \(3,\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not INTERPRETED, reason="bfloat16 is refused by the interpreter only")
def test_bfloat16_is_refused_by_the_interpreter():
    with pytest.raises(ValueError, match=r"x: .*bfloat16.*interpreter computes bfloat16 wrongly"):
        lora_linear(*(one.bfloat16() for one in (X, W, A, B)), 1.0)


def test_it_is_differentiable_once():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(lora_linear(x, W, A, B, 1.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)


class Counted(TorchDispatchMode):
    """The bytes that the operators of a call read and write, views left out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.bytes += sum(one.nbytes for one in (*args, found) if isinstance(one, torch.Tensor))
        return found


def test_bytes_are_counted_by_the_formulas_of_the_docstring():
    rows, inputs, outputs, rank = 64, 48, 80, 16
    said = kernel.moved(rows, inputs, outputs, rank, 4)
    layer = LoRALinear(nn.Linear(inputs, outputs, bias=False), LoRAConfig(rank=rank, alpha=8)).requires_grad_(False).to(DEVICE)
    x = make(rows, inputs)
    for way, name in ((layer, "plain torch"), (layer.base, "merged")):
        with Counted() as counted:
            way(x)
        assert counted.bytes == said[name]
    assert said["plain torch"] - said["fused kernel"] == 6 * 4 * rows * outputs


@pytest.mark.skipif(not INTERPRETED, reason="traffic is counted in the interpreter")
@pytest.mark.parametrize("rank", [1, 8, 16, 20])
def test_each_kernel_reads_and_writes_what_the_formula_says_and_y_once(rank):
    from rundoku.gpu.trace import traffic

    rows, inputs, outputs = 64, 48, 80
    x, weight, a, b, _ = tensors(rows, inputs, outputs, rank)
    (y, u), factor = kernel._outputs(x, weight, a, b, None, 1.0), b.t().contiguous()
    thin = traffic(lambda: kernel._launch_narrow(x, a, u))
    main = traffic(lambda: kernel._launch_linear(x, weight, u, factor, None, y, rank, 1.0))
    assert (main.stored, main.stored_once) == (4 * rows * outputs,) * 2
    found = sum(one.loaded_once + one.stored_once for one in (thin, main))
    assert found == kernel.moved(rows, inputs, outputs, rank, 4)["fused kernel"]
    costs = {case.name: case.cost for case in kernel.compile_cases("sm_90")}
    assert costs["forward, bf16"].bytes == 2 * (8192 * 4096 * 2 + 4096**2 + 64 * (8192 + 4096))
    assert costs["forward, bf16"].flops == 2 * 8192 * 4096 * (4096 + 64)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_published_compiles_without_spill_or_overflow(target):
    reports = compile_report("rundoku.papers.lora.kernel", (target,))
    assert problems(reports) == []
    assert len(reports) == len({report.case for report in reports}) == 20
    assert {report.case for report in reports} >= {
        "forward, bf16",
        "backward, bf16",
        "forward, bf16, unaligned",
        "u or t, bf16, unaligned",
        "dA or dB, fp32",
    }
    assert all(report.tensor_core for report in reports if "bf16" in report.case)
    assert target == "gfx942" or not any(report.tensor_core for report in reports if "fp32" in report.case)  # no TF32
    assert {report.bound for report in reports if report.case == "forward, bf16"} == {"compute"}
    assert {report.bound for report in reports if report.case in ("u or t, bf16", "dA or dB, bf16")} == {"memory"}
    assert problems([replace(reports[0], spill=4)])


def test_every_table_has_every_entry():
    assert set(kernel.CONFIGS) == {*TARGETS, "other", "interpreter"}
    wanted = {(name + odd, size) for name in ("linear", "narrow", "sums") for odd in ("", "_odd") for size in (2, 4)}
    assert all(set(table) == wanted for table in kernel.CONFIGS.values())
    assert all(min(config.tiles.values()) >= 16 for table in kernel.CONFIGS.values() for config in table.values())
    assert [kernel._constants(2, rank, False)["BLOCK_R"] for rank in (1, 16, 17, 256)] == [16, 16, 64, 64]
    assert [kernel._constants(size, 8, True)["BLOCK_R"] for size in (2, 4)] == [64, 16]
    assert [kernel._constants(size, 8, False)["PRECISION"] for size in (2, 4)] == ["tf32", "ieee"]


def test_no_training_rests_on_the_kernel():
    modules = closure("rundoku.papers.lora.experiments")
    assert "rundoku.papers.lora.layers" in modules
    assert not [name for name in modules if "kernel" in name or name.endswith(".benchmarks") or name.startswith("rundoku.gpu")]


def test_benchmarks_compare_like_with_like(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    found = benchmarks_of("rundoku.papers.lora.kernel")
    assert len({(bench.case, *bench.sizes.values()) for bench in found}) == len(found)
    assert {bench.case for bench in found} == {"forward", "backward"}
    small = {"R": 40, "I": 48, "O": 32, "r": 4}
    for case in ("forward", "backward"):

        def prepare(device, case=case):
            calls, exact = benchmarks._calls(case, small, "float16", device)
            assert set(calls) == {"rundoku", "torch", "torch.compile", "torch, in place", "merged weight"}
            shapes = [[tuple(one.shape) for one in call()] for name, call in calls.items() if name != "merged weight"]
            assert all(each == [tuple(one.shape) for one in exact] for each in shapes)
            torch.testing.assert_close(calls["merged weight"]()[0].double(), exact[0], rtol=0.02, atol=0.02)
            return calls, exact

        bench = replace(next(bench for bench in found if bench.case == case), dtype="float16", prepare=prepare)
        assert measure(bench, DEVICE, "NVIDIA H200", lambda call: (1.0, call() and 2.0, 3.0))[0].provider == "rundoku"


def test_benchmarks_count_by_the_formulas_of_the_kernel():
    sizes = {"R": 8192, "I": 4096, "O": 4096, "r": 16}
    forward, backward = (
        next(b for b in benchmarks.benchmarks() if b.sizes == sizes and b.case == case) for case in ("forward", "backward")
    )
    assert forward.flops == 2 * 8192 * (4096 * 4096 + 16 * 8192)
    assert backward.flops == 2 * 8192 * (4096 * 4096 + 2 * 16 * 8192)
    assert forward.bytes == 2 * (8192 * 8192 + 4096 * 4096 + 16 * 8192)  # x and y, W, A and B: each once
    assert backward.bytes == 2 * (3 * 8192 * 4096 + 4096 * 4096 + 2 * 16 * 8192)
