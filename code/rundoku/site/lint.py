"""The notes' lint: what a build cannot see, checked from the sources alone."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rundoku.site import markdown
from rundoku.site.catalogue import LANGUAGES, Catalogue, CatalogueError, Entry, Labels, load, load_labels
from rundoku.site.glossary import Glossary, load_glossary
from rundoku.site.notecode import Said, said, shows
from rundoku.site.numbers import typed_numbers
from rundoku.site.snippets import OFF, NoteError, blocks
from rundoku.site.snippets import sections as snippet_sections
from rundoku.site.structure import REFERENCE, differences
from rundoku.site.translations import accept, front, section_hashes, stale

__all__ = ["Problem", "accept", "lint", "section_hashes"]

SECTIONS = ("why", "idea", "code", "shows", "pitfalls", "claims", "lineage", "next", "bibtex")
WORDS = (900, 2_000)  # of English prose
DESCRIPTION = 160  # characters
_FRONT_MATTER = {"title", "description", "renders"}


@dataclass(frozen=True, order=True)
class Problem:
    """A fault, and where it stands."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def lint(root: Path) -> list[Problem]:
    """Every fault in the notes and in the pages of docs/, in order of path and line."""
    found: set[Problem] = set()
    catalogue, glossary = None, Glossary(())
    try:
        catalogue = load(root)
    except CatalogueError as error:
        found.add(_problem(error))
    try:
        glossary = load_glossary(root)
    except CatalogueError as error:
        found.add(_problem(error))
    for folder in sorted(path for path in (root / "notes").glob("*") if path.is_dir() and not path.name.startswith((".", "_"))):
        found.update(_Note(root, folder.name, catalogue, glossary).problems())
    for english in sorted((root / "docs").rglob("*.en.md")):
        pages = {language: english.with_name(english.name.replace(".en.md", f".{language}.md")) for language in LANGUAGES}
        found.update(_compare(root, pages, glossary))
    for other in sorted(page for language in LANGUAGES[1:] for page in (root / "docs").rglob(f"*.{language}.md")):
        if not other.with_name(re.sub(r"\.\w+\.md$", ".en.md", other.name)).exists():
            found.add(Problem(other.relative_to(root).as_posix(), 1, "this page has no English page beside it"))
    return sorted(found)


def _problem(error: CatalogueError) -> Problem:
    path, _, message = str(error).partition(": ")
    line = re.match(r"line (\d+): ", message)
    return Problem(path, int(line[1]), message[line.end() :]) if line else Problem(path, 1, message)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _compare(root: Path, pages: dict[str, Path], glossary: Glossary) -> Iterator[Problem]:
    """What is wrong with the three pages as pages: one missing, fences left open, wrong words, translations of another structure."""
    texts = {language: path.read_text(encoding="utf-8") for language, path in pages.items() if path.is_file()}
    names = {language: path.relative_to(root).as_posix() for language, path in pages.items()}
    for language, name in names.items():
        if language not in texts:
            yield Problem(name, 1, f"the page is missing; expected it beside {names['en']}")
            continue
        text = texts[language]
        for fence in markdown.fences(text):
            if not fence.closed:
                yield Problem(name, fence.line, "this fence has no end")
        ids = Counter(heading.id for heading in markdown.headings(text))
        for heading in markdown.headings(text):
            if not heading.id:
                yield Problem(name, heading.line, f"heading {heading.title!r} has no id; expected {{#id}}, the same in every language")
            elif ids[heading.id] > 1:
                yield Problem(name, heading.line, f"id {heading.id!r} stands at {ids[heading.id]} headings; expected each id once")
        # Wrong words are looked for in title and description as well.
        given = markdown.front_matter(text)
        start = text.index(given)
        words = markdown.prose(text)[:start] + given + markdown.prose(text)[start + len(given) :]
        for position, wrong, right in glossary.misuses(words, language):
            yield Problem(name, _line(words, position), f"{wrong!r} is not said; expected {right!r} (notes/glossary.yml)")
        if language != "en" and "en" in texts:
            for line, message in differences(texts["en"], text, pages["en"].name):
                yield Problem(name, line, message)


class _Note:
    """One note: its three pages, `paper.yml`, `labels.yml` and the code side."""

    def __init__(self, root: Path, slug: str, catalogue: Catalogue | None, glossary: Glossary) -> None:
        self.root, self.slug, self.catalogue, self.glossary = root, slug, catalogue, glossary
        self.pages = {language: root / "notes" / slug / f"index.{language}.md" for language in LANGUAGES}
        self.names = {language: path.relative_to(root).as_posix() for language, path in self.pages.items()}
        self.texts = {language: path.read_text(encoding="utf-8") for language, path in self.pages.items() if path.is_file()}
        self.entry: Entry | None = next((entry for entry in catalogue.entries if entry.slug == slug), None) if catalogue else None
        folder = slug.replace("-", "_")
        rooms = (root / "code" / "rundoku" / kind / folder / "note.py" for kind in ("papers", "concepts"))
        self.code = next((path for path in rooms if path.is_file()), root / "code" / "rundoku" / "papers" / folder / "note.py")

    def problems(self) -> Iterator[Problem]:
        """Every fault of this note."""
        yield from _compare(self.root, self.pages, self.glossary)
        for language in self.texts:
            yield from self._page(language)
        if "en" in self.texts:
            yield from self._english()
            yield from self._translations()
        yield from self._code()

    def _page(self, language: str) -> Iterator[Problem]:
        name, text = self.names[language], self.texts[language]
        try:
            blocks(text, name, language, self.root)
        except NoteError as error:
            place = re.match(r"(.*?):(\d+)(?: \(\w+\))?: (.*)", str(error), re.DOTALL)
            yield Problem(place[1], int(place[2]), place[3]) if place else Problem(name, 1, str(error))
        titles = [entry.title["en"] for entry in self.catalogue.entries] if self.catalogue else []
        for line, number in typed_numbers(text, language, titles):
            yield Problem(name, line, f"the number {number} is typed; expected a published value, a fact of paper.yml or a formula")
        try:
            given = front(text, name)
        except CatalogueError as error:
            yield _problem(error)
            return
        for field in ("title", "description"):
            if not isinstance(given.get(field), str) or not given[field].strip():
                yield Problem(name, 1, f"front matter: {field}: found {given.get(field)!r}, expected text")
        for field in sorted(given.keys() - (_FRONT_MATTER if language != "en" else _FRONT_MATTER - {"renders"}), key=str):
            yield Problem(name, 1, f"front matter: {field}: found {given[field]!r}, expected no such field")
        if len(str(given.get("description", ""))) > DESCRIPTION:
            yield Problem(name, 1, f"description: found {len(given['description'])} characters, expected at most {DESCRIPTION}")

    def _english(self) -> Iterator[Problem]:
        name, text = self.names["en"], self.texts["en"]
        headings = markdown.headings(text)
        if not headings or (headings[0].level, headings[0].id) != (1, "top"):
            yield Problem(name, headings[0].line if headings else 1, "the page does not begin with `# Title {#top}`")
        parts = [heading for heading in headings if heading.level == 2]
        if (found := [heading.id for heading in parts]) != [*SECTIONS]:
            wrong = next((index for index, (have, want) in enumerate(zip(found, SECTIONS)) if have != want), min(len(found), len(SECTIONS)))
            line = parts[wrong].line if wrong < len(parts) else text.count("\n")
            here = f"found {found[wrong]!r}" if wrong < len(found) else "found no further one"
            there = f"expected {SECTIONS[wrong]!r}" if wrong < len(SECTIONS) else "expected none after 'bibtex'"
            yield Problem(name, line, f"h2 number {wrong + 1}: {here}, {there}; the order is {', '.join(SECTIONS)}")
        words = len(re.findall(r"[A-Za-z][\w'’-]*", re.sub(r"\]\([^)]*\)|\{[^}]*\}", "]", markdown.prose(text))))
        if not WORDS[0] <= words <= WORDS[1]:
            yield Problem(name, 1, f"the page has {words} words, expected {WORDS[0]} to {WORDS[1]:,}")

    def _translations(self) -> Iterator[Problem]:
        starts = {heading.id: heading.line for heading in markdown.headings(self.texts["en"]) if heading.level > 1} | {"top": 1}
        for language in LANGUAGES[1:]:
            if language not in self.texts:
                continue
            name, text = self.names[language], self.texts[language]
            here = {heading.id: heading.line for heading in markdown.headings(text)}
            try:
                faults = stale(self.texts["en"], text, name)
                titles = [front(self.texts[code], self.names[code]).get("title") for code in ("en", language)]
            except CatalogueError as error:
                yield _problem(error)
                continue
            if self.entry and self.entry.kind == "paper" and titles[0] != titles[1]:
                yield Problem(name, 1, f"title: found {titles[1]!r}, expected the paper's own, as in index.en.md: {titles[0]!r}")
            never = [section for section, fault in faults if "never" in fault]
            if len(never) == len(section_hashes(self.texts["en"])):
                yield Problem(name, 1, f"no section is recorded as rendered; check them, then `rundoku accept {self.slug} {language}`")
                continue
            for section, fault in faults:
                place = f"section {section!r} (index.en.md:{starts[section]})" if section in starts else f"section {section!r}"
                yield Problem(name, here.get(section, 1), f"{place} {fault}; check it, then `rundoku accept {self.slug} {language}`")

    def _code(self) -> Iterator[Problem]:
        name = self.code.relative_to(self.root).as_posix()
        if not self.code.is_file():
            yield Problem(name, 1, f"the code side of notes/{self.slug} is missing")
            return
        source = self.code.read_text(encoding="utf-8")
        try:
            code, marked = said(source, name), snippet_sections(source, name)
        except (NoteError, CatalogueError) as error:
            yield Problem(name, 1, str(error))
            return
        for line, message in code.faults:
            yield Problem(name, line, message)
        order = sorted(marked, key=lambda section: marked[section][1])
        shown = {section: shows(text) for section, (text, _, _) in marked.items()}
        for language, text in self.texts.items():
            yield from self._embedded(language, text, order, name)
            yield from self._fences(language, text, shown)
        yield from self._uses(code)
        yield from self._claims(code, name)
        yield from self._labels(code, name)

    def _embedded(self, language: str, text: str, order: list[str], name: str) -> Iterator[Problem]:
        """Every section of note.py stands in exactly one fence that runs, in the order of note.py."""
        page, suffix = self.names[language], f"{self.code.parent.name}/note.py"
        seen: dict[str, int] = {}
        latest = -1
        for fence in markdown.fences(text):
            for match in REFERENCE.finditer(fence.body) if fence.options.get("exec") else ():
                section = match[2] or ""
                if not f"/{match[1]}".endswith(f"/{suffix}") or section not in order:
                    continue
                if section in seen:
                    yield Problem(page, fence.line, f"section {section!r} stands here and at line {seen[section]}; expected it once")
                elif order.index(section) < latest:
                    yield Problem(page, fence.line, f"section {section!r} stands after {order[latest]!r}; expected the order of {name}")
                latest = max(latest, order.index(section))
                seen.setdefault(section, fence.line)
        for section in order:
            if section not in seen:
                yield Problem(page, 1, f"section {section!r} of {name} stands in no fence that runs")

    def _fences(self, language: str, text: str, shown: dict[str, dict[str, int]]) -> Iterator[Problem]:
        """A fence says of its section what a build would find: that it shows nothing, or that it prints text."""
        for fence in markdown.fences(text):
            for match in REFERENCE.finditer(fence.body) if fence.options.get("exec") else ():
                words = shown.get(match[2] or "", {}) if f"/{match[1]}".endswith(f"/{self.code.parent.name}/note.py") else {}
                drawn = next((word for word in words if word not in ("print", "publish")), None)
                if words and fence.options.get("quiet", "") not in OFF:
                    message = f"section {match[2]!r} shows something ({', '.join(words)}), and its fence says quiet"
                    yield Problem(self.names[language], fence.line, message)
                elif drawn and fence.options.get("result"):
                    message = (
                        f"section {match[2]!r} has a {drawn}, and its fence says result={fence.options['result']!r}, which is for text"
                    )
                    yield Problem(self.names[language], fence.line, message)

    def _uses(self, code: Said) -> Iterator[Problem]:
        """Values and facts that a page names are published and stated."""
        facts = self.entry.paper.facts if self.entry and self.entry.paper else None
        for language, text in self.texts.items():
            for span in markdown.code_spans(text):
                kind, _, rest = span.text.partition(" ")
                used = rest.partition(":")[0]
                if kind == "#!value" and code.publishes is not None and used not in code.publishes:
                    yield Problem(self.names[language], span.line, f"value {used!r} is not published by note.py")
                elif kind == "#!paper" and facts is not None and used not in facts:
                    yield Problem(self.names[language], span.line, f"fact {used!r} is not in paper.yml; it has {', '.join(facts)}")

    def _claims(self, code: Said, name: str) -> Iterator[Problem]:
        if not self.entry or not self.entry.paper:
            return
        stated, paper = self.entry.paper.claims, f"notes/{self.slug}/paper.yml"
        for claim, line in code.claims.items():
            if claim not in stated:
                yield Problem(name, line, f"claim {claim!r} is not in {paper}; it has {', '.join(stated) or 'none'}")
        for claim in stated.keys() - code.claims.keys():
            yield Problem(paper, 1, f"claim {claim!r} is not made by {name}; it makes {', '.join(code.claims) or 'none'}")

    def _labels(self, code: Said, name: str) -> Iterator[Problem]:
        own = f"notes/{self.slug}/labels.yml"
        try:
            labels = load_labels(self.root, self.slug)
        except CatalogueError as error:
            yield _problem(error)
            return
        for kind, shown in (("figure", code.figures), ("table", code.tables)):
            for item, line in shown.items():
                if item not in labels.names(kind):
                    expected = "caption and alt" if kind == "figure" else "caption"
                    yield Problem(name, line, f"{kind} {item!r} has no words; expected its {expected} under {kind}s in {own}")
            for item in sorted({*labels.names(kind)} - shown.keys() - code.texts):
                yield Problem(own, 1, f"{kind}s.{item}: note.py shows no {kind} of this name; it shows {', '.join(shown) or 'none'}")
        for label, line in code.labels:
            try:
                labels.translate(label, "ja")
            except CatalogueError as error:
                yield Problem(name, line, str(error).replace(f"{own}: ", "", 1) + f" in {own}")
        yield from self._captions(labels, own)

    def _captions(self, labels: Labels, own: str) -> Iterator[Problem]:
        """Captions and alternative texts are prose too."""
        for kind in ("figure", "table"):
            for item in labels.names(kind):
                for language in LANGUAGES:
                    texts = {"caption": labels.caption(kind, item, language)}
                    if kind == "figure":
                        texts["alt"] = labels.alt(item, language)
                    for part, text in texts.items():
                        place = f"{kind}s.{item}.{part}.{language}"
                        for _, number in typed_numbers(re.sub(r"\{[^{}]*\}", "", text), language):
                            yield Problem(own, 1, f"{place}: the number {number} is typed; expected a published value in braces")
                        for wrong, right in self.glossary.misuse(text, language):
                            yield Problem(own, 1, f"{place}: {wrong!r} is not said; expected {right!r} (notes/glossary.yml)")
