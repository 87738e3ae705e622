"""From a multi-head checkpoint to fewer key-value heads (GQA, §2.1 and Fig. 1), before up-training.

Axes: H query heads, G key-value heads, D head width, C model width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from rundoku.papers.attention_is_all_you_need import MultiHeadAttention
from rundoku.papers.grouped_query_attention.attention import GroupedQueryAttention


# --8<-- [start:mean-pool]
def mean_pool_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Return a key or value projection [H·D, C] as [G·D, C], each head the mean of its group's (Fig. 1); a bias [H·D] works too.

    Neighbours form a group, as `grouped_attention` reads them. Raises ValueError when H does not divide the rows or G does not divide H.
    """
    return _grouped(weight, n_heads, n_kv_heads).mean(dim=1).flatten(0, 1)  # [G, R, D, C] -> [G·D, C]
    # --8<-- [end:mean-pool]


def first_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Return a key or value projection [H·D, C] as [G·D, C], each head the first of its group: the ablation of Fig. 4.

    Raises ValueError as `mean_pool_heads` does.
    """
    return _grouped(weight, n_heads, n_kv_heads)[:, 0].flatten(0, 1)  # [G, R, D, C] -> [G·D, C]


def _grouped(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Return a projection's rows [H·D, ...] as [G, R, D, ...]."""
    if n_heads < 1 or weight.shape[0] % n_heads:
        raise ValueError(f"weight: it has {weight.shape[0]} rows; expected a multiple of n_heads = {n_heads}")
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"n_kv_heads: {n_kv_heads}; expected a divisor of n_heads = {n_heads}")
    return weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))


@torch.no_grad()
def convert(attention: MultiHeadAttention, n_kv_heads: int, method: Literal["mean", "first", "random"] = "mean") -> GroupedQueryAttention:
    """Return a trained multi-head attention with G key-value heads; queries and output are copied (§2.1).

    `method` is how the key and value heads come about: "mean" of each group, its "first", or "random", drawn anew (Fig. 4). The
    original stays as it is. Raises ValueError for another method, for G that does not divide H, or where key and value widths differ.
    """
    methods = {"mean": mean_pool_heads, "first": first_heads, "random": None}
    if method not in methods:
        raise ValueError(f"method: {method!r}; expected one of {', '.join(methods)}")
    old, n_heads = attention.query, attention.n_heads
    if attention.value.out_features != old.out_features:
        widths = old.out_features // n_heads, attention.value.out_features // n_heads
        raise ValueError(f"attention: its key and value heads are {widths} wide; expected the same width")
    new = GroupedQueryAttention(old.in_features, n_heads, n_kv_heads, old.out_features // n_heads, old.bias is not None)
    new = new.to(old.weight.device, old.weight.dtype).train(attention.training)
    new.query.load_state_dict(old.state_dict())
    new.output.load_state_dict(attention.output.state_dict())
    pool = methods[method]
    if pool is not None:
        for theirs, ours in ((attention.key, new.key), (attention.value, new.value)):
            ours.load_state_dict({name: pool(each, n_heads, n_kv_heads) for name, each in theirs.state_dict().items()})
    return new


def convert_all(model: nn.Module, n_kv_heads: int, method: Literal["mean", "first", "random"] = "mean") -> nn.Module:
    """Replace every multi-head attention inside ``model``, which is changed and returned."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiHeadAttention):
                setattr(parent, name, convert(child, n_kv_heads, method))
    return model
