"""What an edit touches: the pages that are made again while every other stays, and how they join the site as it stands."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mkdocs.structure.files import File

from rundoku.show.store import file_digest, fingerprint
from rundoku.site.lineage import room_of
from rundoku.site.markdown import fences, front_matter, headings
from rundoku.site.snippets import PAGE

TOPS = ("docs", "notes", "code/rundoku", "mkdocs.yml")
NOTE = re.compile(r"notes/([\w-]+)/index\.(?:\w+\.)?md")
TO_A_PART = re.compile(r"\]\(\S*#[^)]*\)|^ *\[[^\]]+\]:.*#.*$|\bid=\S+|\{[^}]*#[^}]*\}", re.M)


class Chosen(File):
    """A file whose page is made again only where it is among the chosen ones; None chooses all."""

    chosen: frozenset[str] | None = None

    def is_modified(self) -> bool:
        """Whether the file is to be made again."""
        if self.is_documentation_page():
            return self.chosen is None or self.src_uri in self.chosen
        return super().is_modified()


def sources(root: Path) -> dict[str, str]:
    """Return the digest of every file that pages are made from, by its path."""
    found = {}
    for top in TOPS:
        for path in [root / top, *(root / top).rglob("*")]:
            if path.suffix != ".pyc" and path.is_file():
                found[path.relative_to(root).as_posix()] = file_digest(path) or ""
    return found


def read_by(language: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return those files that a language is made from: of a page that is there in several languages, its own."""
    others = {name for name in files if (match := PAGE.search(name)) and match[1] != language}
    unread = {name for name in others if PAGE.sub(f".{language}.md", name) in files}
    return {name: digest for name, digest in files.items() if name not in unread}


def skeleton(text: str) -> str:
    """Return a digest of all of a note's text that any page but its own, or any check of links, can depend on."""
    code = [[fence.info, fence.body] for fence in fences(text)]
    ids = [heading.id or heading.title for heading in headings(text)]
    return fingerprint([front_matter(text), code, ids, TO_A_PART.findall(text)])


def notes(root: Path, files: Mapping[str, str], before: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return digest and skeleton of every note's page among the files; ``before`` has those of the last build."""

    def of(name: str, digest: str) -> list[str]:
        known = before.get(name, [""])
        return known if known[0] == digest else [digest, skeleton((root / name).read_text(encoding="utf-8"))]

    return {name: of(name, digest) for name, digest in files.items() if NOTE.fullmatch(name)}


def reworded(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the pages of which only the wording has changed, where that is all that has changed; none where it is not."""
    changed = {name for name in now if before.get(name) != now[name]}
    same = before.keys() == now.keys() and all(before[name][1] == now[name][1] for name in changed)
    return frozenset(PAGE.sub(".md", name) for name in changed) if same else frozenset()


def join(site: Path, made: Path, whole: Path, pages: frozenset[str]) -> bool:
    """Put together ``whole``: ``site`` as it stands, but for these pages, which are taken from ``made``. Return whether they fitted."""
    shutil.copytree(site, whole, copy_function=_link)
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    new = json.loads((made / "search" / "search_index.json").read_text(encoding="utf-8"))
    for page in pages:
        folder = page.removesuffix("index.md")
        for file in [*(made / folder).glob("*.html"), *(made / folder).glob("*.ipynb")]:
            file.replace(whole / folder / file.name)
        places = [i for i, entry in enumerate(index["docs"]) if _is_of(folder, entry)]
        found = [entry for entry in new["docs"] if _is_of(folder, entry)]
        if not places or not found or new["config"] != index["config"]:
            return False
        index["docs"][places[0] : places[-1] + 1] = found
    merged = made / "search_index.json"
    merged.write_text(json.dumps(index, separators=(",", ":")), encoding="utf-8")
    merged.replace(whole / "search" / "search_index.json")
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # nothing is written into these files: a new one takes the place of an old one
    except OSError:
        shutil.copy2(source, target)


def _is_of(folder: str, entry: Mapping[str, str]) -> bool:
    return entry["location"].partition("#")[0] == folder


def touched(before: Mapping[str, str], now: Mapping[str, str]) -> frozenset[str] | None:
    """Return the pages that a preview makes again after these changes; None for all of them.

    A note is made again with its folder and its room; what other pages show of it (the ledger, say) waits for the next whole build.
    """
    pages: set[str] = set()
    for name in {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}:
        note = re.match(r"notes/([\w-]+)/(?!paper\.yml)", name)
        page = re.fullmatch(r"docs/((?!overrides/).*\.md)", PAGE.sub(".md", name))
        room = room_of(name.removeprefix("code/").removesuffix(".py").replace("/", ".")) if name.startswith("code/") else None
        if not (note or page or room) or (name in before) != (name in now):
            return None
        pages |= {f"notes/{slug}/index.md" for slug in (note and note[1], room) if slug} | ({page[1]} if page else set())
        pages |= {f"api/{room}.md"} if room else set()
    return frozenset(pages)
