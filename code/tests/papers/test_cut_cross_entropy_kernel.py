"""The Triton cut cross-entropy: the 2× rule against float64, ragged and strided shapes, every gradient, the filter, and what compiles.

On a machine without a GPU the kernels run in Triton's interpreter, in float16 and float32; on a GPU bfloat16 is tested too.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.gpu.check import EPSILON, twice_rule  # noqa: E402 after the check for triton
from rundoku.gpu.launch import INTERPRETED  # noqa: E402
from rundoku.gpu.report import compile_report, problems  # noqa: E402
from rundoku.gpu.targets import TARGETS  # noqa: E402
from rundoku.papers import cut_cross_entropy as plain  # noqa: E402
from rundoku.papers.cut_cross_entropy import kernel  # noqa: E402
from rundoku.papers.cut_cross_entropy.kernel import linear_cross_entropy, reference  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned():
    """Fill what is not yet written with NaN, so that an element which a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def make(n, c, v, *, dtype, seed=0, ignored=0.2, bias=True, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, offset = (torch.randn(*shape, generator=generator) for shape in ((n, c), (v, c), (v,)))
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = -100
    hidden, weight = hidden.to(dtype), (weight * scale / c**0.5).to(dtype)
    return hidden.to(DEVICE), weight.to(DEVICE), targets.to(DEVICE), offset.to(dtype).to(DEVICE) if bias else None


def run(way, inputs, **options):
    """Return the loss and every gradient of one way to compute; losses of each token are added with weights of their own."""
    hidden, weight, targets, bias = inputs
    own = [None if one is None else one.detach().clone().requires_grad_() for one in (hidden, weight, bias)]
    loss = way(own[0], own[1], targets, own[2], **options)
    total = (loss * torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype, device=DEVICE).view(loss.shape)).sum()
    return [loss.detach(), *torch.autograd.grad(total, [one for one in own if one is not None])]


def eager(*inputs, **options):
    return reference(*inputs, **options, upcast=False)


def assert_right(inputs, **options):
    """Hold values and gradients against the 2× rule.

    Both ways round softmax − 1 to the input's dtype; where a sum has a term or two, plain torch may be lucky, and one rounding is allowed.
    """
    filtering = {name: options.pop(name) for name in ("filter_eps", "filter_weight") if name in options}
    ours = run(linear_cross_entropy, inputs, **options, **filtering)
    theirs, exact = run(eager, inputs, **options), run(reference, inputs, **options)
    hidden, weight, targets, bias = inputs
    upstream = 2 / max(1, (targets != -100).sum().item()) if options.get("reduction", "mean") == "mean" else 2
    roundings = [
        hidden.shape[-1] ** 0.5 * 1e-6,
        *(torch.finfo(hidden.dtype).eps * upstream * x.abs().max().item() for x in (weight, hidden)),
    ]
    roundings.append(torch.finfo(hidden.dtype).eps * upstream)
    for name, one, other, truth, rounding in zip(("loss", "hidden", "weight", "bias"), ours, theirs, exact, roundings):
        wrong = twice_rule(one, other, truth, terms=rounding / EPSILON)
        assert wrong is None, f"{name} at {tuple(hidden.shape)}, {tuple(weight.shape)}, {options}: {wrong}"
    assert ours[0].dtype == torch.float32
    assert [one.dtype for one in ours[1:]] == [one.dtype for one in (hidden, weight, bias) if one is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "c", "v"), [(1, 1, 1), (63, 64, 65), (64, 63, 197), (65, 197, 64), (197, 5, 33)])
def test_values_and_every_gradient_at_ragged_sizes(dtype, n, c, v):
    assert_right(make(n, c, v, dtype=dtype))


def test_a_vocabulary_of_many_blocks():
    assert_right(make(29, 16, 1023, dtype=torch.float16))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_reductions_and_soft_cap(reduction, softcap):
    for dtype in DTYPES:
        assert_right(make(40, 33, 70, dtype=dtype, bias=softcap > 0, scale=4.0), reduction=reduction, softcap=softcap)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 70)),
    dtype=st.sampled_from(DTYPES),
    softcap=st.sampled_from([0.0, 2.0, 30.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    bias=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 0.95]),
    shift=st.integers(0, 1),
    layout=st.sampled_from(["plain", "wider", "transposed", "every second"]),
    seed=st.integers(0, 1000),
)
def test_any_call(shape, dtype, softcap, reduction, bias, ignored, shift, layout, seed):
    n, c, v = shape
    hidden, weight, targets, offset = make(n, c, v, dtype=dtype, seed=seed, bias=bias, ignored=ignored)
    if (targets[shift:] == -100).all():
        targets[-1] = 0  # a mean over no tokens is NaN, and has its own test
        shift = 0

    def laid_out(x):
        if layout == "wider":
            return torch.cat([x, x], 1)[:, : x.shape[1]]
        if layout == "transposed":
            return x.t().contiguous().t()
        return torch.stack([x, x], 2).flatten(1)[:, ::2] if layout == "every second" else x

    inputs = (laid_out(hidden), laid_out(weight), targets, offset)
    assert_right(inputs, softcap=softcap, reduction=reduction, shift=shift)
    options = {"softcap": softcap, "reduction": reduction, "shift": shift}  # run() clones; here the strides reach the kernel
    strided = linear_cross_entropy(*inputs, **options)
    assert torch.equal(strided, linear_cross_entropy(hidden, weight, targets, offset, **options))


def test_leading_axes_and_the_next_token():
    hidden, weight, targets, bias = make(60, 20, 50, dtype=torch.float32)
    inputs = (hidden.view(3, 20, 20), weight, targets.view(3, 20), bias)
    for reduction in ("mean", "none"):
        assert_right(inputs, shift=1, reduction=reduction)
    assert linear_cross_entropy(*inputs, shift=3, reduction="none").shape == (3, 17)
    assert linear_cross_entropy(*inputs, shift=True) == linear_cross_entropy(*inputs, shift=1)


def test_all_ignored_gives_what_torch_gives():
    inputs = make(20, 8, 12, dtype=torch.float32, ignored=2.0)
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            run(linear_cross_entropy, inputs, reduction=reduction), run(eager, inputs, reduction=reduction), equal_nan=True
        )


def test_an_empty_batch():
    for reduction, expected in (("sum", torch.tensor(0.0)), ("none", torch.empty(0)), ("mean", torch.tensor(float("nan")))):
        loss, *gradients = run(linear_cross_entropy, make(0, 8, 12, dtype=torch.float32), reduction=reduction)
        torch.testing.assert_close(loss.cpu(), expected, equal_nan=True)
        assert not any(gradient.any() for gradient in gradients)


def test_int32_targets_and_another_ignored_number():
    hidden, weight, targets, bias = make(20, 8, 12, dtype=torch.float32)
    expected = linear_cross_entropy(hidden, weight, targets, bias)
    assert torch.equal(linear_cross_entropy(hidden, weight, targets.int(), bias), expected)
    assert torch.equal(linear_cross_entropy(hidden, weight, torch.where(targets == -100, 3000, targets), bias, ignore_index=3000), expected)


@pytest.mark.parametrize("view", [lambda x: x[::2], lambda x: x[:1].expand(20), lambda x: x.view(2, 20).t().flatten()[:20]])
def test_strided_targets(view):
    hidden, weight, targets, bias = make(40, 8, 12, dtype=torch.float32, ignored=0.0)
    inputs = [(hidden[:20], weight, one, bias) for one in (view(targets), view(targets).contiguous())]
    assert all(torch.equal(a, b) for a, b in zip(*(run(linear_cross_entropy, one) for one in inputs)))


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # the interpreter's logarithm of a part of the vocabulary
def test_words_ruled_out_by_their_bias():
    hidden, weight, targets, bias = make(20, 8, 100, dtype=torch.float32)
    bias[:70] = -float("inf")  # more than the first blocks
    inputs = (hidden, weight, torch.where(targets == -100, targets, targets % 30 + 70), bias)
    for eps in (None, 1e-30):
        assert_right(inputs, filter_eps=eps)


def test_ignored_rows_of_nan_touch_nothing():
    hidden, weight, targets, bias = make(40, 8, 50, dtype=torch.float32)
    poisoned = hidden.masked_fill((targets == -100)[:, None], float("nan"))
    for eps in (None, 1e-3):
        found, expected = (run(linear_cross_entropy, (one, weight, targets, bias), filter_eps=eps) for one in (poisoned, hidden))
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_small_upstream_gradient_survives_float16():
    inputs = make(40, 33, 70, dtype=torch.float16)
    own = [one.clone().requires_grad_() for one in inputs[:2]]
    exact = [one.double().requires_grad_() for one in inputs[:2]]
    found = torch.autograd.grad(linear_cross_entropy(*own, inputs[2]) * 2**-12, own)
    wanted = torch.autograd.grad(reference(*exact, inputs[2]) * 2**-12, exact)
    for one, truth in zip(found, wanted):
        assert (one - truth).abs().max() < 2**-10 * truth.abs().max() + 2**-25  # half of float16's smallest step


def test_large_logits():
    assert_right(make(33, 64, 100, dtype=torch.float16, scale=60.0))


def test_the_loss_through_its_log_sum_exp():
    inputs = make(40, 20, 70, dtype=torch.float32)

    def z_loss(way):
        own = [one.clone().requires_grad_() for one in (*inputs[:2], inputs[3])]
        loss, lse = way(own[0], own[1], inputs[2], own[2], return_lse=True, softcap=4.0)
        return [lse.detach(), *torch.autograd.grad(loss + 0.1 * lse.square().sum(), own)]

    torch.testing.assert_close(z_loss(linear_cross_entropy), z_loss(plain.linear_cross_entropy), rtol=2e-5, atol=2e-5)

    def alone(way):
        own = inputs[0].clone().requires_grad_()
        return torch.autograd.grad(way(own, *inputs[1:], return_lse=True)[1].sum(), own)[0]

    torch.testing.assert_close(alone(linear_cross_entropy), alone(plain.linear_cross_entropy))


@pytest.mark.parametrize("weight_too", [True, False])
def test_the_filter_leaves_out_the_blocks_that_plain_torch_leaves_out(weight_too):
    hidden, weight, targets, bias = make(70, 20, 150, dtype=torch.float32)
    bias = bias - 12.0 * (torch.arange(150, device=DEVICE) % 3 > 0)  # two words of three are rare, and sorting brings them together
    inputs = (hidden, weight, torch.where(targets == -100, targets, targets // 3 * 3), bias)
    tiles = kernel.config_for(hidden, "hidden").tiles
    assert tiles == kernel.config_for(hidden, "weight").tiles  # the same blocks in both passes, as plain torch has them
    options = {"filter_eps": 2**-12, "filter_weight": weight_too}
    ours = run(linear_cross_entropy, inputs, **options)
    blocks = {"block_tokens": tiles["BLOCK_N"], "block_vocab": tiles["BLOCK_V"]}
    theirs, exact = run(plain.linear_cross_entropy, inputs, **options, **blocks), run(plain.linear_cross_entropy, inputs)
    torch.testing.assert_close(ours, theirs)
    rows_left_out = [(one[2] == 0).all(-1).sum().item() for one in (ours, exact)]
    assert rows_left_out[0] >= 2 * tiles["BLOCK_V"] if weight_too else rows_left_out[0] == rows_left_out[1] == 0
    assert (ours[1] - exact[1]).abs().max() > 1e-9  # and of hidden's gradient the same blocks


def test_a_filter_that_lets_all_through_changes_nothing_but_the_order():
    inputs = make(40, 33, 70, dtype=torch.float32)
    assert_right(inputs, filter_eps=1e-30)


def test_more_blocks_than_programs(monkeypatch):
    monkeypatch.setattr(kernel, "PROGRAMS", 2)
    assert_right(make(70, 16, 200, dtype=torch.float32))
    assert_right(make(20, 16, 200, dtype=torch.float16), filter_eps=1e-30)
    monkeypatch.setattr(kernel, "PROGRAMS", 1)
    assert_right(make(70, 16, 200, dtype=torch.float32))


def test_the_same_call_twice_gives_the_same_bits():
    inputs = make(70, 33, 200, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(run(linear_cross_entropy, inputs), run(linear_cross_entropy, inputs)))


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch):
    hidden, weight, targets, bias = make(6, 33, 20, dtype=torch.float32)
    linear_cross_entropy(hidden, weight.requires_grad_(), targets, bias).backward()
    assert hidden.grad is None
    monkeypatch.setattr(kernel, "_weight_pass", None)
    weight.requires_grad_(False)
    linear_cross_entropy(hidden.requires_grad_(), weight, targets, bias).backward()
    assert hidden.grad is not None


def test_nothing_of_the_size_of_the_logits_is_kept():
    hidden, weight, targets, _ = make(64, 4, 512, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets).backward()
    assert max(kept) == weight.numel() < 64 * 512


def test_autocast_casts_as_a_linear_layer():
    hidden, weight, targets, bias = make(20, 16, 30, dtype=torch.float32)
    weight.requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.float16):
        loss = linear_cross_entropy(hidden, weight, targets, bias)
    loss.backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, linear_cross_entropy(hidden.half(), weight.half(), targets, bias), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("everything", [True, False])
def test_opcheck(everything):
    hidden, weight, targets, bias = make(9, 8, 12, dtype=torch.float32)
    torch.use_deterministic_algorithms(False)  # opcheck compares outputs that a bare call leaves empty
    bias = bias.requires_grad_() if everything else None
    settings = (-100, 2.0, 1e-6, 1e-6) if everything else (-100, 0.0, 0.0, 0.0)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), bias, targets)
    torch.library.opcheck(kernel._forward, (*inputs, *settings))
    lse = kernel._forward(*inputs, *settings)[1].detach()
    given_lse = torch.ones_like(lse) if everything else None
    saved = (hidden.detach(), weight.detach(), None if bias is None else bias.detach(), targets, lse)
    torch.library.opcheck(kernel._backward, (torch.ones_like(lse), given_lse, *saved, *settings, True, everything, everything))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_compile_keeps_it_whole(reduction):
    hidden, weight, targets, bias = make(18, 8, 12, dtype=torch.float32)
    hidden, targets = hidden.view(2, 9, 8).requires_grad_(), targets.view(2, 9)

    def model(x):
        loss, lse = linear_cross_entropy(x * 2, weight, targets, bias, shift=1, softcap=5.0, reduction=reduction, return_lse=True)
        return loss.sum() + lse.square().mean()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(function(hidden), hidden)[0] for function in (compiled, model)))


def test_gradcheck_of_the_reference():
    hidden, weight, targets, bias = (
        one.double().requires_grad_() if one.is_floating_point() else one for one in make(4, 3, 5, dtype=torch.float32)
    )
    assert torch.autograd.gradcheck(lambda h, w, b: reference(h, w, targets, b, softcap=2.0), (hidden, weight, bias))


def test_the_reference_upcasts_only_where_asked():
    inputs = make(6, 9, 20, dtype=torch.float16)
    assert [reference(*inputs, upcast=upcast).dtype for upcast in (True, False)] == [torch.float64, torch.float16]


def test_it_is_differentiable_once():
    hidden, weight, targets, _ = make(4, 8, 12, dtype=torch.float32)
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden.requires_grad_(), weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), hidden)


HIDDEN, WEIGHT = torch.ones(3, 4, device=DEVICE), torch.ones(5, 4, device=DEVICE)
LABELS = torch.zeros(3, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": HIDDEN.double()}, r"hidden: got a tensor of shape \(3, 4\).*float64.*expected one of torch\.float16"),
        ({"hidden": HIDDEN.to_sparse()}, "hidden: got .*expected a dense"),
        ({"hidden": [1.0]}, r"hidden: got \[1.0\], expected a dense torch.Tensor"),
        ({"weight": WEIGHT.half()}, r"weight: got .*expected one of torch\.float32"),
        ({"weight": torch.ones(5, 4, device="meta")}, "weight: got .*on meta, expected the device"),
        ({"weight": WEIGHT[:, :3]}, r"weight: got torch.float32 of shape \(5, 3\)"),
        ({"targets": LABELS.float()}, "targets: got .*expected one of torch.int64"),
        ({"targets": LABELS[:2]}, r"targets: got .*\(2,\)"),
        ({"bias": torch.ones(5, dtype=torch.int64, device=DEVICE)}, "bias: got .*int64"),
        ({"bias": torch.ones(4, device=DEVICE)}, r"bias: got .*\(4,\)"),
        ({"ignore_index": None}, "ignore_index: got None"),
        ({"softcap": -1.0}, "softcap: got -1.0"),
        ({"reduction": "average"}, "reduction: got 'average'"),
        ({"shift": 4}, "shift: got 4"),
        ({"filter_eps": -1.0}, "filter_eps: got -1.0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{"hidden": HIDDEN, "weight": WEIGHT, "targets": LABELS, **change})


@pytest.mark.parametrize("wrong", [5, -1, -101])
def test_a_target_outside_the_vocabulary(wrong, monkeypatch):
    targets = torch.tensor([0, wrong, -100], device=DEVICE)
    if INTERPRETED:
        with pytest.raises(ValueError, match=rf"targets: got {wrong}, expected -100 \(ignored\) or a token from 0 to 4"):
            linear_cross_entropy(HIDDEN, WEIGHT, targets)
        monkeypatch.setattr(kernel, "INTERPRETED", False)  # as on a GPU, where nobody looks
    for eps in (None, 0.5):
        own = [one.clone().requires_grad_() for one in (HIDDEN, WEIGHT)]
        loss = linear_cross_entropy(*own, targets, reduction="none", filter_eps=eps)
        assert loss.isnan().tolist() == [False, True, False]
        assert all(grad.isnan().all() for grad in torch.autograd.grad(loss.sum(), own))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_filter_does_not_hide_what_is_not_finite(broken):
    hidden, weight, targets, bias = make(40, 8, 50, dtype=torch.float32)
    hidden = hidden.clone()
    hidden[(targets != -100).nonzero()[0, 0], 0] = broken
    loss, *grads = run(linear_cross_entropy, (hidden, weight, targets, bias), filter_eps=0.9)
    assert loss.isnan()
    assert all(grad.isnan().all() for grad in grads)


def test_what_is_published_compiles_for_every_target_without_spill_or_overflow():
    reports = compile_report("rundoku.papers.cut_cross_entropy.kernel")
    assert problems(reports) == []
    assert {report.target for report in reports} == set(TARGETS)
    assert all(report.tensor_core for report in reports if report.case.endswith("bf16") and "logit" not in report.case)
    assert {report.case for report in reports} >= {"backward, hidden, bf16", "backward, hidden, unfiltered, bf16", "backward, weight, fp32"}
    assert problems([replace(reports[0], spill=4)])


@pytest.mark.skipif(not INTERPRETED, reason="accesses are counted in the interpreter")
def test_each_pass_reads_and_writes_what_the_docstring_says_and_no_logits():
    from rundoku.gpu.trace import accesses

    (n, c, v), side, size = (70, 24, 150), 32, 2  # the interpreter's tile, float16
    hidden, weight, targets, _ = make(n, c, v, dtype=torch.float16, ignored=0.0)
    found = []
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    forward = accesses(lambda: found.append(linear_cross_entropy(*inputs, targets)))
    backward = accesses(found[0].backward)
    down, across = triton.cdiv(n, side), triton.cdiv(v, side)
    walk = size * c * (down * v + across * n)
    own = size * 2 * n * c  # a row of both for a token's own logit
    read = [size * sum(int(each.loads(one).sum()) for one in inputs) for each in (forward, backward)]
    assert read == [walk + own, 3 * walk]  # two passes, and in each one of the two once more
    splits = kernel._splits(down, across)
    assert forward.traffic.stored == 4 * n * (splits + 1)
    assert backward.traffic.stored == 4 * c * (across * n + down * v)
    assert backward.traffic.stored_once == 4 * c * (splits * n + v)  # the sums, and nothing that is N·V
