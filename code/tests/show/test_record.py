import linecache
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rundoku.show import claim, publish, record, table


@pytest.fixture
def listening() -> Iterator[record.Recording]:
    recording = record.Recording()
    record.listen(recording)
    yield recording
    record.listen(None)


def test_published_values_are_plain_numbers_and_text(listening: record.Recording) -> None:
    publish(i=3, f=0.5, s="text", tensor=torch.tensor(2), array=np.float64(1.5))
    assert listening.values == {"i": 3, "f": 0.5, "s": "text", "tensor": 2, "array": 1.5}
    assert {type(value) for value in listening.values.values()} <= {int, float, str}
    publish(i=3)
    with pytest.raises(ValueError, match="value 'i' is published twice: 3, then 4"):
        publish(i=4)
    for wrong in (None, True, [1], torch.ones(2)):
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            publish(wrong=wrong)
    assert "wrong" not in listening.values


def test_a_table_keeps_its_cells_and_refuses_rows_that_do_not_fit(listening: record.Recording) -> None:
    table("t", columns=("a", "b"), rows=[(1, None), (np.int64(2), "x"), (True, 0.5)], formats=(",", ""))
    assert listening.items == [
        {"kind": "table", "name": "t", "columns": ["a", "b"], "rows": [[1, None], [2, "x"], [True, 0.5]], "formats": [",", ""]}
    ]
    with pytest.raises(ValueError, match="row 1 of table 't' has 1 entries; expected 2, one a column"):
        table("t", columns=("a", "b"), rows=[(1, 2), (1,)])
    with pytest.raises(ValueError, match="formats of table 't' has 1 entries; expected 2"):
        table("t", columns=("a", "b"), rows=[], formats=("",))
    with pytest.raises(TypeError, match="a cell of table 't' is"):
        table("t", columns=("a",), rows=[([1],)])
    assert len(listening.items) == 1


@pytest.mark.parametrize(("holds", "verdict"), [(True, "exact"), (False, "not reproduced"), (torch.tensor(True), "exact")])
def test_a_verdict_is_computed(listening: record.Recording, holds: Any, verdict: str) -> None:
    claim("c", ours=torch.tensor(2.5), holds=holds, kind="exact", format=".1f")
    (item,) = listening.items
    assert (item["verdict"], item["ours"], item["format"]) == (verdict, 2.5, ".1f")


def test_what_is_no_verdict_is_refused(listening: record.Recording) -> None:
    with pytest.raises(ValueError, match="kind of claim 'c' is 'proved'; expected 'exact', 'reproduced' or 'recorded'"):
        claim("c", ours=1, holds=True, kind="proved")  # type: ignore[arg-type]
    for wrong in (1, None, "yes", math.nan):
        with pytest.raises(TypeError, match="expected"):
            claim("c", ours=1, holds=wrong, kind="exact")  # type: ignore[arg-type]
    assert listening.items == []


def test_the_threshold_is_the_source_of_holds(listening: record.Recording) -> None:
    code = (
        "claim('first', ours=1, holds=ratio > 9_000, kind='exact'); claim('second', ours=2, kind='exact',\n"
        "      holds=(ratio\n             < 1))\n"
        "for name in ('third',):\n    claim(name, ours=3, holds=abs(ratio - 1) <= 0.5, kind='reproduced')\n"
    )
    linecache.cache["<snippet>"] = len(code), None, code.splitlines(keepends=True), "<snippet>"
    exec(compile(code, "<snippet>", "exec"), {"claim": claim, "ratio": 10_000})
    assert [(item["name"], item["threshold"]) for item in listening.items] == [
        ("first", "ratio > 9000"), ("second", "ratio < 1"), ("third", "abs(ratio - 1) <= 0.5"),
    ]  # fmt: skip
    exec("claim('fourth', ours=1, holds=True, kind='exact')", {"claim": claim})
    assert listening.items[-1]["threshold"] == "", "no source, no threshold"


def test_outside_a_build_everything_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    publish(total=3)
    table("t", columns=("a", "b"), rows=[(1, None)])
    claim("c", ours=1, holds=False, kind="reproduced")
    assert capsys.readouterr().out == "total = 3\na | b\n1 | None\nc: 1 (not reproduced)\n"
