"""Starts a note: a room with one part, its test, and the three pages, all consistent and none of it finished."""

import datetime
import json
import keyword
import re
from pathlib import Path
from string import Template
from typing import Any

from rundoku.site.catalogue import KINDS, LANGUAGES
from rundoku.site.fields import read

TEMPLATES = Path(__file__).with_name("templates")


def new(slug: str, root: Path, kind: str = "paper") -> str:
    """Make the files of a note from its line in notes/inventory.yml and return what to do next.

    Raises ValueError for a slug that cannot name a note or that the inventory lists as another kind, FileExistsError where any of the
    files, or a room of that name, is there already; then nothing is written.
    """
    entry = _entry(_checked(slug, kind), root, kind)
    module = slug.replace("-", "_")
    taken = [root / "notes" / slug, *(root / "code/rundoku" / f"{other}s" / module for other in KINDS)]
    texts = {path: _text(template, slug, module, entry) for path, template in _files(root, slug, module, kind).items()}
    for path in (*taken, *texts):
        if path.exists():
            raise FileExistsError(f"{path.relative_to(root).as_posix()} is there already; nothing was written")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return _next([path.relative_to(root).as_posix() for path in texts], slug, module, entry)


def _checked(slug: str, kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(KINDS)}")
    wanted = "lower-case words, joined by hyphens, the first beginning with a letter, such as 'layer-norm'"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        raise ValueError(f"slug: found {slug!r}, expected {wanted}")
    if keyword.iskeyword(slug) or keyword.issoftkeyword(slug):
        raise ValueError(f"slug: found {slug!r}, a word of Python itself; expected {wanted}")
    return slug


def _entry(slug: str, root: Path, kind: str) -> dict[str, Any]:
    """Return the note's line in the inventory, nothing where it has none yet.

    The whole catalogue is not read: another note may be unfinished too.
    """
    entries = read(root, "notes/inventory.yml").mapping()["papers"].value
    entry: dict[str, Any] = next((entry for entry in entries if entry["slug"] == slug), {})
    if entry.get("kind", "paper" if entry else kind) != kind:
        raise ValueError(f"kind: found {kind!r}, expected {entry.get('kind', 'paper')!r}, as notes/inventory.yml lists {slug!r}")
    return entry


def _files(root: Path, slug: str, module: str, kind: str) -> dict[Path, Path]:
    """Return the files to write, each with its template."""
    room, note = root / f"code/rundoku/{kind}s/{module}", root / "notes" / slug
    places = {"test.py": root / f"code/tests/{kind}s/test_{module}.py", "paper.yml": note / "paper.yml"}
    files = {}
    for template in (*sorted((TEMPLATES / kind).iterdir()), *sorted((TEMPLATES / "pages").iterdir())):
        name = template.name.removesuffix(".txt")
        files[places.get(name, (note if template.parent.name == "pages" else room) / name)] = template
    return files


def _text(template: Path, slug: str, module: str, entry: dict[str, Any]) -> str:
    """Return a template with this note's names filled in."""
    title = entry.get("title", slug.replace("-", " ").capitalize())
    titles = {language: entry.get(f"title_{language}", title) for language in LANGUAGES}
    year, arxiv = entry.get("year", datetime.date.today().year), entry.get("arxiv", "")
    values = {
        "slug": slug,
        "module": module,
        "Name": "".join(word.capitalize() for word in slug.split("-")),
        "docstring": _in_docstring(title) + ("" if title.endswith((".", "?", "!")) else "."),
        "reference": _in_docstring(f"{title}, {year}" + (f", https://arxiv.org/abs/{arxiv}" if arxiv else "")),
        "title": json.dumps(title, ensure_ascii=False),
        "year": year,
        "arxiv": f'arxiv: "{arxiv}"\n' if arxiv else "",
        "theme": entry.get("theme", ""),
        "paths": ", ".join(entry.get("paths", ())),
        "today": datetime.date.today().isoformat(),
    }
    for language in LANGUAGES:
        values |= {f"title_{language}": json.dumps(titles[language], ensure_ascii=False), f"heading_{language}": titles[language]}
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _next(files: list[str], slug: str, module: str, entry: dict[str, Any]) -> str:
    """Return what was made and what to do next."""
    steps = (
        []
        if entry
        else [f"List {slug!r} in notes/inventory.yml: the site covers what stands there, and takes title, year and paths from it"]
    )
    room, test = files[0].rpartition("/")[0], next(file for file in files if "/tests/" in file)
    steps += [
        f"Write the room below {room}/: what the paper introduced, importing the rest from the papers that did",
        f"Compare it in {test} with something that is not ours; give its copy an example in code/tests/site/test_copies.py",
        f"Fill notes/{slug}/paper.yml from the paper, each fact with its place",
        "Write the pages and labels.yml; `rundoku lint` names what is missing, `rundoku serve en` shows the page",
        f"Check the translations, then `rundoku accept {slug}`",
    ]
    made = "\n".join(f"  {file}" for file in files)
    return f"Made\n{made}\n\nNext\n" + "\n".join(f"  {number}. {step}" for number, step in enumerate(steps, 1))
