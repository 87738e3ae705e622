"""Byte-level BPE with the real vocabularies of GPT-2 and SmolLM2, against tokenizers, the library regex and published ids."""

import pickle
import unicodedata
from functools import cache

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from rundoku.data import gpt2_vocabulary, smollm2
from rundoku.data.human_rights import articles
from rundoku.data.python_code import code
from rundoku.data.source import MissingData
from rundoku.papers.byte_pair_encoding import BYTE_CHARACTERS, ByteLevelBPE, byte_vocabulary, learn_byte_merges, split

GPT2 = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")
SOURCES = {"gpt2": gpt2_vocabulary.vocabulary, "smollm2": smollm2.vocabulary}

# What has been assigned by the Unicode of this Python; other libraries may know newer letters.
KNOWN = st.characters(exclude_categories=("Cs", "Cn"))
TEXT = st.lists(
    st.one_of(
        KNOWN,
        st.sampled_from(
            ["'s", "'re", "'ll", "'S", "''", " ", "  ", "\n", "\t", "\x1c", "\x1f", "\x85", "\xa0", "\u3000", "\u200b", "\ufeff"]
        ),
        st.sampled_from(["12", "½", "Ⅷ", "三", "٣", "１", "²", "é", "e\u0301", "👩‍🔬", "人権", "the", " low", "_", "…", "<|endoftext|>"]),
    ),
    max_size=25,
).map("".join)


@cache
def ours(name):
    try:
        return ByteLevelBPE(**SOURCES[name](), single_digits=name == "smollm2")
    except MissingData as missing:
        pytest.skip(str(missing))


@cache
def bytes_without_token(name):
    made = ours(name)
    return set(range(256)) - {data[0] for i in range(len(made)) if len(data := made.token_bytes(i)) == 1}


@cache
def theirs(name):
    """The tokenizer as its maker's tokenizer.json has it, without the special tokens, which tokenizers would always read as such."""
    made = ours(name)
    tokenizer = Tokenizer(models.BPE(vocab=made.ids, merges=sorted(made.ranks, key=made.ranks.get)))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm2" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    return tokenizer


@given(TEXT)
@settings(max_examples=400, deadline=None)
def test_pieces_are_those_of_gpt2s_regular_expression(text):
    assert split(text) == GPT2.findall(text)
    assert "".join(split(text)) == "".join(split(text, single_digits=True)) == text


def test_kinds_of_all_characters():
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    for around in (" {}a", "1{}!"):
        text = "\n".join(around.format(character) for character in characters)
        assert split(text) == GPT2.findall(text)


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_single_digits_are_those_of_tokenizers(text):
    level = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert split(text, single_digits=True) == [text[start:end] for _, (start, end) in level.pre_tokenize_str(text)]


def test_the_characters_of_bytes_are_gpt2s():
    assert set(BYTE_CHARACTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    assert BYTE_CHARACTERS[ord("A")] == "A" and BYTE_CHARACTERS[ord(" ")] == "Ġ" and BYTE_CHARACTERS[ord("\n")] == "Ċ"


@pytest.mark.parametrize("name", SOURCES)
@given(text=TEXT)
@settings(max_examples=120, deadline=None)
def test_ids_are_those_of_tokenizers(name, text):
    if bytes_without_token(name) & set(text.encode()):
        with pytest.raises(ValueError, match="the vocabulary has no token for it"):
            ours(name).encode(text)
        return
    ids = ours(name).encode(text)
    assert ids == theirs(name).encode(text).ids
    assert ours(name).decode(ids) == text


@pytest.mark.parametrize("name", SOURCES)
def test_ids_of_real_text_are_those_of_tokenizers(name):
    for text in ["\n".join(articles(language)) for language in ("en", "ja", "zh")] + [code()[:200_000]]:
        ids = ours(name).encode(text)
        assert ids == theirs(name).encode(text).ids
        assert ours(name).decode(ids) == text


PUBLISHED = {  # the tests of OpenAI's tiktoken, and the pages of transformers
    "Hello world": [15496, 995],
    "hello world": [31373, 995],
    "": [],
    "00": [405],
    "0000000": [24598],
    "00000000000000000": [8269, 10535, 830],
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_ids(text):
    assert ours("gpt2").encode(text) == PUBLISHED[text]


def test_published_special_token():  # tiktoken
    assert ours("gpt2").encode("hello <|endoftext|>", allow_special=True) == [31373, 220, 50256]
    assert 50256 not in ours("gpt2").encode("hello <|endoftext|>")
    assert ours("gpt2").decode([31373, 220, 50256]) == "hello <|endoftext|>"


def test_gpt2s_vocabulary_follows_from_its_merges():
    found = gpt2_vocabulary.vocabulary()
    assert byte_vocabulary(found["merges"], found["special_tokens"]) == found["vocabulary"]
    assert len(ours("gpt2")) == 50_257 and len(ours("smollm2")) == 49_152


def test_it_can_be_pickled_after_use():  # worker processes get their tokenizer so
    made = ours("gpt2")
    ids = made.encode("Hello world")
    assert pickle.loads(pickle.dumps(made)).encode("Hello world") == ids == PUBLISHED["Hello world"]


def test_the_longest_special_token_wins():
    merges = [("l", "o")]
    made = ByteLevelBPE(byte_vocabulary(merges), merges, {"<|a|>": 300, "<|a|><|a|>": 301})
    assert made.encode("lo<|a|><|a|><|a|>", allow_special=True) == [256 + 0, 301, 300]
    assert made.decode([301, 300]) == "<|a|><|a|><|a|>" and len(made) == 259


def test_bytes_that_are_no_text():
    made = ours("gpt2")
    ids = made.encode("権")
    assert b"".join(map(made.token_bytes, ids)) == "権".encode() and made.decode(ids) == "権"
    assert "".join(made.decode([i]) for i in ids) == "\ufffd" * len(ids) != ""
    with pytest.raises(UnicodeDecodeError):
        made.decode(ids[:1], errors="strict")


@given(st.lists(st.integers(0, 50_256), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_ids_have_a_text(ids):
    assert ours("gpt2").decode(ids) == b"".join(map(ours("gpt2").token_bytes, ids)).decode(errors="replace")


@given(TEXT, st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_round_trip_with_a_vocabulary_learned_here(text, n_merges):
    merges = learn_byte_merges(text, n_merges)
    made = ByteLevelBPE(byte_vocabulary(merges), merges)
    assert made.decode(made.encode(text)) == text
    assert len(made.encode(text)) <= len(text.encode())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (({"a": 0, "b": 0}, []), "2 tokens 1 ids"),
        (({"a": 0}, [("a", "b")]), "no token 'ab'"),
        (({"a": 0}, [], {"<|a|>": 0}), "2 tokens 1 ids"),
        (({"a": 0, "<|a|>": 1}, [], {"<|a|>": 2}), "vocabulary's 1"),
        (({"a": 0}, [], {"": 1}), "expected a text"),
        (({"a b": 0}, []), "' ' stands for no byte"),
    ],
)
def test_vocabularies_that_do_not_fit(arguments, named):
    with pytest.raises(ValueError, match=named):
        ByteLevelBPE(*arguments)


def test_refusals():
    with pytest.raises(ValueError, match="ids holds 50257"):
        ours("gpt2").decode([50_257])
    with pytest.raises(ValueError, match=r"U\+D83D, half of a surrogate pair"):
        ours("gpt2").encode("\ud83d")
    with pytest.raises(ValueError, match=r"U\+DC00, half of a surrogate pair"):
        learn_byte_merges("\udc00", 3)
    with pytest.raises(ValueError, match="the byte 0x04"):
        ours("smollm2").encode("\x04")


def test_tokenizers_drops_a_byte_that_the_vocabulary_lacks():  # what the note says of it
    assert theirs("smollm2").encode("a\x04b").tokens == ["a", "b"]
