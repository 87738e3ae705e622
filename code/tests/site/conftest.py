import textwrap
from pathlib import Path

import pytest
from toy import Toy
from written import Site


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "site")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def repository(tmp_path):
    """Write modules, given by dotted name, below a repository's code/ and return the repository's root."""

    def write(**files):
        for name in ("rundoku", "rundoku.papers", "rundoku.concepts", *files):
            source = files.get(name, "")
            path = tmp_path / "code" / Path(*name.split("."))
            packages = {"rundoku", "rundoku.papers", "rundoku.concepts"}
            is_package = (
                name in packages
                or name.rpartition(".")[0] in packages - {"rundoku"}
                or any(other.startswith(f"{name}.") for other in files)
            )
            path = path / "__init__.py" if is_package else path.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source), encoding="utf-8")
        return tmp_path

    return write
