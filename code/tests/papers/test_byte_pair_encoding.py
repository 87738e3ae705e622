"""Learning and applying merges, against Algorithm 1 taken literally, the paper's Figure 1 and the trainer of Hugging Face's tokenizers."""

import json
import re
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rundoku.data.human_rights import articles
from rundoku.data.shakespeare import plays
from rundoku.papers.byte_pair_encoding import apply_merges, byte_vocabulary, learn_byte_merges, learn_merges, merge

TOY = {"low": 5, "lower": 2, "newest": 6, "widest": 3}  # Algorithm 1
FIGURE = ("low", "lowest", "newer", "wider")  # Figure 1
WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=12), st.integers(1, 5), max_size=10)


def algorithm_1(words, n_merges):
    """The paper's loop: count everything again for every merge, words as strings with spaces between symbols."""
    vocabulary, merges = {" ".join([*word, "</w>"]): count for word, count in words.items()}, []
    for _ in range(n_merges):
        pairs = defaultdict(int)
        for word, count in vocabulary.items():
            for pair in pairwise(word.split()):
                pairs[pair] += count
        if not pairs:
            break
        merges.append(max(pairs, key=pairs.get))
        pattern = re.compile(rf"(?<!\S){re.escape(' '.join(merges[-1]))}(?!\S)")
        vocabulary = {pattern.sub("".join(merges[-1]), word): count for word, count in vocabulary.items()}
    return merges


@given(WORDS)
@settings(max_examples=150, deadline=None)
def test_counting_on_finds_what_algorithm_1_finds(words):
    assert learn_merges(words, 40) == algorithm_1(words, 40)


def test_algorithm_1s_own_words_and_real_ones():
    assert learn_merges(TOY, 10) == algorithm_1(TOY, 10)
    counts = defaultdict(int)
    for word in articles("en")[1].split() * 2 + articles("en")[2].split():
        counts[word] += 1
    assert learn_merges(counts, 60) == algorithm_1(counts, 60)


def test_figure_1_up_to_its_ties():
    symbols = {word: [*word, "</w>"] for word in FIGURE}
    for pair in (("r", "</w>"), ("l", "o"), ("lo", "w"), ("e", "r</w>")):  # as printed: each a most frequent pair in its turn
        counts = defaultdict(int)
        for word in symbols.values():
            for neighbours in pairwise(word):
                counts[neighbours] += 1
        assert counts[pair] == max(counts.values())
        symbols = {word: merge(parts, {pair: 0}) for word, parts in symbols.items()}
    assert apply_merges("lower", [("r", "</w>"), ("l", "o"), ("lo", "w"), ("e", "r</w>")]) == ["low", "er</w>"]


@pytest.mark.parametrize("text", ["shakespeare", "ja", "zh"])
def test_the_trainer_of_tokenizers_learns_the_same(text):
    text = plays()[:150_000] if text == "shakespeare" else "\n".join(articles(text))
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator([text], trainers.BpeTrainer(vocab_size=256 + 800, initial_alphabet=alphabet, show_progress=False))
    found = json.loads(theirs.to_str())["model"]
    merges = learn_byte_merges(text, 800, ties="oldest")
    assert merges == [tuple(pair) for pair in found["merges"]]
    assert byte_vocabulary(merges) == found["vocab"]


def test_ties():
    assert learn_merges({"ba": 1, "ab": 1}, 1) == [("b", "a")]
    assert learn_merges({"ba": 1, "ab": 1}, 1, ties="oldest") == [("a", "b")]
    words, turned = dict.fromkeys(FIGURE, 1), dict.fromkeys(reversed(FIGURE), 1)
    assert learn_merges(words, 6) != learn_merges(turned, 6)
    assert learn_merges(words, 6, ties="oldest") == learn_merges(turned, 6, ties="oldest")


def test_pairs_run_out():
    assert learn_merges({"ab": 3}, 10) == [("a", "b"), ("ab", "</w>")]
    assert learn_merges({}, 10) == [] == learn_merges({"ab": 3}, 0)


def lowest_everywhere(symbols, ranks):
    """What GPT-2 does: find the pair of lowest rank, merge it everywhere, look again."""
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        lowest, merged, at = min(pairs, key=ranks.get), [], 0
        while at < len(symbols):
            found = tuple(symbols[at : at + 2]) == lowest
            merged.append("".join(symbols[at : at + 1 + found]))
            at += 1 + found
        symbols = merged
    return list(symbols)


SYMBOLS = st.sampled_from(["a", "b", "ab", "ba", "aa", "aab"])


@given(st.text("ab", max_size=30), st.lists(st.tuples(SYMBOLS, SYMBOLS), unique=True, max_size=12))
@settings(max_examples=300, deadline=None)
def test_merging_is_in_the_order_of_ranks(word, merges):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert merge(word, ranks) == lowest_everywhere(list(word), ranks)


@given(WORDS)
@settings(max_examples=50, deadline=None)
def test_a_word_that_was_learned_from_falls_into_what_learning_left_of_it(words):
    merges = learn_merges(words, 15)
    for word in words:
        symbols = [*word, "</w>"]
        for pair in merges:
            symbols = merge(symbols, {pair: 0})
        assert apply_merges(word, merges) == symbols


def test_a_long_word_takes_few_lookups():
    class Counted(dict):
        lookups = 0

        def get(self, key, default=None):
            self.lookups += 1
            return super().get(key, default)

    ranks = Counted({("a" * 2**i, "a" * 2**i): i for i in range(12)})
    assert merge("a" * 4096, ranks) == ["a" * 4096]
    assert ranks.lookups < 5 * 4096  # two for a merge, and one for a neighbour that was merged away


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (({"low": 0}, 1), "words holds 'low' with frequency 0"),
        (({"a</w>b": 1}, 1), "end-of-word mark"),
        (({"low": 1}, -1), "n_merges is -1"),
        (({"low": 1}, 1, "newest"), "ties 'newest'"),
    ],
)
def test_refusals(arguments, named):
    with pytest.raises(ValueError, match=named):
        learn_merges(*arguments)


def test_a_word_with_the_mark_is_refused():
    with pytest.raises(ValueError, match="end-of-word mark"):
        apply_merges("low</w>", [("l", "o")])
