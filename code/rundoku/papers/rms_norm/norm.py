"""RMSNorm and pRMSNorm in plain torch: the function and the module."""

import math

import torch
from torch import nn


# --8<-- [start:rms-norm]
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, partial: float = 1.0) -> torch.Tensor:
    """Divide the last axis by its root mean square, then apply the gain (Eq. 4).

    x: [..., C], weight: [C] or None; returns [..., C] in the dtype of x. With ``partial`` below 1 (pRMSNorm, §5) the root mean
    square is that of the first ⌈C·partial⌉ units. Raises ValueError for C = 0, a weight of another width, a partial outside (0, 1].
    """
    _check(x, weight)
    # at least float32: squares of float16 overflow from 256 on
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # RMS² = 1/k · Σ aᵢ², over the first k of C units
    mean_square = wide[..., : units(x.shape[-1], partial)].square().mean(-1, keepdim=True)  # [..., 1]
    # a / RMS · g, with eps below the root, so that a row of zeros stays one
    normal = wide * torch.rsqrt(mean_square + eps)  # [..., C]
    if weight is not None:
        normal = normal * weight  # before the cast: the result is rounded once
    return normal.to(x.dtype)
    # --8<-- [end:rms-norm]


def units(width: int, partial: float) -> int:
    """Return k = ⌈C·partial⌉, from how many of ``width`` units the root mean square is taken (§5)."""
    if not 0 < partial <= 1:
        raise ValueError(f"partial: got {partial!r}, expected a share above 0 and at most 1")
    return math.ceil(round(width * partial, 9))  # rounded first: 100·0.07 is 7.000000000000001, and asks for 7 units


def _check(x: torch.Tensor, weight: torch.Tensor | None) -> None:
    if not x.dim() or not x.shape[-1] or not x.is_floating_point():
        raise ValueError(f"x: got {x.dtype} of shape {tuple(x.shape)}, expected floating point of shape [..., C] with C at least 1")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected {tuple(x.shape[-1:])}, the last axis of x")


class RMSNorm(nn.Module):
    """RMSNorm of the last axis with a learned gain (from 1) and no bias; pRMSNorm where ``partial`` is below 1."""

    def __init__(self, d_model: int, eps: float = 1e-6, partial: float = 1.0) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model: got {d_model}, expected at least 1")
        units(d_model, partial)  # raises for a share that there is not
        self.eps, self.partial = eps, partial
        self.weight = nn.Parameter(torch.ones(d_model))  # g of Eq. 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` [..., C] divided by its root mean square over C, times the gain."""
        return rms_norm(x, self.weight, self.eps, self.partial)

    def extra_repr(self) -> str:
        """Return the width, eps and the share of units, for ``repr``."""
        return f"{self.weight.shape[0]}, eps={self.eps}" + (f", partial={self.partial}" if self.partial < 1 else "")
