"""What stands around the notes: cards, reading paths, family tree, timeline, ledger and the parts of a note that its catalogue fills.

Each function takes a Context and the words after its name in a ``site`` fence, and returns HTML that needs no script.
"""

from collections import Counter
from collections.abc import Callable
from html import escape

from rundoku.site import evidence, kernels
from rundoku.site.catalogue import CatalogueError, Entry
from rundoku.site.lineage import lineage as rooms_imported
from rundoku.site.made import copies, copy_name
from rundoku.site.parts import Context, entry_list, filters, line, progress, title_of

__all__ = ["FENCES", "Context"]


def cards(context: Context, *args: str) -> str:
    """Every entry as a card, with filters by theme, year, tag, path and kernel."""
    catalogue, lang = context.catalogue, context.lang
    used = Counter(tag for paper in catalogue.papers.values() for tag in paper.tags)
    years = sorted({entry.year for entry in catalogue.entries if entry.year}, reverse=True)
    choices = {
        "theme": {name: theme.name[lang] for name, theme in catalogue.themes.items()},
        "year": {str(year): str(year) for year in years},
        "tag": {tag: catalogue.tags[tag][lang] for tag in sorted(used, key=lambda tag: catalogue.tags[tag][lang])},
        "path": {name: f"{name} – {path.name[lang]}" for name, path in catalogue.paths.items()},
    }
    switches = {"kernel": context.word("filter.kernel"), "written": context.word("filter.written")}
    groups, rules = [], []
    for name, theme in catalogue.themes.items():
        lists = []
        for kind, chosen in (("cards", True), ("planned", False)):
            items = "".join(_card(context, entry) for entry in catalogue.in_theme(name) if (entry.paper is not None) == chosen)
            lists.append(f'<ul class="{kind}">{items}</ul>' if items else "")
        head = f'<h2 id="{name}">{escape(theme.name[lang])}</h2><p class="about">{escape(theme.description[lang])}</p>'
        groups.append(f'<section class="group">{head}{"".join(lists)}</section>')
    for filter_name, options in choices.items():  # a theme without a match goes with its heading
        rules += [f'.shelf:has([name={filter_name}] [value="{v}"]:checked) .group:not(:has([data-{filter_name}~="{v}"]))' for v in options]
    rules += [f'.shelf:has([name={switch}]:checked) .group:not(:has([data-{switch}="yes"]))' for switch in switches]
    style, form = f"<style>{','.join(rules)}{{display:none}}</style>", filters(context, "shelf", choices, switches)
    count = f'<p class="count">{context.word("shown")} </p>'  # CSS counts what it has not hidden, so this comes last and is moved up
    return f'{style}<div class="shelf">{form}{"".join(groups)}{count}</div>'


def _card(context: Context, entry: Entry) -> str:
    values = {
        "theme": entry.theme,
        "year": entry.year or "",
        "tag": " ".join(entry.paper.tags) if entry.paper else "",
        "path": " ".join(entry.paths),
        "kernel": "yes" if entry.kernel else "no",
        "written": "yes" if entry.paper else "no",
    }
    data = "".join(f' data-{name}="{value}"' for name, value in values.items())
    return f'<li class="item {"card written" if entry.paper else "unwritten"}"{data}>{line(context, entry)}</li>'


def path(context: Context, *args: str) -> str:
    """One reading path, in reading order; CatalogueError for a path that there is not."""
    if len(args) != 1 or args[0] not in context.catalogue.paths:
        raise CatalogueError(f"path: found {' '.join(args)!r}, expected one of {', '.join(context.catalogue.paths)}")
    chosen, entries = context.catalogue.paths[args[0]], context.catalogue.on_path(args[0])
    head = f'<p class="about">{escape(chosen.description[context.lang])}</p>'
    return f"{head}{progress(context, entries)}{entry_list(context, entries, 'ol', 'entries path')}"


def paths(context: Context, *args: str) -> str:
    """All reading paths, with their entries."""
    parts = (
        f'<section><h2 id="path-{name}"><span class="mark">{context.word("path", name)}</span> {escape(chosen.name[context.lang])}</h2>'
        f"{path(context, name)}</section>"
        for name, chosen in context.catalogue.paths.items()
    )
    return "".join(parts)


def timeline(context: Context, *args: str) -> str:
    """Every paper under the year in which it first appeared."""
    entries = [entry for entry in context.catalogue.entries if entry.year]
    years = sorted({entry.year for entry in entries if entry.year})
    parts = (
        f'<li><h2 id="y{year}">{year}</h2>{entry_list(context, [entry for entry in entries if entry.year == year])}</li>' for year in years
    )
    return f'<ol class="timeline">{"".join(parts)}</ol>'


ROW = 44  # height of a line of the family tree, in the units of its drawing


def tree(context: Context, *args: str) -> str:
    """The family tree: a line for each room by year, an arc from each room to what it imports."""
    edges = rooms_imported(context.root)
    listed = sorted((entry for entry in context.catalogue.entries if entry.slug in edges), key=lambda entry: entry.year or 9999)
    order = {entry.slug: i for i, entry in enumerate(listed)}
    arcs = [(entry.slug, parent) for entry in listed for parent in sorted(edges[entry.slug] & order.keys(), key=lambda slug: order[slug])]
    widest = max((abs(order[child] - order[parent]) for child, parent in arcs), default=0)
    width = 16 + min(120, 24 + widest * 12)
    curves, rows, rules = [], [], []
    for child, parent in arcs:
        top, bottom = sorted((order[parent] * ROW + ROW // 2, order[child] * ROW + ROW // 2))
        side, bend = width - 8, width - 8 - round(1.3 * min(width - 16, 24 + (bottom - top) / ROW * 12))  # a curve swings 3/4 that far
        curves.append(f'<path class="of-{child} to-{parent}" d="M{side} {top}C{bend} {top} {bend} {bottom} {side} {bottom}"/>')
    for entry in listed:
        rules.append(f".tree:has(.row-{entry.slug}:is(:hover,:focus-within)) :is(.of-{entry.slug},.to-{entry.slug})")
        names = ", ".join(
            context.catalogue.entry(parent).title[context.lang].split(": ")[0] for child, parent in arcs if child == entry.slug
        )
        said = context.word("builds-on", names) if names else context.word("tree.roots")
        year = entry.year or context.word("concept")
        title = title_of(context, entry, short=True)
        rows.append(f'<li class="row-{entry.slug}"><span class="year">{year}</span>{title}<span class="tagline">{said}</span></li>')
    dots = "".join(f'<circle cx="{width - 8}" cy="{i * ROW + ROW // 2}" r="4"/>' for i in range(len(listed)))
    box = f'viewBox="0 0 {width} {max(1, len(listed)) * ROW}"'
    drawing = f'<svg {box} role="img" aria-label="{context.word("tree")}">{"".join(curves)}{dots}</svg>'
    style = f"<style>{','.join(rules)}{{stroke:var(--accent);opacity:1;stroke-width:2.5}}</style>" if rules else ""
    size = f"--rows:{len(listed)};--wide:{width / ROW:.3f}"
    return f'{style}<div class="tree" data-search-exclude="" style="{size}">{drawing}<ol>{"".join(rows)}</ol></div>'


def lineage(context: Context, *args: str) -> str:
    """What this note's code builds on, and what builds on it, from the imports."""
    entry, edges = context.entry(), rooms_imported(context.root)
    before = edges.get(entry.slug, set())
    after = {slug for slug, imports in edges.items() if entry.slug in imports}
    parts = []
    for name, slugs in (("before", before), ("after", after)):
        found = sorted((one for one in context.catalogue.entries if one.slug in slugs), key=lambda one: one.year or 9999)
        shown = entry_list(context, found) if found else f"<p>{context.word(f'{name}.none')}</p>"
        parts.append(f'<section class="{name}"><p class="label">{context.word(name)}</p>{shown}</section>')
    return f'<div class="lineage" data-search-exclude="">{"".join(parts)}</div>'


def read_next(context: Context, *args: str) -> str:
    """The notes that this one's paper.yml recommends."""
    paper = context.entry().paper
    shown = entry_list(context, [context.catalogue.entry(slug) for slug in paper.next]) if paper else ""
    return f'<div data-search-exclude="">{shown}</div>'


def bibtex(context: Context, *args: str) -> str:
    """How to cite the paper; below a concept, the papers that its code imports."""
    slug = context.entry().slug
    entries = context.catalogue.bibtex(slug, rooms_imported(context.root).get(slug, ()))
    return f'<div class="highlight"><pre><code>{escape(entries)}</code></pre></div>' if entries else ""


def downloads(context: Context, *args: str) -> str:
    """The room as one file, its kernels where they are a file of their own, the note as a notebook, and the documented source."""
    entry = context.entry()
    name = entry.slug.replace("-", "_")
    targets = [("copy" if part == name else "kernel", copy_name(part)) for part in copies(entry.room, entry.slug, context.root)]
    targets += [("notebook", f"{name}.ipynb"), ("source", context.link(f"api/{entry.slug}"))]
    items = (
        f'<li><a href="{escape(target)}"{"" if kind == "source" else " download"}>{context.word(f"download.{kind}")}</a>'
        f'<span class="tagline">{context.word(f"download.{kind}.more")}</span></li>'
        for kind, target in targets
    )
    return f'<ul class="downloads">{"".join(items)}</ul>'


FENCES: dict[str, Callable[..., str]] = {
    "cards": cards,
    "path": path,
    "paths": paths,
    "timeline": timeline,
    "tree": tree,
    "lineage": lineage,
    "next": read_next,
    "bibtex": bibtex,
    "downloads": downloads,
    "ledger": evidence.ledger,
    "kernels": kernels.kernels,
    "data": evidence.data,
    "glossary": evidence.glossary,
    "api": evidence.api,
    "figure": evidence.figure,
    "home-figure": evidence.home_figure,
    "home-numbers": evidence.home_numbers,
}
