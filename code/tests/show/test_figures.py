import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rundoku.show import figure, heatmap, record, tiles
from rundoku.show.colors import CSS, PRINTED


@pytest.fixture
def listening() -> Iterator[record.Recording]:
    recording = record.Recording()
    record.listen(recording)
    yield recording
    record.listen(None)


@pytest.fixture
def draw(listening: record.Recording) -> Callable[..., str]:
    def drawn(paint: Callable[[Any], object], name: str = "one", **options: Any) -> str:
        with figure(name, **options) as axes:
            paint(axes)
        return listening.items[-1]["svg"]

    return drawn


def everything(axes: Any) -> None:
    for number in range(6):
        axes.plot([1, 2, 3], [number, number + 1, number + 4], label=f"line {number}", marker="o")
    axes.fill_between([1, 2], [0, 1], [1, 2], alpha=0.3)
    axes.scatter([1, 2], [3, 4])
    axes.bar([1, 2], [3, -4])
    axes.boxplot([[1, 2, 3, 9]], positions=[4])
    axes.errorbar([1, 2], [3, 4], yerr=[1, 1])
    axes.axhline(2.5, linestyle="--")
    axes.text(1, 1, "σ² ≤ √2 & <b>")
    axes.annotate("here", (1, 2), (2, 5), arrowprops={"arrowstyle": "->"})
    axes.set_xlabel("step")
    axes.set_title("a part")
    axes.legend()


def text_of(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_no_colour_is_left_that_the_theme_does_not_set(draw: Callable[..., str]) -> None:
    svg = draw(everything)
    assert not [color for color in CSS if color in svg]
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b|rgba?\(", svg)) == set()
    assert {"currentColor", "var(--faint)", *(f"var(--series-{i})" for i in range(1, 7))} <= set(
        re.findall(r"currentColor|var\(--[\w-]+\)", svg)
    )


def test_text_stays_text_without_a_font_of_its_own(draw: Callable[..., str]) -> None:
    svg = draw(everything)
    assert {"step", "a part", "line 0", "line 5", "σ² ≤ √2 & <b>", "here"} <= set(text_of(svg))
    assert "font-family" not in svg and "<style" not in svg and "<metadata" not in svg
    assert not re.search(r"style=\"[^\"]*font: ", svg)
    sizes = {float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)}
    assert sizes and min(sizes) >= 9


def test_ids_are_the_figures_own_and_every_reference_finds_its_target(draw: Callable[..., str]) -> None:
    one, two = draw(everything, "one"), draw(everything, "two")
    ids = re.findall(r'\sid="([^"]*)"', one + two)
    assert len(ids) == len(set(ids)) and ids
    for name, svg in (("one", one), ("two", two)):
        used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg)
        assert used and {a or b for a, b in used} <= set(re.findall(r'\sid="([^"]*)"', svg))
        assert all((a or b).startswith(f"{name}-") for a, b in used)


def test_the_same_drawing_has_the_same_bytes(draw: Callable[..., str]) -> None:
    assert draw(everything) == draw(everything)
    assert draw(everything) != draw(lambda axes: axes.plot([1, 2], [1, 3]))


def test_a_logarithmic_axis_is_labelled_in_plain_text(draw: Callable[..., str]) -> None:
    def wide(axes: Any) -> None:
        axes.loglog([1e-6, 1e7], [1, 1000])

    def narrow(axes: Any) -> None:
        axes.semilogy([1, 2], [1, 6])

    wide_text, narrow_text = text_of(draw(wide)), text_of(draw(narrow))
    assert {"10⁻⁶", "10⁴", "0.01", "1", "10", "100", "1,000"} <= set(wide_text)
    assert not [text for text in wide_text if "$" in text or "mathdefault" in text]
    assert {"1", "2", "3"} <= set(narrow_text), "fewer than two powers: the steps between them have labels, too"


def test_minus_signs_are_minus_signs(draw: Callable[..., str]) -> None:
    assert "−2.00" in text_of(draw(lambda axes: axes.plot([-2, -1, 0], [0, 1, 2])))


def test_a_grid_of_axes(draw: Callable[..., str], listening: record.Recording) -> None:
    svg = draw(lambda axes: [part.plot([1, 2]) for part in axes.flat], "grid", rows=2, columns=2, size=(7, 4))
    assert listening.items[-1]["name"] == "grid" and listening.items[-1]["kind"] == "figure"
    assert svg.count('<path d="M') > 8


def test_a_figure_that_fails_or_is_too_wide_shows_nothing(draw: Callable[..., str], listening: record.Recording) -> None:
    import matplotlib.pyplot as plt

    with pytest.raises(ZeroDivisionError):
        draw(lambda axes: 1 / 0)
    with pytest.raises(ValueError, match=r"figure 'one' is 8 inches wide; expected at most 7\.2"):
        draw(everything, size=(8, 3))
    with pytest.raises(ValueError, match=r"figure 'one' uses the colour #ff0000; expected INK, FAINT"):
        draw(lambda axes: axes.plot([1, 2], color="red"))
    assert listening.items == [] and plt.get_fignums() == []


def test_a_heatmap_has_a_cell_for_each_entry_from_the_themes_ramp(draw: Callable[..., str]) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    svg = draw(lambda axes: heatmap(axes, matrix, xlabels=list("abcd"), ylabels=["x", "y", "z"]))
    used = re.findall(r"var\(--ramp-(\d)\)", svg)
    assert set(used) == {str(min(int(value / 11 * 10), 9)) for value in matrix.flatten().tolist()}
    assert {"a", "d", "x", "z"} <= set(text_of(svg))
    for wrong, given in (("3", {"xlabels": list("abc")}), ("2", {"ylabels": ["x", "y"]})):
        with pytest.raises(ValueError, match=wrong):
            draw(lambda axes, given=given: heatmap(axes, matrix, **given))
    with pytest.raises(ValueError, match=r"shape \(3,\); expected two dimensions"):
        draw(lambda axes: heatmap(axes, np.ones(3)))


def test_tiles_have_a_colour_and_a_number_for_each_owner(draw: Callable[..., str]) -> None:
    owners = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [7, 7, 7, -1], [-1, -1, 0, -1]])
    svg = draw(lambda axes: tiles(axes, owners))
    assert sorted(text_of(svg)) == ["0", "0", "1", "7"]  # the first owner has two places, nobody none
    filled = re.findall(r"fill: var\(--series-(\d)\)", svg)
    assert sorted(filled) == ["1", "1", "2", "3"]
    for wrong in (np.ones((2, 2)), np.zeros(3, int), np.zeros((0, 2), int)):
        with pytest.raises(ValueError, match="expected a matrix of whole numbers"):
            draw(lambda axes, wrong=wrong: tiles(axes, wrong))


def test_outside_a_build_a_figure_is_shown_in_printed_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().axes[0].lines[0].get_color()))
    with figure("one") as axes:
        axes.plot([1, 2])
    assert shown == [next(color for stand_in, color in PRINTED.items() if CSS[stand_in] == "var(--series-1)")]
