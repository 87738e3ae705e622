"""``nox -s tune``: what could stand in a kernel's published table, compiled, measured where a GPU is at hand, and proposed.

Nothing is written to the source: a proposal is a line that a person can commit.
"""

import argparse
import contextlib
import importlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from rundoku.gpu import bench
from rundoku.gpu.candidates import Candidate, Entry, Settings, entries
from rundoku.gpu.check import twice_rule
from rundoku.gpu.report import CompileError
from rundoku.gpu.show import kernel_modules
from rundoku.gpu.targets import TARGETS

RULE = "higher occupancy of the least occupied kernel, then larger tiles, fewer warps, fewer stages"
Timer = Callable[[bench.Call], Sequence[float]]


def rank(candidates: Sequence[Candidate], times: Mapping[str, float] | None = None) -> list[Candidate]:
    """Return candidates in order, the best first: by ``times`` (a line's time over the published one's) where measured, then by RULE."""
    times = times or {}

    def key(candidate: Candidate) -> tuple[float, ...]:
        settings = candidate.settings
        return times.get(settings.line(), 1.0), -candidate.occupancy, -settings.size, settings.num_warps, settings.num_stages

    return sorted(candidates, key=key)


@contextlib.contextmanager
def _instead(table: dict[str, Any], target: str, published: Any, config: Any) -> Iterator[None]:
    """Let a kernel's table hold ``config`` where it holds ``published``."""
    kept = table[target]
    try:
        if isinstance(kept, Mapping):
            table[target] = {use: config if entry == published else entry for use, entry in kept.items()}
        else:
            table[target] = tuple(config if entry == published else entry for entry in kept)
        yield
    finally:
        table[target] = kept


def measured(
    module: str, target: str, published: Settings, others: Sequence[Settings], device: str = "cuda", timer: Timer = bench._time
) -> tuple[dict[str, float], dict[str, str]]:
    """Time the published configuration and others by the room's benchmarks that use it: lines with their time over the published one's.

    The second mapping has the lines that compute something wrong and why: they are not timed. A time is the geometric mean over the
    benchmarks; where none uses the entry, both are empty.
    """
    from rundoku.gpu.launch import Config  # needs triton

    kernel, tiles = importlib.import_module(module), asdict(published)
    flat = {**published.tiles, "num_warps": published.num_warps, "num_stages": published.num_stages}
    used = [each for each in bench.benchmarks_of(module) if flat.items() <= each.config.items()]
    logs: dict[str, list[float]] = {}
    wrong: dict[str, str] = {}
    for each in used:
        calls, exact = each.prepare(device)
        plain = calls[bench.PLAIN]()
        for settings in (published, *others):
            if settings.line() in wrong:
                continue
            with _instead(kernel.CONFIGS, target, Config(**tiles), Config(**asdict(settings))):
                outputs = zip(calls[bench.OURS](), plain, exact, strict=True)
                problem = next((found for ours, theirs, truth in outputs if (found := twice_rule(ours, theirs, truth))), None)
                if problem:
                    wrong[settings.line()] = f"{each.case} {each.sizes}: {problem}"
                else:
                    logs.setdefault(settings.line(), []).append(math.log(timer(calls[bench.OURS])[1]))
    if published.line() in wrong:
        raise bench.WrongKernel(f"{module}, {published.line()}: {wrong[published.line()]}; nothing was timed against it")
    base = logs.get(published.line(), [])
    times = {line: math.exp(sum(found) / len(found) - sum(base) / len(base)) for line, found in logs.items() if line not in wrong}
    return times, wrong


def propose(paper: str, module: str, target: str, entry: Entry, here: bool) -> list[str]:
    """Return what to say of one entry of a table: what was left out and why, the published line and, where another is ahead, that one."""
    reasons = {id(each): each.rejected(entry.published) for each in (entry.published, *entry.others)}
    left = [each for each in entry.others if not reasons[id(each)]]
    times: dict[str, float] = {}
    wrong: dict[str, str] = {}
    if here:
        times, wrong = measured(module, target, entry.published.settings, [each.settings for each in left])
        left = [each for each in left if each.settings.line() not in wrong]
    out = Counter([reasons[id(each)] for each in entry.others if reasons[id(each)]] + ["computes something wrong"] * len(wrong))
    why = "; ".join(f"{count} {reason}" for reason, count in out.most_common())
    said = [f"{paper}, {target}, {entry.name}: {len(entry.others)} candidates" + (f", left out: {why}" if why else "")]
    if here and not times:
        said.append(f"  no benchmark uses this entry, so it was not measured; the order is the compile report's: {RULE}")
    ranked = rank([entry.published, *left] if not reasons[id(entry.published)] else left, times)

    def line(each: Candidate) -> str:
        time = f", {times[each.settings.line()]:.2f} of the published time" if each.settings.line() in times else ""
        return f"{each.settings.line()},  # lowest occupancy {each.occupancy:.0%}{time}"

    fault = reasons[id(entry.published)]
    said.append(f"  published  {line(entry.published)}" + (f" ({fault}: it must not be published)" if fault else ""))
    if not ranked or ranked[0] is entry.published:
        return [*said, "  keep it: no candidate is ahead"]
    return [*said, f"  proposed   {line(ranked[0])}"]


def tune(paper: str, module: str, targets: tuple[str, ...]) -> list[str]:
    """Compile, measure where a GPU of a target is at hand, and return what to say of a kernel's tables."""
    here = _target_here()
    found = entries(module, targets)
    if found is None:
        return [f"{paper}: its kernel.py offers no candidates(target); nothing to choose from"]
    said = []
    for target, table in found.items():
        measuring = target == here
        if not measuring:
            said.append(f"{paper}, {target}: nothing was measured, for no such GPU is at hand; the order is the compile report's: {RULE}")
        said += [line for entry in table for line in propose(paper, module, target, entry, measuring)]
    return said


def _target_here() -> str:
    if not torch.cuda.is_available():
        return ""
    from rundoku.gpu.launch import target_of  # needs triton

    return target_of(torch.empty(0, device="cuda"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune the tables of the named papers, or of all; returns 0, 1 for a kernel that is broken or wrong, 2 for an unknown name."""
    known = {module.split(".")[-2].replace("_", "-"): module for module in kernel_modules()}
    parser = argparse.ArgumentParser(prog="tune", description="Compile what could stand in the kernels' tables, and propose lines.")
    parser.add_argument("papers", nargs="*", metavar="paper", help=f"one of {', '.join(known)}; all where none is named")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="a target to tune for; all where none is named")
    given = parser.parse_args(arguments)
    unknown = [paper for paper in given.papers if paper not in known]
    if unknown:
        print(f"tune: {unknown[0]!r} has no kernel; those that have: {', '.join(known)}", file=sys.stderr)
        return 2
    for paper in given.papers or known:
        try:
            for line in tune(paper, known[paper], tuple(given.target or TARGETS)):
                print(line, flush=True)
        except (CompileError, bench.WrongKernel) as problem:
            print(f"tune: {paper}: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
