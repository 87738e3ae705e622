"""Compile reports, kept: a module of its own, so that what shows them can be edited without compiling anything again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rundoku.gpu.report import CompileError, Report, compile_report, problems
from rundoku.show import experiment
from rundoku.show import record as recording
from rundoku.show.experiments import source_digest
from rundoku.show.imports import closure


@experiment
def _compiled(*, module: str, source: str, cases: Sequence[str], tiles: Mapping[str, int]) -> dict:
    # A kernel whose source has changed is compiled again.
    return {"reports": [asdict(report) for report in compile_report(module, cases=cases, tiles=tiles)]}


def compiled(module: str, cases: Sequence[str] = (), tiles: Mapping[str, int] | None = None) -> list[Report]:
    """Return the compile reports of a kernel module for all four targets, from the store where its code is unchanged.

    ``cases`` and ``tiles`` as in ``compile_report``: a build compiles what its pages show, the tests compile everything.
    Raises CompileError where a configuration must not be published: it spills, or asks for more than its target has.
    """
    if recording.current:
        recording.current.opened.update(closure(module).values())  # the page rests on the kernel, though no snippet imports it
    found = _compiled(module=module, source=source_digest(module) or "", cases=tuple(cases), tiles=dict(tiles or {})).as_dict()
    reports = [Report(**report) for report in found["reports"]]
    if wrong := problems(reports):
        raise CompileError("\n".join([f"{module} publishes what must not be published:", *wrong]))
    return reports
