"""Where the frames of DICOM lie in the patient, and how large their pixels are."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from medvlsm_jax.data.scans.dicom_values import Find, numbers

CENTIMETRES = 3  # of a region of an ultrasound picture
TILT = 0.5  # in degrees; less is rounding
UNEVEN = 0.05  # of the distance from slice to slice

# Where the spacing is said, in the order in which it is believed, with what a person should know.
SPACINGS = {
    "PixelSpacing": "",
    "ImagerPixelSpacing": "the spacing is that at the detector: what lies before it is smaller",
    "NominalScannedPixelSpacing": "the spacing is that of the scanned film",
}


class Place(NamedTuple):
    """Of a frame.

    Attributes:
        position: of the first pixel's centre in mm, in the patient's coordinates (to the left, posterior, the head).
        orientation: direction along a row and down a column, six numbers.
        spacing: mm of a pixel, down and across.
        note: on the spacing.
    """

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, float] | None = None
    note: str = ""

    def normal(self) -> Float[np.ndarray, "3"] | None:
        """The direction in which slices lie upon each other."""
        if self.orientation is None:
            return None
        return np.cross(self.orientation[:3], self.orientation[3:])


def read_place(find: Find) -> Place:
    """What a file says of a frame; what makes no sense counts as not said."""
    position, orientation = numbers(find("ImagePositionPatient")), numbers(find("ImageOrientationPatient"))
    if len(orientation) == 6:
        along, down = np.array(orientation[:3]), np.array(orientation[3:])
        sound = np.abs([along @ along - 1, down @ down - 1, along @ down]).max() < 1e-2
    else:
        sound = False
    spacing, note = read_spacing(find)
    return Place(position if len(position) == 3 else None, orientation if sound else None, spacing, note)


def read_spacing(find: Find) -> tuple[tuple[float, float] | None, str]:
    """Spacing in mm, down and across, and a note on it."""
    for keyword, note in SPACINGS.items():
        values = numbers(find(keyword))
        if len(values) == 2 and min(values) > 0:
            return (values[0], values[1]), note
    regions = find("SequenceOfUltrasoundRegions") or ()
    spacings = {spacing for region in regions if (spacing := region_spacing(region.get))}
    if len(spacings) == 1:
        return spacings.pop(), ""
    return None, "regions of the picture have different spacings: none is taken" if spacings else ""


def region_spacing(get: Callable[[str], Any]) -> tuple[float, float] | None:
    """Spacing in mm, down and across, of a region of an ultrasound picture that shows tissue."""
    down, across = numbers(get("PhysicalDeltaY")), numbers(get("PhysicalDeltaX"))
    units = {get("PhysicalUnitsXDirection"), get("PhysicalUnitsYDirection")}
    if units != {CENTIMETRES} or not down or not across or not down[0] or not across[0]:
        return None
    return abs(down[0]) * 10, abs(across[0]) * 10


def along_normal(places: Sequence[Place]) -> Float[np.ndarray, " n"] | None:
    """How far each lies along the normal, in mm; None where one has no position."""
    normal = places[0].normal()
    if normal is None or any(place.position is None for place in places):
        return None
    return np.array([place.position for place in places]) @ normal


def distance_between(places: Sequence[Place]) -> tuple[float | None, tuple[str, ...]]:
    """The way from slice to slice of a sorted stack, in mm, and notes: uneven, or askew, as with a tilted gantry."""
    heights = along_normal(places)
    if heights is None or len(heights) < 2:
        return None, ()
    steps = np.diff(heights)
    distance = float(np.median(steps))
    notes = []
    if tilt(places) > TILT:
        notes.append(f"the slices lie askew: each is moved against the one below it, by {tilt(places):.1f} degrees")
    if np.abs(steps - distance).max() > max(UNEVEN * distance, 1e-2):
        notes.append(f"the slices are not evenly spaced: {steps.min():.4g} to {steps.max():.4g} mm")
        return None, tuple(notes)
    return distance, tuple(notes)


def tilt(places: Sequence[Place]) -> float:
    """The largest angle in degrees between the normal and the way from a slice to the next."""
    normal = places[0].normal()
    if normal is None:
        return 0.0
    angles = [0.0]
    for a, b in itertools.pairwise(places):
        if a.position is not None and b.position is not None:
            way = np.subtract(b.position, a.position)
            height = float(way @ normal)
            angles.append(float(np.degrees(np.arctan2(np.linalg.norm(way - height * normal), abs(height)))))
    return max(angles)
