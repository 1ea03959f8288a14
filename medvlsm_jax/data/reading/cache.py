"""Decoded and resized images and masks, kept: each file is decoded once."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import load_mask, load_pair
from medvlsm_jax.data.reading.entries import (
    AUTO,
    MEMORY,
    NONE,
    Entries,
    Stamp,
    Together,
    entry_name,
    image_stamp,
    make_folder,
    memory_folder,
    remove_abandoned,
    stamp,
    stored_bytes,
)
from medvlsm_jax.data.reading.room import Room, find_room
from medvlsm_jax.errors import UserError

AUTO_SHARE = 0.25  # of the room in shared memory that `auto` takes at most
FIELD = "config.data.cache"

Pixels = UInt8[np.ndarray, "s s 3"]
MaskPixels = UInt8[np.ndarray, "s s 1"]


def read_pair(record: Record, image: Pixels, mask: MaskPixels) -> None:
    """Fills the arrays with the record's image and mask, decoded and stretched to their size."""
    image[:], mask[:] = load_pair(record.image, record.mask, len(image))


def read_mask_alone(record: Record, mask: MaskPixels) -> None:
    """Fills the array with the record's mask, as `read_pair` does; its image was looked at when it was encoded."""
    mask[:] = load_mask(record.mask, len(mask))


def read_record(record: Record, image: Pixels | None, mask: MaskPixels) -> None:
    """Fills the arrays that are asked for."""
    if image is None:
        read_mask_alone(record, mask)
    else:
        read_pair(record, image, mask)


class ExampleCache:
    """Images and masks at one size, filled as they are read.

    Attributes:
        entries: receive them.
        image_size: side of the square, in pixels.
        memory_taken: bytes of shared memory that it comes to take.
    """

    def __init__(self, folder: Path, image_size: int, memory_taken: int = 0):
        self.entries = Entries(folder)
        self.image_size = image_size
        self.memory_taken = memory_taken
        self.names: dict[tuple[str, str], str] = {}  # so that a file is asked for its time once in each process

    def load(self, record: Record, image: Pixels | None, mask: MaskPixels) -> None:
        """Fills the arrays with the record's image, if it is asked for, and mask: from the cache, else storing them."""
        wanted = [(self.mask_name(record), mask)]
        if image is not None:
            wanted.append((self.image_name(record), image))
        missing = [item for item in wanted if not self.entries.read(*item)]
        if missing:
            read_record(record, image, mask)
        for item in missing:
            self.entries.write(*item)

    def image_name(self, record: Record) -> str:
        """The entry of a record's image, which others may have too."""
        return self.name(str(record.image), "image", lambda: image_stamp(record))

    def mask_name(self, record: Record) -> str:
        """The entry of a record's mask."""
        return self.name(str(record.mask), "mask", lambda: stamp(record.mask))

    def name(self, file: str, kind: str, find_stamp: Callable[[], Stamp]) -> str:
        """The entry of what is made of a file."""
        if (kind, file) not in self.names:
            self.names[kind, file] = entry_name(kind, self.image_size, find_stamp())
        return self.names[kind, file]


@contextlib.contextmanager
def open_cache(
    where: str, image_size: int, num_records: int, together: Together | None = None
) -> Iterator[ExampleCache | None]:
    """The cache of a run, or None without one.

    Args:
        where: `none`; `memory`, shared by the processes of this machine and gone with the run; `auto`, which is
            memory if that takes at most a quarter of the room there, else none; or a folder, kept for later runs.
        image_size: side of the square, in pixels.
        num_records: how many examples it has to hold on this machine.
        together: what the processes of a run do together.

    Raises:
        UserError: the memory or the disk has not enough room, or the folder cannot be made.
    """
    needed, together = 4 * image_size**2 * num_records, together or Together()
    if where == NONE:
        yield None
        return
    with contextlib.ExitStack() as stack:
        if where in (AUTO, MEMORY):
            remove_abandoned()
            folder = stack.enter_context(memory_folder(together.name))
        else:
            folder = make_folder(where, FIELD)
        held, room = stored_bytes(folder), find_room(folder)
        if where == AUTO and not together.agree(needed - held <= AUTO_SHARE * room.free):
            stack.close()
            together.tell(
                f"decoded images are not kept: they take {gib(needed)} GiB, over a quarter of what {room.of} leaves "
                f"({gib(room.free)}); --{FIELD}=FOLDER keeps them on a disk"
            )
            yield None
            return
        advice = "take a folder on a disk, or 'none'" if where in (AUTO, MEMORY) else "take another folder, or 'none'"
        check_room(needed - held, room, advice)
        yield ExampleCache(folder, image_size, needed if where in (AUTO, MEMORY) else 0)


def check_room(needed: int, room: Room, advice: str) -> None:
    """Raises a UserError if the decoded images take more bytes than there is room for."""
    if needed > room.free:
        raise UserError(
            f"{FIELD}: the decoded images take {gib(needed)} GiB, but {room.of} has {gib(room.free)} GiB free: {advice}"
        )


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f}"
