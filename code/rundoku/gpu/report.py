"""What the compiler makes of a kernel: registers, spills, shared memory, tensor-core instructions and occupancy, with no GPU present.

A kernel module (a room's ``kernel.py``) offers two names for it:

    CONFIGS: dict[str, tuple[Config, ...]]     # the published table: "sm_80", "sm_90", "sm_100", "gfx942", "other", "interpreter"
    def compile_cases(target: str) -> list[Case]     # every kernel at every entry of CONFIGS[target] that a call can reach

``compile_report("rundoku.papers.layer_norm.kernel")`` compiles them for the four targets in a fresh interpreter, because in a
process without a GPU the kernels were decorated for Triton's interpreter. ``problems`` names what must not be published:
a spill, or more shared memory than a block of the target may have. ``rundoku.gpu.show`` brings reports onto a page.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rundoku.gpu.roofline import bound
from rundoku.gpu.targets import CARD_OF, CARDS, TARGETS, Target

if TYPE_CHECKING:
    from rundoku.gpu.launch import Case, Cost  # needs triton, which the reports' readers do not

TENSOR_MEMORY_COLUMNS = 512  # of a multiprocessor of sm_100


@dataclass(frozen=True)
class Report:
    """What one case became on one target."""

    case: str
    target: str
    tiles: dict[str, int]
    num_warps: int
    num_stages: int
    registers: int  # of a thread
    spill: int  # bytes of a thread that did not fit into registers and went to memory
    shared: int  # bytes of a block
    shared_limit: int
    tensor_memory: int  # columns of a block, on sm_100
    tensor_core: str  # the matrix instruction that it uses, "" for none
    tensor_core_count: int  # how often it stands in the assembly
    occupancy: float  # resident warps as a share of the most there can be
    # What the roofline allows on CARD_OF[target], from data sheets alone; None and "" for a case without a cost.
    size: str = ""  # that the cost was counted at
    dtype: str = ""  # of the arithmetic, whose peak holds
    intensity: float | None = None  # FLOP per byte
    bound: str = ""  # "memory" or "compute"
    least_us: float | None = None  # microseconds that the card needs at least
    peak_share: float | None = None  # of its peak FLOP/s that this intensity allows

    def problem(self) -> str | None:
        """Return why this configuration must not be published, or None."""
        where = f"{self.case} on {self.target} ({self.tiles}, {self.num_warps} warps, {self.num_stages} stages)"
        if self.spill:
            return f"{where}: spills {self.spill} bytes a thread"
        if self.shared > self.shared_limit:
            return f"{where}: {self.shared} bytes of shared memory, the target has {self.shared_limit}"
        if self.tensor_memory > TENSOR_MEMORY_COLUMNS:
            return f"{where}: {self.tensor_memory} columns of tensor memory, the target has {TENSOR_MEMORY_COLUMNS}"
        return None if self.occupancy else f"{where}: does not fit on a multiprocessor"


class CompileError(Exception):
    """A kernel did not compile; the message ends in the compiler's own."""


def compile_report(
    module: str, targets: Sequence[str] = tuple(TARGETS), *, cases: Sequence[str] = (), tiles: Mapping[str, int] | None = None
) -> list[Report]:
    """Compile the cases of a kernel module for ``targets`` and return what became of each.

    ``cases`` names those to compile (none: all), and ``tiles`` the tile sizes of theirs. Raises CompileError where one fails, and
    ValueError for a case that the module has not.
    """
    found = ask("rundoku.gpu.report", module, *targets, json.dumps({"cases": cases, "tiles": dict(tiles or {})}))
    unknown = sorted({*cases} - {*found["cases"]})
    if unknown:
        raise ValueError(f"cases: got {unknown[0]!r}, expected some of {', '.join(sorted(found['cases']))}")
    return [Report(**report) for report in found["reports"]]


def ask(program: str, module: str, *arguments: str) -> Any:
    """Return what a program prints last, as JSON, when it runs in a fresh interpreter where kernels compile; raises CompileError."""
    source_root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(source_root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", program, module, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CompileError(f"{module} did not compile for {', '.join(arguments)}:\n{done.stderr.strip()[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def problems(reports: list[Report]) -> list[str]:
    """Return what must not be published, one line each."""
    return [problem for report in reports if (problem := report.problem())]


def compile_case(case: "Case", target: Target) -> Report:
    """Compile one case for one target; only in a process where the kernels are not interpreted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**case.constants, **case.config.tiles}
    names = case.kernel.arg_names
    unknown = [name for name in names if (name in case.types) == (name in constants)]
    if unknown or len(case.types) + len(constants) != len(names):
        raise CompileError(f"{case.name}: each of {names} needs either a type or a value; got {[*case.types]} and {[*constants]}")
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = [i for i, name in enumerate(names) if case.divisible and signature[name].startswith(("*", "i"))]
    source = ASTSource(case.kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = {name: value for name, value in case.config.launch().items() if name not in case.config.tiles}
    kernel = triton.compile(source, target=GPUTarget(target.backend, target.arch, target.warp), options=options)
    registers, spill = _cuda_usage(kernel.asm["cubin"]) if target.backend == "cuda" else _hip_usage(kernel.asm["amdgcn"])
    assembly = kernel.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    counts = {name: len(re.findall(rf"^\s*(?:@!?%p\d+\s+)?{re.escape(name)}", assembly, re.MULTILINE)) for name in target.tensor_core}
    used = next((name for name in target.tensor_core if counts[name]), "")
    return Report(
        case=case.name,
        target=target.name,
        tiles=case.config.tiles,
        num_warps=case.config.num_warps,
        num_stages=case.config.num_stages,
        registers=registers,
        spill=spill,
        shared=kernel.metadata.shared,
        shared_limit=target.shared_block,
        tensor_memory=getattr(kernel.metadata, "tmem_size", 0) or 0,
        tensor_core=used,
        tensor_core_count=counts.get(used, 0),
        occupancy=target.occupancy(registers, kernel.metadata.shared, case.config.num_warps),
        **roof(case.cost, target.name),
    )


def roof(cost: "Cost | None", target: str) -> dict[str, Any]:
    """Return the fields of a Report that a cost decides."""
    if cost is None:
        return {}
    least = bound(CARDS[CARD_OF[target]], flops=cost.flops, bytes=cost.bytes, dtype=cost.dtype)
    return {
        "size": cost.size, "dtype": cost.dtype, "intensity": least.intensity, "bound": least.by, "least_us": least.seconds * 1e6,
        "peak_share": least.share,
    }  # fmt: skip


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    import triton

    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _hip_usage(assembly: str) -> tuple[int, int]:
    fields = re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)
    usage = {name: int(value) for name, value in fields}
    return usage["vgpr_count"], max(usage["private_segment_fixed_size"], 4 * usage["vgpr_spill_count"])


def _main(module: str, targets: list[str], chosen: str) -> None:
    wanted = json.loads(chosen)
    every = [(target, case) for target in targets for case in importlib.import_module(module).compile_cases(target)]
    some = [one for one in every if not wanted["cases"] or one[1].name in wanted["cases"]]
    some = [(target, case) for target, case in some if wanted["tiles"].items() <= case.config.tiles.items()]
    reports = [asdict(compile_case(case, TARGETS[target])) for target, case in some]
    print(json.dumps({"cases": list(dict.fromkeys(case.name for _, case in every)), "reports": reports}))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:-1], sys.argv[-1])
