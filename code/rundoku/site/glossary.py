"""The field's terms in three languages: what they are called, what they must not be called, and what they mean."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rundoku.site.fields import LANGUAGES, CatalogueError, read

_FILE = "notes/glossary.yml"


@dataclass(frozen=True)
class Term:
    """A term: its name, its meaning and its wrong names by language; `hover` is false of everyday words."""

    id: str
    name: dict[str, str]
    means: dict[str, str]
    never: dict[str, tuple[str, ...]]
    hover: bool


@dataclass(frozen=True)
class Glossary:
    """All terms, in the order of the file."""

    terms: tuple[Term, ...]

    def definitions(self, language: str) -> dict[str, str]:
        """Meanings by name, of the terms whose meaning may pop up wherever they are written."""
        return {term.name[language]: term.means[language] for term in self.terms if term.hover}

    def occurrences(self, text: str, language: str) -> Iterator[tuple[int, int, str]]:
        """Start, end and meaning of each term's first occurrence in `text`; of terms within each other, the longest."""
        meanings = {name.casefold(): means for name, means in self.definitions(language).items()}
        seen: set[str] = set()
        for match in _pattern(tuple(meanings)).finditer(text):
            name = _name(match).casefold()
            if name not in seen:
                seen.add(name)
                yield match.start(), match.end(), meanings[name]

    def misuses(self, text: str, language: str) -> list[tuple[int, str, str]]:
        """Where in `text` a wrong name stands, the wrong name, and the right one."""
        wrong = {name.casefold(): term.name[language] for term in self.terms for name in term.never[language]}
        return [(match.start(), _name(match), wrong[_name(match).casefold()]) for match in _pattern(tuple(wrong)).finditer(text)]

    def misuse(self, text: str, language: str) -> list[tuple[str, str]]:
        """The wrong names in `text`, each with the right one."""
        return [(wrong, right) for _, wrong, right in self.misuses(text, language)]


def load_glossary(root: Path) -> Glossary:
    """Reads and checks `notes/glossary.yml`; CatalogueError at the first mistake."""
    terms = []
    names: dict[tuple[str, str], str] = {}
    for name, field in read(root, _FILE).mapping().items():
        given = field.record((*LANGUAGES, "means"), ("never", "hover"))
        never = given["never"].record((), LANGUAGES) if "never" in given else {}
        term = Term(
            id=name,
            name={language: given[language].text() for language in LANGUAGES},
            means=given["means"].languages(),
            never={language: never[language].texts() if language in never else () for language in LANGUAGES},
            hover=given["hover"].flag() if "hover" in given else True,
        )
        for language in LANGUAGES if term.hover else ():
            other = names.setdefault((language, term.name[language].casefold()), name)
            if other != name:
                given[language].fail(f"a name that {other!r} does not have in this language, or `hover: false` with both")
        terms.append(term)
    _check_never(tuple(terms))
    return Glossary(tuple(terms))


def _check_never(terms: tuple[Term, ...]) -> None:
    """A wrong name inside a right one would be found wherever the right one is written."""
    for term in terms:
        for language, wrongs in term.never.items():
            for wrong in wrongs:
                pattern = _pattern((wrong.casefold(),))
                for other in terms:
                    if pattern.search(other.name[language]):
                        place = f"{_FILE}: {term.id}.never.{language}"
                        right = f"{other.name[language]!r} ({other.id})"
                        raise CatalogueError(f"{place}: found {wrong!r}, expected nothing that {right} contains")


@lru_cache(maxsize=256)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the names, longest first: a Latin one as a whole word, also in the plural, any other wherever it stands."""
    ordered = sorted(names, key=lambda name: (-len(name), name))
    escaped = {name: re.escape(name).replace(r"\ ", r"\s+") for name in ordered}
    latin, other = ("|".join(escaped[name] for name in ordered if name.isascii() is ascii) for ascii in (True, False))
    parts = [rf"(?<![A-Za-z0-9_-])(?P<latin>{latin})s?(?![A-Za-z0-9_-])"] if latin else []
    return re.compile("|".join([*parts, f"(?P<other>{other})"] if other else parts) or r"(?!)", re.IGNORECASE)


def _name(match: re.Match[str]) -> str:
    return " ".join(match[match.lastgroup or 0].split())
