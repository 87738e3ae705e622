"""Peers compute the same thing as ours, and Liger-Kernel is left out, with a line that says so, where it cannot be imported."""

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
    peers.liger.cache_clear()
    yield
    peers.liger.cache_clear()


def test_liger_kernel_is_left_out_with_one_line_where_it_cannot_be_imported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert peers.liger("liger_rope") is None
    assert peers.liger("liger_rope") is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("bench: Liger-Kernel's liger_rope is left out: ")


def in_place_rope(query, key, cos, sin):
    """What Liger-Kernel does: it turns heads-second tensors where they lie."""
    assert all(each.transpose(1, 2).is_contiguous() for each in (query, key))
    for each in (query, key):
        half = torch.cat((-each[..., each.shape[-1] // 2 :], each[..., : each.shape[-1] // 2]), -1)
        each.data.copy_(each * cos[:, None] + half * sin[:, None])
    return query, key, cos, sin


@pytest.fixture
def fake(monkeypatch):
    """Plain torch under Liger-Kernel's names and signatures."""
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
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, functional.__name__, functional)


CALLS = [
    *(("layer_norm", (case, {"R": 6, "C": 96})) for case in ("forward", "add and forward", "backward")),
    *(("rms_norm", (case, {"R": 6, "C": 96})) for case in ("forward", "add and forward", "backward")),
    *(("glu_variants", ("silu", direction, {"R": 6, "F": 96})) for direction in ("forward", "backward")),
    ("roformer", ("forward, half", {"B": 2, "H": 3, "G": 1, "N": 6, "D": 16})),
]


@pytest.mark.parametrize(("room", "arguments"), CALLS)
def test_liger_kernel_is_asked_for_what_ours_computes(fake, room, arguments):
    benchmarks = importlib.import_module(f"rundoku.papers.{room}.benchmarks")
    calls, exact = benchmarks._calls(*arguments, "float32", DEVICE)
    assert list(calls) == ["rundoku", "torch", "torch.compile", "Liger-Kernel"]
    ours, plain, peer = (calls[name]() for name in ("rundoku", "torch", "Liger-Kernel"))
    for one, other, theirs, truth in zip(ours, plain, peer, exact, strict=True):
        assert twice_rule(one, other, truth) is None
        assert twice_rule(theirs, other, truth) is None
    again = calls["rundoku"]()  # what the peer wrote over was its own
    assert all(map(torch.equal, again, ours))


@pytest.mark.parametrize(("room", "arguments"), [("glu_variants", ("gelu", "forward", {"R": 6, "F": 96}))])
def test_a_peer_that_has_no_such_function_is_not_asked(fake, room, arguments):
    benchmarks = importlib.import_module(f"rundoku.papers.{room}.benchmarks")
    assert "Liger-Kernel" not in benchmarks._calls(*arguments, "float32", DEVICE)[0]


@pytest.mark.parametrize(("room", "axis", "most"), [("layer_norm", "C", 16_384), ("rms_norm", "C", 16_384), ("glu_variants", "F", 22_016)])
def test_widths_from_1k_to_16k_are_measured(room, axis, most):
    found = {bench.sizes[axis] for bench in importlib.import_module(f"rundoku.papers.{room}.benchmarks").benchmarks()}
    assert found >= {1024, 2048, 4096, 8192, 16_384}
    assert max(found) == most
