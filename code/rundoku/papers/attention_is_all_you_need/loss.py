"""Cross-entropy against smoothed targets (§5.4)."""

import torch
from torch import Tensor


def label_smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.1, ignore_index: int | None = None) -> Tensor:
    """Return the mean of -Σₖ q(k) log p(k) with q = (1-ε)·δ(k, target) + ε/V (§5.4, after Szegedy et al., 1512.00567 §7).

    logits [..., V], target [...] -> scalar, the mean over targets other than `ignore_index`. The uniform part includes the target
    itself, as in `torch.nn.functional.cross_entropy`; the authors' tensor2tensor spreads ε over the other V-1 tokens, which is this
    at ε·V/(V-1).
    Raises ValueError when the shapes do not fit, or when ε is outside [0, 1].
    """
    if logits.shape[:-1] != target.shape:
        raise ValueError(
            f"target: its shape is {tuple(target.shape)}; expected that of logits without the last axis, {tuple(logits.shape[:-1])}"
        )
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: {smoothing}; expected a number from 0 to 1")
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    log_p = torch.log_softmax(logits[kept], dim=-1)  # [T, V]
    of_target = log_p.gather(-1, target[kept][:, None]).squeeze(-1)  # [T]
    return -((1 - smoothing) * of_target + smoothing * log_p.mean(dim=-1)).mean()
