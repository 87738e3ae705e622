"""Runs snippets, each session in a fresh process, and keeps what they showed.

A result is filed under the code of its block and of the earlier blocks of its session, so the three languages share one run. It is
valid while every file of the repository that the run imported or opened is unchanged. ``execute`` takes and returns plain data, so any
``concurrent.futures.Executor`` can carry it; it starts the process that runs the session, watches it and, past its limit, ends it.
"""

import ast
import contextlib
import ctypes
import gc
import linecache
import multiprocessing
import os
import random
import signal
import sys
import sysconfig
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from functools import lru_cache
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from rundoku.show import record
from rundoku.show.store import Store, digests, fingerprint, versions

LIMIT = 900.0  # seconds that one block may take, unless RUNDOKU_LIMIT says otherwise
MACHINE = ("rundoku.site", "rundoku.__main__", "__mp_main__", "__main__")  # what runs the snippets is no part of their results
READERS = ("_frozen_importlib_external", "importlib._bootstrap_external", "importlib.metadata", "tokenize")  # what these read is code
INSTALLED = tuple({f"{path}{os.sep}" for name, path in sysconfig.get_paths().items() if name.endswith(("stdlib", "lib"))})
PRELOAD = ["torch", "numpy", "matplotlib.pyplot"]
TRAINING = ["torch._dynamo"]  # the first step of an optimizer imports it, which takes longer than many a session
MANY = 4  # sessions, from which on it is imported once for all of them

WITHOUT = "RUNDOKU_WITHOUT"  # what the build does without, read by rundoku.data.source

Outcome = dict[str, Any]  # output, items, values, experiments, files, error, left_out


def limit() -> float:
    """Return the seconds that one block may take."""
    given = os.environ.get("RUNDOKU_LIMIT", "")
    try:
        seconds = float(given) if given else LIMIT
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"RUNDOKU_LIMIT is {given!r}; expected a positive number of seconds")
    return seconds


@lru_cache(maxsize=4096)
def meaning(code: str) -> str:
    """Return code without its comments, which a translation may translate; as it is where it is no Python."""
    try:
        return ast.unparse(ast.parse(code))
    except SyntaxError:
        return code


def key(blocks: Sequence[str]) -> str:
    """Return the name under which the result of the last of ``blocks`` is kept."""
    without = os.environ.get(WITHOUT)
    return fingerprint(["blocks", versions(), [meaning(code) for code in blocks], *([without] if without else [])])


def recall(store: Store, blocks: Sequence[str]) -> Outcome | None:
    """Return the kept outcome of the last block, or None where it must be run."""
    return store.recall(key(blocks))


def keep(store: Store, blocks: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Keep the outcomes of those blocks that succeeded."""
    for i, outcome in enumerate(outcomes):
        if outcome["error"] is None:
            store.keep(key(blocks[: i + 1]), outcome)


def run(store: Store, sessions: Sequence[Sequence[str]], executor: Executor, done: Callable[[Sequence[str], list[Outcome]], None]) -> None:
    """Run sessions, keep each as soon as it has ended, and tell ``done``. A session that fails does not stop the others.

    Where the run itself is interrupted, or the store takes no more, the sessions that are running end at once.
    """
    global _preload
    _interrupted.clear()
    _preload = PRELOAD + TRAINING if len(sessions) >= MANY else PRELOAD
    waiting: dict[Future[list[Outcome]], Sequence[str]] = {
        executor.submit(execute, list(blocks), limit(), str(store.root), os.environ.get(WITHOUT, "")): blocks for blocks in sessions
    }
    try:
        for future in as_completed(waiting):
            blocks = waiting[future]
            outcomes = future.result()
            keep(store, blocks, outcomes)
            done(blocks, outcomes)
    except BaseException:
        _interrupted.set()
        for future in waiting:
            future.cancel()
        for process in list(_running):
            _end(process)
        raise


def default_executor() -> Executor:
    """Return the executor that ``RUNDOKU_EXECUTOR`` (``package.module:factory``) makes, or one thread a core of this machine."""
    named = os.environ.get("RUNDOKU_EXECUTOR")
    if named:
        module, _, factory = named.partition(":")
        made = getattr(import_module(module), factory)()
        if not isinstance(made, Executor):
            raise TypeError(f"RUNDOKU_EXECUTOR={named} made {type(made).__name__}; expected a concurrent.futures.Executor")
        return made
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


_running: set[ForkServerProcess] = set()  # the sessions of this process's threads
_interrupted = threading.Event()
_preload = PRELOAD


def execute(blocks: list[str], seconds: float, root: str, without: str = "") -> list[Outcome]:
    """Run the blocks of a session one after another in a process of their own; the first that fails is the last outcome.

    ``without`` names the data sets that it does without, with commas between them.
    """
    os.environ["PYTHONHASHSEED"] = "0"  # read when the process that the others fork from starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preload)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_session, args=(theirs, blocks, root, without), daemon=False)
    outcomes: list[Outcome] = []
    try:
        process.start()
        _running.add(process)
        if _interrupted.is_set():
            _end(process)
        theirs.close()
        while len(outcomes) < len(blocks) and not (outcomes and outcomes[-1]["error"]):
            wait([ours, process.sentinel], seconds)  # its end, too: what it has started may hold the pipe open
            try:
                if ours.poll():
                    outcomes.append(ours.recv())
                elif process.exitcode is None:
                    outcomes.append(_failure(f"ran past its limit of {seconds:g} s and was ended"))
                else:
                    raise EOFError
            except EOFError:
                process.join()
                outcomes.append(_failure(_ending(process.exitcode or 0)))
    finally:
        _running.discard(process)
        if process.pid:
            process.join(5 if outcomes and outcomes[-1]["error"] is None else 0)  # let one that has finished go by itself
            _end(process)  # and end whatever it has started
            process.join()
        ours.close()
    return outcomes


def _end(process: ForkServerProcess) -> None:
    """End a session and whatever it has started."""
    if process.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


def _ending(code: int) -> str:
    if code < 0:
        return f"its process was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"its process ended with status {code} before the snippet had finished"


def _failure(message: str) -> Outcome:
    return {"output": "", "items": [], "values": {}, "experiments": [], "files": {}, "error": message, "left_out": ""}


# --- in the session's process ---------------------------------------------------------------------------------------


def _session(connection: Connection, blocks: list[str], root: str, without: str) -> None:
    os.setpgrp()  # what the snippet starts ends with it
    gc.freeze()  # what is imported already is never looked through again, and its memory stays shared
    threading.Thread(target=_end_with_build, daemon=True).start()
    os.chdir(root)
    import numpy
    import torch

    torch.set_num_threads(1)  # the same sums on one core as on many
    torch.manual_seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - a snippet's library may use the old generator
    random.seed(0)
    sys.dont_write_bytecode = True
    os.environ.update({"MPLBACKEND": "Agg", "TQDM_DISABLE": "1", WITHOUT: without})
    sys.addaudithook(_note_opened)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    absent: dict[str, str] = {}
    for i, code in enumerate(blocks):
        outcome = _block(code, f"<block {i + 1}>", module.__dict__, Path(root), absent)
        connection.send(outcome)
        if outcome["error"] is not None:
            break
    connection.close()


def _end_with_build() -> None:
    """Wait for the end of the process that wants the session's results; where that comes first, nobody does any more."""
    build = multiprocessing.parent_process()
    if build:
        build.join()
        os.killpg(0, signal.SIGKILL)


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if record.current and event in ("open", "os.listdir", "os.scandir") and sys._getframe(1).f_globals.get("__name__") not in READERS:
        with contextlib.suppress(TypeError):  # a file descriptor: that file was opened by name before
            record.current.opened.add(Path(os.fsdecode(arguments[0])))


def _block(code: str, name: str, namespace: dict[str, Any], root: Path, absent: dict[str, str]) -> Outcome:
    """Run a block; ``absent`` holds the names that the session lacks since an earlier block was left out, and what was missing there."""
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name
    recording = record.Recording()
    error, left_out = None, ""
    with _captured() as output:
        record.listen(recording)
        try:
            exec(compile(code, name, "exec"), namespace)
        except record.LeftOut as missing:
            left_out = str(missing)
        except NameError as missing:
            left_out = absent.get(missing.name or "", "")
            error = None if left_out else _trace(missing)
        except SystemExit as end:
            error = f"called sys.exit({end.code!r})\n\n{_trace(end)}"
        except BaseException as raised:
            error = _trace(raised)
        finally:
            record.listen(None)
    if left_out:  # half of what a block shows would pass for the whole
        recording.items, recording.values, output[0] = [], {}, ""
        absent.update(dict.fromkeys(_bound(code) - namespace.keys(), left_out))
    files = [getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if not name.startswith(MACHINE)]
    loaded = {Path(file) for file in files if file and file.startswith(os.sep) and not file.startswith(INSTALLED)}
    return {
        "output": output[0],
        "items": recording.items,
        "values": recording.values,
        "experiments": recording.experiments,
        "files": digests(recording.opened | loaded, root),
        "error": error if error is None or not output[1] else f"{error}\nIt also wrote to standard error:\n{output[1]}",
        "left_out": left_out,
    }


def _bound(code: str) -> set[str]:
    """Return the names that a block binds anywhere."""
    nodes = list(ast.walk(ast.parse(code)))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return stored | defined | {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}


def _trace(error: BaseException) -> str:
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.format_exception(error.with_traceback(frames)))


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Catch what is written to the two outputs, below Python too; yields a list that holds both texts afterwards."""
    texts: list[str] = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = os.dup(1), os.dup(2)
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115
        try:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            yield texts
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            ctypes.CDLL(None).fflush(None)
            sys.stdout, sys.stderr = before
            for fd, target in zip(kept, (1, 2), strict=True):
                os.dup2(fd, target)
                os.close(fd)
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
