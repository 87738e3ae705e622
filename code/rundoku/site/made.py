"""The files of a language's site that nobody wrote: API pages, single-file copies, notebooks."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rundoku.show.imports import closure
from rundoku.show.store import Store, digests, fingerprint
from rundoku.site import export, runner, snippets
from rundoku.site.catalogue import Catalogue, Paper
from rundoku.site.notebook import Quote, notebook
from rundoku.site.render import cell


def files(catalogue: Catalogue, language: str, root: Path, store: Store) -> Iterator[tuple[str, str]]:
    """Yield the address and content of every file that is made from the written notes' rooms."""
    for slug, paper in catalogue.papers.items():
        entry, folder = catalogue.entry(slug), f"notes/{slug}"
        yield f"api/{slug}.md", f"---\ntitle: {entry.room}\n---\n\n::: {entry.room}\n"
        for part in copies(entry.room, slug, root):
            yield f"{folder}/{copy_name(part)}", _copy(part, root, store)
        text = notebook(slug, root, language, _quote(paper, language, root, store))
        yield f"{folder}/{slug.replace('-', '_')}.ipynb", text


def copies(room: str, slug: str, root: Path) -> tuple[str, ...]:
    """Return what of a room there is to copy, found again when a module that it rests on has changed."""
    return _copies(slug, root, fingerprint(digests(set(closure(room, root / "code").values()), root)))


@lru_cache(maxsize=512)
def _copies(slug: str, root: Path, digest: str) -> tuple[str, ...]:
    return export.copies(slug, root)


def copy_name(part: str) -> str:
    """Return the file name of a room's copy, or of a part's: "layer_norm.kernel" is layer_norm_kernel.py."""
    return part.replace(".", "_") + ".py"


def _copy(part: str, root: Path, store: Store) -> str:
    """Return a room or a part of it as one file, kept until something that it is made from or with changes."""
    name = fingerprint(["copy", part])
    kept = store.recall(name)
    if kept is None:
        sources = closure(f"rundoku.papers.{part}", root / "code") | closure("rundoku.site.export", root / "code")
        rests_on = {*sources.values(), root / "LICENSE", root / "pyproject.toml", *root.glob("notes/*/paper.yml")}
        kept = {"text": export.copy(part, root), "files": digests(rests_on, root)}
        store.keep(name, kept)
    return str(kept["text"])


def _quote(paper: Paper, language: str, root: Path, store: Store) -> Quote:
    """Return a function that gives the text of a value or a fact as the note's page shows it; a value that has not run stays its name."""
    page = root / "notes" / paper.slug / f"index.{language}.md"
    values: dict[str, int | float | str] = {}
    for session in snippets.sessions(snippets.blocks(page.read_text(encoding="utf-8"), page.name, language, root)):
        for i in range(len(session)):
            outcome = runner.recall(store, [block.code for block in session[: i + 1]])
            values |= outcome["values"] if outcome else {}

    def quote(kind: str, text: str) -> str:
        name, _, specification = text.partition(":")
        if kind == "paper":
            return paper.facts[name].text if name in paper.facts else name
        return cell(values[name], specification) if name in values else name

    return quote
