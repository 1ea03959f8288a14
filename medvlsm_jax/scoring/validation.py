"""Runs a model over every record of a set, on all devices, and hands back one value an image."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.data.reading.pipeline import Loader, eval_batches
from medvlsm_jax.evaluation.metrics import OVERLAP, overlap_metrics
from medvlsm_jax.evaluation.pictures import overlay
from medvlsm_jax.losses import Loss
from medvlsm_jax.models.apply import Batch, Values, forward
from medvlsm_jax.models.parameters import Arrays, merge_model
from medvlsm_jax.parallel.sharding import batch_sharding, local_rows, prefetch, replicated
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder


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


def validate(
    eval_step: EvalStep,
    arrays: Arrays,
    loader: Loader,
    encoder: FrozenEncoder | None,
    mesh: Mesh,
    config: ml_collections.ConfigDict,
    threshold: float,
    is_interrupted: Callable[[], bool],
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Mean loss, Dice and IoU over the validation records; writes them, and overlays of the first few.

    The means are over all records of a pool; each of its datasets has its own mean Dice as well. When a signal comes,
    Interrupted is raised and nothing is written.
    """
    pictures: list[np.ndarray] = []

    def draw(fetch: Fetch) -> None:
        if missing := config.num_overlays - len(pictures):
            rows = zip(fetch("image"), fetch("probability")[..., 0], fetch("mask")[..., 0], strict=True)
            pictures.extend(overlay(image, p > threshold, mask > 0) for image, p, mask in list(rows)[:missing])

    # In threads: worker processes would have to start anew in every epoch, and by the second one the images are cached.
    threads = config.data.num_threads * max(1, config.data.num_workers)
    values = score_records(
        eval_step,
        arrays,
        loader,
        mesh,
        config.batch_size,
        encoder=encoder,
        on_batch=draw,
        is_interrupted=is_interrupted,
        num_threads=threads,
    )
    results = {f"val/{name}": float(values[name].mean(dtype=np.float64)) for name in ("dice", "iou")}
    datasets = np.array([record.dataset for record in loader.records])
    for dataset in dict.fromkeys(datasets.tolist()) if len(set(datasets)) > 1 else ():
        results[f"val/{dataset}/dice"] = float(values["dice"][datasets == dataset].mean(dtype=np.float64))
    weight = values["weight"].sum(dtype=np.float64)
    results["val/loss"] = float((values["loss"] * values["weight"]).sum(dtype=np.float64) / max(weight, 1.0))
    return results, pictures


def make_eval_step(graphdef: nnx.GraphDef, mesh: Mesh, loss: Loss | None = None, *, probabilities: bool = False) -> Any:
    """Compiles `(arrays, batch) -> values of each image`: index, valid, OVERLAP, and if one is given loss and weight.

    They are replicated, so that every process can read all of them; the map called `probability`, on request, stays
    where its rows are. The result is what jit makes, and can be lowered.
    """

    def eval_step(arrays: Arrays, batch: Batch) -> Values:
        model = merge_model(graphdef, arrays)
        logits = forward(model, batch)
        target = batch["mask"].astype(jnp.float32)
        values = overlap_metrics(jax.nn.sigmoid(logits), target, model.config.threshold)
        values |= {name: batch[name] for name in ("index", "valid")}
        if loss is not None:
            values |= {"loss": loss(logits, target), "weight": loss.weights(target)}
        if probabilities:
            values["probability"] = jax.nn.sigmoid(logits)
        return values

    shardings: dict[str, Any] = dict.fromkeys(("index", "valid", *OVERLAP), replicated(mesh))
    if loss is not None:
        shardings |= {"loss": replicated(mesh), "weight": replicated(mesh)}
    if probabilities:
        shardings["probability"] = batch_sharding(mesh)
    return jax.jit(eval_step, out_shardings=shardings)


def open_validation(config, network, mesh, loader, encoder, arrays, is_interrupted):
    from medvlsm_jax.losses import find_loss
    from medvlsm_jax.models import abstract_model
    from medvlsm_jax.training.step import abstract_batch

    if not loader.records:
        return None
    eval_step = make_eval_step(nnx.graphdef(abstract_model(network)), mesh, find_loss(config.loss), probabilities=True)
    rows = eval_batch_size(len(loader.records), config.batch_size, mesh)
    shapes = abstract_batch(network, rows, mesh, None if encoder is None else encoder.outputs)
    eval_step = eval_step.lower(arrays, shapes).compile()
    return lambda arrays: validate(eval_step, arrays, loader, encoder, mesh, config, network.threshold, is_interrupted)
