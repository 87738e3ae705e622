"""LLaMA: Open and Efficient Foundation Language Models (Touvron et al., 2023, https://arxiv.org/abs/2302.13971).

A decoder with RMSNorm, rotary positions and SwiGLU, small enough to serve and trained on more tokens than its size would ask for.
The same code with grouped key-value heads and a tied head reads the checkpoints of the family that it founded.
"""

from rundoku.papers.llama.cache import KVCache
from rundoku.papers.llama.checkpoint import from_gguf, from_transformers
from rundoku.papers.llama.config import LLAMA_7B, LLAMA_13B, LLAMA_33B, LLAMA_65B, LlamaConfig
from rundoku.papers.llama.model import Llama
from rundoku.papers.llama.sampling import generate, next_token_probabilities

__all__ = [
    "LLAMA_7B",
    "LLAMA_13B",
    "LLAMA_33B",
    "LLAMA_65B",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "from_gguf",
    "from_transformers",
    "generate",
    "next_token_probabilities",
]
