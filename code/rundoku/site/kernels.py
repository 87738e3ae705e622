"""The page of kernels: all of them side by side, then each one's compile reports as its note shows them."""

from collections.abc import Mapping
from html import escape
from typing import Any

from rundoku.site.catalogue import Entry, Labels, load_labels
from rundoku.site.evidence import items_shown, number
from rundoku.site.parts import Context, entry_list, scroll, title_of

REPORT = ("Kernel", "Target")  # the first columns of a table of compile reports
COST = ("Kernel", "Size")  # and of what the roofline allows


def kernels(context: Context, *args: str) -> str:
    """The kernels side by side, the compile reports and costs of each as its note shows them, and the kernels still to be written."""
    parts, compared, reported = [], [], set()
    for entry, _, tables in items_shown(context, "table"):
        labels = load_labels(context.root, entry.slug)
        for item in tables:
            if tuple(item["columns"][:2]) not in (REPORT, COST):
                continue
            if entry.slug not in reported:
                parts.append(f'<h2 id="{entry.slug}">{title_of(context, entry, short=True)}</h2>')
            reported.add(entry.slug)
            if "summary" in item:
                compared.append(_compared(context, entry, item["summary"]))
            parts.append(_table(context, entry, labels, item))
    planned = [entry for entry in context.catalogue.entries if entry.kernel and entry.slug not in reported]
    none = "" if reported else f"<p>{context.word('kernels.none')}</p>"
    rest = f'<h2 id="planned">{context.word("kernels.planned")}</h2>{entry_list(context, planned)}' if planned else ""
    return none + _overview(context, compared) + "".join(parts) + rest


def _table(context: Context, entry: Entry, labels: Labels, item: Mapping[str, Any]) -> str:
    rows = []
    for row in item["rows"]:
        pairs = zip(row, item["formats"], strict=True)
        cells = (labels.translate(one, context.lang) if isinstance(one, str) else number(one, spec) for one, spec in pairs)
        rows.append("<tr>" + " ".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>")
    head = [escape(labels.translate(column, context.lang)) for column in item["columns"]]
    return scroll(head, rows, escape(entry.title[context.lang]), "report")


def _overview(context: Context, rows: list[str]) -> str:
    if not rows:
        return ""
    head = [context.word(f"kernels.{name}") for name in ("kernel", "intensity", "bound", "occupancy", "tensor-core", "reports")]
    return f'<h2 id="overview">{context.word("kernels.overview")}</h2>' + scroll(head, rows, context.word("kernels.overview"), "report")


def _compared(context: Context, entry: Entry, found: Mapping[str, Any]) -> str:
    """A row of the overview: intensity as a range where the cases differ, the lowest occupancy with its target."""
    ends = list(dict.fromkeys(number(end, ".2f" if end < 1 else ".1f" if end < 100 else ",.0f") for end in found["intensity"]))
    cells = [
        f'<a href="#{entry.slug}">{escape(entry.title[context.lang].split(": ")[0])}</a>',
        "\u2060–\u2060".join(ends) or "—",  # on one line
        " / ".join(context.word(f"kernels.{name}") for name in found["bound"]) or "—",
        f'{number(found["occupancy"], ".0%")} <span class="where">{escape(found["target"])}</span>',
        "<br>".join(f"<code>{escape(name)}</code>" for name in found["tensor_core"]) or "—",
        number(found["reports"], ","),
    ]
    return "<tr>" + " ".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
