"""An edit makes again what it touches, and the site is the one that making everything gives."""

import json
import shutil
from pathlib import Path

import pytest
from toy import Toy, note

from rundoku.site import changes

TEXT = note("en")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("The total is", "The sum of all is"),
        ("`#!paper sum`.", "`#!paper sum`, as $x^2$ says.\n\nA [link](../other/index.md) and\n- a list."),
        ("## Lines before {#idea}", "## Another title {#idea}"),
        (r"\frac{a}{b}", r"\sqrt{2}"),
    ],
)
def test_wording_is_no_part_of_what_other_pages_can_see(old: str, new: str) -> None:
    assert old in TEXT and changes.skeleton(TEXT.replace(old, new)) == changes.skeleton(TEXT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: Squares", "title: Cubes"),
        ("{#idea}", "{#ideas}"),
        ("## Lines before {#idea}", "### Lines before"),
        ("note.py:draw", "note.py:count"),
        ('source="above"', 'source="below"'),
        ("The total is", "The [total](../other/index.md#total) is"),
        ("The total is", "The [total](#total) is"),
        ("The total is", '<b id="total">The</b> total is'),
        ("The total is", "The total\n{#total}\nis"),
        ("The total is", "The total is\n\n[total]: ../other/index.md#total\n\n"),
        ("The total is", "```site\nledger\n```\n\nis"),
    ],
)
def test_all_that_others_can_see_is_in_the_skeleton(old: str, new: str) -> None:
    assert old in TEXT and changes.skeleton(TEXT.replace(old, new)) != changes.skeleton(TEXT)


def test_pages_are_reworded_only_where_nothing_else_has_changed() -> None:
    before = {"notes/a/index.en.md": ["1", "s"], "notes/b/index.en.md": ["2", "t"]}
    assert changes.reworded(before, before) == frozenset()
    assert changes.reworded(before, {**before, "notes/a/index.en.md": ["3", "s"]}) == {"notes/a/index.md"}
    assert changes.reworded(before, {**before, "notes/a/index.en.md": ["3", "u"]}) == frozenset()
    assert changes.reworded(before, {**before, "notes/c/index.en.md": ["3", "s"]}) == frozenset()
    assert changes.reworded(before, {"notes/a/index.en.md": ["3", "s"]}) == frozenset()


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("notes/lora/index.ja.md", {"notes/lora/index.md"}),
        ("notes/lora/labels.yml", {"notes/lora/index.md"}),
        ("code/rundoku/papers/lora/note.py", {"notes/lora/index.md", "api/lora.md"}),
        ("code/rundoku/concepts/forward_pass/__init__.py", {"notes/forward-pass/index.md", "api/forward-pass.md"}),
        ("docs/ledger.ja.md", {"ledger.md"}),
        ("notes/lora/paper.yml", None),
        ("notes/labels.yml", None),
        ("docs/overrides/main.html", None),
        ("docs/assets/page.css", None),
        ("code/rundoku/show/figures.py", None),
        ("mkdocs.yml", None),
    ],
)
def test_a_preview_makes_again_what_belongs_to_the_file(name: str, pages: set[str] | None) -> None:
    both = {name: "1", "README.md": "1"}
    assert changes.touched(both, {**both, name: "2"}) == (None if pages is None else frozenset(pages))
    assert changes.touched(both, {"README.md": "1"}) is None, "a file that is gone"
    assert changes.touched(both, both) == frozenset()


def test_a_language_reads_its_own_pages_and_those_that_only_others_have() -> None:
    files = dict.fromkeys(("docs/a.en.md", "docs/a.ja.md", "docs/b.en.md", "notes/x/paper.yml", "code/rundoku/x.py"), "1")
    assert set(changes.read_by("ja", files)) == files.keys() - {"docs/a.en.md"}
    assert set(changes.read_by("en", files)) == files.keys() - {"docs/a.ja.md"}


def test_reworded_pages_join_the_site_that_making_everything_gives(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "site")

    def build() -> str:
        done = toy.rundoku("build", "en", "ja")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "only" not in build()
    before, inodes = toy.files(), {path: path.stat().st_ino for path in (toy.root / "site").rglob("*.png")}
    toy.edit(toy.page("ja"), "合計は", "総和は、計算すると、")
    toy.edit(toy.page("ja"), "## ブロック {#code}", "この行は新しい。\n\n## 塊 {#code}")
    told = build()
    assert "[ja] only notes/lora/index.md" in told and "built ja; unchanged: en" in told
    reworded = toy.files()
    assert {name for name in before if before[name] != reworded[name]} == {
        "ja/notes/lora/index.html", "ja/notes/lora/lora.ipynb", "ja/search/search_index.json",
    }  # fmt: skip
    docs = json.loads(reworded["ja/search/search_index.json"])["docs"]
    assert "総和は" in " ".join(entry["text"] for entry in docs)
    assert {path: path.stat().st_ino for path in inodes} == inodes, "what stays is not even copied"
    assert "unchanged: en, ja" in build()
    shutil.rmtree(toy.root / "site")
    assert "only" not in build()
    assert toy.files() == reworded
    toy.edit(toy.page("ja"), "{#code}", "{#source}")
    assert "only" not in build() and 'id="source"' in toy.html("ja")
    (toy.root / "site" / "ja" / "sitemap.xml").write_text("changed by hand")
    toy.edit(toy.page("ja"), "総和は", "合計は")
    assert "only" not in build() and b"by hand" not in toy.files()["ja/sitemap.xml"], (
        "a site that is not as a build has left it is made anew"
    )
