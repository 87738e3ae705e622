"""Peers compute the same thing as ours, and one that cannot be imported is left out, with a line that says so."""

import importlib
import sys
import types

import pytest
import torch
from torch.nn import functional as F

from rundoku.gpu import peers
from rundoku.gpu.check import twice_rule

launch = pytest.importorskip("rundoku.gpu.launch", reason="the kernels need triton, which exists for Linux", exc_type=ImportError)
DEVICE = "cpu" if launch.INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    peers._found.cache_clear()
    yield
    peers._found.cache_clear()


@pytest.mark.parametrize(
    ("package", "find", "name", "provider"),
    [
        ("liger_kernel", peers.liger, "liger_rope", "Liger-Kernel"),
        ("flash_attn", peers.flash_operator, "rms_norm_fn", "flash-attention"),
    ],
)
def test_a_peer_is_left_out_with_one_line_where_it_cannot_be_imported(monkeypatch, capsys, package, find, name, provider):
    monkeypatch.setitem(sys.modules, package, None)
    assert find(name) is None
    assert find(name) is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"bench: {provider}'s {name} is left out: ")


def in_place_rope(query, key, cos, sin):
    """What Liger-Kernel does: it turns heads-second tensors where they lie."""
    assert all(each.transpose(1, 2).is_contiguous() for each in (query, key))
    for each in (query, key):
        half = torch.cat((-each[..., each.shape[-1] // 2 :], each[..., : each.shape[-1] // 2]), -1)
        each.data.copy_(each * cos[:, None] + half * sin[:, None])
    return query, key, cos, sin


def flash_norm(x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6, dropout_p=0.0, prenorm=False):
    h = x if residual is None else x + residual
    y = F.rms_norm(h, weight.shape, weight, eps) if bias is None else F.layer_norm(h, weight.shape, weight, bias, eps)
    return (y, h) if prenorm else y


def flash_rotary(x, cos, sin, interleaved=False, inplace=False):
    """[B, N, H, D], tables [N, D/2]."""
    assert x.shape[1] == len(cos) and not inplace
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    turned = (a * c - b * s, b * c + a * s)
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


@pytest.fixture
def fake(monkeypatch):
    """Plain torch under the peers' names and signatures."""
    functional = types.ModuleType("liger_kernel.transformers.functional")
    functional.liger_layer_norm = lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps)
    functional.liger_rms_norm = lambda x, w, eps, offset=0.0, casting_mode="llama", in_place=True: (
        F.rms_norm(x, w.shape, w, eps) if not in_place else x.zero_()
    )
    functional.liger_fused_add_rms_norm = lambda x, r, w, eps, offset=0.0, casting_mode="llama", in_place=True: (
        F.rms_norm(x + r, w.shape, w, eps),
        x + r,
    )
    functional.liger_swiglu = lambda a, b: F.silu(a) * b
    functional.liger_rope = in_place_rope
    functional.liger_fused_linear_cross_entropy = lambda hidden, weight, targets: F.cross_entropy(hidden @ weight.T, targets)
    for name in ("liger_kernel", "liger_kernel.transformers", "flash_attn", "flash_attn.ops", "flash_attn.ops.triton", "flash_attn.layers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    operators = {
        "layer_norm_fn": flash_norm,
        "rms_norm_fn": flash_norm,
        "apply_rotary_emb": flash_rotary,
        "cross_entropy_loss": lambda logits, labels: (F.cross_entropy(logits, labels, reduction="none"), torch.zeros(len(labels))),
    }
    made = {module: types.ModuleType(f"flash_attn.{module}") for module in peers._FLASH_MODULES.values()}
    for name, operator in operators.items():
        setattr(made[peers._FLASH_MODULES[name]], name, operator)
    for module in (functional, *made.values()):
        monkeypatch.setitem(sys.modules, module.__name__, module)


BOTH, NONE = {"Liger-Kernel", "flash-attention"}, set()
ROTARY, LOGITS = {"B": 2, "H": 3, "G": 1, "N": 6, "D": 16}, {"N": 5, "C": 32, "V": 40}
CALLS = [
    *(("layer_norm", (case, {"R": 6, "C": 96}), BOTH) for case in ("forward", "add and forward", "backward")),
    *(("rms_norm", (case, {"R": 6, "C": 96}), BOTH) for case in ("forward", "add and forward", "backward")),
    *(("glu_variants", ("silu", direction, {"R": 6, "F": 96}), {"Liger-Kernel"}) for direction in ("forward", "backward")),
    ("glu_variants", ("gelu", "forward", {"R": 6, "F": 96}), NONE),  # Liger-Kernel's is another function
    ("roformer", ("forward, half", ROTARY), BOTH),
    *(("roformer", (case, ROTARY), {"flash-attention"}) for case in ("forward, interleaved", "backward, interleaved")),
    ("cut_cross_entropy", ("forward", LOGITS), BOTH),
    ("cut_cross_entropy", ("backward", LOGITS), {"flash-attention"}),  # Liger-Kernel's gradients are made in forward
]


@pytest.mark.parametrize(("room", "arguments", "asked"), CALLS)
def test_peers_are_asked_for_what_ours_computes(fake, room, arguments, asked):
    benchmarks = importlib.import_module(f"rundoku.papers.{room}.benchmarks")
    calls, exact = benchmarks._calls(*arguments, "float32", DEVICE)
    assert set(calls) == {"rundoku", "torch", "torch.compile"} | asked
    found = {name: call() for name, call in calls.items()}
    for name in ("rundoku", *asked):
        for one, other, truth in zip(found[name], found["torch"], exact, strict=True):
            assert twice_rule(one, other, truth) is None
    assert all(map(torch.equal, calls["rundoku"](), found["rundoku"]))  # what a peer wrote over was its own


def test_a_call_of_the_backward_pass_times_no_forward_pass():
    ran = []

    def counted(x):
        ran.append(1)
        return x.exp()

    x = torch.randn(4)
    calls, exact = peers.compare(counted, torch.exp, (x,), (torch.ones_like(x),))
    for _ in range(3):
        torch.testing.assert_close(calls["rundoku"]()[0].double(), exact[0])
    assert len(ran) == 1


def test_a_peer_that_fails_forward_lets_the_others_be_prepared_for_backward():
    def refuse(x):
        raise RuntimeError("another dtype, please")

    x = torch.randn(4, dtype=torch.float64)
    calls, exact = peers.compare(torch.exp, torch.exp, (x,), (torch.ones_like(x),), others={"a peer": refuse})
    assert torch.equal(calls["rundoku"]()[0], exact[0]) and torch.equal(calls["rundoku"]()[0], x.exp())
    with pytest.raises(RuntimeError, match="another dtype, please"):
        calls["a peer"]()


@pytest.mark.parametrize(("room", "axis", "most"), [("layer_norm", "C", 16_384), ("rms_norm", "C", 16_384), ("glu_variants", "F", 22_016)])
def test_widths_from_1k_to_16k_are_measured(room, axis, most):
    found = {bench.sizes[axis] for bench in importlib.import_module(f"rundoku.papers.{room}.benchmarks").benchmarks()}
    assert found >= {1024, 2048, 4096, 8192, 16_384}
    assert max(found) == most
