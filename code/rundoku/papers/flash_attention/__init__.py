"""FlashAttention: exact attention in tiles that fit on the chip, so that the N × M scores never reach the large memory.

Dao et al., FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness, NeurIPS 2022, https://arxiv.org/abs/2205.14135;
with the loop order of Dao, FlashAttention-2, ICLR 2024, https://arxiv.org/abs/2307.08691
"""

from importlib.util import find_spec

from rundoku.papers.flash_attention.attention import tiled_attention
from rundoku.papers.flash_attention.online_softmax import Running, absorb, finish, nothing_seen
from rundoku.papers.flash_attention.reference import allowed_pairs, attention_reference

if find_spec("triton") is not None:  # all else works without it
    from rundoku.papers.flash_attention.kernel import flash_attention, flash_attention_varlen, flash_decode

__all__ = [
    "Running",
    "absorb",
    "allowed_pairs",
    "attention_reference",
    "finish",
    "flash_attention",
    "flash_attention_varlen",
    "flash_decode",
    "nothing_seen",
    "tiled_attention",
]
