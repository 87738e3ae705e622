"""The paper's algorithms as loops over tiles, every read and write of the large memory counted (Algorithms 0, 1, 3 and 4).

`Memory` stands for the GPU's HBM: a tensor is touched only through `load` and `store`, what lies between them is on the chip. On
`torch.device("meta")` the same loops count without computing. Axes: N query and key length, D head width, B_r and B_c rows and columns
of a tile, M here the on-chip memory in elements, as in the paper. Leading axes (batch, heads) are counted too.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rundoku.papers.flash_attention.online_softmax import absorb, finish, nothing_seen
from rundoku.papers.flash_attention.reference import allowed_pairs


class Memory:
    """The large, slow memory: hands out and takes back tiles, and counts the elements and bytes that cross."""

    def __init__(self) -> None:
        self.loaded = self.stored = self.bytes = 0

    @property
    def accesses(self) -> int:
        """Elements read and written so far."""
        return self.loaded + self.stored

    def load(self, tensor: Tensor) -> Tensor:
        """Return a tile brought onto the chip."""
        self.loaded += tensor.numel()
        self.bytes += tensor.nbytes
        return tensor.clone()

    def store(self, place: Tensor, tile: Tensor) -> None:
        """Write a tile back to its place."""
        self.stored += place.numel()
        self.bytes += place.nbytes
        place.copy_(tile)

    def write(self, tensor: Tensor) -> Tensor:
        """Return a new tensor in the large memory, written once."""
        self.stored += tensor.numel()
        self.bytes += tensor.nbytes
        return tensor


def block_sizes(sram: int, width: int) -> tuple[int, int]:
    """Return (B_r, B_c) for an on-chip memory of `sram` elements and head width `width` (Alg. 1, line 1)."""
    if sram < width:
        raise ValueError(f"sram: {sram} elements cannot hold a row of width {width}; expected at least the head width (Theorem 2)")
    columns = math.ceil(sram / (4 * width))
    return min(columns, width), columns


def _masked_scores(q: Tensor, k: Tensor, scale: float, i: int, j: int, allowed: Tensor | None) -> Tensor:
    scores = scale * q @ k.transpose(-2, -1)  # [..., B_r, B_c]
    if allowed is None:
        return scores
    return scores.masked_fill(~allowed[i : i + q.shape[-2], j : j + k.shape[-2]], -math.inf)


def _mask(query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    return allowed_pairs(query.shape[-2], key.shape[-2], causal, device=query.device) if causal else None


# --8<-- [start:forward]
def flash_forward(
    query: Tensor, key: Tensor, value: Tensor, sram: int, memory: Memory, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (O [..., N, D], ℓ [..., N], m [..., N]) by Algorithm 1, keys in the outer loop; `causal` aligns the ends of N and M."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rows, columns = block_sizes(sram, query.shape[-1])
    allowed = _mask(query, key, causal)
    stats = query.new_zeros(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
    out = memory.write(torch.zeros_like(query))
    total, peak = memory.write(stats), memory.write(torch.full_like(stats, -math.inf))  # ℓ, m
    for j in range(0, key.shape[-2], columns):
        k, v = memory.load(key[..., j : j + columns, :]), memory.load(value[..., j : j + columns, :])
        for i in range(0, query.shape[-2], rows):
            here = slice(i, i + rows)
            q, o = memory.load(query[..., here, :]), memory.load(out[..., here, :])
            l_old, m_old = memory.load(total[..., here]), memory.load(peak[..., here])
            scores = _masked_scores(q, k, scale, i, j, allowed).to(stats.dtype)  # [..., B_r, B_c]
            m_new = torch.maximum(m_old, scores.amax(-1))
            anchor = m_new.masked_fill(m_new == -math.inf, 0.0)
            weights = torch.exp(scores - anchor[..., None])
            shrink = torch.exp(m_old - anchor)
            l_new = shrink * l_old + weights.sum(-1)
            o_new = (shrink * l_old)[..., None] * o + weights.to(v.dtype) @ v  # line 12, with P̃ measured against m_new at once
            memory.store(out[..., here, :], o_new / l_new.masked_fill(l_new == 0, 1.0)[..., None])
            memory.store(total[..., here], l_new)
            memory.store(peak[..., here], m_new)
    return out, total, peak


# --8<-- [end:forward]


def flash_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, peak: Tensor, sram: int, memory: Memory,
    causal: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (dQ, dK, dV) by Algorithm 4, the weights computed again from Q, K and the saved ℓ and m."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rows, columns = block_sizes(sram, query.shape[-1])
    allowed = _mask(query, key, causal)
    grad_query, grad_key, grad_value = (memory.write(torch.zeros_like(x)) for x in (query, key, value))
    for j in range(0, key.shape[-2], columns):
        k, v = memory.load(key[..., j : j + columns, :]), memory.load(value[..., j : j + columns, :])
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for i in range(0, query.shape[-2], rows):
            here = slice(i, i + rows)
            q, o, do, dq = (memory.load(x[..., here, :]) for x in (query, out, grad_out, grad_query))
            l, m = memory.load(total[..., here]), memory.load(peak[..., here])
            empty = (l == 0)[..., None]  # rows that may see nothing: their weights are 0, not exp(−∞ + ∞)
            scores = _masked_scores(q, k, scale, i, j, allowed).to(m.dtype)
            weights = (torch.exp(scores - m[..., None]) / l[..., None]).masked_fill(empty, 0.0)  # P = diag(ℓ)⁻¹ exp(S − m)
            dv += weights.to(do.dtype).transpose(-2, -1) @ do
            delta = (do * o).sum(-1, keepdim=True)  # D_i = do_i·o_i replaces Σ_j P_ij dP_ij (Eq. 4)
            ds = (weights * (do @ v.transpose(-2, -1) - delta)).to(q.dtype)  # dS = P ∘ (dP − D)
            memory.store(grad_query[..., here, :], dq + scale * ds @ k)
            dk += scale * ds.transpose(-2, -1) @ q
        memory.store(grad_key[..., j : j + columns, :], dk)
        memory.store(grad_value[..., j : j + columns, :], dv)
    return grad_query, grad_key, grad_value


def flash2_forward(
    query: Tensor, key: Tensor, value: Tensor, sram: int, memory: Memory, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return (O [..., N, D], L [..., N]) by FlashAttention-2's Algorithm 1: queries in the outer loop, so O and L are written once."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rows = columns = block_sizes(sram, query.shape[-1])[1]  # Q_i, O_i, K_j, V_j share the chip: a quarter each
    allowed = _mask(query, key, causal)
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
    for i in range(0, query.shape[-2], rows):
        q = memory.load(query[..., i : i + rows, :])
        seen = nothing_seen(q.to(lse.dtype), value.shape[-1])
        for j in range(0, key.shape[-2], columns):
            k, v = memory.load(key[..., j : j + columns, :]), memory.load(value[..., j : j + columns, :])
            seen = absorb(seen, _masked_scores(q, k, scale, i, j, allowed).to(lse.dtype), v.to(lse.dtype))
        block_out, block_lse = finish(seen)
        memory.store(out[..., i : i + rows, :], block_out)
        memory.store(lse[..., i : i + rows], block_lse)
    return out, lse


class Saved(NamedTuple):
    """The N × M matrices that standard attention keeps for its backward pass."""

    weights: Tensor  # [..., N, M] P
    dropped: Tensor  # [..., N, M] P after dropout, P itself without
    keep: Tensor | None  # [..., N, M] bool, the entries that dropout kept


def standard_forward(
    query: Tensor, key: Tensor, value: Tensor, memory: Memory, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Saved]:
    """Return (O, what the backward pass needs) by Algorithm 0, one step after another through the large memory.

    `mask` (True = allowed, broadcast to [..., N, M]) and `dropout` each make a pass of their own over the scores, as §2.2 describes.
    """
    load, write = memory.load, memory.write
    scores = write(load(query) @ load(key).transpose(-2, -1) / math.sqrt(query.shape[-1]))
    if mask is not None:
        scores = write(load(scores).masked_fill(~load(mask), -math.inf))
    weights = dropped = write(torch.softmax(load(scores), -1))
    keep = None
    if dropout:
        loaded = load(weights)
        keep = write(torch.rand_like(loaded) >= dropout)
        dropped = write(loaded * keep * (1 / (1 - dropout)))
    return write(load(dropped) @ load(value)), Saved(weights, dropped, keep)


def standard_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, saved: Saved, memory: Memory, dropout: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dQ, dK, dV) by Algorithm 3; with dropout, its pass over dP as well."""
    load, write = memory.load, memory.write
    scale = 1 / math.sqrt(query.shape[-1])
    grad_value = write(load(saved.dropped).transpose(-2, -1) @ load(grad_out))
    grad_weights = write(load(grad_out) @ load(value).transpose(-2, -1))  # dP
    if saved.keep is not None:
        grad_weights = write(load(grad_weights) * load(saved.keep) * (1 / (1 - dropout)))
    p, dp = load(saved.weights), load(grad_weights)
    grad_scores = write(p * (dp - (p * dp).sum(-1, keepdim=True)))  # dS
    grad_query = write(scale * (load(grad_scores) @ load(key)))
    grad_key = write(scale * (load(grad_scores).transpose(-2, -1) @ load(query)))
    return grad_query, grad_key, grad_value
