from pathlib import Path

import pytest

from rundoku.site import runner, snippets
from rundoku.site.snippets import Block, NoteError, Origin

CODE = """\
# --8<-- [start:setup]
import a
# --8<-- [end:setup]

def outer():
    # --8<-- [start:inner]
    x = 1
    # --8<-- [start:deep]
    y = 2
    # --8<-- [end:deep]
    # --8<-- [end:inner]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    room = tmp_path / "code" / "rundoku" / "papers" / "lora"
    room.mkdir(parents=True)
    (room / "note.py").write_text(CODE)
    return tmp_path


def test_sections_are_dedented_and_keep_their_lines() -> None:
    assert snippets.sections(CODE, "note.py") == {
        "setup": ("import a\n", 2, 2),
        "deep": ("y = 2\n", 9, 9),
        "inner": ("x = 1\ny = 2\n", 7, 10),
    }


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("# --8<-- [start:a]\nx\n", r"note\.py:1: section 'a' has no end"),
        ("x\n# --8<-- [end:a]\n", r"note\.py:2: section 'a' ends and has not started"),
    ],
)
def test_markers_that_do_not_pair_are_named(code: str, expected: str) -> None:
    with pytest.raises(NoteError, match=expected):
        snippets.sections(code, "note.py")


def test_blocks_have_their_code_and_where_it_is_from(root: Path) -> None:
    text = (
        '# T\n\n```python exec="on" session="s"\n--8<-- "lora/note.py:setup"\n```\n\n```python\nnot run\n```\n\n'
        '!!! note\n\n    ```py exec="1" quiet="on"\n    if 1:\n        --8<-- "lora/note.py:inner"\n    ```\n'
    )
    first, second = snippets.blocks(text, "notes/lora/index.ja.md", "ja", root)
    assert (first.code, first.line, first.quiet) == ("import a\n", 3, False)
    assert second.code == "if 1:\n    x = 1\n    y = 2\n" and second.quiet
    path = "code/rundoku/papers/lora/note.py"
    assert first.origins == (Origin(path, "setup", 2, 2),) and second.origins == (Origin(path, "inner", 7, 10),)
    assert first.place() == f"notes/lora/index.ja.md:3 (ja, section {path}:setup, session s)"


def test_an_edited_file_is_read_again(root: Path) -> None:
    def code() -> str:
        (block,) = snippets.blocks('```python exec="on"\n--8<-- "lora/note.py:setup"\n```\n', "p.en.md", "en", root)
        return block.code

    assert code() == "import a\n"
    (root / "code/rundoku/papers/lora/note.py").write_text(CODE.replace("import a", "import abc"))
    assert code() == "import abc\n"


def test_a_missing_snippet_is_named_also_where_nothing_runs(root: Path) -> None:
    for reference, expected in (
        ("lora/no.py", r"p\.en\.md:2 \(en\): snippet file 'lora/no\.py'"),
        ("lora/note.py:no", "it has setup, deep, inner"),
    ):
        with pytest.raises(NoteError, match=expected):
            snippets.blocks(f'\n```python\n--8<-- "{reference}"\n```\n', "p.en.md", "en", root)


def test_sessions_keep_their_order_and_blocks_without_one_stand_alone() -> None:
    made = [
        Block(name, {"session": session} if session else {}, "p", "en", 1, ())
        for name, session in (("a", "s"), ("b", ""), ("c", "t"), ("d", "s"))
    ]
    found = sorted("".join(block.code for block in session) for session in snippets.sessions(made))
    assert found == ["ad", "b", "c"]


@pytest.mark.parametrize(
    ("options", "outcome", "expected"),
    [
        ({}, {"output": "text"}, ""),
        ({}, {"values": {"a": 1}}, ""),
        ({}, {"items": [1]}, ""),
        ({}, {"output": " \n"}, "shows nothing"),
        ({"quiet": "on"}, {}, ""),
        ({"quiet": "off"}, {}, "shows nothing"),
        ({"quiet": "on"}, {"values": {"a": 1}}, "shows something"),
        ({"result": "text"}, {"output": "a"}, ""),
        ({"result": "text"}, {"items": [1]}, "result='text'"),
        ({"quiet": "on"}, {"error": "Traceback"}, "the snippet failed: Traceback"),
        ({}, {"left_out": "SmolLM2"}, ""),
    ],
)
def test_what_a_fence_expects_is_compared_with_what_came(options: dict[str, str], outcome: dict, expected: str) -> None:
    nothing = {"output": "", "items": [], "values": {}, "error": None, "left_out": ""}
    said = snippets.complain(Block("", options, "p", "en", 1, ()), nothing | outcome)
    assert (expected in said) if expected else said == ""


def test_a_results_name_depends_on_code_before_it_and_not_on_comments() -> None:
    one = runner.key(["x = 1", "print(x)"])
    assert runner.key(["x = 1  # one", "# 注釈\nprint( x )"]) == one
    assert (
        len(
            {
                one,
                runner.key(["print(x)"]),
                runner.key(["x = 2", "print(x)"]),
                runner.key(["x = 1", "print(x)", ""]),
                runner.key(["print(x)", "x = 1"]),
            }
        )
        == 5
    )
    assert runner.key(["def f(:"]) != runner.key(["def f(: # x"]), "what is no Python is taken as it is"


def test_the_time_limit_is_a_positive_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNDOKU_LIMIT", raising=False)
    assert runner.limit() == runner.LIMIT
    monkeypatch.setenv("RUNDOKU_LIMIT", "1.5")
    assert runner.limit() == 1.5
    for wrong in ("0", "-1", "soon"):
        monkeypatch.setenv("RUNDOKU_LIMIT", wrong)
        with pytest.raises(ValueError, match=f"RUNDOKU_LIMIT is '{wrong}'; expected a positive number of seconds"):
            runner.limit()
