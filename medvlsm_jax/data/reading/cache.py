"""Folders of arrays, a file an entry, that threads, worker processes and later runs share; decoded examples in one."""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.decoding.decode import VERSION
from medvlsm_jax.data.files import File
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.errors import UserError

AUTO, MEMORY, NONE = "auto", "memory", "none"
AUTO_SHARE = 0.25  # of the free shared memory that `auto` takes at most
SHARED_MEMORY = Path("/dev/shm")  # of Linux; elsewhere the folder for temporary files stands in
NEW_PREFIX = ".medvlsm_jax-new-"  # of a folder that is not locked yet
PREFIX = ".medvlsm_jax-cache-"  # of folders in shared memory: removed when abandoned, so no name that a user may choose

Pixels = UInt8[np.ndarray, "s s 3"]
MaskPixels = UInt8[np.ndarray, "s s 1"]


def read_pair(record: Record, image: Pixels, mask: MaskPixels) -> None:
    """Fills the arrays with the record's image and mask, decoded and stretched to their size."""
    image[:], mask[:] = load_pair(record.image, record.mask, len(image))


class Entries:
    """Arrays by name in a folder, which takes no more than `limit` bytes, and none when the disk is full."""

    def __init__(self, folder: Path, limit: float = math.inf):
        self.folder = folder
        self.limit = limit
        self.stored = 0 if limit == math.inf else sum(entry.stat().st_size for entry in os.scandir(folder))
        self.is_full = False

    def read(self, name: str, *arrays: np.ndarray) -> bool:
        """Fills the arrays from an entry; false if there is none, or not a whole one."""
        return read_arrays(os.path.join(self.folder, name), *arrays)

    def write(self, name: str, *arrays: np.ndarray) -> None:
        """Makes an entry of the arrays if there is room for it; a full disk ends the storing, not the run."""
        size = sum(array.nbytes for array in arrays)
        if self.is_full or self.stored + size > self.limit:
            return
        try:
            write_arrays(os.path.join(self.folder, name), *arrays)
            self.stored += size
        except FileNotFoundError:  # the run is over, and a reader was still at work
            self.is_full = True
        except OSError as error:
            self.is_full = True
            logging.warning("the cache in %s takes no more (%s): what is not in it is made anew", self.folder, error)


def entry_name(*parts: object) -> str:
    """A file name that stands for all the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def stamp(file: File) -> tuple[str, int, int, int]:
    """Name, time of the last change in ns, size, and the rules of decoding: what is made of a file depends on these."""
    stat = file.stat()
    return str(file), stat.st_mtime_ns, stat.st_size, VERSION


class ExampleCache:
    """Images and masks at one size, filled as they are read.

    Attributes:
        folder: receives the entries.
        image_size: side of the square, in pixels.
    """

    def __init__(self, folder: Path, image_size: int):
        self.folder = folder
        self.image_size = image_size
        self.entries = Entries(folder)
        self.names: dict[tuple[str, str], str] = {}  # so that a file is asked for its time once in each process

    def load(self, record: Record, image: Pixels, mask: MaskPixels) -> None:
        """Fills the arrays with the record's image and mask, from the cache if they are there; else stores them."""
        name = self.name(record)
        if not self.entries.read(name, image, mask):
            read_pair(record, image, mask)
            self.entries.write(name, image, mask)

    def name(self, record: Record) -> str:
        """The entry's file name."""
        files = (str(record.image), str(record.mask))
        if files not in self.names:
            self.names[files] = entry_name(self.image_size, stamp(record.image), stamp(record.mask))
        return self.names[files]


def read_arrays(path: str, *arrays: np.ndarray) -> bool:
    """Fills the arrays from a file; false if it is missing, may not be read, or holds too little."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.readv(file, [array.data for array in arrays]) == sum(array.nbytes for array in arrays)
    finally:
        os.close(file)


def write_arrays(path: str, *arrays: np.ndarray) -> None:
    """Writes the arrays one after another; raises OSError when the disk is full.

    In shared memory the file is written in place, which is twice as fast: who reads it half-written sees that it is too
    short, and who writes it at the same time writes the same bytes. Of a disk that hosts share, or after a crash, that
    is not so: there it goes by way of a temporary file.
    """
    is_memory = path.startswith(str(memory()))
    target = path if is_memory else f"{path}.{secrets.token_hex(8)}.tmp"
    file = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.writev(file, [array.data for array in arrays]) != sum(array.nbytes for array in arrays):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.unlink(target)
        raise
    finally:
        os.close(file)
    if not is_memory:
        os.replace(target, path)


@contextlib.contextmanager
def open_cache(where: str, image_size: int, num_records: int) -> Iterator[ExampleCache | None]:
    """The cache of a run, or None without one.

    Args:
        where: `none`; `memory`, shared by the processes of this machine and gone with the run; `auto`, which is
            memory if that takes at most a quarter of what is free there, else none; or a folder, kept for later runs.
        image_size: side of the square, in pixels.
        num_records: how many examples it has to hold.

    Raises:
        UserError: the memory or the disk has not enough room, or the folder cannot be made.
    """
    needed = 4 * image_size**2 * num_records
    if where in (AUTO, MEMORY):
        remove_abandoned(memory())
    if where == AUTO:
        where = MEMORY if needed <= AUTO_SHARE * shutil.disk_usage(memory()).free else NONE
    if where == NONE:
        yield None
    elif where == MEMORY:
        check_room(memory(), needed, "take a folder on a disk, or 'none'")
        with memory_folder() as folder:
            yield ExampleCache(folder, image_size)
    else:
        folder = make_folder(where, "config.data.cache")
        stored = sum(1 for _ in folder.iterdir()) * 4 * image_size**2
        check_room(folder, needed - stored, "take another folder, or 'none'")
        yield ExampleCache(folder, image_size)


def memory() -> Path:
    """Where shared memory appears as files."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in shared memory, gone with the run."""
    made = Path(tempfile.mkdtemp(prefix=NEW_PREFIX, dir=memory()))
    with locked(made):
        folder = made.rename(made.with_name(made.name.replace(NEW_PREFIX, PREFIX)))  # abandoned only when unlocked
        try:
            yield folder
        finally:
            # A reader that is still at work when a run breaks off may store its last image meanwhile.
            shutil.rmtree(folder, ignore_errors=True)


def make_folder(where: str, field: str) -> Path:
    """A folder that stays; raises UserError, naming the field that asked for it, when it cannot be made."""
    try:
        Path(where).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{field}={where} cannot be made: {error.strerror}") from error
    return Path(where)


def check_room(folder: Path, needed: int, advice: str) -> None:
    """Raises a UserError if fewer bytes than `needed` are free where the folder lies."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"config.data.cache: the decoded images take {needed / 2**30:.1f} GiB, but {folder} has "
            f"{free / 2**30:.1f} GiB free: {advice}"
        )


def remove_abandoned(memory: Path) -> None:
    """Frees the shared memory of runs that were killed."""
    for folder in memory.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), locked(folder):  # else it is in use, another user's, or gone
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which the kernel takes back however a process ends; raises OSError if another has it.

    A process id would not do: a container that starts again gives the same one, and another container has its own.
    """
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)
