"""Volumes as slices, NIfTI, MetaImage and NRRD, and their masks, which lie where the volume lies."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped, UInt8
from PIL import Image

from medvlsm_jax.data.images import MIN_SIDE
from medvlsm_jax.data.scans.metaimage import MetaImageHeader, read_metaimage
from medvlsm_jax.data.scans.nifti import NiftiHeader, import_nibabel, nifti_header, read_nifti
from medvlsm_jax.data.scans.nrrd import NrrdHeader, read_nrrd
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
MASK_ENDING = ".nii.gz"
MAX_SAMPLE = 1 << 18  # values that are looked at for the percentiles


class Volume(Scan):
    """A volume, whose slices lie along an axis of its array.

    Slices have the file's order; each is turned as `orientation.py` says. Pixels keep their shape: where they are not
    square, the picture is as wide and as high as the array. Numbers are looked at when the first slice is read.

    Attributes:
        stored: what the file's header says.
        axis: of the array.
        orientation: of the slices.
        window: what is shown. None of colours and of bytes, which are shown as they are; without `--window`, until the
            first slice is read.
    """

    def __init__(self, path: Path, stored: Stored[NiftiHeader | MetaImageHeader | NrrdHeader], view: View):
        self.path, self.files = path, stored.files
        self.stored, self.axis = stored, view.axis
        self.orientation = AS_STORED if stored.affine is None else slice_orientation(stored.affine, view.axis)
        axes = [i for i in range(3) if i != view.axis]
        height, width = self.orientation.down_across([stored.voxels.shape[i] for i in axes])
        if min(height, width) < MIN_SIDE:
            raise UserError(
                f"{path} has slices of {width}x{height} pixels along axis {view.axis}, but at least "
                f"{MIN_SIDE}x{MIN_SIDE} are needed: choose another --axis, or remove it"
            )
        if stored.sides is not None:
            self.spacing = self.orientation.down_across([stored.sides[i] for i in axes])
            self.distance = stored.sides[view.axis] if len(self) > 1 else None
        self._lock, self._numbers = threading.Lock(), None
        self._choose(view.window)

    def _choose(self, window: Window | None) -> None:
        """Which values are shown, as far as it can be known before they are looked at."""
        voxels, notes = self.stored.voxels, list[str]()
        is_colour, is_byte = voxels.channels > 1, voxels.dtype == np.uint8 and self.stored.scale is None
        self.window = None if is_colour else window
        self._is_stretched = self.window is None and not is_byte
        if self.stored.affine is None:
            notes.append("does not say how the patient lies: its slices are shown as they are stored")
        if is_colour and window:
            notes.append("is in colours, to which --window is not applied")
        if self._is_stretched:
            notes.append("is shown from its 0.5 to its 99.5 percentile: of CT, give --window")
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return self.stored.voxels.shape[self.axis]

    def numbers(self) -> Shaped[np.ndarray, "i j k ..."]:
        """All numbers in the order and the type of the file, mapped where it is not packed.

        Raises:
            UserError: the file cannot be read or unpacked, or is cut off.
        """
        with self._lock:
            if self._numbers is None:
                self._numbers = self.stored.voxels.load()
            if self._is_stretched and self.window is None:
                self.window = stretching_window(self._scaled(sample(self._numbers)))
                low, high = (self.window.center + sign * self.window.width / 2 for sign in (-1, 1))
                note = f"is shown from {low:g} to {high:g}, its 0.5 and 99.5 percentiles: of CT, give --window"
                self.notes = (*self.notes[:-1], note)
            return self._numbers

    def _scaled(self, numbers: Shaped[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
        if self.stored.scale is None:
            return numbers
        slope, intercept = self.stored.scale
        with np.errstate(all="ignore"):
            return numbers * np.float64(slope) + intercept

    def values(self, index: int) -> Num[np.ndarray, "h w"] | Num[np.ndarray, "h w c"]:
        """A slice as it is shown, before any window: in the file's type, or in float64 where it scales its numbers.

        Raises:
            UserError: as `numbers`.
        """
        plane = self.numbers()[(slice(None),) * self.axis + (index,)]
        return self._scaled(np.asarray(self.orientation.to_shown(plane)))

    def read(self, index: int) -> Image.Image:
        values = self.values(index)
        if values.ndim == 3:
            values = values[..., :3]  # without opacity
        shown = values if self.window is None else apply_window(values, self.window)
        return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")

    def close(self) -> None:
        with self._lock:
            self._numbers = None

    def in_file_order(self, slices: UInt8[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "i j k"]:
        """A view of all slices, as they are shown, in the order of the file."""
        planes = self.orientation.to_stored(np.moveaxis(slices, 0, -1))
        return np.moveaxis(planes, -1, self.axis)


def sample(numbers: Shaped[np.ndarray, "i j k ..."]) -> Shaped[np.ndarray, "..."]:
    """A quarter of a million of a volume's numbers: of each axis every n-th, from the middle of the first n on."""
    num_long = max(1, sum(side > 1 for side in numbers.shape[:3]))
    step = max(1, math.ceil((numbers.size / MAX_SAMPLE) ** (1 / num_long)))
    return numbers[tuple(slice(min(step, side) // 2, None, step) for side in numbers.shape[:3])]


def is_volume(path: Path) -> bool:
    """Whether a file's name ends as volumes' names do."""
    return reader_of(path) is not None


def reader_of(path: Path) -> Callable[[Path], Stored[Any]] | None:
    """What reads a file, by its ending; None where nothing here does."""
    return next((reader for ending, reader in READERS.items() if path.name.lower().endswith(ending)), None)


def open_volume(path: Path, view: View) -> Volume:
    """A volume as slices, which may be read in threads. Its header is read and checked, no more.

    Raises:
        UserError: nibabel is not installed, the format is unknown, the header is broken or promises more than the file
            has, there are several time points or numbers that cannot be shown, or slices along the axis have next to no
            pixels.
    """
    import_nibabel()  # masks are written in NIfTI
    reader = reader_of(path)
    if reader is None:
        raise UserError(f"{path} is in no format of volumes that is read: give {', '.join(READERS)}")
    stored = reader(path)
    stored.voxels.check()
    return Volume(path, stored, view)


# --- Masks -----------------------------------------------------------------------------------------------------------


def mask_files(volume: Volume, name: str) -> list[str]:
    """The names of what `write_mask` writes: the NIfTI file, and beside it one in the volume's own format, if another.

    NIfTI-1 holds positions in 32 bits, so that those of other formats cannot be kept exactly; their own can.

    Args:
        volume: that is segmented.
        name: of the NIfTI file, `NAME.nii.gz`.
    """
    header = volume.stored.header
    return [name] if isinstance(header, NiftiHeader) else [name, name.removesuffix(MASK_ENDING) + header.ending]


def write_mask(path: Path, volume: Volume, masks: UInt8[np.ndarray, "n h w"]) -> None:
    """Writes the masks of a volume's slices to the files of `mask_files`.

    Args:
        path: of the NIfTI file.
        volume: that was segmented.
        masks: of 0 and 1, slices as the volume shows them.
    """
    voxels = volume.in_file_order(masks)
    nifti, *others = mask_files(volume, path.name)
    nifti_of(volume).write(path.with_name(nifti), voxels)
    for name in others:
        volume.stored.header.write(path.with_name(name), voxels)


def write_probability(path: Path, volume: Volume, probabilities: UInt8[np.ndarray, "n h w"]) -> None:
    """Writes bytes, 255 for a probability of 1, as NIfTI whose slope makes 0 to 1 of them.

    Args:
        path: of the NIfTI file.
        volume: that was segmented.
        probabilities: slices as the volume shows them.
    """
    nifti_of(volume).write(path, volume.in_file_order(probabilities), slope=1 / 255)


def nifti_of(volume: Volume) -> NiftiHeader:
    """The header of a volume's masks."""
    stored = volume.stored
    if isinstance(stored.header, NiftiHeader):
        return stored.header
    return nifti_header(stored.header.sides, stored.affine, stored.sides)
