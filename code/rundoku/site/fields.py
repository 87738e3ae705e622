"""Reads the repository's YAML files field by field, so that every mistake in one is reported with its place."""

import datetime
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

try:  # ten times faster; absent where libyaml is
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader

LANGUAGES = ("en", "ja", "zh")


class CatalogueError(Exception):
    """A mistake in a file under `notes/`: the message names file and field, what was found and what was expected."""


class _Loader(SafeLoader):
    """YAML's safe loader, except that a name given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[object] = set()
        for key, _ in node.value:
            name = (key.tag, key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found the name {key.value!r} twice, expected it once", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class Field:
    """A value read from a YAML file, with the file and the path of names that lead to it."""

    def __init__(self, value: Any, file: str, path: str = "") -> None:
        self.value, self.file, self.path = value, file, path

    def fail(self, expected: str, found: object = None) -> NoReturn:
        """Raises the CatalogueError of this field."""
        value = self.value if found is None else found
        shown = "nothing" if value is None else str(value) if isinstance(value, datetime.date) else repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise CatalogueError(f"{self.file}: {self.path or 'the file'}: found {shown}, expected {expected}")

    def _expect(self, kind: type | tuple[type, ...], expected: str) -> Any:
        if not isinstance(self.value, kind) or (isinstance(self.value, bool) and kind is not bool):
            self.fail(expected)
        return self.value

    def child(self, name: object, value: Any) -> "Field":
        """A field inside this one."""
        path = f"{self.path}[{name}]" if isinstance(name, int) else f"{self.path}.{name}" if self.path else str(name)
        return Field(value, self.file, path)

    def mapping(self) -> dict[str, "Field"]:
        """The fields of a mapping whose names are free."""
        self._expect(dict, "a mapping")
        for name in self.value:
            if not isinstance(name, str):
                self.fail("names that are text (quote it)", found=name)
        return {name: self.child(name, value) for name, value in self.value.items()}

    def record(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, "Field"]:
        """The fields of a mapping that must have the `required` names and may have the `optional` ones."""
        fields, required = self.mapping(), tuple(required)
        known = (*required, *optional)
        for name in fields:
            if name not in known:
                self.child(name, fields[name].value).fail(f"no such field; known are {', '.join(known)}")
        for name in required:
            if name not in fields:
                self.child(name, None).fail("a value")
        return fields

    def items(self) -> list["Field"]:
        """The entries of a list."""
        return [self.child(number, value) for number, value in enumerate(self._expect(list, "a list"))]

    def text(self, expected: str = "text (quote it)") -> str:
        """Text that is not empty."""
        if not self._expect(str, expected).strip():
            self.fail("text that is not empty")
        return self.value.strip()

    def matching(self, pattern: str, expected: str) -> str:
        """A text of the given form."""
        if not re.fullmatch(pattern, self.text(f"{expected}, as text (quote it)")):
            self.fail(expected)
        return self.value.strip()

    def texts(self) -> tuple[str, ...]:
        """A list of texts, none twice."""
        found: list[str] = []
        for item in self.items():
            if item.text() in found:
                item.fail("each entry once")
            found.append(item.text())
        return tuple(found)

    def year(self) -> int:
        """A year."""
        if not 1900 <= self._expect(int, "a year") <= 2100:
            self.fail("a year")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        return self._expect(bool, "true or false")

    def date(self) -> datetime.date:
        """A day."""
        if isinstance(self.value, datetime.datetime):
            self.fail("a date such as 2026-01-31, without a time")
        return self._expect(datetime.date, "a date such as 2026-01-31, not quoted")

    def one_of(self, choices: Iterable[str], what: str) -> str:
        """A text that is among `choices`."""
        choices = tuple(choices)
        if self.text() not in choices:
            shown = ", ".join(choices) if len(choices) <= 12 else f"{', '.join(choices[:12])}, … ({len(choices)} in all)"
            self.fail(f"{what}: one of {shown}")
        return self.text()

    def some_of(self, choices: Iterable[str], what: str) -> tuple[str, ...]:
        """A list of texts that are among `choices`, none twice."""
        self.texts()
        choices = tuple(choices)
        return tuple(item.one_of(choices, what) for item in self.items())

    def languages(self, languages: Iterable[str] = LANGUAGES) -> dict[str, str]:
        """A text in each of the languages."""
        return {language: field.text() for language, field in self.record(languages).items()}


def optional_text(given: dict[str, Field], name: str) -> str:
    """The text of a field that may be missing, or nothing."""
    return given[name].text() if name in given else ""


def read(root: Path, name: str) -> Field:
    """The YAML file `name`, relative to `root`; CatalogueError if it is missing or not YAML."""
    path = root / name
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CatalogueError(f"{name}: the file: found nothing, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{name}: the file: found {error.reason} at byte {error.start}, expected UTF-8") from None
    return parse(source, name)


def parse(source: str, file: str) -> Field:
    """YAML text that stands in `file`; CatalogueError if it is none."""
    try:
        return Field(_loaded(source), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}" if mark else "the file"
        raise CatalogueError(f"{file}: {place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError comes from a date such as 2026-02-30
        raise CatalogueError(f"{file}: the file: found {error}, expected valid YAML with valid dates") from None


@lru_cache(maxsize=256)
def _loaded(source: str) -> Any:  # shared by all who read the same text: nobody changes what is loaded
    return yaml.load(source, Loader=_Loader)
