"""Attention with everything that the kernel can do, in plain torch and with all scores at once: what the kernel is held against."""

import math

import torch
from torch import Tensor


def allowed_pairs(n_queries: int, n_keys: int, causal: bool = False, window_size: tuple[int, int] = (-1, -1), device=None) -> Tensor:
    """Return which key each query may see, [N, M] bool, the last query aligned with the last key (bottom-right).

    Query i stands at position p = i + M − N: it sees p − left ≤ j ≤ p + right, where −1 means without bound, and j ≤ p if causal.
    """
    left, right = window_size
    distance = torch.arange(n_keys, device=device) - torch.arange(n_queries, device=device)[:, None] - (n_keys - n_queries)  # [N, M] j − p
    allowed = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        allowed &= distance <= 0
    if left >= 0:
        allowed &= distance >= -left
    if right >= 0:
        allowed &= distance <= right
    return allowed


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alibi_slopes: Tensor | None = None,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    upcast: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return (out [B, H, N, D] in the query's dtype, log-sum-exp [B, H, N]) from query [B, H, N, D] and key, value [B, G, M, D].

    The arguments are those of `flash_attention`. With `upcast` half precision is computed in float32, without it every step stays in the
    input's dtype, as a model in half precision would compute it. Differentiable by autograd in query, key, value and slopes.
    """
    dtype = query.dtype
    if upcast and dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    n_queries, n_keys, group = query.shape[-2], key.shape[-2], query.shape[1] // key.shape[1]
    scale = 1 / math.sqrt(query.shape[-1]) if softmax_scale is None else softmax_scale
    scores = (query * scale) @ key.repeat_interleave(group, dim=1).transpose(-2, -1)  # [B, H, N, M]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        position = torch.arange(n_queries, device=query.device)[:, None] + (n_keys - n_queries)  # [N, 1]
        distance = (position - torch.arange(n_keys, device=query.device)).abs()  # [N, M]
        scores = scores - alibi_slopes[..., None, None].to(scores.dtype) * distance
    allowed = allowed_pairs(n_queries, n_keys, causal, window_size, query.device)
    scores = scores.masked_fill(~allowed, -math.inf)
    seen = allowed.any(-1, keepdim=True)  # [N, 1]; a row that sees nothing gives zeros, and must not put NaN into a gradient
    weights = torch.softmax(scores.masked_fill(~seen, 0.0), dim=-1).masked_fill(~seen, 0.0)  # [B, H, N, M]
    out = weights @ value.repeat_interleave(group, dim=1)  # [B, H, N, D]
    lse = torch.logsumexp(scores.masked_fill(~seen, 0.0), dim=-1).masked_fill(~seen[:, 0], -math.inf)  # [B, H, N]
    return out.to(dtype), lse
