"""DICOM as stacks of slices: files of a series, sorted by where they lie, and parted where they are no one stack."""

import dataclasses
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medvlsm_jax.data.scans.dicom_files import DicomFile, import_pydicom, is_dicom, read_file, read_frame
from medvlsm_jax.data.scans.dicom_places import Place, along_normal, distance_between
from medvlsm_jax.data.scans.dicom_values import is_outside, to_colours, to_shades, to_values
from medvlsm_jax.data.scans.scan import Scan, View, Window
from medvlsm_jax.data.scans.windows import PERCENTILES, stretching_window
from medvlsm_jax.errors import UserError

__all__ = ["Frame", "Series", "is_dicom", "open_series"]

ALONG_STACK = 2  # the axis of View
MAX_SLICES, MAX_VALUES = 16, 1 << 16  # of which a window is made where nothing names one: slices, and values of each
SAME_HEIGHT = 1e-3  # in mm; slices that are nearer lie at one position


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a file.

    Attributes:
        file: that it is in.
        index: in the file, from 0.
    """

    file: DicomFile
    index: int

    def place(self) -> Place:
        """Where it lies."""
        return self.file.place(self.index)


class Series(Scan):
    """A stack of frames, in the order in which they lie along the normal, else in that of their numbers.

    Attributes:
        frames: of its slices.
    """

    def __init__(self, frames: Sequence[Frame], view: View, notes: Iterable[str] = ()) -> None:
        self.frames = tuple(frames)
        self.files = tuple(dict.fromkeys(frame.file.path for frame in frames))
        self.path = self.files[0] if len(self.files) == 1 else self.files[0].parent
        self.window = view.window
        places = [frame.place() for frame in frames]
        self.spacing = places[0].spacing
        self.distance, askew = distance_between(places)
        self.notes = (*notes, *askew, *view_notes(self))
        self.stretch: Window | None = None
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Image.Image:
        frame = self.frames[index]
        file, rendering = frame.file, frame.file.rendering(frame.index)
        stored = read_frame(file, frame.index)
        if file.is_colour():
            return Image.fromarray(to_colours(stored, rendering, file.options["bits_stored"]))
        stretch = None if self.window or rendering.has_view() else self.common_stretch()
        return Image.fromarray(to_shades(stored, rendering, self.window, stretch)).convert("RGB")

    def common_stretch(self) -> Window:
        """The window that a sample of all slices asks for, so that these are comparable; padding is no part of it.

        Raises:
            UserError: a slice cannot be decoded.
        """
        with self.lock:
            if self.stretch is None:
                picks = np.unique(np.linspace(0, len(self) - 1, min(len(self), MAX_SLICES)).astype(int))
                self.stretch = stretching_window(np.concatenate([sample(self.frames[i]) for i in picks]))
            return self.stretch


def sample(frame: Frame) -> np.ndarray:
    """At most MAX_VALUES values of a frame, evenly picked."""
    stored, rendering = read_frame(frame.file, frame.index), frame.file.rendering(frame.index)
    step = max(1, int(np.ceil(np.sqrt(stored.size / MAX_VALUES))))
    stored = stored[::step, ::step]
    return to_values(stored, rendering)[~is_outside(stored, rendering)]


def view_notes(series: Series) -> list[str]:
    """What a person should know of how the values of a series are shown, and of its spacing."""
    file, rendering = series.frames[0].file, series.frames[0].file.rendering(series.frames[0].index)
    notes = [note] if (note := series.frames[0].place().note) else []
    if file.is_colour():
        return notes
    if series.window is None and rendering.table is not None:
        notes.append("shown through the table of the file")
    elif series.window is None and rendering.window is not None:
        first = f", the first of {rendering.num_windows}" if rendering.num_windows > 1 else ""
        notes.append(
            f"shown through the window {rendering.window.center:g}:{rendering.window.width:g} of the file{first}"
        )
    elif series.window is None and rendering.range is None:
        notes.append("stretched from the {} to the {} percentile of its values".format(*PERCENTILES))
    if rendering.is_inverted:
        notes.append("inverted: its smallest values are white")
    return notes


# --- From files to stacks --------------------------------------------------------------------------------------------


def open_series(paths: Sequence[Path], view: View, failures: list[str]) -> list[Series]:
    """The stacks that files make, in the order of the files; those of one series are parted by what is no one stack.

    Args:
        paths: of DICOM files.
        view: its window goes before the files' own.
        failures: gets a line for each file that cannot be read or is no picture, and for each series that is no stack.

    Raises:
        UserError: pydicom is not installed, or another axis than that along the stack is asked for.
    """
    import_pydicom()
    if view.axis != ALONG_STACK:
        raise UserError(
            f"--axis={view.axis} is for volumes, but {paths[0]} is DICOM, which is read along its stack: "
            "leave the flag out, or convert the series to NIfTI"
        )
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    seen = set()
    for path in paths:
        try:
            file = read_file(path)
        except UserError as error:
            failures.append(str(error))
            continue
        if file.instance and file.instance in seen:
            continue  # the same file under another name
        seen.add(file.instance)
        for i in range(file.num_frames):
            groups[stack_key(file, i)].append(Frame(file, i))
    series = list[Series]()
    for frames in groups.values():
        try:
            series += split_positions(frames, view)
        except UserError as error:
            failures.append(str(error))
    return series


def stack_key(file: DicomFile, index: int) -> tuple:
    """What the frames of a stack have in common."""
    place = file.place(index)
    rounded = [tuple(np.round(values, 3)) if values else None for values in (place.orientation, place.spacing)]
    alone = str(file.path) if file.num_frames > 1 or not file.series else ""
    return (
        file.series,
        alone,
        file.frame_of_reference,
        file.height,
        file.width,
        file.is_colour(),
        "LOCALIZER" in file.image_type,
        *rounded,
    )


def split_positions(frames: list[Frame], view: View) -> list[Series]:
    """A stack; or several, where each position has as many slices: phases of a heart, or echoes, as they are numbered.

    Raises:
        UserError: some positions have more slices than others.
    """
    frames = sorted(frames, key=lambda frame: (frame.file.number, frame.index))
    heights = along_normal([frame.place() for frame in frames])
    if heights is None or len(frames) == 1:
        return [Series(frames, view)]
    order = np.argsort(heights, kind="stable")
    starts = np.flatnonzero(np.diff(heights[order], prepend=-np.inf) > SAME_HEIGHT)
    counts = np.diff(np.append(starts, len(order)))
    if counts.min() != counts.max():
        raise UserError(
            f"{frames[0].file.path.parent} has a series with {counts.min()} to {counts.max()} slices at a position, "
            "which is no stack: complete it, or leave out those that are there twice"
        )
    num = int(counts[0])
    parts = order.reshape(-1, num).T
    notes = [f"part {i + 1} of {num} at the same positions" for i in range(num)] if num > 1 else [""]
    return [
        Series([frames[i] for i in part], view, filter(None, [note])) for part, note in zip(parts, notes, strict=True)
    ]
