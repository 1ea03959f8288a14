"""Losses on logits, one value an image, so that batches average and evaluations mask exactly."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.metrics import overlap

SMOOTHING = 1e-5  # MONAI's DiceLoss: smooth_nr = smooth_dr = 1e-5
BCE_WEIGHT = 0.2  # the original's lambda_ce


@dataclasses.dataclass(frozen=True)
class Loss:
    """One value an image, and which images a batch averages it over.

    Attributes:
        per_image: from logits and target, both (B, H, W, C).
        skips_empty: leave out the images whose target is empty.
    """

    per_image: Callable[[Array, Array], Array]
    skips_empty: bool = False

    def __call__(self, logits: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        return self.per_image(logits, target)

    def weights(self, target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """1 for an image that counts, else 0."""
        counts = target.any((1, 2, 3)) if self.skips_empty else jnp.ones(target.shape[0], bool)
        return counts.astype(jnp.float32)


def soft_dice(logits: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """1 - soft Dice of the probabilities of each image: the objective of the published tables."""
    intersection, predicted, truth = overlap(jax.nn.sigmoid(logits), target)
    return 1 - (2 * intersection + SMOOTHING) / (predicted + truth + SMOOTHING)


def binary_cross_entropy(logits: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean binary cross-entropy over the pixels of each image."""
    return optax.sigmoid_binary_cross_entropy(logits, target).mean((1, 2, 3))


def dice_bce(logits: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Soft Dice + 0.2 x binary cross-entropy: what the original's DiceCELoss was meant to be."""
    return soft_dice(logits, target) + BCE_WEIGHT * binary_cross_entropy(logits, target)


LOSSES: dict[str, Loss] = {
    "dice": Loss(soft_dice),
    "dice_bce": Loss(dice_bce),
    "dice_nonempty": Loss(soft_dice, skips_empty=True),  # of the image-only networks in the published tables
}


def find_loss(name: str) -> Loss:
    """The loss of that name in LOSSES; raises UserError for another one."""
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r} in config.loss: choose one of {', '.join(LOSSES)}")
    return LOSSES[name]
