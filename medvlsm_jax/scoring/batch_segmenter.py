"""A model over a mesh: an image is encoded once, and decoded with as many sentences as are asked of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from medvlsm_jax.evaluation.metrics import OVERLAP, overlap_metrics, probability_counts
from medvlsm_jax.losses import Loss
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.apply import Batch, Values, forward, own_class
from medvlsm_jax.models.apply import encode as run_encoder
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays, merge_model
from medvlsm_jax.parallel.sharding import REPLACED, batch_sharding, replicated, with_mesh

OWN = ""  # the condition of a batch without variants: each record's own sentence
# Values besides metrics.
PROBABILITY, INDEX, VALID, COUNTS, FINITE = "probability", "index", "valid", "counts", "finite"


@dataclasses.dataclass(frozen=True)
class BatchSegmenter:
    """Probabilities and metrics of batches; what is compiled for one checkpoint serves all others of its network.

    Of each image there are `probability` (B, H, W, 1), which stays where its rows are, and on all processes OVERLAP,
    `index`, `valid`, and `finite`, whether all its probabilities are. Rows lie in the order of the mesh, which need not
    be that of the records.

    Attributes:
        threshold: of the probabilities, in OVERLAP.
        encode: (arrays, image, is_mirrored) -> features; like all that follow jitted, or compiled.
        decode: (arrays, features, variant, class_index, is_mirrored) -> probability times the variant's weight.
        add: two of them -> their sum.
        measure: (probability, batch, has_counts) -> values.
        own: (arrays, batch) -> probability and values of each record's own sentence, all in one program.
    """

    threshold: float
    encode: Callable[..., Any]
    decode: Callable[..., Any]
    add: Callable[..., Any]
    measure: Callable[..., Any]
    own: Any

    def answers(
        self, arrays: Arrays, batch: Batch, mirrored: Mapping[str, Sequence[bool]], *, has_counts: bool = False
    ) -> Iterator[tuple[str, Values]]:
        """What the model answers under each condition of `batch["variants"]`, the mean of its variants.

        One condition after another, so that those which are done with need not stay in memory. A batch without
        variants is asked for its own sentences, under the name of OWN.

        Args:
            arrays: of the model.
            batch: on the mesh.
            mirrored: which variants of a condition are about the mirrored image.
            has_counts: whether to tell `counts` of variants: what `probability_counts` says.
        """
        if "variants" not in batch:
            yield OWN, self.own(arrays, batch)
            return
        flips = sorted({flip for several in mirrored.values() for flip in several})
        features = {flip: self.encode(arrays, batch["image"], flip) for flip in flips}
        truth = {name: batch[name] for name in ("mask", INDEX, VALID)}
        for name, variants in batch["variants"].items():
            parts = (
                self.decode(arrays, features[flip], variant, batch.get("class_index"), flip)
                for variant, flip in zip(variants, mirrored[name], strict=True)
            )
            probability = functools.reduce(self.add, parts)
            yield name, {PROBABILITY: probability, **self.measure(probability, truth, has_counts)}

    def lower(self, arrays: Arrays, batch: Batch) -> Any:
        """The program for batches without variants, as jax lowers it for arrays, or shapes, like these."""
        return self.own.lower(arrays, batch)

    def compile(self, arrays: Arrays, batch: Batch) -> "BatchSegmenter":
        """For batches without variants: takes arrays and batches like these, or like these shapes, and never compiles.

        Args:
            arrays: of the model.
            batch: on the mesh (`abstract_batch`).
        """
        return dataclasses.replace(self, own=self.lower(arrays, batch).compile())


@functools.lru_cache(maxsize=8)
def make_batch_segmenter(config: NetworkConfig, mesh: Mesh, loss: Loss | None = None) -> BatchSegmenter:
    """The segmenter of a network, the same object for the same network; nothing is compiled yet.

    Args:
        config: of the network.
        mesh: the devices.
        loss: of batches without variants `loss` and its `weight` are told as well.
    """
    graphdef = nnx.graphdef(abstract_model(config))
    by_rows, everywhere = batch_sharding(mesh), replicated(mesh)

    def encode(arrays: Arrays, image: UInt8[Array, "b h w 3"], is_mirrored: bool) -> Any:
        image = image[:, :, ::-1] if is_mirrored else image
        return run_encoder(merge_model(graphdef, arrays), "image", image)

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
        values |= {name: batch[name] for name in (INDEX, VALID)} | {FINITE: jnp.isfinite(probability).all((1, 2, 3))}
        return values | ({COUNTS: probability_counts(probability, target)} if has_counts else {})

    def own(arrays: Arrays, batch: Batch) -> Values:
        logits = forward(merge_model(graphdef, arrays), batch)
        probability, target = jax.nn.sigmoid(logits), batch["mask"].astype(jnp.float32)
        values = measure(probability, batch, has_counts=False) | {PROBABILITY: probability}
        return values | ({} if loss is None else {"loss": loss(logits, target), "weight": loss.weights(target)})

    names = (*OVERLAP, INDEX, VALID, FINITE, *(() if loss is None else ("loss", "weight")))
    return BatchSegmenter(
        config.threshold,
        jax.jit(with_mesh(mesh, encode), static_argnums=2, out_shardings=by_rows),
        jax.jit(with_mesh(mesh, decode), static_argnums=4, out_shardings=by_rows),
        jax.jit(jnp.add, out_shardings=by_rows),
        jax.jit(measure, static_argnums=2, out_shardings=everywhere),
        jax.jit(with_mesh(mesh, own), out_shardings={**dict.fromkeys(names, everywhere), PROBABILITY: by_rows}),
    )


def abstract_batch(config: NetworkConfig, rows: int, mesh: Mesh, outputs: Batch | None = None) -> Batch:
    """Shapes and shardings of a batch of so many rows; `outputs` of frozen encoders stand for what they are made of."""
    size = config.image_size
    shapes: Batch = {
        "image": ((size, size, 3), jnp.uint8),
        "mask": ((size, size, 1), jnp.uint8),
        "index": ((), jnp.int32),
        "valid": ((), jnp.bool_),
    }
    if config.text is not None:
        shapes |= dict.fromkeys(("input_ids", "attention_mask"), ((config.text.context_length,), jnp.int32))
    if config.classes:
        shapes["class_index"] = ((), jnp.int32)
    for kind in outputs or {}:
        for name in REPLACED[f"{kind}_features"]:
            del shapes[name]

    def leaf(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=batch_sharding(mesh))

    batch = {name: leaf(*shape) for name, shape in shapes.items()}
    features = {f"{kind}_features": tree for kind, tree in (outputs or {}).items()}
    return batch | jax.tree.map(lambda x: leaf(x.shape[1:], x.dtype), features)
