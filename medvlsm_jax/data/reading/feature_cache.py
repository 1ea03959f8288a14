"""What frozen encoders make of images and sentences, kept: each is run through them once."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medvlsm_jax.data.annotations import Record
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
    stored_bytes,
)
from medvlsm_jax.data.reading.room import Room, find_room
from medvlsm_jax.errors import UserError

SHARE = 0.5  # of what is free, as long as `config.features.limit_gib` says nothing
GIB = 2**30
KINDS = ("image", "text")


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Encoder outputs as bytes, found by the encoder and the image's file, or the encoder and the tokens.

    Attributes:
        entries: where they are.
        key: of the encoders: their weights, their settings, the size of their images.
        sizes: bytes of each of the arrays that are made of one `image` and, unless no sentence is read, one `text`.
    """

    entries: Entries
    key: str
    sizes: dict[str, tuple[int, ...]]
    stamps: dict[str, Stamp] = dataclasses.field(default_factory=dict)  # of the files seen so far

    def image_name(self, record: Record) -> str:
        """The entry of a record's image."""
        file = str(record.image)
        if file not in self.stamps:
            self.stamps[file] = image_stamp(record)
        return entry_name(self.key, self.stamps[file])

    def text_name(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> str:
        """The entry of a sentence, by its tokens."""
        return entry_name(self.key, input_ids.tobytes(), attention_mask.tobytes())

    def look_up(
        self, batch: dict[str, Any], records: Sequence[Record], new_array: Callable[[tuple[int, ...]], np.ndarray]
    ) -> None:
        """Adds to a batch of these records, for each kind, `KIND_features`: the bytes of each array by row.

        `KIND_entries` are their names, and `KIND_found` says which rows could be filled.
        """
        for kind, sizes in self.sizes.items():
            if kind == "image":
                names = [self.image_name(record) for record in records]
            else:
                names = [self.text_name(*row) for row in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
            arrays = tuple(new_array((len(names), size)) for size in sizes)
            found = [self.entries.read(name, *(array[row] for array in arrays)) for row, name in enumerate(names)]
            batch |= {f"{kind}_features": arrays, f"{kind}_entries": np.array(names), f"{kind}_found": np.array(found)}


@contextlib.contextmanager
def open_features(
    where: str, limit_gib: float, needed: int, taken: int = 0, together: Together | None = None
) -> Iterator[Entries | None]:
    """Where encoder outputs are kept, or None: then the encoders run in every step, as if nothing could be kept.

    Args:
        where: `none`; `memory`, as much as fits, gone with the run; `auto`, which is memory if all fits there on all
            machines of the run, else none; or a folder, kept for later runs and shared by all hosts that see it.
        limit_gib: how much of it is taken at most; 0: half of what is free.
        needed: bytes of all outputs on this machine.
        taken: bytes of shared memory that are to be left to others.
        together: what the processes of a run do together.

    Raises:
        UserError: the folder cannot be made, or the limit is negative.
    """
    if limit_gib < 0:
        raise UserError(f"config.features.limit_gib={limit_gib}: give 0 or a larger number")
    together = together or Together()
    if where == NONE:
        yield None
        return
    with contextlib.ExitStack() as stack:
        if where in (AUTO, MEMORY):
            remove_abandoned()
            folder = stack.enter_context(memory_folder(f"{together.name}-features"))
        else:
            folder, taken = make_folder(where, "config.features.cache"), 0
        held, room = stored_bytes(folder), find_room(folder)
        free = max(0, room.free - taken)
        limit = held + int(SHARE * free)
        if limit_gib:
            limit = min(int(limit_gib * GIB), held + free)
        fits = together.agree(needed <= limit)
        together.tell(describe(where, needed, limit, room, fits=fits))
        if where == AUTO and not fits:
            stack.close()
            yield None
        else:
            yield Entries(folder, limit)


def describe(where: str, needed: int, limit: int, room: Room, *, fits: bool) -> str:
    """What becomes of the outputs of frozen encoders, and why, in a line."""
    place = "shared memory" if where in (AUTO, MEMORY) else where
    outputs = f"what the frozen encoders make ({needed / GIB:.1f} GiB)"
    if fits:
        return f"{outputs} is kept in {place}"
    local = f"{room.of} leaves {limit / GIB:.1f} for it"
    reason = "another machine has no room for it" if needed <= limit else local
    if where == AUTO:
        advice = "--config.features.cache=FOLDER keeps it on a disk"
        return f"{outputs} is not kept: they run in every step, for {reason}; {advice}"
    return f"of {outputs} a part is kept in {place}, for {reason}; the rest is made anew in every epoch"


def size_of(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize
