"""Definitions that pop up: the first time that a page's prose uses a term of the glossary, the term carries its meaning."""

import html
import re

from rundoku.site.glossary import Glossary

TAG = re.compile(r"(<[^>]*>)")
NAME = re.compile(r"</?([a-zA-Z][\w-]*)")
PROSE = {"p", "li", "td", "dd"}
SILENT = {"a", "abbr", "code", "pre", "figure", "table", "svg", "math", "script", "style", "summary", "details", "button", "label"}
SILENT |= {f"h{level}" for level in range(1, 7)}
VOID = {"br", "img", "hr", "input", "meta", "link", "wbr", "source", "col", "path", "use", "rect", "circle", "line"}


def define(content: str, glossary: Glossary, language: str) -> str:
    """Return a page's HTML with ``<abbr title="…">`` around the first use of each term in running text."""
    parts = TAG.split(content)
    inside: list[str] = []
    seen: set[str] = set()
    for i, part in enumerate(parts):
        if i % 2:  # a tag
            named = NAME.match(part)
            if not named:
                continue
            name = named[1].lower()
            if part.startswith("</"):
                if name in inside:
                    del inside[len(inside) - 1 - inside[::-1].index(name) :]
            elif name not in VOID and not part.endswith("/>"):
                inside.append("pre" if 'class="arithmatex"' in part or 'class="value"' in part else name)
        elif part.strip() and PROSE.intersection(inside) and not SILENT.intersection(inside):
            parts[i] = _mark(part, glossary, language, seen)
    return "".join(parts)


def _mark(text: str, glossary: Glossary, language: str, seen: set[str]) -> str:
    made, last = [], 0
    for start, end, meaning in glossary.occurrences(text, language):
        if meaning not in seen:
            seen.add(meaning)
            made += [text[last:start], f'<abbr title="{html.escape(meaning)}" tabindex="0">{text[start:end]}</abbr>']
            last = end
    return "".join([*made, text[last:]])
