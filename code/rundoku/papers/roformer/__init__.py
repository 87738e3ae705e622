"""RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021, https://arxiv.org/abs/2104.09864).

Queries and keys are rotated, pair of elements by pair, through angles proportional to their position, so that their product depends
on the distance between them alone. The fused Triton kernel stands in ``kernel``, which needs triton.
"""

from rundoku.papers.roformer.attention import decay_bound, rotary_linear_attention
from rundoku.papers.roformer.rotary import frequencies, rotary_tables, rotate, to_half, to_interleaved

__all__ = ["decay_bound", "frequencies", "rotary_linear_attention", "rotary_tables", "rotate", "to_half", "to_interleaved"]
