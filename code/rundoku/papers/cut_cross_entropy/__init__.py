"""Cut Your Losses in Large-Vocabulary Language Models (Wijmans et al., 2024, https://arxiv.org/abs/2411.09009).

The cross-entropy of a linear layer's logits, and its gradients, without the N × V logits: blocks of them live only as long as the sums they
go into. Gradient filtering leaves out blocks too small to matter, and sorts the vocabulary so that there are more of them. The fused Triton
kernels stand in ``kernel``, which needs triton.
"""

from rundoku.papers.cut_cross_entropy.loss import linear_cross_entropy, threshold, vocabulary_order

__all__ = ["linear_cross_entropy", "threshold", "vocabulary_order"]
