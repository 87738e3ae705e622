"""What the paper builds on the rotation: linear attention that knows distances, and the bound on how scores decay with them."""

import torch
from torch.nn import functional as F

from rundoku.papers.roformer.rotary import Layout, frequencies, rotate


# --8<-- [start:linear-attention]
def rotary_linear_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout = "half"
) -> torch.Tensor:
    """Return linear attention with φ(x) = elu(x) + 1 and rotated features, [..., N, E], every position seeing all (Eq. 19).

    query: [..., N, D], key: [..., M, D], value: [..., M, E], with N = M: cos and sin as in ``rotate``.
    The denominator is not rotated: it stays positive, but the weights are no longer a distribution.
    """
    phi_query, phi_key = F.elu(query) + 1, F.elu(key) + 1
    # Σₙ (R_m φ(q_m))ᵀ (R_n φ(k_n)) vₙ  =  (R_m φ(q_m))ᵀ Σₙ (R_n φ(k_n)) vₙᵀ
    summary = rotate(phi_key, cos, sin, layout).mT @ value  # [..., D, E]
    numerator = rotate(phi_query, cos, sin, layout) @ summary  # [..., N, E]
    # Σₙ φ(q_m)ᵀ φ(k_n)
    return numerator / (phi_query @ phi_key.sum(-2).unsqueeze(-1))
    # --8<-- [end:linear-attention]


# --8<-- [start:decay-bound]
def decay_bound(distances: torch.Tensor, d_head: int, base: float = 10_000.0) -> torch.Tensor:
    """Return 1/(d/2) · Σⱼ |Sⱼ| in float64 for distances [N] (§3.4.3, Fig. 2): up to a factor of the contents, no score is larger."""
    angles = distances.double()[..., None] * frequencies(d_head, base, distances.device)  # [N, D/2]
    # Sⱼ = Σ_{i<j} e^{i(m−n)θᵢ}, j = 1 … d/2
    partial = torch.polar(torch.ones_like(angles), angles).cumsum(-1)  # [N, D/2] complex
    return partial.abs().mean(-1)
    # --8<-- [end:decay-bound]
