"""The files of a language's site that nobody wrote: API pages, single-file copies, notebooks."""

import contextlib
from collections.abc import Iterator, Set
from pathlib import Path

from rundoku.show.imports import closure
from rundoku.show.store import Store, digests, fingerprint
from rundoku.site import export, runner, snippets
from rundoku.site.build import store_of
from rundoku.site.catalogue import Catalogue, Paper
from rundoku.site.lineage import modules, room_of
from rundoku.site.notebook import Quote, notebook
from rundoku.site.render import cell


def files(catalogue: Catalogue, language: str, root: Path, store: Store, chosen: Set[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the address and content of every file that is made from the written notes' rooms, or of those beside the chosen pages."""
    library = export.Library(root)
    for slug, paper in catalogue.papers.items():
        entry, folder = catalogue.entry(slug), f"notes/{slug}"
        yield f"api/{slug}.md", f"---\ntitle: {entry.room}\n---\n\n::: {entry.room}\n"
        if chosen is not None and f"{folder}/index.md" not in chosen:
            continue
        for part, copy in _copies(entry.room, slug, root, library).items():
            yield f"{folder}/{copy_name(part)}", copy
        text = notebook(slug, root, language, _quote(paper, language, root, store), catalogue)
        yield f"{folder}/{slug.replace('-', '_')}.ipynb", text


def copies(room: str, slug: str, root: Path) -> tuple[str, ...]:
    """Return what of a room there is to copy, found again when something that it rests on has changed."""
    return tuple(_copies(room, slug, root, None))


def _copies(room: str, slug: str, root: Path, library: export.Library | None) -> dict[str, str]:
    """Return a room and its parts as files of their own, kept until something that they are made from or with changes."""
    store, name, code = store_of(root), fingerprint(["copies", room]), root / "code"
    kept = store.recall(name)
    if kept is None:
        sources = closure("rundoku.site.export", code)
        for module in modules(root, slug):
            sources |= closure(module, code)
        papers = {root / "notes" / owner / "paper.yml" for module in sources if (owner := room_of(module))}
        folder = code.joinpath(*room.split("."))
        rests_on = digests({*sources.values(), *papers, folder, root / "LICENSE", root / "pyproject.toml"}, root)
        parts = export.copies(slug, root, library)
        kept = {"copies": {part: export.copy(part, root, library) for part in parts}, "files": rests_on}
        store.keep(name, kept)
    return kept["copies"]


def copy_name(part: str) -> str:
    """Return the file name of a room's copy, or of a part's: "layer_norm.kernel" is layer_norm_kernel.py."""
    return part.replace(".", "_") + ".py"


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
        with contextlib.suppress(KeyError, ValueError):  # the page says what is wrong, and where
            return cell(values[name], specification)
        return name

    return quote
