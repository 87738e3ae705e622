"""What must stop a build, what must not, and what a build must leave behind: each on a small site with the real machine."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
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
    "raises": ("def inner():\n    return 1 / 0\n\ninner()", r"line 2, in inner\n    return 1 / 0\n.*\n?ZeroDivisionError: division by zero"),
    "exits": ("import sys\nsys.exit(0)", r"called sys\.exit\(0\)[\s\S]*line 2, in <module>\n    sys\.exit\(0\)"),
    "vanishes": ("import os\nprint('half', flush=True)\nos._exit(0)", r"its process ended with status 0 before the snippet had finished"),
    "endless": ("while True:\n    pass", r"ran past its limit of 2 s and was ended"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", r"its process was killed by signal 11 \(Segmentation fault\)"),
    "silent": ("x = 1", r"the snippet shows nothing: expected it to print, show, publish or claim something"),
    "syntax": ("print('never')\ndef f(:\n    pass", r'File "<block 1>", line 2\n    def f\(:\n[\s\S]*SyntaxError: '),
    "orphan": ("import os, time\nif os.fork():\n    os._exit(5)\ntime.sleep(600)", r"its process ended with status 5 before"),
    "thrown": ("import os, sys\nos.write(2, b'told below')\nraise KeyboardInterrupt", r"KeyboardInterrupt\n[\s\S]*standard error:\ntold below"),
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
    "bad TeX": ("index.en.md", r"\frac{a}{b}", r"\frac{a}{", r"notes/lora/index\.en\.md:\d+ \(en\): bad TeX in the formula 'x = \\\\frac\{a\}\{'"),
    "unknown TeX": ("index.en.md", r"\frac{a}{b}", r"\nocommand{a}", r"index\.en\.md:\d+ \(en\): bad TeX in the formula .*nocommand"),
    "unknown value": ("index.en.md", "value total:,", "value nothing:,", r"index\.en\.md:\d+ \(en\): value 'nothing' is not published.*total"),
    "bad format": ("index.en.md", "value total:,", "value total:q", r"index\.en\.md:\d+ \(en\): value 'total' = 14 has no format 'q'"),
    "unknown fact": ("index.en.md", "paper sum", "paper some", r"index\.en\.md:\d+ \(en\): paper\.yml has no fact 'some'; it has sum"),
    "missing label": ("labels.yml", "  number: {", "  numeral: {", r"index\.en\.md:\d+ \(en, section .*:draw, .*notes/lora/labels\.yml.*'number'"),
    "missing caption": ("labels.yml", "tables:\n  squares", "tables:\n  rounds", r"index\.en\.md:\d+ \(en, .*:draw, .*tables\.squares"),
    "unknown claim": ("paper.yml", "  fourteen: {", "  fifteen: {", r"index\.en\.md:\d+ \(en, .*:claims, .*claim 'fourteen' is not in paper\.yml"),
    "broken link": ("index.en.md", "## Claims", "[x](../nothing/index.md)\n\n## Claims", r"\[en\].*notes/lora/index\.md.*\.\./nothing/index\.md"),
    "broken anchor": ("index.en.md", "## Claims", "[x](#nowhere)\n\n## Claims", r"\[en\].*notes/lora/index\.md.*#nowhere"),
    "unknown part": ("index.en.md", "## Claims", "```site\nnothing\n```\n\n## Claims", r"index\.en\.md:\d+ \(en\): there is no site part 'nothing'"),
}  # fmt: skip


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
