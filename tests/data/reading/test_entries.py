"""Entries are shared by all who know the folder, whatever they do to it at the same time, and kept below a limit."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from medvlsm_jax.data.reading import entries as module
from medvlsm_jax.data.reading import room
from medvlsm_jax.data.reading.entries import Entries, memory_folder, remove_abandoned, stored_bytes


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {module.BOOK}


def test_writers_keep_to_the_limit_together(tmp_path):
    writers = [Entries(tmp_path, 1000) for _ in range(4)]  # of four processes: each has a lock of its own
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: writers[i % 4].write(str(i), np.zeros(30, np.uint8)), range(80)))
    assert len(names(tmp_path)) == 1000 // 30
    assert not any(writer.is_full for writer in writers)


def test_sixty_starts_beside_a_writer_succeed(tmp_path):
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            for i in range(20):
                (tmp_path / f"{i}{module.TEMPORARY}").write_bytes(bytes(10))
                os.replace(tmp_path / f"{i}{module.TEMPORARY}", tmp_path / str(i))
                (tmp_path / str(i)).unlink()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        started = [not Entries(tmp_path, 1000).is_full for _ in range(60)]
        is_over.set()
        writer.result()
    assert sum(started) == 60


def test_what_killed_writers_left_is_not_counted_and_is_removed_in_time(tmp_path):
    for name in ("a", f"young{module.TEMPORARY}", f"old{module.TEMPORARY}"):
        (tmp_path / name).write_bytes(bytes(60))
    before = time.time() - module.ABANDONED - 1
    os.utime(tmp_path / f"old{module.TEMPORARY}", (before, before))
    assert stored_bytes(tmp_path) == 60
    assert names(tmp_path) == {"a", f"young{module.TEMPORARY}"}


def test_a_book_that_makes_no_sense_is_made_anew(tmp_path):
    (tmp_path / module.BOOK).write_bytes(b"\0\0")
    entries = Entries(tmp_path, 100)
    entries.write("a", np.zeros(60, np.uint8))
    entries.write("b", np.zeros(60, np.uint8))
    assert names(tmp_path) == {"a"}


def test_a_full_disk_at_the_start_ends_the_storing_and_not_the_run(tmp_path, monkeypatch, caplog):
    def fail(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(bytes(10))
    monkeypatch.setattr(os, "pwrite", fail)
    entries = Entries(tmp_path, 1000)
    entries.write("b", np.zeros(60, np.uint8))
    assert names(tmp_path) == {"a"}
    assert "takes no more" in caplog.text


# --- Shared memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_a_folder_in_memory_goes_with_the_last_who_has_it(memory):
    with memory_folder("run") as one:
        with memory_folder("run") as other, memory_folder("another") as apart:
            assert one == other != apart
            remove_abandoned()
            assert other.is_dir()
        assert one.is_dir()
        assert not apart.exists()
    assert not one.exists()


def test_those_who_join_while_others_look_for_abandoned_folders_have_one(memory):
    is_over = threading.Event()

    def clean() -> None:
        while not is_over.is_set():
            remove_abandoned()

    def join(i: int) -> bool:
        with memory_folder(str(i % 2)) as folder:
            (folder / str(i)).touch()
            return (folder / str(i)).exists()

    with ThreadPoolExecutor(4) as pool:
        cleaner = pool.submit(clean)
        joined = [pool.submit(join, i) for i in range(200)]
        errors = [job.exception() for job in joined]
        is_over.set()
        cleaner.result()
    assert not any(errors)
    assert all(job.result() for job in joined)
    assert not list(memory.iterdir())


JOIN = """
import sys
from pathlib import Path
from medvlsm_jax.data.reading import entries, room
room.SHARED_MEMORY = Path(sys.argv[1])
with entries.memory_folder("run") as folder:
    print(folder, flush=True)
    input()
"""


def test_a_killed_process_leaves_the_folder_to_the_others_and_the_last_one_to_the_next_run(memory):
    command = [sys.executable, "-c", JOIN, str(memory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        with memory_folder("run"):
            process.kill()
            process.wait()
            remove_abandoned()
            assert folder.is_dir()
    assert not folder.exists()
    folder.mkdir()  # as a killed run left it
    remove_abandoned()
    assert not folder.exists()
