"""Where a data set comes from: a pinned package of which only the files are read, never its code."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from rundoku.show.record import LeftOut

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
WITHOUT = "RUNDOKU_WITHOUT"  # the names of the data sets that a build leaves out, with commas between them


class MissingData(Exception):
    """A data set's package is absent, of another version or damaged; the message names the command that brings it."""


@dataclass(frozen=True)
class Source:
    """One data set or model; the data page lists these."""

    title: str  # what it is
    package: str  # its name on PyPI
    version: str  # the only version that is read; requirements.txt pins it with its SHA-256
    licence: str
    url: str  # where the package's own makers took it from, or their home
    name: str = ""  # its module below rundoku.data, by which a build can be told to do without it

    def files(self, folder: str, ending: str) -> list[Path]:
        """Return the package's files below ``folder`` whose names end in ``ending``, sorted by name.

        Raises LeftOut in a build without this data set, and MissingData when the package is not installed, has another version, or has
        no such file.
        """
        if self.name and self.name in os.environ.get(WITHOUT, "").split(","):
            raise LeftOut(self.title)
        command = f"pip install --no-deps --require-hashes -r {REQUIREMENTS}"
        if self.name:
            command += f"; or build without it: nox -s docs -- --without {self.name}"
        try:
            package = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            raise MissingData(f"{self.title}: the package {self.package} is not installed. To bring it: {command}") from None
        if package.version != self.version:
            found = f"{package.version} is installed, {self.version} is needed"
            raise MissingData(f"{self.title}: of {self.package} {found}. To bring it: {command}")
        names = sorted(str(file) for file in package.files or () if str(file).startswith(f"{folder}/") and str(file).endswith(ending))
        paths = [Path(str(package.locate_file(name))) for name in names]
        missing = next((path for path in paths if not path.is_file()), None)
        if not paths or missing:
            raise MissingData(f"{self.title}: {missing or f'{folder}/*{ending}'} is missing from {self.package}. To bring it: {command}")
        return paths

    def file(self, folder: str, name: str, sha256: str) -> Path:
        """Return the package's file ``folder/name`` after its SHA-256 was compared.

        Raises what ``files`` raises, and MissingData where the file is not the one that is meant.
        """
        path = self.files(folder, name)[0]
        found = _sha256(path, path.stat().st_mtime_ns)
        if found != sha256:
            command = f"pip install --force-reinstall --no-deps --require-hashes -r {REQUIREMENTS}"
            raise MissingData(f"{self.title}: {path} has the SHA-256 {found}, expected {sha256}. To bring it again: {command}")
        return path


@cache
def _sha256(path: Path, mtime_ns: int) -> str:  # mtime_ns makes a changed file a new entry
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
