"""Mask files of any kind: read by the card's rule, or refused where a part of them would be lost."""

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import MASKS, read_card
from medvlsm_jax.data.preparing.importers.masks import read_binary
from medvlsm_jax.errors import UserError

OBJECT = np.zeros((12, 16), bool)
OBJECT[3:9, 4:12] = True
HALF = OBJECT & (np.arange(16) < 8)  # of it
BYTES = np.uint8(255)


@pytest.fixture
def save(tmp_path):
    def write(values: np.ndarray, name: str = "mask.png"):
        Image.fromarray(values).save(tmp_path / name)
        return tmp_path / name

    return write


def rgba(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([colour * BYTES] * 3 + [alpha * BYTES])


@pytest.mark.parametrize(
    "values",
    [
        OBJECT * BYTES,
        OBJECT.astype(np.uint8),
        OBJECT,
        OBJECT.astype(np.uint16) * 65535,
        OBJECT.astype(np.uint16),
        np.dstack([OBJECT * BYTES] * 3),
        np.dstack([OBJECT * BYTES, OBJECT * 0, OBJECT * 0]),
        rgba(OBJECT, OBJECT),
        rgba(OBJECT, OBJECT | True),
    ],
    ids=["255", "1", "bool", "65535", "16-bit 1", "rgb", "red", "rgba", "opaque"],
)
def test_a_mask_is_what_is_bright_in_it(save, values):
    np.testing.assert_array_equal(
        read_binary(save(values.astype(values.dtype if values.ndim < 3 else np.uint8))), OBJECT
    )


def test_edges_of_a_resized_mask_are_divided_in_the_middle(save):
    grey = Image.fromarray(OBJECT * BYTES).resize((160, 120), Image.Resampling.BILINEAR)
    found = read_binary(save(np.asarray(grey)))
    np.testing.assert_array_equal(found, np.asarray(grey) > 127)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (OBJECT * np.uint8(1) + HALF * np.uint8(2), r"holds 0, 1, 3, but none above 127: .* labels = {1 = \"CLASS\"}"),
        (OBJECT * np.uint8(2), 'holds 0, 2, but none above 127: .*mask = "nonzero" where all are the object'),
        (OBJECT * np.uint8(29), "holds 0, 29, but none above 127"),
        (OBJECT.astype(np.uint16) + HALF, r"holds 0, 1, 2, of more than 8 bits: .* labels"),
        (
            np.dstack([HALF * BYTES, (OBJECT & ~HALF) * BYTES, OBJECT * np.uint8(0)]),
            "in several colours, #00ff00, #ff0000",
        ),
        (rgba(OBJECT & False, OBJECT), 'has its object in its alpha channel, .* write mask = "alpha" in the card'),
        (rgba(OBJECT | True, OBJECT), 'has its object in its alpha channel, .* write mask = "alpha" in the card'),
        (rgba(HALF, OBJECT), "shows one object in its alpha channel and another in its colours"),
    ],
    ids=["labels", "2", "29", "16-bit labels", "colours", "alpha on black", "alpha on white", "two objects"],
)
def test_a_mask_that_would_lose_its_object_names_the_cards_field(save, values, message):
    with pytest.raises(UserError, match=message) as error:
        read_binary(save(values))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("value", "is_refused"), [(3, False), (100, True)])
def test_noise_of_jpeg_is_no_object_but_a_grey_object_is_one(save, value, is_refused):
    path = save(OBJECT * np.uint8(value), "mask.jpg")
    if is_refused:
        with pytest.raises(UserError, match="but none above 127"):
            read_binary(path)
    else:
        assert not read_binary(path).any()


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        ("nonzero", OBJECT * np.uint8(2) + HALF, OBJECT),
        ("nonzero", np.dstack([HALF * np.uint8(9), OBJECT * np.uint8(7), OBJECT * np.uint8(0)]), OBJECT),
        ("alpha", rgba(OBJECT & False, OBJECT), OBJECT),
        ("inverted", ~OBJECT * BYTES, OBJECT),
        ("inverted", (~OBJECT).astype(np.uint8), OBJECT),
        ("bright", rgba(HALF, OBJECT), HALF),
        ("bright", OBJECT * np.uint8(200) - HALF * np.uint8(150), OBJECT & ~HALF),
    ],
)
def test_the_rule_of_a_card_holds(save, rule, values, expected):
    np.testing.assert_array_equal(read_binary(save(values), rule), expected)


def test_a_rule_for_an_alpha_channel_needs_one(save):
    with pytest.raises(UserError, match="has no alpha channel, but the card says"):
        read_binary(save(OBJECT * BYTES), "alpha")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('mask = "dark"', f"mask must be one of {', '.join(MASKS)}, not 'dark'"),
        ('labels = {liver = "1"}', "labels must be a table of values or colours with classes"),
        ('labels = {1 = "liver"}\ntargets = ["spleen"]', "labels has 'liver', which is none of its targets"),
    ],
)
def test_a_card_that_says_something_else_is_named(tmp_path, line, message):
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{line}\n')
    with pytest.raises(UserError) as error:
        read_card(tmp_path / "mine.toml")
    assert message in str(error.value)
