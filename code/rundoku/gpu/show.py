"""Compile reports on a page: a kernel's table in its note, and every kernel's reports for the site's page of kernels.

A note's snippet says ``compile_table("compiled", "rundoku.papers.layer_norm.kernel")``; the table's columns are COLUMNS. The page of
kernels asks ``compiled(module)`` for each of ``kernel_modules()``. Both rest on the same stored run, kept until the kernel's code changes.
"""

from dataclasses import asdict

from rundoku.gpu.report import Report, compile_report
from rundoku.show import experiment, table
from rundoku.show import record as recording
from rundoku.show.experiments import source_digest
from rundoku.show.imports import SOURCE_ROOT, closure

_FORMATS = {
    "Kernel": "", "Target": "", "Tile": "", "Warps": "", "Registers": "", "Spill (bytes)": ",", "Shared memory (bytes)": ",",
    "Limit (bytes)": ",", "Matrix instructions": ",", "Occupancy": ".0%",
}  # fmt: skip
COLUMNS = tuple(_FORMATS)


def kernel_modules() -> list[str]:
    """Return the dotted names of every room's kernel module, in alphabetical order."""
    return sorted(".".join(path.relative_to(SOURCE_ROOT).with_suffix("").parts) for path in SOURCE_ROOT.glob("rundoku/papers/*/kernel.py"))


@experiment
def _compiled(*, module: str, source: str) -> dict:  # source: the kernel is compiled again when its code has changed
    return {"reports": [asdict(report) for report in compile_report(module)]}


def compiled(module: str) -> list[Report]:
    """Return the compile reports of a kernel module for all four targets, from the store where its code is unchanged."""
    if recording.current:
        recording.current.opened.update(closure(module).values())  # the page rests on the kernel, though no snippet imports it
    found = _compiled(module=module, source=source_digest(module) or "").as_dict()
    return [Report(**report) for report in found["reports"]]


def compile_table(name: str, module: str, *, cases: tuple[str, ...] = (), tiles: dict[str, int] | None = None) -> list[Report]:
    """Show the reports of a kernel module as a table and return those that are shown.

    ``cases`` names those to show (none: all), and ``tiles`` the tile sizes: ``tiles={"COLUMNS": 4096}``.
    Raises ValueError for a case that the module has not.
    """
    reports = compiled(module)
    unknown = sorted(set(cases) - {report.case for report in reports})
    if unknown:
        raise ValueError(f"cases: got {unknown[0]!r}, expected some of {', '.join(sorted({report.case for report in reports}))}")
    wanted = (tiles or {}).items()
    shown = [report for report in reports if (not cases or report.case in cases) and wanted <= report.tiles.items()]
    rows = [
        (r.case, r.target, " × ".join(map(str, r.tiles.values())), r.num_warps, r.registers, r.spill, r.shared, r.shared_limit,
         r.tensor_core_count, r.occupancy)
        for r in shown
    ]  # fmt: skip
    table(name, columns=COLUMNS, rows=rows, formats=tuple(_FORMATS.values()))
    return shown
