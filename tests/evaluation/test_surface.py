"""HD95 and NSD against their definitions, pair by pair of pixels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medvlsm_jax.evaluation.surface import surface_metrics

TENTHS = 10  # the definitions are worked in whole tenths of a unit, and so without rounding


def rim(mask) -> list[tuple[int, int]]:
    """Pixels with a neighbour outside the mask or the image."""
    inside = {(y, x) for y, row in enumerate(mask) for x, value in enumerate(row) if value}
    return [(y, x) for y, x in inside if {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} - inside]


def squares(points, others, spacing) -> list[int]:
    """The squared distance from each point to the nearest of the others."""
    down, across = spacing
    return [min(((y - v) * down) ** 2 + ((x - u) * across) ** 2 for v, u in others) for y, x in points]


def percentile_95(values) -> float:
    """With linear interpolation between the neighbours in order."""
    ordered, place = sorted(values), 0.95 * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def by_definition(prediction, truth, tolerance, spacing) -> dict[str, float]:
    """As surface_metrics has it, of a tolerance and a spacing in whole tenths."""
    one, two = rim(prediction), rim(truth)
    if not one and not two:
        return {"hd95": 0, "nsd": 1}
    if not one or not two:
        return {"hd95": math.hypot(*(np.array(truth.shape) * spacing)) / TENTHS, "nsd": 0}
    found = squares(one, two, spacing), squares(two, one, spacing)
    within = sum(square <= tolerance**2 for values in found for square in values)
    hd95 = max(percentile_95([math.sqrt(square) for square in values]) for values in found)
    return {"hd95": hd95 / TENTHS, "nsd": within / (len(one) + len(two))}


def check(prediction, truth, tolerance, spacing) -> None:
    found = surface_metrics(
        prediction, truth, tolerance=tolerance / TENTHS, spacing=(spacing[0] / TENTHS, spacing[1] / TENTHS)
    )
    expected = by_definition(prediction, truth, tolerance, spacing)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12), (prediction, truth, tolerance, spacing)


def masks(*rows: str) -> list[np.ndarray]:
    """Masks of rows of digits: those of the first have 1 or 3, those of the second 2 or 3."""
    digits = np.array([[int(digit) for digit in row] for row in rows])
    return [(digits & bit) > 0 for bit in (1, 2)]


@pytest.mark.parametrize("spacing", [(10, 10), (3, 1), (7, 11)])
def test_thousands_of_random_masks(spacing):
    rng = np.random.default_rng(0)
    for _ in range(1000):
        shape, density = rng.integers(1, 9, 2), rng.choice([0.03, 0.2, 0.5, 0.9])
        check(*(rng.random((2, *shape)) < density), tolerance=int(rng.integers(0, 31)), spacing=spacing)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(lambda shape: arrays(bool, (2, *shape))),
    st.integers(0, 60),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_masks_of_any_shape(pair, tolerance, spacing):
    check(*pair, tolerance, spacing)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (6, 8)])
@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_empty_and_full_masks(shape, first, second):
    found = surface_metrics(np.full(shape, first > 0), np.full(shape, second > 0), tolerance=2.0, spacing=(0.5, 2.0))
    if first == second:
        assert found == {"hd95": 0, "nsd": 1}
    else:
        assert found == {"hd95": pytest.approx(math.hypot(0.5 * shape[0], 2 * shape[1])), "nsd": 0}


def test_nothing_is_further_off_than_an_empty_mask():
    corners = masks("1000", "0000", "0002")
    empty = np.zeros((3, 4), bool)
    kwargs = {"tolerance": 1.0, "spacing": (0.4, 3.0)}
    assert surface_metrics(*corners, **kwargs)["hd95"] < surface_metrics(empty, corners[1], **kwargs)["hd95"]


def test_single_pixels():
    pixels = masks("10000", "00000", "00000", "00002")
    assert surface_metrics(*pixels, tolerance=4.99) == {"hd95": 5, "nsd": 0}
    assert surface_metrics(*pixels, tolerance=5) == {"hd95": 5, "nsd": 1}
    assert surface_metrics(*pixels, tolerance=5, spacing=(2.0, 0.5))["hd95"] == pytest.approx(math.hypot(6, 2))


def test_a_single_row_is_all_boundary():
    assert surface_metrics(*masks("1333320"), tolerance=0) == {"hd95": pytest.approx(0.8), "nsd": 0.8}


def test_pixels_inside_count_for_nothing():
    ring = np.pad(np.zeros((5, 5), bool), 2, constant_values=True)
    disc = np.ones((9, 9), bool)
    # Both have an outer boundary of 32 pixels; that of the ring's hole, 20 pixels, lies 1 from it.
    assert surface_metrics(ring, disc, tolerance=0)["nsd"] == 64 / (52 + 32)
    assert surface_metrics(ring, disc, tolerance=1)["nsd"] == 1


def test_a_tolerance_holds_in_mm_what_it_holds_in_pixels():
    for start in range(40):  # 0.1 * (start + 3) - 0.1 * start is above 0.3 for some
        one, two = np.zeros((2, 1, 50), bool)
        one[0, start], two[0, start + 3] = True, True
        assert surface_metrics(one, two, tolerance=0.3, spacing=(0.1, 0.1))["nsd"] == 1
        assert surface_metrics(one, two, tolerance=0.2999, spacing=(0.1, 0.1))["nsd"] == 0
