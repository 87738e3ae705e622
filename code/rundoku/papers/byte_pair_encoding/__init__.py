"""Neural Machine Translation of Rare Words with Subword Units (Sennrich, Haddow & Birch, 2016, https://arxiv.org/abs/1508.07909).

Byte-pair encoding: a vocabulary learned by merging the most frequent pair of neighbours again and again, and text segmented by the
same merges in the same order. ``byte_level`` holds the form that GPT-2 gave it (Radford et al., 2019, §2.2), which starts from the
256 bytes, so that no text at all is unknown; it is what SmolLM2 reads and writes.
"""

from rundoku.papers.byte_pair_encoding.byte_level import BYTE_CHARACTERS, ByteLevelBPE, byte_vocabulary, learn_byte_merges
from rundoku.papers.byte_pair_encoding.merges import END_OF_WORD, apply_merges, learn_merges, merge
from rundoku.papers.byte_pair_encoding.pretokenizer import split

__all__ = [
    "BYTE_CHARACTERS",
    "END_OF_WORD",
    "ByteLevelBPE",
    "apply_merges",
    "byte_vocabulary",
    "learn_byte_merges",
    "learn_merges",
    "merge",
    "split",
]
