"""What follows from the laws: how much data a model needs, which batch it can use, and how to spend a compute budget.

Sizes N are non-embedding parameters, data and batches are tokens, steps are updates, compute is floating-point operations.
"""

import math
from typing import NamedTuple

from rundoku.papers.scaling_laws.fits import CurveLaw, JointLaw


class Allocation(NamedTuple):
    """The powers of compute with which loss falls, and model, batch, steps and data grow."""

    loss: float
    model: float
    batch: float
    steps: float
    data: float


class Frontier(NamedTuple):
    """The compute-efficient training for one budget."""

    parameters: float
    steps: float  # minimal ones, at a batch far above the critical one
    loss: float


# --8<-- [start:exponents]
def allocation_exponents(alpha_n: float, alpha_s: float, alpha_b: float) -> Allocation:
    """Return how the optimum moves with compute: L ∝ C^-α_C, N ∝ C^(α_C/α_N), B ∝ C^(α_C/α_B), S ∝ C^(α_C/α_S), D = B·S (Eq. 1.7, 1.8)."""
    _positive(alpha_n=alpha_n, alpha_s=alpha_s, alpha_b=alpha_b)
    alpha_c = 1 / (1 / alpha_s + 1 / alpha_b + 1 / alpha_n)
    model, batch, steps = alpha_c / alpha_n, alpha_c / alpha_b, alpha_c / alpha_s  # they add up to 1
    return Allocation(alpha_c, model, batch, steps, batch + steps)
    # --8<-- [end:exponents]


# --8<-- [start:batch]
def critical_batch_size(loss: float, scale: float = 2e8, exponent: float = 0.21) -> float:
    """Return B_crit = B*/L^(1/α_B) in tokens; the defaults are the paper's, whose loss is in nats a BPE token (Eq. 1.4)."""
    _positive(loss=loss, scale=scale, exponent=exponent)
    return scale / loss ** (1 / exponent)


def minimum_steps(steps: float, batch: float, critical: float) -> float:
    """Return the steps that the same loss would have taken at a batch far above the critical one (Eq. 5.4)."""
    _positive(steps=steps, batch=batch, critical=critical)
    return steps / (1 + critical / batch)


def minimum_compute(compute: float, batch: float, critical: float) -> float:
    """Return the compute that the same loss would have taken at a batch far below the critical one (Eq. 5.5)."""
    _positive(compute=compute, batch=batch, critical=critical)
    return compute / (1 + batch / critical)
    # --8<-- [end:batch]


def efficient_frontier(compute: float, curves: CurveLaw, batch_scale: float = 2e8, alpha_b: float = 0.21) -> Frontier:
    """Return size, steps and loss of the training that spends ``compute`` best, with B = B_crit (Eq. B.6 to B.10)."""
    _positive(compute=compute, batch_scale=batch_scale, alpha_b=alpha_b)
    alpha_n, alpha_s, n_c, s_c = (float(value) for value in (curves.alpha_n, curves.alpha_s, curves.n_c, curves.s_c))
    alpha_c, model, _, steps, _ = allocation_exponents(alpha_n, alpha_s, alpha_b)
    ratio = alpha_n / alpha_s  # the share by which the best loss lies above the converged one (Eq. B.5)
    compute_c = 6 * n_c * batch_scale * s_c * (1 + ratio) ** (1 / alpha_s + 1 / alpha_n) * (1 / ratio) ** (1 / alpha_s)
    size = n_c * (compute / compute_c) ** model * (1 + ratio) ** (1 / alpha_n)
    updates = compute_c / (6 * n_c * batch_scale) * (1 + ratio) ** (-1 / alpha_n) * (compute / compute_c) ** steps
    return Frontier(size, updates, (compute_c / compute) ** alpha_c)


def overfitting(parameters: float, tokens: float, law: JointLaw) -> float:
    """Return δL = L(N, D)/L(N, ∞) - 1, what finite data costs (Eq. 4.3)."""
    _positive(parameters=parameters, tokens=tokens)
    ratio = float(law.alpha_n / law.alpha_d)
    return (1 + (parameters / float(law.n_c)) ** ratio * float(law.d_c) / tokens) ** float(law.alpha_d) - 1


def tokens_needed(parameters: float, law: JointLaw, share: float = 0.02) -> float:
    """Return the data D at which `overfitting` has come down to ``share``; 0.02 is how far the paper's seeds differ (Eq. 4.4)."""
    _positive(parameters=parameters, share=share)
    ratio = float(law.alpha_n / law.alpha_d)
    return float(law.d_c) * (parameters / float(law.n_c)) ** ratio / math.expm1(math.log1p(share) / float(law.alpha_d))


def versus_convergence(alpha_n: float, alpha_s: float, excess: float = 0.02) -> tuple[float, float, float]:
    """Return how many times the parameters, steps and compute an efficient training takes of one that ends ``excess`` above convergence.

    Both reach the same loss (Eq. B.12 to B.14).
    """
    _positive(alpha_n=alpha_n, alpha_s=alpha_s, excess=excess)
    efficient = alpha_n / alpha_s
    size = ((1 + efficient) / (1 + excess)) ** (1 / alpha_n)
    steps = ((1 + 1 / efficient) / (1 + 1 / excess)) ** (1 / alpha_s)
    return size, steps, size * steps


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0 or math.isinf(value):
            raise ValueError(f"{name}: {value}; expected a positive number")
