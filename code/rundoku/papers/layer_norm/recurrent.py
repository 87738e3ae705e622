"""The LSTM and the GRU of the paper's supplement, with layer normalisation and without.

B batch, N length, D input width, C model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rundoku.papers.layer_norm.norm import LayerNorm

State = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes of a recurrent layer."""

    d_input: int  # D, width of each step's input
    d_model: int  # C, width of the hidden state
    norm: bool = True  # False: the plain cell, Eq. 17–19 (LSTM) or 23–25 (GRU)
    eps: float = 1e-5  # below the root of every normalisation


class _Recurrent(nn.Module):
    """The two projections that both cells share, with the gates side by side."""

    def __init__(self, config: RecurrentConfig, gates: int) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Linear(config.d_input, gates * config.d_model, bias=False)  # W_x
        self.hidden = nn.Linear(config.d_model, gates * config.d_model, bias=False)  # W_h
        self.bias = nn.Parameter(torch.zeros(gates * config.d_model))  # b
        for block in self.hidden.weight.data.split(config.d_model):
            nn.init.orthogonal_(block)  # as in the authors' code

    def norms(self, *multiples: int) -> Sequence[nn.Module]:
        """Return a normalisation for each width, given in multiples of C; the identity where the cell is plain."""
        widths = [multiple * self.config.d_model for multiple in multiples]
        return [LayerNorm(width, self.config.eps) if self.config.norm else nn.Identity() for width in widths]

    def check(self, x: torch.Tensor) -> None:
        """Raise ValueError unless ``x`` is [B, N, D] with N at least 1."""
        if x.dim() != 3 or x.shape[-1] != self.config.d_input or not x.shape[1]:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [B, N, {self.config.d_input}] with N at least 1")


class LSTM(_Recurrent):
    """An LSTM whose summed inputs and cell are normalised at every step (supplement, Eq. 20–22)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config, gates=4)
        self.norm_hidden, self.norm_input, self.norm_cell = self.norms(4, 4, 1)

    def forward(self, x: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """Return the hidden states [B, N, C] and the last hidden state and cell, each [B, C], for ``x`` [B, N, D]."""
        self.check(x)
        hidden, cell = state or (x.new_zeros(x.shape[0], self.config.d_model),) * 2  # [B, C]
        from_input = self.norm_input(self.input(x)) + self.bias  # [B, N, 4C]: each step has its own statistics, so all at once
        outputs = []
        for step in from_input.unbind(1):  # [B, 4C]
            hidden, cell = self.step(step, hidden, cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), (hidden, cell)

    # --8<-- [start:lstm-step]
    def step(self, from_input: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> State:
        """Return the next hidden state and cell, each [B, C]; from_input: [B, 4C]."""
        # (f, i, o, g) = LN(W_h·h) + LN(W_x·x) + b    (Eq. 20)
        gates = self.norm_hidden(self.hidden(hidden)) + from_input
        forget, write, read, new = gates.chunk(4, -1)  # [B, C] each
        # c = σ(f) ⊙ c + σ(i) ⊙ tanh(g)    (Eq. 21): never normalised itself
        cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
        # h = σ(o) ⊙ tanh(LN(c))    (Eq. 22)
        return read.sigmoid() * self.norm_cell(cell).tanh(), cell
        # --8<-- [end:lstm-step]


class GRU(_Recurrent):
    """A GRU whose gates and candidate are normalised separately, from input and from state (supplement, Eq. 26–28)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config, gates=3)
        self.norm_gates_hidden, self.norm_gates_input, self.norm_input, self.norm_hidden = self.norms(2, 2, 1, 1)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states [B, N, C] and the last one [B, C] for ``x`` [B, N, D]."""
        self.check(x)
        width = self.config.d_model
        hidden = x.new_zeros(x.shape[0], width) if hidden is None else hidden  # [B, C]
        gates, candidate = (self.input(x) + self.bias).split([2 * width, width], -1)  # [B, N, 2C], [B, N, C]
        steps = zip(self.norm_gates_input(gates).unbind(1), self.norm_input(candidate).unbind(1))
        outputs = []
        for gate, new in steps:  # [B, 2C], [B, C]
            hidden = self.step(gate, new, hidden)
            outputs.append(hidden)
        return torch.stack(outputs, 1), hidden

    def step(self, gate: torch.Tensor, new: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the next hidden state [B, C]; gate: [B, 2C] and new: [B, C] come from the input, already normalised."""
        gates, candidate = self.hidden(hidden).split([2 * self.config.d_model, self.config.d_model], -1)
        # (z, r) = LN(W_h·h) + LN(W_x·x)    (Eq. 26)
        update, reset = (self.norm_gates_hidden(gates) + gate).sigmoid().chunk(2, -1)  # [B, C] each
        # ĥ = tanh(LN(W·x) + σ(r) ⊙ LN(U·h))    (Eq. 27)
        new = (new + reset * self.norm_hidden(candidate)).tanh()
        # h = (1 − σ(z)) ⊙ h + σ(z) ⊙ ĥ    (Eq. 28)
        return (1 - update) * hidden + update * new
