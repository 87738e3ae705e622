"""The cross-entropy of a linear layer's logits in plain torch, with all the logits at once: what the kernel is held against."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rundoku.papers.cut_cross_entropy.loss import logits, shifted_targets


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float = 0.0,
    reduction: str = "mean",
    shift: int = 0,
    upcast: bool = True,
) -> Tensor:
    """Return the same loss by plain torch with all the logits: in float64 with ``upcast``, else in the dtypes given."""
    if upcast:
        hidden, weight = hidden.double(), weight.double()
        z = logits(hidden.flatten(0, -2), weight, bias, softcap)
    else:
        z = F.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype)).flatten(0, -2)
        z = softcap * torch.tanh(z / softcap) if softcap else z
    wanted = shifted_targets(targets, shift, ignore_index)
    loss = F.cross_entropy(z, wanted.flatten(), ignore_index=ignore_index, reduction=reduction)
    return loss.view(wanted.shape)[..., : wanted.shape[-1] - shift] if reduction == "none" else loss
