"""Stored values of DICOM to shades of grey and colours, by the tables and windows that the file names (PS3.3, C.11)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from medvlsm_jax.data.scans.scan import Window
from medvlsm_jax.data.scans.windows import apply_window

MAX_ENTRIES = 1 << 16  # of a lookup table
INVERSE = "INVERSE"
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
COLOURS = ("Red", "Green", "Blue")

Find = Callable[[str], Any]  # the value of an element, by its keyword; None where the file has none


class Table(NamedTuple):
    """A lookup table.

    Attributes:
        first: the value that the first entry stands for; smaller ones take it, too, and larger ones the last.
        entries: what stands for each value from there on.
        largest: that an entry may be.
    """

    first: int
    entries: Num[np.ndarray, " n"]
    largest: int

    def __call__(self, values: Num[np.ndarray, "h w"]) -> Num[np.ndarray, "h w"]:
        """The entry of each value."""
        last = self.first + len(self.entries) - 1
        known = np.nan_to_num(values.astype(np.float64), nan=self.first)
        return self.entries[np.rint(np.clip(known, self.first, last)).astype(np.int64) - self.first]


@dataclasses.dataclass(frozen=True, eq=False)
class Rendering:
    """How the values of a frame are shown.

    Attributes:
        slope: of the rescale; what it gives is in the units of the file, Hounsfield units of CT.
        intercept: of the rescale.
        modality: a table in place of the rescale.
        table: a table of what is shown (VOI LUT).
        window: in place of the table.
        function: of the window, one of FUNCTIONS.
        num_windows: that the file has; the first is taken.
        is_inverted: the smallest values are white, as in many radiographs.
        padding: smallest and largest stored value that are no part of the picture.
        palette: tables of red, green and blue.
        range: the largest of values that need neither window nor stretching, as those of 8 bits.
    """

    slope: float = 1.0
    intercept: float = 0.0
    modality: Table | None = None
    table: Table | None = None
    window: Window | None = None
    function: str = "LINEAR"
    num_windows: int = 0
    is_inverted: bool = False
    padding: tuple[float, float] | None = None
    palette: tuple[Table, Table, Table] | None = None
    range: float | None = None

    def has_view(self) -> bool:
        """Whether the file says how it is to be shown."""
        return self.table is not None or self.window is not None or self.range is not None


# --- What a file says ------------------------------------------------------------------------------------------------


def read_rendering(find: Find, is_little_endian: bool) -> Rendering:
    """What a file says of the values of a frame.

    Raises:
        ValueError: a table is broken.
    """
    if find("PhotometricInterpretation") == "PALETTE COLOR":
        return Rendering(palette=read_palette(find, is_little_endian))
    slope, intercept = number(find("RescaleSlope"), 1.0), number(find("RescaleIntercept"), 0.0)
    modality = read_sequence_table(find, "ModalityLUTSequence", is_little_endian)
    window, num_windows = read_window(find)
    function = str(find("VOILUTFunction") or FUNCTIONS[0])
    bits = find("BitsStored") if find("PixelRepresentation") == 0 else None
    is_plain = modality is None and (slope, intercept) == (1.0, 0.0) and bits is not None and bits <= 8
    return Rendering(
        slope=slope or 1.0,  # some writers leave 0 where there is none
        intercept=intercept,
        modality=modality,
        table=read_sequence_table(find, "VOILUTSequence", is_little_endian),
        window=window,
        function=function if function in FUNCTIONS else FUNCTIONS[0],
        num_windows=num_windows,
        is_inverted=INVERSE in (find("PresentationLUTShape"), "") or find("PhotometricInterpretation") == "MONOCHROME1",
        padding=read_padding(find),
        range=float((1 << bits) - 1) if is_plain and bits else None,
    )


def read_window(find: Find) -> tuple[Window | None, int]:
    """The first window, and how many there are; none whose width is nothing."""
    centers, widths = numbers(find("WindowCenter")), numbers(find("WindowWidth"))
    if not centers or not widths or widths[0] <= 0:
        return None, 0
    return Window(centers[0], widths[0]), min(len(centers), len(widths))


def read_padding(find: Find) -> tuple[float, float] | None:
    """The range of stored values around the picture."""
    value = numbers(find("PixelPaddingValue"))
    if not value:
        return None
    ends = value[0], (numbers(find("PixelPaddingRangeLimit")) or value)[0]
    if find("PixelRepresentation") == 1:  # some writers have -2000 as 63536
        over = 1 << int(number(find("BitsAllocated"), 16.0))
        ends = [end - over if end >= over / 2 else end for end in ends]
    return min(ends), max(ends)


def read_sequence_table(find: Find, keyword: str, is_little_endian: bool) -> Table | None:
    """The first table of a sequence."""
    sequence = find(keyword)
    if not sequence or "LUTDescriptor" not in sequence[0] or "LUTData" not in sequence[0]:
        return None
    return read_table(sequence[0].LUTDescriptor, sequence[0].LUTData, is_little_endian)


def read_table(descriptor: Any, data: Any, is_little_endian: bool) -> Table:
    """A table from its descriptor (number of entries, first value, bits) and its entries as numbers or bytes.

    Raises:
        ValueError: the two do not fit.
    """
    count, first, bits = read_descriptor(descriptor)
    entries = unpack(data, count, is_little_endian)
    if len(entries) < count:
        raise ValueError(f"a lookup table has {len(entries)} entries of {count}")
    entries = entries[:count]
    # Some writers say 16 bits of tables of bytes, and the other way round.
    bits = 16 if entries.max() > 255 and bits <= 8 else 8 if entries.max() < 256 and bits == 16 else bits
    return Table(first, entries, (1 << bits) - 1)


def read_descriptor(descriptor: Any) -> tuple[int, int, int]:
    """Number of entries, first value and bits of a table; raises ValueError for what makes no sense."""
    values = numbers(descriptor)
    if len(values) != 3 or not 0 <= values[0] <= MAX_ENTRIES >= abs(values[1]) or not 1 <= values[2] <= 16:
        raise ValueError("the descriptor of a lookup table makes no sense")
    count, first, bits = (int(value) for value in values)
    return count or MAX_ENTRIES, first, bits  # 0 is what 16 bits make of 65536


def unpack(data: Any, count: int, is_little_endian: bool) -> Num[np.ndarray, " n"]:
    """Entries that pydicom has as bytes or as numbers; of bytes as many as entries, each is one."""
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data)).astype(np.int64)
    if len(data) < 2 * count:
        return np.frombuffer(data, np.uint8)
    return np.frombuffer(data[: 2 * count], "<u2" if is_little_endian else ">u2")


def read_palette(find: Find, is_little_endian: bool) -> tuple[Table, Table, Table]:
    """The tables of red, green and blue, whole or in segments.

    Raises:
        ValueError: one is missing or broken.
    """
    tables = []
    for colour in COLOURS:
        descriptor = find(f"{colour}PaletteColorLookupTableDescriptor")
        data = find(f"{colour}PaletteColorLookupTableData")
        segments = find(f"Segmented{colour}PaletteColorLookupTableData")
        if descriptor is None or (data is None and segments is None):
            raise ValueError("its palette is missing")
        if data is None:
            count, first, bits = read_descriptor(descriptor)
            width = 1 if bits <= 8 else 2
            words = unpack(segments, len(segments) // width, is_little_endian)
            data = expand_segments([int(word) for word in words], count, width).astype("<u2").tobytes()
            tables.append(read_table([count % MAX_ENTRIES, first, bits], data, True))
        else:
            tables.append(read_table(descriptor, data, is_little_endian))
    return tables[0], tables[1], tables[2]


def expand_segments(words: list[int], count: int, width: int) -> Num[np.ndarray, " n"]:
    """The entries of a table in segments: runs of values, straight lines, and repetitions of those (PS3.3, C.7.9.2).

    Args:
        words: opcodes, lengths and values, one after another.
        count: of the entries.
        width: bytes of a word; an offset is four bytes, the least significant word first.

    Raises:
        ValueError: it ends within a segment, or is of another length.
    """
    entries: list[float] = []
    starts = 4 // width  # words of an offset

    def expand(at: int, num_segments: int, is_repeated: bool) -> None:
        while at < len(words) and num_segments and len(entries) <= count:
            opcode, length = words[at], words[at + 1]
            if opcode == 0:
                entries.extend(words[at + 2 : at + 2 + length])
                at += 2 + length
            elif opcode == 1 and entries:
                entries.extend(np.linspace(entries[-1], words[at + 2], length + 1)[1:])
                at += 3
            elif opcode == 2 and not is_repeated:
                offset = sum(word << 8 * width * i for i, word in enumerate(words[at + 2 : at + 2 + starts]))
                expand(offset // width, length, True)
                at += 2 + starts
            else:
                raise ValueError(f"the opcode {opcode} of a palette in segments makes no sense")
            num_segments -= 1

    try:
        expand(0, -1, False)
    except IndexError as error:
        raise ValueError("a palette in segments ends early") from error
    if len(entries) != count:
        raise ValueError(f"a palette in segments has {len(entries)} entries of {count}")
    return np.rint(entries)


def numbers(value: Any) -> tuple[float, ...]:
    """The finite numbers of an element of one or many values; none where one is not, or there is no value."""
    values = () if value is None or isinstance(value, str | bytes) else np.atleast_1d(np.asarray(value, np.float64))
    return tuple(float(x) for x in values) if np.isfinite(values).all() else ()


def number(value: Any, default: float) -> float:
    """The first of `numbers`."""
    return next(iter(numbers(value)), default)


# --- What is shown ---------------------------------------------------------------------------------------------------


def to_values(stored: Num[np.ndarray, "h w"], rendering: Rendering) -> Float[np.ndarray, "h w"]:
    """Stored values in the units of the file; negative where the smallest ones are white.

    So a picture and its inverted twin are the same to the last bit.
    """
    values = (stored if rendering.modality is None else rendering.modality(stored)).astype(np.float64)
    if rendering.modality is None:
        with np.errstate(all="ignore"):
            values *= rendering.slope
            values += rendering.intercept
    return -values if rendering.is_inverted else values


def is_outside(stored: Num[np.ndarray, "h w"], rendering: Rendering) -> Bool[np.ndarray, "h w"]:
    """Where there is no picture: padding, and what is not finite."""
    outside = ~np.isfinite(stored)
    if rendering.padding is not None:
        low, high = rendering.padding
        outside |= (stored >= low) & (stored <= high)
    return outside


def to_shades(
    stored: Num[np.ndarray, "h w"], rendering: Rendering, window: Window | None, stretch: Window | None
) -> UInt8[np.ndarray, "h w"]:
    """Stored values of a frame as shades of grey.

    Args:
        stored: as they are in the file.
        rendering: what the file says of them.
        window: of a person, in place of the file's.
        stretch: where neither has one, of `to_values`.
    """
    values, outside = to_values(stored, rendering), is_outside(stored, rendering)
    values[outside] = 0
    sign = -1 if rendering.is_inverted else 1
    if window is not None:
        shades = apply_window(values, Window(sign * window.center, window.width))
    elif rendering.table is not None:
        shades = look_up(rendering.table, sign * values, rendering.is_inverted)
    elif rendering.window is not None:
        shades = through_window(values, rendering.window, rendering.function, sign)
    else:
        largest = rendering.range or 1.0
        shades = apply_window(values, stretch or Window(sign * largest / 2, largest))
    shades[outside] = 0
    return shades


def look_up(table: Table, values: Float[np.ndarray, "h w"], is_inverted: bool) -> UInt8[np.ndarray, "h w"]:
    """Shades of a table of what is shown."""
    entries = table(values)
    return np.rint((table.largest - entries if is_inverted else entries) * (255 / table.largest)).astype(np.uint8)


def through_window(
    values: Float[np.ndarray, "h w"], window: Window, function: str, sign: int
) -> UInt8[np.ndarray, "h w"]:
    """Shades through a file's window (PS3.3, C.11.2.1.2 and C.11.2.1.3); `sign` is that of the values to its center."""
    center, width = window
    if function == "SIGMOID":
        return np.rint(255 / (1 + np.exp(np.clip(-4 * (values - sign * center) / width, -80, 80)))).astype(np.uint8)
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)
    return apply_window(values, Window(sign * center, width))


def to_colours(stored: Num[np.ndarray, "h w *c"], rendering: Rendering, bits: int) -> UInt8[np.ndarray, "h w 3"]:
    """Stored values of a frame in colours, or of one with a palette, as 8-bit RGB."""
    if rendering.palette is not None:
        channels = [table(stored) * (255 / table.largest) for table in rendering.palette]
        return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    if bits == 8:
        return stored.astype(np.uint8)
    return np.rint(stored * (255 / ((1 << bits) - 1))).astype(np.uint8)
