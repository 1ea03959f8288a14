"""A file is whole or not there, whatever stops its writer and whoever writes beside it."""

import os
import time
from pathlib import Path

import pytest

from medvlsm_jax import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_programs_of_one_process_id_write_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in the containers of two hosts
    path = tmp_path / "run.json"
    with atomic.replacing(path) as first, atomic.replacing(path) as second:
        assert first != second
        first.write_text("of the first")
        second.write_text("of the second")
    assert path.read_text() == "of the first"
    assert names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path, is_folder):
    (tmp_path / "kept").write_text("old")

    def fail() -> None:
        with atomic.replacing(tmp_path / "kept") as temporary:
            temporary.mkdir() if is_folder else temporary.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert names(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def test_a_text_that_cannot_be_written_leaves_nothing_beside_the_old_one(tmp_path):
    atomic.write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(tmp_path / "a.json", "half \ud800")
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_the_longest_name_that_a_file_system_has_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    atomic.write_text(path, "content")
    assert path.read_text() == "content"


def test_a_folder_is_there_as_a_whole(tmp_path):
    with atomic.replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "model.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path / "model") == ["model.json"]
    assert names(tmp_path) == ["model"]


def test_only_what_a_killed_run_left_is_removed(tmp_path):
    mine, fresh = tmp_path / "deep" / ".0123456789abcdef.tmp", tmp_path / "deep" / ".fedcba9876543210.tmp"
    others = [tmp_path / "deep" / name for name in (".hidden.tmp", "a.png", ".0123456789abcdef.png")]
    mine.parent.mkdir()
    for path in (mine, fresh, *others):
        path.write_text("half")
        os.utime(path, (0, time.time() - 7200 * (path != fresh)))
    atomic.remove_abandoned(tmp_path)
    assert names(tmp_path / "deep") == sorted(path.name for path in (fresh, *others))
