"""The published configurations, compiled for every target with no GPU present; and the experiments behind the note."""

import pytest
import torch

from rundoku.gpu.bench import measure
from rundoku.gpu.launch import INTERPRETED
from rundoku.gpu.report import compile_report, problems
from rundoku.gpu.targets import TARGETS
from rundoku.papers.flash_attention import benchmarks, experiments, kernel, kernel_configs, kernel_costs
from rundoku.papers.flash_attention.tiling import Memory, flash_forward

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills_and_everything_fits(target):
    reports = compile_report("rundoku.papers.flash_attention.kernel", (target,))
    assert not problems(reports)
    assert {report.target for report in reports} == {target}
    assert len({report.case for report in reports if "delta" in report.case}) == 3
    reports = [report for report in reports if "delta" not in report.case]
    cases = [report.case for report in reports]
    assert {case.split(", ")[0] for case in cases} == {"forward", "backward", "decode"} and len(set(cases)) == len(cases) == 34
    packed = {case.replace(", packed", "") for case in cases if "packed" in case}
    assert packed == {case for case in cases if "packed" not in case and "decode" not in case}
    assert all(report.tensor_core for report in reports if "bf16" in report.case and "combine" not in report.case)
    held = {r.case: r.occupancy * TARGETS[target].warps / r.num_warps for r in reports if "rows" in r.case and "bf16" in r.case}
    assert len(held) == 6 and min(held.values()) >= kernel_configs.RESIDENT  # what the number of splits is reckoned with


@pytest.mark.parametrize("target", kernel.CONFIGS)
def test_every_call_has_a_configuration(target):
    for name in ("forward", "keys", "queries", "rows16", "rows64", "combine"):
        for width in kernel.HEAD_WIDTHS:
            for dtype in kernel.DTYPES:
                config = kernel.config_for(target, name, width, dtype.itemsize, packed=width == 128)
                assert min(config.tiles.values()) >= 16  # what a matrix instruction takes at least
                assert config.tiles.get("BLOCK_N") == {"rows16": 16, "rows64": 64}.get(name, config.tiles.get("BLOCK_N"))
    narrow, wide = kernel.config_for("sm_80", "forward", 16, 2), kernel.config_for("sm_80", "forward", 128, 2)
    assert narrow is kernel.CONFIGS["sm_80"]["forward", 64, 2] and wide is kernel.CONFIGS["sm_80"]["forward", 128, 2]


def test_the_table_names_every_target():
    assert set(kernel.CONFIGS) == {*TARGETS, "other", "interpreter"}
    fixed = [case for case in kernel.compile_cases("other") if "packed" not in case.name and "decode" not in case.name]
    assert {case.config.num_warps for case in fixed} == {4}


def test_the_benchmark_asks_for_the_right_thing():
    bench = benchmarks.benchmarks()[:24]
    assert bench[0].sizes == {"B": 32, "H": 32, "N": 512, "D": 64}
    assert bench[0].flops == 2 * 2 * 32 * 32 * 512 * 512 * 64 / 2  # two products, half of the scores
    assert {each.sizes["B"] * each.sizes["N"] for each in bench} == {benchmarks.TOKENS}
    assert {each.sizes["N"] for each in bench} == {512, 1024, 2048, 4096, 8192, 16_384}
    calls, exact = benchmarks._calls((1, 2, 24, 16), True, "cpu")
    assert set(calls) == {"rundoku", "torch", "SDPA flash", "SDPA efficient", "SDPA cuDNN"} and len(exact) == 4
    for a, b in zip(
        calls["torch"](), exact, strict=True
    ):  # bfloat16 needs a GPU in ours; the others say whether the float64 result is right
        torch.testing.assert_close(a.double(), b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("target", TARGETS)
def test_what_could_stand_in_the_table(target):
    choices = kernel.candidates(target)
    assert [choice.published for choice in choices] == [*kernel.CONFIGS[target].values()]
    for choice in choices:
        assert len(choice.others) > 1 and {*choice.others[0].tiles} == {*choice.published.tiles}
        assert all(case.config is choice.others[-1] for case in choice.cases(choice.others[-1]))
    assert [case for choice in choices for case in choice.cases(choice.published)] == [
        case
        for case in kernel.compile_cases(target)
        if "delta" not in case.name  # not tuned: it has the queries' blocks
    ]


def test_the_benchmarks_of_the_packed_and_the_decode_form():
    every = benchmarks.benchmarks()
    assert len({(each.case, *each.sizes.values()) for each in every}) == len(every) == 30
    small = [benchmarks._packed(f"packed {way}", (5, 0, 9), 2, 16, "float32") for way in ("forward", "backward")]
    small.append(benchmarks._decode(2, 40, 4, 2, 16, "float32"))
    for bench in small:  # checked as on a GPU, and timed by nobody
        found = measure(bench, DEVICE, "no card", lambda call: (1.0, 2.0, 3.0))
        assert [each.provider for each in found][:2] == ["rundoku", "torch"] and found[0].bytes == bench.bytes
    assert small[0].flops == 2 * 2 * 2 * (15 + 45) * 16 and small[2].flops == 2 * 2 * 2 * 4 * 40 * 16


def test_the_costs_by_hand():
    forward, packed = (kernel_costs.cost_of("forward", 128, 2, each) for each in (False, True))
    assert forward.flops == 4 * 16 * 128 * (16_384 * 16_385 / 2) and forward.bytes == 16 * 16_384 * (4 * 128 * 2 + 4)
    assert packed.flops == 4 * 16 * 128 * 16 * (1024 * 1025 / 2) and packed.bytes == forward.bytes
    backward = [kernel_costs.cost_of(name, 128, 2, False).flops for name in ("queries", "keys")]
    assert sum(backward) == 3.5 * forward.flops  # 14 N·M·D to 4
    decode = kernel_costs.cost_of("rows16", 128, 2, False)
    assert 3.9 < decode.flops / decode.bytes < 4  # N·H/G operations a byte, less what the splits write
    assert kernel_costs.cost_of("combine", 128, 2, False).dtype == "float32"
    assert all(case.cost for target in TARGETS for case in kernel.compile_cases(target))
    assert kernel_costs.delta_cost(64, 2).flops == 16 * 16_384 * 64 * 2 and kernel_costs.delta_cost(64, 2).bytes == 16 * 16_384 * 264


def test_the_exponent_of_a_power():
    assert experiments.exponent([1, 10, 100], [5, 500, 50_000]) == pytest.approx(2)


def test_without_rescaling_is_wrong_only_where_the_maximum_moves():
    generator = torch.Generator().manual_seed(0)
    scores, value = torch.randn(1, 8, generator=generator), torch.randn(8, 2, generator=generator)
    exact = torch.softmax(scores, -1) @ value

    def walk(step, order):
        seen = experiments.nothing_seen(torch.zeros(1, 2), 2)
        for start in (0, 4):
            seen = step(seen, scores[:, order][:, start : start + 4], value[order][start : start + 4])
        return experiments.finish(seen)[0]

    falling = scores[0].argsort(descending=True)
    torch.testing.assert_close(walk(experiments.absorb_without_rescaling, falling), exact)
    assert not torch.allclose(walk(experiments.absorb_without_rescaling, falling.flip(0)), exact, atol=0.05)


def test_held_bytes_are_the_statistics_alone():
    held = experiments.held_bytes.__wrapped__(lengths=(64, 128), heads=2, width=16)
    assert held == {"standard": [2 * 2 * 64**2, 2 * 2 * 128**2], "tiled": [2 * 64 * 8, 2 * 128 * 8]}  # P in half; ℓ and m in float32


def test_accesses_are_counted_by_running():
    counts = experiments.count_accesses.__wrapped__(length=32, width=8, sram=256)
    memory = Memory()
    flash_forward(*torch.zeros(3, 32, 8), 256, memory)
    assert counts["flash"] == memory.accesses and counts["standard"] == 4 * 32**2 + 4 * 32 * 8
