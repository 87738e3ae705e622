"""Results kept on disk as text: whole or not at all, checked when read, safe with two builds at once."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rundoku.show.imports import SOURCE_ROOT

ROOT = SOURCE_ROOT.parent  # the repository
FORMAT = 1  # raise it when the meaning of a stored result changes
VARIANTS = 4  # results of one key that are kept, each for other files that it rests on
TOOLS = ("torch", "triton", "numpy", "matplotlib")


class StoreError(Exception):
    """A result could not be kept; the message names the file and the cause."""


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, in hexadecimal."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return the versions that every stored result rests on; a tool that is not installed is not named."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "format": str(FORMAT)}
    for tool in TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found


def _taken(file: IO[str]) -> bool:
    """Lock a file if nobody has, and return whether that went well."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_digests: dict[tuple[str, int, int], str] = {}


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file's bytes, of a folder's names, or None where there is neither; what is unchanged is read once."""
    try:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in _digests:
            _digests[key] = hashlib.sha256(_names(path) if stat.S_ISDIR(status.st_mode) else path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _digests[key]


def _names(folder: Path) -> bytes:
    """Return what a folder lists, but for what Python and editors put there."""
    return "\n".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))).encode()


def digests(paths: set[Path], root: Path = ROOT) -> dict[str, str | None]:
    """Return the digests of those files and folders of the repository that a result may rest on, by their path in it.

    One that was looked for and is not there has None: the result rests on its absence.
    """
    found = {}
    for path in paths:
        inside = path.resolve()
        if inside.is_relative_to(root) and inside.suffix != ".pyc":
            name = inside.relative_to(root).as_posix()
            if not name.startswith("."):
                found[name] = file_digest(inside)
    return dict(sorted(found.items()))


class Store:
    """A folder of JSON files named by key, each with a checksum of its content and the files that it rests on.

    A key has several entries where the files that its result rests on have come and gone, as they do between branches.
    """

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder, self.root = folder, root

    def _entries(self, key: str) -> list[Path]:
        """Return the files kept under ``key``, the newest first."""
        found = []
        for path in (self.folder / key[:2]).glob(f"{key}-*.json"):
            with contextlib.suppress(FileNotFoundError):  # another build has put a newer one in its place
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def _valid(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest entry whose files are as they were, and what it holds."""
        for path in self._entries(key):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                payload = entry["payload"]
                files = payload["files"].items()
                if entry["sha256"] == fingerprint(payload) and all(file_digest(self.root / name) == digest for name, digest in files):
                    return path, payload
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # absent or damaged: it is run again
        return None

    def recall(self, key: str) -> dict[str, Any] | None:
        """Return what was kept under ``key``, or None where it is absent, damaged, or rests on files that have changed."""
        found = self._valid(key)
        return found[1] if found else None

    def digest(self, key: str) -> str | None:
        """Return the digest of the entry that ``recall`` finds under ``key``, as it lies on disk, None where there is none."""
        found = self._valid(key)
        return file_digest(found[0]) if found else None

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Hold ``key``: another process that wants to run the same waits, and then finds it kept. Raises StoreError as ``keep`` does."""
        path = self.folder / "locks" / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise StoreError(f"could not hold {path}: {error.strerror or error}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def slot(self, count: int) -> Iterator[None]:
        """Hold one of this machine's ``count`` slots to compute in, and wait while others hold all. Raises StoreError as ``keep`` does.

        A process that ends, however it does, gives its slot back.
        """
        paths = [self.folder / "locks" / f"{platform.node()}-{i}" for i in range(count)]
        with contextlib.ExitStack() as opened:
            try:
                paths[0].parent.mkdir(parents=True, exist_ok=True)
                files = [opened.enter_context(path.open("w")) for path in paths]
            except OSError as error:
                raise StoreError(f"could not hold {paths[0]}: {error.strerror or error}") from error
            while not any(_taken(file) for file in files):
                time.sleep(0.02)
            yield

    def keep(self, key: str, payload: dict[str, Any]) -> None:
        """Keep a payload, whole or not at all; its ``files`` maps repository paths to digests.

        Of the entries under one key, the last VARIANTS stay. Raises StoreError where the disk does not take it.
        """
        path = self.folder / key[:2] / f"{key}-{fingerprint(payload['files'])[:16]}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump({"sha256": fingerprint(payload), "payload": payload}, file, ensure_ascii=False)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(path)
                for outdated in self._entries(key)[VARIANTS:]:
                    outdated.unlink(missing_ok=True)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError(f"could not keep a result in {path}: {error.strerror or error}") from error


def default_store() -> Store | None:
    """Return the repository's store (``RUNDOKU_STORE`` moves it), or None where the package is used outside the repository."""
    folder = os.environ.get("RUNDOKU_STORE")
    if folder:
        return Store(Path(folder))
    return Store(ROOT / ".cache" / "rundoku") if (ROOT / "mkdocs.yml").is_file() else None
