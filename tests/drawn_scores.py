"""A segmenter without a network, whose answers are drawn from the truth: for what an evaluation does with scores."""

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.evaluation.metrics import overlap_metrics, probability_counts
from medvlsm_jax.parallel.sharding import batch_sharding
from medvlsm_jax.scoring.batch_segmenter import OWN, BatchSegmenter

THRESHOLD = 0.5


@functools.partial(jax.jit, static_argnums=2)
def measure(probability: jax.Array, target: jax.Array, has_counts: bool) -> dict[str, jax.Array]:
    """What a segmenter tells of probabilities."""
    values = overlap_metrics(probability, target, THRESHOLD)
    values |= {"finite": jnp.isfinite(probability).all((1, 2, 3))}
    return values | ({"counts": probability_counts(probability, target)} if has_counts else {})


class DrawnSegmenter(BatchSegmenter):
    """The truth, moved to the right by up to 5 pixels, as the record and the name of the condition have it."""

    threshold = THRESHOLD

    def __init__(self, mesh: Mesh):
        vars(self).update(mesh=mesh)

    def answers(
        self,
        arrays: Any,
        batch: Mapping[str, Any],
        mirrored: Mapping[str, Sequence[bool]],
        *,
        has_counts: bool = False,
    ) -> Iterator[tuple[str, dict[str, jax.Array]]]:
        """As `BatchSegmenter.answers`."""
        mask, index = np.asarray(batch["mask"], np.float32), np.asarray(batch["index"])
        for name in batch.get("variants", (OWN,)):
            shifts = [zlib.crc32(f"{i} {name}".encode()) % 6 for i in index]
            moved = np.stack([np.roll(image, shift, axis=1) for image, shift in zip(mask, shifts, strict=True)])
            probability = jax.device_put(np.float32(0.1) + np.float32(0.8) * moved, batch_sharding(self.mesh))
            values = measure(probability, jnp.asarray(mask), has_counts)
            loss = {"loss": jnp.asarray(shifts, jnp.float32), "weight": jnp.asarray(index % 2 == 0, jnp.float32)}
            told = loss if name == OWN else {}
            yield name, {"probability": probability, **values, "index": batch["index"], "valid": batch["valid"], **told}
