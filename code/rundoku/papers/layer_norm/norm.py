"""Layer normalisation in plain torch: the function and the module."""

import torch
from torch import nn


# --8<-- [start:layer-norm]
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalise the last axis to mean 0 and variance 1, then apply gain and bias.

    x: [..., C], weight and bias: [C] or None; returns [..., C] in the dtype of x.
    Raises ValueError where C is 0 or weight or bias has another width (Eq. 3 and 5).
    """
    _check(x, weight, bias)
    # at least float32: squares of float16 overflow from 256 on
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # μ = 1/C · Σ aᵢ
    mean = wide.mean(-1, keepdim=True)  # [..., 1]
    # σ² = 1/C · Σ (aᵢ − μ)²: not 1/(C − 1), and not E[a²] − μ², which cancels
    variance = (wide - mean).square().mean(-1, keepdim=True)  # [..., 1]
    # g / σ · (a − μ) + b, with eps below the root, so that σ is never 0
    normal = (wide - mean) * torch.rsqrt(variance + eps)  # [..., C]
    if weight is not None:
        normal = normal * weight
    if bias is not None:
        normal = normal + bias
    return normal.to(x.dtype)
    # --8<-- [end:layer-norm]


def _check(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    if not x.dim() or not x.shape[-1] or not x.is_floating_point():
        raise ValueError(f"x: got {x.dtype} of shape {tuple(x.shape)}, expected floating point of shape [..., C] with C at least 1")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != x.shape[-1:]:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(x.shape[-1:])}, the last axis of x")


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis with a learned gain (from 1) and bias (from 0), as in §6."""

    def __init__(self, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model: got {d_model}, expected at least 1")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))  # g of Eq. 5
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None  # b of Eq. 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` [..., C] normalised over C."""
        return layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the width and eps, for ``repr``."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"
