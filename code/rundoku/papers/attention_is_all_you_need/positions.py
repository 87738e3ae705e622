"""Sinusoidal position encodings (§3.5)."""

import torch
from torch import Tensor


def sinusoidal_positions(length: int, d_model: int, device: torch.device | str | None = None) -> Tensor:
    """Return PE [N, C] in float32: one sine and one cosine for each of C/2 wavelengths from 2π to 10000·2π (§3.5).

    Even columns hold sines, odd columns cosines. Raises ValueError when d_model is odd.
    """
    if d_model % 2:
        raise ValueError(f"d_model: {d_model} is odd; expected an even width, a sine and a cosine for each wavelength")
    # --8<-- [start:positions]
    # In float64: at position 10000 an angle in float32 is off by up to half a thousandth.
    position = torch.arange(length, dtype=torch.float64, device=device)
    exponent = torch.arange(0, d_model, 2, dtype=torch.float64, device=device) / d_model  # 2i/C
    frequency = 10_000**-exponent  # [C/2]
    angle = position[:, None] * frequency  # [N, C/2]
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).float()  # [N, C]
    # --8<-- [end:positions]
