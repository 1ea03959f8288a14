"""What hinders the process that writes ends all processes of an evaluation, each by a line."""

import errno
import os

import numpy as np
import pytest

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.cases import CaseLog
from medvlsm_jax.parallel import first_process
from medvlsm_jax.parallel.first_process import on_first_process
from medvlsm_jax.scoring import joined_log as module
from medvlsm_jax.scoring.joined_log import OTHER, JoinedLog, raise_together

LINE = {"dataset": "busi", "prompt": "p6"}


def rows() -> tuple[list, list]:
    return [LINE], []


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def as_process(monkeypatch):
    """Makes this process one of two; the other one says what it is told to."""

    def be(index: int, says: object = None, has_trouble: bool = False) -> None:
        monkeypatch.setattr(module.jax, "process_count", lambda: 2)
        monkeypatch.setattr(module.jax, "process_index", lambda: index)
        monkeypatch.setattr(module, "any_process", lambda _, flag: np.bool_(flag or has_trouble))
        monkeypatch.setattr(first_process, "from_first_process", lambda value: value if index == 0 else says)

    return be


def open_log(folder, mesh_of) -> JoinedLog:
    return JoinedLog(folder, {}, mesh_of(1), {"busi": [0, 1, 2, 3]}, 0)


def test_alone_a_full_disk_is_told_at_once(tmp_path, mesh_of, monkeypatch):
    log = open_log(tmp_path, mesh_of)
    monkeypatch.setattr(CaseLog, "append", no_room)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\): choose another folder, or make"
    ):
        log.append(rows)


def test_the_first_process_tells_of_its_full_disk_before_it_ends(tmp_path, mesh_of, monkeypatch, as_process):
    as_process(0)
    log = open_log(tmp_path, mesh_of)
    log.append(rows)
    with monkeypatch.context() as patch:
        patch.setattr(CaseLog, "append", no_room)
        log.append(rows)
    with pytest.raises(UserError, match="No space left"):
        log.append(rows)
    assert (tmp_path / "unfinished.csv").read_text().count("busi") == 1  # nothing comes behind a batch that is lacking


def test_the_last_batch_that_was_not_written_is_heard_of_before_the_tables(tmp_path, mesh_of, monkeypatch, as_process):
    as_process(0)
    log = open_log(tmp_path, mesh_of)
    monkeypatch.setattr(CaseLog, "append", no_room)
    log.append(rows)
    with pytest.raises(UserError, match="No space left"):
        log.on_cases(len)


def test_the_other_process_makes_no_lines_and_ends_with_the_first(tmp_path, mesh_of, as_process):
    as_process(1, says=[{"busi": 2}, None], has_trouble=True)
    log = open_log(tmp_path / "none", mesh_of)
    assert log.first_steps == {"busi": 2}
    assert not (tmp_path / "none").exists()
    log.append(lambda: 1 / 0)
    with pytest.raises(UserError, match=OTHER):
        log.append(lambda: 1 / 0)
    with pytest.raises(UserError, match=OTHER):
        raise_together(None, mesh_of(1))


def test_a_folder_that_is_in_use_is_refused_on_all_processes(tmp_path, as_process):
    as_process(1, says=[None, "it is in use"])
    with pytest.raises(UserError, match="it is in use"), first_process.holding("--output", tmp_path / "out"):
        pass
    as_process(1, says=[None, None])
    with first_process.holding("--output", tmp_path / "out"):
        assert not (tmp_path / "out").exists()  # it is the first process that holds it


@pytest.mark.parametrize("error", [UserError("wrong"), OSError(errno.EROFS, "Read-only file system")])
def test_an_action_of_the_first_process_fails_on_all_of_them(tmp_path, as_process, error):
    def fail() -> None:
        raise error

    for index, says in ((0, None), (1, [None, "wrong (Read-only file system)"])):
        as_process(index, says)
        with pytest.raises(UserError, match=r"wrong|Read-only file system"):
            on_first_process(f"--output={tmp_path}", fail)
    as_process(1, says=[5, None])
    assert on_first_process(f"--output={tmp_path}", fail) == 5
