"""How long a site of real size takes: cold, warm, after an edit, in the preview; beside plain markdown-exec on the same pages.

``python code/tests/benchmark_build.py [--notes 85] [--work 400] [--no-plain]`` makes the site in a temporary folder, with the real
machine. Each figure is one measurement of this run on this machine: compare ratios, and only within one run. Processor seconds
are those of the command and of everything that it starts; on a machine with other work to do they tell more than the clock.
"""

import argparse
import contextlib
import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "site")]
from toy import Toy  # noqa: E402

from rundoku.show.store import ROOT  # noqa: E402

LANGUAGES = ("en", "ja", "zh")
ROOM = '''\
"""Room {number}: a small layer, as a stand-in for a paper's implementation."""

import torch
from torch import Tensor, nn
{imports}
__all__ = ["Layer{number}", "step"]


class Layer{number}(nn.Module):
    """A linear layer with a gate.

    Args:
        width: the model width C.
    """

    def __init__(self, width: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated input [B, C]."""
        return torch.sigmoid(self.gate(x)) * self.up(x)


def step(number: float) -> float:
    """Return the next number of the series."""
    return number * {number} / 7
'''
EXPERIMENTS = '''\
"""Runs of room {number}."""

import torch
from rundoku.papers.{room} import Layer{number}, step
from rundoku.show import experiment


@experiment
def sweep(*, seed: int, rounds: int) -> dict:
    """Train for some rounds."""
    torch.manual_seed(seed)
    layer, x = Layer{number}(64), torch.randn(256, 64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(rounds):
        loss = (layer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {{"losses": losses[:: max(1, rounds // 20)], "first": losses[0], "last": losses[-1], "next": step(2.0)}}
'''
NOTE = """\
# --8<-- [start:setup]
from rundoku.papers.{room} import experiments
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:run]
found = experiments.sweep(seed={number}, rounds={rounds})
publish(first=found.first, last=found.last, ratio=found.first / found.last)
print("After the run the loss is `#!value last:.3f`.")
# --8<-- [end:run]

# --8<-- [start:draw]
with figure("loss") as axes:
    axes.plot(found.losses, label="gated layer")
    axes.plot([2 * loss for loss in found.losses], label="twice")
    axes.set_xlabel("step")
    axes.legend()
# --8<-- [end:draw]

# --8<-- [start:claims]
table("losses", columns=("step", "loss"), rows=list(enumerate(found.losses))[:8], formats=("d", ".3f"))
claim("falls", ours=found.first / found.last, holds=found.last < found.first, kind="reproduced", format=".2f")
# --8<-- [end:claims]
"""
LABELS = """\
figures:
  loss:
    caption: {en: "From {first:.2f} to {last:.2f}", ja: "{first:.2f} から {last:.2f} へ", zh: "从 {first:.2f} 到 {last:.2f}"}
    alt: {en: Falling, ja: 下降, zh: 下降}
tables:
  losses: {caption: {en: Losses, ja: 損失, zh: 损失}}
labels:
  step: {ja: 歩数, zh: 步数}
  loss: {ja: 損失, zh: 损失}
  twice: {ja: 二倍, zh: 两倍}
  gated layer: {ja: ゲート付き層, zh: 门控层}
"""
PROSE = {
    "en": "The layer multiplies each input by a gate, so that what the gate closes never reaches the sum; the loss fell from "
    "`#!value first:.3f` to `#!value last:.3f`, a factor of `#!value ratio:.1f`, where the paper has `#!paper factor`. "
    "Let $x \\in \\mathbb{R}^d$ and $W_g$ the gate.",
    "ja": "この層は入力にゲートを掛けるため、閉じた成分は和に届かない。損失は `#!value first:.3f` から `#!value last:.3f` へ、"
    "`#!value ratio:.1f` 分の一に下がった。論文では `#!paper factor` である。ここで $x \\in \\mathbb{R}^d$ とし、$W_g$ をゲートとする。",
    "zh": "该层将输入乘以门控，被关闭的分量不会进入求和。损失从 `#!value first:.3f` 降到 `#!value last:.3f`，"
    "降为原来的 `#!value ratio:.1f` 分之一；论文给出的是 `#!paper factor`。设 $x \\in \\mathbb{R}^d$，$W_g$ 为门控。",
}
PARAGRAPH = """\
{prose}

$$
\\mathrm{{Attention}}(Q, K, V) = \\mathrm{{softmax}}\\left(\\frac{{Q K^\\top}}{{\\sqrt{{d_k}}}}\\right) V
$$

- **First.** {prose}
- *Second.* See [the room](../../api/{slug}.md) and [another note](../{other}/index.md).[^{mark}]

[^{mark}]: {prose}

"""
FENCES = (
    '```python exec="on" source="above" session="{room}" quiet="on"\n--8<-- "{room}/note.py:setup"\n```\n',
    '```python exec="on" source="above" session="{room}"\n--8<-- "{room}/note.py:run"\n```\n',
    '```python exec="on" source="above" session="{room}"\n--8<-- "{room}/note.py:draw"\n```\n',
    '```python exec="on" session="{room}"\n--8<-- "{room}/note.py:claims"\n```\n',
)


class Site(Toy):
    """A site of real size."""

    def __init__(self, root: Path, notes: int, rounds: int) -> None:
        super().__init__(root)
        inventory = yaml.safe_load((ROOT / "notes" / "inventory.yml").read_text(encoding="utf-8"))
        tag = next(iter(yaml.safe_load((ROOT / "notes" / "tags.yml").read_text(encoding="utf-8"))))
        entries = [entry for entry in inventory["papers"] if entry.get("kind", "paper") == "paper"][:notes]
        shutil.rmtree(self.room)
        shutil.rmtree(self.folder)
        for page in ROOT.glob("docs/*.md"):
            if page.name.split(".")[0] in ("index", "how-it-works", "add-a-note"):  # these speak of notes that this site has not
                (root / "docs" / page.name).write_text("# A page {#top}\n\n## Claims {#claims}\n", encoding="utf-8")
            else:
                shutil.copy(page, root / "docs")
        self.slugs = [entry["slug"] for entry in entries]
        for number, entry in enumerate(entries, 1):
            self._add(number, entry, tag, rounds)

    def _add(self, number: int, entry: dict, tag: str, rounds: int) -> None:
        slug, other = entry["slug"], self.slugs[number % len(self.slugs)]
        room, folder = slug.replace("-", "_"), self.root / "notes" / slug
        home = self.root / "code" / "rundoku" / "papers" / room
        for made in (home, folder):
            made.mkdir(parents=True)
        earlier = self.slugs[max(0, number - 5) : number - 1]
        imports = "".join(
            f"from rundoku.papers.{name.replace('-', '_')} import step as step_{i}  # noqa: F401\n" for i, name in enumerate(earlier[:2])
        )
        for name, text in (("__init__.py", ROOM), ("experiments.py", EXPERIMENTS), ("note.py", NOTE)):
            (home / name).write_text(text.format(number=number, room=room, imports=imports, rounds=rounds), encoding="utf-8")
        paper = {
            "kind": "paper", "title": entry["title"], "authors": ["A. Author"], "year": entry["year"], "venue": "Journal",
            "themes": [entry["theme"]], "tags": [tag], "paths": entry["paths"], "tagline": dict.fromkeys(LANGUAGES, f"Room {number}"),
            "next": [other], "facts": {"factor": {"value": 2, "where": "§1"}}, "bibtex": f"@misc{{{room}}}\n",
            "claims": {"falls": {"fact": "factor", "says": dict.fromkeys(LANGUAGES, "It falls.")}},
        }  # fmt: skip
        if "arxiv" in entry:
            paper["arxiv"] = entry["arxiv"]
        text = yaml.safe_dump(paper, allow_unicode=True) + "written: 2026-01-01\nrevised: 2026-01-02\n"
        (folder / "paper.yml").write_text(text, encoding="utf-8")
        (folder / "labels.yml").write_text(LABELS, encoding="utf-8")
        for language in LANGUAGES:
            parts = [f'---\ntitle: "{slug}"\ndescription: "{slug}"\n---\n\n# {slug} {{#top}}\n\n']
            for i in range(14):
                fence = FENCES[i // 3].format(room=room) if i % 3 == 1 and i // 3 < len(FENCES) else ""
                paragraph = PARAGRAPH.format(prose=PROSE[language], slug=slug, other=other, mark=f"n{i}")
                # A value can be quoted below the snippet that publishes it.
                paragraph = paragraph if i > 4 else re.sub(r"`#![^`]*`", "some", paragraph)
                parts.append(f"## Part {i} {{#part-{i}}}\n\n{fence}\n{paragraph}")
            parts += [f"## {name} {{#{name}}}\n\n```site\n{name}\n```\n\n" for name in ("lineage", "next", "bibtex", "downloads")]
            (folder / f"index.{language}.md").write_text("".join(parts), encoding="utf-8")


class Cost(NamedTuple):
    """What a command took."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:7.1f} s {self.cpu:7.1f} s"


def measured(*commands: tuple[list[str], dict[str, str]], folder: Path) -> Cost:
    """Return what commands cost that run side by side, each with its environment; all must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, cwd=folder, env=given, stdout=pipe, stderr=subprocess.STDOUT, text=True) for command, given in commands
    ]
    for process in running:
        told, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args} failed:\n{told[-4000:]}")
    wall = time.perf_counter() - start
    with contextlib.suppress(ChildProcessError):  # what a command has left behind comes to us, and its time with it
        while True:
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def alone(site: Site) -> float:
    """Return the seconds that the snippets themselves take, one after another in one process that has everything imported."""
    code = """
import sys, time, tempfile, os
os.environ["RUNDOKU_STORE"] = tempfile.mkdtemp()
import torch, matplotlib.pyplot
torch.set_num_threads(1)
from rundoku.show import record
from rundoku.show.store import ROOT
from rundoku.site import build
seen = {session[0].page.rpartition("/")[0]: session for session in build.wanted(ROOT) if session[0].language == "en"}
start = time.perf_counter()
for session in seen.values():
    names = {}
    for block in session:
        record.listen(record.Recording())
        sys.stdout = open(os.devnull, "w")
        exec(compile(block.code, "<block>", "exec"), names)
        sys.stdout = sys.__stdout__
print(time.perf_counter() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=site.root, env=site.environment(), capture_output=True, text=True, check=True)
    return float(done.stdout)


PLAIN = """\
site_name: plain
docs_dir: plain-{language}
site_dir: plain-site/{language}
theme: {{name: material, language: {language}, font: false}}
plugins: [search, markdown-exec]
markdown_extensions:
  - abbr
  - admonition
  - attr_list
  - md_in_html
  - footnotes
  - tables
  - toc: {{permalink: "#"}}
  - pymdownx.arithmatex: {{generic: true}}
  - pymdownx.highlight: {{anchor_linenums: true}}
  - pymdownx.inlinehilite
  - pymdownx.snippets: {{base_path: [code/rundoku/papers], check_paths: true, dedent_subsections: true}}
  - pymdownx.superfences
"""


def plain(site: Site, languages: tuple[str, ...]) -> Cost:
    """Return the cost of the same pages with markdown-exec's own runner and Material alone, the languages side by side, nothing kept."""
    for language in languages:
        docs = site.root / f"plain-{language}"
        for slug in site.slugs:
            (docs / "notes" / slug).mkdir(parents=True, exist_ok=True)
            text = (site.root / "notes" / slug / f"index.{language}.md").read_text(encoding="utf-8")
            (docs / "notes" / slug / "index.md").write_text(re.sub(r"```site\n.*\n```|\[the room\]\(.*?\)", "", text), encoding="utf-8")
        (docs / "index.md").write_text("# Home\n", encoding="utf-8")
        (site.root / f"plain-{language}.yml").write_text(PLAIN.format(language=language), encoding="utf-8")
    commands = []
    for language in languages:
        given = site.environment(
            RUNDOKU_STORE=tempfile.mkdtemp(dir=site.root), MPLBACKEND="Agg", NO_MKDOCS_2_WARNING="1", DISABLE_MKDOCS_2_WARNING="true"
        )
        commands.append(([sys.executable, "-m", "mkdocs", "build", "-q", "-f", f"plain-{language}.yml"], given))
    return measured(*commands, folder=site.root)


def preview(site: Site) -> list[float]:
    """Return the seconds from saving a note to reading it from ``rundoku serve ja``, for three edits."""
    port = 8000 + os.getpid() % 1000
    server = subprocess.Popen(
        [sys.executable, "-m", "rundoku", "serve", "ja", "--address", f"127.0.0.1:{port}"],
        cwd=site.root, env=site.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    slug = site.slugs[len(site.slugs) // 2]

    def shows(text: str) -> bool:
        for path in (f"notes/{slug}/", f"ja/notes/{slug}/"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                    return text in answer.read().decode()
            except (urllib.error.URLError, OSError):
                continue
        return False

    def until(text: str) -> float:
        start = time.perf_counter()
        while not shows(text):
            if time.perf_counter() - start > 300 or server.poll() is not None:
                raise SystemExit(f"the preview does not show {text!r}")
            time.sleep(0.05)
        return time.perf_counter() - start

    try:
        until("Part 1")
        seconds = []
        for number in range(3):
            page = site.root / "notes" / slug / "index.ja.md"
            page.write_text(page.read_text(encoding="utf-8").replace("## Part 1", f"Edited {number}.\n\n## Part 1", 1), encoding="utf-8")
            seconds.append(until(f"Edited {number}."))
            time.sleep(1)
        return seconds
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--notes", type=int, default=85)
    parser.add_argument("--work", type=int, default=400, help="training steps behind each note's figure")
    parser.add_argument("--no-plain", action="store_true", help="leave plain markdown-exec out")
    parser.add_argument("--keep", type=Path, help="make the site here, and leave it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(given.keep or Path(folder) / "site", given.notes, given.work)
        cores, snippets = len(os.sched_getaffinity(0)), alone(site)
        lines = len((site.root / "notes" / site.slugs[0] / "index.en.md").read_text(encoding="utf-8").splitlines())
        print(f"{len(site.slugs)} notes in {len(LANGUAGES)} languages, {lines} lines each, {len(FENCES)} snippets each; {cores} cores")
        print(f"the snippets alone, one after another: {snippets:.1f} s")

        def rundoku(command: str) -> Cost:
            return measured(([sys.executable, "-m", "rundoku", command], site.environment()), folder=site.root)

        runs = rundoku("run")
        print(f"{'run everything':30} {runs}   = {runs.wall / (snippets / cores):.2f} × snippets / cores", flush=True)
        shutil.rmtree(site.root / ".cache")
        rows = [("cold", rundoku("build")), ("warm", rundoku("build"))]
        page = site.root / "notes" / site.slugs[3] / "index.ja.md"
        page.write_text(page.read_text(encoding="utf-8").replace("## Part 1 ", "Edited.\n\n## Part 1 ", 1), encoding="utf-8")
        rows.append(("one page edited", rundoku("build")))
        source = site.root / "code" / "rundoku" / "papers" / site.slugs[3].replace("-", "_") / "experiments.py"
        source.write_text(source.read_text(encoding="utf-8").replace("lr=0.1", "lr=0.2"), encoding="utf-8")
        rows.append(("one experiment edited", rundoku("build")))
        shutil.rmtree(site.root / "site")
        rows.append(("every page, from kept results", rundoku("build")))
        beside = {} if given.no_plain else {"cold": plain(site, LANGUAGES), "one page edited": plain(site, ("ja",))}
        for name, cost in rows:
            other = beside.get(name, beside.get("cold"))
            print(f"{name:30} {cost}" + (f"   plain {other}   = {other.wall / cost.wall:5.1f} ×" if other else ""), flush=True)
        print(f"{'an edit in the preview':30} {' '.join(f'{seconds:7.1f}' for seconds in preview(site))} s")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    main()
