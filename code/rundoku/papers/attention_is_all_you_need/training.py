"""The training recipe: Adam, warm-up and decay of the learning rate (§5.3), and the mean of the last checkpoints (§6.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def learning_rate(step: int, d_model: int, warmup_steps: int = 4000) -> float:
    """Return d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5) (Eq. 3); steps count from 1.

    Raises ValueError when the step is below 1.
    """
    if step < 1:
        raise ValueError(f"step: {step}; expected 1 or more, since steps count from 1")
    # --8<-- [start:learning-rate]
    return d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
    # --8<-- [end:learning-rate]


def paper_optimizer(
    parameters: Sequence[Tensor], d_model: int, warmup_steps: int = 4000
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
    """Return Adam with β₁ = 0.9, β₂ = 0.98, ε = 1e-9 and the schedule that gives it the rate of Eq. 3; call `step` on both (§5.3)."""
    optimizer = torch.optim.Adam(parameters, lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    # LambdaLR counts from 0, and its value is a factor of lr = 1.
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate(done + 1, d_model, warmup_steps))


def average_checkpoints(checkpoints: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several state dicts, as the paper takes of its last 5 (base) or 20 (big) before translating (§6.1).

    Raises ValueError when there is none.
    """
    if not checkpoints:
        raise ValueError("checkpoints: none were given; expected one or more state dicts")
    return {name: torch.stack([checkpoint[name] for checkpoint in checkpoints]).mean(dim=0) for name in checkpoints[0]}
