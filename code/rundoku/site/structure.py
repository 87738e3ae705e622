"""Compares what a page and its translation are made of, so that the three languages show the same things in the same places."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from rundoku.site import markdown

REFERENCE = re.compile(r'^ *--8<-- "([^":]+)(?::([\w-]+))?"\s*$', re.MULTILINE)
_LINK = re.compile(r'(!?)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)')
_BARE_LINK = re.compile(r"<(https?://[^>\s]+)>|^[ ]*\[(?!\^)[^\]]+\]:[ ]*(\S+)", re.MULTILINE)
_FOOTNOTE = re.compile(r"\[\^([\w-]+)\](:?)")
_ADMONITION = re.compile(r"^([ ]*)(!!!|\?\?\?\+?|===\+?!?)(?:[ ]+([\w-]+(?:[ ]+[\w-]+)*))?(?:[ ]+\".*\")?[ ]*$", re.MULTILINE)
_TABLE_RULE = re.compile(r"^[ ]*\|?(?=.*\|)[ ]*:?-+:?[ ]*(?:\|[ ]*:?-+:?[ ]*)*\|?[ ]*$")
_WORDS_IN_FORMULA = re.compile(r"\\(?:text|textrm|mbox)\{[^{}]*\}")


@dataclass(frozen=True)
class Mark:
    """One thing that a page is made of. What the sentence around it moves about has no fixed order within its section."""

    kind: str
    text: str
    line: int
    section: str
    fixed: bool


def marks(text: str) -> list[Mark]:
    """Everything in a page that its translations must have as well, in order."""
    headings = markdown.headings(text)
    starts = [(heading.line, heading.id) for heading in headings if heading.id]

    def section(line: int) -> str:
        return next((name for start, name in reversed(starts) if start <= line), "")

    found = [Mark("heading", f"{'#' * heading.level} {{#{heading.id}}}", heading.line, heading.id, True) for heading in headings]
    for kind, shown, line, fixed in (*_fences(text), *_spans(text), *_inline(text), *_tables(text)):
        found.append(Mark(kind, shown, line, section(line), fixed))
    return sorted(found, key=lambda mark: mark.line)


def _fences(text: str) -> Iterator[tuple[str, str, int, bool]]:
    for fence in markdown.fences(text):
        options = {name: value for name, value in fence.options.items() if name != "title"}
        info = " ".join([fence.language, *(f'{name}="{value}"' for name, value in options.items())])
        # Code is the same in every language; text, a diagram's words for example, is not.
        body = fence.body if fence.language in ("python", "py", "site") else "\n".join(match[0] for match in REFERENCE.finditer(fence.body))
        yield "fence", f"{info} ⏎ {' ⏎ '.join(line.strip() for line in body.strip().splitlines())}", fence.line, True


def _spans(text: str) -> Iterator[tuple[str, str, int, bool]]:
    for formula in markdown.formulas(text):
        shown = _WORDS_IN_FORMULA.sub(r"\\text{…}", " ".join(formula.text.split()))
        yield ("display formula" if formula.block else "formula"), shown, formula.line, formula.block
    for span in markdown.code_spans(text):
        if span.text.startswith(("#!value ", "#!paper ")):
            yield span.text[2:7], span.text, span.line, False


def _inline(text: str) -> Iterator[tuple[str, str, int, bool]]:
    prose = markdown.prose(text)

    def line(match: re.Match[str]) -> int:
        return prose.count("\n", 0, match.start(match.lastindex or 0)) + 1

    for match in _LINK.finditer(prose):
        yield ("figure" if match[1] else "link"), match[2], line(match), bool(match[1])
    for match in _BARE_LINK.finditer(prose):
        yield "link", match[1] or match[2], line(match), False
    for match in _FOOTNOTE.finditer(prose):
        yield ("footnote" if match[2] else "reference to a footnote"), match[1], line(match), bool(match[2])
    for match in _ADMONITION.finditer(prose):
        kind = "tab" if match[2].startswith("===") else "admonition"
        yield kind, f"{match[2]} {match[3] or ''}".strip(), line(match), True


def _tables(text: str) -> Iterator[tuple[str, str, int, bool]]:
    lines = markdown.unfenced(text).split("\n")
    for number, rule in enumerate(lines):
        if number and _TABLE_RULE.match(rule) and "|" in lines[number - 1]:
            rows = next((count for count, line in enumerate(lines[number + 1 :]) if "|" not in line), 0)
            yield "table", f"{len(rule.strip().strip('|').split('|'))} columns, {rows} rows", number, True


def differences(english: str, translation: str, name: str) -> list[tuple[int, str]]:
    """Line in the translation and message of each difference from the English page, which is called `name`."""
    ours, theirs = marks(english), marks(translation)
    same_headings = [m.text for m in ours if m.kind == "heading"] == [m.text for m in theirs if m.kind == "heading"]
    groups: dict[tuple[str, str], tuple[list[Mark], list[Mark]]] = defaultdict(lambda: ([], []))
    for side, found in enumerate((ours, theirs)):
        for mark in found:
            # Only where the headings agree is a section the place to look in.
            groups[mark.kind, "" if mark.fixed or not same_headings else mark.section][side].append(mark)
    starts = {mark.section: mark.line for mark in theirs if mark.kind == "heading"}
    result: list[tuple[int, str]] = []
    for (_, section), (left, right) in sorted(groups.items()):
        if (left or right)[0].fixed:
            pairs = list(_out_of_order(left, right))
        else:
            only_left, only_right = _surplus(left, right), _surplus(right, left)
            pairs = [(missing, extra, starts.get(section, 1)) for missing, extra in zip_longest(only_left, only_right)]
        result.extend(_message(missing, extra, place, name) for missing, extra, place in pairs)
    return result


def _surplus(some: list[Mark], others: list[Mark]) -> list[Mark]:
    """What is among `some` more often than among `others`."""
    left = Counter(mark.text for mark in others)
    left.subtract(mark.text for mark in some)
    return [mark for index, mark in enumerate(some) if left[mark.text] < 0 and _later(some, index) < -left[mark.text]]


def _later(some: list[Mark], index: int) -> int:
    return sum(mark.text == some[index].text for mark in some[index + 1 :])


def _out_of_order(left: list[Mark], right: list[Mark]) -> Iterator[tuple[Mark | None, Mark | None, int]]:
    """Pairs of what stands on one side only, with the line on the right after which the other would stand."""
    matcher = SequenceMatcher(None, [mark.text for mark in left], [mark.text for mark in right], autojunk=False)
    for change, i1, i2, j1, j2 in matcher.get_opcodes():
        if change != "equal":
            for missing, extra in zip_longest(left[i1:i2], right[j1:j2]):
                yield missing, extra, right[j1 - 1].line if j1 else 1


def _message(missing: Mark | None, extra: Mark | None, place: int, name: str) -> tuple[int, str]:
    if missing and extra:
        here, there = _apart(extra.text, missing.text)
        return extra.line, f"{extra.kind} `{here}` stands where {name}:{missing.line} has `{there}`"
    if missing:
        return place, f"{missing.kind} `{_short(missing.text)}` of {name}:{missing.line} is missing here"
    assert extra is not None
    return extra.line, f"{extra.kind} `{_short(extra.text)}` is not in {name}"


def _short(text: str) -> str:
    return text if len(text) <= 90 else text[:87] + "…"


def _apart(here: str, there: str) -> tuple[str, str]:
    """Both texts, cut so that the place where they differ can be seen."""
    start = next((index for index, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    begin = max(0, start - 30) if max(len(here), len(there)) > 90 else 0
    mark = "…" if begin else ""
    return mark + _short(here[begin:]), mark + _short(there[begin:])
