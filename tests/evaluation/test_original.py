"""Scores at the image's own size are those of the mask that is written there."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.evaluation.metrics import ORIGINAL, OVERLAP, overlap_metrics
from medvlsm_jax.evaluation.original import mask_overlap, score_original
from medvlsm_jax.evaluation.pictures import write_prediction
from medvlsm_jax.evaluation.surface import surface_metrics


@pytest.fixture
def probability() -> np.ndarray:
    return np.random.default_rng(0).random((16, 16), np.float32)


@pytest.fixture
def truth() -> np.ndarray:
    """(height, width): wider than high."""
    return np.asarray(Image.fromarray(np.random.default_rng(1).random((5, 8))).resize((60, 40))) > 0.5


def test_the_mask_that_is_written_is_scored(probability, truth, tmp_path):
    found = score_original(probability, truth, 0.4, tolerance=2.0, spacing=(0.5, 0.25))
    write_prediction(tmp_path, "a", Image.new("RGB", (60, 40)), probability, 0.4)
    written = np.asarray(Image.open(tmp_path / "a_mask.png")) > 0
    assert set(found) == {*ORIGINAL, "one_empty"}
    assert [found[f"{name}_original"] for name in OVERLAP] == list(mask_overlap(written, truth).values())
    surface = surface_metrics(written, truth, tolerance=2.0, spacing=(0.5, 0.25))
    assert {name: found[name] for name in surface} == surface
    assert 0 < found["dice_original"] < 1
    assert 0 < found["nsd"] < 1


def test_a_truth_of_0_and_1_is_a_mask(probability, truth):
    assert score_original(probability, truth.astype(np.uint8), 0.5, tolerance=1.0) == score_original(
        probability, truth, 0.5, tolerance=1.0
    )


@pytest.mark.parametrize(
    ("probability", "truth", "overlap", "hd95", "nsd"),
    [(0, 0, 1, 0, 1), (0, 1, 0, 50, 0), (1, 0, 0, 50, 0), (1, 1, 1, 0, 1)],
)
def test_empty_and_full_masks(probability, truth, overlap, hd95, nsd):
    found = score_original(np.full((8, 8), probability, np.float32), np.full((30, 40), truth > 0), 0.5, tolerance=2.0)
    expected = dict.fromkeys(ORIGINAL, overlap) | {"hd95": hd95, "nsd": nsd, "one_empty": probability != truth}
    assert found == expected


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_the_rule_is_that_of_the_devices(density):
    predicted, true = np.random.default_rng(3).random((2, 32, 5, 6)) < [[[[0.1]]], [[[density]]]]
    expected = overlap_metrics(*(jnp.asarray(x[..., None], jnp.float32) for x in (predicted, true)), 0.5)
    for i in range(32):
        found = mask_overlap(predicted[i], true[i])
        assert found == pytest.approx({name: float(expected[name][i]) for name in OVERLAP}, abs=1e-6)
