"""The runs behind the note: what the paper's tables count, and a small translation run from number words to numerals."""

import random

import torch
from torch import Tensor

from rundoku.data import number_words
from rundoku.papers.attention_is_all_you_need import (
    Transformer,
    translate_greedily,
)

TOKENS = ("<pad>", "<bos>", "<eos>", "<ja>", "<zh>", *number_words.WORDS, *number_words.CHARACTERS)
IDS = {token: i for i, token in enumerate(TOKENS)}


def numerals(rng: random.Random, size: int, *, digits: int, shortest: int, longest: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Return sources [B, M] (a language tag, English words) and targets [B, N] (bos, the numeral, eos) of `shortest` to `longest` words."""
    sources, targets = [], []
    while len(sources) < size:
        number = number_words.draw(rng, digits)
        words = number_words.english(number)
        if number_words.held_out(number) != held_out or not shortest <= len(words) <= longest:
            continue
        tag, spell = rng.choice((("<ja>", number_words.japanese), ("<zh>", number_words.chinese)))
        sources.append([IDS[word] for word in (tag, *words)])
        targets.append([IDS[word] for word in ("<bos>", *spell(number), "<eos>")])
    return padded(sources), padded(targets)


def padded(rows: list[list[int]]) -> Tensor:
    """Return rows of tokens as one tensor [B, N], filled up with padding (0)."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def text(tokens: Tensor) -> str:
    """Return what a row of tokens says, up to eos."""
    words = [TOKENS[i] for i in tokens.tolist() if TOKENS[i] != "<bos>"]
    return "".join(words[: words.index("<eos>")] if "<eos>" in words else words)


def exact_match(model: Transformer, source: Tensor, target: Tensor) -> float:
    """Return the share of sources that the model translates greedily without one wrong character."""
    output = translate_greedily(model, source)
    return sum(text(ours) == text(theirs) for ours, theirs in zip(output, target)) / len(target)
