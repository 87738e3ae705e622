"""Tiled attention in plain torch: Algorithm 1 forward, Algorithm 4 backward, for any device and dtype that torch has."""

import torch
from torch import Tensor

from rundoku.papers.flash_attention.tiling import Memory, flash_backward, flash_forward


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sram, causal, scale):
        out, total, peak = flash_forward(query, key, value, sram, Memory(), causal, scale)
        ctx.save_for_backward(query, key, value, out, total, peak)  # 4·N·D + 2·N elements, and no N × M
        ctx.settings = (sram, causal, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        query, key, value, out, total, peak = ctx.saved_tensors
        sram, causal, scale = ctx.settings
        grads = flash_backward(grad_out, query, key, value, out, total, peak, sram, Memory(), causal, scale)
        return *grads, None, None, None


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, causal: bool = False, scale: float | None = None, sram: int = 98_304
) -> Tensor:
    """Return softmax(QKᵀ/√D)V [..., N, D] of query [..., N, D], key and value [..., M, D], never holding more than a tile of scores.

    `sram` is the on-chip memory in elements that sets the tiles (Alg. 1, line 1); 98,304 is an A100 multiprocessor's 192 KB in half
    precision (§2.1). `causal` aligns the last query with the last key. A row that sees no key gives zeros. Differentiable once.
    Raises ValueError when the shapes do not fit or `sram` cannot hold a row.
    """
    if key.shape != value.shape or query.shape[:-2] != key.shape[:-2] or query.shape[-1] != key.shape[-1]:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"{shapes}; expected [..., N, D], [..., M, D] and [..., M, D] with the same leading axes and D")
    return _Tiled.apply(query, key, value, sram, causal, scale)
