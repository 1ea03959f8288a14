"""Losses on logits, one value an image, so that batches average and evaluations mask exactly."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.metrics import overlap

SMOOTHING = 1e-5  # MONAI's DiceLoss: smooth_nr = smooth_dr = 1e-5
BCE_WEIGHT = 0.2  # the original's lambda_ce

Loss = Callable[[Float[Array, "b h w c"], Float[Array, "b h w c"]], Float[Array, " b"]]


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


LOSSES: dict[str, Loss] = {"dice": soft_dice, "dice_bce": dice_bce}


def find_loss(name: str) -> Loss:
    """The loss called `dice` or `dice_bce`; raises UserError for another name."""
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r} in config.loss: choose one of {', '.join(LOSSES)}")
    return LOSSES[name]
