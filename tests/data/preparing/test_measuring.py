"""What is measured of an object, and which of it makes sense for its dataset."""

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.measuring import GREY, Measured, measure_object, told_words


def measured(is_grey: bool) -> Measured:
    image, mask = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), bool)
    image[:, 30:, 0] += 0 if is_grey else 60
    mask[10:20, 5:15] = True
    return measure_object(image, mask)


def test_an_object_has_words_and_a_box():
    found = measured(is_grey=False)
    assert found.box == (5, 10, 15, 20)
    assert set(found.words) == {"number", "size", "location", "shape", "color"}
    assert measured(is_grey=True).words[GREY]


@pytest.mark.parametrize(
    ("modality", "is_grey", "has_color"),
    [("unknown", True, False), ("unknown", False, True), ("endoscopy", True, True), ("breast ultrasound", True, True)],
)
def test_grey_images_have_no_color_where_their_sentences_would_tell_it(modality, is_grey, has_color):
    words = told_words(measured(is_grey).words, Card("mine", modality=modality))
    assert ("color" in words) is has_color  # the sentences of an ultrasound tell none
    assert GREY not in words
    assert "color" in told_words(measured(is_grey).words, Card("mine", modality=modality), is_published=True)


def test_what_jpeg_makes_of_a_grey_image_is_no_colour(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 60), np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "a.jpg", quality=60)
    mask = np.zeros((40, 60), bool)
    mask[10:20, 5:15] = True
    assert GREY in measure_object(np.asarray(Image.open(tmp_path / "a.jpg")), mask).words
