"""GPT-2's pre-tokeniser: text cut into pieces that no merge crosses, with the standard library alone."""

import re
import unicodedata


# --8<-- [start:kinds]
class _Kinds(dict[int, str]):
    """A character's kind, looked up once: L letter, N number, S white space, O other; what the patterns name stays itself."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character in " 'strevmld":
            kind = character
        elif character.isspace() and character not in "\x1c\x1d\x1e\x1f":  # Python takes four separators for space, \s does not
            kind = "S"
        else:  # \p{L} and \p{N} are categories: isnumeric() would take 三 for a number
            category = unicodedata.category(character)[0]
            kind = category if category in "LN" else "O"
        return self.setdefault(code, kind)


KINDS = _Kinds()
PIECE = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[Lstrevmld]+| ?N+| ?[O']+|[ S]+(?![^ S])|[ S]+")
# --8<-- [end:kinds]
DIGIT = re.compile("N|[^N]+")


def split(text: str, single_digits: bool = False) -> list[str]:
    r"""Return the pieces that GPT-2's regular expression cuts text into; together they are the text.

    The expression, ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``, needs Unicode classes that ``re`` lacks,
    so it is matched against the kinds of the characters. ``single_digits`` first cuts at every number character, as SmolLM2 does; a
    space before a number is then a piece of its own. Characters newer than Python's Unicode (``unicodedata.unidata_version``) are "other".
    """
    kinds = text.translate(KINDS)
    spans = [match.span() for match in DIGIT.finditer(kinds)] if single_digits else [(0, len(kinds))]
    return [text[piece.start() : piece.end()] for span in spans for piece in PIECE.finditer(kinds, *span)]
