"""Rotary position embedding in plain torch, in both memory layouts, and the way from one layout to the other.

The D elements of a head are D/2 pairs, and pair i turns by θᵢ radians a position. Which elements make a pair is a convention:
"interleaved" pairs neighbours (0, 1), (2, 3), … as the paper, GPT-J and LLaMA's GGUF files do; "half" pairs (i, i + D/2) as transformers'
Llama does. Both are the same method with the rows of the query and key projections in another order.

B batch, H heads, N length, D head width, C model width.
"""

from typing import Literal

import torch

Layout = Literal["half", "interleaved"]
LAYOUTS = ("half", "interleaved")


# --8<-- [start:tables]
def frequencies(d_head: int, base: float = 10_000.0, device: torch.device | str | None = None) -> torch.Tensor:
    """Return θ [D/2] in float64, the angle in radians by which each pair turns a position (§3.2.2).

    Raises ValueError unless d_head is even and at least 2, and base is above 0.
    """
    if d_head < 2 or d_head % 2:
        raise ValueError(f"d_head: got {d_head}, expected an even number of at least 2")
    if not 0 < base < float("inf"):
        raise ValueError(f"base: got {base}, expected a positive number")
    # θᵢ = base^(−2(i − 1)/d), i = 1 … d/2
    exponent = torch.arange(0, d_head, 2, dtype=torch.float64, device=device) / d_head  # [D/2]
    return base**-exponent


def rotary_tables(positions: torch.Tensor, d_head: int, base: float = 10_000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos(m·θᵢ) and sin(m·θᵢ) in float32, each [..., N, D/2], for positions m [N] or [B, N].

    A larger ``base`` (adjusted base frequency) slows the rotation down. Where a device has no float64
    (Apple's MPS), make the tables on the CPU and move them. Raises ValueError for
    positions in half precision, which cannot count beyond 256 (bfloat16) or 2,048 (float16).
    """
    _check_positions(positions)
    # float64: at position 100,000 a float32 angle is off by up to 0.007 radians
    angles = positions.double()[..., None] * frequencies(d_head, base, positions.device)
    return angles.cos().float(), angles.sin().float()
    # --8<-- [end:tables]


# --8<-- [start:rotate]
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout = "half") -> torch.Tensor:
    """Rotate each pair of ``x`` by the angle of its position (Eq. 15 and 34), in at least float32.

    x: [..., N, D]; cos and sin: [N, D/2], or with as many axes as x, of size 1 where shared
    ([B, 1, N, D/2] beside [B, H, N, D]). Returns [..., N, D] in the dtype of x.
    Raises ValueError for tables that do not fit and for an unknown layout.
    """
    _check(x, cos, sin, layout)
    if layout == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]  # [..., N, D/2] each
    else:
        first, second = x.chunk(2, -1)
    # (a + ib)·(cos + i·sin), written out
    turned = first * cos - second * sin, second * cos + first * sin
    if layout == "interleaved":
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)
    return torch.cat(turned, -1).to(x.dtype)
    # --8<-- [end:rotate]


# --8<-- [start:layouts]
def to_half(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return a query or key projection's weight [H·D, C] (or bias [H·D]) for the half layout, given it for the interleaved one.

    Raises ValueError where the rows do not make n_heads heads of even width.
    """
    _check_rows(weight, n_heads)
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)  # [H, D/2, 2] → [H, 2, D/2]


def to_interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return a query or key projection's weight [H·D, C] (or bias [H·D]) for the interleaved layout, given it for the half one.

    Raises ValueError where the rows do not make n_heads heads of even width.
    """
    _check_rows(weight, n_heads)
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # [H, 2, D/2] → [H, D/2, 2]
    # --8<-- [end:layouts]


def _check_positions(positions: torch.Tensor) -> None:
    if not positions.dim() or positions.is_complex() or positions.dtype in (torch.bool, torch.float16, torch.bfloat16):
        wanted = "integers, float32 or float64 of shape [N] or [B, N]"
        raise ValueError(f"positions: got {positions.dtype} of shape {tuple(positions.shape)}, expected {wanted}")


def _check(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if x.dim() < 2 or not x.shape[-1] or x.shape[-1] % 2 or not x.is_floating_point():
        raise ValueError(f"x: got {x.dtype} of shape {tuple(x.shape)}, expected floating point of shape [..., N, D] with D even")
    pairs = (*x.shape[:-1], x.shape[-1] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        # a [B, N, D/2] table beside [B, H, N, D] would be broadcast along the heads without a word where B is H or 1
        axes = table.dim() in (2, x.dim())
        if not axes or table.shape[-2:] != pairs[-2:] or any(size not in (1, whole) for size, whole in zip(table.shape[:-2], pairs)):
            wanted = f"{pairs[-2:]}, or {x.dim()} axes that can be broadcast to {pairs}"
            raise ValueError(f"{name}: got shape {tuple(table.shape)}, expected {wanted}")


def _check_rows(weight: torch.Tensor, n_heads: int) -> None:
    if n_heads < 1 or not weight.dim() or not weight.shape[0] or weight.shape[0] % (2 * n_heads):
        wanted = f"a number of rows that makes {n_heads} heads of even width"
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected {wanted}")
