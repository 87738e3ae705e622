"""A note as a Jupyter notebook: its prose as Markdown that any viewer shows, its snippets as cells that run."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from rundoku.show.imports import closure, path_of
from rundoku.site.catalogue import Catalogue, Entry, load
from rundoku.site.lineage import lineage
from rundoku.site.markdown import Fence, fences, front_matter
from rundoku.site.snippets import NoteError, blocks, expand
from rundoku.site.words import word

Quote = Callable[[str, str], str]  # ("value" or "paper", what stands behind it) -> the text in its place

QUOTED = re.compile(r"`#!(value|paper) ([^`]+)`")
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\((?!https?:)[^()\s]*\)")  # to a place that a notebook does not have
ATTRIBUTES = re.compile(r"^(#{1,6} .*?)[ \t]*\{[^{}]*\}[ \t]*$")
BOX = re.compile(r'(?:!!!|\?\?\?\+?|===)[ \t]+(?P<kind>[\w-]*)[^"]*(?:"(?P<title>.*)")?[ \t]*')  # an admonition or a tab
INSTALL = '%pip install --quiet "{}"'
DATA = """import importlib.resources
%pip install --quiet --no-deps --require-hashes -r {importlib.resources.files("rundoku.data") / "requirements.txt"}"""


def notebook(slug: str, root: Path, language: str, quote: Quote | None = None, catalogue: Catalogue | None = None) -> str:
    """Return the note ``slug`` in a language as the text of a notebook (nbformat 4.5), the same bytes every time.

    ``quote`` gives the text of the values and facts that prose quotes; by default a fact's own text and a value's name, which the cell
    that computes it prints. Packages come from the repository that REPO_URL names, or from the folder that the notebook is opened in.
    Raises NoteError where there is no such page.
    """
    path = root / "notes" / slug / f"index.{language}.md"
    if not path.is_file():
        raise NoteError(f"there is no page {path.relative_to(root).as_posix()}")
    catalogue = catalogue or load(root)
    text, entry = path.read_text(encoding="utf-8"), catalogue.entry(slug)
    return Cells(text, path.relative_to(root).as_posix(), language, root, catalogue, entry, quote).text()


class Cells:
    """The cells of a note, in order."""

    def __init__(self, text: str, page: str, language: str, root: Path, catalogue: Catalogue, entry: Entry, quote: Quote | None):
        self.page, self.language, self.root, self.catalogue, self.entry = page, language, root, catalogue, entry
        self.quote = quote or self._name
        self.cells: list[dict] = []
        self.prose: list[str] = []
        code = {block.line: block.code for block in blocks(text, page, language, root)}
        lines, found = text.split("\n"), {fence.line: fence for fence in fences(text)}
        number, mark = (front_matter(text).count("\n") + 2 if front_matter(text) else 0), ""
        while number < len(lines):
            if fence := found.get(number + 1):
                if fence.line in code:
                    self._add("code", code[fence.line])
                else:
                    self.prose += [f"{mark}{line}".rstrip() for line in self._shown(fence)]
                number += 1 + fence.body.count("\n") + fence.closed
                continue
            line, number = lines[number], number + 1
            if box := BOX.fullmatch(line):
                mark = "> "
                self.prose += [f"> **{box['title'] or box['kind'].capitalize()}**", ">"]
                continue
            if line.strip() and not line.startswith("    "):
                mark = self._unquote()
            self.prose.append(f"{mark}{self._plain(line[4:] if mark else line)}".rstrip())
        self._flush()

    def text(self) -> str:
        """Return the notebook's JSON."""
        room = path_of(f"{self.entry.room}.note", self.root / "code")
        needs = closure(f"{self.entry.room}.note", self.root / "code") if room else {}
        data = any(name.startswith("rundoku.data.") for name in needs)
        url = os.environ.get("REPO_URL", "")
        install = INSTALL.format(f"rundoku[notes] @ git+{url}" if url else ".[notes]") + (f"\n{DATA}" if data else "")
        first = [("markdown", word(self.language, "notebook.about")), ("code", install)]
        cells = [_cell(kind, source) for kind, source in first] + self.cells
        for number, cell in enumerate(cells):
            cell["id"] = f"{self.entry.slug}-{number}"
        python = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
        content = {"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}
        return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"

    def _add(self, kind: str, source: str) -> None:
        self._flush()
        self.cells.append(_cell(kind, source))

    def _unquote(self) -> str:
        """Blank the empty lines at the end of a quotation, which has ended; return the mark of what follows."""
        for number in range(len(self.prose) - 1, -1, -1):
            if self.prose[number] != ">":
                break
            self.prose[number] = ""
        return ""

    def _flush(self) -> None:
        self._unquote()
        source = re.sub(r"\n{3,}", "\n\n", "\n".join(self.prose).strip("\n"))
        self.prose.clear()
        if source:
            self.cells.append(_cell("markdown", source))

    def _plain(self, line: str) -> str:
        line = ATTRIBUTES.sub(r"\1", QUOTED.sub(lambda match: self.quote(match[1], match[2]), line))
        return LINK.sub(r"\1", line)

    def _name(self, kind: str, what: str) -> str:
        if kind == "value":
            return f"`{what.partition(':')[0]}`"
        facts = self.entry.paper.facts if self.entry.paper else {}
        if what not in facts:
            raise NoteError(f"{self.page}: `#!paper {what}` is no fact of paper.yml; it has {', '.join(facts) or 'none'}")
        return facts[what].text

    def _shown(self, fence: Fence) -> list[str]:
        """Return the lines that stand in for a fence which does not run."""
        if fence.language != "site":
            return [f"```{fence.language}", *expand(fence.body, self.root, self.page)[0].rstrip("\n").split("\n"), "```"]
        part, paper = fence.body.strip(), self.entry.paper
        if part == "bibtex":
            entries = self.catalogue.bibtex(self.entry.slug, lineage(self.root).get(self.entry.slug, ()))
            return ["```bibtex", *entries.split("\n"), "```"] if entries else []
        if part == "next" and paper:
            return self._list(paper.next)
        if part == "lineage":
            tree = lineage(self.root)
            after = [slug for slug in tree if self.entry.slug in tree[slug]]
            shown = []
            for name, slugs in (("before", sorted(tree.get(self.entry.slug, ()))), ("after", after)):
                shown += [f"**{word(self.language, name)}**", "", *(self._list(slugs) or [word(self.language, f"{name}.none")]), ""]
            return shown
        return []  # what only the site has, such as downloads

    def _list(self, slugs: list[str] | tuple[str, ...]) -> list[str]:
        return [f"- {self.catalogue.entry(slug).title[self.language]}" for slug in slugs]


def _cell(kind: str, source: str) -> dict:
    more: dict = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.rstrip("\n").splitlines(keepends=True), **more}
