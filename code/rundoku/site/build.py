"""Builds the site: first the snippets that are missing, then the languages side by side."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from tqdm import tqdm

from rundoku.show.store import ROOT, Store, StoreError, default_store, fingerprint
from rundoku.site import changes, runner, snippets
from rundoku.site.catalogue import LANGUAGES

BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict"]


class Inputs(TypedDict):
    """What a language is built from: a digest of all but its notes' pages, and for each of these its digest and its skeleton's."""

    common: str
    notes: dict[str, list[str]]


class BuildError(Exception):
    """The site could not be built; what is wrong has been said."""


def store_of(root: Path) -> Store:
    """Return the store that the builds of ``root`` share."""
    found = default_store() if root == ROOT else None
    return found or Store(root / ".cache" / "rundoku", root)


def without(names: Sequence[str], root: Path = ROOT) -> None:
    """Let the runs of this process do without data sets: what needs them is marked as missing on the page.

    Raises ValueError for a name that is no data set's ``SOURCE.name``.
    """
    if not names:
        return
    texts = [path.read_text(encoding="utf-8") for path in sorted((root / "code" / "rundoku" / "data").glob("*.py"))]
    known = [match[1] for text in texts for match in re.finditer(r'^    name="(\w+)",$', text, re.M)]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"--without: got {wrong[0]!r}, expected one of {', '.join(known)}")
    os.environ[runner.WITHOUT] = ",".join(sorted({*names, *filter(None, os.environ.get(runner.WITHOUT, "").split(","))}))


def wanted(root: Path) -> list[list[snippets.Block]]:
    """Return the sessions of all pages. Raises NoteError for a snippet that is missing."""
    found: list[list[snippets.Block]] = []
    for path, language in snippets.pages(root):
        blocks = snippets.blocks(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix(), language, root)
        found += snippets.sessions(blocks)
    return found


def run(root: Path = ROOT, *, languages: Sequence[str] = LANGUAGES, notes: Sequence[str] = ()) -> int:
    """Run the snippets whose results are missing, in parallel, with a progress bar; return how many blocks are at fault.

    ``notes`` names the notes to run, all where none is named. Every fault is printed with the note, language, line and section where the
    block stands, and its traceback. Raises ValueError for a note that does not exist.
    """
    written = sorted(path.parent.name for path in root.glob("notes/*/index.en.md"))
    unknown = [note for note in notes if note not in written]
    if unknown:
        raise ValueError(f"notes: got {unknown[0]!r}, expected some of {', '.join(written)}")
    store, known = store_of(root), dict[str, runner.Outcome]()

    def kept(name: str) -> runner.Outcome | None:
        outcome = known.get(name) or store.recall(name)
        if outcome:
            known[name] = outcome  # the three languages ask for the same
        return outcome

    folders = tuple(f"notes/{note}/" for note in notes) or ("",)
    sessions = [session for session in wanted(root) if session[0].language in languages and session[0].page.startswith(folders)]
    missing = {}
    for session in sessions:
        codes = [block.code for block in session]
        if any(kept(runner.key(codes[: i + 1])) is None for i in range(len(codes))):
            missing[runner.key(codes)] = codes
    longer = list(missing.values())  # a session that is the beginning of another needs no run of its own
    todo = [codes for codes in longer if not any(other is not codes and other[: len(codes)] == codes for other in longer)]
    failures: dict[str, str] = {}
    if todo:
        with (
            runner.default_executor() as executor,
            tqdm(total=len(todo), desc="running snippets", unit="session", disable=None, mininterval=0.5) as bar,
        ):

            def done(codes: Sequence[str], outcomes: list[runner.Outcome]) -> None:
                bar.update()
                if outcomes[-1]["error"] is not None:
                    failures[runner.key(codes[: len(outcomes)])] = outcomes[-1]["error"]

            runner.run(store, todo, executor, done)
    print(f"{len(sessions)} sessions, {len(todo)} run, {len(failures)} failed", flush=True)
    complaints = list(_complaints(kept, sessions, failures))
    for complaint in complaints:
        print(f"\n{complaint}", file=sys.stderr)
    return len(complaints)


def _complaints(
    kept: Callable[[str], runner.Outcome | None], sessions: Iterable[list[snippets.Block]], failures: dict[str, str]
) -> Iterable[str]:
    """Yield what is wrong with each block, with every place where it stands."""
    places: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    for session in sessions:
        codes = [block.code for block in session]
        for i, block in enumerate(session):
            name = runner.key(codes[: i + 1])
            outcome = kept(name)
            fault = f"the snippet failed: {failures[name]}" if name in failures else snippets.complain(block, outcome) if outcome else ""
            if fault:
                places.setdefault(name, []).append(block.place())
                faults[name] = fault
    for name, fault in faults.items():
        yield f"{chr(10).join(places[name])}: {fault}"


def build(root: Path = ROOT, *, languages: Sequence[str] = LANGUAGES) -> None:
    """Build the languages into ``site/``; one that nothing has changed for stays as it is.

    Raises BuildError where anything is at fault; ``site/`` then stands as it was.
    """
    try:
        if run(root, languages=languages):
            raise BuildError("snippets are at fault: nothing was built")
    except (snippets.NoteError, StoreError) as error:
        raise BuildError(str(error)) from error
    environment = build_environment(root)
    with _alone(root) as lock:
        inputs = _inputs(root, languages, environment)
        todo = [language for language in languages if not is_fresh(root, language, inputs[language])]
        with _workplace(root) as beside, ThreadPoolExecutor(len(todo) or 1) as pool:

            def make(language: str) -> int:
                return _build_one(root, beside / language, environment, lock, _reworded(root, language, inputs[language]))

            codes = list(pool.map(make, todo))
            failed = [language for language, code in zip(todo, codes, strict=True) if code]
            if failed:
                raise BuildError(f"the build failed in {', '.join(failed)}; the site stands as it was")
            for language in todo:
                _put_in_place(root, beside, language, inputs[language])
    print(f"built {', '.join(todo) or 'nothing'}; unchanged: {', '.join(sorted(set(languages) - set(todo))) or 'none'}", flush=True)


def build_environment(root: Path) -> dict[str, str]:
    """Return the environment of a build: dates from the last commit, sets in one order, no notices."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    if "SOURCE_DATE_EPOCH" not in environment:
        last = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True, check=False)
        environment["SOURCE_DATE_EPOCH"] = last.stdout.strip() or "0"
    return environment


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[int]:
    """Hold the site's folder: a second build waits, and finds its work done. Yields the lock, for what the build starts to hold too."""
    lock = root / ".cache" / "site.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextlib.contextmanager
def _workplace(root: Path) -> Iterator[Path]:
    """Yield an empty folder on the site's disk."""
    folder = root / ".cache" / "building"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_one(root: Path, beside: Path, environment: dict[str, str], lock: int, pages: frozenset[str]) -> int:
    """Build the language that ``beside`` is named for into that folder, or just these pages of it, and return the exit status."""
    language = beside.name
    given = {**environment, "DOCS_LANG": language}

    def mkdocs(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [*BUILD, *arguments]
        return subprocess.run(command, cwd=root, env=given | more, capture_output=True, text=True, check=False, pass_fds=(lock,))

    if pages:
        made = beside.with_name(f"{language}.pages")
        done = mkdocs("--dirty", "--site-dir", str(made), RUNDOKU_PAGES=" ".join(sorted(pages)))
        if done.returncode == 0 and changes.join(root / "site" / language, made / language, beside / language, pages):
            print(f"[{language}] only {', '.join(sorted(pages))}", flush=True)
            return 0
        shutil.rmtree(beside, ignore_errors=True)
    done = mkdocs("--site-dir", str(beside))
    lines = [f"[{language}] {line}\n" for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    print("".join(lines), end="", file=sys.stderr if done.returncode else sys.stdout, flush=True)
    return done.returncode


def _put_in_place(root: Path, beside: Path, language: str, inputs: Inputs) -> None:
    """Move a language that is whole to where it is served, and note what it was built from."""
    site, stamp = root / "site", _stamp(root, language)
    stamp.unlink(missing_ok=True)
    site.mkdir(exist_ok=True)
    if (site / language).exists():
        (site / language).replace(beside / f"{language}.before")
    for made in sorted((beside / language).iterdir()):
        made.replace(site / made.name)
    stamp.write_text(json.dumps({**inputs, "outputs": _outputs(root, language)}), encoding="utf-8")


def _stamp(root: Path, language: str) -> Path:
    return root / ".cache" / f"{language}.built"


def _inputs(root: Path, languages: Sequence[str], environment: dict[str, str]) -> dict[str, Inputs]:
    """Return what each language's build reads: of another language's page, only what its snippets show."""
    store, files = store_of(root), changes.sources(root)
    keys = {runner.key([block.code for block in session[: i + 1]]) for session in wanted(root) for i in range(len(session))}
    shown = {key: store.digest(key) for key in keys}
    installed = sorted(f"{found.name} {found.version}" for found in metadata.distributions())
    given = {name: environment.get(name) for name in ("SITE_URL", "REPO_URL", "SOURCE_DATE_EPOCH")}
    found: dict[str, Inputs] = {}
    for language in languages:
        read = changes.read_by(language, files)
        last = _last(root, language)
        notes = changes.notes(root, read, last["notes"] if last else {})
        others = {name: digest for name, digest in read.items() if name not in notes}
        found[language] = {"common": fingerprint([shown, installed, given, commit(root), others]), "notes": notes}
    return found


def _outputs(root: Path, language: str) -> str:
    """Return a fingerprint of what a build has left: names, sizes and times."""
    entries = [path for path in (root / "site" / language).rglob("*") if path.is_file()]
    if language == "en":  # that build makes what stands above the languages
        entries += (root / "site").glob("*.html")
    return fingerprint(sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in entries))


def _last(root: Path, language: str) -> Inputs | None:
    """Return what the language as it stands was built from; None where it is not as a build has left it."""
    try:
        kept = json.loads(_stamp(root, language).read_text(encoding="utf-8"))
        return kept if kept.pop("outputs") == _outputs(root, language) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def is_fresh(root: Path, language: str, inputs: Inputs) -> bool:
    """Whether a language stands as its last build left it, and that build read what a build now would read."""
    return _last(root, language) == inputs


def _reworded(root: Path, language: str, inputs: Inputs) -> frozenset[str]:
    """Return the pages to make again where nothing but the wording of notes has changed; none where everything is to be made."""
    last = _last(root, language)
    return changes.reworded(last["notes"], inputs["notes"]) if last and last["common"] == inputs["common"] else frozenset()


def commit(root: Path) -> str:
    """Return the commit that code links point to; 'main' outside a git checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "main"


def serve(language: str, address: str, root: Path = ROOT) -> int:
    """Preview one language at ``address`` and follow every edit, until interrupted."""
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; expected one of {', '.join(LANGUAGES)}")
    command = [sys.executable, "-m", "mkdocs", "serve", "--dirty", "--no-strict", "--dev-addr", address]
    return subprocess.run(command, cwd=root, env={**build_environment(root), "DOCS_LANG": language}, check=False).returncode
