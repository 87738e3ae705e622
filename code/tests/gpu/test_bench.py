"""Records round-trip and go stale; benchmarks check before they time."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rundoku.gpu import bench, kept, records, show
from rundoku.gpu.bench import Bench, WrongKernel, measure
from rundoku.gpu.check import error, twice_rule
from rundoku.gpu.report import CompileError, Report
from rundoku.show import record as recording
from rundoku.show.experiments import source_digest

X = torch.linspace(-3, 3, 64)
EXACT = X.double().exp()


def benchmark(ours, log):
    def prepare(device):
        assert device == "cpu"
        return {"rundoku": lambda: log.append("ours") or [ours()], "torch": lambda: log.append("torch") or [X.exp()]}, [EXACT]

    return Bench("exp", {"N": 64}, "float32", flops=64.0, bytes=512.0, prepare=prepare, config={"num_warps": 4})


def timer(call):
    call()
    return 1.0, 2.0, 3.0


def test_ours_and_every_peer_are_measured_in_one_run():
    ours, torchs = measure(benchmark(X.exp, []), "cpu", "NVIDIA H200", timer)
    assert (ours.provider, torchs.provider) == ("rundoku", "torch")
    assert (ours.p20_ms, ours.p50_ms, ours.p80_ms) == (1.0, 2.0, 3.0)
    assert ours.bytes_per_s == 512 / 2e-3
    assert ours.flops_per_s == 64 / 2e-3
    assert ours.roofline == pytest.approx(512 / 4.8e12 / 2e-3)
    assert (ours.config, torchs.config) == ({"num_warps": 4}, {})
    assert measure(benchmark(X.exp, []), "cpu", "an unknown card", timer)[0].roofline is None


@pytest.mark.parametrize("wrong", [lambda: X.exp() + 1e-3, lambda: X.exp().fill_(float("nan"))])
def test_a_wrong_kernel_is_not_timed(wrong):
    timed = []
    with pytest.raises(WrongKernel, match=r"exp \{'N': 64\} float32, output 0: .*not timed"):
        measure(benchmark(wrong, []), "cpu", "NVIDIA H200", timed.append)
    assert timed == []


def test_a_peer_that_fails_is_left_out_by_name_and_ours_is_not(capsys):
    def refuse():
        raise RuntimeError("out of memory")

    def prepare(device):
        return {"rundoku": lambda: [X.exp()], "torch": lambda: [X.exp()], "a peer": refuse}, [EXACT]

    found = measure(replace(benchmark(X.exp, []), prepare=prepare), "cpu", "NVIDIA H200", timer)
    assert [each.provider for each in found] == ["rundoku", "torch"]
    assert capsys.readouterr().out == "bench: a peer is left out of exp {'N': 64}: out of memory\n"

    def broken(call):
        raise RuntimeError("no clock")

    with pytest.raises(RuntimeError, match="no clock"):
        measure(benchmark(X.exp, []), "cpu", "NVIDIA H200", broken)


def test_an_output_that_is_left_out_is_an_error():
    lacking = replace(benchmark(X.exp, []), prepare=lambda device: ({"rundoku": list, "torch": lambda: [X.exp()]}, [EXACT]))
    with pytest.raises(ValueError, match="zip"):
        measure(lacking, "cpu", "NVIDIA H200", timer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what the command says without a GPU")
def test_the_command_says_that_it_needs_a_gpu_and_fails_with_2():
    environment = {**os.environ, "PYTHONPATH": "code"}
    done = subprocess.run([sys.executable, "-m", "rundoku.gpu.bench"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr
    assert done.stdout == ""


def test_an_unknown_paper_is_named(capsys):
    assert bench.main(["no-such-paper"]) == 2
    assert "'no-such-paper' has no kernel" in capsys.readouterr().err


def a_record():
    rows = tuple(measure(benchmark(X.exp, []), "cpu", "NVIDIA H200", timer))
    source = source_digest("rundoku.gpu.launch")
    return records.Record("rundoku.gpu.launch", source, "NVIDIA H200", "570.1", {"torch": "2.13.0"}, "2026-11-21", rows)


def test_records_come_back_as_written_and_one_device_has_one_file(tmp_path):
    record = a_record()
    records.save(replace(record, date="2026-01-01"), tmp_path)
    path = records.save(record, tmp_path)
    assert path.name == "nvidia-h200.json"
    assert records.load(tmp_path) == [record]
    assert records.load(tmp_path / "absent") == []


def test_a_record_is_stale_once_the_kernels_code_is_another():
    assert not a_record().stale
    assert replace(a_record(), source="another").stale


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("p50_ms", "fast", r"measurements\[0\]: p50_ms is 'fast'"), ("note", 1, "unknown field 'note'"), ("bytes", None, "bytes is None")],
)
def test_a_damaged_record_is_named_with_its_field(tmp_path, field, value, message):
    path = records.save(a_record(), tmp_path)
    content = json.loads(path.read_text())
    content["measurements"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(records.RecordError, match=f"nvidia-h200.json: .*{message}"):
        records.load(tmp_path)


def test_a_cut_record_is_an_error_that_names_the_file(tmp_path):
    path = records.save(a_record(), tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(records.RecordError, match=r"nvidia-h200\.json"):
        records.load(tmp_path)


def test_the_rule_allows_twice_plain_torchs_error_and_no_more():
    exact, plain = torch.zeros(4, dtype=torch.float64), torch.full((4,), 1e-3)
    assert twice_rule(torch.full((4,), 2e-3), plain, exact) is None
    assert "error 0.0021, plain torch 0.001" in twice_rule(torch.full((4,), 2.1e-3), plain, exact)
    assert "inf" in twice_rule(torch.full((4,), float("nan")), plain, exact)
    assert twice_rule(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.float64)) is None
    with pytest.raises(ValueError, match=r"got shape \(3,\), expected \(4,\)"):
        error(torch.zeros(3), exact)


REPORT = Report("forward", "sm_90", {"ROWS": 2, "BLOCK": 64}, 4, 2, 40, 0, 1024, 232448, 0, "wgmma.mma_async", 8, 0.75)


def test_the_table_on_a_page_rests_on_the_kernels_source(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNDOKU_STORE", str(tmp_path))
    report = REPORT
    others = [replace(report, case="backward"), replace(report, tiles={"ROWS": 2, "BLOCK": 32})]

    def reports(module, cases=(), tiles=None):
        return [each for each in (report, *others) if (not cases or each.case in cases) and (tiles or {}).items() <= each.tiles.items()]

    monkeypatch.setattr(kept, "compile_report", reports)
    listening = recording.Recording()
    recording.listen(listening)
    try:
        assert show.compile_table("compiled", "rundoku.gpu.launch", cases=("forward",), tiles={"BLOCK": 64}) == [report]
        assert show.compile_table("compiled", "rundoku.gpu.launch") == [report, *others]
    finally:
        recording.listen(None)
    item = listening.items[0]
    assert item["columns"] == list(show.COLUMNS)
    assert item["rows"] == [["forward", "sm_90", "2 × 64", 4, 40, 0, 1024, 232448, 8, 0.75]]
    assert item["summary"] == show.summary([report])
    assert listening.items[1]["summary"] == show.summary([report, *others])
    assert any(path.name == "launch.py" for path in listening.opened)


@pytest.mark.parametrize(("planted", "says"), [({"spill": 8}, "spills 8 bytes"), ({"shared": 232449}, "232449 bytes of shared memory")])
def test_a_page_does_not_show_a_table_with_what_must_not_be_published(monkeypatch, tmp_path, planted, says):
    monkeypatch.setenv("RUNDOKU_STORE", str(tmp_path))
    monkeypatch.setattr(kept, "compile_report", lambda module, cases, tiles: [REPORT, replace(REPORT, **planted)])
    with pytest.raises(CompileError, match=f"(?s)rundoku.gpu.launch publishes what must not be published:.*forward on sm_90.*{says}"):
        show.compile_table("compiled", "rundoku.gpu.launch")


def test_what_the_roofline_allows_is_a_row_a_case_with_every_card(monkeypatch):
    states = {"size": "N = 4,096", "dtype": "float32", "intensity": 1.25, "bound": "memory"}
    memory = replace(REPORT, **states, peak_share=0.1)
    reports = [replace(memory, target=name, peak_share=share) for name, share in (("sm_80", 0.2), ("gfx942", 0.05))]
    dense = replace(memory, case="dense", intensity=900.0, bound="compute", peak_share=1.0)
    every = [*reports, dense, replace(REPORT, case="uncounted")]
    monkeypatch.setattr(show, "compiled", lambda module, cases=(), tiles=None: [each for each in every if not cases or each.case in cases])
    listening = recording.Recording()
    recording.listen(listening)
    try:
        assert show.cost_table("costs", "m", cases=("forward", "dense")) == [*reports, dense]
        with pytest.raises(ValueError, match="none of which states a cost"):
            show.cost_table("none", "m", cases=("uncounted",))
    finally:
        recording.listen(None)
    assert listening.items[0]["rows"] == [
        ["forward", "N\u00a0=\u00a04,096", 1.25, "memory", 0.2, None, None, 0.05],
        ["dense", "N\u00a0=\u00a04,096", 900.0, "compute", None, 1.0, None, None],
    ]
    assert show.summary(show.compiled("m")) == {
        "reports": 4, "intensity": [1.25, 900.0], "bound": ["memory", "compute"], "occupancy": 0.75, "target": "sm_80",
        "tensor_core": ["wgmma.mma_async"],
    }  # fmt: skip
    assert show.summary([replace(REPORT, tensor_core="", occupancy=0.5), REPORT])["occupancy"] == 0.5
    assert show.summary([replace(REPORT, tensor_core="")])["intensity"] == []
