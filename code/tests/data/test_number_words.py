"""The three spellers against written-out numerals and against parsers that know only what the characters mean."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundoku.data import number_words
from rundoku.data.number_words import LIMIT, chinese, draw, english, held_out, japanese

numbers = st.one_of(
    st.integers(0, 10**5), st.integers(0, LIMIT - 1), st.builds(lambda a, b: a * 10**b, st.integers(0, 999), st.integers(0, 9))
)


@pytest.mark.parametrize(
    ("number", "words", "kanji", "hanzi"),
    [
        (0, "zero", "零", "零"),
        (10, "ten", "十", "十"),
        (15, "fifteen", "十五", "十五"),
        (21, "twenty one", "二十一", "二十一"),
        (105, "one hundred five", "百五", "一百零五"),
        (110, "one hundred ten", "百十", "一百一十"),
        (1_005, "one thousand five", "千五", "一千零五"),
        (1_500, "one thousand five hundred", "千五百", "一千五百"),
        (10_010, "ten thousand ten", "一万十", "一万零一十"),
        (105_000, "one hundred five thousand", "十万五千", "十万五千"),
        (1_005_000, "one million five thousand", "百万五千", "一百万五千"),
        (12_000_000, "twelve million", "一千二百万", "一千二百万"),
        (100_050_000, "one hundred million fifty thousand", "一億五万", "一亿零五万"),
        (700_009_000, "seven hundred million nine thousand", "七億九千", "七亿零九千"),
        (1_500_000_020, "one billion five hundred million twenty", "十五億二十", "十五亿零二十"),
        (LIMIT // 10, "one hundred billion", "一千億", "一千亿"),
    ],
)
def test_written_out(number, words, kanji, hanzi):
    assert " ".join(english(number)) == words
    assert "".join(japanese(number)) == kanji
    assert "".join(chinese(number)) == hanzi


def read_english(words: list[str]) -> int:
    total = group = 0
    for word in words:
        if word in ("thousand", "million", "billion"):
            total, group = total + group * 1000 ** (1 + ["thousand", "million", "billion"].index(word)), 0
        elif word == "hundred":
            group *= 100
        else:
            group += number_words.SMALL.index(word) if word in number_words.SMALL else 10 * (2 + number_words.TENS.index(word))
    return total + group


def read_numeral(characters: list[str]) -> int:
    total = group = digit = 0
    for character in characters:
        if character in "万億亿":
            total, group, digit = total + (group + digit) * (10**4 if character == "万" else 10**8), 0, 0
        elif character in "十百千":
            group, digit = group + (digit or 1) * {"十": 10, "百": 100, "千": 1000}[character], 0
        else:
            digit = "零一二三四五六七八九".index(character)
    return total + group + digit


@given(numbers)
def test_what_is_spelled_reads_back(number):
    assert read_english(english(number)) == read_numeral(japanese(number)) == read_numeral(chinese(number)) == number


@given(numbers)
def test_zeros_are_read_once_and_only_inside(number):
    text = "".join(chinese(number))
    assert "零零" not in text and (number == 0 or (not text.startswith("零") and not text.endswith("零")))
    assert not any(f"零{unit}" in text for unit in "十百千万亿")


@given(numbers)
def test_the_vocabulary_is_complete(number):
    assert set(english(number)) <= set(number_words.WORDS)
    assert {*japanese(number), *chinese(number)} <= set(number_words.CHARACTERS)


@pytest.mark.parametrize("speller", [english, japanese, chinese])
@pytest.mark.parametrize("number", [-1, LIMIT])
def test_out_of_range_is_refused(speller, number):
    with pytest.raises(ValueError, match=f"number: {number}"):
        speller(number)


def test_a_tenth_is_held_out_at_every_length():
    rng = random.Random(0)
    for digits in (3, 6, 9, 12):
        share = sum(held_out(rng.randrange(10 ** (digits - 1), 10**digits)) for _ in range(4000)) / 4000
        assert 0.08 < share < 0.12


def test_draws_have_every_length():
    rng = random.Random(0)
    lengths = [len(str(draw(rng, 12))) for _ in range(2000)]
    assert set(lengths) == set(range(1, 13)) and max(map(lengths.count, set(lengths))) < 2 * min(map(lengths.count, set(lengths)))
