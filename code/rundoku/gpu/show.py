"""Compile reports on a page: a kernel's table in its note, and every kernel's reports for the site's page of kernels.

A note's snippet says ``compile_table("compiled", "rundoku.papers.layer_norm.kernel")``; the table's columns are COLUMNS, and it brings the
``summary`` of what it shows along, which the page of kernels compares. ``cost_table`` shows what the roofline allows the cases that state
their costs.
Both rest on a stored run, ``compiled(module, cases, tiles)``, kept until the kernel's code changes.
"""

from collections.abc import Sequence
from typing import Any

from rundoku.gpu.kept import compiled
from rundoku.gpu.report import Report
from rundoku.show import record as recording
from rundoku.show import table
from rundoku.show.imports import SOURCE_ROOT

__all__ = ["COLUMNS", "compile_table", "compiled", "cost_table", "kernel_modules", "summary"]

_FORMATS = {
    "Kernel": "", "Target": "", "Tile": "", "Warps": "", "Registers": "", "Spill (bytes)": ",", "Shared memory (bytes)": ",",
    "Limit (bytes)": ",", "Matrix instructions": ",", "Occupancy": ".0%",
}  # fmt: skip
COLUMNS = tuple(_FORMATS)
CARD_NAMES = {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200", "gfx942": "MI300X"}  # of targets.CARD_OF, short
COST_COLUMNS = ("Kernel", "Size", "Arithmetic intensity", "Bound by", *CARD_NAMES.values())


def kernel_modules() -> list[str]:
    """Return the dotted names of every room's kernel module, in alphabetical order."""
    return sorted(".".join(path.relative_to(SOURCE_ROOT).with_suffix("").parts) for path in SOURCE_ROOT.glob("rundoku/papers/*/kernel.py"))


def compile_table(name: str, module: str, *, cases: tuple[str, ...] = (), tiles: dict[str, int] | None = None) -> list[Report]:
    """Show the reports of a kernel module as a table and return those that are shown.

    ``cases`` names those to show (none: all), and ``tiles`` the tile sizes: ``tiles={"COLUMNS": 4096}``.
    Raises ValueError for a case that the module has not.
    """
    shown = compiled(module, cases, tiles)
    rows = [
        (r.case, r.target, " × ".join(map(str, r.tiles.values())), r.num_warps, r.registers, r.spill, r.shared, r.shared_limit,
         r.tensor_core_count, r.occupancy)
        for r in shown
    ]  # fmt: skip
    table(name, columns=COLUMNS, rows=rows, formats=tuple(_FORMATS.values()))
    if recording.current:
        recording.current.items[-1]["summary"] = summary(shown)
    return shown


def cost_table(name: str, module: str, *, cases: tuple[str, ...] = (), tiles: dict[str, int] | None = None) -> list[Report]:
    """Show what the roofline allows the cases that state a cost, a row each, and return their reports.

    A row has the intensity in FLOP a byte, what bounds it, and for each target's card the share of its peak FLOP/s, in the arithmetic's
    dtype, that this intensity allows: data sheets and formulas, nothing measured. ``cases`` and ``tiles`` as in ``compile_table``.
    Raises ValueError for a case that the module has not, and where none states a cost.
    """
    shown = [report for report in compiled(module, cases, tiles) if report.intensity is not None]
    if not shown:
        raise ValueError(f"cases: got {', '.join(cases) or module}, none of which states a cost; expected `cost=` in its compile_cases")
    found: dict[tuple[Any, ...], dict[str, Report]] = {}
    for report in shown:
        found.setdefault((report.case, report.size, report.intensity), {})[report.target] = report
    rows = []
    for (case, size, intensity), by_target in found.items():
        shares = [by_target[target].peak_share if target in by_target else None for target in CARD_NAMES]
        size = size.replace(" = ", "\u00a0=\u00a0")  # a line breaks between sizes, not within one
        rows.append((case, size, intensity, ", ".join(_bounds(by_target.values())), *shares))
    table(name, columns=COST_COLUMNS, rows=rows, formats=("", "", ".2f", "", *[".1%"] * len(CARD_NAMES)))
    return shown


def summary(reports: Sequence[Report]) -> dict[str, Any]:
    """Return what the page of kernels compares: how many reports, their range of intensity, what bounds them, the lowest occupancy."""
    intensities = [report.intensity for report in reports if report.intensity is not None]
    lowest = min(reports, key=lambda report: report.occupancy)
    return {
        "reports": len(reports),
        "intensity": [min(intensities), max(intensities)] if intensities else [],
        "bound": _bounds(reports),
        "occupancy": lowest.occupancy,
        "target": lowest.target,  # where it is lowest
        "tensor_core": list(dict.fromkeys(report.tensor_core for report in reports if report.tensor_core)),
    }


def _bounds(reports: Any) -> list[str]:
    return sorted({report.bound for report in reports if report.bound}, reverse=True)  # memory before compute
