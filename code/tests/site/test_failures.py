"""What must stop a build, what must not, and what a build must leave behind: each on a small site with the real machine."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy import Shell, Toy

NOTE = "code/rundoku/papers/lora/note.py"
OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        open({log!r}, "a").write(f"{{event}} {{arguments[1]}}\\n")
        raise OSError("there is no network")
    if event == "socket.getaddrinfo" and arguments[0] not in ("localhost", "127.0.0.1", None):
        open({log!r}, "a").write(f"{{event}} {{arguments[0]}}\\n")
        raise OSError("there is no network")
sys.addaudithook(refuse)
"""


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until something is so; fail, saying what, where it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def complaint(told: str, section: str, language: str) -> str:
    """Return what a build says about a section: the list of its places, then its fault."""
    parts = [part for part in told.split("\n\nnotes/") if f"index.{language}.md" in part and f":{section}, session" in part]
    assert len(parts) == 1, told
    return "notes/" + parts[0].removeprefix("notes/")


@pytest.fixture
def shell(toy: Toy) -> Iterator[Shell]:
    process = Shell(toy)
    yield process
    process.close()


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], dict[str, int]]:
    """Count how often snippets have run: each says so in a file outside the repository, which no result rests on."""
    file = tmp_path / "runs"

    def count() -> dict[str, int]:
        lines = file.read_text().split() if file.is_file() else []
        file.unlink(missing_ok=True)
        return {line: lines.count(line) for line in sorted(set(lines))}

    return count


def mark(tmp_path: Path, name: str) -> str:
    """Return the line of code that says that a snippet runs."""
    return f"open({str(tmp_path / 'runs')!r}, 'a').write('{name}\\n')\n"


# --- snippets at fault ------------------------------------------------------------------------------------------------

BROKEN = {
    "raises": (
        "def inner():\n    return 1 / 0\n\ninner()",
        r"line 2, in inner\n    return 1 / 0\n.*\n?ZeroDivisionError: division by zero",
    ),
    "exits": ("import sys\nsys.exit(0)", r"called sys\.exit\(0\)[\s\S]*line 2, in <module>\n    sys\.exit\(0\)"),
    "vanishes": ("import os\nprint('half', flush=True)\nos._exit(0)", r"its process ended with status 0 before the snippet had finished"),
    "endless": ("while True:\n    pass", r"ran past its limit of 2 s and was ended"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", r"its process was killed by signal 11 \(Segmentation fault\)"),
    "silent": ("x = 1", r"the snippet shows nothing: expected it to print, show, publish or claim something"),
    "syntax": ("print('never')\ndef f(:\n    pass", r'File "<block 1>", line 2\n    def f\(:\n[\s\S]*SyntaxError: '),
    "orphan": ("import os, time\nif os.fork():\n    os._exit(5)\ntime.sleep(600)", r"its process ended with status 5 before"),
    "thrown": (
        "import os, sys\nos.write(2, b'told below')\nraise KeyboardInterrupt",
        r"KeyboardInterrupt\n[\s\S]*standard error:\ntold below",
    ),
}


def test_every_kind_of_broken_snippet_fails_the_build_and_says_where(toy: Toy) -> None:
    toy.snippets(fine="print('fine')", **{name: code for name, (code, _) in BROKEN.items()})
    built = toy.rundoku("build", RUNDOKU_LIMIT="2")
    assert built.returncode == 1
    assert f"{3 * len(BROKEN) + 3} sessions, {len(BROKEN) + 1} run, {len(BROKEN) - 1} failed" in built.stdout
    page = toy.page("ja").read_text(encoding="utf-8").split("\n")
    for name, (_, expected) in BROKEN.items():
        line = page.index(f'--8<-- "lora/note.py:{name}"')
        told = complaint(built.stderr, name, "ja")
        for language in ("en", "ja", "zh"):
            assert f"notes/lora/index.{language}.md:{line} ({language}, section {NOTE}:{name}, session {name})" in told
        assert re.search(expected, told), f"{name}:\n{told}"
    assert "nothing was built" in built.stderr
    assert not (toy.root / "site").exists()
    assert sorted((kept["output"], kept["error"]) for kept in toy.stored().values()) == [("", None), ("fine\n", None)], "a failure is kept"
    again = toy.rundoku("build", "en", RUNDOKU_LIMIT="2")
    assert again.returncode == 1
    assert f"{len(BROKEN) - 1} run" in again.stdout and "the snippet shows nothing" in complaint(again.stderr, "silent", "en")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("lora/nothing.py:count", r"snippet file 'lora/nothing\.py' is missing"),
        ("lora/note.py:nothing", rf"snippet section 'nothing' is missing in {NOTE}; it has setup, count, draw, claims"),
    ],
)
def test_a_snippet_that_is_not_there_fails_the_build(toy: Toy, reference: str, expected: str) -> None:
    toy.edit(toy.page("zh"), "lora/note.py:count", reference)
    line = toy.page("zh").read_text(encoding="utf-8").split("\n").index(f'--8<-- "{reference}"')
    built = toy.rundoku("build")
    assert built.returncode == 1
    assert re.search(rf"notes/lora/index\.zh\.md:{line} \(zh\): {expected}", built.stderr), built.stderr
    assert not (toy.root / "site").exists()


# --- pages at fault; one site for them, built without a network -------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, dict[str, bytes], str]:
    """A site whose English has been built where no address can be reached; with its files, and with what it tried to reach."""
    place = tmp_path_factory.mktemp("built")
    toy, log = Toy(place / "site"), place / "connections"
    (place / "hooks").mkdir()
    (place / "hooks" / "sitecustomize.py").write_text(OFFLINE.format(log=str(log)))
    path = os.pathsep.join([str(place / "hooks"), str(toy.root / "code")])
    probe = [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"]
    refused = subprocess.run(probe, env=toy.environment(PYTHONPATH=path), capture_output=True, text=True, check=False)
    assert "there is no network" in refused.stderr and log.read_text().count("192.0.2.1") == 1, "the hook is not in force"
    log.unlink()
    cut = ("unshare", "-rn")
    within = cut if shutil.which("unshare") and subprocess.run([*cut, "true"], capture_output=True, check=False).returncode == 0 else ()
    done = toy.rundoku("build", "en", within=within, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return toy, toy.files(), log.read_text() if log.is_file() else ""


def test_a_build_needs_no_network_and_tries_to_reach_nothing(built: tuple[Toy, dict[str, bytes], str]) -> None:
    toy, files, tried = built
    assert tried == ""
    assert "14" in toy.html("en") and "en/search/search_index.json" in files


FAULTS = {
    "bad TeX": (
        "index.en.md",
        r"\frac{a}{b}",
        r"\frac{a}{",
        r"notes/lora/index\.en\.md:\d+ \(en\): bad TeX in the formula 'x = \\\\frac\{a\}\{'",
    ),
    "unknown TeX": ("index.en.md", r"\frac{a}{b}", r"\nocommand{a}", r"index\.en\.md:\d+ \(en\): bad TeX in the formula .*nocommand"),
    "unknown value": (
        "index.en.md",
        "value total:,",
        "value nothing:,",
        r"index\.en\.md:\d+ \(en\): value 'nothing' is not published.*total",
    ),
    "bad format": ("index.en.md", "value total:,", "value total:q", r"index\.en\.md:\d+ \(en\): value 'total' = 14 has no format 'q'"),
    "unknown fact": ("index.en.md", "paper sum", "paper some", r"index\.en\.md:\d+ \(en\): paper\.yml has no fact 'some'; it has sum"),
    "missing label": (
        "labels.yml",
        "  number: {",
        "  numeral: {",
        r"index\.en\.md:\d+ \(en, section .*:draw, .*notes/lora/labels\.yml.*'number'",
    ),
    "missing caption": ("labels.yml", "tables:\n  squares", "tables:\n  rounds", r"index\.en\.md:\d+ \(en, .*:draw, .*tables\.squares"),
    "unknown claim": (
        "paper.yml",
        "  fourteen: {",
        "  fifteen: {",
        r"index\.en\.md:\d+ \(en, .*:claims, .*claim 'fourteen' is not in paper\.yml",
    ),
    "broken link": (
        "index.en.md",
        "## Claims",
        "[x](../nothing/index.md)\n\n## Claims",
        r"\[en\].*notes/lora/index\.md.*\.\./nothing/index\.md",
    ),
    "broken anchor": ("index.en.md", "## Claims", "[x](#nowhere)\n\n## Claims", r"\[en\].*notes/lora/index\.md.*#nowhere"),
    "unknown part": (
        "index.en.md",
        "## Claims",
        "```site\nnothing\n```\n\n## Claims",
        r"index\.en\.md:\d+ \(en\): there is no site part 'nothing'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_page_fails_the_build_and_leaves_the_site_as_it_was(built: tuple[Toy, dict[str, bytes], str], fault: str) -> None:
    toy, files, _ = built
    name, old, new, expected = FAULTS[fault]
    page = toy.folder / name
    kept = page.read_text(encoding="utf-8")
    toy.edit(page, old, new)
    try:
        done = toy.rundoku("build", "en")
    finally:
        page.write_text(kept, encoding="utf-8")
    assert done.returncode == 1, done.stdout
    found = re.search(expected, done.stderr)
    assert found, done.stderr
    line = re.search(r"md:(\d+)", found[0])
    if line and name.endswith(".md"):
        broken = kept.replace(old, new).split("\n")[int(line[1]) - 1]
        assert broken in new or new in broken, f"line {line[1]} is {broken!r}"
    assert toy.files() == files, "the site has changed"


# --- interruption, full disks, damage ---------------------------------------------------------------------------------


def slow(tmp_path: Path) -> str:
    """Return a snippet that starts a process, says both process numbers, and goes on only once the file ``go`` is there."""
    return (
        "import os, subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '600'])\n{mark(tmp_path, 'slow')}"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} .')\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}):\n    time.sleep(0.02)\n"
        "print('slowly')"
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_behind_and_the_next_goes_on(
    toy: Toy, tmp_path: Path, runs: Callable[[], dict[str, int]], how: signal.Signals
) -> None:
    toy.snippets(quick=mark(tmp_path, "quick") + "print('quickly')", slow=slow(tmp_path))
    pids = tmp_path / "pids"
    process = toy.start("build", "en")
    until(lambda: pids.is_file() and pids.read_text().endswith(".") and toy.stored(), "both snippets have begun, and one is kept")
    asked = time.monotonic()
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10, "the build went on"
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert "interrupted" in told and "Traceback" not in told
    session, child = map(int, pids.read_text().split()[:2])
    until(lambda: not alive(session) and not alive(child), "what the build has started ends with it", 10)
    assert not (toy.root / "site").exists()
    assert [kept["output"] for kept in toy.stored().values()] == ["quickly\n"]
    (tmp_path / "go").touch()
    runs()
    assert toy.rundoku("run").returncode == 0
    assert runs() == {"slow": 1}, "what had finished is kept, and what had not is run again"
    assert sorted(kept["output"] for kept in toy.stored().values()) == ["quickly\n", "slowly\n"]


@pytest.mark.parametrize("new", ["## Lines that come before {#idea}", "## Lines before {#idea-2}"], ids=["one page", "every page"])
def test_a_build_killed_while_it_writes_pages_leaves_the_site_as_it_was(built: tuple[Toy, dict[str, bytes], str], new: str) -> None:
    toy, files, _ = built
    kept = toy.page("en").read_text(encoding="utf-8")
    toy.edit(toy.page("en"), "## Lines before {#idea}", new)
    beside = toy.root / ".cache" / "building"
    process = toy.start("build", "en")
    until(lambda: list(beside.glob("*/en")), "the build writes pages")
    process.kill()
    process.communicate()
    assert toy.files() == files
    assert toy.rundoku("build", "en").returncode == 0
    assert toy.html("en").encode() != files["en/notes/lora/index.html"] and toy.files().keys() == files.keys()
    toy.page("en").write_text(kept, encoding="utf-8")
    assert toy.rundoku("build", "en").returncode == 0
    assert toy.files() == files


def test_a_full_disk_is_a_clear_error_and_nothing_broken_is_served(toy: Toy) -> None:
    """No file may grow beyond 20 kB: what a disk without room does to the store, without needing one."""
    toy.snippets(
        asks="from rundoku.papers.lora import experiments\nprint(len(experiments.square(numbers=list(range(4000)), seed=0).squares))",
        shows="from rundoku.show import table\ntable('t', columns=('n',), rows=[(i,) for i in range(5000)])\n",
        small="print('small')",
    )
    limited = [
        sys.executable,
        "-c",
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); ",
    ]
    limited[-1] += "runpy.run_module('rundoku', run_name='__main__', alter_sys=True)"
    own = toy.environment(PYTHONDONTWRITEBYTECODE="1")  # Python does not notice a bytecode file cut short
    done = subprocess.run([*limited, "run"], cwd=toy.root, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"could not keep a result in .*\.json: File too large", done.stderr), done.stderr
    assert {kept["output"] for kept in toy.stored().values()} <= {"small\n"}
    assert not list((toy.root / ".cache").rglob("*.part"))
    assert toy.rundoku("run").returncode == 0
    found = [kept for kept in toy.stored().values() if "output" in kept]
    assert sorted(kept["output"] for kept in found) == ["", "4000\n", "small\n"]
    assert [len(item["rows"]) for kept in found for item in kept["items"]] == [5000]


def _flip(data: bytes) -> bytes:
    place = data.rindex(b"files") - 20
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _other(data: bytes) -> bytes:
    payload: list[int] = []
    return json.dumps({"sha256": hashlib.sha256(json.dumps(payload).encode()).hexdigest(), "payload": payload}).encode()


def test_a_damaged_result_is_run_again(toy: Toy, shell: Shell, tmp_path: Path, runs: Callable[[], dict[str, int]]) -> None:
    toy.snippets(
        one=mark(tmp_path, "one") + "print('一つ目')",
        two=mark(tmp_path, "two") + "from rundoku.show import publish\npublish(number=2, ratio=0.1)",
    )
    assert shell("run")[0] == 0
    assert runs() == {"one": 1, "two": 1}
    whole = toy.files(".cache/rundoku")
    for damage in (lambda data: data[: len(data) // 2], _flip, _other, lambda data: b"[]", lambda data: b"", lambda data: b"\xff\x00"):
        for name, data in whole.items():
            (toy.root / ".cache" / "rundoku" / name).write_bytes(damage(data))
        status, told = shell("run")
        assert status == 0, told
        assert runs() == {"one": 1, "two": 1}
        assert toy.files(".cache/rundoku") == whole


def test_two_builds_at_once_leave_the_site_of_one(toy: Toy, built: tuple[Toy, dict[str, bytes], str]) -> None:
    both = [toy.start("build", "en") for _ in range(2)]
    told = ["".join(process.communicate(timeout=200)) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted("built en" in text for text in told) == [False, True], "the second finds the work of the first"
    assert toy.files() == built[1]


# --- what a run is ----------------------------------------------------------------------------------------------------


def test_output_from_below_python_is_caught_and_what_a_snippet_starts_ends_with_it(toy: Toy, tmp_path: Path) -> None:
    toy.snippets(
        below="import ctypes, os, subprocess, sys\nprint('print', flush=True)\nos.write(1, b'write\\n')\n"
        "subprocess.run(['echo', 'process'])\nctypes.CDLL(None).puts(b'C')\nsys.__stdout__.write('stream\\n')\nprint('last')",
        starts="import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(str(child.pid))\nprint('started')",
        quiet_error="import sys\nprint('to standard error', file=sys.stderr)\nprint('shown')",
    )
    done = toy.rundoku("run")
    assert done.returncode == 0, done.stderr
    assert "to standard error" not in done.stdout and "print" not in done.stdout
    found = {kept["output"].split("\n")[0]: kept["output"] for kept in toy.stored().values()}
    assert sorted(found["print"].split()) == sorted(["print", "write", "process", "C", "stream", "last"])
    assert found["shown"] == "shown\n"
    until(lambda: not alive(int((tmp_path / "pids").read_text())), "the process that the snippet has started ends", 5)


def test_three_languages_share_one_run_though_their_comments_differ(
    toy: Toy, shell: Shell, tmp_path: Path, runs: Callable[[], dict[str, int]]
) -> None:
    toy.snippets(shared=mark(tmp_path, "shared") + "print('shared')")
    for language, comment in (("en", "a comment"), ("ja", "注釈"), ("zh", "注释")):
        text = toy.page(language).read_text(encoding="utf-8")
        fence = f'```python exec="on" session="inline"\n# {comment}\n{mark(tmp_path, "inline")}print(1)  # {comment}\n```\n'
        toy.page(language).write_text(text + fence, encoding="utf-8")
    status, told = shell("run")
    assert (status, runs()) == (0, {"inline": 1, "shared": 1})
    assert "6 sessions, 2 run, 0 failed" in told
    assert "6 sessions, 0 run, 0 failed" in shell("run")[1] and runs() == {}


def test_a_note_can_be_run_by_itself(toy: Toy, shell: Shell, tmp_path: Path, runs: Callable[[], dict[str, int]]) -> None:
    home = toy.root / "docs/index.en.md"
    fence = f'\n```python exec="on"\n{mark(tmp_path, "home")}print(1)\n```\n'
    home.write_text(home.read_text(encoding="utf-8") + fence, encoding="utf-8")
    status, told = shell("run", "lora")
    assert (status, runs()) == (0, {}) and "3 sessions, 1 run, 0 failed" in told
    status, told = shell("run", "lora", "laura")
    assert status == 1 and "notes: got 'laura', expected some of lora" in told
    assert "4 sessions, 1 run, 0 failed" in shell("run")[1] and runs() == {"home": 1}


def test_a_result_is_repeated_just_where_something_that_it_rests_on_has_changed(
    toy: Toy, shell: Shell, tmp_path: Path, runs: Callable[[], dict[str, int]]
) -> None:
    data = toy.room / "data"
    data.mkdir()
    (data / "numbers.txt").write_text("1 2 3", encoding="utf-8")
    experiments = f'''\
from pathlib import Path
from rundoku.papers.lora import square as one
from rundoku.show import experiment
HERE = Path(__file__).parent
@experiment
def reads(*, power):
    """Read the numbers."""
    {mark(tmp_path, "reads").strip()}
    return {{"sum": sum(one(int(n)) ** power for n in (HERE / "data" / "numbers.txt").read_text().split())}}
@experiment
def lists(*, suffix):
    {mark(tmp_path, "lists").strip()}
    extra = HERE / "data" / "extra.txt"
    try:
        more = extra.read_text()
    except FileNotFoundError:
        more = ""
    return {{"names": sorted(path.name for path in (HERE / "data").glob(suffix)), "more": more}}
'''
    (toy.room / "experiments.py").write_text(experiments, encoding="utf-8")
    other = toy.root / "code" / "rundoku" / "papers" / "other"
    other.mkdir()
    (other / "__init__.py").write_text("value = 1\n", encoding="utf-8")
    room = "from rundoku.papers.lora import experiments\n"
    toy.snippets(
        reading=f"{room}{mark(tmp_path, 'reading')}print(experiments.reads(power=1).sum)",
        listing=f"{room}{mark(tmp_path, 'listing')}print(experiments.lists(suffix='*.txt').as_dict())",
        apart=f"from rundoku.papers.other import value\n{mark(tmp_path, 'apart')}print(value)",
        plain=f"{mark(tmp_path, 'plain')}print(1)",
    )

    def again() -> set[str]:
        status, told = shell("run")
        assert status == 0, told
        found = runs()
        assert set(found.values()) <= {1}, found
        return set(found)

    every, of_room = {"reading", "listing", "apart", "plain", "reads", "lists"}, {"reading", "listing"}
    assert again() == every
    assert again() == set()
    toy.edit(toy.room / "experiments.py", "HERE =", "# a comment\nHERE =")
    toy.edit(toy.room / "experiments.py", "Read the numbers.", "Read all the numbers.")
    assert again() == of_room, "a comment repeats the snippets, which take no time, and not the experiments behind them"
    toy.edit(toy.room / "__init__.py", "number * number", "number**2")
    assert again() == of_room | {"reads", "lists"}
    toy.edit(other / "__init__.py", "1", "2")
    assert again() == {"apart"}
    (data / "numbers.txt").write_text("1 2 4", encoding="utf-8")
    assert again() == {"reading", "reads"}
    (data / "more.csv").touch()
    assert again() == {"listing", "lists"}, "a folder that was listed lists another file"
    (data / "extra.txt").write_text("more", encoding="utf-8")
    assert again() == {"listing", "lists"}, "a file that was looked for in vain is there"
    toy.edit(toy.room / "note.py", "print(1)", "print(2)")
    assert again() == {"plain"}
    toy.edit(toy.room / "note.py", "power=1).sum", "power=1).sum + 1")
    assert again() == {"reading"}, "a sentence or a figure drawn anew does not repeat the experiment"
    toy.edit(toy.room / "note.py", "power=1", "power=2")
    assert again() == {"reading", "reads"}
    toy.edit(toy.room / "note.py", "power=2", "power=1")
    assert again() == set(), "what was found before is still kept"
    outputs = {kept["output"] for kept in toy.stored().values() if "output" in kept}
    assert {"22\n", "2\n"} <= outputs and any("'more': 'more'" in output for output in outputs)


def test_another_executor_takes_the_sessions(toy: Toy, tmp_path: Path) -> None:
    toy.snippets(one="print('one')", two="print('two')")
    (tmp_path / "cluster.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\n\n"
        "class Pool(ProcessPoolExecutor):\n"
        "    def submit(self, *given, **named):\n"
        f"        {mark(tmp_path, 'submitted').strip()}\n"
        "        return super().submit(*given, **named)\n\n"
        "def pool():\n    return Pool(2)\n\ndef nothing():\n    return []\n"
    )
    path = os.pathsep.join([str(toy.root / "code"), str(tmp_path)])
    refused = toy.rundoku("run", PYTHONPATH=path, RUNDOKU_EXECUTOR="cluster:nothing")
    assert (
        refused.returncode == 1 and "RUNDOKU_EXECUTOR=cluster:nothing made list; expected a concurrent.futures.Executor" in refused.stderr
    )
    done = toy.rundoku("run", PYTHONPATH=path, RUNDOKU_EXECUTOR="cluster:pool")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs").read_text().split() == ["submitted"] * 2
    assert sorted(kept["output"] for kept in toy.stored().values()) == ["one\n", "two\n"]


DATA_SET = '''"""Verses."""

from rundoku.data.source import Source

SOURCE = Source(
    title="Verses & rhymes",
    package="verses-that-no-index-has",
    version="1.0",
    licence="PD",
    url="x",
    name="verses",
)
'''
USES = {
    "first": "from rundoku.data import verses\nfrom rundoku.show import publish\npublish(fine=3)",
    "needs": "from rundoku.show import claim\nlines = verses.SOURCE.files('verses', '.txt')\npublish(lines=len(lines))",
    "rests": "publish(twice=2 * len(lines))",
    "own": "publish(alone=fine_too) if 'fine_too' in dir() else publish(alone=7)",
}


def test_a_build_can_do_without_a_data_set_and_says_what_is_missing(toy: Toy) -> None:
    (toy.root / "code" / "rundoku" / "data" / "verses.py").write_text(DATA_SET)
    toy.snippets(**USES)
    for language in ("en", "ja", "zh"):
        text = toy.page(language).read_text().replace('session="', 'session="one" id="')
        toy.page(language).write_text(f"{text}\n`#!value fine` and `#!value lines:,` and `#!value twice` and `#!value alone`\n")
    failed = toy.rundoku("build")
    assert failed.returncode == 1 and not (toy.root / "site").exists()
    told = complaint(failed.stderr.replace("session one", "session needs"), "needs", "ja")
    assert "the package verses-that-no-index-has is not installed" in told and "nox -s docs -- --without verses" in told
    wrong = toy.rundoku("build", "--without", "prose")
    assert wrong.returncode == 1 and "--without: got 'prose', expected one of " in wrong.stderr and "verses" in wrong.stderr
    built = toy.rundoku("build", "--without", "verses")
    assert built.returncode == 0, built.stderr
    assert toy.html("en").count("the site was built without Verses &amp; rhymes.</p>") == 2
    assert "このサイトはVerses &amp; rhymesなしで" in toy.html("ja")
    values = re.findall(r'<span class="value"[^>]*>([^<]*)</span>', toy.html("en"))
    assert values == ["3", "—", "—", "7"]
    assert toy.rundoku("build").returncode == 1  # what was left out is not taken for a result
