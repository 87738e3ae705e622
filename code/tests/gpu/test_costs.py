"""The costs that kernels state, counted again in the compiler's own representation of them: what is there is what is stated."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.gpu.targets import TARGETS
from rundoku.papers.glu_variants import kernel as gate_kernel
from rundoku.papers.layer_norm import benchmarks as layer_norms
from rundoku.papers.layer_norm import kernel as layer_norm_kernel
from rundoku.papers.rms_norm import benchmarks as rms_norms
from rundoku.papers.rms_norm import kernel as rms_norm_kernel
from rundoku.papers.roformer import kernel as roformer_kernel

COUNT = """
    import importlib, json, math, re, sys
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    OPERATIONS = re.compile(r"= (arith[.](?:add|sub|mul|div|neg|cmp)f|math[.](?:exp|erf|sqrt))")
    SHAPE = re.compile(r"tensor<([0-9x]+)xf32>")

    def operations(case):
        \"\"\"Floating-point operations on the largest tile, of one turn of the loops where there are any.\"\"\"
        names = case.kernel.arg_names
        signature = {name: case.types.get(name, "constexpr") for name in names}
        source = ASTSource(case.kernel, signature, {**case.constants, **case.config.tiles}, {})
        options = {"num_warps": case.config.num_warps, "enable_fp_fusion": True}
        lines = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ttir"].splitlines()
        looping, depth, found, reducing = any("scf.for" in line for line in lines), [], {}, False
        for line in lines:
            reducing |= '"tt.reduce"' in line
            result = line.strip().startswith("}) :")  # the end of a reduction: one operation for every element that goes in
            if (OPERATIONS.search(line) or result) and (not looping or depth) and (shape := SHAPE.search(line)):
                size = math.prod(map(int, shape[1].split("x")))
                found[size] = found.get(size, 0) + 1
            if "scf.for" in line:
                depth.append(len(line) - len(line.lstrip()))
            elif depth and line.strip().startswith("}") and len(line) - len(line.lstrip()) == depth[-1]:
                depth.pop()
        return found[max(found)]

    found = {}
    for case in importlib.import_module(sys.argv[1]).compile_cases("sm_80"):
        name = f"{case.name}, {case.constants}"  # widths and dtypes change no operation
        if "fp32" not in name and name not in found:
            found[name] = operations(case)
    print(json.dumps(found))
"""
PER_ELEMENT = {"roformer": 4}  # queries and keys have a loop each, over pairs
MODULES = {"layer_norm": layer_norm_kernel, "rms_norm": rms_norm_kernel, "glu_variants": gate_kernel, "roformer": roformer_kernel}


def elements(case):
    sizes = {axis: int(size.replace(",", "")) for axis, _, size in (part.partition(" = ") for part in case.cost.size.split(", "))}
    if "H" in sizes:
        sizes["H"] += sizes.pop("G")
    return math.prod(sizes.values())


@pytest.mark.parametrize("room", MODULES)
def test_operations_are_those_of_the_compiled_kernel(room):
    source = os.pathsep.join(filter(None, ["code", os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", textwrap.dedent(COUNT), f"rundoku.papers.{room}.kernel"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": source})
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    for case in MODULES[room].compile_cases("sm_80"):
        name = f"{case.name}, {case.constants}".replace("fp32", "bf16")
        assert case.cost.flops / elements(case) == counted[name] / PER_ELEMENT.get(room, 1), name


@pytest.mark.parametrize("room", MODULES)
def test_every_case_states_its_cost_at_a_size_that_its_entry_serves(room):
    for target in TARGETS:
        for case in MODULES[room].compile_cases(target):
            assert case.cost.dtype == "float32"
            width = case.config.tiles.get("COLUMNS") or 2 * case.config.tiles.get("PAIRS", 0)
            assert "sums" in case.name or not width or case.cost.size.endswith(f"= {width:,}")


def test_bytes_are_every_tensor_once():
    sizes = {(case.name, case.config.tiles["COLUMNS"]): case.cost.bytes for case in layer_norm_kernel.compile_cases("sm_80")}
    work = 4096 * 1024
    assert sizes["forward, bf16", 1024] == 4 * 2 * work + 8 * 1024 + 8 * 4096  # x, r, h, y; w and b; μ and ρ
    assert sizes["backward, fp32", 1024] == 4 * 4 * work + 4 * 1024 + 8 * 4096 + 8 * 512 * 1024  # dy, dh, h, dx; w; sums of 512 programs
    sizes = {(case.name, case.config.tiles["COLUMNS"]): case.cost.bytes for case in rms_norm_kernel.compile_cases("sm_80")}
    assert sizes["forward, bf16", 1024] == 4 * 2 * work + 4 * 1024 + 4 * 4096
    assert sizes["backward, bf16", 16_384] == 4 * 2 * 16 * work + 4 * 16_384 + 4 * 4096  # no sums: they are the next kernel's
    gate = next(case for case in gate_kernel.compile_cases("sm_80") if case.name == "silu backward, bf16")
    assert gate.cost.bytes == 5 * 2 * 4096 * 11_008
    turn = next(case for case in roformer_kernel.compile_cases("sm_80") if case.config.tiles["PAIRS"] == 64)
    assert turn.cost.bytes == 2 * 2 * 4 * 40 * 4096 * 128 + 4 * 4096 * 128


def test_benchmarks_count_as_the_kernels_do():
    def per_element(module, name, width):
        case = next(c for c in module.compile_cases("sm_80") if (c.name, c.config.tiles["COLUMNS"]) == (f"{name}, bf16", width))
        return case.cost.flops / elements(case)

    for module, room in ((layer_norm_kernel, layer_norms), (rms_norm_kernel, rms_norms)):
        assert room.COSTS["add and forward"][0] == room.COSTS["forward"][0] + 1 == per_element(module, "forward", 1024)
        assert room.COSTS["backward"][0] == per_element(module, "backward", 1024) - 1  # without dh
        apart = per_element(module, "backward", 16_384) - 1 + per_element(module, "sums", 128)
        assert room.COSTS["backward"][0] + room.WIDE[0] == apart
