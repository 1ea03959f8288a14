"""The pages of a TIFF: a chain of directories, of which some are thumbnails, smaller copies and transparency masks."""

import dataclasses
import io
import os
import re
import struct
from typing import IO, Literal

from medvlsm_jax.data.files import File

SUBFILE_TYPE, DESCRIPTION = 254, 270  # tags of TIFF 6.0: NewSubfileType, ImageDescription
SHORT = 3  # a type of values
REDUCED, TRANSPARENCY = 1, 4  # bits of NewSubfileType: a smaller copy of another page, a mask of it
MAX_PAGES = 100_000
# How ImageJ describes the one page of a stack that is too large for pages (ij.io.TiffEncoder).
IMAGEJ = re.compile(r"ImageJ=.*?^images=(\d+)$", re.MULTILINE | re.DOTALL)


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


def page_offsets(file: IO[bytes]) -> list[int]:
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
        file.seek(offset)
        (count,) = layout.count.unpack(file.read(layout.count.size))
        entries += count
        if len(pages) > MAX_PAGES or entries * layout.entry.size > size:
            raise ValueError("its pages lie one over the other, or are too many")
        table = file.read(count * layout.entry.size)
        if not subfile_type(table, layout) & (REDUCED | TRANSPARENCY):
            pages.append(offset)
        (offset,) = layout.offset.unpack(file.read(layout.offset.size))
    return pages or [first]


def subfile_type(table: bytes, layout: Layout) -> int:
    """NewSubfileType of the directory with these entries; 0 where it has none."""
    if struct.pack(f"{layout.order}H", SUBFILE_TYPE) not in table:
        return 0
    for tag, kind, _, value in layout.entry.iter_unpack(table):
        if tag == SUBFILE_TYPE:
            return struct.unpack_from(layout.order + ("H" if kind == SHORT else "I"), value)[0]
    return 0


def stacked_slices(description: str) -> int:
    """How many slices ImageJ says that it wrote to a file; 0 where the description is another program's."""
    match = IMAGEJ.match(description)
    return int(match[1]) if match else 0


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
        return Redirected(file, header[: layout.first] + layout.offset.pack(self.offset))

    def is_file(self) -> bool:
        return self.path.is_file()

    def stat(self) -> os.stat_result:
        return self.path.stat()


class Redirected(io.RawIOBase):
    """A file with another beginning. Who reads its descriptor itself, as libtiff does, sees the file as it is."""

    def __init__(self, file: IO[bytes], beginning: bytes):
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

    def readinto(self, buffer: memoryview) -> int:
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
