"""Finds the parts of a note's Markdown (fences, headings, sections, formulas, prose) with the line that each stands on."""

import re
from dataclasses import dataclass
from functools import lru_cache

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>.*?)[ \t]*")
_OPTION = re.compile(r"""(?P<name>[\w.-]+)\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'}]+))|(?P<flag>[^\s{}]+)""")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_ATTRIBUTES = re.compile(r"[ \t]*\{:?[ \t]*([^{}]*)\}$")
_INLINE = re.compile(
    r"""\\[\\`$]                                                          # an escaped mark is none
    | (?P<comment><!--.*?-->)
    | (?P<ticks>(?<!`)`+(?!`)) (?P<code>(?:(?!\n[ \t]*\n).)+?) (?<!`)(?P=ticks)(?!`)
    | \$\$ (?P<block>.+?) \$\$
    | \$(?![\s$]) (?P<inline>(?:\\.|(?!\n[ \t]*\n)[^\\$])+?) (?<!\s)\$    # as in arithmatex: no space inside the dollars
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Fence:
    """A fenced block: ```` ```python exec="on" ```` has the language `python` and the options `{"exec": "on"}`."""

    info: str
    language: str
    options: dict[str, str]  # an option without a value holds an empty text
    body: str  # without the fence's own indent
    line: int  # of the opening mark, from 1
    indent: str
    closed: bool = True


@dataclass(frozen=True)
class Heading:
    """A heading; `id` is empty where the text gives none."""

    level: int
    title: str
    id: str
    line: int


@dataclass(frozen=True)
class Span:
    """A piece of text inside a line: a code span or a formula, without its marks; `block` is true of `$$…$$`."""

    text: str
    line: int
    block: bool = False


@dataclass(frozen=True)
class _Scan:
    fences: tuple[Fence, ...]
    unfenced: str  # front matter, fences and comments blanked
    prose: str  # code spans and formulas too
    code: tuple[Span, ...]
    formulas: tuple[Span, ...]


def fences(text: str) -> list[Fence]:
    """The fenced blocks in order; one inside another belongs to the outer one's body."""
    return list(_body(text)[0])


def headings(text: str) -> list[Heading]:
    """The headings in order; a `#` inside a fence or the front matter is none."""
    found, unfenced = [], _scan(text).unfenced
    for match in _HEADING.finditer(unfenced):
        title, attributes = match[2], _ATTRIBUTES.search(match[2])
        name = re.search(r"#([\w-]+)", attributes[1]) if attributes else None
        title = _ATTRIBUTES.sub("", title) if attributes else title
        found.append(Heading(len(match[1]), title, name[1] if name else "", _line(unfenced, match.start())))
    return found


def prose(text: str) -> str:
    """The text with front matter, fences, comments, code spans and formulas blanked: every line and column stays where it was."""
    return _scan(text).prose


def unfenced(text: str) -> str:
    """The text with only front matter, fences and comments blanked."""
    return _scan(text).unfenced


def code_spans(text: str) -> list[Span]:
    """The code spans outside fences, `#!value` and `#!paper` uses included."""
    return list(_scan(text).code)


def formulas(text: str) -> list[Span]:
    """The formulas, `$…$` and `$$…$$`, outside fences and code spans."""
    return list(_scan(text).formulas)


def front_matter(text: str) -> str:
    """The YAML between the two `---` at the beginning, or nothing."""
    match = _FRONT_MATTER.match(text)
    return match[1] if match else ""


def sections(text: str) -> dict[str, str]:
    """The text by section: `top` up to the first h2, then each heading with an id up to the next heading of any level."""
    found: dict[str, list[str]] = {"top": []}
    starts = {heading.line: heading.id for heading in headings(text) if heading.level > 1 and heading.id}
    current = "top"
    for number, line in enumerate(text.splitlines(), start=1):
        current = starts.get(number, current)
        found.setdefault(current, []).append(line.rstrip())
    return {name: "\n".join(lines).strip() + "\n" for name, lines in found.items()}


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _blank(text: str) -> str:
    return re.sub(r"[^\n]+", lambda line: " " * len(line[0]), text)


def _options(info: str) -> tuple[str, dict[str, str]]:
    language, options = "", {}
    for match in _OPTION.finditer(info):
        if match["name"] is None and not language:
            language = match["flag"].lstrip(".")
        elif match["name"] is None:
            options[match["flag"]] = ""
        else:
            options[match["name"]] = match["double"] or match["single"] or match["bare"] or ""
    return language, options


def _fenced(text: str) -> tuple[list[Fence], str]:
    """The fences of `text`, and `text` with them blanked."""
    found: list[Fence] = []
    kept: list[str] = []
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        start, opening = number, _FENCE.fullmatch(lines[number])
        number += 1
        if not opening or (opening["mark"][0] == "`" and "`" in opening["info"]):
            kept.append(lines[start])
            continue
        closing = re.compile(rf"[ \t]*{re.escape(opening['mark'][0])}{{{len(opening['mark'])},}}[ \t]*")
        while number < len(lines) and not closing.fullmatch(lines[number]):
            number += 1
        closed, indent = number < len(lines), opening["indent"]
        body = "".join(f"{line.removeprefix(indent) if line.startswith(indent) else line.lstrip()}\n" for line in lines[start + 1 : number])
        language, options = _options(opening["info"])
        found.append(Fence(opening["info"], language, options, body, start + 1, indent, closed))
        number += closed
        kept.extend(" " * len(line) for line in lines[start:number])
    return found, "\n".join(kept)


@lru_cache(maxsize=1024)  # a build reads every page several times
def _body(text: str) -> tuple[tuple[Fence, ...], str]:
    """The fences of a page, and its text with these and the front matter blanked."""
    match = _FRONT_MATTER.match(text)
    found, body = _fenced(_blank(match[0]) + text[match.end() :] if match else text)
    return tuple(found), body


@lru_cache(maxsize=1024)
def _scan(text: str) -> _Scan:
    found, body = _body(text)
    code: list[Span] = []
    formulas: list[Span] = []
    without_comments: list[str] = []
    without_marks: list[str] = []
    last, line = 0, 1
    for match in _INLINE.finditer(body):
        for kept in (without_comments, without_marks):
            kept.append(body[last : match.start()])
        line += body.count("\n", last, match.start())
        if match["code"] is not None:
            code.append(Span(match["code"], line))
        elif match["block"] is not None or match["inline"] is not None:
            formulas.append(Span((match["block"] or match["inline"]).strip(), line, match["block"] is not None))
        last, line = match.end(), line + match[0].count("\n")
        without_comments.append(_blank(match[0]) if match["comment"] else match[0])
        without_marks.append(_blank(match[0]))
    tail = body[last:]
    return _Scan(found, "".join(without_comments) + tail, "".join(without_marks) + tail, tuple(code), tuple(formulas))
