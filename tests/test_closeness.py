"""The closeness that other tests ask for: a share of the largest value, and never of nothing."""

import numpy as np
import pytest
from closeness import assert_close, assert_identical, relative_error

LARGE = np.array([35.0, 1e-6, -2.0])


def test_a_rounding_error_of_large_terms_is_close_wherever_it_lies():
    assert_close(LARGE + 2.1e-6, LARGE, 1e-6)
    with pytest.raises(AssertionError, match=r"logits differ by 1\.0e-04 of the largest value, more than 1\.0e-05"):
        assert_close(LARGE + 35e-4, LARGE, name="logits")


def test_nothing_but_zeros_is_close_to_zeros_unless_the_size_of_their_terms_is_given():
    zeros = np.zeros(2)
    assert_close(zeros, zeros, 0.0)
    assert relative_error(zeros + 1e-9, zeros) == np.inf
    assert_close(zeros + 1e-9, zeros, 1e-8, floor=1.0)


@pytest.mark.parametrize("wrong", [np.array([np.nan, 1e-6, -2.0]), np.array([np.inf, 1e-6, -2.0]), LARGE[:2]])
def test_what_is_no_number_or_of_another_shape_is_close_to_nothing(wrong):
    with pytest.raises(AssertionError):
        assert_close(wrong, LARGE, 1e3)


@pytest.mark.parametrize("wrong", [{}, {"x": np.float32([1, -0.0])}, {"x": np.float64([1, 0])}, {"x": np.ones(1)}])
def test_identical_means_every_bit(wrong):
    same = {"x": np.float32([1, 0])}
    assert_identical({"x": np.float32([1, 0])}, same)
    with pytest.raises(AssertionError):
        assert_identical(wrong, same)
