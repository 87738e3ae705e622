"""The gates and the gated feed-forward network against torch and against the layers of transformers, with copied weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import GemmaConfig, LlamaConfig, T5Config
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from rundoku.papers.glu_variants import ACTIVATIONS, GatedFeedForward, glu, two_thirds

SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 12)


def by_hand(gate, up, activation):
    """Return the formulas of the paper, written out."""
    return {
        "sigmoid": lambda: up / (1 + torch.exp(-gate)),
        "identity": lambda: gate * up,
        "relu": lambda: gate.clamp(min=0) * up,
        "gelu": lambda: gate * (1 + torch.special.erf(gate / 2**0.5)) / 2 * up,
        "gelu_tanh": lambda: gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) / 2 * up,
        "silu": lambda: gate / (1 + torch.exp(-gate)) * up,
    }[activation]()


def both_ways(ours, theirs, *inputs):
    """Return values and gradients of every input, computed in both ways."""
    results = []
    for compute in (ours, theirs):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        result = compute(*leaves)
        result.sin().sum().backward()
        results.append([result, *(leaf.grad for leaf in leaves)])
    return results


@settings(deadline=None, max_examples=40)
@given(shape=st.lists(st.integers(0, 6), min_size=1, max_size=4), scale=st.sampled_from([0.1, 1.0, 10.0]), seed=SEEDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gate_is_its_formula(activation, shape, scale, seed):
    torch.manual_seed(seed)
    gate, up = torch.randn(2, *shape, dtype=torch.float64) * scale
    found, wanted = both_ways(lambda *made: glu(*made, activation), lambda *made: by_hand(*made, activation), gate, up)
    torch.testing.assert_close(found, wanted)


def test_the_gated_linear_unit_is_torchs_with_its_halves_in_the_other_order():
    x = torch.randn(3, 10)
    first, second = x.chunk(2, -1)
    torch.testing.assert_close(glu(second, first, "sigmoid"), F.glu(x))
    assert not torch.allclose(glu(first, second, "sigmoid"), F.glu(x))


def test_silu_is_the_default():
    gate, up = torch.randn(2, 3, 7)
    assert torch.equal(glu(gate, up), F.silu(gate) * up)
    assert torch.equal(glu(gate, up), glu(gate, up, "silu"))


def test_the_two_gelus_differ_where_they_should():
    gate = torch.linspace(-6, 6, 10_001, dtype=torch.float64)
    apart = (glu(gate, torch.ones_like(gate), "gelu") - glu(gate, torch.ones_like(gate), "gelu_tanh")).abs().max()
    assert 1e-4 < apart < 1e-3
    assert torch.equal(glu(gate, torch.ones_like(gate), "gelu"), F.gelu(gate))


def library_layer(name, d_model, d_ff):
    """Return a layer of transformers and the names of its gate, up and down projections."""
    if name == "LlamaMLP":
        config = LlamaConfig(hidden_size=d_model, intermediate_size=d_ff, num_attention_heads=1, head_dim=2)
        return LlamaMLP(config), ("gate_proj", "up_proj", "down_proj")
    if name == "GemmaMLP":
        config = GemmaConfig(hidden_size=d_model, intermediate_size=d_ff, num_hidden_layers=1)
        return GemmaMLP(config), ("gate_proj", "up_proj", "down_proj")
    activation = "gated-gelu" if name == "T5" else "gated-silu"
    return T5DenseGatedActDense(T5Config(d_model=d_model, d_ff=d_ff, dropout_rate=0.0, feed_forward_proj=activation)), (
        "wi_0",
        "wi_1",
        "wo",
    )


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(0, 3), length=st.integers(1, 5), d_model=WIDTHS, d_ff=WIDTHS, seed=SEEDS)
@pytest.mark.parametrize(
    ("name", "activation"), [("LlamaMLP", "silu"), ("GemmaMLP", "gelu_tanh"), ("T5", "gelu_tanh"), ("T5 silu", "silu")]
)
def test_the_feed_forward_network_is_that_of_transformers(name, activation, batch, length, d_model, d_ff, seed):
    torch.manual_seed(seed)
    ours = GatedFeedForward(d_model, d_ff, activation)
    theirs, names = library_layer(name, d_model, d_ff)
    for own, other in zip(("gate", "up", "down"), names):
        getattr(theirs, other).load_state_dict(getattr(ours, own).state_dict())
    x, results = torch.randn(batch, length, d_model), []
    for module, parts in ((ours, ("gate", "up", "down")), (theirs, names)):
        leaf = x.clone().requires_grad_()
        result = module(leaf)
        result.sin().sum().backward()
        results.append([result, leaf.grad, *(getattr(module, part).weight.grad for part in parts)])
    torch.testing.assert_close(*results)


def test_llama_cannot_pass_with_gate_and_up_swapped():
    torch.manual_seed(0)
    ours, (theirs, _) = GatedFeedForward(6, 16), library_layer("LlamaMLP", 6, 16)
    theirs.load_state_dict({"gate_proj.weight": ours.up.weight, "up_proj.weight": ours.gate.weight, "down_proj.weight": ours.down.weight})
    x = torch.randn(4, 6)
    assert not torch.allclose(ours(x), theirs(x), atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(d_model=WIDTHS, d_ff=WIDTHS, bias=st.booleans(), seed=SEEDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_feed_forward_network_is_its_equation(activation, d_model, d_ff, bias, seed):
    torch.manual_seed(seed)
    ffn = GatedFeedForward(d_model, d_ff, activation, bias).double()
    x = torch.randn(3, d_model, dtype=torch.float64)
    b, c, d = (part.bias if bias else 0 for part in (ffn.gate, ffn.up, ffn.down))
    wanted = by_hand(x @ ffn.gate.weight.T + b, x @ ffn.up.weight.T + c, activation) @ ffn.down.weight.T + d
    torch.testing.assert_close(ffn(x), wanted)
    assert all((part.bias is not None) == bias for part in (ffn.gate, ffn.up, ffn.down))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *made: glu(*made, activation), (gate, up))


@pytest.mark.parametrize(
    ("d_ff", "multiple_of", "wanted"),
    [
        (3072, 1, 2048),  # the paper, §3.1
        (4 * 4096, 256, 11_008),  # LLaMA 7B
        (4 * 5120, 256, 13_824),  # LLaMA 13B
        (4 * 6656, 256, 17_920),  # LLaMA 33B
        (4 * 8192, 256, 22_016),  # LLaMA 65B
        (4 * 576, 1, 1536),  # SmolLM2-135M
        (1, 1, 1),
    ],
)
def test_two_thirds_gives_the_widths_of_published_models(d_ff, multiple_of, wanted):
    assert two_thirds(d_ff, multiple_of) == wanted


@given(d_ff=st.integers(2, 10**6), multiple_of=st.integers(1, 512))
def test_two_thirds_is_the_least_multiple_that_is_no_narrower(d_ff, multiple_of):
    width = two_thirds(d_ff, multiple_of)
    assert width % multiple_of == 0
    assert width - multiple_of < 2 * d_ff // 3 <= width


def test_two_thirds_keeps_the_parameters():
    plain = sum(nn.Linear(a, b, bias=False).weight.numel() for a, b in ((768, 3072), (3072, 768)))
    assert sum(parameter.numel() for parameter in GatedFeedForward(768, two_thirds(3072)).parameters()) == plain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: glu(torch.ones(2), torch.ones(2), "swish"), "activation: got 'swish', expected one of sigmoid, identity"),
        (lambda: glu(torch.ones(2, 3), torch.ones(3)), r"up: got shape \(3,\), expected that of gate, \(2, 3\)"),
        (lambda: GatedFeedForward(0, 4), "d_model: got 0, expected at least 1"),
        (lambda: GatedFeedForward(4, 0), "d_ff: got 0"),
        (lambda: GatedFeedForward(4, 4, "tanh"), "activation: got 'tanh'"),
        (lambda: two_thirds(0), "d_ff: got 0"),
        (lambda: two_thirds(8, 0), "multiple_of: got 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_repr_names_the_activation():
    assert "activation='gelu'" in repr(GatedFeedForward(2, 3, "gelu"))
