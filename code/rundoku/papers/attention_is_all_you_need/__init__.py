"""The Transformer: sequence transduction with attention alone, no recurrence and no convolution.

Vaswani et al., Attention Is All You Need, NeurIPS 2017, https://arxiv.org/abs/1706.03762
"""

from rundoku.papers.attention_is_all_you_need.attention import (
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    scaled_dot_product_attention,
)

__all__ = ["MultiHeadAttention", "attention_weights", "causal_mask", "scaled_dot_product_attention"]
