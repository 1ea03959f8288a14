"""Every image of a set under every condition: scores from the devices and from this host's cores, batch by batch."""

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import read_mask
from medvlsm_jax.data.reading.pipeline import Batch, Loader, eval_batches
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.parallel.sharding import local_rows, prefetch
from medvlsm_jax.processes import process_pool
from medvlsm_jax.scoring.segmenter import Segmenter

WAITING = 2  # batches of one condition whose maps may wait for the host's cores

Map = Float[np.ndarray, "h w"]
Mask = np.ndarray  # (height, width), 0 or 1
HostScores = Callable[[Record, str, Map, Mask], dict[str, float]]  # of a record under a condition


@dataclasses.dataclass(frozen=True)
class BatchScores:
    """What is known of the records of one batch, on every process.

    Attributes:
        indices: of the records.
        scores: condition -> name of a metric -> a value for each of them; of no use where it is not asked.
        counts: condition -> what `probability_counts` says of each of them; empty unless it was asked for.
    """

    indices: range
    scores: dict[str, dict[str, np.ndarray]]
    counts: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Runs a model over records.

    Attributes:
        segmenter: of the network.
        arrays: of the model, on the mesh.
        mesh: the devices.
        batch_size: of all processes together.
        on_host: what else is found of a record's probability map and mask, if anything; a function of a module, or a
            partial of such a one.
        host_names: of the values that it returns.
        has_counts: whether to count probabilities.
        reading: `config.reader_options`.
    """

    segmenter: Segmenter
    arrays: Arrays
    mesh: Mesh
    batch_size: int
    on_host: HostScores | None = None
    host_names: Sequence[str] = ()
    has_counts: bool = False
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def segment(self, loader: Loader, first_step: int = 0) -> Iterator[tuple[Batch, Batch, Iterator[Any]]]:
        """Each batch from a step on, on the host and on the devices, with (condition, its probabilities) one by one."""
        mirrored = {name: [v.is_mirrored for v in variants] for name, variants in (loader.variants or {}).items()}
        process = (jax.process_index(), jax.process_count())
        batches = eval_batches(loader, self.batch_size, first_step=first_step, process=process, **self.reading)
        with contextlib.closing(batches):
            for batch, on_devices in prefetch(batches, self.mesh):
                yield batch, on_devices, self.segmenter.probabilities(self.arrays, on_devices, mirrored)

    def score(self, loader: Loader, first_step: int = 0) -> Iterator[BatchScores]:
        """The scores of each batch of a loader's records under its conditions, from a step on.

        While the host's cores are at work on a batch, the devices are on the next. The cores are used by as many worker
        processes as read images; without any, by threads, which Python's lock lets do about twice the work of one.
        """
        count, before = len(loader.records), None
        num_workers = self.reading.get("num_workers", 0)
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor())
            on_host = self.on_host
            if on_host and num_workers:
                on_host = functools.partial(in_process, stack.enter_context(process_pool(num_workers)), on_host)
            for step, batch_parts in enumerate(self.segment(loader, first_step), start=first_step):
                indices = range(step * self.batch_size, min((step + 1) * self.batch_size, count))
                finish = self.start(pool, on_host, loader.records, indices, *batch_parts)
                if before is not None:
                    yield before()
                before = finish
            if before is not None:
                yield before()

    def start(
        self,
        pool: ThreadPoolExecutor,
        on_host: HostScores | None,
        records: Sequence[Record],
        indices: range,
        batch: Batch,
        on_devices: Batch,
        probabilities: Iterator[tuple[str, jax.Array]],
    ) -> Callable[[], BatchScores]:
        """Gets a batch under way; the result waits for it."""
        own = [(row, records[i]) for row, i in enumerate(batch["index"]) if batch["valid"][row]]
        masks = {row: pool.submit(read_mask, record.mask) for row, record in own} if on_host else {}
        values, jobs = {}, {}
        running: deque[Future[dict[str, float]]] = deque()
        for name, probability in probabilities:
            values[name] = self.segmenter.measure(probability, on_devices, has_counts=self.has_counts)
            if on_host is None:
                continue
            maps = local_rows(probability)[..., 0]
            variants = batch["variants"][name]
            for row, record in own:
                if not any(variant["weight"][row] > 0 for variant in variants):
                    continue  # it is not asked
                jobs[name, row] = pool.submit(call_with_mask, on_host, record, name, maps[row], masks[row])
                running.append(jobs[name, row])
            while len(running) > WAITING * len(own):
                running.popleft().result()

        def finish() -> BatchScores:
            scores = {name: {key: np.asarray(x)[: len(indices)] for key, x in v.items()} for name, v in values.items()}
            counts = {name: scores[name].pop("counts") for name in scores} if self.has_counts else {}
            if on_host is not None:
                found = np.full((len(batch["index"]), len(values), len(self.host_names)), np.nan)
                for column, name in enumerate(values):
                    for row in range(len(found)):
                        if (name, row) in jobs:
                            result = jobs[name, row].result()
                            found[row, column] = [result[key] for key in self.host_names]
                found = gather(found)[: len(indices)]
                for column, name in enumerate(values):
                    scores[name] |= dict(zip(self.host_names, found[:, column].T, strict=True))
            return BatchScores(indices, scores, counts)

        return finish


def call_with_mask(on_host: HostScores, record: Record, name: str, probability: Map, mask: Future[Mask]) -> Any:
    """Calls with a mask that may still be read: what reads it was begun before, so it comes."""
    return on_host(record, name, probability, mask.result())


def in_process(processes: ProcessPoolExecutor, on_host: HostScores, *args: Any) -> dict[str, float]:
    """Has a worker process do it, and waits."""
    return processes.submit(on_host, *args).result()


def gather(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, which are blocks of a batch, one after another."""
    if jax.process_count() == 1 or rows.size == 0:
        return rows
    # As 32-bit words: jax would make float32 of float64.
    words = multihost_utils.process_allgather(rows.view(np.uint32))
    return np.asarray(words).reshape(-1, *words.shape[2:]).view(np.float64)
