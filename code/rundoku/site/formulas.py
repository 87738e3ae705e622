"""Typesets the formulas that arithmatex marks, when the site is built, as MathML."""

import html
import re
from collections.abc import Callable

from math_core import LatexError, LatexToMathML

from rundoku.site.snippets import NoteError

FORMULA = re.compile(r'<(span|div) class="arithmatex"([^>]*)>\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.S)
_convert = LatexToMathML().convert_with_local_state


def hide_from_search(content: str) -> str:
    """Mark a page's formulas so that the search index leaves them out; they are typeset later, with ``typeset``."""
    return content.replace('class="arithmatex"', 'class="arithmatex" data-search-exclude=""')


def typeset(output: str, place: Callable[[str], str]) -> str:
    """Return a page's HTML with every formula as MathML. Raises NoteError, naming formula and ``place``, for TeX that cannot be set."""

    def set_one(match: re.Match[str]) -> str:
        block, tex = match[1] == "div", html.unescape(match[3]).strip()
        try:
            formula = _convert(tex, displaystyle=block)
        except LatexError as error:
            raise NoteError(f"{place(tex)}: bad TeX in the formula {tex!r}: {error}") from error
        return f'<div class="formula" tabindex="0">{formula}</div>' if block else formula

    return FORMULA.sub(set_one, output)
