"""The keys and values of the tokens that a model has already read, so that it never computes them again.

Axes: L layers, B batch, N new tokens, M tokens so far, G key-value heads, D head width.
"""

import torch
from torch import Tensor

from rundoku.papers.llama.config import LlamaConfig


class KVCache:
    """Room for `capacity` tokens of `batch_size` sequences: one tensor [L, 2, B, G, capacity, D], allocated once and filled from the left.

    Keys are held after their rotation. `length` is how many columns are filled, `real` [B, capacity] which of them are no padding.
    `device` and `dtype` are those of the model's weights. For inference: gradients do not pass through it. Raises ValueError for a
    capacity beyond the model's `max_length`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int = 1,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        capacity = config.max_length if capacity is None else capacity
        if not 1 <= capacity <= config.max_length:
            raise ValueError(f"capacity: got {capacity}; expected 1 to max_length = {config.max_length}")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; expected at least 1")
        shape = (config.n_layers, 2, batch_size, config.n_kv_heads, capacity, config.d_head)
        self.states = torch.zeros(shape, device=device, dtype=dtype)
        self.real = torch.zeros(batch_size, capacity, dtype=torch.bool, device=device)
        self.length = 0

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.real.shape[0]

    @property
    def capacity(self) -> int:
        """How many tokens of each sequence it has room for."""
        return self.real.shape[1]

    @property
    def bytes(self) -> int:
        """How many bytes the keys and values take: 2·L·B·G·capacity·D numbers."""
        return self.states.numel() * self.states.element_size()

    # --8<-- [start:append]
    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values [B, G, N, D]; returns all so far, [B, G, M, D] each.

        `length` stays, since every layer writes to the same columns; `advance` moves on afterwards.
        """
        if key.requires_grad:
            raise ValueError("cache: no gradient passes through it; expected a call under no_grad()")
        held, given = ((tensor.dtype, tensor.device) for tensor in (self.states, key))
        if held != given:
            raise ValueError(f"cache: it holds {held[0]} on {held[1]}; expected {given[0]} on {given[1]}, as the keys are")
        new = slice(self.length, self.length + key.shape[2])
        keys, values = self.states[layer]  # [B, G, capacity, D] each
        keys[:, :, new], values[:, :, new] = key, value
        return keys[:, :, : new.stop], values[:, :, : new.stop]

    def advance(self, real: Tensor) -> None:
        """Count the columns that a forward pass has filled; real: [B, N], False at padding."""
        end = self.length + real.shape[1]
        self.real[:, self.length : end] = real
        self.length = end
        # --8<-- [end:append]
