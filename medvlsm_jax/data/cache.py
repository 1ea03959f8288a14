"""Decoded and resized examples, one file each, that threads, worker processes and later runs share."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.errors import UserError

AUTO, MEMORY, NONE = "auto", "memory", "none"
AUTO_SHARE = 0.25  # of the free shared memory that `auto` takes at most
SHARED_MEMORY = Path("/dev/shm")  # of Linux; elsewhere the folder for temporary files stands in
PREFIX = ".medvlsm_jax-cache-"  # of folders in shared memory: removed when abandoned, so no name that a user may choose

Pixels = UInt8[np.ndarray, "s s 3"]
MaskPixels = UInt8[np.ndarray, "s s 1"]


def read_pair(record: Record, image: Pixels, mask: MaskPixels) -> None:
    """Fills the arrays with the record's image and mask, decoded and stretched to their size."""
    image[:], mask[:] = load_pair(record.image, record.mask, len(image))


class ExampleCache:
    """Images and masks at one size, filled as they are read.

    An entry is found by the paths, times and sizes of its two files: a file that changes is read anew.

    Attributes:
        folder: receives the entries.
        image_size: side of the square, in pixels.
    """

    def __init__(self, folder: Path, image_size: int):
        self.folder = folder
        self.image_size = image_size
        self.names: dict[tuple[str, str], str] = {}  # so that a file is asked for its time once in each process
        self.is_full = False

    def load(self, record: Record, image: Pixels, mask: MaskPixels) -> None:
        """Fills the arrays with the record's image and mask, from the cache if they are there; else stores them."""
        path = os.path.join(self.folder, self.name(record))
        if not read_arrays(path, image, mask):
            read_pair(record, image, mask)
            self.store(path, image, mask)

    def name(self, record: Record) -> str:
        """The entry's file name."""
        files = (str(record.image), str(record.mask))
        if files not in self.names:
            stats = [file.stat() for file in (record.image, record.mask)]
            parts = [self.image_size, *files, *((stat.st_mtime_ns, stat.st_size) for stat in stats)]
            self.names[files] = hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
        return self.names[files]

    def store(self, path: str, *arrays: np.ndarray) -> None:
        """Writes an entry; a full disk ends the storing, not the run."""
        if self.is_full:
            return
        try:
            write_arrays(path, *arrays)
        except OSError as error:
            self.is_full = True
            logging.warning("the image cache in %s takes no more (%s): other images are read anew", self.folder, error)


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

    The file is written in place, which is twice as fast as by way of a temporary one: who reads it half-written sees
    that it is too short, and who writes it at the same time writes the same bytes.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.writev(file, [array.data for array in arrays]) != sum(array.nbytes for array in arrays):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


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
    memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    if where in (AUTO, MEMORY):
        remove_abandoned(memory)
    if where == AUTO:
        where = MEMORY if needed <= AUTO_SHARE * shutil.disk_usage(memory).free else NONE
    if where == NONE:
        yield None
    elif where == MEMORY:
        check_room(memory, needed, "take a folder on a disk, or 'none'")
        # A reader that is still at work when a run breaks off may store its last image meanwhile.
        made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=memory, ignore_cleanup_errors=True)
        with made as folder, locked(Path(folder)):
            yield ExampleCache(Path(folder), image_size)
    else:
        folder = Path(where)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"config.data.cache={where} cannot be made: {error.strerror}") from error
        stored = sum(1 for _ in folder.iterdir()) * 4 * image_size**2
        check_room(folder, needed - stored, "take another folder, or 'none'")
        yield ExampleCache(folder, image_size)


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
