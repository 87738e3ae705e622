"""The runs behind the note on byte-pair encoding."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise

from rundoku.data import gpt2_vocabulary, smollm2
from rundoku.data.human_rights import articles
from rundoku.data.shakespeare import plays, poems
from rundoku.papers.byte_pair_encoding.byte_level import BYTE_CHARACTERS, ByteLevelBPE, byte_vocabulary, learn_byte_merges
from rundoku.papers.byte_pair_encoding.merges import END_OF_WORD, Pair, learn, learn_merges, merge
from rundoku.papers.byte_pair_encoding.pretokenizer import KINDS, PIECE, split
from rundoku.show import experiment

WORD = re.compile(r"\w+|[^\w\s]")
LANGUAGES = ("en", "ja", "zh")


@cache
def gpt2() -> ByteLevelBPE:
    """Return GPT-2's tokenizer."""
    return ByteLevelBPE(**gpt2_vocabulary.vocabulary())


@cache
def smollm2_tokenizer() -> ByteLevelBPE:
    """Return SmolLM2's tokenizer."""
    return ByteLevelBPE(**smollm2.vocabulary(), single_digits=True)


# --8<-- [start:figure-1]
def most_frequent(words: Iterable[str], merges: Iterable[Pair]) -> list[int]:
    """Return for each merge in its turn how many other pairs were as frequent as its pair; -1 where one was more frequent."""
    symbols, rivals = [[*word, END_OF_WORD] for word in words], []
    for pair in merges:
        counts = Counter(neighbours for word in symbols for neighbours in pairwise(word))
        best = max(counts.values())
        rivals.append(list(counts.values()).count(best) - 1 if counts[pair] == best else -1)
        symbols = [merge(word, {pair: 0}) for word in symbols]
    return rivals
    # --8<-- [end:figure-1]


def _grams(word: str, n: int) -> list[str]:
    """Return a word's n-grams side by side, the last one marked, as in footnote 9."""
    parts = [word[i : i + n] for i in range(0, len(word), n)]
    return [*parts[:-1], parts[-1] + END_OF_WORD]


@experiment
def segmentations(*, merges: tuple[int, ...]) -> dict:
    """Cut Shakespeare's plays in the ways of Table 1; return tokens and types there, and tokens and unknown ones in his poems."""
    train, test = (Counter(WORD.findall(text)) for text in (plays(), poems()))
    learned = learn_merges(train, max(merges))
    ways: dict[str, Callable[[str], list[str]]] = {
        "words": lambda word: [word],
        "characters": lambda word: _grams(word, 1),
        "character bigrams": lambda word: _grams(word, 2),
        "character trigrams": lambda word: _grams(word, 3),
    }
    rows = {name: _row({w: cut(w) for w in train}, {w: cut(w) for w in test}, train, test) for name, cut in ways.items()}
    parts: list[dict[str, list[str]]] = [{word: [*word, END_OF_WORD] for word in words} for words in (train, test)]
    steps, done = [], 0
    for n in merges:  # the first merges first, then those that follow: the same as all of them at once
        ranks = {pair: rank for rank, pair in enumerate(learned[done:n])}
        parts, done = [{word: merge(symbols, ranks) for word, symbols in part.items()} for part in parts], n
        steps.append(_row(*parts, train, test))
    characters = {character for word in train for character in word}
    return {
        "rows": rows,
        "bpe": {key: [step[key] for step in steps] for key in steps[0]},
        "merges": merges,
        "alphabet": len(characters) + 1,
    }


def _row(train_parts: dict, test_parts: dict, train: Counter, test: Counter) -> dict:
    types = {part for parts in train_parts.values() for part in parts}
    unknown = sum(test[word] * sum(part not in types for part in parts) for word, parts in test_parts.items())
    tokens, test_tokens = (
        sum(counts[word] * len(parts) for word, parts in cut.items()) for cut, counts in ((train_parts, train), (test_parts, test))
    )
    examples = sorted({part for parts in test_parts.values() for part in parts if part not in types and len(part) > 1})[:8]
    return {"tokens": tokens, "types": len(types), "test_tokens": test_tokens, "unknown": unknown, "examples": examples}


def _tokenizers(n_merges: int) -> dict[str, ByteLevelBPE]:
    """Return the two models' tokenizers and one learned from every other article of the Declaration in three languages at once."""
    text = "\n".join(article for language in LANGUAGES for article in articles(language)[::2])
    learned = learn_byte_merges(text, n_merges)
    return {"GPT-2": gpt2(), "SmolLM2": smollm2_tokenizer(), "learned here": ByteLevelBPE(byte_vocabulary(learned), learned)}


@experiment
def fertility(*, n_merges: int) -> dict:
    """Return what the Declaration's other articles cost in tokens, by tokenizer and language.

    ``cut`` is the share of characters that stand in more than one token, ``ratio`` the tokens of each article over its English ones.
    """
    found: dict[str, dict] = {}
    for name, made in _tokenizers(n_merges).items():
        found[name] = {}
        english = [len(made.encode(article)) for article in articles("en")[1::2]]
        for language in LANGUAGES:
            texts = articles(language)[1::2]
            ids = [made.encode(text) for text in texts]
            tokens, letters, size = sum(map(len, ids)), sum(map(len, texts)), sum(len(text.encode()) for text in texts)
            found[name][language] = {
                "tokens": tokens,
                "per_character": tokens / letters,
                "bytes_per_token": size / tokens,
                "cut": sum(_cut(made, each) for each in ids) / letters,
                "ratio": [len(each) / n for each, n in zip(ids, english, strict=True)],
            }
    return found


def _cut(made: ByteLevelBPE, ids: list[int]) -> int:
    """Return how many characters begin in one token and end in a later one."""
    ends, at = set(), 0
    for number in ids:
        at += len(made.token_bytes(number))
        ends.add(at)
    cut, at = 0, 0
    for character in made.decode(ids):
        size = len(character.encode())
        cut += any(at < end < at + size for end in ends)
        at += size
    return cut


@experiment
def bytes_of(*, characters: str, n_merges: int) -> dict:
    """Return the tokens of single characters as hexadecimal bytes, by tokenizer."""
    made = _tokenizers(n_merges)
    return {c: {name: [each.token_bytes(i).hex(" ").upper() for i in each.encode(c)] for name, each in made.items()} for c in characters}


@experiment
def ties(*, n_merges: int) -> dict:
    """Learn from the plays under both rules for ties; return the share of merges in common and the tokens of the poems by rule."""
    learned = {rule: learn_byte_merges(plays(), n_merges, ties=rule) for rule in ("first", "oldest")}
    texts = {rule: {left + right for left, right in merges} for rule, merges in learned.items()}
    tokens = {rule: len(ByteLevelBPE(byte_vocabulary(merges), merges).encode(poems())) for rule, merges in learned.items()}
    same = next((i for i, pair in enumerate(zip(*learned.values(), strict=True)) if pair[0] != pair[1]), n_merges)
    return {"same_until": same, "common": len(texts["first"] & texts["oldest"]) / n_merges, "tokens": tokens}


def _pieces_with_space_apart(text: str) -> list[str]:
    """Return GPT-2's pieces without its exception for spaces: a space before a word is a piece of its own."""
    return [part for piece in split(text) for part in ([" ", piece[1:]] if piece[0] == " " and piece.strip() else [piece])]


SPAN, MARK = r"\w\s+\w", r"[A-Za-z][,.;:!?]"
PIECES: dict[str, Callable[[str], list[str]]] = {
    "GPT-2's pieces": split,
    "space apart": _pieces_with_space_apart,
    "whole lines": lambda text: text.splitlines(keepends=True),
}


@experiment
def boundaries(*, n_merges: int, length: int) -> dict:
    """Learn from the plays with pieces of several kinds; return the poems' tokens, and how many learned tokens cross which boundary.

    ``versions`` counts the words of two letters or more that hold at least two tokens which differ in the mark or line break at the end.
    """
    found = {}
    for name, cut in PIECES.items():
        pieces, unseen = Counter(cut(plays()[:length])), Counter(cut(poems()))
        learned = learn([_characters(piece) for piece in pieces], list(pieces.values()), n_merges, "oldest", sorted(BYTE_CHARACTERS))
        ranks = {pair: rank for rank, pair in enumerate(learned)}
        tokens = [_text(left + right) for left, right in learned]
        words: dict[str, set[str]] = defaultdict(set)
        for token in tokens:
            if marked := re.fullmatch(r" ?([A-Za-z]{2,})([,.;:!?]*\n*)", token):
                words[marked[1]].add(marked[2])
        most = max(words, key=lambda word: (len(words[word]), word))
        found[name] = {
            "tokens": sum(count * len(merge(_characters(piece), ranks)) for piece, count in unseen.items()),
            "spans": sum(re.search(SPAN, token) is not None for token in tokens),
            "marked": sum(re.search(MARK, token) is not None for token in tokens),
            "crossing": sum(re.search(f"{SPAN}|{MARK}", token) is not None for token in tokens),
            "versions": sum(len(ends) > 1 for ends in words.values()),
            "most": [f" {most}{end}" for end in sorted(words[most])],
        }
    return found


def _characters(piece: str) -> list[str]:
    return [BYTE_CHARACTERS[byte] for byte in piece.encode()]


def _text(token: str) -> str:
    return bytes(BYTE_CHARACTERS.index(character) for character in token).decode(errors="replace")


# --8<-- [start:longest-match]
def longest_match(piece: str, vocabulary: dict[str, int]) -> list[str]:
    """Return a piece cut by always taking the longest token that fits: what byte-pair encoding does not do."""
    characters, tokens = "".join(_characters(piece)), []
    while characters:
        end = next(end for end in range(len(characters), 0, -1) if characters[:end] in vocabulary)
        tokens.append(characters[:end])
        characters = characters[end:]
    return tokens
    # --8<-- [end:longest-match]


@experiment
def longest_matches() -> dict:
    """Compare merging and longest match with GPT-2's vocabulary on the words of the plays, each with a space before it."""
    made, counts = gpt2(), Counter(word for word in WORD.findall(plays()) if word.isalpha())
    ways = {word: (merge(_characters(f" {word}"), made.ranks), longest_match(f" {word}", made.ids)) for word in counts}
    differ = [word for word, (merged, longest) in ways.items() if merged != longest]
    examples = sorted(filter(str.islower, differ), key=lambda word: (-counts[word], word))[:5]
    return {
        "words": len(ways),
        "differ": len(differ) / len(ways),
        "running": sum(counts[word] for word in differ) / counts.total(),
        "shorter": sum(len(longest) < len(merged) for merged, longest in ways.values()) / len(ways),
        "examples": [[word, *("|".join(map(_text, way)).strip() for way in ways[word])] for word in examples],
    }


@experiment
def one_by_one() -> dict:
    """Decode the Declaration with GPT-2 id by id; return the share of characters lost by language, and of tokens that are no text alone."""
    found = {}
    for language in LANGUAGES:
        text = "\n".join(articles(language))
        ids = gpt2().encode(text)
        alone = "".join(gpt2().decode([number]) for number in ids)
        kept = sum((Counter(alone) & Counter(text)).values())
        found[language] = {"lost": 1 - kept / len(text), "whole": gpt2().decode(ids) == text}
    return found


@experiment
def numbers() -> dict:
    """Return how many of the numbers from 1000 to 9999, a space before them, each tokenizer cuts in which way: 22 is two and two digits."""
    found = {}
    for name, made in (("GPT-2", gpt2()), ("SmolLM2", smollm2_tokenizer())):
        sizes = ([len(made.token_bytes(i).strip()) for i in made.encode(f" {number}")] for number in range(1000, 10_000))
        shapes = Counter("+".join(str(size) for size in each if size) for each in sizes)
        found[name] = {shape: count / 9000 for shape, count in sorted(shapes.items())}
    years = {str(year): "|".join(gpt2().decode([i]).strip() for i in gpt2().encode(f" {year}")) for year in (1948, 2048, 2148, 8148)}
    return {"shapes": found, "years": years}


@experiment
def numerals(*, n_merges: int) -> dict:
    """Cut the Declaration with isnumeric() in place of \\p{N}; return by language the characters that it takes for numbers.

    ``changed`` is the share of articles whose ids change, by tokenizer.
    """
    found = {}
    for language in LANGUAGES:
        cuts = [(split(article), _numeric_pieces(article)) for article in articles(language)]
        taken = {piece for right, wrong in cuts for piece in wrong if piece.strip().isnumeric() and piece not in right}
        changed = {}
        for name, made in _tokenizers(n_merges).items():
            ids = [[[token for piece in way for token in merge(_characters(piece), made.ranks)] for way in cut] for cut in cuts]
            changed[name] = sum(right != wrong for right, wrong in ids) / len(ids)
        found[language] = {"taken": sorted(taken), "changed": changed}
    return found


def _numeric_pieces(text: str) -> list[str]:
    kinds = "".join("N" if character.isnumeric() else kind for character, kind in zip(text, text.translate(KINDS), strict=True))
    return [text[match.start() : match.end()] for match in PIECE.finditer(kinds)]


@experiment
def typed_by_a_user(*, text: str) -> dict:
    """Return how many special tokens of SmolLM2 come out of a text, read as data and read as markup, and the ids of both."""
    made = smollm2_tokenizer()
    special = set(made.special_tokens.values())
    ids = {name: made.encode(text, allow_special=allowed) for name, allowed in (("data", False), ("markup", True))}
    return {name: {"ids": each, "special": sum(number in special for number in each)} for name, each in ids.items()}


@experiment
def missing_bytes() -> dict:
    """Return the bytes that GPT-2's and SmolLM2's vocabularies have no token for, and those of them that stand in some text."""
    found = {}
    for name, made in (("GPT-2", gpt2()), ("SmolLM2", smollm2_tokenizer())):
        there = {made.token_bytes(number) for number in range(len(made))}
        missing = [byte for byte in range(256) if bytes([byte]) not in there]
        never = {0xC0, 0xC1, *range(0xF5, 0x100)}  # UTF-8 has no use for these
        found[name] = {"missing": len(missing), "in_text": [f"{byte:02X}" for byte in missing if byte not in never]}
    return found
