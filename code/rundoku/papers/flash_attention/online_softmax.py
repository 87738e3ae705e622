"""The online softmax: attention to a row's keys taken block by block, each block read once (§3.1; FlashAttention-2, §3.1.1).

Axes: N query length, B_c keys of a block, D head width. Leading axes (batch, heads) pass through.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Running(NamedTuple):
    """What is known of the softmax over the keys so far."""

    acc: Tensor  # [..., N, D]  Σ_j exp(s_ij − m_i) v_j, not yet divided by the sum
    total: Tensor  # [..., N]   ℓ_i = Σ_j exp(s_ij − m_i)
    peak: Tensor  # [..., N]    m_i = max_j s_ij, −∞ where nothing was seen


def nothing_seen(query: Tensor, width: int) -> Running:
    """Return the state before the first key, for query [..., N, D] and values of `width`."""
    rows = query.shape[:-1]
    return Running(query.new_zeros(*rows, width), query.new_zeros(rows), query.new_full(rows, -math.inf))


# --8<-- [start:absorb]
def absorb(seen: Running, scores: Tensor, value: Tensor) -> Running:
    """Return the state after one more block: scores [..., N, B_c] (−∞ where masked), value [..., B_c, D]."""
    peak = torch.maximum(seen.peak, scores.amax(-1))  # m_new = max(m, rowmax S)
    anchor = peak.masked_fill(peak == -math.inf, 0.0)  # a row that has seen nothing: −∞ − (−∞) would be NaN
    weights = torch.exp(scores - anchor[..., None])  # P̃ = exp(S − m_new)
    shrink = torch.exp(seen.peak - anchor)  # exp(m − m_new): the old sums were measured against m
    total = shrink * seen.total + weights.sum(-1)  # ℓ_new = exp(m − m_new) ℓ + rowsum P̃
    acc = shrink[..., None] * seen.acc + weights @ value  # Õ_new = exp(m − m_new) Õ + P̃ V
    return Running(acc, total, peak)


def finish(seen: Running) -> tuple[Tensor, Tensor]:
    """Return the output Õ/ℓ [..., N, D] and the log-sum-exp m + log ℓ [..., N]; a row that saw nothing gives zeros and −∞."""
    total = seen.total.masked_fill(seen.total == 0, 1.0)
    return seen.acc / total[..., None], seen.peak + total.log()


# --8<-- [end:absorb]
