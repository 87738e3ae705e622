import io
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rundoku.show import Result, experiment, experiments, imports, publish, record
from rundoku.show.store import Store

SOURCE = '''\
"""Experiments of a room that only this test has."""
from {package}.part import double
from rundoku.show import experiment, publish

import os
import time

calls = []

@experiment
def squares(*, number, folder, deadly=-1):
    with open(f"{{folder}}/{{number}}", "a") as file:
        file.write("ran ")
    if number == deadly and not os.path.exists(f"{{folder}}/mended"):
        os._exit(1)
    return {{"square": number**2}}

@experiment
def doubles(*, numbers, seed=0):
    """Double numbers."""
    calls.append((numbers, seed))
    return {{"numbers": numbers, "found": {{"doubles": [double(n) for n in numbers], "mean": sum(numbers) / len(numbers)}}}}

@experiment
def shows():
    publish(a=1)
    return {{}}

@experiment
def fails(*, how):
    calls.append(how)
    raise ValueError(how)

@experiment
def slow(*, number, folder):
    began = time.monotonic()
    time.sleep(0.3)
    with open(f"{{folder}}/{{number}}", "w") as file:
        file.write(f"{{began}} {{time.monotonic()}}")
    return {{"number": number}}

@experiment
def asks(*, folder):
    return {{"found": [run.number for run in slow.each([{{"number": n, "folder": folder}} for n in (7, 8)])]}}
'''


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ModuleType]]:
    """Import a room from a source root of its own, fresh each time it is asked for."""
    package = f"room_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "part.py").write_text('def double(n):\n    """Double."""\n    return 2 * n\n')
    (folder / "experiments.py").write_text(SOURCE.format(package=package))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(experiments, "default_store", lambda: Store(tmp_path / "store", tmp_path))
    for function in (imports.closure, imports.imported, imports.path_of):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))  # their source root

    def fresh() -> ModuleType:
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
        invalidate_caches()
        return import_module(f"{package}.experiments")

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield fresh
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def test_a_fresh_result_and_a_stored_one_are_the_same(room: Callable[[], ModuleType]) -> None:
    module = room()
    fresh = module.doubles(numbers=(1, 2.5, -3), seed=1)
    again = module.doubles(numbers=[1, 2.5, -3], seed=1)
    assert module.calls == [((1, 2.5, -3), 1)], "a tuple and a list are the same argument, and the second is not run"
    assert fresh.as_dict() == again.as_dict() == {"numbers": [1, 2.5, -3], "found": {"doubles": [2, 5.0, -6], "mean": 0.5 / 3}}
    assert isinstance(fresh.numbers, list) and fresh.found.mean == again["found"]["mean"]


def test_arguments_count_and_their_order_and_defaults_do_not(room: Callable[[], ModuleType]) -> None:
    module = room()
    module.doubles(numbers=[1])
    module.doubles(seed=0, numbers=[1])
    assert len(module.calls) == 1
    module.doubles(numbers=[1], seed=1)
    module.doubles(numbers=[2])
    assert len(module.calls) == 3


def test_a_result_rests_on_code_and_not_on_comments(room: Callable[[], ModuleType], tmp_path: Path) -> None:
    room().doubles(numbers=[1])
    part, own = next(tmp_path.rglob("part.py")), next(tmp_path.rglob("experiments.py"))
    for file, old, new, repeated in (
        (part, "def double", "# a comment\ndef double", 0),
        (part, '"""Double."""', '"""Twice as much."""', 0),
        (own, '"""Double numbers."""', '"""Twice."""', 0),
        (part, "2 * n", "n + n", 1),
        (own, "calls = []", "calls = []\nOTHER = 1", 1),
    ):
        file.write_text(file.read_text().replace(old, new))
        module = room()
        module.doubles(numbers=[1])
        assert len(module.calls) == repeated, (old, new)


def test_an_experiment_that_fails_is_not_kept(room: Callable[[], ModuleType], tmp_path: Path) -> None:
    module = room()
    for _ in range(2):
        with pytest.raises(ValueError, match="badly"):
            module.fails(how="badly")
    assert module.calls == ["badly", "badly"]
    assert not list((tmp_path / "store").rglob("*.json"))


def test_an_experiment_shows_nothing_and_a_listening_page_knows_what_was_asked(room: Callable[[], ModuleType]) -> None:
    module = room()
    listening = record.Recording()
    record.listen(listening)
    try:
        with pytest.raises(TypeError, match="shows or publishes"):
            module.shows()
        assert record.current is listening, "the page listens again"
        for _ in range(2):
            module.doubles(numbers=(1,))
    finally:
        record.listen(None)
    name = f"{module.__name__}.doubles"
    assert listening.experiments == [{"name": name, "arguments": {"numbers": [1], "seed": 0}}] * 2
    assert listening.values == {}


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)


@pytest.mark.usefixtures("two_cores")
def test_an_interrupted_sweep_goes_on_with_what_is_missing(
    room: Callable[[], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> None:
    squares, folder = room().squares, tmp_path_factory.mktemp("runs")
    cases = [{"number": number, "folder": str(folder), "deadly": 3} for number in range(6)]
    with pytest.raises(BrokenProcessPool):
        squares.each(cases)

    def kept() -> list[int]:
        places = [squares._place(case) for case in cases]
        return [number for number, (_, _, store, key) in enumerate(places) if store.recall(key)]

    before = kept()
    assert 3 not in before and len(before) < 6, "the process that died took its run with it"
    assert before, "the runs before it were kept"
    ran = {number: (folder / str(number)).read_text() for number in before}
    (folder / "mended").touch()
    assert [result.square for result in squares.each(cases)] == [0, 1, 4, 9, 16, 25]
    assert {number: (folder / str(number)).read_text() for number in before} == ran, "what was there was not run again"
    assert kept() == [0, 1, 2, 3, 4, 5]


def _most_at_once(folder: Path) -> int:
    spans = [tuple(map(float, path.read_text().split())) for path in folder.iterdir()]
    return max(sum(began <= start < ended for began, ended in spans) for start, _ in spans)


@pytest.mark.usefixtures("two_cores")
def test_sweeps_that_go_on_at_once_share_the_cores(room: Callable[[], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> None:
    module, folder = room(), tmp_path_factory.mktemp("runs")
    fork = multiprocessing.get_context("fork")
    halves = [[{"number": number, "folder": str(folder)} for number in numbers] for numbers in ((0, 1, 2), (3, 4, 5))]
    sessions = [fork.Process(target=module.slow.each, args=(half,)) for half in halves]
    for session in sessions:
        session.start()
    for session in sessions:
        session.join(60)
    assert [session.exitcode for session in sessions] == [0, 0]
    assert len(list(folder.iterdir())) == 6
    assert _most_at_once(folder) == 2


@pytest.mark.parametrize("cores", [1, 2])
def test_an_experiment_that_asks_for_a_sweep_does_not_wait_for_its_own_slot(
    cores: int, room: Callable[[], ModuleType], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    module, folder = room(), tmp_path_factory.mktemp("runs")
    session = multiprocessing.get_context("fork").Process(target=module.asks, kwargs={"folder": str(folder)})
    session.start()
    session.join(60)
    ended = not session.is_alive()
    session.kill()
    assert ended, "it waited for what it held itself"
    assert module.asks(folder=str(folder)).found == [7, 8]


def test_a_slot_is_given_back(room: Callable[[], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments.os, "sched_getaffinity", lambda process: {0}, raising=False)
    module = room()
    for number in (0, 1):
        assert module.slow(number=number, folder=str(tmp_path)).number == number
        assert not experiments._computing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_shows_how_far_a_sweep_is(
    stream: type[io.StringIO], room: Callable[[], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    cases = [{"numbers": [number]} for number in range(3)]
    room().doubles.each(cases)
    assert ("doubles: 100%" in shown.getvalue() and "3/3" in shown.getvalue()) if stream is Terminal else not shown.getvalue()
    shown.truncate(0)
    room().doubles.each(cases)
    assert not shown.getvalue(), "nothing is left to run"


def test_outside_the_source_root_nothing_is_kept_and_everything_works() -> None:
    calls = []

    @experiment
    def counts(*, number: int) -> dict:
        calls.append(number)
        return {"number": number}

    assert counts(number=1).number == counts(number=1).number == 1
    assert calls == [1, 1], "nothing vouches for the code of a notebook or a test"


def test_a_result_reads_like_an_object_and_a_mapping() -> None:
    result = Result({"loss": [3.0, 2.0], "sizes": {"base": 1}, "runs": [{"seed": 0}]})
    assert result.loss[1] == 2.0 and result.sizes.base == result["sizes"]["base"] == 1
    assert result.runs[0].seed == 0
    assert list(result) == ["loss", "sizes", "runs"] and len(result) == 3 and dict(result.items())["loss"] == [3.0, 2.0]
    copy = result.as_dict()
    copy["sizes"]["base"] = 2
    assert result.sizes.base == 1
    with pytest.raises(AttributeError, match="no 'lost'; it has loss, sizes, runs"):
        _ = result.lost
    assert not hasattr(result, "__array__")


@dataclass
class Size:
    width: int
    shape: tuple[int, ...]


def test_what_json_cannot_hold_is_refused_by_name() -> None:
    plain = experiments.plain
    assert plain({"a": torch.ones(2, 2), "b": np.float32(0.5), "c": Size(1, (2, 3)), "d": range(2), "e": None}, "it") == {
        "a": [[1.0, 1.0], [1.0, 1.0]], "b": 0.5, "c": {"width": 1, "shape": [2, 3]}, "d": [0, 1], "e": None,
    }  # fmt: skip
    assert math.isnan(plain(torch.tensor(float("nan")), "it"))
    with pytest.raises(TypeError, match=r"the result\['a'\]\[1\] is .* of type object"):
        plain({"a": [1, object()]}, "the result")
    with pytest.raises(TypeError, match=r"the result has the key 1 of type int; expected text"):
        plain({1: 2}, "the result")


def test_an_experiment_takes_keywords_and_returns_a_dict() -> None:
    with pytest.raises(TypeError, match=r"parameter 'x' of experiment .* must be keyword-only"):

        @experiment
        def positional(x: int) -> dict:
            return {"x": x}

    @experiment
    def no_dict(*, x: int) -> int:
        return x

    with pytest.raises(TypeError, match="returned int; expected a dict"):
        no_dict(x=1)
    with pytest.raises(TypeError, match=r"arguments of .*no_dict\['x'\]"):
        no_dict(x=object())
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        no_dict(x=1, y=2)


def test_publish_outside_a_build_shows_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    publish(ratio=0.5)
    assert capsys.readouterr().out == "ratio = 0.5\n"
