"""The same anatomy gives the same pictures, whatever way a file stores it."""

import numpy as np
import pytest
from drawn_volumes import SIDES, all_orders, lps_affine, noise, stored_as

from medvlsm_jax.data.scans.orientation import AS_STORED, closest_axes, is_sound, slice_orientation
from medvlsm_jax.data.scans.stored import sides_of

# Of a volume whose axes run to the left, to posterior and to superior: what a radiologist sees of slices across each.
# Down and across are inferior and posterior of sagittal ones, inferior and left of coronal ones, posterior and left of
# axial ones, so that axis 2 is turned round.
SEEN = {
    0: lambda values, i: values[i, :, ::-1].T,
    1: lambda values, i: values[:, i, ::-1].T,
    2: lambda values, i: values[:, :, i].T,
}


@pytest.mark.parametrize("is_oblique", [False, True])
def test_a_volume_stored_in_any_order_is_seen_as_by_a_radiologist(is_oblique):
    values = noise()
    for order, flips in all_orders():
        stored, affine = stored_as(values, lps_affine(is_oblique), order, flips)
        for axis in range(3):
            orientation = slice_orientation(affine, axis)
            for i in (0, 3):
                shown = orientation.to_shown(stored[(slice(None),) * axis + (i,)])
                at = stored.shape[axis] - 1 - i if flips[axis] else i
                np.testing.assert_array_equal(shown, SEEN[order[axis]](values, at))


def test_the_way_back_is_the_order_of_the_file():
    values = noise()
    for order, flips in all_orders():
        stored, affine = stored_as(values, lps_affine(), order, flips)
        for axis in range(3):
            orientation = slice_orientation(affine, axis)
            plane = stored[(slice(None),) * axis + (2,)]
            np.testing.assert_array_equal(orientation.to_stored(orientation.to_shown(plane)), plane)


def test_the_spacing_follows_the_axes():
    for order, flips in all_orders():
        _, affine = stored_as(noise(), lps_affine(), order, flips)
        axis = order.index(2)  # axial slices
        sides = [side for i, side in enumerate(sides_of(affine)) if i != axis]
        np.testing.assert_allclose(slice_orientation(affine, axis).down_across(sides), (SIDES[1], SIDES[0]))


def test_each_patient_axis_is_given_once():
    # The first two axes are closest to the same one.
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.9, 0.8, 0], [0.3, 0.5, 0], [0, 0, 1]])
    assert closest_axes(affine) == ((0, True), (1, True), (2, True))


def test_between_two_axes_rounding_does_not_decide():
    half = np.sqrt(0.5)
    for noise_ in (-1e-8, 0, 1e-8):
        affine = np.eye(4)
        affine[:2, :2] = [[half + noise_, half], [half, -half - noise_]]
        assert closest_axes(affine) == ((0, True), (1, False), (2, True))


def test_an_affine_that_says_nothing_is_not_sound():
    assert is_sound(lps_affine(is_oblique=True))
    for column in (np.zeros(3), [np.nan, 0, 0], [np.inf, 0, 0], [0, 1.0, 0], [1e-12, 0, 0], [1e30, 0, 0]):
        affine = np.eye(4)
        affine[:3, 0] = column
        assert not is_sound(affine), column


def test_without_an_affine_what_is_fastest_in_the_file_runs_across():
    values = noise()
    np.testing.assert_array_equal(AS_STORED.to_shown(values[:, :, 0]), values[:, :, 0].T)
