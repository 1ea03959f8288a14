"""Thresholds and calibration from counted pixels, against the definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from case_lines import make_case

from medvlsm_jax.evaluation.curves import calibration, summarise_curves, threshold_sweep
from medvlsm_jax.evaluation.metrics import overlap_metrics, probability_counts

RNG = np.random.default_rng(0)


def maps(count: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Probabilities that are at thresholds too, and masks, some of them empty."""
    probability = np.where(
        RNG.random((count, 16, 16, 1)) < 0.3,
        RNG.integers(0, 101, (count, 16, 16, 1)) / 100,
        RNG.random((count, 16, 16, 1)),
    )
    mask = RNG.random((count, 16, 16, 1)) < 0.4
    mask[0], probability[0] = 0, 0
    return jnp.asarray(probability, jnp.float32), jnp.asarray(mask, jnp.float32)


def test_a_sweep_is_the_metrics_at_every_threshold():
    probability, mask = maps(6)
    sweep = threshold_sweep(np.asarray(probability_counts(probability, mask), np.float64))
    for i in range(99):
        expected = overlap_metrics(probability, mask, (i + 1) / 100)
        np.testing.assert_allclose(sweep[:, 0, i], expected["dice"], atol=1e-6)
        np.testing.assert_allclose(sweep[:, 1, i], expected["iou"], atol=1e-6)


def test_counts_are_all_pixels():
    probability, mask = maps(4)
    counts = np.asarray(probability_counts(probability, mask))
    np.testing.assert_array_equal(counts[:, :2].sum((1, 2)), 256)
    np.testing.assert_array_equal(counts[:, 1].sum(1), mask.sum((1, 2, 3)))
    np.testing.assert_allclose(counts[:, 2].sum(1), probability.sum((1, 2, 3)), rtol=1e-5)


def test_probabilities_that_are_frequencies_are_calibrated():
    probability = RNG.random((1, 512, 512, 1))
    truths = {"calibrated": RNG.random(probability.shape) < probability, "overconfident": probability > 0.5}
    found = {}
    for name, truth in truths.items():
        counts = probability_counts(jnp.asarray(probability, jnp.float32), jnp.asarray(truth, jnp.float32))
        found[name] = calibration(np.asarray(counts[0], np.float64))
    assert found["calibrated"]["ece"] < 0.01
    assert found["overconfident"]["ece"] == pytest.approx(0.25, abs=0.01)  # the mean of |p - (p > 0.5)|
    reliability = found["calibrated"]["reliability"]
    np.testing.assert_allclose(reliability["confidence"], np.arange(20) / 20 + 0.025, atol=0.002)
    np.testing.assert_allclose(reliability["frequency"], reliability["confidence"], atol=0.03)


def test_curves_are_means_over_the_images_of_a_condition(cases, tmp_path):
    probability, mask = maps(5)
    counts = np.asarray(probability_counts(probability, mask), np.float32)
    counts.tofile(tmp_path / "counts")
    found = cases([make_case("isic", "p6" if i < 3 else "p0", mask=f"{i}.png") for i in range(5)])
    curves = summarise_curves(found, tmp_path / "counts")["isic"]
    sweep = threshold_sweep(counts.astype(np.float64))
    np.testing.assert_allclose(curves["p6"]["dice"], sweep[:3, 0].mean(0), atol=1e-9)
    np.testing.assert_allclose(curves["p0"]["iou"], sweep[3:, 1].mean(0), atol=1e-9)
    best = int(np.argmax(curves["p6"]["dice"]))
    assert curves["p6"]["best_threshold"] == curves["p6"]["thresholds"][best]
    empty_bins = [i for i, count in enumerate(curves["p0"]["reliability"]["pixels"]) if not count]
    assert all(curves["p0"]["reliability"]["confidence"][i] is None for i in empty_bins)
