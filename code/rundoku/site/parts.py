"""What the site's own parts are made of: where a part stands, lists of entries, filters without script, tables that scroll."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rundoku.site.catalogue import Catalogue, CatalogueError, Entry
from rundoku.site.words import word


@dataclass(frozen=True)
class Context:
    """Where a fence stands and what the pages know."""

    catalogue: Catalogue
    lang: str
    slug: str  # of the note, "" on a page of docs/
    results: Mapping[str, Sequence[Mapping[str, Any]]]  # slug -> what its snippets have shown, in order: figures, tables, claims
    root: Path  # of the repository
    link: Callable[[str], str]  # "lora", "ledger", "api/lora" -> address relative to this page

    def word(self, key: str, *values: object) -> str:
        """A word of the site in this page's language, escaped."""
        return escape(word(self.lang, key).format(*values))

    def entry(self) -> Entry:
        """The entry of this note; CatalogueError on a page that is no note."""
        if not self.slug:
            raise CatalogueError("this part belongs into a note, but stands on a page of docs/")
        return self.catalogue.entry(self.slug)


def title_of(context: Context, entry: Entry, short: bool = False) -> str:
    """The entry's title, linked where it is written, in English letters marked as English."""
    text = entry.title[context.lang]
    text = text.split(": ")[0] if short else text
    foreign = ' lang="en"' if context.lang != "en" and entry.kind == "paper" else ""
    if entry.paper is None:
        return f'<span class="title"{foreign}>{escape(text)}</span>'
    return f'<a class="title" href="{escape(context.link(entry.slug))}"{foreign}>{escape(text)}</a>'


def _details(context: Context, entry: Entry) -> str:
    """Year, venue and marks of an entry, one after another."""
    unwritten = entry.paper is None
    venue = entry.paper.venue if entry.paper else ""
    parts = [
        escape(venue) if venue and str(entry.year) in venue else str(entry.year or context.word("concept")),
        escape(venue) if venue and str(entry.year) not in venue else "",
        f'<span class="mark kernel">{context.word("kernel")}</span>' if entry.kernel else "",
        f'<span class="mark pick">{context.word("pick")}</span>' if entry.paper and entry.paper.pick else "",
        f'<span class="mark unwritten">{context.word("unwritten")}</span>' if unwritten else "",
    ]
    return '<span class="facts" data-search-exclude="">' + " ".join(f"<span>{part}</span>" for part in parts if part) + "</span>"


def line(context: Context, entry: Entry, short: bool = False) -> str:
    """An entry in a list or on a card: title, tagline, year and marks."""
    tagline = f'<span class="tagline">{escape(entry.paper.tagline[context.lang])}</span>' if entry.paper else ""
    return f"{title_of(context, entry, short)}{tagline}{_details(context, entry)}"


def entry_list(context: Context, entries: Iterable[Entry], kind: str = "ul", name: str = "entries") -> str:
    """A list of entries, each marked as written or not."""
    items = (f'<li class="{"written" if entry.paper else "unwritten"}">{line(context, entry)}</li>' for entry in entries)
    return f'<{kind} class="{name}">{" ".join(items)}</{kind}>'


def progress(context: Context, entries: Sequence[Entry]) -> str:
    """How many of the entries are written."""
    return f'<p class="progress">{context.word("written-of", sum(entry.paper is not None for entry in entries), len(entries))}</p>'


def filters(context: Context, box: str, choices: Mapping[str, Mapping[str, str]], switches: Mapping[str, str]) -> str:
    """A form that hides what does not match by CSS alone: ``choices`` become selects, ``switches`` check boxes.

    An element to hide carries ``data-<filter>`` with its values parted by spaces.
    """
    fields, rules = [], []
    for name, options in choices.items():
        shown = "".join(f'<option value="{escape(value)}">{escape(label)}</option>' for value, label in options.items())
        title, everything = context.word(f"filter.{name}"), context.word("filter.any")
        fields.append(f'<label>{title} <select name="{name}"><option value="">{everything}</option>{shown}</select></label>')
        rules += [f'.{box}:has([name={name}] [value="{v}"]:checked) .item:not([data-{name}~="{v}"])' for v in options]
    for name, label in switches.items():
        fields.append(f'<label><input type="checkbox" name="{name}" value="yes"> {label}</label>')
        rules.append(f'.{box}:has([name={name}]:checked) .item:not([data-{name}="yes"])')
    style = f"<style>{','.join(rules)}{{display:none}}</style>" if rules else ""
    reset = f'<button type="reset">{context.word("filter.reset")}</button>'
    form = f'<form class="filters" data-search-exclude="" role="search" aria-label="{context.word("filter")}">'
    return f"{style}{form}{''.join(fields)}{reset}</form>"


def scroll(head: Sequence[str], rows: Iterable[str], label: str, kind: str) -> str:
    """A table that scrolls inside its own box where it is too wide."""
    heads = " ".join(f'<th scope="col">{text}</th>' for text in head)
    table = f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{" ".join(rows)}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'
