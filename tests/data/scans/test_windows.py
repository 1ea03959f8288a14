"""Windows as they are typed, and what they make of values."""

import numpy as np
import pytest

from medvlsm_jax.data.scans.scan import Window
from medvlsm_jax.data.scans.windows import PRESETS, apply_window, parse_window, stretching_window
from medvlsm_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("40:400", (40, 400)),
        ("-600:1500", (-600, 1500)),
        ("0.5:1e-3", (0.5, 0.001)),
        ("lung", PRESETS["lung"]),
        (" Soft-Tissue", PRESETS["soft_tissue"]),
    ],
)
def test_a_window_is_two_numbers_or_a_name(text, window):
    assert parse_window(text) == Window(*window)


@pytest.mark.parametrize("text", ["", "40", "40:0", "40:-1", "nan:400", "40:inf", "40:400:1", "40,400", "lungs"])
def test_any_other_text_is_told_the_names(text):
    with pytest.raises(UserError, match=r"CENTER:WIDTH .* brain, .*, liver") as error:
        parse_window(text)
    assert str(error.value).isprintable()


def test_a_window_is_linear_between_its_ends():
    values = np.array([-1e9, -160, -159, 40, 239, 240, 1e9, np.nan, -np.inf, np.inf])
    shown = apply_window(values, Window(40, 400))
    np.testing.assert_array_equal(shown, [0, 0, 1, 128, 254, 255, 255, 0, 0, 255])


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float32, ">i2"])
def test_of_any_type_of_numbers(dtype):
    values = np.array([0, 50, 100], dtype)
    np.testing.assert_array_equal(apply_window(values, Window(50, 100)), [0, 128, 255])


def ends(window: Window) -> tuple[float, float]:
    return window.center - window.width / 2, window.center + window.width / 2


def test_a_thousandth_of_the_values_does_not_make_the_rest_black():
    values = np.linspace(0, 1, 10_001)
    values[:10] = 1e6
    np.testing.assert_allclose(ends(stretching_window(values)), (0.006, 0.996), atol=1e-3)


def test_nan_and_infinite_values_are_left_out():
    values = np.concatenate([np.linspace(0, 1, 1001), np.full(500, np.nan), [np.inf, -np.inf]])
    np.testing.assert_allclose(ends(stretching_window(values)), (0.005, 0.995))


def test_a_margin_is_left_out():
    inside = np.linspace(0, 100, 1001)
    around = np.concatenate([inside, np.full(300, -3024.0)])
    np.testing.assert_allclose(ends(stretching_window(around)), ends(stretching_window(inside)))


@pytest.mark.parametrize("value", [0, -5, 1e6, np.nan])
def test_what_is_the_same_everywhere_is_black(value):
    values = np.full((3, 4), value)
    assert not apply_window(values, stretching_window(values)).any()


def test_of_two_values_one_is_white():
    values = np.array([0, 0, 0, 1])
    np.testing.assert_array_equal(apply_window(values, stretching_window(values)), [0, 0, 0, 255])
