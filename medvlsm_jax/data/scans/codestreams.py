"""What compressed frames say of themselves, read before a decoder makes anything of them."""

import struct
from typing import NamedTuple

JPEG_START, JPEG_END, JPEG_2000_START = b"\xff\xd8", b"\xff\xd9", b"\xff\x4f\xff\x51"
FRAMES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a start of frame, JPEG-LS's first


class Codestream(NamedTuple):
    """A compressed picture.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: of a pixel.
        precision: bits of a value.
    """

    height: int
    width: int
    channels: int
    precision: int


def read_codestream(data: bytes) -> Codestream | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000; None for what is in none of these formats, as RLE.

    Raises:
        ValueError: it is broken.
    """
    if data[:2] == JPEG_START:
        return read_jpeg_header(data)
    return read_jpeg_2000_header(data) if JPEG_2000_START in data[:4096] else None


def read_jpeg_header(data: bytes) -> Codestream:
    """The start of frame of a JPEG or JPEG-LS; raises ValueError when there is none."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in FRAMES:
            precision, height, width, channels = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return Codestream(height, width, channels, precision)
        at += 1 if marker == 0xFF else 2 + length
    raise ValueError("a compressed frame has no start of frame")


def read_jpeg_2000_header(data: bytes) -> Codestream:
    """The image and tile size of a JPEG 2000 (SIZ), in its box or without."""
    at = data.index(JPEG_2000_START) + 8
    right, bottom, left, top = struct.unpack(">4L", data[at : at + 16])
    channels, precision = struct.unpack(">HB", data[at + 32 : at + 35])
    return Codestream(bottom - top, right - left, channels, (precision & 0x7F) + 1)
