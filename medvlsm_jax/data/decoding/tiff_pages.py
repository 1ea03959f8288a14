"""The pages of a TIFF: a chain of directories, of which some are thumbnails, smaller copies and transparency masks."""

import dataclasses
import io
import math
import os
import struct
from typing import IO, Any, Literal

from PIL.ExifTags import Base as Tag

from medvlsm_jax.data.decoding.errors import BROKEN
from medvlsm_jax.data.files import File

SHORT = 3  # a type of values (TIFF 6.0, section 2)
REDUCED, TRANSPARENCY = 1, 4  # bits of NewSubfileType: a smaller copy of another page, a mask of it
MAX_PAGES = 100_000
IMAGEJ = "ImageJ="  # how its descriptions begin (ij.io.TiffEncoder); lines of key=value follow
MILLIMETRES = {"mm": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "\\u00B5m": 1e-3, "nm": 1e-6}  # its units

Stream = IO[bytes] | io.BytesIO  # of a file on disk, of one in a store


@dataclasses.dataclass(frozen=True)
class Layout:
    """How numbers lie in a TIFF, classic or BigTIFF (by the bytes that Pillow looks at).

    Attributes:
        order: of bytes, for struct.
        is_big: whether offsets have 8 bytes instead of 4.
    """

    order: Literal["<", ">"]
    is_big: bool

    @property
    def first(self) -> int:
        """Where the header has the offset of the first directory."""
        return 8 if self.is_big else 4

    @property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.is_big else "I"))

    @property
    def count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.is_big else "H"))

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count and value of an entry."""
        return struct.Struct(self.order + ("HHQ8s" if self.is_big else "HHI4s"))


def read_layout(header: bytes) -> Layout:
    """The layout that the first four bytes of a TIFF tell."""
    return Layout("<" if header[:2] == b"II" else ">", header[2:3] == b"\x2b")


def page_offsets(file: Stream) -> list[int]:
    """Where the directories of a TIFF's pages lie; its only one where all are thumbnails or the like.

    Raises:
        ValueError: the chain is broken, longer than MAX_PAGES, or reads the same bytes again and again.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    layout = read_layout(file.read(4))
    file.seek(layout.first)
    (offset,) = layout.offset.unpack(file.read(layout.offset.size))
    first, pages, seen, entries = offset, [], set(), 0
    while offset and offset not in seen:
        seen.add(offset)
        try:
            file.seek(offset)
            (count,) = layout.count.unpack(file.read(layout.count.size))
            entries += count
            if len(pages) > MAX_PAGES or entries * layout.entry.size > size:
                raise ValueError("its pages lie one over the other, or are too many")
            table = file.read(count * layout.entry.size)
            (following,) = layout.offset.unpack(file.read(layout.offset.size))
            if not subfile_type(table, layout) & (REDUCED | TRANSPARENCY):
                pages.append(offset)
            offset = following
        except (struct.error, OverflowError) as error:
            raise ValueError(f"its chain of pages breaks off after {len(pages)}") from error
    return pages or [first]


def subfile_type(table: bytes, layout: Layout) -> int:
    """NewSubfileType of the directory with these entries; 0 where it has none."""
    if struct.pack(f"{layout.order}H", Tag.NewSubfileType) not in table:
        return 0
    for tag, kind, _, value in layout.entry.iter_unpack(table):
        if tag == Tag.NewSubfileType:
            return struct.unpack_from(layout.order + ("H" if kind == SHORT else "I"), value)[0]
    return 0


def imagej_properties(tags: Any) -> dict[str, str]:
    """What ImageJ says of a file in its description; nothing where that is another program's."""
    description = str(tags.get(Tag.ImageDescription, ""))
    lines = description.splitlines() if description.startswith(IMAGEJ) else []
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def stacked_slices(tags: Any) -> int:
    """How many slices ImageJ has put behind one directory, as it does where a file has over 4 GB; else 0."""
    count = imagej_properties(tags).get("images", "")
    return int(count) if count.isdecimal() else 0


def imagej_spacing(tags: Any) -> tuple[tuple[float, float] | None, float | None]:
    """Millimetres of a pixel, down and across, and from page to page, of a file that ImageJ has calibrated.

    The resolution of other TIFFs is that of a print or a screen and says nothing of the patient.
    """
    said = imagej_properties(tags)
    unit = MILLIMETRES.get(said.get("unit", ""))
    try:
        down, across = (unit / float(tags[tag]) for tag in (Tag.YResolution, Tag.XResolution)) if unit else (0.0, 0.0)
        distance = unit * float(said["spacing"]) if unit and "spacing" in said else 0.0
    except BROKEN:
        return None, None
    is_known = 0 < down < math.inf and 0 < across < math.inf
    return (down, across) if is_known else None, distance if is_known and 0 < distance < math.inf else None


@dataclasses.dataclass(frozen=True)
class TiffPage:
    """A page of a TIFF as a file of its own, with the part of a path that images are read by (`files.File`).

    Attributes:
        path: the whole file.
        offset: of the page's directory.
        number: from 1, for people.
    """

    path: File
    offset: int
    number: int = 1

    def __str__(self) -> str:
        return f"{self.path}, page {self.number},"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The file, with a header that leads to this page first."""
        file = self.path.open(mode)
        header = file.read(16)
        file.seek(0)
        layout = read_layout(header)
        return io.BufferedReader(Redirected(file, header[: layout.first] + layout.offset.pack(self.offset)))

    def is_file(self) -> bool:
        return self.path.is_file()

    def stat(self) -> os.stat_result:
        return self.path.stat()


class Redirected(io.RawIOBase):
    """A file with another beginning. Who reads its descriptor itself, as libtiff does, sees the file as it is."""

    mode = "rb"

    def __init__(self, file: Stream, beginning: bytes):
        self.file = file
        self.beginning = beginning

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def fileno(self) -> int:
        return self.file.fileno()

    def readinto(self, buffer: Any) -> int:
        start = self.file.tell()
        content = self.file.read(len(buffer))
        if start < len(self.beginning):
            new = self.beginning[start : start + len(content)]
            content = new + content[len(new) :]
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()
