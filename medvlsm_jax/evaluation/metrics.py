"""Overlap of each image, on device; means are taken later, over exactly the images of a set."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

OVERLAP = ("dice", "iou", "precision", "recall")
ORIGINAL = (*(f"{name}_original" for name in OVERLAP), "hd95", "nsd")  # found on the host, by original.py
BINS = 100  # of probabilities, between thresholds of whole percents
# Numbers of numpy's: XLA would multiply by the reciprocal of 100, and miss some thresholds by a bit.
UPPER_EDGES = (np.arange(1, BINS + 1) / BINS).astype(np.float32)
LOWER_EDGES = np.append(np.float32(-1), UPPER_EDGES[:-1])
PIXELS_AT_ONCE = 4096  # of each image, BINS numbers a pixel


def overlap(
    prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """Sums of the product, of the prediction and of the target over each image, in pixels."""
    axes = (1, 2, 3)
    return (prediction * target).sum(axes), prediction.sum(axes), target.sum(axes)


def count_pixels(
    predicted: Bool[Array, "b h w c"], target: Bool[Array, "b h w c"]
) -> tuple[Int[Array, " b"], Int[Array, " b"], Int[Array, " b"]]:
    """Pixels of both masks, of the prediction and of the target in each image, found in one pass.

    Three sums would be three passes, which take XLA on CPUs four times as long.
    """
    masks = [mask.astype(jnp.int32) for mask in (predicted & target, predicted, target)]
    zeros = [jnp.zeros((), jnp.int32)] * 3
    return tuple(jax.lax.reduce(masks, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], (1, 2, 3)))


def overlap_metrics(
    probability: Float[Array, "b h w c"], target: Float[Array, "b h w c"], threshold: float
) -> dict[str, Float[Array, " b"]]:
    """The metrics called OVERLAP of each image at model resolution, 0 to 1.

    A pixel is predicted where its probability exceeds `threshold`. Dice and IoU are the paper's: truth and prediction
    both empty count 1, only one of them empty counts 0 (MONAI's DiceMetric and MeanIoU with ignore_empty=False, as in
    the original). Precision and recall, which the paper does not give, follow the same rule, so that every image
    counts in every mean.

    Args:
        probability: of the foreground.
        target: 0 or 1.
        threshold: a probability.
    """
    intersection, predicted_pixels, target_pixels = count_pixels(probability > threshold, target != 0)
    total = predicted_pixels + target_pixels

    def share(part: Array, whole: Array) -> Array:
        return jnp.where(total == 0, 1.0, part / jnp.maximum(whole, 1))

    return {
        "dice": share(2 * intersection, total),
        "iou": share(intersection, total - intersection),
        "precision": share(intersection, predicted_pixels),
        "recall": share(intersection, target_pixels),
    }


def probability_counts(
    probability: Float[Array, "b h w c"], target: Float[Array, "b h w c"]
) -> Float[Array, "b 3 bins"]:
    """What a threshold sweep and a calibration need of each image, by bins of its probabilities.

    Bin k holds the pixels with k / 100 < p <= (k + 1) / 100, and bin 0 those with p = 0 too: what exceeds the threshold
    k / 100 are the bins from k on.

    A pixel's bin is a row of 0s and a 1, and a matrix product sums the rows: to add to a bin that is looked up
    (`bincount`) is a scatter, which TPUs do one pixel after another.

    Returns:
        Pixels of the background, pixels of the foreground, and the sum of the probabilities, in each bin.
    """
    flat, truth = (x.reshape(len(x), -1) for x in (probability.astype(jnp.float32), target.astype(jnp.float32)))
    weights = jnp.stack([1 - truth, truth, flat], axis=1)
    pixels = flat.shape[1]
    size = min(PIXELS_AT_ONCE, pixels)
    padding = [(0, 0), (0, 0), (0, -pixels % size)]  # pixels that weigh nothing
    parts = jnp.moveaxis(jnp.pad(weights, padding).reshape(len(flat), 3, -1, size), 2, 0)

    def add(total: Array, part: Array) -> tuple[Array, None]:
        value = part[:, 2, :, None]
        is_inside = (value > LOWER_EDGES) & (value <= UPPER_EDGES)
        # In full precision, which is exact for counts; TPUs would round the probabilities to bfloat16.
        found = jnp.einsum("bwp,bpk->bwk", part, is_inside.astype(jnp.float32), precision="highest")
        return total + found, None

    total, _ = jax.lax.scan(add, jnp.zeros((len(flat), 3, BINS), jnp.float32), parts)
    return total
