"""Work on many files by several processes, with a progress bar."""

import multiprocessing
import os
import signal
import threading
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
    with process_pool(workers) as pool:  # without a call to pool.map no process starts
        results = map(function, items) if workers == 1 else pool.map(function, items, chunksize=chunksize)
        return list(tqdm(results, total=len(items), desc=desc, unit=unit, disable=None))


def process_pool(workers: int) -> ProcessPoolExecutor:
    """So many processes, which start as they are needed and end with the program, however it ends.

    They are spawned, for a forked copy of a process that runs JAX can hang.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=follow_program)


def follow_program() -> None:
    """Lets a worker process live exactly as long as its program.

    Ctrl-C and a scheduler's SIGTERM reach the workers too; but the program, which may still need their work to come to
    its checkpoint, ends them itself. Of a program that was killed they would wait for ever, and hold its memory.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    program = multiprocessing.parent_process()

    def follow() -> None:
        if program is not None:
            program.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
