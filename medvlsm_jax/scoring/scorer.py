"""Every image of a set under every condition: scores from the devices and from this host's cores, batch by batch."""

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.reading.pipeline import HostBatch, Loader, eval_batches
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.apply import NOT_FINITE, Values
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.parallel.sharding import local_rows, prefetch
from medvlsm_jax.scoring.batch_segmenter import COUNTS, FINITE, INDEX, PROBABILITY, VALID, BatchSegmenter
from medvlsm_jax.scoring.host_cores import HostScores, open_cores
from medvlsm_jax.scoring.joined_log import OTHER

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One batch under one condition, under way on the devices.

    Attributes:
        step: number of the batch.
        batch: this process's rows, on the host.
        condition: its name.
        probability: (B, H, W, 1), where its rows are.
        values: of each image, on all processes.
    """

    step: int
    batch: HostBatch
    condition: str
    probability: jax.Array
    values: Values

    def maps(self) -> Float[np.ndarray, "b h w"]:
        """The probabilities of this process's rows; waits for them."""
        return local_rows(self.probability)[..., 0]


@dataclasses.dataclass(frozen=True)
class BatchScores:
    """What is known of the records of one batch, on every process.

    Attributes:
        indices: of the records, ascending.
        scores: condition -> name of a metric -> a value for each of them; of no use where it is not asked.
        counts: condition -> what `probability_counts` says of each of them; empty unless it was asked for.
    """

    indices: list[int]
    scores: dict[str, dict[str, np.ndarray]]
    counts: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Runs a model over records.

    Host and devices do not wait for each other: whatever is read of a batch under a condition, the next condition, or
    batch, is under way by then.

    Attributes:
        segmenter: of the network.
        mesh: the devices.
        batch_size: of all processes together.
        on_host: what else is found of a record's probability map and mask, if anything; a function of a module, or a
            partial of such a one.
        host_names: of the values that it returns.
        has_counts: whether to count probabilities.
        complete: adds to a batch what frozen encoders make of it (`FrozenEncoder.complete`).
        reading: `config.reader_options`.
    """

    segmenter: BatchSegmenter
    mesh: Mesh
    batch_size: int
    on_host: HostScores | None = None
    host_names: Sequence[str] = ()
    has_counts: bool = False
    complete: Callable[[HostBatch], HostBatch] | None = None
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def segment(self, arrays: Arrays, loader: Loader, first_step: int = 0) -> Generator[Answer, None, None]:
        """Each batch from a step on under one condition after another; the next is under way before one is given."""
        return one_ahead(self.dispatch(arrays, loader, first_step))

    def dispatch(self, arrays: Arrays, loader: Loader, first_step: int) -> Generator[Answer, None, None]:
        """Likewise, each when it is asked for."""
        mirrored = {name: [v.is_mirrored for v in variants] for name, variants in (loader.variants or {}).items()}
        process = (jax.process_index(), jax.process_count())
        batches = eval_batches(loader, self.batch_size, first_step=first_step, process=process, **self.reading)
        with contextlib.closing(batches):
            completed = batches if self.complete is None else map(self.complete, batches)
            for step, (batch, on_devices) in enumerate(prefetch(completed, self.mesh), start=first_step):
                answers = self.segmenter.answers(arrays, on_devices, mirrored, has_counts=self.has_counts)
                for name, values in answers:
                    probability = values.pop(PROBABILITY)
                    yield Answer(step, batch, name, probability, values)

    def score(
        self,
        arrays: Arrays,
        loader: Loader,
        first_step: int = 0,
        on_answer: Callable[[Answer], None] = lambda _: None,
    ) -> Generator[BatchScores, None, None]:
        """The scores of each batch of a loader's records under its conditions, from a step on.

        While the host's cores are at work on a batch, the devices are on the next. The cores are used by as many worker
        processes as read images; without any, by threads, which Python's lock lets do about twice the work of one.

        Args:
            arrays: of the model.
            loader: reads the records.
            first_step: the batch that comes first.
            on_answer: is called with each batch under each condition.

        Raises:
            UserError: a probability is not finite.
        """
        with contextlib.ExitStack() as stack:
            answers = stack.enter_context(contextlib.closing(self.segment(arrays, loader, first_step)))
            cores = None
            if self.on_host is not None:
                num_workers = self.reading.get("num_workers", 0)
                cores = stack.enter_context(open_cores(self.on_host, loader.records, num_workers))
            before: PendingScores | None = None
            for _, several in itertools.groupby(answers, key=lambda answer: answer.step):
                pending = PendingScores(loader.records, self.host_names if cores else None)
                for answer in several:
                    on_answer(answer)
                    pending.add(answer, cores.start(answer.condition, answer.batch, answer.maps()) if cores else {})
                if before is not None:
                    yield before.finish()
                before = pending
            if before is not None:
                yield before.finish()


class PendingScores:
    """A batch under way: what the devices find under each condition, and what this host's cores do."""

    def __init__(self, records: Sequence[Record], host_names: Sequence[str] | None):
        """Nothing yet.

        Args:
            records: that batches are of.
            host_names: of the values that the host finds; None where it finds none.
        """
        self.records, self.host_names = records, host_names
        self.values: dict[str, Values] = {}
        self.rows = np.zeros(0, np.int64), np.zeros(0, bool)  # this process's: index of the record, is it no filling
        self.jobs: dict[tuple[str, int], Future[dict[str, float]]] = {}

    def add(self, answer: Answer, jobs: Mapping[int, Future[dict[str, float]]]) -> None:
        """Takes a condition in, with the jobs of this process's rows."""
        self.values[answer.condition] = answer.values
        self.rows = answer.batch[INDEX], answer.batch[VALID]
        self.jobs |= {(answer.condition, row): job for row, job in jobs.items()}

    def finish(self) -> BatchScores:
        """Waits for all of it; raises as `check_finite`, what a job raised, and on the other processes a UserError."""
        read = {name: {key: np.asarray(x) for key, x in values.items()} for name, values in self.values.items()}
        (first, *_) = read.values()
        order = record_order(first[INDEX], first[VALID])
        scores = {
            name: {key: x[order] for key, x in values.items() if key not in (INDEX, VALID)}
            for name, values in read.items()
        }
        for values in scores.values():
            for index, is_finite in zip(first[INDEX][order], values.pop(FINITE), strict=True):
                check_finite(self.records[index], bool(is_finite))
        counts = {name: values.pop(COUNTS) for name, values in scores.items() if COUNTS in values}
        if self.host_names is not None:
            found = self.gather_jobs(self.host_names)
            for column, name in enumerate(scores):
                scores[name] |= dict(zip(self.host_names, found[:, column].T, strict=True))
        return BatchScores(first[INDEX][order].tolist(), scores, counts)

    def gather_jobs(self, names: Sequence[str]) -> Float[np.ndarray, "n conditions names"]:
        """What the cores of all hosts found, by record; NaN where a record is not asked."""
        found, error = np.full((len(self.rows[0]), len(self.values), len(names)), np.nan), None
        for column, name in enumerate(self.values):
            for row in range(len(found)):
                if (name, row) in self.jobs:
                    try:
                        result = self.jobs[name, row].result()
                        found[row, column] = [result[key] for key in names]
                    except UserError as its_error:  # the other processes wait for this one's rows
                        error = its_error
        about = np.stack([*self.rows, np.full(len(found), error is not None)], axis=1).astype(np.float64)
        rows = gather(np.concatenate([about, found.reshape(len(found), -1)], axis=1))
        if error is not None:
            raise error
        if rows[:, 2].any():
            raise UserError(OTHER)
        order = record_order(rows[:, 0], rows[:, 1] > 0)
        return rows[order, 3:].reshape(len(order), *found.shape[1:])


def check_finite(record: Record, is_finite: bool) -> None:
    """Raises a UserError when the probabilities of a record are not finite: any number made of them would be wrong."""
    if not is_finite:
        raise UserError(f"{record.dataset}: the probabilities of {record.image.name} are {NOT_FINITE}")


def eval_batch_size(num_records: int, batch_size: int, mesh: Mesh) -> int:
    """Rows of an evaluation's batches: a small set is not padded to a large batch."""
    return min(batch_size, -(-num_records // mesh.size) * mesh.size)


def one_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Each item, when the next one has been asked for too."""
    waiting: deque[Item] = deque()
    with contextlib.closing(items):
        for item in items:
            waiting.append(item)
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


def record_order(index: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The rows that are no filling, by their records."""
    rows = np.flatnonzero(valid)
    return rows[np.argsort(index[rows])]


def gather(rows: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "all columns"]:
    """The rows of all processes."""
    if jax.process_count() == 1:
        return rows
    # As 32-bit words: jax would make float32 of float64.
    words = multihost_utils.process_allgather(rows.view(np.uint32))
    return np.asarray(words).reshape(-1, words.shape[-1]).view(np.float64)
