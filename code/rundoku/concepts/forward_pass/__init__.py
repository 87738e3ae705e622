"""The forward pass of a language model: one token's way from text to next-token probabilities, every tensor named and measured.

A concept introduces nothing: the model comes from Touvron et al. (https://arxiv.org/abs/2302.13971), whose room holds it, and the
tokenizer from Sennrich et al. (https://arxiv.org/abs/1508.07909) in the byte-level form of GPT-2.
"""

from rundoku.papers.byte_pair_encoding import ByteLevelBPE
from rundoku.papers.llama import Llama, LlamaConfig, from_gguf, generate, next_token_probabilities

__all__ = ["ByteLevelBPE", "Llama", "LlamaConfig", "from_gguf", "generate", "next_token_probabilities"]
