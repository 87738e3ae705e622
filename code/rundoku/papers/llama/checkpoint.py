"""Weights from files: GGUF, and the names and configuration of transformers. The files are read elsewhere; here are tensors by name."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rundoku.papers.llama.config import LlamaConfig
from rundoku.papers.llama.model import Llama
from rundoku.papers.roformer import to_half

# --8<-- [start:names]
# ours: (GGUF's, transformers')
NAMES = {
    "embedding.weight": ("token_embd.weight", "model.embed_tokens.weight"),
    "blocks.#.attention_norm.weight": ("blk.#.attn_norm.weight", "model.layers.#.input_layernorm.weight"),
    "blocks.#.attention.query.weight": ("blk.#.attn_q.weight", "model.layers.#.self_attn.q_proj.weight"),
    "blocks.#.attention.key.weight": ("blk.#.attn_k.weight", "model.layers.#.self_attn.k_proj.weight"),
    "blocks.#.attention.value.weight": ("blk.#.attn_v.weight", "model.layers.#.self_attn.v_proj.weight"),
    "blocks.#.attention.output.weight": ("blk.#.attn_output.weight", "model.layers.#.self_attn.o_proj.weight"),
    "blocks.#.feed_forward_norm.weight": ("blk.#.ffn_norm.weight", "model.layers.#.post_attention_layernorm.weight"),
    "blocks.#.feed_forward.gate.weight": ("blk.#.ffn_gate.weight", "model.layers.#.mlp.gate_proj.weight"),
    "blocks.#.feed_forward.up.weight": ("blk.#.ffn_up.weight", "model.layers.#.mlp.up_proj.weight"),
    "blocks.#.feed_forward.down.weight": ("blk.#.ffn_down.weight", "model.layers.#.mlp.down_proj.weight"),
    "norm.weight": ("output_norm.weight", "model.norm.weight"),
    "head.weight": ("output.weight", "lm_head.weight"),  # absent where the head is the embedding
}
# --8<-- [end:names]


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Llama:
    """Return the model of a GGUF file of the architecture "llama", given its metadata and its dequantised tensors by name.

    Matrices are [out, in]; the rows of query and key come in the file's interleaved order and go into the half layout. The
    model takes the tensors over without a copy, and is in evaluation mode. Raises ValueError for another architecture, for scaled
    rotary frequencies, and for tensors that are missing, unknown or of another shape.
    """
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise ValueError(f"metadata: general.architecture is {architecture!r}; expected 'llama'")
    if (scaling := metadata.get("llama.rope.scaling.type", "none")) != "none":
        raise ValueError(f"metadata: llama.rope.scaling.type is {scaling!r}; expected none")

    def number(name: str, otherwise: Any = None) -> Any:
        if (found := metadata.get(f"llama.{name}", otherwise)) is None:
            raise ValueError(f"metadata: llama.{name} is missing")
        return found

    d_model, n_heads = number("embedding_length"), number("attention.head_count")
    config = LlamaConfig(
        vocab_size=number("vocab_size", len(tensors.get("token_embd.weight", ()))),
        d_model=d_model,
        n_layers=number("block_count"),
        n_heads=n_heads,
        n_kv_heads=number("attention.head_count_kv", n_heads),
        d_ff=number("feed_forward_length"),
        d_head=number("rope.dimension_count", d_model // n_heads),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_base=number("rope.freq_base", 10_000.0),
        max_length=number("context_length"),
        tied="output.weight" not in tensors,
    )
    state = _renamed(tensors, config, source=0)
    # --8<-- [start:un-permute]
    for layer in range(config.n_layers):
        for part, heads in (("query", config.n_heads), ("key", config.n_kv_heads)):
            name = f"blocks.{layer}.attention.{part}.weight"
            state[name] = to_half(state[name], heads)  # rows (0, 1), (2, 3), … become (i, i + D/2)
    # --8<-- [end:un-permute]
    return _model(config, state)


def from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Llama:
    """Return the model of a Llama checkpoint as transformers stores it, given its config.json and its tensors by name.

    The layout is the half one already. Otherwise as `from_gguf`; raises ValueError besides for biases and other activations.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    settings = {
        "model_type": (config.get("model_type"), "llama"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    for name, (found, expected) in settings.items():
        if found != expected:
            raise ValueError(f"config: {name} is {found!r}; expected {expected!r}")
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    sizes = LlamaConfig(
        vocab_size=config["vocab_size"],
        d_model=d_model,
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        d_ff=config["intermediate_size"],
        d_head=config.get("head_dim") or d_model // n_heads,
        norm_eps=config["rms_norm_eps"],
        rope_base=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        max_length=config["max_position_embeddings"],
        tied=config.get("tie_word_embeddings", False),
    )
    return _model(sizes, _renamed(tensors, sizes, source=1))


def _renamed(tensors: Mapping[str, Tensor], config: LlamaConfig, source: int) -> dict[str, Tensor]:
    """Return the tensors by our names. Raises ValueError for what is missing, unknown or of another shape."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Llama(config).named_parameters()}  # a tied head once
    theirs = {ours: NAMES[re.sub(r"\d+", "#", ours)][source].replace("#", "".join(re.findall(r"\d+", ours))) for ours in shapes}
    spare = {"lm_head.weight"} if config.tied else set()  # some files repeat the embedding
    missing = sorted({*theirs.values()} - {*tensors})
    unknown = sorted({*tensors} - {*theirs.values()} - spare)
    if missing or unknown:
        found = [f"{kind} {', '.join(names[:4])}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(f"tensors: {'; '.join(found)}; expected {len(theirs)} tensors of a model with {config.n_layers} layers")
    for ours, name in theirs.items():
        if tensors[name].shape != shapes[ours]:
            raise ValueError(f"tensors: {name} has shape {tuple(tensors[name].shape)}; expected {tuple(shapes[ours])}")
    return {ours: tensors[name] for ours, name in theirs.items()}


def _model(config: LlamaConfig, state: Mapping[str, Tensor]) -> Llama:
    """Return a model that holds these very tensors."""
    with torch.device("meta"):
        model = Llama(config)
    model.load_state_dict(state, strict=False, assign=True)  # names and shapes are checked; a tied head has none
    model.tie()
    return model.eval()
