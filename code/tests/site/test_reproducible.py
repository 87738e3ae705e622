"""Two builds of one source give the same bytes, whatever the machine is like on that day."""

import os
from pathlib import Path

import pytest
from toy import Toy

# What is the same in every process only because the machine sees to it.
SEEDS = """

# --8<-- [start:seeds]
import random
import numpy as np
import torch
publish(order=" ".join({"query", "key", "value", "head", "mask", "scale"}), threads=torch.get_num_threads())
publish(drawn=random.random(), numpy=np.random.rand(), torch=torch.rand(1).item(), sum=torch.rand(200_000).sum().item())
print("`#!value order` `#!value drawn` `#!value numpy` `#!value torch` `#!value sum` `#!value threads`")
# --8<-- [end:seeds]
"""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Toy]:
    """The same source built twice: with other folders, times, hash seeds, time zones, locales and numbers of cores."""
    cores = sorted(os.sched_getaffinity(0))
    ways: list[tuple[dict[str, str], tuple[str, ...], float]] = [
        ({"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "2", "COLUMNS": "200"}, (), 1_600_000_000),
        ({"PYTHONHASHSEED": "2", "TZ": "UTC", "LC_ALL": "C"}, ("taskset", "-c", str(cores[0])), 1_500_000_000.5),
    ]
    made = []
    for number, (environment, within, time) in enumerate(ways):
        toy = Toy(tmp_path_factory.mktemp(f"folder-{number * 'other'}") / "site")
        note = toy.room / "note.py"
        note.write_text(note.read_text(encoding="utf-8") + SEEDS, encoding="utf-8")
        for language in ("en", "ja", "zh"):
            page = toy.page(language)
            fence = '\n```python exec="on" source="above" session="seeds"\n--8<-- "lora/note.py:setup"\n--8<-- "lora/note.py:seeds"\n```\n'
            page.write_text(page.read_text(encoding="utf-8") + fence, encoding="utf-8")
        paths = sorted(toy.root.rglob("*"), reverse=bool(number))
        for i, path in enumerate(paths):
            os.utime(path, (time + i, time + i))
        done = toy.rundoku("build", within=within, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        made.append(toy)
    return made[0], made[1]


def test_every_byte_is_the_same(sites: tuple[Toy, Toy]) -> None:
    one, other = (toy.files() for toy in sites)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_the_snippets_of_both_were_run_and_show_what_could_have_differed(sites: tuple[Toy, Toy]) -> None:
    for toy in sites:
        html = toy.html("ja")
        assert 'class="value">1</span>' in html, "one thread"
        assert "<svg" in html and "<math" in html and "mask" in html
        assert (toy.root / "site" / "zh" / "search" / "search_index.json").is_file()


def test_no_page_knows_where_it_was_built(sites: tuple[Toy, Toy]) -> None:
    for toy in sites:
        told = [name for name, data in toy.files().items() if str(toy.root).encode() in data or str(Path.home()).encode() + b"/" in data]
        assert told == []
