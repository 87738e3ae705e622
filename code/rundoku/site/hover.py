"""Definitions that pop up: the first time that a page's prose uses a term of the glossary, the term carries its meaning."""

import html
import re

from rundoku.site.glossary import Glossary

TAG = re.compile(r"""(<!--.*?-->|</?[A-Za-z](?:"[^"]*"|'[^']*'|[^'">])*>)""", re.DOTALL)
NAME = re.compile(r"</?([a-zA-Z][\w-]*)")
PROSE = {"p", "li", "td", "dd"}
SILENT = {"a", "abbr", "code", "pre", "figure", "table", "svg", "math", "script", "style", "summary", "details", "button", "label"}
SILENT |= {f"h{level}" for level in range(1, 7)}
MARKED = re.compile(r'class="(arithmatex|value|fact)"')
VOID = {"br", "img", "hr", "input", "meta", "link", "wbr", "source", "col", "path", "use", "rect", "circle", "line"}


def define(content: str, glossary: Glossary, language: str) -> str:
    """Return a page's HTML with ``<abbr title="…">`` around the first use of each term in running text."""
    parts = TAG.split(content)
    inside: list[tuple[str, bool]] = []  # the open elements, each with whether it is to be left alone
    seen: set[str] = set()
    for i, part in enumerate(parts):
        if i % 2:  # a tag
            named = NAME.match(part)
            if not named:
                continue
            name = named[1].lower()
            if part.startswith("</"):
                last = max((at for at, (opened, _) in enumerate(inside) if opened == name), default=len(inside))
                del inside[last:]
            elif name not in VOID and not part.endswith("/>"):
                inside.append((name, name in SILENT or MARKED.search(part) is not None))
        elif part.strip() and any(name in PROSE for name, _ in inside) and not any(silent for _, silent in inside):
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
