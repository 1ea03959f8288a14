"""Folders of arrays, a file an entry, that threads, processes of a run and later runs share."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import StoredFile
from medvlsm_jax.data.decoding.decode import VERSION
from medvlsm_jax.data.files import File
from medvlsm_jax.data.reading.room import memory
from medvlsm_jax.errors import UserError

Stamp = tuple[str, int, int, int]
AUTO, MEMORY, NONE = "auto", "memory", "none"  # what a cache may be besides a folder
PREFIX = ".medvlsm_jax-cache-"  # of folders in shared memory: removed when abandoned, so no name that a user may choose
TEMPORARY = ".tmp"  # the ending of an entry that is being written
ABANDONED = 3600.0  # seconds after which such a one is that of a killed writer
BOOK = ".bytes"  # holds how many bytes the entries take, when there is a limit


@dataclasses.dataclass(frozen=True)
class Together:
    """What the processes of a run do together about a cache; by default there is one.

    Attributes:
        name: of the folder in shared memory that those of a machine have in common.
        agree: whether something is so on all of them.
        tell: says a line, once for all.
    """

    name: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    agree: Callable[[bool], bool] = bool
    tell: Callable[[str], None] = print


class Entries:
    """Arrays by name in a folder, which takes no more than `limit` bytes, and none when the disk is full.

    All who write to the folder keep to the limit together: they book what they write in a file of it.
    """

    def __init__(self, folder: Path, limit: float = math.inf):
        self.folder = folder
        self.limit = limit
        self.is_full = False
        if limit < math.inf:
            with self.reporting_failure():
                book(folder, lambda _: stored_bytes(folder))

    def read(self, name: str, *arrays: np.ndarray) -> bool:
        """Fills the arrays from an entry; false if there is none, or not a whole one."""
        return read_arrays(os.path.join(self.folder, name), *arrays)

    def write(self, name: str, *arrays: np.ndarray) -> None:
        """Makes an entry of the arrays if there is room for it; a full disk ends the storing, not the run."""
        if self.is_full:
            return
        with self.reporting_failure():
            if self.has_room(sum(array.nbytes for array in arrays)):
                write_arrays(os.path.join(self.folder, name), *arrays)

    def has_room(self, size: int) -> bool:
        """Books the bytes of an entry; false if the limit leaves no room for it."""
        if self.limit == math.inf:
            return True
        return book(self.folder, lambda held: held + size if held + size <= self.limit else held) >= size

    @contextlib.contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """Ends the storing when something cannot be written."""
        try:
            yield
        except FileNotFoundError:  # the run is over, and a reader was still at work
            self.is_full = True
        except OSError as error:
            self.is_full = True
            logging.warning("the cache in %s takes no more (%s): what is not in it is made anew", self.folder, error)


def book(folder: Path, change: Callable[[int], int]) -> int:
    """Changes the number of bytes that a folder's entries take; returns by how much.

    Processes, on hosts that share the folder too, do so one after another; where files cannot be locked, at once.
    """
    file = os.open(folder / BOOK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        text = os.pread(file, 20, 0)
        before = int(text) if text.isdigit() else 0
        after = change(before)
        if after != before:
            os.pwrite(file, b"%020d" % after, 0)
        return after - before
    finally:
        os.close(file)


def stored_bytes(folder: Path) -> int:
    """What the entries of a folder take; removes what killed writers had begun. Others may be at work in it."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # it was renamed or removed meanwhile
            stat = entry.stat()
            if not entry.name.endswith((TEMPORARY, BOOK)):
                total += stat.st_size
            elif entry.name != BOOK and time.time() - stat.st_mtime > ABANDONED:
                os.unlink(entry.path)
    return total


def entry_name(*parts: object) -> str:
    """A file name that stands for all the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def stamp(file: File) -> Stamp:
    """Name, time of the last change in ns, size, and the rules of decoding: what is made of a file depends on these."""
    stat = file.stat()
    return str(file), stat.st_mtime_ns, stat.st_size, VERSION


def image_stamp(record: Record) -> Stamp:
    """Those of a record's image; of a store's copies of an image, one for each of its records, they are the same."""
    image, (name, time_ns, size, rules) = record.image, stamp(record.image)
    if isinstance(image, StoredFile):
        name = f"{image.folder}/{image.split}:{image.path}"
    return name, time_ns, size, rules


def read_arrays(path: str, *arrays: np.ndarray) -> bool:
    """Fills the arrays from a file; false if it is missing, may not be read, or holds too little."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.readv(file, [array.data for array in arrays]) == sum(array.nbytes for array in arrays)
    except OSError:
        return False
    finally:
        os.close(file)


def write_arrays(path: str, *arrays: np.ndarray) -> None:
    """Writes the arrays one after another; raises OSError when the disk is full.

    In shared memory the file is written in place, which is twice as fast: who reads it half-written sees that it is too
    short, and who writes it at the same time writes the same bytes. Of a disk that hosts share, or after a crash, that
    is not so: there it goes by way of a temporary file.
    """
    is_memory = path.startswith(str(memory()))
    target = path if is_memory else f"{path}.{secrets.token_hex(8)}{TEMPORARY}"
    file = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.writev(file, [array.data for array in arrays]) != sum(array.nbytes for array in arrays):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        raise
    finally:
        os.close(file)
    if not is_memory:
        os.replace(target, path)


# --- Folders ----------------------------------------------------------------------------------------------------------


def make_folder(where: str, field: str) -> Path:
    """A folder that stays; raises UserError, naming the field that asked for it, when it cannot be made."""
    try:
        Path(where).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{field}={where} cannot be made: {error.strerror}") from error
    return Path(where)


@contextlib.contextmanager
def memory_folder(name: str) -> Iterator[Path]:
    """A folder in shared memory that all have in common who give its name, gone with the last of them.

    Each holds its lock, which the kernel takes back however a process ends. A process id would not do: a container that
    starts again gives the same one, and another container has its own.
    """
    folder = memory() / f"{PREFIX}{name}"
    file = join_folder(folder)
    try:
        yield folder
    finally:
        remove_unused(folder, file)
        os.close(file)


def join_folder(folder: Path) -> int:
    """Makes a folder, or joins those who have; returns the open file that holds its lock."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        with contextlib.suppress(FileNotFoundError):  # who found it without a lock has removed it
            file = os.open(folder, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH)
            if is_still(folder, file):
                return file
            os.close(file)


def is_still(folder: Path, file: int) -> bool:
    """Whether an open file is what lies under a name."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def remove_unused(folder: Path, file: int) -> None:
    """Removes a folder, open as this file, if nobody else has its lock; who waits for it then makes another one."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_still(folder, file):
            # A reader that is still at work when a run breaks off may store its last image meanwhile.
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Frees the shared memory of runs that were killed."""
    for folder in memory().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is another user's, or gone
            file = os.open(folder, os.O_RDONLY)
            try:
                remove_unused(folder, file)
            finally:
                os.close(file)
