"""Byte-level BPE (Radford et al., 2019, §2.2): the merges work on the bytes of UTF-8, so that no text is unknown."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rundoku.papers.byte_pair_encoding.merges import Pair, Ties, learn, merge
from rundoku.papers.byte_pair_encoding.pretokenizer import split


# --8<-- [start:byte-characters]
def _byte_characters() -> list[str]:
    """Return a printable character for each of the 256 bytes, by which vocabulary files write them."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]  # they take the characters from 256 on: a space is Ġ
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
# --8<-- [end:byte-characters]
_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
CACHED_PIECES = 65_536  # pieces whose ids are kept, as most text repeats them


def learn_byte_merges(text: str, n_merges: int, single_digits: bool = False, ties: Ties = "first") -> list[Pair]:
    """Return the merges learned from the bytes of text within GPT-2's pieces, written in the characters of BYTE_CHARACTERS.

    ``ties`` is as in `learn_merges`, pieces in the order of their first occurrence; there is no end-of-word mark, since the space stands
    at the front of a piece. Raises ValueError for text that UTF-8 cannot encode, and as `learn_merges` does.
    """
    pieces = Counter(split(text, single_digits))
    return learn([_characters(piece) for piece in pieces], list(pieces.values()), n_merges, ties, sorted(BYTE_CHARACTERS))


def byte_vocabulary(merges: Iterable[Pair], special_tokens: Iterable[str] = ()) -> dict[str, int]:
    """Return ids for the 256 bytes, then the merged tokens in order, then the special ones: the order of GPT-2's own vocabulary."""
    tokens = [*sorted(BYTE_CHARACTERS), *(left + right for left, right in merges), *special_tokens]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _characters(piece: str) -> list[str]:
    try:
        return [BYTE_CHARACTERS[byte] for byte in piece.encode()]
    except UnicodeEncodeError as fault:
        lone = f"U+{ord(piece[fault.start]):04X}"
        raise ValueError(f"text holds {lone}, half of a surrogate pair; expected text that UTF-8 can encode") from None


class ByteLevelBPE:
    """Turns text into ids and ids into text with a vocabulary in GPT-2's format.

    vocabulary: token (in the characters of BYTE_CHARACTERS) to id. merges: pairs in the order learned. special_tokens: text to id; they
    may stand in the vocabulary too. single_digits: cut at every number character first, as SmolLM2 does.
    Raises ValueError where two tokens share an id, a special token is empty, has another id in the vocabulary, or a merge's token has none.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[Pair],
        special_tokens: Mapping[str, int] | None = None,
        single_digits: bool = False,
    ) -> None:
        self.special_tokens = dict(special_tokens or {})
        self.single_digits = single_digits
        self.ids = {token: number for token, number in vocabulary.items() if token not in self.special_tokens}
        for token, number in self.special_tokens.items():
            if not token or vocabulary.get(token, number) != number:
                raise ValueError(
                    f"special_tokens gives {token!r} the id {number}; expected a text, and the vocabulary's {vocabulary.get(token)}"
                )
        missing = next((pair for pair in merges if pair[0] + pair[1] not in self.ids), None)
        if missing:
            raise ValueError(f"merges holds {missing!r}, but the vocabulary has no token {missing[0] + missing[1]!r}")
        self.ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}  # of a pair listed twice, the first counts
        texts = [(number, token.encode()) for token, number in self.special_tokens.items()]
        self._bytes = dict([*((number, _token_bytes(token)) for token, number in self.ids.items()), *texts])
        if len(self._bytes) != len(self.ids) + len(self.special_tokens):
            raise ValueError(
                f"vocabulary and special_tokens give {len(self.ids) + len(texts)} tokens {len(self._bytes)} ids; expected one each"
            )
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._kept: dict[str, list[int]] = {}  # ids of pieces; with an lru_cache this object could not be pickled

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._bytes)

    # --8<-- [start:encode]
    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of text.

        With ``allow_special``, what reads like a special token becomes one, so that only text from a trusted hand may come this way;
        without it, such text is text. Raises ValueError for text that UTF-8 cannot encode and for a byte that the vocabulary lacks.
        """
        if allow_special and self._special:  # the odd ones of the parts are the special tokens
            parts = self._special.split(text)
            return [number for i, part in enumerate(parts) for number in ([self.special_tokens[part]] if i % 2 else self.encode(part))]
        return [number for piece in split(text, self.single_digits) for number in self._piece(piece)]

    def _piece(self, piece: str) -> list[int]:
        if (ids := self._kept.get(piece)) is None:
            ids = self._piece_ids(piece)
            if len(self._kept) < CACHED_PIECES:
                self._kept[piece] = ids
        return ids

    def _piece_ids(self, piece: str) -> list[int]:
        tokens = merge(_characters(piece), self.ranks)
        unknown = next((token for token in tokens if token not in self.ids), None)
        if unknown:
            raise ValueError(f"text holds the byte 0x{_token_bytes(unknown).hex()} in {piece!r}; the vocabulary has no token for it")
        return [self.ids[token] for token in tokens]

    def token_bytes(self, number: int) -> bytes:
        """Return the bytes that an id stands for, which need not be whole characters. Raises ValueError for an unknown id."""
        if number not in self._bytes:
            raise ValueError(f"ids holds {number}; expected an id of the vocabulary, which has {len(self)}")
        return self._bytes[number]

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of ids: all their bytes first, and only then characters.

        Bytes that are no UTF-8, as a model may produce them, become U+FFFD; ``errors`` is as in ``bytes.decode``.
        Raises ValueError for an unknown id.
        """
        return b"".join(map(self.token_bytes, ids)).decode(errors=errors)
        # --8<-- [end:encode]


def _token_bytes(token: str) -> bytes:
    """Return the bytes that a token of a vocabulary file stands for; raises ValueError for a character that stands for none."""
    strange = next((character for character in token if character not in _BYTES), None)
    if strange:
        raise ValueError(
            f"vocabulary holds {token!r}, whose {strange!r} stands for no byte; expected a special token, or byte characters only"
        )
    return bytes(_BYTES[character] for character in token)
