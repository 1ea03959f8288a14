"""Runs a model over every record of a set, on all devices, and hands back one value an image."""

import contextlib
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.data.pipeline import Loader, eval_batches
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.training.features import FrozenEncoder
from medvlsm_jax.training.sharding import local_rows, prefetch


class Interrupted(Exception):
    """The evaluation was given up: a signal came."""


EvalStep = Callable[[Arrays, dict[str, jax.Array]], dict[str, jax.Array]]
Fetch = Callable[[str], np.ndarray]


def score_records(
    eval_step: EvalStep,
    arrays: Arrays,
    loader: Loader,
    mesh: Mesh,
    batch_size: int,
    *,
    encoder: FrozenEncoder | None = None,
    on_batch: Callable[[Fetch], None] | None = None,
    is_interrupted: Callable[[], bool] = lambda: False,
    num_workers: int = 0,
    num_threads: int = 8,
) -> dict[str, np.ndarray]:
    """The scalar values of `eval_step` for each record, in the records' order; padding is left out.

    Args:
        eval_step: from `make_eval_step`.
        arrays: of the model.
        loader: reads the records.
        mesh: the devices.
        batch_size: a multiple of their number; fewer images at once when the set is smaller.
        encoder: has kept, or makes, what the frozen encoders make of the batches.
        on_batch: is called after every batch with a function that brings this process's valid rows of a value
            (`probability`, `index`, …) or of an input (`image`, `mask`) to the host; what is not asked for stays.
        is_interrupted: is asked after every batch whether to give up.
        num_workers: worker processes of the input pipeline; 0 reads in threads.
        num_threads: threads in each of them.

    Raises:
        Interrupted: `is_interrupted` said so.
    """
    scalars: dict[str, list[np.ndarray]] = {}
    process = (jax.process_index(), jax.process_count())
    batch_size = eval_batch_size(len(loader.records), batch_size, mesh)
    batches = eval_batches(loader, batch_size, process=process, num_workers=num_workers, num_threads=num_threads)
    with contextlib.closing(batches):
        complete = batches if encoder is None else map(encoder.complete, batches)
        for batch, on_devices in prefetch(complete, mesh):
            values = eval_step(arrays, on_devices)
            valid = np.asarray(values["valid"])
            for name, value in values.items():
                if value.ndim == 1:
                    scalars.setdefault(name, []).append(np.asarray(value)[valid])
            if on_batch is not None:
                on_batch(functools.partial(fetch_rows, values, batch))
            if is_interrupted():
                raise Interrupted
    joined = {name: np.concatenate(parts) for name, parts in scalars.items()}
    order = np.argsort(joined["index"])
    return {name: values[order] for name, values in joined.items()}


def eval_batch_size(num_records: int, batch_size: int, mesh: Mesh) -> int:
    """Rows of an evaluation's batches: a small set is not padded to a large batch."""
    return min(batch_size, -(-num_records // mesh.size) * mesh.size)


def fetch_rows(values: dict[str, jax.Array], batch: dict[str, np.ndarray], name: str) -> np.ndarray:
    """This process's valid rows of an input or of a sharded value."""
    rows = batch[name] if name in batch else local_rows(values[name])
    return rows[batch["valid"]]
