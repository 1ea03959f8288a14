"""Dice, IoU and the losses against the original's, the cases that its paper defines, counts of probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlsm_jax.evaluation.metrics import (
    BINS,
    OVERLAP,
    PIXELS_AT_ONCE,
    overlap,
    overlap_metrics,
    probability_counts,
)
from medvlsm_jax.losses import binary_cross_entropy, dice_bce, soft_dice


@pytest.fixture
def original(parity) -> dict[str, np.ndarray]:
    return dict(np.load(parity / "loss_and_metrics.npz"))


@pytest.fixture
def batch(original):
    """Logits and masks (7, 24, 24, 1)."""
    return tuple(jnp.asarray(original[name].transpose(0, 2, 3, 1), jnp.float32) for name in ("logits", "mask"))


def scores(predicted, target) -> list[float]:
    """OVERLAP of one image of 0s and 1s."""
    probability, mask = (jnp.asarray(x, jnp.float32).reshape(1, 1, -1, 1) for x in (predicted, target))
    values = overlap_metrics(probability, mask, 0.5)
    return [float(values[name][0]) for name in OVERLAP]


@pytest.mark.parametrize(
    ("metric", "threshold", "key"),
    [("dice", 0.5, "dice_threshold_0_5"), ("iou", 0.5, "iou_threshold_0_5"), ("dice", 0.35, "dice_threshold_0_35")],
)
def test_metrics_are_the_originals(original, batch, metric, threshold, key):
    logits, mask = batch
    values = overlap_metrics(jax.nn.sigmoid(logits), mask, threshold)
    np.testing.assert_allclose(values[metric], original[key][:, 0], atol=1e-6)


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
    ("predicted", "target", "expected"),  # Dice, IoU, precision, recall
    [
        ([1, 1, 0, 0], [0, 1, 1, 0], (1 / 2, 1 / 3, 1 / 2, 1 / 2)),
        ([1, 1, 1, 1], [1, 0, 0, 0], (2 / 5, 1 / 4, 1 / 4, 1)),
        ([1, 0, 0, 0], [1, 1, 1, 1], (2 / 5, 1 / 4, 1, 1 / 4)),
        ([1, 0, 0, 0], [1, 0, 0, 0], (1, 1, 1, 1)),
        ([1, 0], [0, 1], (0, 0, 0, 0)),
        ([0, 0], [0, 0], (1, 1, 1, 1)),  # both empty
        ([0, 1], [0, 0], (0, 0, 0, 0)),  # only the truth is empty
        ([0, 0], [0, 1], (0, 0, 0, 0)),  # only the prediction is empty
    ],
)
def test_scores_as_worked_by_hand(predicted, target, expected):
    assert scores(predicted, target) == pytest.approx(expected)


def test_a_probability_at_the_threshold_is_not_predicted():
    half, target = jnp.full((1, 1, 1, 1), 0.5), jnp.ones((1, 1, 1, 1))
    assert overlap_metrics(half, target, 0.5)["dice"][0] == 0
    assert overlap_metrics(half, target, 0.49)["dice"][0] == 1


def test_images_do_not_influence_each_other(batch):
    together = overlap_metrics(*batch, 0.5)
    for i in range(7):
        alone = overlap_metrics(*(x[i : i + 1] for x in batch), 0.5)
        assert {name: float(x[0]) for name, x in alone.items()} == {name: float(x[i]) for name, x in together.items()}


def test_counts_are_exact_beyond_what_half_precision_holds():
    ones = jnp.ones((1, 352, 352, 1))
    assert [float(x[0]) for x in overlap(ones, ones)] == [352.0**2] * 3
    assert overlap_metrics(ones, ones.at[0, 0, 0].set(0), 0.5)["precision"][0] == np.float32(1 - 1 / 352**2)


@pytest.fixture
def probability() -> np.ndarray:
    """Three images (3, 50, 90, 1): any probability; every threshold itself; nothing but 0, 1 and their neighbours."""
    rng, shape = np.random.default_rng(0), (50, 90, 1)
    ends = [0, 1, np.nextafter(np.float32(0), 1), np.nextafter(np.float32(1), 0)]
    parts = rng.random(shape), rng.integers(0, BINS + 1, shape) / BINS, rng.choice(ends, shape)
    assert np.prod(shape) % PIXELS_AT_ONCE  # the last part is filled up
    return np.stack(parts).astype(np.float32)


def test_counts_are_those_of_numpys_histogram(probability):
    target = np.random.default_rng(1).random(probability.shape) < 0.3
    counts = np.asarray(jax.jit(probability_counts)(jnp.asarray(probability), jnp.asarray(target, jnp.float32)))
    assert counts.shape == (3, 3, BINS)
    thresholds = np.float32(np.arange(1, BINS) / BINS)
    for image, truth, found in zip(probability, target, counts, strict=True):
        bins = np.searchsorted(thresholds, image)
        for row, mask in ((0, ~truth), (1, truth)):
            np.testing.assert_array_equal(found[row], np.bincount(bins[mask], minlength=BINS))
        sums = np.bincount(bins.ravel(), image.ravel().astype(np.float64), minlength=BINS)
        np.testing.assert_allclose(found[2], sums, rtol=1e-5, atol=1e-30)


def test_what_exceeds_any_threshold_is_counted(probability):
    target = np.random.default_rng(1).random(probability.shape) < 0.3
    counts = np.asarray(jax.jit(probability_counts)(jnp.asarray(probability), jnp.asarray(target, jnp.float32)))
    for k in range(BINS):
        predicted = probability > np.float32(k / BINS)
        if k == 0:
            predicted[:] = True  # a probability of 0 lies in the first bin as well
        for row, truth in ((0, ~target), (1, target)):
            expected = (predicted & truth).sum((1, 2, 3))
            np.testing.assert_array_equal(counts[:, row, k:].sum(-1), expected, err_msg=f"threshold {k} %")


def test_counting_looks_no_bin_up_and_needs_little_memory():
    # A TPU scatters one pixel after another. At 352 x 352, a batch of 8 and 100 bins at once would be 400 MB.
    images = jax.ShapeDtypeStruct((8, 352, 352, 1), jnp.float32)
    lowered = jax.jit(probability_counts).lower(images, images)
    compiled = lowered.compile()
    for program in (lowered.as_text(), compiled.as_text()):
        assert "scatter" not in program
        assert "dot" in program
    assert compiled.memory_analysis().temp_size_in_bytes < 64e6
