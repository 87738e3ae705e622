import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rundoku.site.export import notebook
from rundoku.site.snippets import NoteError

ROOT = Path(__file__).parents[3]

NOTE = """---
title: Small nets
description: About small nets.
---

# Small nets {#top}

A point with $E = mc^2$ and [a note](../qkv/index.md), [`code`](../../api/small-net.md) and [a site](https://example.org/).

```python exec="on" source="above" session="small" quiet="on"
--8<-- "small_net/note.py:setup"
```

## Why it matters {#why}

It has `#!value size:,` parameters, the paper's `#!paper gain`, twice `#!value size`.

!!! warning "Take care"
    Of this.

    ```python
    --8<-- "small_net/net.py:forward"
    ```

    And of that.

After it.

=== "One"
    A tab.

```python exec="on" session="small"
--8<-- "small_net/note.py:draw"
```

## Before and after {#lineage}

```site
lineage
```

## Read next {#next}

```site
next
```

```site
downloads
```

## Cite {#bibtex}

```site
bibtex
```
"""

CODE = """
# --8<-- [start:setup]
from rundoku.show import claim, figure, publish, table
from rundoku.data import words
# --8<-- [end:setup]
# --8<-- [start:draw]
with figure("curve") as axes:
    axes.plot([1, 2], [3, 4], label="curve")
publish(size=12_345)
table("sizes", columns=("Name", "Size"), rows=[("a", 1)])
claim("smaller", ours=37, holds=37 > 30, kind="exact")
# --8<-- [end:draw]
"""


@pytest.fixture
def note(site):
    site.write("notes/small-net/index.en.md", NOTE)
    for name in ("rundoku", "rundoku/papers", "rundoku/papers/small_net", "rundoku/papers/later", "rundoku/concepts", "rundoku/data"):
        site.write(f"code/{name}/__init__.py", "")
    site.write("code/rundoku/data/words.py", "")
    site.write("code/rundoku/papers/later/net.py", "from rundoku.papers.small_net import net\n")
    site.write("code/rundoku/papers/small_net/net.py", "# --8<-- [start:forward]\ndef forward(x):\n    return x\n# --8<-- [end:forward]\n")
    site.write("code/rundoku/papers/small_net/note.py", CODE)
    return site


def cells(text, kind):
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == kind]


def test_prose_and_snippets_become_cells_in_order(note, monkeypatch):
    monkeypatch.setenv("REPO_URL", "https://example.org/rundoku")
    text = notebook("small-net", note.root, "en")
    code, prose = cells(text, "code"), cells(text, "markdown")
    install, setup, draw = code
    assert install.startswith('%pip install --quiet "rundoku[notes] @ git+https://example.org/rundoku"\n') and "requirements.txt" in install
    assert setup == "from rundoku.show import claim, figure, publish, table\nfrom rundoku.data import words"
    assert draw.startswith('with figure("curve") as axes:\n    axes.plot') and draw.endswith('kind="exact")')
    assert prose[0].startswith("This notebook is made from a note")
    assert prose[1] == "# Small nets\n\nA point with $E = mc^2$ and a note, `code` and [a site](https://example.org/)."
    assert prose[2] == (
        "## Why it matters\n\nIt has `size` parameters, the paper's 37%, twice `size`.\n\n"
        "> **Take care**\n>\n> Of this.\n>\n> ```python\n> def forward(x):\n>     return x\n> ```\n>\n> And of that.\n\n"
        "After it.\n\n> **One**\n>\n> A tab."
    )
    assert prose[3] == (
        "## Before and after\n\n**What it builds on**\n\nIts code imports no other paper's.\n\n**What builds on it**\n\n- Later\n\n"
        "## Read next\n\n- Later\n\n## Cite\n\n```bibtex\n@article{a}\n```"
    )


def test_the_notebook_is_one_of_jupyters_and_the_same_every_time(note, monkeypatch):
    monkeypatch.delenv("REPO_URL", raising=False)
    text = notebook("small-net", note.root, "en")
    assert text == notebook("small-net", note.root, "en")
    content = json.loads(text)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5) and set(content) == {
        "cells",
        "metadata",
        "nbformat",
        "nbformat_minor",
    }
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) for name in ids)
    for cell in content["cells"]:
        more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | more
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    assert cells(text, "code")[0].startswith('%pip install --quiet ".[notes]"\n')


def test_values_and_facts_are_said_by_whoever_knows_them(note):
    asked = []
    text = notebook("small-net", note.root, "en", lambda kind, what: asked.append((kind, what)) or "12,345")
    assert asked == [("value", "size:,"), ("paper", "gain"), ("value", "size")]
    assert "It has 12,345 parameters, the paper's 12,345, twice 12,345." in text


def test_the_cells_run_outside_a_build_and_show_what_they_find(note):
    run = "\n".join(["import matplotlib", "matplotlib.use('Agg')", *cells(notebook("small-net", note.root, "en"), "code")[1:]])
    run = run.replace("from rundoku.data import words", "import matplotlib.pyplot as plt; plt.show = lambda: print(*plt.gca().lines)")
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "code")}, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        "Line2D(curve)" in done.stdout and "size = 12345" in done.stdout and "a | 1" in done.stdout and "smaller: 37 (exact)" in done.stdout
    )


def test_a_missing_page_and_an_unknown_fact_are_named(note):
    with pytest.raises(NoteError, match=r"no page notes/small-net/index.ja.md"):
        notebook("small-net", note.root, "ja")
    note.edit("notes/small-net/index.en.md", "#!paper gain", "#!paper loss")
    with pytest.raises(NoteError, match=r"index.en.md: `#!paper loss` is no fact of paper.yml; it has size, gain"):
        notebook("small-net", note.root, "en")


PAGES = sorted(ROOT.glob("notes/*/index.*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.suffixes[0][1:]}")
def test_every_note_is_a_notebook_whose_cells_compile(page):
    text = notebook(page.parent.name, ROOT, page.suffixes[0][1:])
    _, *code = cells(text, "code")
    assert code, "the note runs nothing"
    for source in code:
        ast.parse(source)
    prose = "\n".join(cells(text, "markdown"))
    assert not re.search(r"--8<--|#!value|#!paper|```site|^#.*\{#|^!!!", prose, re.MULTILINE)
