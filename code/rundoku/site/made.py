"""The files of a language's site that nobody wrote: API pages, single-file copies, notebooks."""

from collections.abc import Iterator
from pathlib import Path

from rundoku.show.imports import closure
from rundoku.show.store import Store, digests, fingerprint
from rundoku.site import export
from rundoku.site.build import commit
from rundoku.site.catalogue import Catalogue, Entry


def files(catalogue: Catalogue, language: str, root: Path, store: Store) -> Iterator[tuple[str, str]]:
    """Yield the address and content of every file that is made from the written notes' rooms."""
    for entry in catalogue.entries:
        if entry.paper:
            room = entry.room.rpartition(".")[2]
            yield f"api/{entry.slug}.md", f"---\ntitle: {entry.room}\n---\n\n::: {entry.room}\n"
            yield f"notes/{entry.slug}/{room}.py", _copy(entry, room, root, store)
            yield f"notes/{entry.slug}/{room}.ipynb", export.notebook(entry.slug, root, language)


def _copy(entry: Entry, room: str, root: Path, store: Store) -> str:
    """Return a room's single file, kept until a source that it rests on changes."""
    name = fingerprint(["copy", entry.room, commit(root)])  # the file names the commit that it was copied from
    kept = store.recall(name)
    if kept is None:
        rests_on = {*closure(entry.room, root / "code").values(), Path(export.__file__), *root.glob("notes/*/paper.yml")}
        kept = {"text": export.copy(room, root), "files": digests(rests_on, root)}
        store.keep(name, kept)
    return str(kept["text"])
