"""Records in each translation which English sections it renders, so that one that fell behind is named."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from rundoku.site import markdown
from rundoku.site.fields import LANGUAGES, CatalogueError, parse

_RENDERS = re.compile(r"^renders:.*\n(?:[ \t]+.*\n|\n)*", re.MULTILINE)


def section_hashes(text: str) -> dict[str, str]:
    """Eight hexadecimal digits for each section of a page; spaces at the ends of lines do not count."""
    return {name: hashlib.sha256(body.encode()).hexdigest()[:8] for name, body in markdown.sections(text).items()}


def front(text: str, file: str) -> dict:
    """A page's front matter; CatalogueError if it is not a mapping."""
    # The newline stands for the `---` above, so that an error names the line of the page.
    found = parse("\n" + markdown.front_matter(text), file).value or {}
    if not isinstance(found, dict):
        raise CatalogueError(f"{file}: front matter: found {found!r}, expected a mapping")
    return found


def stale(english: str, translation: str, file: str) -> list[tuple[str, str]]:
    """Section and fault of each section whose English has changed since the translation was accepted."""
    recorded = front(translation, file).get("renders", {})
    if not isinstance(recorded, dict):
        raise CatalogueError(f"{file}: renders: found {recorded!r}, expected the hash of each English section")
    hashes = section_hashes(english)
    faults = [(name, "has changed since this was written") for name in hashes if name in recorded and str(recorded[name]) != hashes[name]]
    faults += [(name, "has never been accepted as rendered here") for name in hashes if name not in recorded]
    return faults + [(name, "is recorded as rendered here and does not exist") for name in map(str, recorded) if name not in hashes]


def accept(root: Path, slug: str, languages: Iterable[str] = LANGUAGES[1:]) -> list[Path]:
    """Writes the hashes of the English sections into a note's translations; returns the files that changed.

    CatalogueError if a page or its front matter is missing, ValueError for a language that is no translation.
    """
    changed = []
    for language in languages:
        if language not in LANGUAGES[1:]:
            raise ValueError(f"language: found {language!r}, expected one of {', '.join(LANGUAGES[1:])}")
        names = [f"notes/{slug}/index.{code}.md" for code in (LANGUAGES[0], language)]
        for name in names:
            if not (root / name).is_file():
                raise CatalogueError(f"{name}: the file: found nothing, expected a page")
        english, translation = ((root / name).read_text(encoding="utf-8") for name in names)
        front(translation, names[1])
        before = markdown.front_matter(translation)
        if not before.strip():
            raise CatalogueError(f"{names[1]}: front matter: found nothing, expected title and description")
        hashes = "".join(f'  {name}: "{value}"\n' for name, value in section_hashes(english).items())
        after = _RENDERS.sub("", before).rstrip("\n") + f"\nrenders:\n{hashes}"
        if after != before:
            (root / names[1]).write_text(translation.replace(before, after, 1), encoding="utf-8")
            changed.append(root / names[1])
    return changed
