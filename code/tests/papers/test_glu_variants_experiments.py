"""The note's runs, small: what they compare must be what they say, and the benchmarks must measure the same thing for everyone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from rundoku.data import human_rights, smollm2
from rundoku.data.shakespeare import plays
from rundoku.data.source import MissingData
from rundoku.gpu.bench import measure
from rundoku.papers.byte_pair_encoding import ByteLevelBPE
from rundoku.papers.glu_variants import GatedFeedForward, benchmarks, experiments


def needs(read):
    try:
        read()
    except MissingData as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("kind", experiments.KINDS)
def test_every_kind_has_the_parameters_of_the_plain_network(kind):
    ffn = experiments.feed_forward(kind, 16, 48)
    assert sum(parameter.numel() for parameter in ffn.parameters()) == 2 * 16 * 48
    assert (sum(1 for _ in ffn.parameters()) == 3) == (kind in experiments.GATED_FFN)


def test_the_plain_network_is_its_equation():
    ffn, x = experiments.feed_forward("GELU", 6, 9), torch.randn(4, 6)
    torch.testing.assert_close(ffn(x), F.gelu(x @ ffn.inner.weight.T) @ ffn.outer.weight.T)


def test_costs_are_those_of_the_matrices():
    found = experiments.cost(d_model=6, d_ff=12, gated_width=8)
    assert found.plain.parameters == found.gated.parameters == 2 * 6 * 12
    assert found.plain.flops == found.gated.flops == 2 * 2 * 6 * 12


def test_traffic_is_counted_by_the_formulas_of_the_kernel():
    pytest.importorskip("triton", reason="the fused gate needs triton, which exists for Linux")
    found, wide, narrow = benchmarks.traffic(d_model=10, d_ff=24), 24, 16
    assert found["SwiGLU, fused"].as_dict() == {"forward": 3 * narrow, "backward": 5 * narrow, "kept": 3 * narrow}
    assert found["SwiGLU"].as_dict() == {"forward": 5 * narrow, "backward": 9 * narrow, "kept": 4 * narrow}
    assert found["GELU"].as_dict() == {"forward": 2 * wide, "backward": 3 * wide, "kept": 2 * wide}
    assert found["ReLU"].as_dict() == {"forward": 2 * wide, "backward": 3 * wide, "kept": wide}


def test_kinds_of_one_seed_start_alike_outside_their_feed_forward_networks():
    states = []
    for kind in ("ReLU", "SwiGLU"):
        torch.manual_seed(0)
        state = experiments.LanguageModel(11, kind, 8, 12, 2, 5).state_dict()
        states.append({name: tensor for name, tensor in state.items() if "feed_forward" not in name})
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_the_language_model_sees_nothing_of_the_future():
    model, text = experiments.LanguageModel(11, "SwiGLU", 8, 12, 2, 5), torch.randint(11, (3, 5))
    later = text.clone()
    later[:, 3:] = 0
    torch.testing.assert_close(model(text)[:, :3], model(later)[:, :3])


@pytest.mark.parametrize("kind", ["ReLU", "GEGLU"])
def test_a_model_learns_and_a_run_is_its_seeds(kind):
    needs(plays)
    run = experiments.language_model.__wrapped__  # not the stored result
    first, second = (run(kind=kind, seed=3, steps=60, d_model=16, d_ff=24) for _ in range(2))
    assert first == second
    assert first["loss"] < 3.6  # a uniform guess among the letters costs more than 4


def test_the_tokens_are_those_of_the_models_own_tokenizer(monkeypatch):
    needs(smollm2.metadata)
    vocabulary = smollm2.vocabulary()
    monkeypatch.setattr(smollm2, "vocabulary", lambda: vocabulary)  # which takes seconds to read
    found = experiments.declaration_tokens(10**6).tolist()
    text = "\n".join(human_rights.articles("en")[15:]).replace("‐", "-")
    assert found == ByteLevelBPE(**vocabulary, single_digits=True).encode(text)
    assert len(found) > 512


def interleaved_to_half(weight, n_heads):
    """Return a projection's rows in the order of transformers: first the even ones of a head, then the odd ones."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def test_the_first_layer_is_that_of_transformers():
    needs(smollm2.metadata)
    told, tokens = smollm2.metadata(), experiments.declaration_tokens(40)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
        rms_norm_eps=told["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": told["llama.rope.freq_base"]}, attn_implementation="eager",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0)
    read = {name: smollm2.tensor(f"blk.0.{name}.weight") for name in experiments.LAYER}
    names = {
        "input_layernorm": read["attn_norm"], "self_attn.q_proj": interleaved_to_half(read["attn_q"], 9),
        "self_attn.k_proj": interleaved_to_half(read["attn_k"], 3), "self_attn.v_proj": read["attn_v"],
        "self_attn.o_proj": read["attn_output"], "post_attention_layernorm": read["ffn_norm"],
        "mlp.gate_proj": read["ffn_gate"], "mlp.up_proj": read["ffn_up"], "mlp.down_proj": read["ffn_down"],
    }  # fmt: skip
    layer.load_state_dict({f"{name}.weight": weight for name, weight in names.items()})
    seen = []
    layer.mlp.register_forward_hook(lambda module, given, output: seen.extend((given[0][0], output[0])))
    x = smollm2.tensor("token_embd.weight")[tokens][None]
    cos_sin = LlamaRotaryEmbedding(config)(x, torch.arange(len(tokens))[None])
    mask = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        layer(x, attention_mask=mask, position_embeddings=cos_sin)
    found, ffn = next(experiments.smollm2_layers(tokens))
    assert isinstance(ffn, GatedFeedForward)
    torch.testing.assert_close(found, seen[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ffn(found), seen[1], rtol=1e-3, atol=1e-4)


def test_a_gate_written_out_loses_its_gradient_where_exp_overflows():
    found = experiments.half_precision(gates=(-1.0, -12.0))
    assert found["written out"][0] == pytest.approx(found.torch[0], rel=1e-2)
    assert found["written out"][1] is None
    assert found.torch[1] == pytest.approx(-12 * 6.14e-6, rel=0.1)


def test_every_mistake_is_one():
    gate, up = torch.randn(2, 3, 8)
    right = F.silu(gate) * up
    for name, wrong in experiments.MISTAKES.items():
        if name != "F.glu of both":
            assert not torch.allclose(wrong(gate, up), right)
    assert torch.equal(experiments.MISTAKES["F.glu of both"](gate, up), gate * up.sigmoid())
    assert torch.equal(experiments.MISTAKES["gate and up swapped"](gate, up), F.silu(up) * gate)


@pytest.mark.parametrize("case", ["silu forward", "silu backward", "gelu forward", "gelu backward"])
def test_benchmarks_compare_like_with_like(case, monkeypatch):
    launch = pytest.importorskip("rundoku.gpu.launch", reason="the kernels need triton, which exists for Linux", exc_type=ImportError)
    device = "cpu" if launch.INTERPRETED else "cuda"
    monkeypatch.setattr(torch, "compile", lambda function: function)
    bench = next(bench for bench in benchmarks.benchmarks() if bench.case == case)
    assert bench.bytes == 2 * bench.sizes["R"] * bench.sizes["F"] * (3 if "forward" in case else 5)
    small = {"R": 6, "F": 96}

    def prepare(device):
        calls, exact = benchmarks._calls(*case.split(), small, "float16", device)
        assert {len(call()) for call in calls.values()} == {len(exact)}
        return calls, exact

    rows = measure(bench.__class__(case, small, "float16", 1.0, 1.0, prepare), device, "a card", lambda call: (1.0, 1.0, 1.0))
    assert [row.provider for row in rows] == ["rundoku", "torch", "torch.compile"]


def test_both_gelus_are_the_papers_and_its_approximation():
    needs(smollm2.metadata)
    found = experiments.gelu_gap(tokens=8)
    assert found.most == pytest.approx(4.73e-4, rel=0.01)
    assert 0 < found.share < 1e-3
    assert nn.GELU()(torch.tensor(found.at)) != nn.GELU("tanh")(torch.tensor(found.at))
