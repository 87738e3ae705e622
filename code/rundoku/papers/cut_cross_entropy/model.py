"""What the paper introduces, in plain torch.

Axes: B batch, N length, C model width.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class CutCrossEntropyConfig:
    """The sizes of the model."""

    d_model: int = 64  # C


class CutCrossEntropy(nn.Module):
    """One sentence on what it computes, and the equation of the paper that says so."""

    def __init__(self, config: CutCrossEntropyConfig):
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, C] from x [B, N, C]."""
        raise NotImplementedError("CutCrossEntropy.forward: the paper's equation is still to be written")
