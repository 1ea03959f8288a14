"""Work on many files by several processes, with a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

FEW = 64  # items that one process has done sooner than several have started


def map_in_processes(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    workers: int | None = None,
    chunksize: int = 4,
    desc: str,
    unit: str,
) -> list[Any]:
    """The results for all items, in their order.

    Args:
        function: of a module, or a partial of such a one, so that it travels.
        items: what it is called with.
        workers: processes; by default one for each core, or this one alone for a few items.
        chunksize: items that travel together.
        desc: what is done, beside the bar.
        unit: what an item is, beside the bar.
    """
    if workers is None:
        workers = (os.cpu_count() or 1) if len(items) > FEW else 1
    # Spawned, for a forked copy of a process that runs JAX can hang. Without a call to pool.map no process starts.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        results = map(function, items) if workers == 1 else pool.map(function, items, chunksize=chunksize)
        return list(tqdm(results, total=len(items), desc=desc, unit=unit, disable=None))
