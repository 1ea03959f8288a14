"""A model over a mesh in two steps: an image is encoded once, and decoded with as many sentences as are asked of it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from medvlsm_jax.evaluation.metrics import overlap_metrics, probability_counts
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.apply import Batch, Values, own_class
from medvlsm_jax.models.apply import encode as run_encoder
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays, merge_model
from medvlsm_jax.parallel.sharding import batch_sharding, replicated


class Segmenter:
    """Probabilities and metrics of batches; what is compiled for one checkpoint serves all others of its network."""

    def __init__(self, config: NetworkConfig, mesh: Mesh):
        model = abstract_model(config)
        self.threshold = config.threshold
        graphdef = nnx.graphdef(model)
        by_rows, everywhere = batch_sharding(mesh), replicated(mesh)

        def encode(arrays: Arrays, image: UInt8[Array, "b h w 3"], is_mirrored: bool) -> Any:
            model = merge_model(graphdef, arrays)
            image = image[:, :, ::-1] if is_mirrored else image
            return run_encoder(model, "image", image)

        def decode(
            arrays: Arrays, features: Any, variant: Batch, class_index: Array | None, is_mirrored: bool
        ) -> Float[Array, "b h w 1"]:
            model, text = merge_model(graphdef, arrays), None
            if model.reads_sentence:
                text = run_encoder(model, "text", variant["input_ids"], variant["attention_mask"])
            logits = model.decode(features, text, (config.image_size, config.image_size))
            probability = jax.nn.sigmoid(own_class(logits, class_index))
            probability = probability[:, :, ::-1] if is_mirrored else probability
            return variant["weight"][:, None, None, None] * probability

        def measure(probability: Float[Array, "b h w 1"], batch: Batch, has_counts: bool) -> Values:
            target = batch["mask"].astype(jnp.float32)
            values = overlap_metrics(probability, target, config.threshold)
            return values | ({"counts": probability_counts(probability, target)} if has_counts else {})

        self._encode = jax.jit(encode, static_argnums=2, out_shardings=by_rows)
        self._decode = jax.jit(decode, static_argnums=4, out_shardings=by_rows)
        self._add = jax.jit(jnp.add, out_shardings=by_rows)
        self._measure = jax.jit(measure, static_argnums=2, out_shardings=everywhere)

    def probabilities(
        self, arrays: Arrays, batch: Batch, mirrored: Mapping[str, Sequence[bool]]
    ) -> Iterator[tuple[str, Float[Array, "b h w 1"]]]:
        """The foreground's probability under each condition of `batch["variants"]`, the mean of its variants.

        One condition after another, so that those which are done with need not stay in memory.

        Args:
            arrays: of the model.
            batch: on the mesh.
            mirrored: which variants of a condition are about the mirrored image.
        """
        flips = sorted({flip for several in mirrored.values() for flip in several})
        features = {flip: self._encode(arrays, batch["image"], flip) for flip in flips}
        for name, variants in batch["variants"].items():
            parts = (
                self._decode(arrays, features[flip], variant, batch.get("class_index"), flip)
                for variant, flip in zip(variants, mirrored[name], strict=True)
            )
            yield name, functools.reduce(self._add, parts)

    def measure(self, probability: Float[Array, "b h w 1"], batch: Batch, *, has_counts: bool = False) -> Values:
        """OVERLAP of each image, on all processes, and on request `counts`: what `probability_counts` says."""
        return self._measure(probability, batch, has_counts)


@functools.lru_cache(maxsize=8)
def make_segmenter(config: NetworkConfig, mesh: Mesh) -> Segmenter:
    """The segmenter of a network, the same object for the same network."""
    return Segmenter(config, mesh)
