"""What a visitor meets, in Chromium: search, languages, keyboard, accessibility, phones, and nothing from anywhere else."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe

PHONE = {"width": 390, "height": 844}
NOTE = "notes/attention-is-all-you-need/"
CUT_LABELS = """[...document.querySelectorAll("figure.rundoku svg")].flatMap(drawing => {
    const frame = drawing.getBoundingClientRect()
    return [...drawing.querySelectorAll("text")].filter(text => {
        const box = text.getBoundingClientRect()
        return box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2 || box.bottom > frame.bottom + 2
    }).map(text => text.textContent)
})"""  # a label that a language makes longer than the drawing
ALIKE = ["", "papers/", NOTE, "ledger/"]


def pages(folder: Path, language: str) -> list[str]:
    """The addresses of a language's pages."""
    found = (path.parent.relative_to(folder / "base").as_posix() + "/" for path in (folder / "base" / language).rglob("index.html"))
    return sorted(found)


@pytest.mark.parametrize(
    ("language", "query", "found"),
    [
        ("en", "low-rank adaptation", "notes/lora/"),
        ("en", "online softmax", "notes/flash-attention/"),
        ("ja", "注意機構の計算量", "notes/attention-is-all-you-need/"),
        ("ja", "ファインチューニング", "notes/lora/"),
        ("ja", "層正規化", "notes/layer-norm/"),
        ("zh", "注意力", "notes/attention-is-all-you-need/"),
        ("zh", "层归一化", "notes/layer-norm/"),
        ("zh", "低秩", "notes/lora/"),
    ],
)
def test_search_finds_the_note(visitor, language, query, found):
    page = visitor.go(f"{language}/")
    page.keyboard.press("/")  # the index is loaded when the search is opened
    page.locator("input.md-search__input").fill(query)
    links: list[str] = []
    for _ in range(60):  # on a busy machine the index takes its time
        page.keyboard.press("End")  # the theme asks when a key comes up, as it does after every letter that is typed
        page.wait_for_timeout(500)
        links = page.locator(".md-search-result__item a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        if any(found in link for link in links):
            return
    raise AssertionError(f"{query!r} finds {links}")


def test_the_language_switch_keeps_the_page(visitor):
    page = visitor.go(f"en/{NOTE}")
    link = page.locator('a.md-select__link[hreflang="ja"]')
    assert link.evaluate("link => link.href").endswith(f"/ja/{NOTE}")
    page.locator(".md-select button, .md-select .md-header__button").first.hover()
    link.click()
    page.wait_for_url(f"**/ja/{NOTE}")
    assert page.locator("html").get_attribute("lang") == "ja"


def test_the_language_switch_leads_to_the_page_that_instant_navigation_has_brought(visitor):
    with visitor.page.expect_response("**/sitemap.xml"):  # from it the theme's script knows which links are the site's own
        page = visitor.go("en/papers/")
    page.wait_for_load_state("networkidle")
    page.evaluate("window.stays = true")
    page.locator(f'main a[href*="{NOTE.removeprefix("notes/")}"]').first.click()
    page.wait_for_url(f"**/en/{NOTE}")
    assert page.evaluate("window.stays") is True, "the page was loaded anew: this test is of the other case"
    page.wait_for_function("end => document.querySelector('a.md-select__link[hreflang=zh]').href.endsWith(end)", arg=f"/zh/{NOTE}")


@pytest.mark.parametrize(("locale", "language"), [("ja-JP", "ja"), ("zh-CN", "zh"), ("zh-TW", "zh"), ("en-GB", "en"), ("fr-FR", "en")])
def test_the_root_takes_a_reader_to_the_own_language(browser, home, locale, language):
    context = browser.new_context(locale=locale)
    page = context.new_page()
    page.goto(home)
    page.wait_for_url(f"**/base/{language}/")
    context.close()


@pytest.mark.visit(java_script_enabled=False)
def test_the_root_works_without_script(visitor):
    page = visitor.go("")
    page.wait_for_url("**/en/")


@pytest.mark.visit(java_script_enabled=False)
def test_the_filters_work_without_script(visitor):
    page = visitor.go("en/papers/")
    everything = page.locator(".item[data-written]:visible").count()
    page.locator("input[name=written]").check()
    written = page.locator(".item[data-written]:visible").count()
    assert 0 < written < everything


@pytest.mark.visit(color_scheme="light")
def test_the_scheme_can_be_changed_and_figures_follow(visitor):
    page = visitor.go(f"en/{NOTE}")
    before = page.locator("svg.figure").first.evaluate("figure => getComputedStyle(figure).color")
    page.locator("label[for=__palette_1]").click()
    assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    page.wait_for_function("before => getComputedStyle(document.querySelector('svg.figure')).color !== before", arg=before)


def test_the_keyboard_reaches_content_and_search(visitor):
    page = visitor.go(f"en/{NOTE}")
    page.keyboard.press("Tab")
    skip = page.evaluate("document.activeElement.hash ?? ''")
    assert skip.startswith("#"), "the first stop is no link to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == skip
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.className").find("md-search__input") >= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ALIKE)
def test_accessibility(browser, home, path, scheme):
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{home}ja/{path}")
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).response["violations"]
    context.close()
    assert not found, json.dumps([[fault["id"], [node["html"][:200] for node in fault["nodes"][:3]]] for fault in found], indent=1)


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
@pytest.mark.visit(viewport=PHONE)
def test_no_page_scrolls_sideways_on_a_phone_and_no_figure_loses_a_label(visitor, folder, language):
    wide, lost = [], []
    for path in pages(folder, language):
        page = visitor.go(path)
        if page.evaluate("document.scrollingElement.scrollWidth > innerWidth"):
            wide.append(path)
        lost += [(path, label) for label in page.evaluate(CUT_LABELS)]
    assert not wide, wide
    assert not lost, lost


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_what_is_offered_beside_the_pages_is_there(visitor, folder, language):
    page = visitor.go(f"{language}/notes/lora/")
    base = page.url
    files = page.locator(".downloads a[download]").evaluate_all("links => links.map(link => link.href)")
    assert {Path(file).suffix for file in files} == {".py", ".ipynb"}
    for file in [
        *files,
        f"{visitor.home}{language}/feed.xml",
        f"{visitor.home}{language}/sitemap.xml",
        f"{visitor.home}{language}/llms.txt",
    ]:
        answer = page.request.get(file)
        assert answer.ok, f"{base} offers {file}: {answer.status}"


def test_every_page_names_its_language_and_its_other_languages(folder):
    for path in pages(folder, "zh"):
        text = (folder / "base" / path / "index.html").read_text(encoding="utf-8")
        assert re.search(r'<html lang="zh', text), path
        for language in ("en", "ja", "zh"):
            assert f'hreflang="{language}"' in text, (path, language)


def test_no_id_stands_twice_on_a_page(folder):
    for path in pages(folder, "en"):
        text = (folder / "base" / path / "index.html").read_text(encoding="utf-8")
        ids = re.findall(r'\sid="([^"]+)"', text)
        twice = sorted({name for name in ids if ids.count(name) > 1})
        assert not twice, (path, twice[:5])


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_every_address_that_is_told_to_machines_is_there(folder, home, language):
    top, told = folder / "base" / language, home
    for name, pattern in (
        ("sitemap.xml", r"<loc>(.*?)</loc>|href=\"(.*?)\""),
        ("feed.xml", r"<link>(.*?)</link>"),
        ("llms.txt", r"\]\((.*?)\)"),
    ):
        text = (top / name).read_text(encoding="utf-8")
        if name.endswith(".xml"):
            ElementTree.fromstring(text)
        addresses = {"".join(found) for found in re.findall(pattern, text)}
        assert len(addresses) > 4, name
        for address in addresses:
            assert address.startswith(told), (name, address)
            path = folder / "base" / address.removeprefix(told)
            assert (path / "index.html").is_file() or path.is_file(), (name, address)
    listed = {found.removeprefix(told) for found in re.findall("<loc>(.*?)</loc>", (top / "sitemap.xml").read_text(encoding="utf-8"))}
    assert listed == set(pages(folder, language))


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_every_link_and_every_file_that_a_page_names_is_there(folder, home, language):
    """Links, images, styles and scripts of every page, with the parts of pages that they name."""
    ids: dict[Path, set[str]] = {}

    def parts(path: Path) -> set[str]:
        if path not in ids:
            ids[path] = set(re.findall(r'\sid="?([^"\s>]+)', path.read_text(encoding="utf-8")))
        return ids[path]

    missing = []
    for name in [*pages(folder, language), f"{language}/404.html"]:
        page = folder / "base" / name
        page = page / "index.html" if page.is_dir() else page
        for address in set(re.findall(r'(?:href|src)="?([^"\s>]+)', page.read_text(encoding="utf-8"))):
            address = html.unescape(address).removeprefix(home.removesuffix("/base/"))
            if re.match(r"[a-z]+:|//", address):
                continue
            path, _, part = address.partition("#")
            target = folder / path.lstrip("/") if path.startswith("/") else page.parent / path if path else page
            target = target / "index.html" if target.is_dir() else target
            part = unquote(part)
            if not target.is_file() or (part and target.suffix == ".html" and not part.startswith("__") and part not in parts(target)):
                missing.append((name, address))
    assert not missing, missing[:10]


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
@pytest.mark.visit(viewport=PHONE)
def test_a_page_s_title_stays_in_the_header_on_a_phone(visitor, language):
    page = visitor.go(f"{language}/{NOTE}")
    page.evaluate("window.scrollTo(0, 2000)")  # the header changes from the site's name to the page's
    page.wait_for_selector(".md-header__title--active")
    lines = page.locator(".md-header__topic .md-ellipsis").evaluate_all(
        "titles => titles.map(title => title.getBoundingClientRect().height / parseFloat(getComputedStyle(title).lineHeight))"
    )
    assert len(lines) == 2 and all(count < 1.5 for count in lines), lines
