"""What could stand in a published table, compiled: each candidate's reports, in parallel on the cores there are, and stored.

A kernel module that wants its table tuned offers, beside CONFIGS and compile_cases (``rundoku.gpu.report``),

    def candidates(target: str) -> list[Choice]     # rundoku.gpu.launch.Choice and grid; one for each entry of CONFIGS[target]

Compiling happens in fresh interpreters, some candidates in each; what has finished is kept until the kernel's code changes, so that an
interrupted run goes on with what is missing and a second one is quick.
"""

import importlib
import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rundoku.gpu.report import CompileError, Report, ask, compile_case
from rundoku.gpu.targets import TARGETS
from rundoku.show.experiments import experiment, source_digest

TOGETHER = 8  # candidates that one interpreter compiles: the most that an interruption loses on each core


@dataclass(frozen=True)
class Settings:
    """A configuration as text knows it: what ``launch.Config`` holds, without triton."""

    tiles: dict[str, int]
    num_warps: int
    num_stages: int

    def line(self) -> str:
        """Return it as it stands in a kernel module."""
        tiles = ", ".join(f'"{name}": {size}' for name, size in self.tiles.items())
        return f"Config({{{tiles}}}, num_warps={self.num_warps}, num_stages={self.num_stages})"

    @property
    def size(self) -> int:
        """Return the product of the tile sizes."""
        return math.prod(self.tiles.values())


@dataclass(frozen=True)
class Candidate:
    """A configuration and what the compiler made of every kernel that it serves."""

    settings: Settings
    reports: tuple[Report, ...]
    error: str = ""  # the compiler's, where it does not compile

    @property
    def occupancy(self) -> float:
        """Return the lowest occupancy of its kernels."""
        return min((report.occupancy for report in self.reports), default=0.0)

    def rejected(self, published: "Candidate") -> str:
        """Return why this one must not be published in the other's place, "" where it may."""
        if self.error:
            return "does not compile"
        for kind, wrong in (
            ("spills", any(report.spill for report in self.reports)),
            ("too much shared memory", any(report.shared > report.shared_limit for report in self.reports)),
            ("does not fit on a multiprocessor", any(report.problem() for report in self.reports)),
        ):
            if wrong:
                return kind
        used = {report.case: report.tensor_core for report in published.reports if report.tensor_core}
        lost = next((used[r.case] for r in self.reports if r.case in used and r.tensor_core != used[r.case]), "")
        return f"has no {lost} where the published one has it" if lost else ""


@dataclass(frozen=True)
class Entry:
    """One entry of a target's published table, compiled, and all that could stand in its place."""

    name: str
    published: Candidate
    others: tuple[Candidate, ...]


@experiment
def _listed(*, module: str, source: str) -> dict:  # source: what the module offers is asked again when its code has changed
    return {"targets": ask(__name__, module)}


@experiment
def _compiled(*, module: str, source: str, target: str, entry: int, first: int) -> dict:
    return {"found": ask(__name__, module, target, str(entry), str(first))}


def entries(module: str, targets: tuple[str, ...] = tuple(TARGETS)) -> dict[str, list[Entry]] | None:
    """Return the compiled entries of a kernel module by target, None where it offers no candidates; raises CompileError where it breaks."""
    source = source_digest(module) or ""
    listed = _listed(module=module, source=source).as_dict()["targets"]
    if listed is None:
        return None
    places = [(target, i) for target in targets for i in range(len(listed[target]))]
    tasks = [(target, i, first) for target, i in places for first in range(0, listed[target][i]["count"], TOGETHER)]
    asked = [{"module": module, "source": source, "target": target, "entry": i, "first": first} for target, i, first in tasks]
    found: dict[tuple[str, int], list[Candidate]] = {place: [] for place in places}
    for (target, i, _), result in zip(tasks, _compiled.each(asked), strict=True):
        found[target, i] += [_candidate(content) for content in result.as_dict()["found"]]
    by_target: dict[str, list[Entry]] = {target: [] for target in targets}
    for (target, i), (published, *others) in found.items():
        by_target[target].append(Entry(listed[target][i]["name"], published, tuple(others)))
    return by_target


def _candidate(content: dict[str, Any]) -> Candidate:
    reports = tuple(Report(**report) for report in content["reports"])
    return Candidate(Settings(**content["settings"]), reports, content["error"])


def _configs(choice: Any) -> list[Any]:
    """Return the published configuration of a ``launch.Choice``, then the others, each once."""
    both = [choice.published, *choice.others]
    return [config for i, config in enumerate(both) if config not in both[:i]]


def _compile(choice: Any, config: Any, target: str) -> dict[str, Any]:
    content: dict[str, Any] = {"settings": asdict(config), "reports": [], "error": ""}
    try:
        content["reports"] = [asdict(compile_case(case, TARGETS[target])) for case in choice.cases(config)]
    except Exception as problem:  # whatever the compiler raises: this candidate is out, the others go on
        if isinstance(problem, CompileError):
            raise  # the case itself is wrong, for every candidate
        content["error"] = f"{type(problem).__name__}: {problem}"[-500:]
    return content


def _main(module: str, target: str = "", entry: str = "0", first: str = "0") -> Any:
    offered: Any = getattr(importlib.import_module(module), "candidates", None)
    if not target:
        of_target = {name: offered(name) for name in TARGETS} if offered else {}
        return {name: [{"name": c.name, "count": len(_configs(c))} for c in found] for name, found in of_target.items()} or None
    choice = offered(target)[int(entry)]
    return [_compile(choice, config, target) for config in _configs(choice)[int(first) : int(first) + TOGETHER]]


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
