"""The Transformer: sequence transduction with attention alone, no recurrence and no convolution.

Vaswani et al., Attention Is All You Need, NeurIPS 2017, https://arxiv.org/abs/1706.03762
"""

from rundoku.papers.attention_is_all_you_need.attention import (
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    scaled_dot_product_attention,
)
from rundoku.papers.attention_is_all_you_need.config import BASE, BIG, TransformerConfig
from rundoku.papers.attention_is_all_you_need.layers import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward
from rundoku.papers.attention_is_all_you_need.loss import label_smoothed_cross_entropy
from rundoku.papers.attention_is_all_you_need.model import Transformer, cross_attention_maps
from rundoku.papers.attention_is_all_you_need.positions import sinusoidal_positions
from rundoku.papers.attention_is_all_you_need.search import beam_search, greedy_search, length_penalty, translate, translate_greedily
from rundoku.papers.attention_is_all_you_need.training import average_checkpoints, learning_rate, paper_optimizer

__all__ = [
    "BASE",
    "BIG",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "MultiHeadAttention",
    "Transformer",
    "TransformerConfig",
    "attention_weights",
    "average_checkpoints",
    "beam_search",
    "causal_mask",
    "cross_attention_maps",
    "greedy_search",
    "label_smoothed_cross_entropy",
    "learning_rate",
    "length_penalty",
    "paper_optimizer",
    "scaled_dot_product_attention",
    "sinusoidal_positions",
    "translate",
    "translate_greedily",
]
