"""A folder that others write to as well keeps their files."""

import errno
import os
from pathlib import Path

import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.written import RECORD, Written


def add(folder: Path, **contents: str) -> None:
    with Written("--output", folder).adding() as staged:
        for name, content in contents.items():
            (staged / name).write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_replaced_and_what_was_not_stays(tmp_path):
    add(tmp_path, a="1", b="1")
    add(tmp_path, a="2")
    (tmp_path / "c").write_text("mine")
    with pytest.raises(UserError, match=f"--output={tmp_path} holds c, which this program has not written"):
        add(tmp_path, a="3", c="3")
    assert [(tmp_path / name).read_text() for name in "abc"] == ["2", "1", "mine"]
    assert names(tmp_path) == [RECORD, "a", "b", "c"]


def test_what_was_changed_since_is_the_users(tmp_path):
    add(tmp_path, a="1")
    (tmp_path / "a").write_text("corrected")
    with pytest.raises(UserError, match="or which was changed since"):
        add(tmp_path, a="2")
    record = Written("--output", tmp_path)
    record.remove_others(set())
    assert (tmp_path / "a").read_text() == "corrected"


def test_a_program_that_was_killed_between_finds_its_own_files_again(tmp_path, monkeypatch):
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "b":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            add(tmp_path, a="1", b="1")
    with (tmp_path / RECORD).open("a") as record:
        record.write('{"name": "c", "sha')
    add(tmp_path, a="2", b="2")
    assert names(tmp_path) == [RECORD, "a", "b"]


def test_what_is_not_written_again_is_removed(tmp_path):
    add(tmp_path, a="1", b="1")
    (tmp_path / "c").touch()
    Written("--output", tmp_path).remove_others({tmp_path / "a"})
    assert names(tmp_path) == [RECORD, "a", "c"]


def test_files_that_are_known_by_another_sign_can_be_adopted(tmp_path):
    (tmp_path / "a").write_text("old")
    Written("--output", tmp_path).adopt(["a", "b"])
    add(tmp_path, a="new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_full_disk_is_one_line(tmp_path):
    def fail() -> None:
        with Written("--output", tmp_path / "out").adding():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): choose another folder, or"):
        fail()
