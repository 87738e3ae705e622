"""Finds the snippets that pages embed: which code stands where, and which lines of the repository it came from."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rundoku.site.markdown import fences

BASES = ("code/rundoku/papers", "code/rundoku/concepts", "code/rundoku")  # where mkdocs.yml lets snippets come from, too
REFERENCE = re.compile(r'^( *)--8<-- "([^":]+)(?::([\w-]+))?"[ \t]*$', re.M)
MARKER = re.compile(r"^.*--8<-- \[(start|end):([\w-]+)\].*$\n?", re.M)
PAGE = re.compile(r"\.(en|ja|zh)\.md$")  # a page that is there in several languages
OFF = ("", "0", "no", "off", "false")


class NoteError(Exception):
    """Something in a page is wrong; the message names page, line and what was expected."""


@dataclass(frozen=True)
class Origin:
    """The lines of the repository that a snippet shows: ``first`` and ``last`` count from 1, markers excluded."""

    path: str
    section: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.path}:{self.section}" if self.section else self.path


@dataclass(frozen=True)
class Block:
    """One fence that runs: its code with snippets expanded, its options, and where it stands."""

    code: str
    options: dict[str, str]
    page: str
    language: str
    line: int
    origins: tuple[Origin, ...]

    @property
    def quiet(self) -> bool:
        """Whether the fence says that nothing is shown."""
        return self.options.get("quiet", "") not in OFF

    def place(self) -> str:
        """Return the place as an error message names it."""
        section = ", ".join(map(str, self.origins))
        session = self.options.get("session", "")
        details = [self.language, *([f"section {section}"] if section else []), *([f"session {session}"] if session else [])]
        return f"{self.page}:{self.line} ({', '.join(details)})"


@cache
def sections(text: str, path: str) -> dict[str, tuple[str, int, int]]:
    """Return the marked sections of a file: text without markers, first line and last line. Raises NoteError for unpaired markers."""
    lines = text.splitlines(keepends=True)
    open_at: dict[str, int] = {}
    found: dict[str, tuple[str, int, int]] = {}
    for number, line in enumerate(lines, 1):
        marker = MARKER.match(line)
        if marker and marker[1] == "start":
            open_at[marker[2]] = number
        elif marker:
            if marker[2] not in open_at:
                raise NoteError(f"{path}:{number}: section {marker[2]!r} ends and has not started")
            first = open_at.pop(marker[2])
            body = "".join(entry for entry in lines[first : number - 1] if not MARKER.match(entry))
            found[marker[2]] = (textwrap.dedent(body), first + 1, number - 1)
    if open_at:
        name, number = next(iter(open_at.items()))
        raise NoteError(f"{path}:{number}: section {name!r} has no end")
    return found


@cache
def _read(path: Path, mtime_ns: int) -> str:
    return path.read_text(encoding="utf-8")


def expand(body: str, root: Path, where: str) -> tuple[str, tuple[Origin, ...]]:
    """Replace the references to snippets in a fence's body. Raises NoteError for a file or a section that is missing."""
    origins: list[Origin] = []

    def fill(match: re.Match[str]) -> str:
        indent, name, section = match[1], match[2], match[3] or ""
        path = next((root / base / name for base in BASES if (root / base / name).is_file()), None)
        if path is None:
            raise NoteError(f"{where}: snippet file {name!r} is missing; looked below {', '.join(BASES)}")
        relative = path.relative_to(root).as_posix()
        text = _read(path, path.stat().st_mtime_ns)
        if section:
            known = sections(text, relative)
            if section not in known:
                raise NoteError(f"{where}: snippet section {section!r} is missing in {relative}; it has {', '.join(known) or 'none'}")
            part, first, last = known[section]
        else:
            part, first, last = MARKER.sub("", text), 1, text.count("\n")
        origins.append(Origin(relative, section, first, last))
        return textwrap.indent(part.rstrip("\n"), indent)

    return REFERENCE.sub(fill, body), tuple(origins)


def blocks(text: str, page: str, language: str, root: Path) -> list[Block]:
    """Return the Python fences of a page that run, in order.

    Raises NoteError for a snippet that is missing, also in a fence that does not run.
    """
    found = []
    for fence in fences(text):
        where = f"{page}:{fence.line} ({language})"
        code, origins = expand(fence.body, root, where)
        if fence.language in ("python", "py") and fence.options.get("exec", "") not in OFF:
            found.append(Block(code, dict(fence.options), page, language, fence.line, origins))
    return found


def sessions(found: list[Block]) -> Iterator[list[Block]]:
    """Yield the sessions of a page: blocks that share a namespace; a block without a session's name is one alone."""
    named: dict[str, list[Block]] = {}
    for block in found:
        name = block.options.get("session", "")
        if name:
            named.setdefault(name, []).append(block)
        else:
            yield [block]
    yield from named.values()


def complain(block: Block, outcome: dict[str, Any]) -> str:
    """Return what is wrong with a snippet's outcome, '' where nothing is."""
    if outcome["error"] is not None:
        return f"the snippet failed: {outcome['error']}"
    if outcome["left_out"]:
        return ""
    shows = bool(outcome["output"].strip() or outcome["items"] or outcome["values"])
    if not shows and not block.quiet:
        return 'the snippet shows nothing: expected it to print, show, publish or claim something, or quiet="on" in its fence'
    if shows and block.quiet:
        return 'the snippet shows something, and its fence says quiet="on"'
    if outcome["items"] and block.options.get("result"):
        given = block.options["result"]
        return f"result={given!r} sets printed text as code, and the snippet shows a figure, table or claim: give it a block of its own"
    return ""


def pages(root: Path) -> list[tuple[Path, str]]:
    """Return the pages that may run code, with their language, in order."""
    found = [*root.glob("notes/*/index.*.md"), *root.glob("docs/**/*.md")]
    return sorted((path, match[1]) for path in found if (match := PAGE.search(path.name)))
