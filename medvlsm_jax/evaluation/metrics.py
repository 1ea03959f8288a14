"""Dice and IoU of each image, on device; means are taken later, over exactly the images of a set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def overlap(
    prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """Sums of the product, of the prediction and of the target over each image, in pixels."""
    axes = (1, 2, 3)
    return (prediction * target).sum(axes), prediction.sum(axes), target.sum(axes)


def dice_and_iou(
    logits: Float[Array, "b h w c"], target: Float[Array, "b h w c"], threshold: float
) -> dict[str, Float[Array, " b"]]:
    """The paper's metrics of each image at model resolution, 0 to 1.

    A pixel is predicted where its probability exceeds `threshold`. Truth and prediction both empty count 1, only one of
    them empty counts 0 (MONAI's DiceMetric and MeanIoU with ignore_empty=False, as in the original).

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        threshold: a probability.
    """
    predicted = (jax.nn.sigmoid(logits) > threshold).astype(jnp.float32)
    intersection, predicted_pixels, target_pixels = overlap(predicted, target)
    total = predicted_pixels + target_pixels
    union = total - intersection
    empty = total == 0
    return {
        "dice": jnp.where(empty, 1.0, 2 * intersection / jnp.maximum(total, 1)),
        "iou": jnp.where(empty, 1.0, intersection / jnp.maximum(union, 1)),
    }
