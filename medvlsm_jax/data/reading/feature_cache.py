"""What frozen encoders make of images and sentences, kept: each is run through them once."""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.reading import cache as caching
from medvlsm_jax.data.reading.cache import Entries, entry_name, make_folder, memory_folder, stamp
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
    stamps: dict[str, tuple[str, int, int, int]] = dataclasses.field(default_factory=dict)  # of the files seen so far

    def image_name(self, record: Record) -> str:
        """The entry of a record's image."""
        file = str(record.image)
        if file not in self.stamps:
            self.stamps[file] = stamp(record.image)
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
def open_features(where: str, limit_gib: float, needed: int, sharers: int = 1) -> Iterator[Entries | None]:
    """Where encoder outputs are kept, or None.

    Args:
        where: `none`; `memory` or `auto`, gone with the run; or a folder, kept for later runs and, if several hosts see
            it, shared by them.
        limit_gib: how much of it is taken at most; 0: half of what is free.
        needed: bytes of all outputs. When less may be taken, the rest is made anew in every epoch.
        sharers: processes that share the room.

    Raises:
        UserError: the folder cannot be made, or the limit is negative.
    """
    if limit_gib < 0:
        raise UserError(f"config.features.limit_gib={limit_gib}: give 0 or a larger number")
    if where == caching.NONE:
        yield None
        return
    with contextlib.ExitStack() as stack:
        if where in (caching.AUTO, caching.MEMORY):
            caching.remove_abandoned(caching.memory())
            folder = stack.enter_context(memory_folder())
        else:
            folder = make_folder(where, "config.features.cache")
        held = sum(path.stat().st_size for path in folder.iterdir())
        limit = int(limit_gib * GIB) or held + int(SHARE * shutil.disk_usage(folder).free)
        if needed > limit:
            logging.warning(
                "config.features: what the frozen encoders make takes %.1f GiB, of which %s is given %.1f; the rest is "
                "made anew in every epoch. --config.features.cache=FOLDER keeps it on a disk",
                needed / GIB,
                folder,
                limit / GIB,
            )
        yield Entries(folder, held + max(0, limit - held) // sharers)


def size_of(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize
