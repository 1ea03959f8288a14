"""The cache of decoded images: the same pixels, read once, for as long as the files are the same."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading import cache as caching
from medvlsm_jax.data.reading import entries, room
from medvlsm_jax.data.reading.cache import ExampleCache, open_cache, read_pair
from medvlsm_jax.errors import UserError

SIZE = 16


@pytest.fixture
def record(sample, tmp_path) -> Record:
    """A record whose files may be changed."""
    found = load_records(sample, "sample", "train")[0]
    image, mask = (Path(shutil.copy(str(file), tmp_path)) for file in (found.image, found.mask))
    return dataclasses.replace(found, image=image, mask=mask)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The images that were decoded."""
    seen: list[str] = []

    def read(record, image, mask):
        seen.append(record.image.name)
        read_pair(record, image, mask)

    monkeypatch.setattr(caching, "read_pair", read)
    return seen


def load(cache: ExampleCache, record: Record) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.empty((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE, 1), np.uint8)
    cache.load(record, image, mask)
    return image, mask


def pixels(record: Record) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.empty((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE, 1), np.uint8)
    read_pair(record, image, mask)
    return image, mask


def assert_same(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_an_example_is_decoded_once(record, reads, tmp_path, where):
    with open_cache(str(tmp_path / "cache") if where == "folder" else where, SIZE, 1) as cache:
        assert cache is not None
        assert_same(load(cache, record), pixels(record))
        assert_same(load(cache, record), pixels(record))
        assert_same(load(ExampleCache(cache.entries.folder, SIZE), record), pixels(record))  # another process
    assert reads == [record.image.name]


def test_memory_is_given_back_and_a_folder_is_kept(record, tmp_path):
    with open_cache("memory", SIZE, 1) as memory, open_cache(str(tmp_path / "cache"), SIZE, 1) as folder:
        for cache in (memory, folder):
            load(cache, record)
            assert len(list(cache.entries.folder.iterdir())) == 2
    assert not memory.entries.folder.exists()
    assert len(list(folder.entries.folder.iterdir())) == 2


@pytest.mark.parametrize("changed", ["image", "mask"])
def test_a_changed_file_is_read_anew(record, reads, tmp_path, changed):
    folder = tmp_path / "cache"
    with open_cache(str(folder), SIZE, 1) as cache:
        load(cache, record)
    file = getattr(record, changed)
    with Image.open(file) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(file)
    os.utime(file, ns=(1, 1))
    with open_cache(str(folder), SIZE, 1) as cache:
        assert_same(load(cache, record), pixels(record))
    assert len(reads) == 2


def test_another_size_is_another_entry(record, tmp_path):
    small, large = (ExampleCache(tmp_path, size) for size in (SIZE, 2 * SIZE))
    assert small.image_name(record) != large.image_name(record)
    assert small.mask_name(record) != large.mask_name(record)


def test_a_cut_entry_is_read_anew(record, reads, tmp_path):
    cache = ExampleCache(tmp_path, SIZE)
    load(cache, record)
    entry = tmp_path / cache.image_name(record)
    entry.write_bytes(entry.read_bytes()[:-1])
    assert_same(load(cache, record), pixels(record))
    assert_same(load(cache, record), pixels(record))
    assert len(reads) == 2


def test_a_full_disk_ends_the_storing_and_not_the_run(record, reads, tmp_path, monkeypatch):
    cache = ExampleCache(tmp_path / "cache", SIZE)
    cache.entries.folder.mkdir()

    room = [100]  # bytes that the disk has left
    monkeypatch.setattr(os, "writev", lambda file, _: os.write(file, bytes(room.pop() if room else 0)))
    for _ in range(3):
        assert_same(load(cache, record), pixels(record))
    assert cache.entries.is_full
    assert len(reads) == 3  # what was cut is not taken for an entry


def test_what_does_not_fit_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * SIZE**2 * 100))
    for where in ("memory", str(tmp_path / "cache")):
        with contextlib.ExitStack() as stack:
            assert stack.enter_context(open_cache(where, SIZE, 100))
        with (
            pytest.raises(UserError, match=r"config\.data\.cache: the decoded images take"),
            open_cache(where, SIZE, 101),
        ):
            pass
    with open_cache("auto", SIZE, 25) as enough, open_cache("auto", SIZE, 26) as too_little:
        assert (enough is not None, too_little is not None) == (True, False)


def test_none_is_no_cache():
    with open_cache("none", SIZE, 1) as cache:
        assert cache is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"config\.data\.cache=.*file.* cannot be made"),
        open_cache(str(tmp_path / "file"), SIZE, 1),
    ):
        pass


HOLD = """
from pathlib import Path
from medvlsm_jax.data.reading import cache, room
room.SHARED_MEMORY = Path({!r})
with cache.open_cache("memory", 16, 1) as found:
    print(found.entries.folder, flush=True)
    input()
"""


@pytest.mark.parametrize("where", ["memory", "auto"])
def test_memory_of_killed_runs_is_freed_and_that_of_others_is_kept(tmp_path, monkeypatch, where):
    command = [sys.executable, "-c", HOLD.format(str(tmp_path))]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running,
    ):
        assert killed.stdout is not None
        assert running.stdout is not None
        gone, kept = (Path(run.stdout.readline().strip()) for run in (killed, running))
        killed.kill()
        killed.wait()
        monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path)
        free = 4 * SIZE**2 * 100
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0 if gone.exists() else free))
        with open_cache(where, SIZE, 1) as cache:  # which has room once the memory is freed
            assert cache is not None
            assert (gone.exists(), kept.exists()) == (False, True)
        running.kill()


def test_an_entry_that_may_not_be_read_is_read_anew(record, reads, tmp_path):
    cache = ExampleCache(tmp_path, SIZE)
    (tmp_path / cache.image_name(record)).symlink_to(cache.image_name(record))  # a loop, which no one may open
    assert_same(load(cache, record), pixels(record))
    assert len(reads) == 1


def test_what_was_decoded_by_other_rules_is_decoded_anew(record, tmp_path, reads, monkeypatch):
    load(ExampleCache(tmp_path, SIZE), record)
    load(ExampleCache(tmp_path, SIZE), record)
    assert len(reads) == 1
    monkeypatch.setattr(entries, "VERSION", 0)
    load(ExampleCache(tmp_path, SIZE), record)
    assert len(reads) == 2
