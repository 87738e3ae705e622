"""LoRA: a frozen weight plus a trained product of two thin matrices, W = W₀ + (α/r)·BA.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685
"""

from rundoku.papers.lora.analysis import amplification, subspace_similarity
from rundoku.papers.lora.layers import LoRAConfig, LoRAEmbedding, LoRALinear
from rundoku.papers.lora.model import (
    apply_lora,
    combine_adapters,
    load_lora_state_dict,
    lora_layers,
    lora_state_dict,
    merge_adapters,
    unmerge_adapters,
    use_adapters,
)

__all__ = [
    "LoRAConfig",
    "LoRAEmbedding",
    "LoRALinear",
    "amplification",
    "apply_lora",
    "combine_adapters",
    "load_lora_state_dict",
    "lora_layers",
    "lora_state_dict",
    "merge_adapters",
    "subspace_similarity",
    "unmerge_adapters",
    "use_adapters",
]
