import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rundoku.site import markdown
from rundoku.site.lint import lint
from rundoku.site.scaffold import new
from rundoku.site.snippets import blocks, sections

ROOT = Path(__file__).parents[3]
SECTIONS = ["why", "idea", "code", "shows", "pitfalls", "claims", "lineage", "next", "bibtex"]


@pytest.fixture
def root(site):
    """A repository with this package's source beside the made-up notes."""
    shutil.copytree(ROOT / "code/rundoku", site.root / "code/rundoku", ignore=shutil.ignore_patterns("__pycache__", "papers", "concepts"))
    for kind in ("papers", "concepts"):
        site.write(f"code/rundoku/{kind}/__init__.py", "")
    site.write("pytest.ini", "[pytest]\n")  # or a pyproject.toml further up would say where the package is
    return site.root


def made(said):
    return [line.strip() for line in said.partition("Made\n")[2].partition("\n\n")[0].split("\n")]


def run(root, *words):
    return subprocess.run(
        [sys.executable, *words], cwd=root, env={"PYTHONPATH": str(root / "code")}, capture_output=True, text=True, check=False
    )


def test_what_is_made_hangs_together(root):
    rooms = []
    for slug, kind in (("later", "paper"), ("qkv", "concept"), ("unlisted-2", "paper")):
        said = new(slug, root, kind)
        files, module = made(said), slug.replace("-", "_")
        rooms.append(f"rundoku.{kind}s.{module}")
        notes = [name for name in files if name.startswith("notes/")]
        assert sorted(path.relative_to(root).as_posix() for path in root.glob(f"notes/{slug}/*")) == sorted(notes)
        assert f"code/tests/{kind}s/test_{module}.py" in files and "rundoku accept" in said
        for name in files:
            text = (root / name).read_text(encoding="utf-8")
            assert "$" not in text and text.endswith("\n"), name
            if name.endswith(".yml"):
                assert yaml.safe_load(text)
        marked = sections((root / f"code/rundoku/{kind}s/{module}/note.py").read_text(encoding="utf-8"), "note.py")
        for language in ("en", "ja", "zh"):
            text = (root / f"notes/{slug}/index.{language}.md").read_text(encoding="utf-8")
            assert [heading.id for heading in markdown.headings(text)] == ["top", *SECTIONS]
            found = blocks(text, "page", language, root)
            assert [block.origins[0].section for block in found] == list(marked) == ["setup", "response", "claims"]
            assert [block.quiet for block in found] == [True, False, False]
    done = run(root, "-c", "\n".join(f"import {room}.experiments" for room in rooms))
    assert done.returncode == 0, done.stderr


def test_the_lint_names_what_is_still_to_be_written(root):
    new("later", root, "paper")
    said = [f"{problem.path}: {problem.message}" for problem in lint(root) if "later" in problem.path]
    for path, missing in {
        "paper.yml": "authors",
        "index.en.md": "words, expected 900",
        "index.ja.md": "no section is recorded as rendered",
        "index.zh.md": "description: found ''",
        "labels.yml": "figures.response.caption.en: found ''",
    }.items():
        assert any(line.startswith(f"notes/later/{path}") and missing in line for line in said), (path, said)
    assert not [line for line in said if "expected Python" in line or "has no end" in line or "has no id" in line]


def test_the_inventory_fills_in_what_it_knows(root):
    assert "inventory" not in new("later", root, "paper")
    paper = yaml.safe_load((root / "notes/later/paper.yml").read_text(encoding="utf-8"))
    assert (paper["title"], paper["year"], paper["themes"], paper["paths"]) == ("Later", 2024, ["depth"], ["E"]) and "arxiv" not in paper
    new("qkv", root, "concept")
    assert "# クエリ {#top}" in (root / "notes/qkv/index.ja.md").read_text(encoding="utf-8")
    assert "List 'unlisted' in notes/inventory.yml" in new("unlisted", root, "paper")
    inventory = root / "notes/inventory.yml"
    title = "{slug: quoted, title: 'A \"Quoted\" \\ Title?', year: 2020, arxiv: '2001.00001', theme: depth, paths: [A, E], kernel: true}"
    inventory.write_text(f"{inventory.read_text(encoding='utf-8').rstrip()}\n  - {title}\n", encoding="utf-8")
    new("quoted", root, "paper")
    paper = yaml.safe_load((root / "notes/quoted/paper.yml").read_text(encoding="utf-8"))
    assert (paper["title"], paper["arxiv"], paper["paths"]) == ('A "Quoted" \\ Title?', "2001.00001", ["A", "E"])
    source = (root / "code/rundoku/papers/quoted/__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)).startswith('A "Quoted" \\ Title?\n\nA "Quoted"')
    assert "https://arxiv.org/abs/2001.00001" in source


def test_a_fresh_note_does_not_pass_for_a_finished_one(root):
    new("later", root, "paper")
    done = run(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "code/tests/papers/test_later.py")
    assert done.returncode == 1 and "still to be written" in done.stdout
    done = run(root, "code/rundoku/papers/later/note.py")
    assert done.returncode == 1 and "NotImplementedError: Later.forward" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is in the lint environment only")
@pytest.mark.parametrize(("slug", "kind"), [("later", "paper"), ("qkv", "concept")])
def test_the_made_code_passes_the_lint_of_code(root, slug, kind):
    files = [name for name in made(new(slug, root, kind)) if name.endswith(".py")]
    shutil.copy(ROOT / "pyproject.toml", root)
    for words in (["check"], ["format", "--check"]):
        done = run(root, "-m", "ruff", *words, *files)
        assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten_and_nothing_half_made(root):
    new("later", root, "paper")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="notes/later is there already; nothing was written"):
        new("later", root, "paper")
    shutil.rmtree(root / "notes/later")
    with pytest.raises(FileExistsError, match="code/rundoku/papers/later is there already"):
        new("later", root, "paper")
    shutil.rmtree(root / "code/rundoku/papers/later")
    with pytest.raises(FileExistsError, match=r"code/tests/papers/test_later\.py is there already"):
        new("later", root, "paper")
    left = {path for path in before if "notes/later" not in path.as_posix() and "papers/later" not in path.as_posix()}
    assert {path for path in root.rglob("*") if path.is_file()} == left and all(path.read_bytes() == before[path] for path in left)


@pytest.mark.parametrize(
    ("slug", "kind", "says"),
    [
        ("Later", "paper", "slug: found 'Later', expected lower-case words"),
        ("la_ter", "paper", "slug: found 'la_ter'"),
        ("../later", "paper", "slug: found '../later'"),
        ("2-later", "paper", "slug: found '2-later'"),
        ("later-", "paper", "slug: found 'later-'"),
        ("", "paper", "slug: found ''"),
        ("import", "paper", "slug: found 'import', a word of Python itself"),
        ("later", "book", "kind: found 'book', expected one of paper, concept"),
        ("later", "concept", "kind: found 'concept', expected 'paper', as notes/inventory.yml lists 'later'"),
        ("qkv", "paper", "kind: found 'paper', expected 'concept'"),
    ],
)
def test_a_slug_or_kind_that_cannot_be_is_refused(root, slug, kind, says):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        new(slug, root, kind)
