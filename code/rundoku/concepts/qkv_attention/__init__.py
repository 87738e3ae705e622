"""Query, key and value: what attention computes, traced from three tokens to the output and through a real model's first layer.

A concept introduces nothing: attention comes from Vaswani et al. (https://arxiv.org/abs/1706.03762), heads that share their keys and
values from Ainslie et al. (https://arxiv.org/abs/2305.13245).
"""

from rundoku.papers.attention_is_all_you_need import attention_weights, causal_mask, scaled_dot_product_attention
from rundoku.papers.grouped_query_attention import grouped_attention

__all__ = ["attention_weights", "causal_mask", "grouped_attention", "scaled_dot_product_attention"]
