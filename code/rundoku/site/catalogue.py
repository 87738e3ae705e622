"""What the site covers: the inventory, and for each written note what its `paper.yml` says, checked as it is read."""

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rundoku.site.fields import LANGUAGES, CatalogueError, Field, optional_text, read
from rundoku.site.labels import Labels, load_labels

__all__ = ["LANGUAGES", "Catalogue", "CatalogueError", "Claim", "Entry", "Fact", "Labels", "Named", "Paper", "load", "load_labels"]

KINDS = ("paper", "concept")
_ATTACHED_UNITS = ("%", "×", "°")


@dataclass(frozen=True)
class Named:
    """A theme or a reading path: its name and a line about it, by language."""

    id: str
    name: dict[str, str]
    description: dict[str, str]


@dataclass(frozen=True)
class Fact:
    """A value that the paper reports, with the place in the paper where it stands."""

    name: str
    value: int | float | str
    where: str
    format: str = ""
    unit: str = ""

    @property
    def text(self) -> str:
        """The value as it is written in a sentence: `4.7 M`, `37%`."""
        value = format(self.value, self.format)
        return value if not self.unit else value + self.unit if self.unit.startswith(_ATTACHED_UNITS) else f"{value} {self.unit}"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that the note's code puts to the test."""

    name: str
    fact: Fact
    says: dict[str, str]


@dataclass(frozen=True)
class Paper:
    """What a written note's `paper.yml` says."""

    slug: str
    kind: str
    title: str
    authors: tuple[str, ...]
    year: int | None
    venue: str
    arxiv: str
    doi: str
    url: str
    themes: tuple[str, ...]
    tags: tuple[str, ...]
    paths: tuple[str, ...]
    tagline: dict[str, str]
    written: datetime.date
    revised: datetime.date
    pick: bool
    facts: dict[str, Fact]
    claims: dict[str, Claim]
    next: tuple[str, ...]
    bibtex: str


@dataclass(frozen=True)
class Entry:
    """A line of the inventory; `paper` is None while its note is not written, `year` is None for a concept."""

    slug: str
    title: dict[str, str]
    year: int | None
    arxiv: str
    theme: str
    paths: tuple[str, ...]
    kernel: bool
    kind: str
    paper: Paper | None

    @property
    def room(self) -> str:
        """The module of its implementation."""
        return f"rundoku.{self.kind}s.{self.slug.replace('-', '_')}"


@dataclass(frozen=True)
class Catalogue:
    """Everything the site covers, in the order of the inventory."""

    entries: tuple[Entry, ...]
    themes: dict[str, Named]
    paths: dict[str, Named]
    tags: dict[str, dict[str, str]]

    @cached_property
    def _by_slug(self) -> dict[str, Entry]:
        return {entry.slug: entry for entry in self.entries}

    def entry(self, slug: str) -> Entry:
        """The entry named `slug`; CatalogueError if the inventory has none."""
        if slug not in self._by_slug:
            raise CatalogueError(f"notes/inventory.yml: papers: found no entry {slug!r}, expected one")
        return self._by_slug[slug]

    @property
    def papers(self) -> dict[str, Paper]:
        """The written ones, concepts included, by slug."""
        return {entry.slug: entry.paper for entry in self.entries if entry.paper}

    def bibtex(self, slug: str, imported: Collection[str]) -> str:
        """How to cite a note's paper; for a concept that names none, how to cite the papers that its code imports."""
        paper = self.entry(slug).paper
        if paper and paper.bibtex:
            return paper.bibtex.strip()
        return "\n\n".join(entry.paper.bibtex.strip() for entry in self.entries if entry.paper and entry.slug in imported)

    def on_path(self, path: str) -> tuple[Entry, ...]:
        """The entries of a reading path, in reading order."""
        return tuple(entry for entry in self.entries if path in entry.paths)

    def in_theme(self, theme: str) -> tuple[Entry, ...]:
        """The entries of a theme."""
        return tuple(entry for entry in self.entries if entry.theme == theme)


def load(root: Path) -> Catalogue:
    """Reads and checks `notes/inventory.yml`, `notes/tags.yml` and every `notes/<slug>/paper.yml`; CatalogueError at the first mistake."""
    inventory = read(root, "notes/inventory.yml").record(("themes", "paths", "papers"))
    tags = {name: field.languages() for name, field in read(root, "notes/tags.yml").mapping().items()}
    themes, paths = _named(inventory["themes"]), _named(inventory["paths"])
    listed: dict[str, Entry] = {}
    for field in inventory["papers"].items():
        entry = _entry(field, themes, paths)
        for name, seen in (("slug", listed), ("title", {other.title["en"] for other in listed.values()})):
            if (entry.slug if name == "slug" else entry.title["en"]) in seen:
                field.child(name, field.value[name]).fail("each entry once")
        listed[entry.slug] = entry
    folders = {folder.name for folder in (root / "notes").iterdir() if folder.is_dir() and not folder.name.startswith((".", "_"))}
    for unknown in sorted(folders - listed.keys()):
        raise CatalogueError(f"notes/{unknown}: the folder: found a note that is not listed, expected its entry in notes/inventory.yml")
    written = {slug: _paper(root, entry, themes, paths, tags, listed) for slug, entry in listed.items() if slug in folders}
    entries = tuple(Entry(**{**vars(entry), "paper": written.get(slug)}) for slug, entry in listed.items())
    return Catalogue(entries, themes, paths, tags)


def _named(field: Field) -> dict[str, Named]:
    parts = {name: entry.record(("name", "description")) for name, entry in field.mapping().items()}
    return {name: Named(name, part["name"].languages(), part["description"].languages()) for name, part in parts.items()}


def _arxiv(given: Mapping[str, Field]) -> str:
    return given["arxiv"].matching(r"\d{4}\.\d{4,5}", "an arXiv number such as '1706.03762'") if "arxiv" in given else ""


def _entry(field: Field, themes: Mapping[str, Named], paths: Mapping[str, Named]) -> Entry:
    is_concept = isinstance(field.value, dict) and field.value.get("kind") == "concept"
    always, titles = ("slug", "title", "theme", "paths", "kernel"), ("title_ja", "title_zh")
    given = field.record((*always, "kind", *titles)) if is_concept else field.record((*always, "year"), ("arxiv", "kind"))
    title = {language: given[f"title_{language}" if is_concept and language != "en" else "title"].text() for language in LANGUAGES}
    return Entry(
        slug=given["slug"].matching(r"[a-z0-9]+(-[a-z0-9]+)*", "lower-case words joined by hyphens"),
        title=title,
        year=given["year"].year() if "year" in given else None,
        arxiv=_arxiv(given),
        theme=given["theme"].one_of(themes, "a theme"),
        paths=given["paths"].some_of(paths, "a reading path"),
        kernel=given["kernel"].flag(),
        kind=given["kind"].one_of(KINDS, "a kind of note") if "kind" in given else "paper",
        paper=None,
    )


def _paper(root: Path, entry: Entry, themes: Mapping, paths: Mapping, tags: Mapping, slugs: Mapping[str, Entry]) -> Paper:
    of_papers = ("authors", "year", "venue", "bibtex")  # a concept introduces nothing, so it has nobody to cite
    always = ("kind", "title", "themes", "tags", "paths", "tagline", "written", "revised", "facts", "claims", "next")
    optional = ("arxiv", "doi", "url", "pick")
    source = read(root, f"notes/{entry.slug}/paper.yml")
    given = source.record((*always, *of_papers), optional) if entry.kind == "paper" else source.record(always, (*of_papers, *optional))
    facts = {name: _fact(name, field) for name, field in given["facts"].mapping().items()}
    paper = Paper(
        slug=entry.slug,
        kind=given["kind"].one_of(KINDS, "a kind of note"),
        title=given["title"].text(),
        authors=given["authors"].texts() if "authors" in given else (),
        year=given["year"].year() if "year" in given else None,
        venue=optional_text(given, "venue"),
        arxiv=_arxiv(given),
        doi=optional_text(given, "doi"),
        url=given["url"].matching(r"https://\S+", "an address that starts with https://") if "url" in given else "",
        themes=given["themes"].some_of(themes, "a theme"),
        tags=given["tags"].some_of(tags, "a tag of notes/tags.yml"),
        paths=given["paths"].some_of(paths, "a reading path"),
        tagline=given["tagline"].languages(),
        written=given["written"].date(),
        revised=given["revised"].date(),
        pick=given["pick"].flag() if "pick" in given else False,
        facts=facts,
        claims={name: _claim(name, field, facts) for name, field in given["claims"].mapping().items()},
        next=given["next"].some_of(slugs, "a note of notes/inventory.yml"),
        bibtex=optional_text(given, "bibtex"),
    )
    if paper.revised < paper.written:
        given["revised"].fail(f"a day not before {paper.written}, when it was written")
    if entry.slug in paper.next:
        given["next"].fail("other notes than this one")
    # The inventory lists what is not written yet as well, so the two state the same things and must agree.
    for name, found, listed in (
        ("kind", paper.kind, entry.kind),
        ("title", _plain(paper.title), _plain(entry.title["en"])),
        ("year", paper.year, entry.year),
        ("arxiv", paper.arxiv, entry.arxiv),
        ("themes", [*paper.themes[:1]], [entry.theme]),
        ("paths", sorted(paper.paths), sorted(entry.paths)),
    ):
        if found != listed:
            shown = entry.title["en"] if name == "title" else listed
            given.get(name, source.child(name, None)).fail(f"what notes/inventory.yml says: {shown!r}")
    return paper


def _plain(title: str) -> str:
    return "".join(letter for letter in title.casefold() if letter.isalnum())


def _fact(name: str, field: Field) -> Fact:
    given = field.record(("value", "where"), ("format", "unit"))
    value = given["value"].value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        given["value"].fail("a number or text")
    fact = Fact(name, value, given["where"].text(), optional_text(given, "format"), optional_text(given, "unit"))
    try:
        format(value, fact.format)
    except ValueError as error:
        given["format"].fail(f"a format of Python for {value!r} ({error})")
    return fact


def _claim(name: str, field: Field, facts: Mapping[str, Fact]) -> Claim:
    given = field.record(("fact", "says"))
    return Claim(name, facts[given["fact"].one_of(facts, "a fact of this note")], given["says"].languages())
