"""Dice, IoU and the losses against the original's, and the cases that its paper defines."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvlsm_jax.evaluation.metrics import dice_and_iou, overlap
from medvlsm_jax.training.losses import binary_cross_entropy, dice_bce, soft_dice


@pytest.fixture
def original(parity) -> dict[str, np.ndarray]:
    return dict(np.load(parity / "loss_and_metrics.npz"))


@pytest.fixture
def batch(original):
    """Logits and masks (7, 24, 24, 1)."""
    return tuple(jnp.asarray(original[name].transpose(0, 2, 3, 1), jnp.float32) for name in ("logits", "mask"))


def scores(predicted, target) -> tuple[float, float]:
    """Dice and IoU of one image of 0s and 1s."""
    logits, mask = (jnp.asarray(x, jnp.float32).reshape(1, 1, -1, 1) for x in (predicted, target))
    values = dice_and_iou(20 * logits - 10, mask, 0.5)
    return float(values["dice"][0]), float(values["iou"][0])


@pytest.mark.parametrize(
    ("metric", "threshold", "key"),
    [("dice", 0.5, "dice_threshold_0_5"), ("iou", 0.5, "iou_threshold_0_5"), ("dice", 0.35, "dice_threshold_0_35")],
)
def test_metrics_are_the_originals(original, batch, metric, threshold, key):
    np.testing.assert_allclose(dice_and_iou(*batch, threshold)[metric], original[key][:, 0], atol=1e-6)


def test_losses_are_the_originals(original, batch):
    np.testing.assert_allclose(soft_dice(*batch).mean(), original["dice_loss"], rtol=1e-6)
    np.testing.assert_allclose(binary_cross_entropy(*batch).mean(), original["bce_with_logits"], rtol=1e-5)
    np.testing.assert_allclose(dice_bce(*batch).mean(), original["dice_loss_plus_0_2_bce"], rtol=1e-5)


def test_soft_dice_of_the_images_with_a_mask_is_the_cnns_loss(original, batch):
    filled = np.asarray(batch[1].sum((1, 2, 3)) > 0)
    assert np.flatnonzero(filled).tolist() == [0, 1, 2, 3, 5]
    expected = original["tuned_dice_of_images_0_1_2_3_5"]
    np.testing.assert_allclose(soft_dice(*batch)[filled].mean(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("predicted", "target", "dice", "iou"),
    [
        ([1, 1, 0, 0], [0, 1, 1, 0], 1 / 2, 1 / 3),
        ([1, 1, 1, 1], [1, 0, 0, 0], 2 / 5, 1 / 4),
        ([1, 0, 0, 0], [1, 0, 0, 0], 1, 1),
        ([1, 0], [0, 1], 0, 0),
        ([0, 0], [0, 0], 1, 1),  # both empty
        ([0, 1], [0, 0], 0, 0),  # only the truth is empty
        ([0, 0], [0, 1], 0, 0),  # only the prediction is empty
    ],
)
def test_scores_as_worked_by_hand(predicted, target, dice, iou):
    assert scores(predicted, target) == pytest.approx((dice, iou))


def test_a_probability_at_the_threshold_is_not_predicted():
    logits, target = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))
    assert dice_and_iou(logits, target, 0.5)["dice"][0] == 0
    assert dice_and_iou(logits, target, 0.49)["dice"][0] == 1


def test_images_do_not_influence_each_other(batch):
    together = dice_and_iou(*batch, 0.5)
    for i in range(7):
        alone = dice_and_iou(*(x[i : i + 1] for x in batch), 0.5)
        assert {name: float(x[0]) for name, x in alone.items()} == {name: float(x[i]) for name, x in together.items()}


def test_counts_are_exact_beyond_what_half_precision_holds():
    ones = jnp.ones((1, 352, 352, 1))
    assert [float(x[0]) for x in overlap(ones, ones)] == [352.0**2] * 3
