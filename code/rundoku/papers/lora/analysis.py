"""What a trained update looks like: the subspaces that two adapters share (§7.2) and what the update amplifies (§7.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor


def subspace_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return φ(i, j) = ‖Uᵢᵀ Uⱼ‖²_F / min(i, j) of Eq. 4 for every i and j, counted from 1: first [r, I], second [s, I] -> [r, s].

    Uᵢ holds the i leading right-singular vectors of `first`, Uⱼ the j leading ones of `second`. 1 where one subspace holds the other,
    0 where they are orthogonal; two random ones share max(i, j)/I on average, so read it beside a random control.
    Raises ValueError for matrices of different width.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"second: shape {tuple(second.shape)}; expected a matrix as wide as first, {tuple(first.shape)}")
    # --8<-- [start:similarity]
    v = torch.linalg.svd(first.double(), full_matrices=False).Vh  # [r, I]
    w = torch.linalg.svd(second.double(), full_matrices=False).Vh  # [s, I]
    shared = (v @ w.T).square().cumsum(0).cumsum(1)  # every ‖UᵢᵀUⱼ‖²_F: [r, s]
    i = torch.arange(1, len(v) + 1, dtype=shared.dtype)[:, None]  # [r, 1]
    j = torch.arange(1, len(w) + 1, dtype=shared.dtype)  # [s]
    return shared / torch.minimum(i, j)
    # --8<-- [end:similarity]


@dataclass(frozen=True)
class Amplification:
    """One column group of Table 7: Frobenius norms of W and ΔW, and of W seen through the top r singular directions of three matrices."""

    weight: float  # ‖W‖
    delta: float  # ‖ΔW‖
    through_delta: float  # ‖UᵀWV‖ with the directions of ΔW
    through_weight: float  # with those of W itself, the most that r directions can hold
    through_random: float  # with those of a random matrix

    @property
    def factor(self) -> float:
        """How much the update strengthens its own directions, ‖ΔW‖ / ‖UᵀWV‖ (§H.4)."""
        return self.delta / self.through_delta


def amplification(weight: Tensor, delta: Tensor, rank: int, seed: int = 0) -> Amplification:
    """Compare an update with the weight that it changes, as Table 7 does: weight and delta [O, I].

    Raises ValueError for different shapes, or a rank that the matrices cannot have.
    """
    if weight.shape != delta.shape or weight.ndim != 2:
        raise ValueError(f"delta: shape {tuple(delta.shape)}; expected the weight's, {tuple(weight.shape)}, with two axes")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank: {rank}; expected 1 to {min(weight.shape)}")
    weight, delta = weight.double(), delta.double()
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def through(matrix: Tensor) -> float:
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return (u[:, :rank].T @ weight @ vh[:rank].T).norm().item()

    return Amplification(weight.norm().item(), delta.norm().item(), through(delta), through(weight), through(random))
