"""GLU Variants Improve Transformer (Shazeer, 2020, https://arxiv.org/abs/2002.05202).

The first linear map of the Transformer's feed-forward network becomes two, multiplied with each other element by element, one of them
behind an activation; a width of two thirds pays for the third matrix. The fused Triton kernel stands in ``kernel``, which needs triton.
"""

from rundoku.papers.glu_variants.gating import ACTIVATIONS, GatedFeedForward, glu, two_thirds

__all__ = ["ACTIVATIONS", "GatedFeedForward", "glu", "two_thirds"]
