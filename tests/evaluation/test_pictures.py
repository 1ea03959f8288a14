"""Masks, probabilities and overlays at the image's own size."""

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.evaluation.pictures import (
    PREDICTION,
    TRUTH,
    file_name,
    outline,
    overlay,
    resize_probability,
    write_prediction,
)


def square(size: int, start: int, stop: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start:stop, start:stop] = True
    return mask


def test_a_probability_has_the_size_that_is_asked_for():
    resized = resize_probability(np.full((8, 8), 0.3, np.float32), (30, 20))
    assert resized.shape == (20, 30)
    np.testing.assert_allclose(resized, 0.3, rtol=1e-6)


def test_a_resized_probability_stays_one():
    resized = resize_probability(np.eye(8, dtype=np.float32), (50, 50))
    assert (resized.min(), resized.max()) >= (0, 0.5)
    assert resized.max() <= 1


@pytest.mark.parametrize("width", [1, 2])
def test_an_outline_is_the_rim_of_a_mask(width):
    mask = square(12, 2, 10)
    np.testing.assert_array_equal(outline(mask, width), mask & ~square(12, 2 + width, 10 - width))


def test_a_mask_that_leaves_the_image_has_no_outline_there():
    assert not outline(np.ones((6, 6), bool), 2).any()
    rim = outline(square(8, 0, 4), 1)
    assert rim.sum() == 7
    assert rim[3, :4].all()
    assert rim[:4, 3].all()


def test_an_overlay_tints_the_prediction_and_draws_both_outlines():
    image = np.full((20, 20, 3), 100, np.uint8)
    picture = overlay(image, square(20, 2, 10), square(20, 8, 18))
    assert (picture.shape, picture.dtype) == ((20, 20, 3), np.uint8)
    assert tuple(picture[2, 5]) == PREDICTION
    assert tuple(picture[17, 12]) == TRUTH
    assert tuple(picture[8, 8]) == TRUTH  # the truth lies above
    np.testing.assert_array_equal(picture[5, 5], np.rint(65 + 0.35 * np.array(PREDICTION)))
    np.testing.assert_array_equal(picture[14, 14], image[14, 14])
    assert (image == 100).all()


def test_without_truth_nothing_is_yellow():
    picture = overlay(np.zeros((20, 20, 3), np.uint8), square(20, 2, 10))
    assert not (picture == TRUTH).all(-1).any()
    assert (picture == PREDICTION).all(-1).sum() == outline(square(20, 2, 10), 1).sum()


def test_outlines_grow_with_the_image():
    image = np.zeros((800, 800, 3), np.uint8)
    assert tuple(overlay(image, square(800, 100, 700))[103, 400]) == PREDICTION


def test_three_pictures_have_the_images_size(tmp_path):
    image = Image.fromarray(np.full((30, 50, 3), 90, np.uint8))
    write_prediction(tmp_path / "new", "case", image, np.full((16, 16), 0.6, np.float32), 0.5, square(50, 5, 20)[:30])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "case_mask.png",
        "case_overlay.png",
        "case_probability.png",
    ]
    mask, probability, picture = (
        Image.open(tmp_path / "new" / f"case_{kind}.png") for kind in ("mask", "probability", "overlay")
    )
    assert {mask.size, probability.size, picture.size} == {(50, 30)}
    assert (mask.mode, probability.mode, picture.mode) == ("L", "L", "RGB")
    assert set(np.unique(mask)) == {255}
    assert set(np.unique(probability)) == {153}
    assert (np.asarray(picture) == TRUTH).all(-1).any()


def test_probabilities_are_resized_before_they_are_thresholded(tmp_path):
    """A threshold first would give blocks of 8 pixels and another border."""
    probability = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    write_prediction(tmp_path, "case", image, probability, 0.2)
    mask = np.asarray(Image.open(tmp_path / "case_mask.png")) > 0
    assert mask[0].tolist() == (resize_probability(probability, (16, 16))[0] > 0.2).tolist()
    assert 8 < mask[0].sum() < 16


def test_the_threshold_is_exclusive(tmp_path):
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    write_prediction(tmp_path, "case", image, np.full((4, 4), 0.5, np.float32), 0.5)
    assert not np.asarray(Image.open(tmp_path / "case_mask.png")).any()


def test_conditions_have_folders_of_their_own():
    sentence = "text:" + "a very long sentence about a polyp " * 5
    names = {file_name(prompt) for prompt in (sentence, f"{sentence}/none", f"{sentence}/shuffled", "p6", "p6/none")}
    assert len(names) == 5
    assert all(len(name) <= 80 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
    assert file_name("p6/wrong_class") == "p6-wrong_class"
