"""Benchmarks of kernels, on a machine with a GPU: checked first, then ours and every peer timed in one run (``nox -s bench``).

A room with a kernel says in its ``benchmarks.py`` (or, where it has none, ``experiments.py``) what there is to measure:

    def benchmarks() -> list[Bench]
"""

import argparse
import importlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from rundoku.gpu import records
from rundoku.gpu.check import twice_rule
from rundoku.gpu.roofline import bound
from rundoku.gpu.show import kernel_modules
from rundoku.gpu.targets import CARDS
from rundoku.show.experiments import source_digest
from rundoku.show.store import versions

OURS, PLAIN = "rundoku", "torch"  # the providers that every benchmark has
Call = Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Bench:
    """One size to measure."""

    case: str
    sizes: dict[str, int]
    dtype: str
    flops: float
    bytes: float
    prepare: Callable[[str], tuple[dict[str, Call], Sequence[torch.Tensor]]]
    # device -> (calls by provider, among them OURS and PLAIN; the float64 result). A call returns every output, gradients too.
    config: dict[str, int] = field(default_factory=dict)


class WrongKernel(Exception):
    """A kernel is further from the float64 result than allowed, so its time means nothing."""


def measure(bench: Bench, device: str, device_name: str, timer: Callable[[Call], Sequence[float]]) -> list[records.Measurement]:
    """Check ours against float64, then time every provider; ``timer`` returns p20, p50 and p80 in milliseconds.

    Raises WrongKernel before anything is timed where ours breaks the 2× rule.
    """
    calls, exact = bench.prepare(device)
    outputs = zip(calls[OURS](), calls[PLAIN](), exact, strict=True)
    for i, (ours, plain, wanted) in enumerate(outputs):
        wrong = twice_rule(ours, plain, wanted)
        if wrong:
            raise WrongKernel(f"{bench.case} {bench.sizes} {bench.dtype}, output {i}: {wrong}; not timed")
    card, found = CARDS.get(device_name), []
    for provider, call in calls.items():
        try:
            p20, p50, p80 = timer(call)
        except Exception as problem:
            if provider in (OURS, PLAIN):
                raise
            print(f"bench: {provider} is left out of {bench.case} {bench.sizes}: {problem}")  # a peer's limits are not ours
            continue
        seconds = p50 / 1e3
        roof = bound(card, flops=bench.flops, bytes=bench.bytes, dtype=bench.dtype).seconds / seconds if card else None
        found.append(
            records.Measurement(
                case=bench.case,
                provider=provider,
                sizes=bench.sizes,
                dtype=bench.dtype,
                config=bench.config if provider == OURS else {},
                p20_ms=p20,
                p50_ms=p50,
                p80_ms=p80,
                flops=bench.flops,
                bytes=bench.bytes,
                flops_per_s=bench.flops / seconds,
                bytes_per_s=bench.bytes / seconds,
                roofline=roof,
            )
        )
    return found


def _time(call: Call) -> Sequence[float]:
    from triton.testing import do_bench  # clears the L2 cache between calls

    return do_bench(call, quantiles=[0.2, 0.5, 0.8])


def _driver() -> str:
    if torch.version.hip or not shutil.which("nvidia-smi"):
        return f"HIP {torch.version.hip}" if torch.version.hip else "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def benchmarks_of(module: str) -> list[Bench]:
    """Return what the room of a kernel module says there is to measure."""
    room = module.rpartition(".")[0]
    part = "benchmarks" if importlib.util.find_spec(f"{room}.benchmarks") else "experiments"
    return importlib.import_module(f"{room}.{part}").benchmarks()


def run(module: str) -> Path:
    """Measure a kernel module on this machine's GPU and write its record; raises WrongKernel, and writes nothing, where it is wrong."""
    name = torch.cuda.get_device_name()
    found = [row for bench in benchmarks_of(module) for row in measure(bench, "cuda", name, _time)]
    used = {**versions(), "cuda": torch.version.cuda or "", "hip": torch.version.hip or ""}
    date = datetime.now(UTC).date().isoformat()
    record = records.Record(module, source_digest(module) or "", name, _driver(), used, date, tuple(found))
    return records.save(record, records.folder(module))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the kernels of the named papers, or all; returns 0, 1 for a wrong kernel, 2 without a GPU or for an unknown name."""
    known = {module.split(".")[-2].replace("_", "-"): module for module in kernel_modules()}
    parser = argparse.ArgumentParser(prog="bench", description="Check and time the kernels on this machine's GPU.")
    parser.add_argument("papers", nargs="*", metavar="paper", help=f"one of {', '.join(known)}; all where none is named")
    papers = parser.parse_args(arguments).papers
    unknown = [paper for paper in papers if paper not in known]
    if unknown:
        print(f"bench: {unknown[0]!r} has no kernel; those that have: {', '.join(known)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("bench: this needs a GPU that torch can use, and finds none; nothing was measured", file=sys.stderr)
        return 2
    for paper in papers or known:
        try:
            print(f"{paper}: {run(known[paper])}")
        except WrongKernel as problem:
            print(f"bench: {paper}: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
