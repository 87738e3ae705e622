import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rundoku.show import store
from rundoku.show.store import Store, StoreError, digests, file_digest, fingerprint

PAYLOAD = {"text": "あ−1", "numbers": [0.1, float("inf"), 10**20], "files": {}}


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store", tmp_path)
    found.keep("ab12", PAYLOAD)
    return found


def test_what_is_kept_comes_back_and_nothing_else_does(kept: Store) -> None:
    assert kept.recall("ab12") == PAYLOAD
    assert kept.recall("ab13") is None


def test_every_single_flipped_bit_of_the_payload_is_noticed(kept: Store) -> None:
    (file,) = kept.folder.rglob("*.json")
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert kept.recall("ab12") in (None, PAYLOAD), whole[place - 5 : place + 5]
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert kept.recall("ab12") is None


def test_a_result_is_valid_while_what_it_rests_on_is_unchanged(kept: Store, tmp_path: Path) -> None:
    used, folder, absent = tmp_path / "used.txt", tmp_path / "folder", tmp_path / "absent"
    used.write_text("1")
    folder.mkdir()
    rests_on = digests({used, folder, absent, Path("/etc/hosts"), tmp_path / ".cache" / "x", tmp_path / "a.pyc"}, tmp_path)
    assert list(rests_on) == ["absent", "folder", "used.txt"] and rests_on["absent"] is None
    kept.keep("cd", {"files": rests_on})
    assert kept.recall("cd") is not None
    for change, back in (
        (lambda: used.write_text("2"), lambda: used.write_text("1")),
        (used.unlink, lambda: used.write_text("1")),
        ((folder / "new").touch, (folder / "new").unlink),
        (absent.touch, absent.unlink),
    ):
        change()
        assert kept.recall("cd") is None
        back()
        assert kept.recall("cd") is not None
    (folder / "__pycache__").mkdir()
    assert kept.recall("cd") is not None, "Python's own files are none of ours"


def test_results_for_files_that_come_and_go_stay_side_by_side_and_the_last_four_are_kept(kept: Store, tmp_path: Path) -> None:
    used = tmp_path / "used.txt"
    for text in "12345":
        used.write_text(text)
        assert kept.recall("cd") is None and kept.digest("cd") is None
        kept.keep("cd", {"files": digests({used}, tmp_path), "text": text})
        assert kept.digest("cd")
    for text in "5432":  # as when a branch is left and taken up again
        used.write_text(text)
        assert kept.recall("cd") == {"files": digests({used}, tmp_path), "text": text}
    used.write_text("1")
    assert kept.recall("cd") is None and len(list(kept.folder.rglob("cd-*.json"))) == 4
    assert kept.recall("c") is None and kept.recall("ab12") == PAYLOAD


def test_a_write_that_fails_keeps_the_old_result_and_leaves_no_part(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = kept.folder.rglob("*.json")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def full(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(*((os, "fsync") if name == "fsync" else (Path, "replace")), full)
            with pytest.raises(StoreError, match=r"ab12-\w+\.json: No space left on device"):
                kept.keep("ab12", {"files": {}})
        assert kept.recall("ab12") == PAYLOAD
        assert [path for path in kept.folder.rglob("*") if path.is_file()] == [file]
    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            kept.keep("ab12", {"files": {}})
    assert kept.recall("ab12") == PAYLOAD
    assert [path for path in kept.folder.rglob("*") if path.is_file()] == [file]


def test_the_order_of_names_does_not_change_a_fingerprint_and_every_value_does() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(value) for value in ([1, 2], [2, 1], {"a": 1}, {"a": 1.5}, "1", 1, None, "あ")}) == 8


def test_a_digest_follows_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert file_digest(file) is None
    file.write_bytes(b"one")
    first = file_digest(file)
    file.write_bytes(b"two!")
    assert file_digest(file) not in (first, None)
    assert file_digest(file / "below a file") is None


def test_the_repository_is_where_the_store_lies_unless_it_is_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RUNDOKU_STORE", raising=False)
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert store.default_store() is None, "outside the repository nothing is kept"
    (tmp_path / "mkdocs.yml").touch()
    found = store.default_store()
    assert found is not None and found.folder == tmp_path / ".cache" / "rundoku"
    monkeypatch.setenv("RUNDOKU_STORE", str(tmp_path / "elsewhere"))
    found = store.default_store()
    assert found is not None and found.folder == tmp_path / "elsewhere"


@pytest.mark.parametrize("hold", [lambda store: store.alone("ab12"), lambda store: store.slot(2)])
def test_what_cannot_be_held_is_named(hold: Callable[[Store], AbstractContextManager[None]], tmp_path: Path) -> None:
    (tmp_path / "store").touch()  # a file where the folder should be
    with pytest.raises(StoreError, match=r"could not hold .*store/locks/.*: Not a directory"), hold(Store(tmp_path / "store", tmp_path)):
        pass
