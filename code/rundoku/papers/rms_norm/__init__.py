"""Root Mean Square Layer Normalization (Zhang & Sennrich, 2019, https://arxiv.org/abs/1910.07467).

Layer normalisation without its mean: a vector is divided by its root mean square, and by nothing else it is changed. The paper's
pRMSNorm estimates that root mean square from a part of the units. The fused Triton kernels stand in ``kernel``, which needs triton.
"""

from rundoku.papers.rms_norm.norm import RMSNorm, rms_norm

__all__ = ["RMSNorm", "rms_norm"]
