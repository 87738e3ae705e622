import datetime
from pathlib import Path

import pytest

from rundoku.site.catalogue import LANGUAGES, CatalogueError, load

ROOT = Path(__file__).resolve().parents[3]
NOTE = "notes/small-net/paper.yml"
INVENTORY = "notes/inventory.yml"


def test_the_repositorys_own_inventory_loads_and_has_what_the_paths_promise():
    catalogue = load(ROOT)
    assert len(catalogue.entries) == 97
    assert {path: len(catalogue.on_path(path)) for path in catalogue.paths} == {"A": 12, "B": 9, "C": 9, "D": 27, "E": 51}
    assert sum(len(catalogue.in_theme(theme)) for theme in catalogue.themes) == 97
    assert tuple(entry for entry in catalogue.entries if entry.kind == "concept") == catalogue.in_theme("concepts")
    for entry in catalogue.entries:
        assert (entry.year is None) == (entry.kind == "concept"), entry.slug
        if entry.arxiv:  # an arXiv number begins with year and month
            assert entry.year == 2000 + int(entry.arxiv[:2]), entry.slug
    for named in (*catalogue.themes.values(), *catalogue.paths.values()):
        assert set(named.name) == set(named.description) == set(LANGUAGES)


def test_a_written_note_is_read_and_an_unwritten_one_is_listed(site):
    catalogue = load(site.root)
    assert [entry.slug for entry in catalogue.entries] == ["qkv", "small-net", "later"]
    assert list(catalogue.papers) == ["small-net"]
    entry, paper = catalogue.entry("small-net"), catalogue.papers["small-net"]
    assert catalogue.entry("later").paper is None
    assert (entry.room, catalogue.entry("qkv").room) == ("rundoku.papers.small_net", "rundoku.concepts.qkv")
    assert catalogue.entry("qkv").title == {"en": "Query", "ja": "クエリ", "zh": "查询"}
    assert entry.title["zh"] == "Small Nets: A Study"
    assert (paper.written, paper.pick, paper.themes) == (datetime.date(2026, 1, 31), True, ("depth", "attention"))
    assert (paper.facts["size"].text, paper.facts["gain"].text) == ("4.7 M", "37%")
    assert paper.claims["smaller"].fact is paper.facts["size"]
    assert paper.bibtex == "@article{a}"
    assert catalogue.tags == {"deep": {"en": "deep", "ja": "深い", "zh": "深"}}


def test_an_unknown_slug_is_named(site):
    with pytest.raises(CatalogueError, match=r"notes/inventory.yml: papers: found no entry 'nope'"):
        load(site.root).entry("nope")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (NOTE, "year: 2021", "year: '2021'", "year: found '2021', expected a year"),
        (NOTE, "year: 2021", "year: true", "year: found True, expected a year"),
        (NOTE, "year: 2021", "year: 2022", "year: found 2022, expected what notes/inventory.yml says: 2021"),
        (NOTE, "venue: Journal of Tests\n", "", "venue: found nothing, expected a value"),
        (NOTE, "venue: Journal of Tests", "venue: ''", "venue: found '', expected text that is not empty"),
        (NOTE, "pick: true", "pick: true\nrating: 5", "rating: found 5, expected no such field; known are kind"),
        (NOTE, "pick: true", "pick: 1", "pick: found 1, expected true or false"),
        (NOTE, 'arxiv: "2101.00001"', "arxiv: 2101.00001", "arxiv: found 2101.00001, expected an arXiv number"),
        (NOTE, 'arxiv: "2101.00001"', "arxiv: 'cs/0101'", "arxiv: found 'cs/0101', expected an arXiv number"),
        (NOTE, 'arxiv: "2101.00001"', "arxiv: '2101.00002'", "arxiv: found '2101.00002', expected what notes/inventory.yml says"),
        (NOTE, 'arxiv: "2101.00001"\n', "", "arxiv: found nothing, expected what notes/inventory.yml says: '2101.00001'"),
        (NOTE, "themes: [depth, attention]", "themes: [deeper]", "themes[0]: found 'deeper', expected a theme: one of attention, depth"),
        (NOTE, "themes: [depth, attention]", "themes: [attention]", "themes: found ['attention'], expected what notes/inventory.yml says"),
        (NOTE, "themes: [depth, attention]", "themes: depth", "themes: found 'depth', expected a list"),
        (NOTE, "tags: [deep]", "tags: [wide]", "tags[0]: found 'wide', expected a tag of notes/tags.yml: one of deep"),
        (NOTE, "tags: [deep]", "tags: [deep, deep]", "tags[1]: found 'deep', expected each entry once"),
        (NOTE, "paths: [E, A]", "paths: [E, Z]", "paths[1]: found 'Z', expected a reading path: one of A, E"),
        (NOTE, "paths: [E, A]", "paths: [E]", "paths: found ['E'], expected what notes/inventory.yml says: ['A', 'E']"),
        (NOTE, "next: [later]", "next: [never]", "next[0]: found 'never', expected a note of notes/inventory.yml"),
        (NOTE, "next: [later]", "next: [small-net]", "next: found ['small-net'], expected other notes"),
        (NOTE, ", zh: 小就够了", "", "tagline.zh: found nothing, expected a value"),
        (NOTE, "zh: 小就够了", "zh: 小就够了, de: klein", "tagline.de: found 'klein', expected no such field; known are en, ja, zh"),
        (NOTE, "fact: size", "fact: weight", "claims.smaller.fact: found 'weight', expected a fact of this note: one of size, gain"),
        (NOTE, "where: Table 4", "table: 4", "facts.size.table: found 4, expected no such field"),
        (NOTE, "value: 37,", "value: [37],", "facts.gain.value: found [37], expected a number or text"),
        (NOTE, 'format: ".1f"', 'format: ".1x"', "facts.size.format: found '.1x', expected a format of Python for 4.7"),
        (NOTE, "written: 2026-01-31", "written: '2026-01-31'", "written: found '2026-01-31', expected a date"),
        (NOTE, "written: 2026-01-31", "written: 2026-02-31", "the file: found day is out of range"),
        (NOTE, "written: 2026-01-31", "written: 2026-01-31 10:00:00", "written: found 2026-01-31 10:00:00, expected a date"),
        (NOTE, "revised: 2026-02-01", "revised: 2026-01-01", "revised: found 2026-01-01, expected a day not before 2026-01-31"),
        (NOTE, "Small nets — a study", "Big nets", "title: found 'Big nets', expected what notes/inventory.yml says: 'Small Nets"),
        (NOTE, "kind: paper", "kind: concept", "kind: found 'concept', expected what notes/inventory.yml says: 'paper'"),
        (NOTE, "kind: paper", "kind: essay", "kind: found 'essay', expected a kind of note: one of paper, concept"),
        (NOTE, "kind: paper", "kind: paper\nkind: paper", "line 3: found the name 'kind' twice, expected it once"),
        (NOTE, "kind: paper", "kind: [paper", "line 3: "),
        (NOTE, "pick: true", "pick: true\nurl: http://x.org", "url: found 'http://x.org', expected an address that starts with https://"),
        (NOTE, "authors: [Ada Example, Bo Sample]", "authors: [Ada Example, 3]", "authors[1]: found 3, expected text"),
        (INVENTORY, "theme: depth, paths: [E]", "theme: width, paths: [E]", "papers[2].theme: found 'width', expected a theme"),
        (INVENTORY, "slug: later", "slug: small-net", "papers[2].slug: found 'small-net', expected each entry once"),
        (INVENTORY, "title: Later", "title: Query", "papers[2].title: found 'Query', expected each entry once"),
        (INVENTORY, "slug: later", "slug: Later_on", "papers[2].slug: found 'Later_on', expected lower-case words"),
        (INVENTORY, "slug: small-net", "slug: tiny-net", "notes/small-net: the folder: found a note that is not listed"),
        (INVENTORY, ", title_ja: クエリ", "", "papers[0].title_ja: found nothing, expected a value"),
        (INVENTORY, "title: Later,", "title: Later, title_ja: 後,", "papers[2].title_ja: found '後', expected no such field"),
        (INVENTORY, "kernel: true", "kernel: maybe", "papers[1].kernel: found 'maybe', expected true or false"),
        (INVENTORY, "themes:", "topics:", "topics: found {"),
        ("notes/tags.yml", ", zh: 深", "", "deep.zh: found nothing, expected a value"),
        ("notes/tags.yml", "deep:", "on:", "the file: found True, expected names that are text"),
    ],
)
def test_a_mistake_is_named_with_file_field_found_and_expected(site, name, old, new, message):
    site.edit(name, old, new)
    with pytest.raises(CatalogueError) as error:
        load(site.root)
    folder = "notes/small-net: " in message
    assert str(error.value).startswith("" if folder else f"{name}: ")
    assert message in str(error.value)


def test_a_folder_without_its_paper_file_is_a_mistake(site):
    (site.root / NOTE).unlink()
    with pytest.raises(CatalogueError, match=r"notes/small-net/paper.yml: the file: found nothing, expected a YAML file"):
        load(site.root)


def test_a_file_that_is_not_utf8_is_a_mistake(site):
    (site.root / NOTE).write_bytes(b"kind: \xff\xfe")
    with pytest.raises(CatalogueError, match=r"paper.yml: the file: found invalid start byte at byte 6, expected UTF-8"):
        load(site.root)


def test_a_concept_needs_nobody_to_cite(site):
    site.write(
        "notes/qkv/paper.yml",
        """
        kind: concept
        title: Query
        themes: [attention]
        tags: []
        paths: [A]
        tagline: {en: a, ja: あ, zh: 甲}
        written: 2026-01-01
        revised: 2026-01-01
        facts: {}
        claims: {}
        next: [small-net]
        """,
    )
    catalogue = load(site.root)
    paper = catalogue.papers["qkv"]
    assert (paper.authors, paper.year, paper.bibtex, paper.next) == ((), None, "", ("small-net",))
    cited = [catalogue.bibtex("qkv", imported) for imported in ({"small-net", "later"}, {"later"}, set())]
    assert cited == ["@article{a}", "", ""] and catalogue.bibtex("small-net", {"later"}) == "@article{a}"
