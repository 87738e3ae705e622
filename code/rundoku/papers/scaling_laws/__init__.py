"""Scaling Laws for Neural Language Models (Kaplan et al., 2020, https://arxiv.org/abs/2001.08361).

The loss of a language model falls as a power of its parameters, of its data and of its compute: the fits with their intervals, the
counts of parameters and operations that they are stated in, and the allocation of a compute budget that follows.
"""

from rundoku.papers.scaling_laws.allocation import (
    Allocation,
    Frontier,
    allocation_exponents,
    critical_batch_size,
    efficient_frontier,
    minimum_compute,
    minimum_steps,
    overfitting,
    tokens_needed,
    versus_convergence,
)
from rundoku.papers.scaling_laws.counts import PF_DAY, DecoderConfig, parameters, table_1, training_flops
from rundoku.papers.scaling_laws.fits import (
    CurveLaw,
    JointLaw,
    PowerLaw,
    fit_curves,
    fit_joint,
    fit_power_law,
    interval,
    resampled,
)
from rundoku.papers.scaling_laws.model import DecoderOnly

__all__ = [
    "PF_DAY",
    "Allocation",
    "CurveLaw",
    "DecoderConfig",
    "DecoderOnly",
    "Frontier",
    "JointLaw",
    "PowerLaw",
    "allocation_exponents",
    "critical_batch_size",
    "efficient_frontier",
    "fit_curves",
    "fit_joint",
    "fit_power_law",
    "interval",
    "minimum_compute",
    "minimum_steps",
    "overfitting",
    "parameters",
    "resampled",
    "table_1",
    "tokens_needed",
    "training_flops",
    "versus_convergence",
]
