"""What a page says: one note built in Japanese, and the functions that make its parts."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from toy import Toy

from rundoku.show.store import Store
from rundoku.site import render
from rundoku.site.catalogue import Claim, Fact, Paper
from rundoku.site.labels import Labels, _Words
from rundoku.site.snippets import Block, NoteError, Origin

SVG = '<svg class="figure" viewBox="0 0 1 1"><text x="1">step &amp; loss</text><text>10</text></svg>'
ORIGIN = Origin("code/rundoku/papers/lora/note.py", "draw", 14, 18)
BLOCK = Block("", {}, "notes/lora/index.ja.md", "ja", 9, (ORIGIN,))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> render.Page:
    labels = Labels("notes/lora/labels.yml", words={"step & loss": {"ja": "歩数<と>損失", "zh": "步数"}}, keep={"LoRA"})
    both = {"en": "{total:,}", "ja": "「{total:,}」まで", "zh": "{total:,}"}
    labels.shown["figure", "f"] = _Words(both, {"en": "A", "ja": '"図"', "zh": "图"})
    labels.shown["table", "t"] = _Words(both, None)
    fact = Fact("sum", 4.7, "Table <4>", ".1f", "M")
    paper = Paper.__new__(Paper)
    object.__setattr__(paper, "facts", {"sum": fact})
    object.__setattr__(paper, "claims", {"c": Claim("c", fact, {"en": "a", "ja": "和<は>", "zh": "c"})})
    base = "https://host/blob/abc/"
    made = render.Page(
        tmp_path, Store(tmp_path), "notes/lora/index.ja.md", "ja", "lora", {}, labels, paper, base, values={"total": 14_000, "low": -0.5}
    )
    monkeypatch.setattr(render, "current", made)
    return made


def test_a_figure_speaks_the_pages_language(page: render.Page) -> None:
    (made,) = render._shown(page, BLOCK, {"items": [{"kind": "figure", "name": "f", "svg": SVG}]})
    assert [text.text for text in ElementTree.fromstring(re.findall("<svg.*?</svg>", made)[0]).iter("text")] == ["歩数<と>損失", "10"]
    assert 'role="img" aria-label="&quot;図&quot;"' in made and "<figcaption>「14,000」まで</figcaption>" in made
    assert '<a href="https://host/blob/abc/code/rundoku/papers/lora/note.py#L14-L18">papers/lora/note.py:14–18</a>' in made


def test_a_table_has_numbers_and_words_in_their_form(page: render.Page) -> None:
    rows = [["step & loss", 1_000_000, None, True], ["LoRA", -0.00012, 1.5, False]]
    item = {"kind": "table", "name": "t", "columns": ["step & loss", "LoRA", "N", "10"], "rows": rows, "formats": ["", ",", ".2f", ""]}
    (made,) = render._shown(page, BLOCK, {"items": [item]})
    assert re.findall(r"<td( class=\"number\")?>(.*?)</td>", made) == [
        ("", "歩数&lt;と&gt;損失"), (' class="number"', "1,000,000"), ("", ""), ("", "✓"),
        ("", "LoRA"), (' class="number"', "−0.00012"), (' class="number"', "1.50"), ("", "–"),
    ]  # fmt: skip
    item["rows"][0][0] = "unknown word"
    with pytest.raises(Exception, match="found no translation of 'unknown word'"):
        render._shown(page, BLOCK, {"items": [item]})


def test_claims_in_a_row_make_one_table_with_the_papers_words(page: render.Page) -> None:
    item = {"kind": "claim", "name": "c", "ours": -4.68, "format": ".2f", "verdict": "not reproduced", "threshold": "ours < 5"}
    figure = {"kind": "figure", "name": "f", "svg": SVG}
    made = render._shown(page, BLOCK, {"items": [item, item, figure, item]})
    assert [part.count("<tr id=") for part in made] == [2, 0, 1]
    for text in ("和&lt;は&gt;", "4.7 M", "Table &lt;4&gt;", "−4.68", "ours &lt; 5", 'class="verdict not-reproduced"'):
        assert text in made[0], text
    with pytest.raises(NoteError, match=r"claim 'd' is not in paper\.yml; it has c"):
        render._shown(page, BLOCK, {"items": [{**item, "name": "d"}]})


def test_what_is_missing_for_a_figure_is_named(page: render.Page) -> None:
    page.values.clear()
    with pytest.raises(NoteError, match=r"the caption of figure 'f' '「\{total:,\}」まで' cannot be filled .*published so far: none"):
        render._shown(page, BLOCK, {"items": [{"kind": "figure", "name": "f", "svg": SVG}]})
    page.labels = None
    with pytest.raises(NoteError, match="there are no labels"):
        render._shown(page, BLOCK, {"items": [{"kind": "figure", "name": "f", "svg": SVG}]})


def test_the_experiments_behind_a_figure_are_named(page: render.Page) -> None:
    page.asked = [{"name": "rundoku.papers.lora.experiments.sweep", "arguments": {"ranks": [1, 2], "seed": 0, "name": "<x>"}}]
    made = render.provenance(page, BLOCK, {})
    assert html.escape("papers.lora.experiments.sweep(ranks=[1, 2], seed=0, name='<x>')") in made and "torch " in made


def test_values_and_facts_in_prose(page: render.Page) -> None:
    def value(source: str) -> str:
        return render.value(source, "value", "value", None)  # type: ignore[arg-type]

    assert value("total") == '<span class="value">14000</span>' and value("total:,") == '<span class="value">14,000</span>'
    assert value("low:.2f") == '<span class="value">−0.50</span>'
    (page.root / "notes" / "lora").mkdir(parents=True)
    (page.root / page.source).write_text("one\ntwo `#!value nothing:.1f` `#!value total:q`\n")
    with pytest.raises(render.PageError, match=r"index\.ja\.md:2 \(ja\): value 'nothing' is not published so far; the page has total, low"):
        value("nothing:.1f")
    with pytest.raises(render.PageError, match=r"index\.ja\.md:2 \(ja\): value 'total' = 14000 has no format 'q'"):
        value("total:q")
    assert render.fact("sum", "paper", "fact", None) == '<span class="fact" title="Table &lt;4&gt;">4.7 M</span>'  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("render") / "site")
    done = toy.rundoku("build", "ja")
    assert done.returncode == 0, done.stdout + done.stderr
    return toy


def test_a_built_note_shows_what_its_code_has_found(built: Toy) -> None:
    page = built.html("ja")
    assert '合計は <span class="value">14</span>' in page and 'title="§1">14</span>' in page
    assert "The sum is here." in page, "what a snippet prints"
    figure = re.findall(r'<figure class="rundoku" id="figure-squares">.*?</figure>', page, re.S)[0]
    assert 'aria-label="右上がりの曲線"' in figure and "14 までの平方" in figure and ">数</text>" in figure
    table = re.findall(r'<figure class="rundoku table".*?</figure>', page, re.S)[0]
    assert re.findall(r'<td class="number">(\d+)</td>', table) == ["1", "1", "2", "4", "3", "9"] and '<th scope="col">平方</th>' in table
    assert "papers.lora.experiments.square(numbers=[1, 2, 3], seed=0)" in page
    assert (
        '<tr id="claim-fourteen"><td>和は十四である。</td>' in page
        and "sum(found.squares) == 14" in page
        and 'class="verdict exact"' in page
    )
    assert '<math display="block">' in page and r"\frac" not in page
    assert "rundoku-shows" not in page and "--8&lt;--" not in page
    code = html.unescape(re.sub("<[^>]*>", "", page))
    assert "found = experiments.square(numbers=(1, 2, 3), seed=0)" in code and "with figure(" not in code, "only what its fence shows"


def test_the_search_index_holds_words_and_no_drawings(built: Toy) -> None:
    index = json.loads((built.root / "site" / "ja" / "search" / "search_index.json").read_text(encoding="utf-8"))
    note = " ".join(entry["text"] for entry in index["docs"] if entry["location"].startswith("notes/lora/"))
    assert "合計は" in note and "和は十四である。" in note
    for noise in ("<svg", "currentColor", r"\frac", "右上がり", "matplotlib 3"):
        assert noise not in note, noise
