"""Numbers spelled out in English, Japanese and Chinese: parallel sentences without end.

Made here by rule, so there is no source to fetch and no licence to heed. English counts in thousands, Japanese and Chinese in ten
thousands (万, 億): "twelve million" is 一千二百万. No word-for-word table translates it; the digits have to be grouped anew.

Where several conventions are in use, these were taken.

- English: American, without "and".
- Japanese: 一 is left out before 十 and 百, and before the 千 of the ones (千五百); it is written before 千 of 万 and 億 (一千万).
- Chinese: 二 throughout, never 两; 十 alone at the head (十五), 一十 after anything (一百一十五); one 零 for a gap of zeros inside
  the number, none for zeros that end a group of four digits before more digits (一百万五千).
"""

import random

LIMIT = 10**12  # every speller takes 0 <= number < LIMIT

SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
THOUSANDS = ("", "thousand", "million", "billion")
DIGITS = "零一二三四五六七八九"
PLACES = ("千", "百", "十", "")
MYRIADS = {"ja": ("", "万", "億"), "zh": ("", "万", "亿")}

WORDS = (*SMALL, *TENS, "hundred", *THOUSANDS[1:])  # every English word
CHARACTERS = (*DIGITS, "十", "百", "千", "万", "億", "亿")  # every character of the other two


def _groups(number: int, base: int) -> list[int]:
    """Return the digits of a number in a base, lowest first, once it is known to be in range."""
    if not 0 <= number < LIMIT:
        raise ValueError(f"number: {number}; expected 0 or more and below {LIMIT:,}")
    groups = []
    while number:
        number, rest = divmod(number, base)
        groups.append(rest)
    return groups


def english(number: int) -> list[str]:
    """Return the English words: 1042 -> one thousand forty two.

    Raises ValueError outside 0 … LIMIT - 1.
    """
    words: list[str] = []
    for power, group in reversed(list(enumerate(_groups(number, 1000)))):
        hundreds, rest = divmod(group, 100)
        words += [SMALL[hundreds], "hundred"] if hundreds else []
        words += [TENS[rest // 10 - 2]] if rest >= 20 else []
        rest = rest % 10 if rest >= 20 else rest
        words += [SMALL[rest]] if rest else []
        words += [THOUSANDS[power]] if group and power else []
    return words or [SMALL[0]]


def japanese(number: int) -> list[str]:
    """Return the characters of the Japanese numeral: 12034500 -> 一 千 二 百 三 万 四 千 五 百.

    Raises ValueError outside 0 … LIMIT - 1.
    """
    characters = ""
    for power, group in reversed(list(enumerate(_groups(number, 10_000)))):
        for place, digit in zip(PLACES, f"{group:04}"):
            bare = digit == "1" and (place in ("十", "百") or (place == "千" and power == 0))
            characters += "" if digit == "0" else place if bare else DIGITS[int(digit)] + place
        characters += MYRIADS["ja"][power] if group else ""
    return list(characters or "零")


def chinese(number: int) -> list[str]:
    """Return the characters of the (simplified) Chinese numeral: 12030500 -> 一 千 二 百 零 三 万 零 五 百.

    Raises ValueError outside 0 … LIMIT - 1.
    """
    characters, gap = "", False  # gap: zeros have passed since the last digit or the last 万, 亿 that was read
    for power, group in reversed(list(enumerate(_groups(number, 10_000)))):
        for place, digit in zip(PLACES, f"{group:04}"):
            if digit == "0":
                gap = True
            else:
                characters += "零" if gap and characters else ""
                characters += place if (digit, place, characters) == ("1", "十", "") else DIGITS[int(digit)] + place
                gap = False
        if group:
            characters += MYRIADS["zh"][power]
            gap = False
    return list(characters or "零")


def draw(rng: random.Random, digits: int) -> int:
    """Return a number of 1 to `digits` digits, every length as likely, with a share of zeros that is itself drawn."""
    length, zeros = rng.randint(1, digits), rng.random()
    rest = ("0" if rng.random() < zeros else str(rng.randint(0, 9)) for _ in range(length - 1))
    return int(str(rng.randint(1, 9)) + "".join(rest))


def held_out(number: int) -> bool:
    """Return whether a number belongs to the tenth of all numbers that no training sees, small and large ones alike."""
    return number * 2_654_435_761 % 2**32 % 10 == 0
