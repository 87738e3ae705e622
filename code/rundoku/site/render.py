"""Turns what a run has shown into HTML in the page's language: snippets, values in prose, the paper's facts."""

import html
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import markdown_exec
from markdown import Markdown
from markupsafe import Markup
from mkdocs.exceptions import PluginError
from pymdownx.inlinehilite import InlineHiliteException
from pymdownx.superfences import SuperFencesException

from rundoku.show.store import Store, versions
from rundoku.site import runner
from rundoku.site.catalogue import CatalogueError, Labels, Paper
from rundoku.site.snippets import Block, NoteError, Origin, complain
from rundoku.site.words import word

SHOWN = "rundoku-shows-{}"  # a paragraph of its own, until Markdown is done with the page
WIDE = "[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"  # kana, Han characters and their punctuation
BREAK = re.compile(f"(?<={WIDE})\n(?={WIDE})")
PREFORMATTED = re.compile("(<pre.*?</pre>)", re.S)
SHOWN_AT = re.compile(r"<p>rundoku-shows-(\d+)</p>")
SVG_TEXT = re.compile(r"<text([^>]*)>([^<]*)</text>")


class PageError(PluginError, SuperFencesException, InlineHiliteException):
    """A NoteError that passes through Markdown's extensions, which swallow every other exception, and ends the build."""


@dataclass
class Page:
    """The page that is being rendered: where it stands, and what its snippets have shown so far."""

    root: Path
    store: Store
    source: str
    language: str
    slug: str
    blocks: dict[str, list[Block]]  # by the meaning of their code
    labels: Labels | None
    paper: Paper | None
    code_url: str  # "…/blob/<commit>/" or ""
    ran: dict[str, list[str]] = field(default_factory=dict)  # session: its blocks so far
    values: dict[str, int | float | str] = field(default_factory=dict)
    lacks: set[str] = field(default_factory=set)  # what its snippets needed and this build does without
    asked: list[dict[str, Any]] = field(default_factory=list)  # the experiments behind what is shown now


current: Page | None = None


def join_lines(page: str) -> str:
    """Return a page's HTML without the line breaks between Japanese or Chinese characters, which a browser would show as spaces."""
    return "".join(part if i % 2 else BREAK.sub("", part) for i, part in enumerate(PREFORMATTED.split(page)))


def _page() -> Page:
    if current is None:
        raise PageError("a snippet is rendered outside a page")
    return current


def place(root: Path, source: str, language: str, text: str) -> str:
    """Return the place where a page says ``text``, as an error message names it."""
    path = root / source
    before, found, _ = (path.read_text(encoding="utf-8") if path.is_file() else "").partition(text)
    return f"{source}:{before.count(chr(10)) + 1} ({language})" if found else f"{source} ({language})"


def _place(page: Page, text: str) -> str:
    return place(page.root, page.source, page.language, text)


def outcome_of(page: Page, block: Block, code: list[str]) -> runner.Outcome:
    """Return what the last block of ``code`` shows; run it where no result is kept. Raises NoteError where it fails."""
    outcome = runner.recall(page.store, code)
    if outcome is None:
        outcomes = runner.execute(code, runner.limit(), str(page.root), os.environ.get(runner.WITHOUT, ""))
        runner.keep(page.store, code, outcomes)
        outcome = outcomes[-1]
    complaint = complain(block, outcome)
    if complaint:
        raise NoteError(f"{block.place()}: {complaint}")
    return outcome


def python(*, code: str, md: Markdown, session: str = "", extra: dict[str, str] | None = None, **options: Any) -> Markup:
    """Render one executable fence: markdown-exec's formatter for Python, but for the way of running it."""
    page = _page()
    try:
        known = page.blocks.get(runner.meaning(code), [])
        if not known:
            raise NoteError(f"{page.source} ({page.language}): this block is no fence of the page itself:\n{code}")
        block = known[0]
        ran = page.ran.setdefault(session, []) if session else []
        ran.append(code)
        outcome = outcome_of(page, block, list(ran))
        page.asked = outcome["experiments"] or page.asked
        if outcome["left_out"]:
            page.lacks.add(outcome["left_out"])
        for name, value in outcome["values"].items():
            if page.values.setdefault(name, value) != value:
                raise NoteError(f"{block.place()}: value {name!r} is published twice: {page.values[name]!r}, then {value!r}")
        try:
            shown = [_left_out(page, outcome["left_out"])] if outcome["left_out"] else _shown(page, block, outcome)
        except (NoteError, CatalogueError) as error:
            raise NoteError(f"{block.place()}: {error}") from error
    except NoteError as error:
        raise PageError(str(error)) from error
    text = "\n\n".join([outcome["output"], *(SHOWN.format(i) for i in range(len(shown)))]).strip()
    leftover = {name: value for name, value in (extra or {}).items() if name != "quiet"}
    made = markdown_exec.base_format(
        language="python", run=lambda *_, **__: text, code=code, md=md, session=session, extra=leftover, **options
    )
    return Markup(SHOWN_AT.sub(lambda match: shown[int(match[1])], made))


class _Absent:
    """What stands for a value that this build lacks, in any format."""

    def __format__(self, specification: str) -> str:
        return "—"


def _left_out(page: Page, what: str) -> str:
    """Return the words that stand where a snippet's result would."""
    text = html.escape(word(page.language, "left-out").format(what))
    return f'<div class="admonition warning left-out" data-search-exclude=""><p>{text}</p></div>'


def _shown(page: Page, block: Block, outcome: runner.Outcome) -> list[str]:
    """Return the HTML of each item; claims that follow one another make one table."""
    parts: list[str] = []
    claims: list[dict[str, Any]] = []
    for item in [*outcome["items"], {"kind": "end"}]:
        if item["kind"] == "claim":
            claims.append(item)
            continue
        if claims:
            parts.append(claims_table(page, claims) + provenance(page, block, outcome))
            claims = []
        if item["kind"] == "figure":
            parts.append(_figure(page, item, provenance(page, block, outcome)))
        elif item["kind"] == "table":
            parts.append(_table(page, item, provenance(page, block, outcome)))
    return parts


def _labels(page: Page) -> Labels:
    if page.labels is None:
        raise NoteError("there are no labels for this page; expected labels.yml beside it")
    return page.labels


def _fill(text: str, page: Page, what: str) -> str:
    """Put published values into a caption or an alternative text."""
    try:
        return text.format_map(defaultdict(_Absent, page.values) if page.lacks else page.values)
    except (KeyError, ValueError, IndexError) as error:
        known = ", ".join(page.values) or "none"
        raise NoteError(f"{what} {text!r} cannot be filled ({error!r}); published so far: {known}") from error


def _figure(page: Page, item: dict[str, Any], foot: str) -> str:
    labels, name = _labels(page), item["name"]
    caption = html.escape(_fill(labels.caption("figure", name, page.language), page, f"the caption of figure {name!r}"))
    alt = html.escape(_fill(labels.alt(name, page.language), page, f"the alternative text of figure {name!r}"))

    def translate(match: re.Match[str]) -> str:
        return f"<text{match[1]}>{html.escape(labels.translate(html.unescape(match[2]), page.language))}</text>"

    svg = SVG_TEXT.sub(translate, item["svg"]).replace("<svg ", f'<svg role="img" aria-label="{alt}" data-search-exclude="" ', 1)
    return f'<figure class="rundoku" id="figure-{name}"><div class="drawing">{svg}</div><figcaption>{caption}</figcaption>{foot}</figure>'


def cell(value: Any, specification: str) -> str:
    """Return a table cell's text: numbers in their format, a minus sign for a hyphen, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "✓" if value else "–"
    text = format(value, specification) if not isinstance(value, str) else value
    return text.replace("-", "−") if isinstance(value, int | float) else text


def _table(page: Page, item: dict[str, Any], foot: str) -> str:
    labels, name = _labels(page), item["name"]
    caption = html.escape(_fill(labels.caption("table", name, page.language), page, f"the caption of table {name!r}"))
    head = "".join(f'<th scope="col">{html.escape(labels.translate(column, page.language))}</th>' for column in item["columns"])
    rows = []
    for row in item["rows"]:
        cells = []
        for value, specification in zip(row, item["formats"], strict=True):
            text = labels.translate(value, page.language) if isinstance(value, str) else cell(value, specification)
            number = not isinstance(value, str | bool) and value is not None
            mark = ' class="number"' if number else ""
            cells.append(f"<td{mark}>{html.escape(text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    box = f'<div class="scroll" tabindex="0">{table}</div>'
    return f'<figure class="rundoku table" id="table-{name}"><figcaption>{caption}</figcaption>{box}{foot}</figure>'


def claims_table(page: Page, claims: list[dict[str, Any]]) -> str:
    """Return the table of a note's claims: what the paper says and where, what this code finds, and the verdict."""
    if page.paper is None:
        raise NoteError("a claim needs a paper; expected paper.yml beside the page")
    language = page.language
    head = "".join(f'<th scope="col">{word(language, f"claims.{name}")}</th>' for name in ("says", "paper", "ours", "verdict"))
    rows = []
    for item in claims:
        stated = page.paper.claims.get(item["name"])
        if stated is None:
            raise NoteError(f"claim {item['name']!r} is not in paper.yml; it has {', '.join(page.paper.claims) or 'none'}")
        verdict = item["verdict"]
        rows.append(
            f'<tr id="claim-{item["name"]}"><td>{html.escape(stated.says[language])}</td>'
            f'<td>{html.escape(stated.fact.text)}<br><span class="where">{html.escape(stated.fact.where)}</span></td>'
            f'<td>{html.escape(cell(item["ours"], item["format"]))}<br><code class="threshold">{html.escape(item["threshold"])}</code></td>'
            f'<td><span class="verdict {verdict.replace(" ", "-")}">{word(language, f"verdict.{verdict}")}</span></td></tr>'
        )
    table = f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def provenance(page: Page, block: Block, outcome: runner.Outcome) -> str:
    """Return the part that opens to show which lines made a figure or table, with seed, versions and device."""
    language = page.language
    rows = [
        (word(language, "provenance.code"), ", ".join(_source_link(page, origin) for origin in block.origins) or html.escape(block.place()))
    ]
    for asked in page.asked:
        arguments = ", ".join(f"{name}={value!r}" for name, value in asked["arguments"].items())
        call = f"{asked['name'].removeprefix('rundoku.')}({arguments})"
        rows.append((word(language, "provenance.experiment"), f"<code>{html.escape(call)}</code>"))
    tools = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "format")
    rows += [(word(language, "provenance.versions"), tools), (word(language, "provenance.device"), word(language, "provenance.cpu"))]
    body = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    summary = f"<summary>{word(language, 'provenance.summary')}</summary>"
    return f'<details class="provenance" data-search-exclude="">{summary}<dl>{body}</dl></details>'


def _source_link(page: Page, origin: Origin) -> str:
    text = f"{origin.path.removeprefix('code/rundoku/')}:{origin.first}–{origin.last}"
    return f'<a href="{page.code_url}{origin.path}#L{origin.first}-L{origin.last}">{text}</a>' if page.code_url else f"<code>{text}</code>"


def value(source: str, language: str, class_name: str, md: Markdown) -> str:
    """Render `` `#!value name:spec` ``: a value that a snippet of the page has published."""
    page = _page()
    name, _, specification = source.partition(":")
    if name not in page.values and page.lacks:
        why = html.escape(word(page.language, "left-out").format(", ".join(sorted(page.lacks))))
        return f'<span class="value" title="{why}">—</span>'
    if name not in page.values:
        where = _place(page, f"#!value {source}")
        raise PageError(f"{where}: value {name!r} is not published so far; the page has {', '.join(page.values) or 'none'}")
    try:
        text = cell(page.values[name], specification)
    except ValueError as error:
        where = _place(page, f"#!value {source}")
        raise PageError(f"{where}: value {name!r} = {page.values[name]!r} has no format {specification!r}") from error
    return f'<span class="value">{html.escape(text)}</span>'


def fact(source: str, language: str, class_name: str, md: Markdown) -> str:
    """Render `` `#!paper name` ``: what the paper reports, with the place where it says so."""
    page = _page()
    facts = page.paper.facts if page.paper else {}
    if source not in facts:
        where = _place(page, f"#!paper {source}")
        raise PageError(f"{where}: paper.yml has no fact {source!r}; it has {', '.join(facts) or 'none'}")
    found = facts[source]
    return f'<span class="fact" title="{html.escape(found.where)}">{html.escape(found.text)}</span>'
