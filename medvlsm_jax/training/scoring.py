"""Runs a model over every record of a set, on all devices, and hands back one value an image."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.data.pipeline import Loader, eval_batches
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.training.sharding import put_batch

EvalStep = Callable[[Arrays, dict[str, jax.Array]], dict[str, jax.Array]]
OnBatch = Callable[[dict[str, np.ndarray]], None]


def score_records(
    eval_step: EvalStep,
    arrays: Arrays,
    loader: Loader,
    mesh: Mesh,
    batch_size: int,
    *,
    on_batch: OnBatch | None = None,
    num_workers: int = 0,
    num_threads: int = 8,
) -> dict[str, np.ndarray]:
    """The scalar values of `eval_step` for each record, in the records' order; padding is left out.

    Args:
        eval_step: from `make_eval_step`.
        arrays: of the model.
        loader: reads the records.
        mesh: the devices.
        batch_size: a multiple of their number.
        on_batch: is shown the valid rows of every batch, the image among them, as soon as they are there.
        num_workers: worker processes of the input pipeline; 0 reads in threads.
        num_threads: threads in each of them.
    """
    scalars: dict[str, list[np.ndarray]] = {}
    process = (jax.process_index(), jax.process_count())
    batches = eval_batches(loader, batch_size, process=process, num_workers=num_workers, num_threads=num_threads)
    with contextlib.closing(batches):
        for batch in batches:
            values = {name: np.asarray(value) for name, value in eval_step(arrays, put_batch(batch, mesh)).items()}
            rows = {name: value[values["valid"]] for name, value in values.items()}
            for name, value in rows.items():
                if value.ndim == 1:
                    scalars.setdefault(name, []).append(value)
            if on_batch is not None:
                on_batch(rows)
    joined = {name: np.concatenate(parts) for name, parts in scalars.items()}
    order = np.argsort(joined["index"])
    return {name: values[order] for name, values in joined.items()}
