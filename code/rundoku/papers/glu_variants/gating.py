"""The gate and the gated feed-forward network in plain torch.

B batch, N length, C model width, F feed-forward width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

# --8<-- [start:glu]
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,  # GLU
    "identity": lambda gate: gate,  # Bilinear
    "relu": F.relu,  # ReGLU
    "gelu": F.gelu,  # GEGLU: x·Φ(x), with the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GEGLU as T5 and Gemma compute it
    "silu": F.silu,  # SwiGLU: Swish with β = 1
}


def glu(gate: torch.Tensor, up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """Return act(gate) ⊙ up (Eq. 4 and 5): gate, up: [..., F]; returns [..., F].

    Raises ValueError for an activation that ACTIVATIONS has not, and for two different shapes.
    """
    _check(activation)
    if gate.shape != up.shape:
        raise ValueError(f"up: got shape {tuple(up.shape)}, expected that of gate, {tuple(gate.shape)}")
    return ACTIVATIONS[activation](gate) * up
    # --8<-- [end:glu]


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, expected one of {', '.join(ACTIVATIONS)}")


# --8<-- [start:two-thirds]
def two_thirds(d_ff: int, multiple_of: int = 1) -> int:
    """Return the width at which three matrices have the parameters that two have at ``d_ff`` (§2).

    2/3 · d_ff is rounded down to a whole number, then up to a multiple of ``multiple_of``,
    as in the LLaMA models.
    Raises ValueError for a width or a multiple below 1.
    """
    for name, number in (("d_ff", d_ff), ("multiple_of", multiple_of)):
        if number < 1:
            raise ValueError(f"{name}: got {number}, expected at least 1")
    width = max(1, 2 * d_ff // 3)
    return -(-width // multiple_of) * multiple_of
    # --8<-- [end:two-thirds]


class GatedFeedForward(nn.Module):
    """FFN(x) = (act(x·W) ⊙ x·V)·W₂, the same at every position (Eq. 6), without biases as in the paper unless asked for."""

    def __init__(self, d_model: int, d_ff: int, activation: str = "silu", bias: bool = False) -> None:
        super().__init__()
        for name, width in (("d_model", d_model), ("d_ff", d_ff)):
            if width < 1:
                raise ValueError(f"{name}: got {width}, expected at least 1")
        _check(activation)
        self.activation = activation
        self.gate = nn.Linear(d_model, d_ff, bias)  # W: what goes through the activation
        self.up = nn.Linear(d_model, d_ff, bias)  # V: what it is multiplied with
        self.down = nn.Linear(d_ff, d_model, bias)  # W₂

    # --8<-- [start:feed-forward]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [..., C] for ``x`` [..., C]."""
        hidden = glu(self.gate(x), self.up(x), self.activation)  # [..., F]
        return self.down(hidden)  # [..., C]
        # --8<-- [end:feed-forward]

    def extra_repr(self) -> str:
        """Return the activation, for ``repr``."""
        return f"activation={self.activation!r}"
