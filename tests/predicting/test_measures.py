"""Areas, boxes and components in pixels and millimetres."""

import numpy as np
import pytest

from medvlsm_jax.predicting.measures import measure, total


def two_objects() -> tuple[np.ndarray, np.ndarray]:
    """A rectangle of 3 x 4 and a diagonal of two pixels, with the probabilities 0.75 and 0.5."""
    mask, probability = np.zeros((20, 30), bool), np.full((20, 30), 0.25, np.float32)
    mask[2:5, 10:14] = True
    mask[15, 3] = mask[16, 4] = True
    probability[mask] = 0.5
    probability[2:5, 10:14] = 0.75
    return mask, probability


def test_each_component_has_its_area_its_box_and_its_mean_probability():
    found = measure(*two_objects(), spacing=(0.5, 2.0))
    assert found["area_px"] == 14
    assert found["area_mm2"] == 14.0
    assert found["mean_probability"] == pytest.approx((12 * 0.75 + 2 * 0.5) / 14, abs=1e-6)
    assert found["bounding_box"] == [3, 2, 14, 17]
    assert found["num_components"] == 2
    first, second = found["components"]
    assert first == {"area_px": 12, "area_mm2": 12.0, "mean_probability": 0.75, "bounding_box": [10, 2, 14, 5]}
    assert second == {"area_px": 2, "area_mm2": 2.0, "mean_probability": 0.5, "bounding_box": [3, 15, 5, 17]}


def test_without_spacing_there_are_no_millimetres():
    assert measure(*two_objects(), spacing=None)["area_mm2"] is None


def test_an_empty_mask_has_no_box_and_no_probability():
    found = measure(np.zeros((4, 5), bool), np.ones((4, 5), np.float32), spacing=None)
    assert found == {
        "area_px": 0,
        "area_mm2": None,
        "mean_probability": None,
        "bounding_box": None,
        "num_components": 0,
        "components": [],
    }


def test_of_several_slices_areas_add_up_to_a_volume():
    one = measure(*two_objects(), spacing=(0.5, 2.0))
    assert total({0: one, 7: one}, distance=3.0) == {
        "area_px": 28,
        "area_mm2": 28.0,
        "volume_mm3": 84.0,
        "mean_probability": pytest.approx(one["mean_probability"], abs=1e-6),
    }
    assert total({}, distance=3.0)["mean_probability"] is None
    assert total({0: one}, distance=None)["volume_mm3"] is None
