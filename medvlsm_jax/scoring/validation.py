"""Validation during training: the evaluation's scorer with one condition, the loss, and what frozen encoders kept."""

import contextlib
import dataclasses
from collections.abc import Callable

import ml_collections
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.evaluation.pictures import overlay
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.scoring.batch_segmenter import OWN, abstract_batch, make_batch_segmenter
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder
from medvlsm_jax.scoring.scorer import Answer, Scorer, eval_batch_size


class Interrupted(Exception):
    """The validation was given up: a signal came."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Mean loss, Dice and IoU over the validation records, and pictures of the first few.

    Attributes:
        scorer: of a segmenter with a loss.
        loader: reads the records, each with its own sentence.
        num_overlays: how many pictures; with several processes, of each one's own rows.
        is_interrupted: is asked after every batch whether to give up.
    """

    scorer: Scorer
    loader: Loader
    num_overlays: int
    is_interrupted: Callable[[], bool]

    def __call__(self, arrays: Arrays) -> tuple[dict[str, float], list[np.ndarray]]:
        """Validates a model.

        The means are over all records of a pool; each of its datasets has its own mean Dice as well. The loss is the
        mean over the images that it counts.

        Returns:
            `val/dice`, `val/iou`, `val/loss` and of a pool `val/DATASET/dice`; pictures (S, S, 3), uint8.

        Raises:
            Interrupted: `is_interrupted` said so.
        """
        pictures: list[np.ndarray] = []

        def draw(answer: Answer) -> None:
            if len(pictures) < self.num_overlays:
                pictures.extend(self.overlays(answer, self.num_overlays - len(pictures)))

        parts: list[dict[str, np.ndarray]] = []
        with contextlib.closing(self.scorer.score(arrays, self.loader, on_answer=draw)) as batches:
            for batch in batches:
                parts.append(batch.scores[OWN])
                if self.is_interrupted():
                    raise Interrupted
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self.means(values), pictures

    def overlays(self, answer: Answer, count: int) -> list[np.ndarray]:
        """Pictures of this process's first rows of a batch."""
        batch, threshold, maps = answer.batch, self.scorer.segmenter.threshold, answer.maps()
        return [
            overlay(self.loader.image(int(batch["index"][row])), maps[row] > threshold, batch["mask"][row, ..., 0] > 0)
            for row in np.flatnonzero(batch["valid"])[:count]
        ]

    def means(self, values: dict[str, np.ndarray]) -> dict[str, float]:
        """What is told of the values of all records, in their order."""
        results = {f"val/{name}": float(values[name].mean(dtype=np.float64)) for name in ("dice", "iou")}
        datasets = np.array([record.dataset for record in self.loader.records])
        for dataset in dict.fromkeys(datasets.tolist()) if len(set(datasets)) > 1 else ():
            results[f"val/{dataset}/dice"] = float(values["dice"][datasets == dataset].mean(dtype=np.float64))
        weight = values["weight"].sum(dtype=np.float64)
        loss = (values["loss"] * values["weight"]).sum(dtype=np.float64) / max(weight, 1.0)
        return results | {"val/loss": float(loss)}


def open_validation(
    config: ml_collections.ConfigDict,
    network: NetworkConfig,
    mesh: Mesh,
    loader: Loader,
    encoder: FrozenEncoder | None,
    arrays: Arrays,
    is_interrupted: Callable[[], bool],
) -> Validation | None:
    """The validation of a training run, compiled: later it never compiles, so that a signal finds nothing busy.

    Args:
        config: its fields `loss`, `batch_size`, `num_overlays` and `data` are read.
        network: config of the network.
        mesh: the devices.
        loader: reads the validation records; with the encoder's cache, if there is one.
        encoder: has kept, or makes, what the frozen encoders make of the batches.
        arrays: of the model, or their shapes and shardings.
        is_interrupted: is asked after every batch whether to give up.

    Returns:
        None where there are no validation records.

    Raises:
        UserError: there is no such loss.
    """
    if not loader.records:
        return None
    rows = eval_batch_size(len(loader.records), config.batch_size, mesh)
    batch = abstract_batch(network, rows, mesh, None if encoder is None else encoder.outputs)
    segmenter = make_batch_segmenter(network, mesh, find_loss(config.loss)).compile(arrays, batch)
    # In threads: worker processes would have to start anew in every epoch, and by the second one the images are cached.
    reading = {"num_threads": config.data.num_threads * max(1, config.data.num_workers)}
    scorer = Scorer(segmenter, mesh, rows, complete=encoder and encoder.complete, reading=reading)
    return Validation(scorer, loader, config.num_overlays, is_interrupted)
