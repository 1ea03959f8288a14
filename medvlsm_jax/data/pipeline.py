"""Records to batches with grain: which example is read at step s is a pure function of (seed, s).

The stream of training examples is one shuffled pass over the records after another, without a gap: batches are always
full and may straddle two passes. Processes take every P-th example of it, after shuffling, so the same examples make up
step s whatever the number of hosts.
"""

import dataclasses
from typing import Any

import grain
import numpy as np

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.data.prompts import choose_prompt
from medvlsm_jax.data.tokenizers import Tokenizer

Batch = dict[str, Any]  # name -> numpy array


@dataclasses.dataclass(frozen=True)
class Loader:
    """Decodes, resizes and tokenises one record.

    Attributes:
        records: what indices refer to.
        tokenizer: sentences to ids; None for a network that reads none.
        prompt: the prompt type.
        image_size: side of the square, in pixels.
        seed: of the draws among phrasings; None takes the first (evaluation).
        classes: of a network with several outputs; each record is of one of them (`check_classes`).
    """

    records: list[Record]
    tokenizer: Tokenizer | None
    prompt: str
    image_size: int
    seed: int | None = None
    classes: tuple[str, ...] = ()

    def sentence(self, index: int, epoch: int = 0) -> str:
        """The sentence of a record in one pass over the data."""
        rng = None if self.seed is None else np.random.default_rng((self.seed, epoch, index))
        return choose_prompt(self.records[index], self.prompt, rng)

    def __call__(self, index: int, epoch: int = 0, valid: bool = True) -> Batch:
        """An example; `valid` is false for the copies that fill up the last batch of an evaluation."""
        record = self.records[index]
        image, mask = load_pair(record.image, record.mask, self.image_size)
        example = {"image": image, "mask": mask, "index": np.int32(index), "valid": np.bool_(valid)}
        if self.tokenizer is not None:
            example["input_ids"], example["attention_mask"] = self.tokenizer(self.sentence(index, epoch))
        if self.classes:
            example["class_index"] = np.int32(self.classes.index(record.target))
        return example


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Full batches in one pass; what is left over opens the next one, so no image is skipped."""
    return max(1, num_records // batch_size)


def train_batches(
    loader: Loader,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    process: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    num_threads: int = 8,
) -> grain.DatasetIterator[Batch]:
    """Endless shuffled batches of this process's share, from `first_step` on.

    Args:
        loader: reads one record.
        batch_size: of all processes together; a multiple of their number.
        seed: of the order.
        first_step: the step whose batch comes first.
        process: this process's number and how many there are.
        num_workers: worker processes; 0 reads in threads of this process.
        num_threads: threads in each of them.
    """
    rank, count = process
    records = len(loader.records)
    order = grain.MapDataset.range(records).seed(seed).shuffle().repeat()
    order = order.map_with_index(lambda position, index: (index, position // records))
    share = order[first_step * batch_size + rank :: count]
    examples = share.map(lambda item: loader(item[0], item[1]))
    return read(examples.batch(batch_size // count), num_workers, num_threads)


def eval_batches(
    loader: Loader, batch_size: int, *, process: tuple[int, int] = (0, 1), num_workers: int = 0, num_threads: int = 8
) -> grain.DatasetIterator[Batch]:
    """Every record once, in order; copies of the last one, marked invalid, fill up the last batch.

    All processes yield the same number of batches. Arguments are those of `train_batches`.
    """
    rank, count = process
    records = len(loader.records)
    padded = -(-records // batch_size) * batch_size
    share = grain.MapDataset.range(padded)[rank::count]
    examples = share.map(lambda i: loader(min(i, records - 1), valid=i < records))
    return read(examples.batch(batch_size // count), num_workers, num_threads)


def read(batches: grain.MapDataset[Batch], num_workers: int, num_threads: int) -> grain.DatasetIterator[Batch]:
    """Reads a few batches ahead; whole batches are the unit, so worker processes lose none (grain#1129).

    Close the iterator when done: grain's threads and processes can hang the program's end otherwise (grain#1196).
    """
    ahead = max(2, num_threads)
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead))
    if num_workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(dataset)
