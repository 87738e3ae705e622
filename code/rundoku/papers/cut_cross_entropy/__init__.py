"""Cut Your Losses in Large-Vocabulary Language Models.

Cut Your Losses in Large-Vocabulary Language Models, 2024, https://arxiv.org/abs/2411.09009
"""

from rundoku.papers.cut_cross_entropy.model import CutCrossEntropy, CutCrossEntropyConfig

__all__ = ["CutCrossEntropy", "CutCrossEntropyConfig"]
