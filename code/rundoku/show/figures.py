"""Figures: matplotlib draws them once, as SVG that takes colours and fonts from the page it stands in."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rundoku.show import record
from rundoku.show.colors import CSS, FAINT, INK, PAPER, PRINTED, RAMP, SERIES

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
WIDEST = 7.2  # inches: wider, and the text would be too small on the page


def _style(colors: dict[str, str]) -> Any:
    from cycler import cycler
    from matplotlib import rcParamsDefault

    ink = [name for name, value in rcParamsDefault.items() if value == "black"]
    return {
        "svg.fonttype": "none", "svg.hashsalt": "rundoku", "savefig.transparent": True, "figure.dpi": 100,
        "font.size": 10, "axes.labelsize": 10, "axes.titlesize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
        "axes.prop_cycle": cycler(color=[colors[color] for color in SERIES]), "lines.linewidth": 1.8, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.8,
        "axes.formatter.use_mathtext": False, "axes.unicode_minus": True, "figure.constrained_layout.use": True,
        "grid.color": colors[FAINT], "axes.linewidth": 0.8,
        **dict.fromkeys(ink, colors[INK]),
    }  # fmt: skip


@contextmanager
def figure(name: str, *, size: tuple[float, float] = (6.0, 3.2), rows: int = 1, columns: int = 1, **options: Any) -> Iterator[Any]:
    """Draw a figure; yields its axes, an array of them where ``rows * columns > 1``.

    ``size`` is in inches. ``options`` go to ``matplotlib.pyplot.subplots`` (``sharey=True``, ``width_ratios=…``). Labels are English,
    in one line and without mathtext; the note's ``labels.yml`` translates them and holds caption and alternative text.
    Raises ValueError for a figure wider than 7.2 inches.
    """
    if size[0] > WIDEST:
        raise ValueError(f"figure {name!r} is {size[0]} inches wide; expected at most {WIDEST}, so that its text stays readable")
    import matplotlib

    if record.current:
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {color: color for color in PRINTED} if record.current else PRINTED
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcParams.update(_style(colors))
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # only measured with that font, never drawn
        drawing, axes = plt.subplots(rows, columns, figsize=size, **options)
        try:
            yield axes
            for axis in [axis for one in drawing.axes for axis in (one.xaxis, one.yaxis)]:
                _plain_powers(axis)
            if record.current:
                record.current.items.append({"kind": "figure", "name": name, "svg": _svg(drawing, name)})
            else:
                plt.show()
        finally:
            plt.close(drawing)


def heatmap(
    axes: Any, matrix: Any, *, xlabels: Sequence[str] = (), ylabels: Sequence[str] = (), low: float = 0.0, high: float | None = None
) -> None:
    """Draw a matrix (rows downwards) as cells in ten steps of the theme's ramp between ``low`` and ``high`` (the matrix's maximum).

    Raises ValueError where the labels do not fit the matrix, or it is no matrix.
    """
    import numpy as np
    from matplotlib.colors import ListedColormap, Normalize

    values = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"matrix has shape {values.shape}; expected two dimensions")
    for what, labels, length in (("xlabels", xlabels, values.shape[1]), ("ylabels", ylabels, values.shape[0])):
        if len(labels) not in (0, length):
            raise ValueError(f"{what} has {len(labels)} entries; expected {length}, one a cell")
    colors = RAMP if record.current else tuple(PRINTED[color] for color in RAMP)
    scale = Normalize(low, values.max() if high is None else high)
    axes.pcolormesh(values, cmap=ListedColormap(colors), norm=scale, edgecolors="none", linewidth=0, antialiased=False)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_aspect("equal")
    for axis, labels, length in ((axes.xaxis, xlabels, values.shape[1]), (axes.yaxis, ylabels, values.shape[0])):
        axis.set_ticks(np.arange(len(labels) and length) + 0.5, labels)
        axis.set_tick_params(length=0)


def tiles(axes: Any, owners: Any) -> None:
    """Draw who owns each element of a matrix (rows downwards), such as the program that stores it: one colour and one number an owner.

    ``owners`` holds whole numbers; elements below zero belong to nobody and stay empty. Raises ValueError where it is no such matrix.
    """
    import numpy as np

    numbers = np.asarray(owners)
    if numbers.ndim != 2 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"owners has shape {numbers.shape} and dtype {numbers.dtype}; expected a matrix of whole numbers")
    series, faint, paper = (SERIES, FAINT, PAPER) if record.current else ([PRINTED[c] for c in SERIES], PRINTED[FAINT], PRINTED[PAPER])
    (height, width), colors = numbers.shape, {owner: i % len(SERIES) for i, owner in enumerate(sorted({*numbers[numbers >= 0].tolist()}))}
    free = numbers >= 0
    for top, left in np.ndindex(height, width):
        if not free[top, left]:
            continue
        same = (numbers == numbers[top, left]) & free
        across = int((~np.append(same[top, left:], False)).argmax())
        down = int((~np.append(same[top:, left : left + across].all(1), False)).argmax())
        free[top : top + down, left : left + across] = False
        axes.barh(top + down / 2, across, height=down, left=left, color=series[colors[owner := int(numbers[top, left])]], edgecolor=paper)
        axes.text(left + across / 2, top + down / 2, str(owner), ha="center", va="center", color=paper)
    for edges, size, draw in ((range(height + 1), width, axes.hlines), (range(width + 1), height, axes.vlines)):
        draw(list(edges), 0, size, color=faint, linewidth=0.5, zorder=0)
        draw(list(edges), 0, size, color=paper, linewidth=0.5, alpha=0.35)  # the elements of a tile
    axes.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_tick_params(length=0)
        axis.set_ticks([])


def _plain_powers(axis: Any) -> None:
    """Write the ticks of a logarithmic axis as plain text (10⁵, 0.01), which mathtext would set glyph by glyph in its own font."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    def write(value: float, position: int | None = None) -> str:
        power = math.log10(value) if value > 0 else 0.5
        if abs(power - round(power)) < 1e-9 and abs(power) > 3:
            return "10" + f"{round(power)}".translate(SUPERSCRIPT)
        return f"{value:,.10g}"

    if isinstance(axis.get_major_formatter(), LogFormatter):
        low, high = sorted(axis.get_view_interval())
        axis.set_major_formatter(FuncFormatter(write))
        crowded = low <= 0 or math.log10(high / low) > 1.2
        axis.set_minor_formatter(NullFormatter() if crowded else FuncFormatter(write))


def _svg(drawing: Any, name: str) -> str:
    """Return the drawing as an SVG element without metadata, with ids of its own and the theme's colours."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.03, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.S)
    used = {*re.findall(r"url\(#([^)]*)\)", text), *re.findall(r'href="#([^"]*)"', text)}
    text = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)  # ids are the page's, not the figure's
    text = re.sub(r"url\(#|href=\"#", lambda m: f"{m[0]}{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)  # the page's own fonts serve three scripts
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # xlink:href stays: the theme takes any href for a link
    for stand_in, color in CSS.items():
        text = text.replace(stand_in, color)
    foreign = re.search(r"(?:fill|stroke|stop-color): ?(#\w+)", text)
    if foreign:
        raise ValueError(f"figure {name!r} uses the colour {foreign[1]}; expected INK, FAINT, PAPER, SERIES or RAMP of rundoku.show.colors")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2]
    names = 'class="figure" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {names} viewBox="0 0 {width} {height}" width="{width}pt" height="{height}pt">'
    return re.sub(r"\n\s*", " ", head + text[text.index(">") + 1 :]).replace("> <", "><").strip()
