"""Learn merges (Algorithm 1) and apply them to a word (§3.2)."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

END_OF_WORD = "</w>"  # what the paper's text writes "·", as Algorithm 1 spells it

Pair = tuple[str, str]
Ties = Literal["first", "oldest"]


def learn_merges(words: Mapping[str, int], n_merges: int, ties: Ties = "first") -> list[Pair]:
    """Return the merges that Algorithm 1 learns from words with their frequencies, in order; fewer where no pair is left.

    Pairs never cross from one word to the next. Of pairs that are equally frequent, ``ties="first"`` takes the one that stands first,
    words in the order of ``words``: what Algorithm 1 does in a Python whose dictionaries keep their order. ``"oldest"`` takes the pair
    whose symbols are oldest, the left one first, characters by code point and the end of a word last of them: it does not depend on
    the order of words. Raises ValueError for a frequency below 1, a negative ``n_merges``, an unknown ``ties``, or a word that
    contains the end-of-word mark.
    """
    for word, count in words.items():
        if count < 1:
            raise ValueError(f"words holds {word!r} with frequency {count}; expected at least 1")
        if END_OF_WORD in word:
            raise ValueError(f"words holds {word!r}, which contains the end-of-word mark {END_OF_WORD!r}")
    alphabet = [*sorted({character for word in words for character in word}), END_OF_WORD]
    return learn([[*word, END_OF_WORD] for word in words], list(words.values()), n_merges, ties, alphabet)


def learn(words: list[list[str]], counts: Sequence[int], n_merges: int, ties: Ties, alphabet: Iterable[str]) -> list[Pair]:
    """Return the merges learned from words cut into symbols, which are merged in place; counts: how often each word occurs."""
    if n_merges < 0 or ties not in ("first", "oldest"):
        raise ValueError(f"n_merges is {n_merges} and ties {ties!r}; expected at least 0, and 'first' or 'oldest'")
    age = {symbol: number for number, symbol in enumerate(alphabet)}
    frequency: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, set[int]] = defaultdict(set)  # the words that a pair stands in
    for number, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[number]
            places[pair].add(number)

    def priority(pair: Pair) -> tuple[int, tuple[int, int]]:  # the smaller, the sooner
        order = (age[pair[0]], age[pair[1]]) if ties == "oldest" else _first(pair, places[pair], words)
        return -frequency[pair], order

    queue = [(*priority(pair), pair) for pair in frequency]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < n_merges:
        *seen, pair = heapq.heappop(queue)
        if not frequency[pair]:
            continue
        if (now := priority(pair)) != tuple(seen):  # it has become rarer since it was queued
            heapq.heappush(queue, (*now, pair))
            continue
        # --8<-- [start:learn]
        merges.append(pair)
        symbol, touched = pair[0] + pair[1], set[Pair]()
        age.setdefault(symbol, len(age))
        for number in places.pop(pair):  # only words that hold the pair can change
            old, new = words[number], _replaced(words[number], pair)
            for neighbours in pairwise(old):
                frequency[neighbours] -= counts[number]
                places[neighbours].discard(number)
            for neighbours in pairwise(new):
                frequency[neighbours] += counts[number]
                places[neighbours].add(number)
            touched.update(neighbours for neighbours in pairwise(new) if symbol in neighbours)
            words[number] = new
        for neighbours in touched:  # no other pair can have become more frequent
            heapq.heappush(queue, (*priority(neighbours), neighbours))
        # --8<-- [end:learn]
    return merges


def _first(pair: Pair, places: set[int], words: list[list[str]]) -> tuple[int, int]:
    """Return the word and the character in it where a pair stands first; characters, because merging moves no character."""
    word, offset = words[number := min(places)], 0
    for neighbours in pairwise(word):
        if neighbours == pair:
            break
        offset += len(neighbours[0])
    return number, offset


def _replaced(word: list[str], pair: Pair) -> list[str]:
    """Return the word with every occurrence of the pair merged, from the left."""
    merged, at = [], 0
    while at < len(word):
        found = word[at] == pair[0] and at + 1 < len(word) and word[at + 1] == pair[1]
        merged.append(pair[0] + pair[1] if found else word[at])
        at += 2 if found else 1
    return merged


def apply_merges(word: str, merges: Sequence[Pair]) -> list[str]:
    """Return the symbols that a word falls into: its characters and the end-of-word mark, merged in the order learned (§3.2).

    Raises ValueError where the word contains the end-of-word mark.
    """
    if END_OF_WORD in word:
        raise ValueError(f"word is {word!r}, which contains the end-of-word mark {END_OF_WORD!r}")
    return merge([*word, END_OF_WORD], {pair: rank for rank, pair in reversed(list(enumerate(merges)))})


def merge(symbols: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Return the symbols after all merges: always the pair of lowest rank next, everywhere it stands, from the left.

    Takes n log n steps for n symbols: a long word without spaces, as anybody can send one, must not cost n².
    """
    parts = list(symbols)  # "" for one that its left neighbour has taken in
    left, right = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))  # neighbours
    queue = [(ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in ranks]
    heapq.heapify(queue)

    # --8<-- [start:merge]
    def rank_at(at: int) -> int | None:
        return ranks.get((parts[at], parts[right[at]])) if parts[at] and right[at] < len(parts) else None

    while queue:
        rank, changed = queue[0][0], set()
        for at in _lowest(queue):
            if rank_at(at) == rank:  # else a neighbour was merged away
                parts[at], parts[right[at]] = parts[at] + parts[right[at]], ""
                right[at] = right[right[at]]
                if right[at] < len(parts):
                    left[right[at]] = at
                changed |= {at, left[at]} - {-1}
        for at in changed:
            if (new := rank_at(at)) is not None:
                heapq.heappush(queue, (new, at))
    return [part for part in parts if part]
    # --8<-- [end:merge]


def _lowest(queue: list[tuple[int, int]]) -> list[int]:
    """Take the places of the lowest rank out of the queue, from the left."""
    rank, places = queue[0][0], []
    while queue and queue[0][0] == rank:
        places.append(heapq.heappop(queue)[1])
    return places
