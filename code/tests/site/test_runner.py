"""The runner from inside one process: what a session may and may not change, and what is kept of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rundoku.show.store import Store
from rundoku.site import runner


def run(*blocks: str, root: Path, seconds: float = 60) -> list[runner.Outcome]:
    return runner.execute(list(blocks), seconds, str(root))


def test_blocks_of_a_session_share_their_names_and_sessions_share_nothing(tmp_path: Path) -> None:
    first, second = run(
        "import json, os\nx = 1\nos.environ['LEFT'] = '1'", "x += 1\nprint(x, json.dumps(os.environ['LEFT']))", root=tmp_path
    )
    assert (first["output"], second["output"]) == ("", '2 "1"\n')
    (alone,) = run("import os, sys\nprint('x' in globals(), 'LEFT' in os.environ, sys.argv == [], __name__)", root=tmp_path)
    assert alone["output"].startswith("False False") and alone["output"].endswith("__main__\n")


def test_the_first_block_that_fails_is_the_last_outcome_and_what_came_before_is_kept(tmp_path: Path) -> None:
    blocks = ["print(1)", "1 / 0", "print(3)"]
    outcomes = run(*blocks, root=tmp_path)
    assert [outcome["output"] for outcome in outcomes] == ["1\n", ""]
    assert outcomes[1]["error"].endswith("ZeroDivisionError: division by zero\n") and "runner.py" not in outcomes[1]["error"]
    store = Store(tmp_path / "store", tmp_path)
    runner.keep(store, blocks, outcomes)
    assert runner.recall(store, blocks[:1]) == outcomes[0]
    assert runner.recall(store, blocks[:2]) is None and runner.recall(store, blocks) is None


def test_a_block_has_the_limit_to_itself(tmp_path: Path) -> None:
    nap = "import time\ntime.sleep(0.6)\nprint(1)"
    assert [outcome["error"] for outcome in run(nap, nap, nap, root=tmp_path, seconds=1.5)] == [None] * 3
    late = run(nap, "import time\ntime.sleep(60)", root=tmp_path, seconds=1)
    assert [outcome["error"] for outcome in late] == [None, "ran past its limit of 1 s and was ended"]


def test_every_session_begins_alike(tmp_path: Path) -> None:
    code = (
        "import os, random, numpy, torch\n"
        "print(torch.rand(2).tolist(), numpy.random.rand(), random.random(), torch.get_num_threads(), os.getcwd(), hash('a'))"
    )
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: run(code, root=tmp_path)[0]["output"], range(4)))
    assert len(set(made)) == 1 and f" 1 {tmp_path} " in made[0]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("class Odd:\n    def __str__(self): raise RuntimeError('odd')\nprint(Odd())", "RuntimeError: odd"),
        ("print('\\ud800')", "UnicodeEncodeError"),
        ("def deep(): deep()\ndeep()", "RecursionError"),
        ("raise BaseException('rare')", "BaseException: rare"),
        ("import sys\nsys.exit('because')", "called sys.exit('because')"),
        ("from rundoku.show import publish\npublish(a=object())", "TypeError: published value 'a' is <object"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "its process was killed by signal 9 (Killed)"),
        ("import ctypes\nctypes.string_at(0)", "its process was killed by signal 11 (Segmentation fault)"),
    ],
)
def test_whatever_goes_wrong_is_an_outcome(tmp_path: Path, code: str, expected: str) -> None:
    (outcome,) = run(code, root=tmp_path)
    assert expected in outcome["error"]


def test_a_result_names_what_it_rests_on(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "data.txt").write_text("1")
    (root / "own.py").write_text("value = 1")
    (root / "folder").mkdir()
    code = f"import os, sys\nsys.path.insert(0, {str(root)!r})\nimport own\nprint(open('data.txt').read(), os.listdir('folder'))"
    (outcome,) = run(code, root=root)
    assert outcome["error"] is None
    assert list(outcome["files"]) == ["data.txt", "folder", "own.py"]


def test_nothing_is_left_of_a_session(tmp_path: Path) -> None:
    run("print(1)", root=tmp_path)  # starts the process that the others fork from
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run("import subprocess\nsubprocess.Popen(['sleep', '600'])\nprint(1)", root=tmp_path)
        run("import os\nos._exit(1)", root=tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert not runner._running
