"""The compile report on kernels whose outcome is known: a plain one, one with a dot, and ones that must not be published."""

import textwrap
from dataclasses import replace

import pytest

from rundoku.gpu.report import CompileError, compile_report, problems
from rundoku.gpu.targets import TARGETS

KERNELS = """
    from rundoku.gpu.launch import Case, Config, tl, triton

    @triton.jit
    def scale(x, y, n, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0) * 2, mask=at < n)

    @triton.jit
    def matmul(x, y, N: tl.constexpr):
        at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        tile = tl.load(x + at)
        tl.store(y + at, tl.dot(tile, tile).to(tl.float16))

    @triton.jit
    def broken(x, N: tl.constexpr):
        tl.store(x + tl.arange(0, 3), 0.0)

    SCALE = Case("scale", scale, {"x": "*fp32", "y": "*fp32", "n": "i32"}, Config({"BLOCK": 1024}, num_warps=4))
    CASES = {
        "good": [SCALE, Case("matmul", matmul, {"x": "*fp16", "y": "*fp16"}, Config({"N": 64}))],
        "spills": [Case("matmul", matmul, {"x": "*fp16", "y": "*fp16"}, Config({"N": 128}, num_warps=2))],
        "overflows": [Case("matmul", matmul, {"x": "*fp32", "y": "*fp16"}, Config({"N": 256}, num_warps=16))],
        "broken": [Case("broken", broken, {"x": "*fp32"}, Config({"N": 4}))],
        "incomplete": [Case("scale", scale, {"x": "*fp32", "y": "*fp32"}, Config({"BLOCK": 1024}))],
    }
"""


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """A function that compiles the named cases in a module of their own."""

    def compiled(name, *targets, **chosen):
        (tmp_path / "known_kernels.py").write_text(textwrap.dedent(KERNELS) + f"\ndef compile_cases(target):\n    return CASES[{name!r}]\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return compile_report("known_kernels", *([targets] if targets else []), **chosen)

    return compiled


def test_only_what_is_asked_for_is_compiled_and_an_unknown_case_is_named(cases):
    assert [report.case for report in cases("good", "sm_80", cases=["matmul"])] == ["matmul"]
    assert [report.case for report in cases("good", "sm_80", "gfx942", tiles={"BLOCK": 1024})] == ["scale", "scale"]
    assert cases("good", "sm_80", cases=["scale"], tiles={"BLOCK": 512}) == []
    with pytest.raises(ValueError, match="cases: got 'sideways', expected some of matmul, scale"):
        cases("good", "sm_80", cases=["scale", "sideways"])


def test_every_target_is_compiled_and_matrix_instructions_are_seen_where_there_is_a_dot(cases):
    reports = {(report.case, report.target): report for report in cases("good")}
    assert set(reports) == {(case, target) for case in ("scale", "matmul") for target in TARGETS}
    assert problems(list(reports.values())) == []
    for (case, target), report in reports.items():
        assert bool(report.tensor_core) == bool(report.tensor_core_count) == (case == "matmul")
        assert 0 < report.registers < 256
        assert 0 < report.occupancy <= 1
        assert report.shared_limit == TARGETS[target].shared_block
    assert reports["scale", "sm_80"].shared == 0
    assert reports["scale", "sm_80"].occupancy == 1
    assert {target: reports["matmul", target].tensor_core for target in TARGETS} == {
        "sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma",
    }  # fmt: skip


def test_a_spill_is_a_problem(cases):
    (report,) = cases("spills", "sm_80")
    assert report.spill > 0
    assert "spills" in problems([report])[0]
    assert "matmul on sm_80" in problems([report])[0]


def test_a_spilling_entry_that_is_planted_in_a_published_table_is_found(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(
        "from rundoku.gpu.launch import Config\nfrom rundoku.papers.layer_norm import kernel\n\n\n"
        "def compile_cases(target):\n"
        "    kernel.CONFIGS[target] = (Config({'ROWS': 1, 'COLUMNS': 16_384}, num_warps=1, num_stages=1),)\n"
        "    return [case for case in kernel.compile_cases(target) if case.name == 'forward, bf16']\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = problems(compile_report("planted", ("sm_80",)))
    assert found.startswith("forward, bf16 on sm_80 ({'ROWS': 1, 'COLUMNS': 16384}, 1 warps, 1 stages): spills ")


def test_more_shared_memory_than_the_target_has_is_a_problem_though_it_compiles(cases):
    (report,) = cases("overflows", "gfx942")
    assert report.shared > 64 * 1024
    assert report.occupancy == 0
    assert "shared memory, the target has 65536" in replace(report, spill=0).problem()


def test_a_kernel_that_does_not_compile_is_an_error_with_the_compilers_words(cases):
    with pytest.raises(CompileError, match="power of 2"):
        cases("broken", "sm_90")


def test_an_argument_with_neither_type_nor_value_is_an_error_that_names_them(cases):
    with pytest.raises(CompileError, match="needs either a type or a value"):
        cases("incomplete", "sm_90")
