"""This host's cores, which score probability maps at the images' own sizes while the devices are at the next batch."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from jaxtyping import Float

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import read_mask
from medvlsm_jax.data.reading.pipeline import HostBatch
from medvlsm_jax.processes import process_pool

WAITING = 2  # batches of one condition whose maps may wait

Map = Float[np.ndarray, "h w"]
Mask = np.ndarray  # (height, width), 0 or 1
HostScores = Callable[[Record, str, Map, Mask], dict[str, float]]  # of a record under a condition


class HostCores:
    """Starts jobs, a few batches ahead of what is done."""

    def __init__(self, pool: ThreadPoolExecutor, on_host: HostScores, records: Sequence[Record]):
        """Nothing is under way yet.

        Args:
            pool: does the jobs.
            on_host: what a job is.
            records: that the batches are of.
        """
        self.pool, self.on_host, self.records = pool, on_host, records
        self.running: deque[Future[dict[str, float]]] = deque()
        self.batch: HostBatch = {}
        self.masks: dict[int, Future[Mask]] = {}  # of that batch, which all conditions share

    def start(
        self, condition: str, batch: HostBatch, maps: Float[np.ndarray, "b h w"]
    ) -> dict[int, Future[dict[str, float]]]:
        """The jobs of this process's rows of a batch under a condition, by row; waits while too many are waiting."""
        own = {row: self.records[batch["index"][row]] for row in np.flatnonzero(batch["valid"]).tolist()}
        if batch is not self.batch:
            self.batch = batch
            self.masks = {row: self.pool.submit(read_mask, record.mask) for row, record in own.items()}
        is_asked = np.any([variant["weight"] > 0 for variant in batch["variants"][condition]], axis=0)
        jobs = {
            row: self.pool.submit(call_with_mask, self.on_host, record, condition, maps[row], self.masks[row])
            for row, record in own.items()
            if is_asked[row]
        }
        self.running += jobs.values()
        while len(self.running) > WAITING * max(1, len(own)):
            wait([self.running.popleft()])
        return jobs


@contextlib.contextmanager
def open_cores(on_host: HostScores, records: Sequence[Record], num_workers: int = 0) -> Iterator[HostCores]:
    """The cores as so many worker processes, or as threads where there is none."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        if num_workers:
            on_host = functools.partial(in_process, stack.enter_context(process_pool(num_workers)), on_host)
        yield HostCores(pool, on_host, records)


def call_with_mask(on_host: HostScores, record: Record, name: str, probability: Map, mask: Future[Mask]) -> Any:
    """Calls with a mask that may still be read: what reads it was begun before, so it comes."""
    return on_host(record, name, probability, mask.result())


def in_process(processes: ProcessPoolExecutor, on_host: HostScores, *args: Any) -> dict[str, float]:
    """Has a worker process do it, and waits."""
    return processes.submit(on_host, *args).result()
