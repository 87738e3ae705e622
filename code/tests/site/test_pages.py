"""The parts around the notes: what they show of the catalogue, the imports and the stored runs, and that they are whole HTML."""

import re
from html.parser import HTMLParser

import pytest
import yaml
from written import Site

from rundoku.show.store import ROOT
from rundoku.site.catalogue import LANGUAGES, CatalogueError, load
from rundoku.site.pages import FENCES, Context

ROOM = '''"""Small nets."""\n\nfrom rundoku.papers.{} import base\n'''
CLAIM = {"kind": "claim", "name": "smaller", "ours": 4.6, "format": ".2f", "verdict": "not reproduced", "threshold": "ours < 4 & true"}
REPORT = {"kind": "table", "name": "compiled", "columns": ["Kernel", "Target"], "rows": [["LoRA", -1.5]], "formats": ["", ".2f"]}
FIGURE = {"kind": "figure", "name": "curve", "svg": '<svg viewBox="0 0 9 9"><text x="1">Loss</text><text>layer 3</text></svg>'}
ALONE = ("cards", "paths", "timeline", "tree", "ledger", "kernels", "data", "glossary", "api", "home-numbers", "home-figure")
OF_A_NOTE = ("lineage", "next", "bibtex", "downloads")
VOID = {"input", "br", "img", "meta", "link", "hr", "circle", "path"}


class Tags(HTMLParser):
    """Follows a piece of HTML and complains where its elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open"


@pytest.fixture
def written(site: Site) -> Site:
    for package in ("rundoku", "rundoku.papers", "rundoku.data"):
        site.write(f"code/{package.replace('.', '/')}/__init__.py", "")
    site.write("code/rundoku/papers/later/__init__.py", "base = 1\n")
    site.write("code/rundoku/papers/small_net/__init__.py", ROOM.format("later"))
    site.write("code/rundoku/papers/small_net/note.py", "")
    site.write("code/rundoku/papers/small_net/experiments.py", "from rundoku.data import plays\n")
    site.write(
        "code/rundoku/data/plays.py",
        '"""Plays & more."""\n\nSOURCE = Source(title="Plays & poems", package="bard", version="1.2", licence="PD", url="x")\n',
    )
    site.write("code/rundoku/data/unused.py", '"""Nobody reads this."""\n')
    site.write(
        "notes/small-net/labels.yml",
        "figures: {curve: {caption: {en: C <1>, ja: 図, zh: 图}, alt: {en: A, ja: あ, zh: 甲}}}\n"
        "labels: {Kernel: {ja: カーネル, zh: 内核}, Target: {ja: 対象, zh: 目标}, Size: {ja: サイズ, zh: 规模}}\n",
    )
    return site


def context(site: Site, lang: str = "en", slug: str = "", items=(CLAIM, REPORT, FIGURE)) -> Context:
    return Context(load(site.root), lang, slug, {"small-net": list(items)}, site.root, lambda target: f"../{target}/")


def part(site: Site, name: str, *arguments: str, **where) -> str:
    return FENCES[name](context(site, **where), *arguments)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", [*ALONE, *OF_A_NOTE])
def test_every_part_is_whole_html_with_unique_ids(written, name, lang):
    tags = Tags(part(written, name, lang=lang, slug="small-net" if name in OF_A_NOTE else ""))
    assert len(tags.ids) == len(set(tags.ids))
    assert all(link for link in tags.links)


@pytest.mark.parametrize("name", OF_A_NOTE)
def test_a_part_of_a_note_refuses_another_page(written, name):
    with pytest.raises(CatalogueError, match="belongs into a note"):
        part(written, name)


def test_every_entry_stands_on_the_cards_and_only_written_ones_are_linked(written):
    shown = part(written, "cards")
    assert shown.count('<li class="item') == 3
    assert re.findall(r'<a class="title" href="([^"]*)"', shown) == ["../small-net/"]
    assert shown.count("not yet written") == 2


def test_the_filters_hide_what_does_not_match(written):
    shown = part(written, "cards")
    for name, values in {"theme": {"attention", "depth"}, "year": {"2021", "2024"}, "path": {"A", "E"}, "tag": {"deep"}}.items():
        assert (
            set(re.findall(rf'\.shelf:has\(\[name={name}\] \[value="(.*?)"\]:checked\) \.item:not\(\[data-{name}~="\1"\]\)', shown))
            == values
        )
        select = re.search(rf'<select name="{name}">(.*?)</select>', shown)
        assert select and set(re.findall('value="([^"]+)"', select[1])) == values
    assert 'data-path="A E" data-kernel="yes" data-written="yes"' in shown


def test_a_path_lists_its_entries_in_order_and_names_the_paths_there_are(written):
    assert re.findall(r'class="title"[^>]*>([^<]*)<', part(written, "path", "A")) == ["Query", "Small Nets: A Study"]
    assert "1 of 2 written" in part(written, "path", "A")
    with pytest.raises(CatalogueError, match="found 'B', expected one of A, E"):
        part(written, "path", "B")


def test_the_tree_draws_each_import_once(written):
    drawn = part(written, "tree")
    assert re.findall(r'<path class="of-([\w-]+) to-([\w-]+)"', drawn) == [("small-net", "later")]
    assert drawn.count("<circle") == 2 and "builds on Later" in drawn
    assert "<script" not in drawn


def test_lineage_shows_both_sides(written):
    before, after = part(written, "lineage", slug="small-net").split('class="after"')
    assert "Later" in before and "imports it yet" in after
    other = written.write("notes/later/paper.yml", written.read("notes/small-net/paper.yml"))
    for old, new in (
        ("Small nets — a study", "Later"),
        ("year: 2021", "year: 2024"),
        ('arxiv: "2101.00001"\n', ""),
        ("[depth, attention]", "[depth]"),
        ("[E, A]", "[E]"),
        ("[later]", "[]"),
    ):
        other.write_text(other.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert "Small Nets" in part(written, "lineage", slug="later").split('class="after"')[1]


def test_the_ledger_shows_both_values_the_verdict_and_its_condition(written):
    shown = part(written, "ledger")
    assert all(
        text in shown
        for text in ("4.7 M", "Table 4", "4.60", "ours &lt; 4 &amp; true", "It is small.", 'href="../small-net/#claim-smaller"')
    )
    assert '<span class="verdict not-reproduced">not reproduced</span></td>' in shown
    assert "小さい。" in part(written, "ledger", lang="ja")
    assert part(written, "ledger", items=()) == "<p>No note has stated a claim yet.</p>"


def test_kernels_show_their_reports_translated_and_the_others_as_planned(written):
    shown = part(written, "kernels", lang="zh")
    assert '<th scope="col">内核</th>' in shown and "−1.50" in shown and 'id="planned"' not in shown
    assert 'id="planned"' in part(written, "kernels", items=({**REPORT, "columns": ["Model", "Target"]},))


SUMMARY = {
    "reports": 1200, "intensity": [0.25, 140.0], "bound": ["memory", "compute"], "occupancy": 0.25, "target": "gfx942",
    "tensor_core": ["mma.sync", "v_mfma"],
}  # fmt: skip


def test_kernels_stand_side_by_side(written):
    cost = {**REPORT, "name": "cost", "columns": ["Kernel", "Size"], "rows": [["LoRA", "N = 4"]], "formats": ["", ""]}
    shown = part(written, "kernels", lang="ja", items=({**REPORT, "summary": SUMMARY}, cost))
    overview, _, rest = shown.partition('<h2 id="small-net">')
    assert 'id="overview"' in overview and '<a href="#small-net">' in overview
    cells = ("0.25\u2060–\u2060140", "メモリ帯域 / 演算", "25%", "gfx942", "<code>mma.sync</code><br><code>v_mfma</code>", "1,200")
    assert all(cell in overview for cell in cells)
    assert rest.count("<table") == 2 and "N = 4" in rest
    bare = {**SUMMARY, "intensity": [], "bound": [], "tensor_core": []}
    assert part(written, "kernels", items=({**REPORT, "summary": bare},)).count("<td>—</td>") == 3
    same = {**SUMMARY, "intensity": [1.0, 1.04]}
    assert "<td>1.0</td>" in part(written, "kernels", items=({**REPORT, "summary": same},))
    assert 'id="overview"' not in part(written, "kernels")


def test_a_figure_stands_anywhere_in_the_pages_language(written):
    shown = part(written, "figure", "small-net", "curve", lang="ja")
    assert all(text in shown for text in ('aria-label="あ"', ">損失</text>", ">第3層</text>", "図 <a"))
    assert "C &lt;1&gt;" in part(written, "figure", "small-net", "curve")
    with pytest.raises(CatalogueError, match="no figure 'other'"):
        part(written, "figure", "small-net", "other")


def test_home_shows_a_figure_beside_the_lines_that_drew_it(written):
    assert part(written, "home-figure") == ""
    drawing = 'with figure("curve") as axes:\n    axes.plot(1)\n'
    note = f"# --8<-- [start:setup]\nx = 1\n# --8<-- [end:setup]\n\n# --8<-- [start:draw]\n{drawing}# --8<-- [end:draw]\n"
    written.write("code/rundoku/papers/small_net/note.py", note)
    shown = part(written, "home-figure", lang="ja")
    assert ">損失</text>" in shown and re.sub("<[^>]+>", "", shown).startswith('with figure("curve") as axes:')
    written.edit("notes/small-net/labels.yml", "{en: C <1>, ja: 図, zh: 图}", "{en: '{most}', ja: '{most}', zh: '{most}'}")
    assert part(written, "home-figure") == ""


def test_the_data_page_lists_what_is_used_with_its_licence(written):
    shown = part(written, "data")
    assert all(text in shown for text in ("Plays &amp; poems", "bard==1.2", "PD", "Small Nets")) and "unused" not in shown


def test_home_numbers_are_counted(written):
    assert re.findall(r"<b>(\d+)</b>", part(written, "home-numbers")) == ["1", "2", "1", "1", "1"]


def test_the_glossary_says_what_is_not_said(written):
    assert '<del lang="ja">変圧器</del>' in part(written, "glossary", lang="ja") and "<del" not in part(written, "glossary")


def test_downloads_lie_beside_the_page(written):
    assert Tags(part(written, "downloads", slug="small-net")).links == ["small_net.py", "small_net.ipynb", "../api/small-net/"]


def test_every_word_of_the_site_is_there_in_three_languages():
    words = yaml.safe_load((ROOT / "code/rundoku/site/words.yml").read_text(encoding="utf-8"))
    assert {key: entry for key, entry in words.items() if set(entry) != set(LANGUAGES) or not all(entry.values())} == {}


def test_every_word_that_the_code_asks_for_is_there():
    words = yaml.safe_load((ROOT / "code/rundoku/site/words.yml").read_text(encoding="utf-8"))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "code/rundoku/site").glob("*.py"))
    asked = set(re.findall(r"""\bword\((?:[\w.]+, )?["']([a-z][\w.-]*)["']""", source))
    asked |= set(re.findall(r"nav\.[\w-]+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert len(asked) > 40 and asked - words.keys() == set()
