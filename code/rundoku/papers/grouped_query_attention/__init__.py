"""Grouped-query attention: several query heads share one key-value head, so that decoding has less to read.

Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, EMNLP 2023,
https://arxiv.org/abs/2305.13245; with its limiting case of one key-value head, multi-query attention, from Shazeer, Fast Transformer
Decoding: One Write-Head is All You Need, 2019, https://arxiv.org/abs/1911.02150
"""

from rundoku.papers.grouped_query_attention.attention import GroupedQueryAttention, grouped_attention
from rundoku.papers.grouped_query_attention.cache import kv_cache_bytes
from rundoku.papers.grouped_query_attention.conversion import convert, convert_all, first_heads, mean_pool_heads

__all__ = [
    "GroupedQueryAttention",
    "convert",
    "convert_all",
    "first_heads",
    "grouped_attention",
    "kv_cache_bytes",
    "mean_pool_heads",
]
