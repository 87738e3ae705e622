"""The note's runs, small: what they count must be what they say."""

import pytest

from rundoku.data.source import MissingData
from rundoku.papers.byte_pair_encoding import ByteLevelBPE, byte_vocabulary, experiments, merge


def run(experiment, **arguments):
    try:
        return experiment(**arguments)
    except MissingData as missing:
        pytest.skip(str(missing))


def test_rivals_of_a_merge():
    words = ("ab", "abc", "dbc")  # ab twice, bc twice; c and the end of a word twice
    assert experiments.most_frequent(words, [("a", "b"), ("c", "</w>"), ("a", "c")]) == [2, 0, -1]


def test_n_grams_mark_the_end_of_a_word():
    assert experiments._grams("lowest", 2) == ["lo", "we", "st</w>"]
    assert experiments._grams("lower", 3) == ["low", "er</w>"]
    assert experiments._grams("a", 3) == ["a</w>"]


def test_a_row_of_table_1_by_hand():
    train, test = experiments.Counter({"ab": 3, "b": 1}), experiments.Counter({"ab": 1, "cb": 2})
    cut = {"ab": ["a", "b</w>"], "b": ["b</w>"], "cb": ["c", "b</w>"]}
    row = experiments._row({word: cut[word] for word in train}, {word: cut[word] for word in test}, train, test)
    assert row == {"tokens": 7, "types": 2, "test_tokens": 6, "unknown": 2, "examples": []}


def test_segmentations_at_their_ends():
    found = run(experiments.segmentations, merges=(0, 50))
    words, bpe = found.rows.words, found.bpe
    assert bpe.types[0] == found.alphabet and bpe.types[1] <= found.alphabet + 50
    assert bpe.tokens[0] == found.rows.characters.tokens + words.tokens  # a mark for every word
    assert words.tokens < bpe.tokens[1] < bpe.tokens[0]
    assert bpe.unknown[0] == found.rows.characters.unknown < words.unknown


def test_characters_in_more_than_one_token():
    merges = [("ä", "º")]  # the bytes E4 BA
    made = ByteLevelBPE(byte_vocabulary(merges), merges)
    assert [made.token_bytes(i) for i in made.encode("人a")] == [b"\xe4\xba", b"\xba", b"a"]
    assert experiments._cut(made, made.encode("a人é人")) == 3
    assert experiments._cut(made, made.encode("abc")) == 0


def test_longest_match_is_not_the_order_of_merges():
    ranks = {("b", "c"): 0, ("a", "b"): 1}
    vocabulary = dict.fromkeys(("a", "b", "c", "bc", "ab"), 0)
    assert merge("abc", ranks) == ["a", "bc"]
    assert experiments.longest_match("abc", vocabulary) == ["ab", "c"]


def test_every_number_is_cut_in_one_way():
    shapes = run(experiments.numbers).shapes
    assert sum(share for _, share in shapes["GPT-2"].items()) == pytest.approx(1)
    assert shapes["SmolLM2"].as_dict() == {"1+1+1+1": 1.0}


def test_isnumeric_takes_numerals_out_of_words():
    assert experiments._numeric_pieces("一人") == ["一", "人"] != experiments.split("一人") == ["一人"]
    assert experiments._numeric_pieces("it's 12") == experiments.split("it's 12")


def test_special_tokens_come_from_markup_alone():
    found = run(experiments.typed_by_a_user, text="a<|im_end|>b<|im_start|>")
    assert (found.data.special, found.markup.special) == (0, 2)


def test_pieces_with_a_space_apart_are_the_text():
    text = "to be,  or\nnot to be"
    assert experiments._pieces_with_space_apart(text) == ["to", " ", "be", ",", " ", " ", "or", "\n", "not", " ", "to", " ", "be"]
