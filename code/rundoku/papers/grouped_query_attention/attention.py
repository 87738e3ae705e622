"""Attention in which a group of query heads reads one key-value head (GQA, §2.2); with one group, multi-query attention.

Axes: B batch, N query length, M key length, H query heads, G key-value heads, R = H/G query heads a group, D head width, C model width.
"""

from torch import Tensor, nn

from rundoku.papers.attention_is_all_you_need import scaled_dot_product_attention


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Return attention [..., H, N, Dv] in which query head h reads key-value head h // (H/G) (§2.2).

    query [..., H, N, D], key [..., G, M, D], value [..., G, M, Dv], with the same leading axes; G divides H. `attn_mask` broadcasts to
    [..., H, N, M]: boolean, True where attention is allowed, or floating, added to the scores. `scale` replaces 1/√D. A row that may
    attend to nothing gives zeros. Keys and values are never repeated: the R queries of a group stand below one another, as if they were
    R·N queries of one head. Raises ValueError when shapes, mask or its dtype do not fit.
    """
    _check(query, key, value)
    n_heads, length, n_kv_heads = query.shape[-3], query.shape[-2], key.shape[-3]
    if attn_mask is not None:
        attn_mask = _fold_mask(attn_mask, n_heads, n_kv_heads, length, key.shape[-2])
    # --8<-- [start:grouped-attention]
    rows = query.unflatten(-3, (n_kv_heads, -1)).flatten(-3, -2)  # [..., G, R·N, D]: head h = g·R + r
    out = scaled_dot_product_attention(rows, key, value, attn_mask, scale)  # [..., G, R·N, Dv]
    return out.unflatten(-2, (-1, length)).flatten(-4, -3)  # [..., H, N, Dv]
    # --8<-- [end:grouped-attention]


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 3:
            raise ValueError(f"{name}: its shape is {tuple(tensor.shape)}; expected [..., heads, length, width]")
        if tensor.shape[:-3] != query.shape[:-3]:
            raise ValueError(f"{name}: its leading axes are {tuple(tensor.shape[:-3])}; expected the query's {tuple(query.shape[:-3])}")
    n_heads, n_kv_heads = query.shape[-3], key.shape[-3]
    if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"key: it has {n_kv_heads} heads; expected a divisor of the query's {n_heads}")
    if value.shape[-3] != n_kv_heads:
        raise ValueError(f"value: it has {value.shape[-3]} heads; expected the key's {n_kv_heads}")


def _fold_mask(mask: Tensor, n_heads: int, n_kv_heads: int, length: int, keys: int) -> Tensor:
    """Return a mask that broadcasts to [..., H, N, M] as one that broadcasts to [..., G, R·N, M]."""
    while mask.dim() < 3:
        mask = mask.unsqueeze(0)
    heads, rows, columns = mask.shape[-3:]
    if heads not in (1, n_heads) or rows not in (1, length) or columns not in (1, keys):
        raise ValueError(f"attn_mask: its last axes are {(heads, rows, columns)}; expected to broadcast to {(n_heads, length, keys)}")
    if heads == rows == 1:
        return mask  # the same for every query of every head: nothing to fold
    groups = 1 if heads == 1 else n_kv_heads
    mask = mask.expand(*mask.shape[:-3], groups * (n_heads // n_kv_heads), length, columns)
    return mask.unflatten(-3, (groups, -1)).flatten(-3, -2)  # [..., 1 or G, R·N, 1 or M]


class GroupedQueryAttention(nn.Module):
    """H query heads on G key-value heads: G = H is multi-head attention, G = 1 multi-query attention (§2.2, Fig. 2).

    `d_head` is the width of one head, d_model/n_heads unless given. The call is that of `MultiHeadAttention`, which it replaces.
    """

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_head: int | None = None, bias: bool = False):
        super().__init__()
        if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads: {n_kv_heads}; expected a divisor of n_heads = {n_heads}")
        if d_head is None and d_model % n_heads:
            raise ValueError(f"n_heads: {n_heads} does not divide d_model = {d_model}; expected a divisor, or d_head to be given")
        d_head = d_head or d_model // n_heads
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.query = nn.Linear(d_model, n_heads * d_head, bias)
        self.key = nn.Linear(d_model, n_kv_heads * d_head, bias)
        self.value = nn.Linear(d_model, n_kv_heads * d_head, bias)
        self.output = nn.Linear(n_heads * d_head, d_model, bias)

    def split(self, x: Tensor) -> Tensor:
        """Return the heads of x [B, N, heads·D] as [B, heads, N, D]."""
        return x.unflatten(-1, (-1, self.d_head)).transpose(-3, -2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from query [B, N, C], key and value [B, M, C]; `attn_mask` broadcasts to [B, H, N, M], True = allowed."""
        # --8<-- [start:module]
        q = self.split(self.query(query))  # [B, H, N, D]
        k, v = self.split(self.key(key)), self.split(self.value(value))  # [B, G, M, D]: all that a cache has to keep
        heads = grouped_attention(q, k, v, attn_mask)  # [B, H, N, D]
        return self.output(heads.transpose(-3, -2).flatten(-2))  # [B, N, C]
        # --8<-- [end:module]
