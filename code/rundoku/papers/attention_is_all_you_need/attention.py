"""Scaled dot-product attention and multi-head attention (§3.2).

Axes: B batch, N query length, M key length, H heads, D head width, C model width.
"""

import math

import torch
from torch import Tensor, nn


def attention_weights(query: Tensor, key: Tensor, attn_mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Return how much each query takes from each key, softmax(QKᵀ/√d_k) of Eq. 1.

    query [..., N, D], key [..., M, D] -> [..., N, M]; `attn_mask` and `scale` as in `scaled_dot_product_attention`.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key: its last axis is {key.shape[-1]}; expected the query's head width {query.shape[-1]}")
    # --8<-- [start:weights]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * scale  # [..., N, M]
    if attn_mask is None:
        return torch.softmax(scores, dim=-1)
    # A row with nothing to attend to would be 0/0 = NaN, and spread when backpropagated: its scores are zeros, and so are its weights.
    if attn_mask.dtype == torch.bool:
        empty = ~attn_mask.any(dim=-1, keepdim=True)  # [..., N, 1]
        scores = torch.where(attn_mask, scores, torch.where(empty, 0.0, -math.inf).to(scores.dtype))
    elif attn_mask.is_floating_point():
        scores = scores + attn_mask.to(scores.dtype)
        empty = (scores == -math.inf).all(dim=-1, keepdim=True)
        scores = scores.masked_fill(empty, 0.0)
    else:
        raise ValueError(f"attn_mask: its dtype is {attn_mask.dtype}; expected bool or floating")
    return torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)  # [..., N, M]
    # --8<-- [end:weights]


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Return softmax(QKᵀ/√d_k)V (Eq. 1), the plain form that holds every score at once.

    query [..., N, D], key [..., M, D], value [..., M, Dv] -> [..., N, Dv]. `attn_mask` broadcasts to [..., N, M]: boolean, True where
    attention is allowed, or floating, added to the scores. `scale` replaces 1/√D. A row that may attend to nothing gives zeros.
    Raises ValueError when the head widths, the key and value lengths or the mask's dtype do not fit.
    """
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"value: its length is {value.shape[-2]}; expected the key's length {key.shape[-2]}")
    return attention_weights(query, key, attn_mask, scale) @ value


def causal_mask(length: int, device: torch.device | str | None = None) -> Tensor:
    """Return the decoder's [N, N] mask: True where the key is not later than the query (§3.2.3)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class MultiHeadAttention(nn.Module):
    """H attentions in parallel on learned projections, concatenated and projected again (§3.2.2).

    `d_k` and `d_v` are the widths of one head, d_model/n_heads unless given (Table 3 (B) varies d_k). The paper's projections have no bias.
    """

    def __init__(self, d_model: int, n_heads: int, d_k: int | None = None, d_v: int | None = None, bias: bool = False):
        super().__init__()
        if (d_k is None or d_v is None) and d_model % n_heads:
            raise ValueError(f"n_heads: {n_heads} does not divide d_model = {d_model}; expected a divisor, or d_k and d_v to be given")
        d_k, d_v = d_k or d_model // n_heads, d_v or d_model // n_heads
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, n_heads * d_k, bias)
        self.key = nn.Linear(d_model, n_heads * d_k, bias)
        self.value = nn.Linear(d_model, n_heads * d_v, bias)
        self.output = nn.Linear(n_heads * d_v, d_model, bias)

    def split(self, x: Tensor) -> Tensor:
        """Return the heads of x [B, N, H·D] as [B, H, N, D]."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from query [B, N, C], key and value [B, M, C]; `attn_mask` broadcasts to [B, H, N, M], True = allowed."""
        # --8<-- [start:heads]
        q, k = self.split(self.query(query)), self.split(self.key(key))  # [B, H, N, D], [B, H, M, D]
        v = self.split(self.value(value))  # [B, H, M, D]
        heads = scaled_dot_product_attention(q, k, v, attn_mask)  # [B, H, N, D]
        return self.output(heads.transpose(-3, -2).flatten(-2))  # [B, N, C]
        # --8<-- [end:heads]

    def weights(self, query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return the attention maps [B, H, N, M] that `forward` would use, for looking at them."""
        return attention_weights(self.split(self.query(query)), self.split(self.key(key)), attn_mask)
