"""How slices are shown: as a radiologist sees them, whatever way a file stores its axes. Nothing is resampled."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

# The patient's axes are 0 right-left, 1 posterior-anterior, 2 inferior-superior. Of slices across each: which of them
# run down and across the picture, as in viewers of DICOM. Both run against RAS+: down to posterior or inferior, across
# to the left or to posterior.
SHOWN = {0: (2, 1), 1: (2, 0), 2: (1, 0)}
FARTHEST = 1e9  # in mm, from a voxel to the next, or from the origin
PRECISION = 6  # decimals of a direction cosine: what formats round differently must not decide between two axes


@dataclasses.dataclass(frozen=True)
class SliceOrientation:
    """How a slice's picture is made of the array as it is stored, whose two axes keep the file's order.

    Attributes:
        is_transposed: the second stored axis runs down, the first across.
        flips_down: the picture begins at the end of the axis that runs down.
        flips_across: at the end of the axis that runs across.
    """

    is_transposed: bool
    flips_down: bool = False
    flips_across: bool = False

    def to_shown(self, stored: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """A view of a stored slice, or of one with further axes behind its two, as it is shown."""
        return self._flip(np.swapaxes(stored, 0, 1) if self.is_transposed else stored)

    def to_stored(self, shown: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The way back, a view, too."""
        flipped = self._flip(shown)
        return np.swapaxes(flipped, 0, 1) if self.is_transposed else flipped

    def _flip(self, values: np.ndarray) -> np.ndarray:
        return values[:: -1 if self.flips_down else 1, :: -1 if self.flips_across else 1]

    def down_across(self, lengths: Sequence[float]) -> tuple[float, float]:
        """Of a number for each of the two stored axes, those of the axes that run down and across."""
        first, second = lengths
        return (second, first) if self.is_transposed else (first, second)


AS_STORED = SliceOrientation(is_transposed=True)  # what is fastest in the file runs across


def is_sound(affine: Float[np.ndarray, "4 4"]) -> bool:
    """Whether an affine says where three axes point: no length or place is nonsense, no axis in the plane of others."""
    if not (np.abs(affine) < FARTHEST).all():  # which NaN is not, either
        return False
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if lengths.min() < 1 / FARTHEST:
        return False
    return bool(abs(np.linalg.det(columns / lengths)) > 10.0**-PRECISION)


def closest_axes(affine: Float[np.ndarray, "4 4"]) -> tuple[tuple[int, bool], ...]:
    """For each axis of an array the patient's axis that it is closest to, and whether it runs along it in RAS+.

    Each of the patient's axes is given once, so that the sum of the direction cosines is greatest; of equal ones, those
    in the array's own order.

    Args:
        affine: from indices to mm in RAS+, sound.
    """
    columns = affine[:3, :3]
    cosines = np.round(columns / np.linalg.norm(columns, axis=0), PRECISION)
    sums = {axes: np.abs(cosines[list(axes), [0, 1, 2]]).sum() for axes in itertools.permutations(range(3))}
    axes = max(sums, key=lambda axes: round(float(sums[axes]), PRECISION))
    return tuple((axis, bool(cosines[axis, i] > 0)) for i, axis in enumerate(axes))


def slice_orientation(affine: Float[np.ndarray, "4 4"], axis: int) -> SliceOrientation:
    """How the slices along an axis of an array are shown.

    Args:
        affine: from indices to mm in RAS+ (nibabel's convention), sound.
        axis: 0, 1 or 2.
    """
    patient_axes = closest_axes(affine)
    across_slices, _ = patient_axes[axis]
    (first, first_rises), (second, second_rises) = (patient_axes[i] for i in range(3) if i != axis)
    if (first, second) == SHOWN[across_slices]:
        return SliceOrientation(is_transposed=False, flips_down=first_rises, flips_across=second_rises)
    return SliceOrientation(is_transposed=True, flips_down=second_rises, flips_across=first_rises)
