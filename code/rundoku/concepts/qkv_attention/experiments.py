"""The runs behind the note: SmolLM2's first attention layer tensor by tensor, and what the usual mistakes make of it."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rundoku.data import smollm2
from rundoku.papers.attention_is_all_you_need import attention_weights, causal_mask
from rundoku.papers.byte_pair_encoding import ByteLevelBPE
from rundoku.papers.grouped_query_attention import grouped_attention
from rundoku.papers.rms_norm import rms_norm
from rundoku.papers.roformer import rotary_tables, rotate
from rundoku.show import experiment

MISTAKES = ("none", "no scale", "softmax over the queries", "key and value swapped", "x·W instead of x·Wᵀ", "mask after the softmax")


def encode(text: str) -> tuple[list[str], Tensor]:
    """Return the text's tokens as text, and their ids [N]."""
    tokenizer = ByteLevelBPE(**smollm2.vocabulary(), single_digits=True)
    ids = tokenizer.encode(text)
    return [tokenizer.decode([token]) for token in ids], torch.tensor(ids)


def first_layer(ids: Tensor, transposed: bool = False) -> dict[str, Tensor]:
    """Return what SmolLM2's first layer attends with; ``transposed`` multiplies the query's matrix from its wrong side."""
    said = smollm2.metadata()
    d_head, base, eps = (said[f"llama.{name}"] for name in ("rope.dimension_count", "rope.freq_base", "attention.layer_norm_rms_epsilon"))
    gain, w_query, w_key, w_value = (smollm2.tensor(f"blk.0.attn_{part}.weight") for part in ("norm", "q", "k", "v"))
    if transposed:
        w_query = w_query.T  # 576 × 576: it fits both ways
    embedding = smollm2.tensor("token_embd.weight")

    # --8<-- [start:layer]
    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, d_head)).transpose(0, 1)  # [N, H·64] -> [H, N, 64]

    embedded = embedding[ids]  # [N, 576]
    x = rms_norm(embedded, gain, eps)  # [N, 576]
    query = heads(x @ w_query.T)  # [9, N, 64]: matrices are stored as [out, in]
    key = heads(x @ w_key.T)  # [3, N, 64]
    value = heads(x @ w_value.T)  # [3, N, 64]
    cos, sin = rotary_tables(torch.arange(len(ids)), d_head, base)
    query, key = (rotate(each, cos, sin, "interleaved") for each in (query, key))
    # --8<-- [end:layer]
    return {"embedding": embedded, "x": x, "query": query, "key": key, "value": value}


@experiment
def trace(*, text: str) -> dict:
    """Return every tensor's shape and mean norm on the way through the layer, the attention maps, and how far three statements hold."""
    tokens, ids = encode(text)
    found = first_layer(ids)
    query, key, value = (found[name] for name in ("query", "key", "value"))
    allowed = causal_mask(len(ids))
    each = key.repeat_interleave(3, 0), value.repeat_interleave(3, 0)  # query head h asks key-value head h // 3
    scores = query @ each[0].mT / math.sqrt(query.shape[-1])  # [9, N, N]
    weights = attention_weights(query, each[0], allowed)  # [9, N, N]
    output = grouped_attention(query[None], key[None], value[None], allowed)[0]  # [9, N, 64]
    added = output.transpose(0, 1).flatten(1) @ smollm2.tensor("blk.0.attn_output.weight").T  # [N, 576]
    theirs = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)[0]
    found |= {"scores": scores.masked_fill(~allowed, 0), "weights": weights, "heads": output, "added": added}
    seen = each[1][:, None].expand(-1, len(ids), -1, -1).masked_fill(~allowed[..., None], math.nan)  # [9, N, M, 64]
    lowest, highest = seen.nan_to_num(math.inf).amin(2), seen.nan_to_num(-math.inf).amax(2)
    return {
        "tokens": tokens,
        "shapes": {name: list(tensor.shape) for name, tensor in found.items()},
        "norms": {name: tensor.norm(dim=-1).mean() for name, tensor in found.items()},
        "weights": weights,
        "scores": {"smallest": scores[:, allowed].min(), "largest": scores[:, allowed].max()},
        "from_torch": (output - theirs).abs().max(),
        "row_sum": (weights.sum(-1) - 1).abs().max(),
        "outside": torch.maximum(output - highest, lowest - output).clamp(min=0).max(),
        "groups": torch.stack([(weights[head] @ value[head // 3] - output[head]).abs().max() for head in range(9)]).max(),
    }


# --8<-- [start:mistakes]
def attend(query: Tensor, key: Tensor, value: Tensor, mistake: str) -> tuple[Tensor, Tensor]:
    """Return weights [H, N, N] and output [H, N, D] with one of MISTAKES in them."""
    allowed = causal_mask(query.shape[-2])
    scale = 1.0 if mistake == "no scale" else query.shape[-1] ** -0.5
    if mistake == "key and value swapped":
        key, value = value, key
    scores = query @ key.mT * scale
    if mistake == "mask after the softmax":
        weights = scores.softmax(-1) * allowed
    else:
        axis = -2 if mistake == "softmax over the queries" else -1
        weights = scores.masked_fill(~allowed, -math.inf).softmax(axis)
    return weights, weights @ value
    # --8<-- [end:mistakes]


@experiment
def mistakes(*, text: str, other: str) -> dict:
    """Return what each of MISTAKES does to the first layer's heads; ``other`` is the same text with another ending.

    ``moved``: how far the output is from the right one, as a share of its norm. ``sums``: smallest and largest sum of a query's
    weights. ``leak``: how far the outputs before the place where the texts part differ, as a share of their norm. ``entropy`` and
    ``slope``: of a query's weights the mean entropy in nats, and the mean trace of the softmax's Jacobian, Σ w·(1 − w).
    """
    one, two = encode(text)[1], encode(other)[1]
    same = next(i for i, (a, b) in enumerate(zip(one.tolist(), two.tolist())) if a != b)  # the texts part here
    found: dict[str, dict] = {}
    right = torch.empty(0)
    for mistake in MISTAKES:
        outputs = []
        for ids in (one, two):
            layer = first_layer(ids, transposed=mistake == "x·W instead of x·Wᵀ")
            key, value = (layer[name].repeat_interleave(3, 0) for name in ("key", "value"))
            outputs.append(attend(layer["query"], key, value, mistake))
        (weights, output), (_, changed) = outputs
        right = output if mistake == "none" else right
        early = output[:, :same]
        found[mistake] = {
            "moved": (output - right).norm() / right.norm(),
            "sums": [weights.sum(-1).min(), weights.sum(-1).max()],
            "leak": (changed[:, :same] - early).norm() / early.norm(),
            "entropy": torch.special.entr(weights).sum(-1).mean(),
            "slope": (weights * (1 - weights)).sum(-1).mean(),
        }
    return found
