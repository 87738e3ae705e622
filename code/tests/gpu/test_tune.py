"""Candidates for a published table: what must not be published is left out, the rest is ranked, and nothing is timed that is wrong."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which exists for Linux")

from rundoku.__main__ import main as rundoku
from rundoku.gpu import bench, candidates, tune
from rundoku.gpu.bench import Bench, WrongKernel
from rundoku.gpu.candidates import Candidate, Settings, entries
from rundoku.gpu.launch import Choice, Config, grid
from rundoku.gpu.report import CompileError, Report

TOY = """
    from rundoku.gpu.launch import Case, Choice, Config, tl, triton

    @triton.jit
    def square(x, y, N: tl.constexpr, DOT: tl.constexpr):
        at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        tile = tl.load(x + at)
        result = tl.dot(tile, tile) if DOT else tile * tile
        tl.store(y + at, result.to(tl.float16))

    CONFIGS = dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942"), (Config({"N": 64, "DOT": 1}),))

    def cases(config):
        return [Case("square", square, {"x": "*fp16", "y": "*fp16"}, config)]

    def candidates(target):
        others = (
            Config({"N": 64, "DOT": 1}, num_warps=8),
            Config({"N": 128, "DOT": 1}, num_warps=2),  # spills
            Config({"N": 32, "DOT": 0}),  # no matrix instruction
            Config({"N": 48, "DOT": 1}),  # no power of two
            Config({"N": 64, "DOT": 1}),  # the published one again
        )
        return [Choice("N = 64", CONFIGS[target][0], others, cases)]
"""
PUBLISHED = Settings({"N": 64, "DOT": 1}, 4, 2)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The name of a small kernel module, and a store of its own."""
    (tmp_path / "toy_kernels.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RUNDOKU_STORE", str(tmp_path / "store"))
    return "toy_kernels"


def test_what_spills_loses_its_matrix_instructions_or_does_not_compile_is_left_out(toy, monkeypatch):
    (entry,) = entries(toy, ("sm_80",))["sm_80"]
    assert (entry.name, entry.published.settings) == ("N = 64", PUBLISHED)
    reasons = {each.settings.line(): each.rejected(entry.published) for each in entry.others}
    assert reasons == {
        'Config({"N": 64, "DOT": 1}, num_warps=8, num_stages=2)': "",
        'Config({"N": 128, "DOT": 1}, num_warps=2, num_stages=2)': "spills",
        'Config({"N": 32, "DOT": 0}, num_warps=4, num_stages=2)': "has no mma.sync where the published one has it",
        'Config({"N": 48, "DOT": 1}, num_warps=4, num_stages=2)': "does not compile",
    }
    said = "\n".join(tune.propose("toy", toy, "sm_80", entry, here=False))
    assert "toy, sm_80, N = 64: 4 candidates, left out: 1 " in said
    assert "1 spills" in said
    assert "num_warps=2" not in said
    monkeypatch.setattr(candidates, "ask", lambda *asked: pytest.fail("compiled a second time"))
    assert entries(toy, ("sm_80",))["sm_80"] == [entry]  # from the store


def test_an_interrupted_run_goes_on_with_what_is_missing(toy, monkeypatch):
    monkeypatch.setattr(candidates, "TOGETHER", 3)
    made = [{"settings": vars(replace(PUBLISHED, num_warps=i)), "reports": [], "error": ""} for i in range(6)]
    asked = []

    def ask(program, module, target="", entry="0", first="0"):
        asked.append(first if target else "list")
        if target and int(first) == broken:
            raise KeyboardInterrupt
        return made[int(first) : int(first) + 3] if target else {"sm_80": [{"name": "N", "count": 6}]}

    monkeypatch.setattr(candidates, "ask", ask)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)  # one after the other
    broken = 3
    with pytest.raises(KeyboardInterrupt):
        entries(toy, ("sm_80",))
    broken = -1
    asked.clear()
    (entry,) = entries(toy, ("sm_80",))["sm_80"]
    assert asked == ["3"]
    assert len(entry.others) == 5


def test_a_module_that_offers_none_is_passed_over_and_one_that_breaks_is_an_error(toy, tmp_path):
    assert entries("rundoku.gpu.launch") is None
    (tmp_path / "toy_kernels.py").write_text("candidates = lambda target: 1 / 0\n")
    with pytest.raises(CompileError, match="ZeroDivisionError"):
        entries(toy, ("sm_80",))


REPORT = Report("square", "sm_80", {"N": 64}, 4, 2, 40, 0, 1024, 232448, 0, "", 0, 0.5)


def candidate(tiles=64, warps=4, stages=2, occupancy=0.5, **report):
    made = replace(REPORT, occupancy=occupancy, **report)
    return Candidate(Settings({"N": tiles}, warps, stages), (made, replace(made, occupancy=1.0)))


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"shared": 232449}, "too much shared memory"),
        ({"tensor_memory": 513}, "does not fit on a multiprocessor"),
        ({"occupancy": 0.0}, "does not fit on a multiprocessor"),
        ({"spill": 4, "shared": 232449}, "spills"),
        ({}, ""),
    ],
)
def test_the_reason_is_named(report, reason):
    assert candidate(**report).rejected(candidate()) == reason


def test_order_is_occupancy_then_larger_tiles_then_fewer_warps_then_fewer_stages():
    ordered = [
        candidate(occupancy=0.75), candidate(128, 8), candidate(64, 4, 1), candidate(64, 4, 2), candidate(64, 8, 1),
    ]  # fmt: skip
    assert tune.rank(ordered[::-1]) == ordered
    slow, fast = ordered[0], ordered[-1]
    assert tune.rank(ordered, {fast.settings.line(): 0.9, slow.settings.line(): 1.1})[0] is fast


def test_the_published_entry_is_kept_where_none_is_ahead_and_named_where_it_must_not_be(monkeypatch):
    published = candidate(occupancy=0.75)
    kept = tune.propose("toy", "m", "sm_80", candidates.Entry("N", published, (candidate(128),)), here=False)
    assert kept[-1] == "  keep it: no candidate is ahead"
    ahead = tune.propose("toy", "m", "sm_80", candidates.Entry("N", candidate(), (published,)), here=False)
    assert ahead[-1] == '  proposed   Config({"N": 64}, num_warps=4, num_stages=2),  # lowest occupancy 75%'
    spilling = tune.propose("toy", "m", "sm_80", candidates.Entry("N", candidate(spill=8), (candidate(32),)), here=False)
    assert "(spills: it must not be published)" in spilling[1]
    assert '"N": 32' in spilling[2]


X = torch.linspace(-1, 1, 8)


class Kernel:
    """A kernel module whose call adds what its table says: right for N = 64 alone."""

    CONFIGS = {"sm_80": (Config({"N": 64}), Config({"N": 8})), "sm_90": {"forward": Config({"N": 64})}}  # noqa: RUF012

    @staticmethod
    def benchmarks(target, ours):
        def prepare(device):
            return {"rundoku": ours, "torch": lambda: [X + 1]}, [X.double() + 1]

        config = {"N": 64, "num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
        return [Bench("add", {"N": 8}, "float32", 1.0, 1.0, prepare, config), Bench("other", {}, "float32", 1.0, 1.0, pytest.fail)]


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_candidate_is_checked_before_it_is_timed_and_the_table_is_put_back(monkeypatch, target):
    table = Kernel.CONFIGS[target]
    configs = lambda: list(Kernel.CONFIGS[target].values() if target == "sm_90" else Kernel.CONFIGS[target])  # noqa: E731
    monkeypatch.setattr("importlib.import_module", lambda name: Kernel)
    ours = lambda: [X + (2 if configs()[0].num_warps == 8 else 1)]  # noqa: E731
    monkeypatch.setattr(bench, "benchmarks_of", lambda module: Kernel.benchmarks(target, ours))
    timed = []

    def timer(call):
        timed.append(configs()[0].num_warps)
        return 0.0, float(configs()[0].num_warps), 0.0

    others = [Settings({"N": 64}, warps, 2) for warps in (2, 8)]
    times, wrong = tune.measured("m", target, Settings({"N": 64}, 4, 2), others, "cpu", timer)
    assert timed == [4, 2]
    assert times == {Settings({"N": 64}, 4, 2).line(): 1.0, others[0].line(): pytest.approx(0.5)}
    assert list(wrong) == [others[1].line()]
    assert "allowed" in wrong[others[1].line()]
    assert Kernel.CONFIGS[target] is table
    monkeypatch.setattr(bench, "benchmarks_of", lambda module: Kernel.benchmarks(target, lambda: [X]))
    with pytest.raises(WrongKernel, match="nothing was timed against it"):
        tune.measured("m", target, Settings({"N": 64}, 4, 2), others, "cpu", timer)


def test_an_unknown_paper_is_refused_by_name(capsys):
    assert tune.main(["no-such-paper"]) == 2
    assert "'no-such-paper' has no kernel; those that have: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what the command says without a GPU")
def test_without_a_gpu_it_says_that_nothing_was_measured(monkeypatch, capsys):
    entry = candidates.Entry("N = 64", candidate(), (candidate(occupancy=1.0),))
    monkeypatch.setattr(tune, "entries", lambda module, targets: {target: [entry] for target in targets} if "layer" in module else None)
    assert rundoku(["tune", "layer-norm", "rms-norm", "--target", "sm_90"]) == 0
    said = capsys.readouterr().out
    assert "layer-norm, sm_90: nothing was measured, for no such GPU is at hand; the order is the compile report's: " + tune.RULE in said
    assert "  proposed   Config(" in said
    assert "rms-norm: its kernel.py offers no candidates(target)" in said


def test_the_command_of_the_module_is_the_same():
    done = subprocess.run([sys.executable, "-m", "rundoku.gpu.tune", "no-such-paper"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "has no kernel" in done.stderr


def test_a_grid_has_every_combination_once_in_order():
    made = grid({"A": (1, 2), "B": (3,)}, (4, 8), (1,))
    assert made == (
        Config({"A": 1, "B": 3}, 4, 1), Config({"A": 1, "B": 3}, 8, 1), Config({"A": 2, "B": 3}, 4, 1), Config({"A": 2, "B": 3}, 8, 1),
    )  # fmt: skip


@pytest.mark.parametrize("room", ["layer_norm", "rms_norm", "glu_variants", "roformer"])
def test_the_kernels_offer_candidates_for_every_entry_of_their_tables(room):
    kernel = __import__(f"rundoku.papers.{room}.kernel", fromlist=["candidates"])
    for target in ("sm_80", "gfx942"):
        offered = kernel.candidates(target)
        assert all(isinstance(choice, Choice) and len(choice.others) >= 3 for choice in offered)
        assert [choice.published for choice in offered][: len(kernel.CONFIGS[target])] == list(kernel.CONFIGS[target])
        for choice in offered:
            assert choice.published in choice.others
            assert choice.cases(choice.others[-1])
            served = {case.name for case in kernel.compile_cases(target) if case.config == choice.published}
            same = [other for other in offered if other.published == choice.published]  # two entries may happen to be alike
            assert served <= {case.name for other in same for case in other.cases(other.published)} | {"sums, bf16", "sums, fp32"}
