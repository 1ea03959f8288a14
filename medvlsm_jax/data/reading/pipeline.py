"""Records to batches with grain: which example is read at step s is a pure function of (seed, s).

Training goes through one shuffled pass over the records after another, without a gap: batches are always full and may
straddle two passes. Every process reads its own rows of each batch, so the same batch is put together whatever the
number of hosts; which records these are is `order.py`'s to say.
"""

import dataclasses
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.multiprocessing import SharedMemoryArray

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import image_path
from medvlsm_jax.data.language.conditions import Variant
from medvlsm_jax.data.language.prompts import choose_prompt
from medvlsm_jax.data.language.tokenizers import Tokenizer
from medvlsm_jax.data.reading.cache import ExampleCache, Pixels, read_record
from medvlsm_jax.data.reading.feature_cache import SHARE, FeatureCache
from medvlsm_jax.data.reading.order import Order, training_order
from medvlsm_jax.data.reading.room import SHARED_MEMORY, find_room
from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import follow_program

HostBatch = dict[str, Any]  # name -> numpy array, of the rows that this process reads
WAITING_BATCHES = 2  # of each worker: one that is handed over, and one that is used
Draw = tuple[int, int, bool]  # index of a record, number of the pass, false for what only fills up the last batch


@dataclasses.dataclass(frozen=True)
class Loader:
    """Decodes, resizes and tokenises records, a batch at a time.

    Attributes:
        records: what indices refer to.
        tokenizer: sentences to ids; None for a network that reads none.
        prompt: the prompt type.
        image_size: side of the square, in pixels.
        seed: of the draws among phrasings; None takes the first (evaluation).
        classes: of a network with several outputs; each record is of one of them (`check_classes`).
        cache: of decoded and resized images and masks.
        features: of what frozen encoders make of images and sentences; its rows are added where it has them.
        variants: sentences by the name of a condition; they are read in place of those of the prompt type.
    """

    records: Sequence[Record]
    tokenizer: Tokenizer | None
    prompt: str
    image_size: int
    seed: int | None = None
    classes: tuple[str, ...] = ()
    cache: ExampleCache | None = None
    features: FeatureCache | None = None
    variants: Mapping[str, Sequence[Variant]] | None = None

    def sentence(self, index: int, epoch: int = 0) -> str:
        """The sentence of a record in one pass over the data."""
        rng = None if self.seed is None else np.random.default_rng((self.seed, epoch, index))
        return choose_prompt(self.records[index], self.prompt, rng)

    def __call__(self, rows: Sequence[Draw]) -> HostBatch:
        """The batch of these rows; images (B, S, S, 3) and masks (B, S, S, 1), 0 or 1, are uint8.

        An image whose features are found is not read: its row stays 0.
        """
        indices, size = [index for index, _, _ in rows], self.image_size
        batch: HostBatch = {
            "image": new_array((len(rows), size, size, 3)),
            "mask": new_array((len(rows), size, size, 1)),
            "index": np.array(indices, np.int32),
            "valid": np.array([valid for _, _, valid in rows]),
        }
        if self.variants is None:
            batch |= self.tokens([self.sentence(index, epoch) for index, epoch, _ in rows])
        else:
            batch["variants"] = {
                name: [self.variant_batch(variant, indices) for variant in variants]
                for name, variants in self.variants.items()
            }
        if self.classes:
            batch["class_index"] = np.array([self.classes.index(self.records[i].target) for i in indices], np.int32)
        if self.features is not None:
            self.features.look_up(batch, [self.records[index] for index in indices], new_array)
        load = read_record if self.cache is None else self.cache.load
        found = batch.get("image_found", np.zeros(len(rows), np.bool_))
        for index, image, mask, is_found in zip(indices, batch["image"], batch["mask"], found, strict=True):
            load(self.records[index], None if is_found else image, mask)
        return batch

    def image(self, index: int) -> Pixels:
        """The image of a record."""
        without_features = dataclasses.replace(self, tokenizer=None, features=None, variants=None)
        return without_features([(index, 0, True)])["image"][0]

    def tokens(self, sentences: Sequence[str]) -> HostBatch:
        """Ids and mask (B, T) of sentences; nothing for a network that reads none."""
        if self.tokenizer is None:
            return {}
        parts = zip(*(self.tokenizer(sentence) for sentence in sentences), strict=True)
        return dict(zip(("input_ids", "attention_mask"), map(np.stack, parts), strict=True))

    def variant_batch(self, variant: Variant, indices: Sequence[int]) -> HostBatch:
        """The tokens and weights of these records in a variant."""
        weights = np.array([variant.weights[index] for index in indices], np.float32)
        return {"weight": weights, **self.tokens([variant.sentences[index] for index in indices])}


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Full batches in one pass; what is left over opens the next one, so no image is skipped."""
    return max(1, num_records // batch_size)


def train_batches(
    loader: Loader,
    order: Order,
    *,
    first_step: int = 0,
    last_step: int | None = None,
    process: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    num_threads: int = 8,
) -> grain.DatasetIterator[HostBatch]:
    """Shuffled batches of this process's share, from `first_step` up to `last_step` or without an end.

    Args:
        loader: reads one record.
        order: of its records; the number of processes divides its batch size.
        first_step: the step whose batch comes first.
        last_step: the number of steps of the whole run, so that nothing is read in vain.
        process: this process's number and how many there are; their rows one after another make the batch.
        num_workers: worker processes; 0 reads in threads of this process.
        num_threads: threads in each of them.
    """
    end = sys.maxsize // order.batch_size if last_step is None else max(first_step, last_step)
    steps = grain.MapDataset.range(first_step, end)
    own = own_rows(order.batch_size, process)
    batches = steps.map(lambda step: loader([(*order.draw(step, row), True) for row in own]))
    check_shared_memory(loader, len(own), num_workers, num_threads)
    return read(batches, num_workers, num_threads)


def order_of(
    records: Sequence[Record], batch_size: int, seed: int, weights: Mapping[str, float] | None = None
) -> Order:
    """The `training_order` of records."""
    datasets, images = [record.dataset for record in records], [image_path(record) for record in records]
    return training_order(datasets, images, batch_size, seed, weights)


def own_rows(batch_size: int, process: tuple[int, int]) -> range:
    """Which rows of each batch a process reads: one block, for its devices hold them so."""
    rank, processes = process
    share = batch_size // processes
    return range(rank * share, (rank + 1) * share)


def eval_batches(
    loader: Loader,
    batch_size: int,
    *,
    first_step: int = 0,
    process: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    num_threads: int = 8,
) -> grain.DatasetIterator[HostBatch]:
    """Every record once, in order, from a step on; copies of the last one, marked invalid, fill up the last batch.

    All processes yield the same number of batches. Arguments are those of `train_batches`.
    """
    count, own = len(loader.records), own_rows(batch_size, process)

    def rows(step: int) -> list[Draw]:
        positions = [step * batch_size + row for row in own]
        return [(min(position, count - 1), 0, position < count) for position in positions]

    check_shared_memory(loader, len(own), num_workers, num_threads)
    steps = grain.MapDataset.range(first_step, -(-count // batch_size))
    return read(steps.map(lambda step: loader(rows(step))), num_workers, num_threads)


def read(batches: grain.MapDataset[HostBatch], num_workers: int, num_threads: int) -> grain.DatasetIterator[HostBatch]:
    """Reads a few batches ahead, each in a thread of its own; worker processes take every so many-th batch.

    Close the iterator when done: grain's threads and processes can hang the program's end otherwise (grain#1196).
    """
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
    if num_workers:
        if QUIET_TRACKER not in sys.warnoptions:
            sys.warnoptions.append(QUIET_TRACKER)
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), tie_to_program)
    return iter(dataset)


def check_shared_memory(loader: Loader, rows: int, num_workers: int, num_threads: int) -> None:
    """Raises UserError when batches of so many rows do not fit into shared memory, where workers put them.

    They would be killed in the middle of a run. What caches there will hold is left to them.
    """
    if not num_workers or not SHARED_MEMORY.is_dir():
        return
    pixels = 4 * loader.image_size**2  # of an image and a mask
    features = sum(sum(sizes) for sizes in loader.features.sizes.values()) if loader.features else 0
    needed = num_workers * (num_threads + WAITING_BATCHES) * rows * (pixels + features)
    room = find_room(SHARED_MEMORY)
    free = float(room.free)
    if loader.features is not None and loader.features.entries.folder.is_relative_to(SHARED_MEMORY):
        free *= 1 - SHARE
    if loader.cache is not None:
        free -= loader.cache.memory_taken
    if needed > free:
        raise UserError(
            f"config.data.num_workers={num_workers}: the batches that they read ahead take {needed / 2**20:.0f} MiB of "
            f"shared memory, but {room.of} has {max(0, free) / 2**20:.0f} MiB to spare: make it larger (docker run "
            "--shm-size=2g), or give fewer workers, or 0"
        )


# Of the processes that this one starts: what workers have read ahead when a run ends is freed by Python's tracker of
# shared memory, which warns of it.
QUIET_TRACKER = "ignore:resource_tracker:UserWarning"
IN_WORKER = threading.Event()  # set in worker processes


def new_array(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes to be filled, 0 until then; in a worker process in memory that it shares, which grain would else copy."""
    return SharedMemoryArray(shape, np.uint8) if IN_WORKER.is_set() else np.zeros(shape, np.uint8)


def tie_to_program(_worker: int, _num_workers: int) -> None:
    """What grain calls in a worker process as it starts."""
    IN_WORKER.set()
    follow_program()
