"""The colours of the site: readable on their background, told apart by colour-blind readers, and all there for the figures."""

import itertools
import re

import numpy as np
import pytest

from rundoku.show.colors import CSS
from rundoku.show.store import ROOT

SCHEMES = ("default", "slate")
# How two kinds of dichromats see linear RGB (Machado, Oliveira and Fernandes 2009, severity 1), and everyone else.
SIGHT = {
    "usual": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
TO_CONES = np.array([[0.41222147, 0.53633254, 0.05144599], [0.21190350, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.62997870]])
TO_LAB = np.array([[0.21045426, 0.79361779, -0.00407205], [1.97799850, -2.42859221, 0.45059371], [0.02590404, 0.78277177, -0.80867577]])


def colors(scheme: str) -> dict[str, str]:
    css = (ROOT / "docs/assets/palette.css").read_text(encoding="utf-8")
    block = re.search(rf'\[data-md-color-scheme="{scheme}"\] \{{(.*?)\}}', css, re.S)
    assert block
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[1]))


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    return np.cbrt(np.clip(rgb, 0, 1) @ TO_CONES.T) @ TO_LAB.T


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_is_readable_on_every_surface(scheme):
    palette = colors(scheme)
    text = ["ink", "soft", "accent", "good", "fair", "bad", "noted", *(name for name in palette if name.startswith("code-"))]
    ratios = {(name, surface): contrast(palette[name], palette[surface]) for name in text for surface in ("paper", "sheet")}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_series_stand_out_from_the_page(scheme):
    palette = colors(scheme)
    assert {i: ratio for i in range(1, 7) if (ratio := contrast(palette[f"series-{i}"], palette["paper"])) < 3} == {}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_series_differ_for_every_eye(scheme, sight):
    palette = colors(scheme)
    seen = {i: oklab(linear(palette[f"series-{i}"]) @ SIGHT[sight].T) for i in range(1, 7)}
    near = {(i, k): float(np.linalg.norm(seen[i] - seen[k])) for i, k in itertools.combinations(seen, 2)}
    assert {pair: distance for pair, distance in near.items() if distance < 0.08} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ramp_goes_from_the_page_to_its_opposite_in_even_steps(scheme):
    palette = colors(scheme)
    lightness = [float(oklab(linear(palette[f"ramp-{i}"]))[0]) for i in range(10)]
    steps = np.diff(lightness)
    assert (np.sign(steps) == np.sign(lightness[-1] - lightness[0])).all()
    assert contrast(palette["ramp-0"], palette["paper"]) < 1.3 and contrast(palette["ramp-9"], palette["paper"]) > 7
    assert np.abs(steps).max() < 3 * np.abs(steps).min()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_schemes_define_every_colour_that_figures_use(scheme):
    wanted = {name for value in CSS.values() for name in re.findall(r"var\(--([\w-]+)\)", value)}
    assert wanted and wanted <= colors(scheme).keys()


def test_the_schemes_define_the_same_names():
    assert colors("default").keys() == colors("slate").keys()


def test_no_page_asks_another_host_for_anything():
    loading = re.compile(r"""(?:@import|url\(|<script[^>]* src=|<link[^>]*stylesheet[^>]* href=|<img[^>]* src=)\s*["']?(?:https?:)?//""")
    files = [
        path
        for top in ("docs/assets", "docs/overrides")
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".css", ".html", ".js", ".svg")
    ]
    assert files and [path.name for path in files if loading.search(path.read_text(encoding="utf-8"))] == []
