"""Volumes as slices: NIfTI, MetaImage, NRRD."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped, UInt8
from PIL import Image

from medvlsm_jax.data.images import MIN_SIDE
from medvlsm_jax.data.scans.metaimage import read_metaimage
from medvlsm_jax.data.scans.nifti import import_nibabel, read_nifti
from medvlsm_jax.data.scans.nrrd import read_nrrd
from medvlsm_jax.data.scans.orientation import AS_STORED, slice_orientation
from medvlsm_jax.data.scans.scan import Scan, View, Window
from medvlsm_jax.data.scans.stored import Stored
from medvlsm_jax.data.scans.windows import apply_window, stretching_window
from medvlsm_jax.errors import UserError

READERS: dict[str, Callable[[Path], Stored[Any]]] = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".hdr": read_nifti,
    ".hdr.gz": read_nifti,
    ".img": read_nifti,
    ".img.gz": read_nifti,
    ".mha": read_metaimage,
    ".mhd": read_metaimage,
    ".nrrd": read_nrrd,
    ".nhdr": read_nrrd,
}
MAX_SAMPLE = 1 << 20  # values that are looked at for the percentiles


class Volume(Scan):
    """A volume, whose slices lie along an axis of its array.

    Slices have the file's order; each is turned as `orientation.py` says. Pixels keep their shape: where they are not
    square, the picture is as wide and as high as the array.

    Attributes:
        stored: the file's content.
        axis: of the array.
        orientation: of the slices.
        window: what is shown; None of colours and of bytes, which are shown as they are.
    """

    def __init__(self, path: Path, stored: Stored[Any], view: View):
        self.path, self.files = path, stored.files
        self.stored, self.axis = stored, view.axis
        self.orientation = AS_STORED if stored.affine is None else slice_orientation(stored.affine, view.axis)
        sides = [i for i in range(3) if i != view.axis]
        height, width = self.orientation.down_across([stored.values.shape[i] for i in sides])
        if min(height, width) < MIN_SIDE:
            raise UserError(
                f"{path} has slices of {width}x{height} pixels along axis {view.axis}, but at least "
                f"{MIN_SIDE}x{MIN_SIDE} are needed: choose another --axis, or remove it"
            )
        if stored.sides is not None:
            self.spacing = self.orientation.down_across([stored.sides[i] for i in sides])
            self.distance = stored.sides[view.axis] if len(self) > 1 else None
        self.window = choose_window(self, view.window)
        self.notes = tuple(notes_of(self, view.window))

    def __len__(self) -> int:
        return self.stored.values.shape[self.axis]

    def values(self, index: int) -> Num[np.ndarray, "h w"] | Num[np.ndarray, "h w c"]:
        """A slice as it is shown, before any window: in the file's type, or in float64 where it scales its numbers."""
        plane = self.stored.values[(slice(None),) * self.axis + (index,)]
        return scaled(self.stored, np.asarray(self.orientation.to_shown(plane)))

    def read(self, index: int) -> Image.Image:
        values = self.values(index)
        if values.ndim == 3:
            values = values[..., :3]  # without opacity
        shown = values.astype(np.uint8) if self.window is None else apply_window(values, self.window)
        return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")

    def to_stored(self, slices: UInt8[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "i j k"]:
        """A view of all slices in the order of the file."""
        planes = self.orientation.to_stored(np.moveaxis(slices, 0, -1))
        return np.moveaxis(planes, -1, self.axis)


def is_volume(path: Path) -> bool:
    """Whether a file's name ends as volumes' names do."""
    return reader_of(path) is not None


def reader_of(path: Path) -> Callable[[Path], Stored[Any]] | None:
    """What reads a file, by its ending."""
    endings = [ending for ending in READERS if path.name.lower().endswith(ending)]
    return READERS[endings[0]] if endings else None


def open_volume(path: Path, view: View) -> Volume:
    """A volume as slices. It may be read in threads.

    What is packed is unpacked, and a sample of the values looked at; all else is read when it is asked for.

    Raises:
        UserError: nibabel is not installed, the format is unknown, the file is broken or cut off, has several time
            points or numbers that cannot be shown, or slices along the axis have next to no pixels.
    """
    import_nibabel()  # masks are written in NIfTI
    reader = reader_of(path)
    if reader is None:
        raise UserError(f"{path} is in no format of volumes that is read: give {', '.join(READERS)}")
    return Volume(path, reader(path), view)


def scaled(stored: Stored[Any], numbers: Shaped[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
    """Values of some of a volume's numbers."""
    if stored.scale is None:
        return numbers
    slope, intercept = stored.scale
    with np.errstate(all="ignore"):
        return numbers * np.float64(slope) + intercept


def choose_window(volume: Volume, window: Window | None) -> Window | None:
    """The window that was asked for, else that of all values of the volume, so that its slices can be compared."""
    stored = volume.stored
    is_bytes = stored.values.dtype == np.uint8 and stored.scale is None
    if is_bytes and (window is None or stored.values.ndim == 4):
        return None
    return window if window and stored.values.ndim == 3 else stretching_window(scaled(stored, sample(stored.values)))


def sample(values: Shaped[np.ndarray, "i j k ..."]) -> Shaped[np.ndarray, "..."]:
    """About a million of a volume's numbers, evenly spaced: of each axis every n-th, from the middle of the first n."""
    num_long = max(1, sum(side > 1 for side in values.shape[:3]))
    step = max(1, math.ceil((values.size / MAX_SAMPLE) ** (1 / num_long)))
    return values[tuple(slice(min(step, side) // 2, None, step) for side in values.shape[:3])]


def notes_of(volume: Volume, window: Window | None) -> list[str]:
    """What was done to the values and the position."""
    notes = []
    if volume.stored.affine is None:
        notes.append("its header does not say how the patient lies: slices are shown as they are stored")
    if window and volume.stored.values.ndim == 4:
        notes.append("it is in colours, to which --window is not applied")
    elif volume.window and not window:
        low, high = (volume.window.center + sign * volume.window.width / 2 for sign in (-1, 1))
        notes.append(
            f"values from {low:g} to {high:g}, the 0.5 and 99.5 percentiles, are shown from black to white: "
            "of CT, give --window"
        )
    return notes
