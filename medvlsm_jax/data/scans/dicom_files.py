"""DICOM files: what one says of its frames, and their stored values. The door of pydicom and of its decoders."""

import dataclasses
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Num

from medvlsm_jax.data.scans import dicom_jpeg
from medvlsm_jax.data.scans.codestreams import JPEG_END, read_codestream
from medvlsm_jax.data.scans.dicom_elements import ELEMENTS, REQUIRED, finder
from medvlsm_jax.data.scans.dicom_places import Place, read_place
from medvlsm_jax.data.scans.dicom_values import Rendering, read_rendering
from medvlsm_jax.errors import UserError

MAX_PIXELS = 1 << 26  # of a frame: 8192 x 8192; the largest radiographs have half of it
MAX_INFLATED = 1 << 29  # bytes of a deflated file
MAX_HEADER = 1 << 28  # bytes in front of the pixels; thousands of frames take some tens of millions
QUIET, LOGGERS = "pydicom", ("pydicom", "openjpeg")
MAX_ITEMS = 200_000  # of all sequences; thousands of frames have some ten thousands
ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # how an item begins, little and big endian
PREAMBLE, MAGIC = 128, b"DICM"
BARE = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # how a file without a preamble begins: its first group
LONG_LENGTHS = (b"OB", b"OW", b"OF", b"OD", b"UN")  # kinds of values whose length has four bytes
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
META, DEFLATED, IMPLICIT, BIG_ENDIAN = 0x0002, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
EXPLICIT = "1.2.840.10008.1.2.1"

# What has pixels, but is no picture of a patient, by SOP class.
NO_PICTURES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.481.2")

# What values may stand for, in one channel and in three; the last only within JPEG 2000, whose decoder makes RGB of it.
GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLOURS, JPEG_2000_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422"), ("YBR_ICT", "YBR_RCT")

# Which of pydicom's plugins decodes a transfer syntax, and the package that it needs.
EXTENDED_JPEG = "1.2.840.10008.1.2.4.51"
JPEG, OWN_JPEG = ("pillow", "pillow"), (dicom_jpeg.NAME, "")
JPEG_LS, JPEG_2000 = ("pyjpegls", "pyjpegls"), ("pylibjpeg", "pylibjpeg-openjpeg")
DECODERS = {
    "1.2.840.10008.1.2.4.50": JPEG,
    EXTENDED_JPEG: JPEG,
    "1.2.840.10008.1.2.4.57": OWN_JPEG,
    "1.2.840.10008.1.2.4.70": OWN_JPEG,
    "1.2.840.10008.1.2.4.80": JPEG_LS,
    "1.2.840.10008.1.2.4.81": JPEG_LS,
    "1.2.840.10008.1.2.4.90": JPEG_2000,
    "1.2.840.10008.1.2.4.91": JPEG_2000,
    "1.2.840.10008.1.2.4.201": JPEG_2000,
    "1.2.840.10008.1.2.4.202": JPEG_2000,
    "1.2.840.10008.1.2.4.203": JPEG_2000,
    "1.2.840.10008.1.2.5": ("pydicom", "pydicom"),
}


class Stream(io.BufferedReader):
    """What is read of a file; of a few bytes a sequence makes objects of a thousand, and so its items are counted."""

    num_items = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if data[:4] in ITEMS:
            self.num_items += 1
            check_items(self.num_items)
        return data


@dataclasses.dataclass(frozen=True, eq=False)
class DicomFile:
    """A file of one or many frames.

    Attributes:
        path: of the file.
        syntax: the UID of its transfer syntax.
        offset: of its pixels, in what is inflated where it is deflated.
        options: of the decoder.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        num_frames: that it has.
        instance: its own UID.
        series: the UID of its series.
        frame_of_reference: the UID of the coordinates in which it lies, "" where it has none.
        number: its place in the series, where nothing else says it.
        modality: CT, MR, US and so on.
        image_type: what tells a localizer from the slices of its series.
        renderings: how its values are shown: of each frame, or one of all.
        places: of each frame, or one of all.
    """

    path: Path
    syntax: str
    offset: int
    options: Mapping[str, Any]
    height: int
    width: int
    num_frames: int
    instance: str
    series: str
    frame_of_reference: str
    number: float
    modality: str
    image_type: tuple[str, ...]
    renderings: tuple[Rendering, ...]
    places: tuple[Place, ...]

    def rendering(self, index: int) -> Rendering:
        """Of a frame."""
        return self.renderings[index if len(self.renderings) > 1 else 0]

    def place(self, index: int) -> Place:
        """Of a frame."""
        return self.places[index if len(self.places) > 1 else 0]

    def is_colour(self) -> bool:
        """Whether a frame has three channels, or a palette."""
        return self.options["samples_per_pixel"] == 3 or self.renderings[0].palette is not None


def import_pydicom() -> ModuleType:
    """The library that reads DICOM; raises UserError when it is not installed."""
    try:
        import pydicom
    except ImportError as error:
        raise UserError("DICOM needs pydicom: pip install 'medvlsm-jax[medical]'") from error
    keep_quiet()
    dicom_jpeg.register()
    return pydicom


def keep_quiet() -> None:
    """Ends what pydicom would warn of: values that break the standard, which are no concern of who reads the picture.

    For the whole process, as only that is safe with threads.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if QUIET not in (getattr(module, "pattern", None) for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=QUIET)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Makes one line of whatever pydicom and its decoders raise."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # dozens of kinds
        raise UserError(f"{path} cannot be read as DICOM ({one_line(error)}): restore or remove it") from error


def one_line(error: BaseException) -> str:
    """What the first of the errors that led to this one says, short and printable."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    lines = str(error).split("\n")
    text = "".join(c if c.isprintable() else "?" for c in lines[-1].strip() or type(error).__name__)
    return text[:200]


# --- What a file says ------------------------------------------------------------------------------------------------


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its magic bytes, or, where it begins without them, by its pixels."""
    try:
        with path.open("rb") as file:
            start = file.read(PREAMBLE + len(MAGIC))
        if start[PREAMBLE:] == MAGIC:
            return True
        return start[:2] in BARE and bool(read_file(path))
    except (OSError, UserError):
        return False


def read_file(path: Path) -> DicomFile:
    """What a file says of its frames.

    Raises:
        UserError: pydicom is not installed; the file cannot be read, is no picture, claims more than it holds, or no
            decoder of its transfer syntax is installed.
    """
    pydicom = import_pydicom()
    with reading(path), open_stream(path) as (stream, meta):
        syntax = meta.TransferSyntaxUID
        dataset, keyword = read_header(stream, syntax)
        check_picture(path, meta, dataset, keyword)
        options = pydicom.pixels.utils.as_pixel_options(dataset, transfer_syntax_uid=syntax, pixel_keyword=keyword)
        check_colours(options, syntax)
        check_decoder(path, syntax)
        options["pixel_vr"], length = read_pixel_header(stream, syntax)
        offset = stream.tell()
        available = min(length, stream.seek(0, io.SEEK_END) - offset)
        check_sizes(options, syntax, available)
        num_frames = int(options["number_of_frames"])
        finds = [finder(dataset, i) for i in range(num_frames if "PerFrameFunctionalGroupsSequence" in dataset else 1)]
        return DicomFile(
            path=path,
            syntax=str(syntax),
            offset=offset,
            options=options,
            height=int(options["rows"]),
            width=int(options["columns"]),
            num_frames=num_frames,
            instance=str(dataset.get("SOPInstanceUID", "")),
            series=str(dataset.get("SeriesInstanceUID", "")),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
            number=float(dataset.get("InstanceNumber") or 0),
            modality=str(dataset.get("Modality", "")),
            image_type=tuple(dataset.get("ImageType") or ()),
            renderings=tuple(read_rendering(find, syntax.is_little_endian) for find in finds),
            places=tuple(read_place(find) for find in finds),
        )


def read_attributes(path: Path) -> Any:
    """All that a file says but its pixels, as pydicom has it: for who refers to it, as a segmentation does.

    Raises:
        UserError: it cannot be read.
    """
    pydicom = import_pydicom()
    with reading(path):
        return pydicom.dcmread(path, stop_before_pixels=True, force=True)


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[Stream, Any]]:
    """A file behind its first elements, inflated where it is deflated, and these (PS3.10, 7.1), a syntax among them.

    Raises:
        ValueError: it inflates to more than MAX_INFLATED.
    """
    from pydicom.filereader import read_dataset, read_preamble

    with Stream(io.FileIO(path)) as file:
        read_preamble(file, force=True)
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != META)
        if not meta.get("TransferSyntaxUID"):
            meta.TransferSyntaxUID = guess_syntax(file)
        if meta.TransferSyntaxUID != DEFLATED:
            yield file, meta
            return
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflate.decompress(file.read(), MAX_INFLATED)
        if inflate.unconsumed_tail:
            raise ValueError(f"it inflates to more than {MAX_INFLATED >> 20} MiB")
        yield Stream(io.BytesIO(data)), meta


def guess_syntax(file: Stream) -> Any:
    """The UID of the transfer syntax of a file that does not say it, by its first element."""
    from pydicom.uid import UID

    start = file.read(6)
    file.seek(-len(start), io.SEEK_CUR)
    if not start[4:].isalpha():
        return UID(IMPLICIT)
    return UID(EXPLICIT if start[1:2] == b"\0" else BIG_ENDIAN)


def read_header(stream: Stream, syntax: Any) -> tuple[Any, str]:
    """The ELEMENTS of a file, up to its pixels, and what these are called; "" where there are none."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset

    found = []

    def is_pixels(tag: int, vr: str | None, length: int) -> bool:
        if stream.tell() > MAX_HEADER:
            raise ValueError(f"its header has more than {MAX_HEADER >> 20} MiB")
        found.extend([PIXELS[tag]] if tag in PIXELS else [])
        return bool(found)

    tags: list[Any] = [tag_for_keyword(keyword) for keyword in ELEMENTS]
    dataset = read_dataset(
        stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=is_pixels, specific_tags=tags
    )
    for element in dataset.values():
        value = element.value  # of a sequence whose length is known, its bytes: it is parsed when it is asked for
        check_items(sum(value.count(item) for item in ITEMS) if isinstance(value, bytes) else 0)
    return dataset, "".join(found)


def check_items(count: int) -> None:
    """Refuses sequences that would fill the memory; raises ValueError."""
    if count > MAX_ITEMS:
        raise ValueError(f"it has more than {MAX_ITEMS} items in sequences")


def read_pixel_header(stream: Stream, syntax: Any) -> tuple[str, int]:
    """The kind of the pixels and their length in bytes; the stream stands behind it then."""
    order = "<" if syntax.is_little_endian else ">"
    if syntax.is_implicit_VR:
        return "OW", struct.unpack(f"{order}4xL", stream.read(8))[0]
    vr, short = struct.unpack(f"{order}4x2sH", stream.read(8))
    return vr.decode("latin-1"), struct.unpack(f"{order}L", stream.read(4))[0] if vr in LONG_LENGTHS else short


# --- What is refused -------------------------------------------------------------------------------------------------


def check_picture(path: Path, meta: Any, dataset: Any, keyword: str) -> None:
    """Refuses what is no picture, and says what it is; raises ValueError for what is no DICOM."""
    from pydicom.uid import UID

    sop_class = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    if not keyword and not sop_class:
        raise ValueError("it has no pixels")
    if not keyword or sop_class in NO_PICTURES:
        what = "no picture of a patient" if keyword else "no picture"
        raise UserError(f"{path} holds {what} ({one_line(ValueError(UID(sop_class).name))}): leave it out")
    if missing := [keyword for keyword in REQUIRED if dataset.get(keyword) is None]:
        raise ValueError(f"{missing[0]} is missing")
    if keyword == "PixelData" and dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        raise ValueError(f"its highest bit is {dataset.HighBit}, but {dataset.BitsStored} bits are stored")


def check_colours(options: Mapping[str, Any], syntax: Any) -> None:
    """Refuses colours that nothing here makes RGB of; raises ValueError."""
    kind, samples, bits = (
        options[key] for key in ("photometric_interpretation", "samples_per_pixel", "bits_allocated")
    )
    colours = COLOURS + (JPEG_2000_COLOURS if DECODERS.get(syntax) is JPEG_2000 else ())
    is_known = kind in (GREY if samples == 1 else colours)
    if not is_known or (kind in ("YBR_FULL", "YBR_FULL_422") and bits > 8):
        name = one_line(ValueError(kind))
        raise ValueError(f"its colours, {name} in {samples} channels of {bits} bits, are not read")


def check_decoder(path: Path, syntax: Any) -> None:
    """Refuses a transfer syntax that nothing installed decodes."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        name = one_line(ValueError(syntax.name))
        raise UserError(f"{path} is in {name}, which is not read: convert it to another transfer syntax") from error
    plugin, package = DECODERS.get(syntax, (None, None))
    if plugin and plugin not in decoder.available_plugins:
        raise UserError(f"{path} is in {syntax.name}, which needs {package}: pip install 'medvlsm-jax[medical]'")


def check_sizes(options: Mapping[str, Any], syntax: Any, available: int) -> None:
    """Refuses what claims more than the bytes that are there; raises ValueError."""
    height, width, samples = (int(options[key]) for key in ("rows", "columns", "samples_per_pixel"))
    frames, bits = int(options["number_of_frames"]), int(options["bits_allocated"])
    if min(height, width, frames) < 1:
        raise ValueError(f"{frames} frames of {width}x{height} pixels make no sense")
    if height * width > MAX_PIXELS:
        raise ValueError(f"a frame of {width}x{height} pixels is too large")
    if syntax.is_encapsulated:
        expected = 8 * frames  # the least that a frame takes
    else:
        length = height * width * samples * bits
        if options["photometric_interpretation"] == "YBR_FULL_422":
            length = length // 3 * 2
        expected = -(-length * frames // 8)
    if available < expected:
        raise ValueError(f"its header claims {expected} bytes of pixels, but {available} are there")


# --- Frames ----------------------------------------------------------------------------------------------------------


def read_frame(file: DicomFile, index: int) -> Num[np.ndarray, "h w *c"]:
    """The stored values of a frame; colours as RGB.

    Raises:
        UserError: it cannot be decoded.
    """
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels.decoders.base import get_decoder

    import_pydicom()
    with reading(file.path), open_stream(file.path) as (stream, meta):
        syntax = meta.TransferSyntaxUID
        stream.seek(file.offset)
        options = dict(file.options)
        source, plugin = stream, ""
        if syntax.is_encapsulated:
            offsets = options.pop("extended_offsets", None)
            data = get_frame(stream, index, number_of_frames=file.num_frames, extended_offsets=offsets)
            plugin = choose_plugin(file, data)
            source, index = encapsulate([data]), 0
            options["number_of_frames"] = 1
        values, _ = get_decoder(syntax).as_array(source, index=index, decoding_plugin=plugin, **options)
        return values


def choose_plugin(file: DicomFile, data: bytes) -> str:
    """Which of pydicom's plugins decodes a compressed frame, before anything is made of it.

    Raises:
        ValueError: it is of another size than its file says. Of RLE, which has no header of its own, the decoder knows
            the size from the file. Or it has no end.
    """
    header = read_codestream(data)
    if header is not None and (header.height, header.width) != (file.height, file.width):
        size, expected = f"{header.width}x{header.height}", f"{file.width}x{file.height}"
        raise ValueError(f"a compressed frame has {size} pixels instead of {expected}")
    if DECODERS[file.syntax] is JPEG_LS and JPEG_END not in data:
        raise ValueError("a compressed frame ends early")  # over which CharLS loops for ten seconds
    if file.syntax == EXTENDED_JPEG and header is not None and header.precision > 8:
        return dicom_jpeg.NAME
    return DECODERS[file.syntax][0]
