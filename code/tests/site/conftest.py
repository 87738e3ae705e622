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
