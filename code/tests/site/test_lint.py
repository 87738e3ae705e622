import re
import time
from pathlib import Path

import pytest

from rundoku.__main__ import main
from rundoku.site.catalogue import CatalogueError
from rundoku.site.lint import SECTIONS, Problem, accept, lint, section_hashes

CODE = "code/rundoku/papers/small_net/note.py"
NOTE = """
from rundoku.show import claim, figure, publish, table

# --8<-- [start:setup]
x = 1
# --8<-- [end:setup]

# --8<-- [start:count]
publish(total=3)
with figure("curve") as axes:
    axes.plot([1], [2], label="LoRA")
    axes.set_ylabel("Loss")
table("counts", columns=("Loss", "N"), rows=[(1, 2)], formats=("", ""))
# --8<-- [end:count]

# --8<-- [start:claims]
claim("smaller", ours=4, holds=True, kind="exact")
# --8<-- [end:claims]
"""
LABELS = """
figures:
  curve: {caption: {en: 'A curve to {total}', ja: '{total}までの曲線', zh: '到{total}的曲线'}, alt: {en: rises, ja: 上がる, zh: 上升}}
tables:
  counts: {caption: {en: Counts, ja: 個数, zh: 数量}}
"""
MADE = ("lineage", "next", "bibtex")
FENCES = {"code": ("setup", "count"), "claims": ("claims",)}
WORDS = {
    "en": ("The point is plain, in $x$ and `#!value total:,`. ", "many words about a Transformer " * 29),
    "ja": ("要点は`#!value total:,`と$x$にある。", "Transformerの話。"),
    "zh": ("要点在于$x$和`#!value total:,`。", "关于Transformer的话。"),
}


def page(language):
    point, filler = WORDS[language]
    described = "description: A plain point" if language == "en" else "description: 要点"
    parts = [f'---\ntitle: "Small Nets: A Study"\n{described}\n---\n# Small Nets {{#top}}\n\n{point}{filler}\n']
    for section in SECTIONS:
        parts.append(f"\n## {section} {{#{section}}}\n\n{'' if section in MADE else filler}\n")
        for name in FENCES.get(section, ()):
            quiet = ' quiet="on"' if name == "setup" else ""
            parts.append(f'\n```python exec="on" source="above" session="small"{quiet}\n--8<-- "small_net/note.py:{name}"\n```\n')
        if section in MADE:
            parts.append(f"\n```site\n{section}\n```\n")
    return "".join(parts)


@pytest.fixture
def note(site):
    site.write(CODE, NOTE)
    site.write("notes/small-net/labels.yml", LABELS)
    for language in WORDS:
        site.write(f"notes/small-net/index.{language}.md", page(language))
    accept(site.root, "small-net")
    return site


def pages(language):
    return f"notes/small-net/index.{language}.md"


def test_a_sound_note_has_no_problem(note):
    assert lint(note.root) == []


def test_the_repositorys_own_notes_are_linted_quickly():
    root = Path(__file__).resolve().parents[3]
    start = time.perf_counter()
    lint(root)
    assert time.perf_counter() - start < 6  # two seconds where nothing else runs


@pytest.mark.parametrize(
    ("name", "old", "new", "path", "message"),
    [
        ("zh", "$x$和", "", pages("zh"), "formula `x` of index.en.md:7 is missing here"),
        ("ja", "## idea {#idea}", "## idea {#ideas}", pages("ja"), "heading `## {#ideas}` stands where index.en.md:13 has `## {#idea}`"),
        ("en", "## idea {#idea}", "## idea", pages("en"), "heading 'idea' has no id"),
        ("en", "## idea {#idea}", "## idea {#why}", pages("en"), "id 'why' stands at 2 headings"),
        ("en", "## idea {#idea}", "## idea {#thought}", pages("en"), "h2 number 2: found 'thought', expected 'idea'"),
        ("en", "# Small Nets {#top}", "# Small Nets {#start}", pages("en"), "does not begin with `# Title {#top}`"),
        ("en", "The point is plain", "The 12 points are plain", pages("en"), "the number 12 is typed"),
        ("ja", "要点は", "要点は１２個で", pages("ja"), "the number 12 is typed"),
        ("zh", "关于Transformer的话。", "关于变压器的话。", pages("zh"), "'变压器' is not said; expected 'Transformer'"),
        ("ja", "description: 要点", "description: 変圧器", pages("ja"), "'変圧器' is not said; expected 'Transformer'"),
        ("ja", "description: 要点", "description: " + "長" * 161, pages("ja"), "characters, expected at most 160"),
        ("en", "description: A plain point", "", pages("en"), "front matter: description: found None, expected text"),
        ("en", "description: ", "colour: red\ndescription: ", pages("en"), "colour: found 'red', expected no such field"),
        ("en", "many words about a Transformer " * 29, "", pages("en"), "words, expected 900 to 2,000"),
        ("en", 'note.py:count"', 'note.py:count1"', pages("en"), "snippet section 'count1' is missing"),
        ("zh", 'note.py:count"', 'note.py:setup"', pages("zh"), "small_net/note.py stands in no fence that runs"),
        ("zh", 'note.py:count"', 'note.py:setup"', pages("zh"), "section 'setup' stands here and at line"),
        ("zh", 'exec="on" source="above" session="small"\n', 'source="above"\n', pages("zh"), "section 'count' of"),
        ("zh", 'session="small"\n', 'session="small" quiet="on"\n', pages("zh"), "section 'count' shows something (publish"),
        ("ja", 'session="small"\n', 'session="small" result="text"\n', pages("ja"), "result='text', which is for text"),
        ("ja", "```site\nbibtex\n```", "```site\nbibtex\n", pages("ja"), "this fence has no end"),
        ("en", "#!value total:,", "#!value sum:,", pages("en"), "value 'sum' is not published by note.py"),
        ("en", "The point is plain", "`#!paper weight` is plain", pages("en"), "fact 'weight' is not in paper.yml; it has size, gain"),
        ("ja", 'title: "Small Nets: A Study"', "title: 小さな網", pages("ja"), "title: found '小さな網', expected the paper's own"),
        ("zh", "description: 要点", "description: a: b", pages("zh"), "mapping values are not allowed"),
        ("zh", "description: 要点", "title: 要点", pages("zh"), "found the name 'title' twice"),
        ("ja", "renders:", "render:", pages("ja"), "front matter: render: found"),
        ("note", 'claim("smaller"', 'claim("larger"', CODE, "claim 'larger' is not in notes/small-net/paper.yml; it has smaller"),
        ("note", 'claim("smaller"', 'claim("larger"', "notes/small-net/paper.yml", "claim 'smaller' is not made by"),
        ("note", 'claim("smaller"', 'claim(f"small{x}"', CODE, "the name of this claim is not a plain text"),
        ("note", 'figure("curve")', 'figure("line")', CODE, "figure 'line' has no words; expected its caption and alt"),
        ("note", 'figure("curve")', 'figure("line")', "notes/small-net/labels.yml", "figures.curve: note.py shows no figure of this name"),
        ("note", 'table("counts"', 'table("sums"', CODE, "table 'sums' has no words; expected its caption under tables"),
        ("note", 'table("counts", columns=("Loss", "N"), ', 'compile_table("kernels", "m", ', CODE, "table 'kernels' has no words"),
        ("note", 'set_ylabel("Loss")', 'set_ylabel("Gain")', CODE, "labels: found no translation of 'Gain', expected it under `labels`"),
        ("note", 'columns=("Loss"', 'columns=("Gain"', CODE, "found no translation of 'Gain'"),
        ("note", "x = 1\n", "x = (\n", CODE, "expected Python"),
        ("note", "# --8<-- [end:count]\n", "", CODE, "section 'count' has no end"),
        ("labels", "zh: 数量", "zh: 12个", "notes/small-net/labels.yml", "tables.counts.caption.zh: the number 12 is typed"),
        ("labels", "ja: 上がる", "ja: 変圧器", "notes/small-net/labels.yml", "figures.curve.alt.ja: '変圧器' is not said"),
        ("labels", "zh: 上升", "de: auf", "notes/small-net/labels.yml", "figures.curve.alt.de: found 'auf', expected no such field"),
        ("paper", "venue:", "place:", "notes/small-net/paper.yml", "place: found 'Journal of Tests', expected no such field"),
        ("paper", "kind: paper", "kind: [", "notes/small-net/paper.yml", "did not find expected"),
    ],
)
def test_a_fault_is_found_at_its_place(note, name, old, new, path, message):
    files = {"note": CODE, "labels": "notes/small-net/labels.yml", "paper": "notes/small-net/paper.yml"}
    note.edit(files.get(name, pages(name)), old, new)
    problems = lint(note.root)
    assert any(problem.path == path and message in problem.message for problem in problems), "\n".join(map(str, problems))
    assert problems == sorted(problems) == lint(note.root)


def test_a_number_is_reported_with_its_line(note):
    note.edit(pages("en"), "\n## next {#next}\n", "\n## next {#next}\n\nAll 7 of them.\n")
    line = note.read(pages("en")).split("\n").index("All 7 of them.") + 1
    message = "the number 7 is typed; expected a published value, a fact of paper.yml or a formula"
    assert lint(note.root)[0] == Problem(pages("en"), line, message)
    assert str(Problem("a", 3, "b")) == "a:3: b"


@pytest.mark.parametrize("name", ["index.ja.md", "index.en.md"])
def test_a_missing_page_is_named(note, name):
    (note.root / "notes/small-net" / name).unlink()
    assert any(problem.path.endswith(name) and "the page is missing" in problem.message for problem in lint(note.root))


def test_a_missing_note_py_is_named(note):
    (note.root / CODE).unlink()
    assert Problem(CODE, 1, "the code side of notes/small-net is missing") in lint(note.root)


def test_sections_in_another_order_than_note_py_are_found_in_every_language(note):
    for language in WORDS:
        text = note.read(pages(language))
        swapped = text.replace('quiet="on"\n--8<-- "small_net/note.py:setup"', '\n--8<-- "small_net/note.py:HERE"')
        swapped = swapped.replace("note.py:count", "note.py:setup").replace("note.py:HERE", "note.py:count")
        note.write(pages(language), swapped)
    found = [problem.path for problem in lint(note.root) if "stands after 'count'; expected the order of" in problem.message]
    assert found == [pages(language) for language in ("en", "ja", "zh")]


def test_a_snippet_of_a_room_with_a_longer_name_does_not_count(note):
    note.write("code/rundoku/papers/very_small_net/note.py", NOTE)
    note.edit(pages("en"), '"small_net/note.py:count"', '"very_small_net/note.py:count"')
    assert any("section 'count' of" in problem.message and problem.path == pages("en") for problem in lint(note.root))


def test_an_english_section_that_changed_makes_its_translations_stale(note):
    note.edit(pages("en"), "\n## pitfalls {#pitfalls}\n\nmany", "\n## pitfalls {#pitfalls}\n\nNot many")
    problems = lint(note.root)
    assert [problem.path for problem in problems] == [pages("ja"), pages("zh")]
    for problem, language in zip(problems, ("ja", "zh"), strict=True):
        lines = {code: note.read(pages(code)).split("\n").index("## pitfalls {#pitfalls}") + 1 for code in ("en", language)}
        assert problem.line == lines[language]
        assert problem.message == (
            f"section 'pitfalls' (index.en.md:{lines['en']}) has changed since this was written; "
            f"check it, then `rundoku accept small-net {language}`"
        )
    assert accept(note.root, "small-net", ["zh"]) == [note.root / pages("zh")]
    assert [problem.path for problem in lint(note.root)] == [pages("ja")]
    accept(note.root, "small-net")
    assert lint(note.root) == []


def test_accepting_changes_nothing_but_the_record_and_only_once(note):
    before = note.read(pages("ja"))
    assert accept(note.root, "small-net") == []
    note.write(pages("ja"), before.replace("renders:\n", 'renders:\n  gone: "00000000"\n'))
    assert any("section 'gone' is recorded as rendered here and does not exist" in problem.message for problem in lint(note.root))
    accept(note.root, "small-net")
    assert note.read(pages("ja")) == before
    body = re.sub(r"(?s)\A---.*?\n---\n", "", before)
    assert body == re.sub(r"(?s)\A---.*?\n---\n", "", page("ja"))
    assert before.count("renders:") == 1 and 'title: "Small Nets: A Study"' in before


def test_a_translation_that_was_never_accepted_is_one_problem(note):
    note.write(pages("zh"), page("zh"))
    assert [problem.message for problem in lint(note.root)] == [
        "no section is recorded as rendered; check them, then `rundoku accept small-net zh`"
    ]


def test_accept_refuses_what_it_cannot_record(note):
    with pytest.raises(ValueError, match="language: found 'en', expected one of ja, zh"):
        accept(note.root, "small-net", ["en"])
    with pytest.raises(CatalogueError, match=r"notes/later/index.en.md: the file: found nothing, expected a page"):
        accept(note.root, "later")
    note.write(pages("ja"), "# no front matter\n")
    with pytest.raises(CatalogueError, match=r"index.ja.md: front matter: found nothing"):
        accept(note.root, "small-net", ["ja"])


def test_hashes_name_every_section_and_follow_only_its_own_text():
    text = page("en")
    hashes = section_hashes(text)
    assert list(hashes) == ["top", *SECTIONS]
    assert all(re.fullmatch(r"[0-9a-f]{8}", value) for value in hashes.values())
    changed = section_hashes(text.replace("\n## shows {#shows}\n\nmany", "\n## shows {#shows}\n\nfew"))
    assert {name for name in hashes if hashes[name] != changed[name]} == {"shows"}
    assert section_hashes(text.replace("\n", "  \n").replace("---  ", "---")) == hashes


def test_pages_of_docs_are_compared_too(note):
    note.write("docs/about/index.en.md", "# About {#top}\n\n## How {#how}\n")
    note.write("docs/about/index.ja.md", "# 概要 {#top}\n\n変圧器\n")
    note.write("docs/extra.zh.md", "# 多 {#top}\n")
    assert lint(note.root) == [
        Problem("docs/about/index.ja.md", 1, "heading `## {#how}` of index.en.md:3 is missing here"),
        Problem("docs/about/index.ja.md", 3, "'変圧器' is not said; expected 'Transformer' (notes/glossary.yml)"),
        Problem("docs/about/index.zh.md", 1, "the page is missing; expected it beside docs/about/index.en.md"),
        Problem("docs/extra.zh.md", 1, "this page has no English page beside it"),
    ]


def test_the_command_prints_every_problem_and_fails(note, monkeypatch, capsys):
    monkeypatch.setattr("rundoku.__main__.ROOT", note.root)
    assert main(["lint"]) == 0
    note.edit(pages("en"), "The point is plain", "The 12 points are plain")
    assert main(["lint"]) == 1
    printed = capsys.readouterr().out
    assert f"{pages('en')}:7: the number 12 is typed" in printed
    assert main(["accept", "small-net"]) == 0
    assert main(["accept", "nothing"]) == 1
