"""Everything that knows MkDocs: one build makes one language, ``DOCS_LANG``, at ``/<language>/``."""

import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import markdown_exec
from jinja2 import Environment
from markdown import Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import BasePlugin, event_priority
from mkdocs.structure.files import Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page
from mkdocs.utils.templates import TemplateContext

from rundoku.show.store import ROOT, Store, file_digest
from rundoku.site import changes, formulas, hover, made, pages, render, runner, snippets
from rundoku.site.build import commit, store_of
from rundoku.site.catalogue import LANGUAGES, Catalogue, CatalogueError, load, load_labels
from rundoku.site.glossary import load_glossary
from rundoku.site.lineage import lineage
from rundoku.site.words import word

NAMES = {"en": "English", "ja": "日本語", "zh": "中文"}
SUFFIX = re.compile(rf"\.({'|'.join(LANGUAGES)})(?=\.[a-z0-9]+$)")  # index.ja.md
NOTE = re.compile(r"notes/([\w-]+)/index\.md")
TEMPLATES = ("feed.xml", "llms.txt")  # made for each language, beside MkDocs' own sitemap.xml and 404.html
ROOT_TEMPLATES = {"root/index.html": "index.html", "root/404.html": "404.html"}  # made once, by the English build, above the languages


class RundokuPlugin(BasePlugin):  # type: ignore[no-untyped-call]
    """Picks the language's files, hands fences and inline marks to their renderers, and adds what each language's site needs."""

    root = ROOT
    language = "en"
    catalogue: Catalogue
    store: Store
    env: Environment

    # --- configuration ----------------------------------------------------------------------------------------------

    def on_startup(self, *, command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
        """Take markdown-exec's place in running Python."""
        markdown_exec.formatters["python"] = markdown_exec.formatters["py"] = render.python
        self.serving = command == "serve"
        self.built: dict[str, str] = {}  # the sources of the preview as it stands
        logging.getLogger("mkdocs.commands.build").addFilter(lambda told: "'dirty' build" not in told.getMessage())

    @event_priority(100)  # before the search plugin reads the language and the theme's templates are listed
    def on_config(self, config: MkDocsConfig) -> MkDocsConfig:
        """Turn the one configuration into the language's."""
        self.language = language = os.environ.get("DOCS_LANG", "en")
        if language not in LANGUAGES:
            raise render.PageError(f"DOCS_LANG is {language!r}; expected one of {', '.join(LANGUAGES)}")
        self.root = Path(config.config_file_path).resolve().parent
        self.store = store_of(self.root)
        lineage.cache_clear()
        self.chosen = self._chosen()
        try:
            self.catalogue, self.glossary = load(self.root), load_glossary(self.root)
        except CatalogueError as error:
            raise render.PageError(str(error)) from error
        home = config.site_url or "http://localhost/"
        self.home = home if home.endswith("/") else f"{home}/"
        config.site_url, config.site_dir = f"{self.home}{language}/", f"{config.site_dir}/{language}"
        config.theme["language"] = language
        config.theme.static_templates.update(TEMPLATES)
        config.extra["alternate"] = [{"name": NAMES[code], "lang": code, "link": f"{self.home}{code}/"} for code in LANGUAGES]
        config.extra["rundoku_language"] = language
        config.site_description = word(language, "site.description")
        self.commit = commit(self.root)
        config.edit_uri = "edit/main/" if config.repo_url else None
        fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
        fences.append({"name": "site", "class": "site", "format": self._site_fence})
        inline = config.mdx_configs.setdefault("pymdownx.inlinehilite", {}).setdefault("custom_inline", [])
        inline += [{"name": "value", "class": "value", "format": render.value}, {"name": "paper", "class": "fact", "format": render.fact}]
        config.mdx_configs.setdefault("pymdownx.snippets", {})["base_path"] = [str(self.root / base) for base in snippets.BASES]
        config.watch += [str(self.root / "notes"), str(self.root / "code" / "rundoku")]
        if config.nav:
            config.nav = self._nav(config.nav)
        import material.plugins.search.plugin as search

        if language != "zh":
            search.jieba = None  # Chinese search needs it, and it would cut Japanese too
        elif search.jieba:
            search.jieba.setLogLevel("WARNING")
        return config

    def _chosen(self) -> frozenset[str] | None:
        """Return the pages that this build makes; None for all of them."""
        if self.serving:
            self.sources = changes.read_by(self.language, changes.sources(self.root))
            return changes.touched(self.built, self.sources) if self.built else None
        named = os.environ.get("RUNDOKU_PAGES", "").split()
        return frozenset([*named, "tags.md"]) if named else None  # a page's tags link to where they are listed

    def _nav(self, nav: list[Any]) -> list[Any]:
        """Translate the titles and add the written notes, one group a theme, below the entry ``nav.notes``."""
        translated = []
        for entry in nav:
            (key, value), *_ = entry.items()
            if isinstance(value, list):
                value = self._nav(value)
                if key == "nav.notes":
                    value += self._notes()
            translated.append({word(self.language, key): value})
        return translated

    def _notes(self) -> list[Any]:
        groups = []
        for theme, named in self.catalogue.themes.items():
            written = [entry for entry in self.catalogue.in_theme(theme) if entry.paper]
            if written:
                entries = [{entry.title[self.language]: f"notes/{entry.slug}/index.md"} for entry in written]
                groups.append({named.name[self.language]: entries})
        return groups

    # --- files ------------------------------------------------------------------------------------------------------

    @event_priority(100)  # before plugins that look files up
    def on_files(self, files: Files, *, config: MkDocsConfig) -> Files:
        """Pick each page in this language: from docs/, notes/, and the API pages that are made."""
        for file in [file for file in files if file.src_dir == config.docs_dir]:
            files.remove(file)
        versions: dict[str, dict[str | None, Path]] = {}  # address: its sources by language
        for top, base in (("docs", self.root / "docs"), ("notes", self.root)):
            for path in sorted((self.root / top).rglob("*")):
                uri = path.relative_to(base).as_posix()
                if path.is_file() and not uri.startswith("overrides/") and not (top == "notes" and path.suffix == ".yml"):
                    suffix = SUFFIX.search(uri)
                    versions.setdefault(SUFFIX.sub("", uri), {})[suffix and suffix[1]] = path
        for uri, sources in versions.items():
            source = sources.get(self.language) or sources.get(None) or sources.get("en")
            if source is None:
                raise render.PageError(f"{uri} is there in {', '.join(filter(None, sources))} alone; expected {self.language} or English")
            file = changes.Chosen(uri, config.docs_dir, config.site_dir, config.use_directory_urls)
            file.chosen = self.chosen
            file.abs_src_path = str(source)
            file.edit_uri = source.relative_to(self.root).as_posix()
            files.append(file)
        for uri, content in made.files(self.catalogue, self.language, self.root, self.store, self.chosen):
            file = changes.Chosen.generated(config, uri, content=content)
            vars(file)["chosen"] = self.chosen  # typed as a plain file
            files.append(file)
        return files

    def on_nav(self, nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
        """Keep the files at hand for links."""
        self.files = files
        return nav

    # --- pages ------------------------------------------------------------------------------------------------------

    @event_priority(100)  # before the tags plugin reads the tags
    def on_page_markdown(self, markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
        """Set the stage for the page's fences; a note's tags and date come from its paper.yml."""
        note = NOTE.fullmatch(page.file.src_uri)
        slug = note[1] if note else ""
        source = page.file.edit_uri or page.file.src_uri
        paper = self.catalogue.entry(slug).paper if slug else None
        if paper:
            page.meta["tags"] = [self.catalogue.tags[tag][self.language] for tag in paper.tags]
            page.meta["paper"] = paper
        self.page = page
        try:
            text = Path(page.file.abs_src_path).read_text(encoding="utf-8") if page.file.abs_src_path else markdown
            found: dict[str, list[snippets.Block]] = {}
            for block in snippets.blocks(text, source, self.language, self.root):
                found.setdefault(runner.meaning(block.code), []).append(block)
            labels = load_labels(self.root, slug) if slug or found else None
            base = f"{config.repo_url.rstrip('/')}/blob/{self.commit}/" if config.repo_url else ""
            render.current = render.Page(self.root, self.store, source, self.language, slug, found, labels, paper, base)
        except (snippets.NoteError, CatalogueError) as error:
            raise render.PageError(str(error)) from error
        return markdown

    def on_page_content(self, html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
        """Let terms carry their definitions in a note, and keep formulas out of the search index."""
        render.current = None
        html = render.join_lines(html)
        if NOTE.fullmatch(page.file.src_uri):
            html = hover.define(html, self.glossary, self.language)
        return formulas.hide_from_search(html)

    def on_page_context(self, context: TemplateContext, *, page: Page, config: MkDocsConfig, nav: Navigation) -> TemplateContext:
        """Tell the templates where the page's other languages are."""
        url = "" if page.file.url in (".", "./") else page.file.url
        cast(dict[str, Any], context)["alternates"] = [
            {"lang": code, "name": NAMES[code], "url": f"{self.home}{code}/{url}"} for code in LANGUAGES
        ]
        return context

    def on_post_page(self, output: str, *, page: Page, config: MkDocsConfig) -> str:
        """Typeset the formulas, late: the search plugin has parsed the page by now."""
        try:
            source = page.file.edit_uri or page.file.src_uri
            return formulas.typeset(output, functools.partial(render.place, self.root, source, self.language))
        except snippets.NoteError as error:
            raise render.PageError(str(error)) from error

    def _site_fence(self, source: str, language: str, css_class: str, options: Any, md: Markdown, **_: Any) -> str:
        """Render a fence of language ``site``: one of the parts that are made from the catalogue, the imports and the stored runs."""
        name, *arguments = source.split()
        where = render.place(self.root, self.page.file.edit_uri or "", self.language, f"site\n{source}")
        if name not in pages.FENCES:
            raise render.PageError(f"{where}: there is no site part {name!r}; there are {', '.join(sorted(pages.FENCES))}")
        try:
            return pages.FENCES[name](self._context(), *arguments)
        except (CatalogueError, snippets.NoteError, TypeError) as error:
            raise render.PageError(f"{where}: site part {source.strip()!r}: {error}") from error

    def _context(self) -> pages.Context:
        note = NOTE.fullmatch(self.page.file.src_uri)
        return pages.Context(
            catalogue=self.catalogue,
            lang=self.language,
            slug=note[1] if note else "",
            results=Results(self.catalogue, self.root, self.store),
            root=self.root,
            link=self._link,
        )

    def _link(self, target: str) -> str:
        """Return the link from this page to a note ("lora") or to another page of the site ("ledger", "api/lora")."""
        written = target in self.catalogue.papers
        file = self.files.get_file_from_path(f"notes/{target}/index.md" if written else f"{target}.md")
        if file is None:
            raise snippets.NoteError(f"there is no page {target!r} to link to")
        return file.url_relative_to(self.page.file)

    # --- the rest of the site ---------------------------------------------------------------------------------------

    def on_env(self, env: Environment, *, config: MkDocsConfig, files: Files) -> Environment:
        """Give the templates the catalogue."""
        env.globals.update(catalogue=self.catalogue, language=self.language, languages=NAMES, word=functools.partial(word, self.language))
        self.env = env
        return env

    def on_post_build(self, *, config: MkDocsConfig) -> None:
        """Write what stands above the languages: the page that picks one, and the page for an address that there is not."""
        if self.serving:
            self.built = self.sources
        if self.language == "en" or self.serving:
            for template, name in ROOT_TEMPLATES.items():
                text = self.env.get_template(template).render(config=config, home=self.home, page=None)
                (Path(config.site_dir).parent / name).write_text(text, encoding="utf-8")


class Results(Mapping[str, Sequence[dict[str, Any]]]):
    """What the snippets of each written note have shown, in order, read from the store when it is asked for."""

    def __init__(self, catalogue: Catalogue, root: Path, store: Store) -> None:
        self.slugs, self.root, self.store = list(catalogue.papers), root, store

    def __getitem__(self, slug: str) -> Sequence[dict[str, Any]]:
        if slug not in self.slugs:
            raise KeyError(slug)
        page = self.root / "notes" / slug / "index.en.md"
        return _items(page, self.root, self.store.folder, file_digest(page) or "")

    def __iter__(self) -> Iterator[str]:
        return iter(self.slugs)

    def __len__(self) -> int:
        return len(self.slugs)


@functools.lru_cache(maxsize=512)
def _items(page: Path, root: Path, folder: Path, digest: str) -> list[dict[str, Any]]:
    """Return the items of a page's snippets; ``digest`` makes an edited page a new entry."""
    found: list[dict[str, Any]] = []
    for session in snippets.sessions(snippets.blocks(page.read_text(encoding="utf-8"), page.relative_to(root).as_posix(), "en", root)):
        for i in range(len(session)):
            outcome = runner.recall(Store(folder, root), [block.code for block in session[: i + 1]])
            found += outcome["items"] if outcome else []
    return found
