"""A small site with the real machine: one room, one note in three languages, one home page."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from rundoku.show.store import ROOT

NOTE_CODE = """\
# --8<-- [start:setup]
from rundoku.papers.lora import experiments
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:count]
found = experiments.square(numbers=(1, 2, 3), seed=0)
publish(total=sum(found.squares))
print("The sum is here.")
# --8<-- [end:count]

# --8<-- [start:draw]
with figure("squares") as axes:
    axes.plot(found.numbers, found.squares, label="square")
    axes.set_xlabel("number")
table("squares", columns=("number", "square"), rows=list(zip(found.numbers, found.squares)), formats=("d", ",d"))
# --8<-- [end:draw]

# --8<-- [start:claims]
claim("fourteen", ours=sum(found.squares), holds=sum(found.squares) == 14, kind="exact")
# --8<-- [end:claims]
"""

EXPERIMENTS = '''\
from rundoku.papers.lora import square as one
from rundoku.show import experiment


@experiment
def square(*, numbers, seed):
    """Square numbers."""
    return {"numbers": numbers, "squares": [one(number) for number in numbers]}
'''

ROOM = (
    '"""A room."""\n\n__all__ = ["square"]\n\n\ndef square(number: int) -> int:\n    """Return the square."""\n    return number * number\n'
)

PAPER = """\
kind: paper
title: "LoRA: Low-Rank Adaptation of Large Language Models"
authors: [A. Author]
year: 2021
venue: ICLR 2022
arxiv: "2106.09685"
themes: [adaptation]
tags: [%s]
paths: [A, E]
tagline: {en: Squares., ja: 平方。, zh: 平方。}
written: 2026-11-01
revised: 2026-11-02
facts:
  sum: {value: 14, where: "§1"}
claims:
  fourteen: {fact: sum, says: {en: The sum is fourteen., ja: 和は十四である。, zh: 和为十四。}}
next: [qlora]
bibtex: |
  @misc{lora, title={LoRA}}
"""

LABELS = """\
figures:
  squares:
    caption: {en: "Squares up to {total:,}", ja: "{total:,} までの平方", zh: "至 {total:,} 的平方"}
    alt: {en: A rising curve, ja: 右上がりの曲線, zh: 上升的曲线}
tables:
  squares: {caption: {en: Squares, ja: 平方, zh: 平方}}
labels:
  number: {ja: 数, zh: 数字}
  square: {ja: 平方, zh: 平方数}
"""

WORDS = {
    "en": ("Squares", "The total is", "Lines before", "A block", "Claims"),
    "ja": ("平方", "合計は", "前の行", "ブロック", "主張"),
    "zh": ("平方", "总和为", "前面的行", "代码块", "论断"),
}


def note(language: str) -> str:
    """Return the note's page in a language."""
    title, total, lines, block, claims = WORDS[language]
    return f"""\
---
title: {title}
description: {title}
---

# {title} {{#top}}

{total} `#!value total:,`, `#!paper sum`.

## {lines} {{#idea}}

$$x = \\frac{{a}}{{b}}$$

## {block} {{#code}}

```python exec="on" source="above" session="lora" quiet="on"
--8<-- "lora/note.py:setup"
```

```python exec="on" source="above" session="lora"
--8<-- "lora/note.py:count"
```

```python exec="on" session="lora"
--8<-- "lora/note.py:draw"
```

## {claims} {{#claims}}

```python exec="on" session="lora"
--8<-- "lora/note.py:claims"
```
"""


class Toy:
    """The small site in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        machine = root / "code" / "rundoku"
        shutil.copytree(ROOT / "code" / "rundoku", machine, ignore=shutil.ignore_patterns("__pycache__", "papers", "concepts"))
        self.room, self.folder = machine / "papers" / "lora", root / "notes" / "lora"
        for folder in (self.room, machine / "concepts", self.folder, root / "docs"):
            folder.mkdir(parents=True)
        (machine / "papers" / "__init__.py").touch()
        (machine / "concepts" / "__init__.py").touch()
        for name, text in (("__init__.py", ROOM), ("experiments.py", EXPERIMENTS), ("note.py", NOTE_CODE)):
            (self.room / name).write_text(text, encoding="utf-8")
        for shared in ("inventory.yml", "tags.yml", "labels.yml", "glossary.yml"):
            shutil.copy(ROOT / "notes" / shared, root / "notes" / shared)
        tag = next(iter(yaml.safe_load((root / "notes" / "tags.yml").read_text(encoding="utf-8"))))
        (self.folder / "paper.yml").write_text(PAPER % tag, encoding="utf-8")
        (self.folder / "labels.yml").write_text(LABELS, encoding="utf-8")
        for language in WORDS:
            self.page(language).write_text(note(language), encoding="utf-8")
            (root / "docs" / f"index.{language}.md").write_text("# Home {#top}\n\n[lora](notes/lora/index.md)\n", encoding="utf-8")
        for part in ("overrides", "assets"):
            shutil.copytree(ROOT / "docs" / part, root / "docs" / part)
        configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
        nav = "nav:\n  - nav.home: index.md\n  - nav.notes: []\n\n"
        (root / "mkdocs.yml").write_text(re.sub(r"^nav:\n(?:[ #].*\n|\n)*", nav, configuration, flags=re.M), encoding="utf-8")

    def page(self, language: str) -> Path:
        """Return the note's page in a language."""
        return self.folder / f"index.{language}.md"

    def edit(self, path: Path, old: str, new: str) -> None:
        """Replace a text that the file holds."""
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {path}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def snippets(self, **sections: str) -> None:
        """Let the note show these sections, each a session of its own, and nothing else."""
        marked = "".join(f"# --8<-- [start:{name}]\n{code.strip()}\n# --8<-- [end:{name}]\n\n" for name, code in sections.items())
        (self.room / "note.py").write_text(marked, encoding="utf-8")
        fences = "".join(f'```python exec="on" session="{name}"\n--8<-- "lora/note.py:{name}"\n```\n\n' for name in sections)
        for language, (title, *_) in WORDS.items():
            self.page(language).write_text(f"# {title} {{#top}}\n\n{fences}", encoding="utf-8")

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment in which this site's own machine runs."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RUNDOKU_")}
        return own | {"PYTHONPATH": str(self.root / "code"), "SOURCE_DATE_EPOCH": "1700000000", **more}

    def rundoku(self, *arguments: str, within: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command ``rundoku`` on this site, ``within`` another command (``taskset -c 0``)."""
        command = [*within, sys.executable, "-m", "rundoku", *arguments]
        given = self.environment(**environment)
        return subprocess.run(command, cwd=self.root, env=given, capture_output=True, text=True, timeout=300, check=False)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command ``rundoku`` on this site."""
        command = [sys.executable, "-m", "rundoku", *arguments]
        given, pipe = self.environment(**environment), subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env=given, stdout=pipe, stderr=pipe, text=True)

    def stored(self) -> dict[str, dict[str, Any]]:
        """Return what the store holds, by the name of its file."""
        files = sorted((self.root / ".cache" / "rundoku").rglob("*.json"))
        return {file.name: json.loads(file.read_text(encoding="utf-8"))["payload"] for file in files}

    def files(self, folder: str = "site") -> dict[str, bytes]:
        """Return every file below a folder of the site."""
        top = self.root / folder
        return {path.relative_to(top).as_posix(): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}

    def python(self, code: str) -> str:
        """Run Python with this site's rooms and return what it prints."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RUNDOKU_")}
        own["PYTHONPATH"] = str(self.root / "code")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.root, env=own, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def html(self, language: str, page: str = "notes/lora/index.html") -> str:
        """Return a built page."""
        return (self.root / "site" / language / page).read_text(encoding="utf-8")


class Shell:
    """One process that runs ``rundoku`` commands on a site one after another, as a preview does: what it keeps in memory is tried, too."""

    LOOP = "import json, sys; from rundoku.__main__ import main\nfor line in sys.stdin: print('status', main(json.loads(line)), flush=True)"

    def __init__(self, toy: Toy, **environment: str) -> None:
        command, pipe, given = [sys.executable, "-c", self.LOOP], subprocess.PIPE, toy.environment(**environment)
        self.process = subprocess.Popen(command, cwd=toy.root, env=given, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run a command; return its status and all that it wrote."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        told = []
        for line in self.process.stdout:
            if line.startswith("status "):
                return int(line.split()[1]), "".join(told)
            told.append(line)
        raise AssertionError("".join(told))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
