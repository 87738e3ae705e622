"""The pages of evidence: the ledger of claims, models and data, the code, and what was counted."""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from rundoku.show.imports import imported, parse
from rundoku.site.catalogue import LANGUAGES, CatalogueError, Entry, Paper, load_labels
from rundoku.site.glossary import load_glossary
from rundoku.site.lineage import modules, rooms
from rundoku.site.parts import Context, filters, scroll, title_of
from rundoku.site.words import word

VERDICTS = ("exact", "reproduced", "recorded", "not reproduced")
DATA = "rundoku.data"


def items_shown(context: Context, kind: str) -> list[tuple[Entry, Paper, list[Mapping[str, Any]]]]:
    """The written notes that show items of a kind (figure, table, claim), with those items."""
    written = [(entry, entry.paper) for entry in context.catalogue.entries if entry.paper]
    found = ((entry, paper, [item for item in context.results.get(entry.slug, ()) if item["kind"] == kind]) for entry, paper in written)
    return [(entry, paper, items) for entry, paper, items in found if items]


def number(value: Any, specification: str) -> str:
    """A table's cell as text: a number in its format with a minus sign, nothing for None."""
    return value if isinstance(value, str) else "" if value is None else format(value, specification).replace("-", "−")


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def ledger(context: Context, *args: str) -> str:
    """Every claim of every note with its verdict, which a form can narrow."""
    rows: list[str] = []
    verdicts: Counter[str] = Counter()
    for entry, paper, claims in items_shown(context, "claim"):
        for item in claims:
            stated, verdict, where = paper.claims[item["name"]], item["verdict"], f"{entry.slug}-{item['name']}"
            verdicts[verdict] += 1
            rows.append(
                f'<tr class="item" data-verdict="{_class(verdict)}" id="{where}">'
                f'<td><a href="{escape(context.link(entry.slug))}#claim-{item["name"]}">{escape(stated.says[context.lang])}</a>'
                f'<br><span class="where">{escape(entry.title[context.lang].split(": ")[0])}</span></td>'
                f'<td>{escape(stated.fact.text)}<br><span class="where">{escape(stated.fact.where)}</span></td>'
                f'<td>{escape(number(item["ours"], item["format"]))}<br><code class="threshold">{escape(item["threshold"])}</code></td>'
                f"<td>{_verdict(context, verdict)}</td></tr>"
            )
    if not rows:
        return f"<p>{context.word('claims.none')}</p>"
    counts = "".join(f"<li>{_verdict(context, name)} {verdicts[name]}</li>" for name in VERDICTS)
    choices = {"verdict": {_class(name): word(context.lang, f"verdict.{name}") for name in VERDICTS if verdicts[name]}}
    head = [context.word(f"claims.{name}") for name in ("says", "paper", "ours", "verdict")]
    table = scroll(head, rows, context.word("nav.ledger"), "claims")
    return f'<div class="shelf" data-search-exclude=""><ul class="tally">{counts}</ul>{filters(context, "shelf", choices, {})}{table}</div>'


def _verdict(context: Context, verdict: str) -> str:
    return f'<span class="verdict {_class(verdict)}">{context.word(f"verdict.{verdict}")}</span>'


def figure(context: Context, *args: str) -> str:
    """A figure of a note, ``figure <slug> <name>``, as its run drew it; CatalogueError where no run has drawn it."""
    slug, name = args
    drawn = [item for item in context.results.get(slug, ()) if (item["kind"], item["name"]) == ("figure", name)]
    if not drawn:
        raise CatalogueError(f"found no figure {name!r} among what the snippets of {slug} have shown, expected one")
    labels, lang = load_labels(context.root, slug), context.lang
    alt, caption = escape(labels.alt(name, lang)), escape(labels.caption("figure", name, lang))

    def translate(found: re.Match[str]) -> str:
        return f"<text{found[1]}>{escape(labels.translate(unescape(found[2]), lang))}</text>"

    svg = re.sub(r"<text([^>]*)>([^<]*)</text>", translate, drawn[0]["svg"]).replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    more = f'<a href="{escape(context.link(slug))}#figure-{name}">{context.word("figure.more")}</a>'
    return f'<figure class="rundoku"><div class="drawing">{svg}</div><figcaption>{caption} {more}</figcaption></figure>'


def home_figure(context: Context, *args: str) -> str:
    """A figure beside the lines that drew it, from one of the written notes, the maintainer's picks first; "" before any is drawn."""
    for entry, _, figures in sorted(items_shown(context, "figure"), key=lambda found: not found[1].pick):
        labels = load_labels(context.root, entry.slug)
        for item in figures:
            code = _section(rooms(context.root)[entry.slug] / "note.py", item["name"])
            values = any("{" in text for text in (labels.caption("figure", item["name"], "en"), labels.alt(item["name"], "en")))
            if code and code.count("\n") <= 20 and not values:  # the note publishes the values that a caption quotes, this page does not
                shown = highlight(code, PythonLexer(), HtmlFormatter(cssclass="highlight", wrapcode=True))
                return f'<div class="alive" data-search-exclude=""><div>{shown}</div>{figure(context, entry.slug, item["name"])}</div>'
    return ""


def _section(note: Path, name: str) -> str:
    """The section of a note.py that draws a figure, "" where none names it."""
    sections = re.findall(r"^# --8<-- \[start:(.+?)\]\n(.*?)^# --8<-- \[end:\1\]", note.read_text(encoding="utf-8"), re.S | re.M)
    return next((code for _, code in sections if f'figure("{name}"' in code), "")


def home_numbers(context: Context, *args: str) -> str:
    """How much there is: notes, rooms, figures and claims, counted from the catalogue and the stored runs."""
    verdicts = Counter(item["verdict"] for _, _, claims in items_shown(context, "claim") for item in claims)
    counts = {
        "notes": (len(context.catalogue.papers), "papers"),
        "rooms": (len(rooms(context.root)), "tree"),
        "figures": (sum(len(figures) for _, _, figures in items_shown(context, "figure")), "papers"),
        "claims": (verdicts.total(), "ledger"),
        "failed": (verdicts["not reproduced"], "ledger"),
    }
    items = (
        f'<li><a href="{escape(context.link(page))}"><b>{number}</b> {context.word(f"home.{name}")}</a></li>'
        for name, (number, page) in counts.items()
    )
    return f'<ul class="numbers" data-search-exclude="">{"".join(items)}</ul>'


def glossary(context: Context, *args: str) -> str:
    """Every term in the page's language, with its names in the others, its meaning and what is not said for it."""
    others = [language for language in LANGUAGES if language != context.lang]
    parts = []
    for term in load_glossary(context.root).terms:
        names = " ".join(f'<span lang="{language}">{escape(term.name[language])}</span>' for language in others)
        wrong = " ".join(f'<del lang="{context.lang}">{escape(name)}</del>' for name in term.never[context.lang])
        never = f'<dd class="never"><span class="where">{context.word("glossary.never")}</span> {wrong}</dd>' if wrong else ""
        name = f'<dt id="{term.id}"><dfn>{escape(term.name[context.lang])}</dfn> <span class="names">{names}</span></dt>'
        parts.append(f"<div>{name} <dd>{escape(term.means[context.lang])}</dd>{never}</div>")
    return f'<dl class="glossary">{"".join(parts)}</dl>'


def api(context: Context, *args: str) -> str:
    """The rooms, each with its documented source."""
    there = rooms(context.root)
    listed = [entry for entry in context.catalogue.entries if entry.paper and entry.slug in there]
    items = (
        f'<li><a href="{escape(context.link(f"api/{entry.slug}"))}"><code>{entry.room}</code></a>'
        f'<span class="tagline">{escape(entry.title[context.lang])}</span></li>'
        for entry in listed
    )
    return f'<ul class="entries">{"".join(items)}</ul>' if listed else f"<p>{context.word('api.none')}</p>"


def data(context: Context, *args: str) -> str:
    """Every model and data set: what it is, its package, its licence and the rooms that use it, read from rundoku.data."""
    users: dict[str, list[str]] = {}
    for slug in rooms(context.root):
        for module in modules(context.root, slug):
            for name in imported(module, context.root / "code"):
                users.setdefault(name, []).append(slug)
    rows = []
    for path in sorted((context.root / "code" / "rundoku" / "data").glob("*.py")):
        tree = parse(path)
        about = _source(tree)
        if path.stem in ("__init__", "source") or not (ast.get_docstring(tree) and (about or users.get(f"{DATA}.{path.stem}"))):
            continue
        used = [context.catalogue.entry(slug) for slug in sorted(set(users.get(f"{DATA}.{path.stem}", [])))]
        name, docs = f"{DATA}.{path.stem}", (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        package = f"<code>{escape('{package}=={version}'.format_map(about))}</code>" if about else ""
        where = package or context.word("data.here")
        shown = ", ".join(title_of(context, entry, short=True) for entry in used)
        rows.append(
            f'<tr id="{path.stem}"><td><span lang="en">{escape(about.get("title", docs))}</span><br><code class="where">{name}</code></td>'
            f" <td>{where}</td> <td>{escape(about.get('licence', 'MIT'))}</td> <td>{shown}</td></tr>"
        )
    head = [context.word(key) for key in ("data.what", "data.from", "data.licence", "data.used")]
    return scroll(head, rows, context.word("nav.data"), "sources") if rows else f"<p>{context.word('data.none')}</p>"


def _source(tree: ast.Module) -> dict[str, str]:
    """The keywords of a module's ``SOURCE = Source(...)``, {} where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and getattr(node.targets[0], "id", "") == "SOURCE":
            return {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in node.value.keywords}
    return {}
