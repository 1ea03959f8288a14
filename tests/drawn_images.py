"""Image files that Pillow reads but does not write: deep colour, tags, pages of every kind."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, with the right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, *, is_interlaced: bool = False, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of (h, w, channels) uint8 or uint16, with chunks before and after its pixels."""
    height, width, channels = pixels.shape
    big = pixels.astype(f">u{pixels.itemsize}")
    passes = [big[y::down, x::across] for y, x, down, across in ADAM7] if is_interlaced else [big]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = (width, height, 8 * pixels.itemsize, COLOUR_TYPES[channels], 0, 0, is_interlaced)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", *header)),
            before,
            chunk(b"IDAT", zlib.compress(rows)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def directory(tags: Mapping[int, Any], at: int, order: str, is_big: bool, is_last: bool) -> bytes:
    """A directory of a TIFF that lies at an offset, with its values behind it; text, and numbers as 16 or 32 bits."""
    head, entry, word = ("Q", "HHQ", "Q") if is_big else ("H", "HHI", "I")
    room = struct.calcsize(word)
    start = at + struct.calcsize(order + head) + len(tags) * struct.calcsize(order + entry + word) + room
    table, values = struct.pack(order + head, len(tags)), b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, str):
            kind, count, content = 2, len(value.encode()) + 1, value.encode() + b"\0"
        elif isinstance(value, float):
            kind, count, content = 5, 1, struct.pack(order + "II", round(value * 1000), 1000)
        else:
            numbers = value if isinstance(value, Sequence) else [value]
            kind, count = (4, len(numbers)) if max(numbers) > 65535 or tag in (273, 279) else (3, len(numbers))
            content = struct.pack(f"{order}{count}{'I' if kind == 4 else 'H'}", *numbers)
        if len(content) > room:
            values += b"\0" * ((start + len(values)) % 2)
            content, values = struct.pack(order + word, start + len(values)), values + content
        table += struct.pack(order + entry, tag, kind, count) + content.ljust(room, b"\0")
    end = start + len(values) + (start + len(values)) % 2
    return (table + struct.pack(order + word, 0 if is_last else end) + values).ljust(end - at, b"\0")


def tiff(
    *pages: np.ndarray | tuple[np.ndarray, Mapping[int, Any]],
    order: str = "<",
    compression: int = 1,
    predictor: int = 1,
    is_big: bool = False,
) -> bytes:
    """A TIFF, classic or BigTIFF, of pages (h, w) or (h, w, channels) of any type, each with tags of its own.

    Args:
        pages: pixels, or pixels and tags that replace the usual ones; a planar configuration of 2 lays channels apart.
        order: of bytes, `<` or `>`.
        compression: 1 for none, 8 for deflate.
        predictor: 2 keeps differences of neighbours.
        is_big: BigTIFF.
    """
    mark = b"II" if order == "<" else b"MM"
    content = mark + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if is_big else struct.pack(order + "HI", 42, 8))
    for i, page in enumerate(pages):
        pixels, extra = page if isinstance(page, tuple) else (page, {})
        height, width, *channels = pixels.shape
        count = channels[0] if channels else 1
        values = pixels.astype(pixels.dtype.newbyteorder(order))
        if predictor == 2:
            before = np.concatenate([np.zeros_like(values[:, :1]), values[:, :-1]], axis=1)
            values = (values - before).astype(values.dtype)
        parts = [values[..., c] for c in range(count)] if extra.get(284) == 2 and channels else [values]
        strips = [zlib.compress(part.tobytes()) if compression == 8 else part.tobytes() for part in parts]
        tags: dict[int, Any] = {
            **{256: width, 257: height, 258: [8 * pixels.itemsize] * count, 259: compression},
            **{262: 2 if count >= 3 else 1, 277: count, 278: height, 279: [len(strip) for strip in strips]},
            **{317: predictor, 339: [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * count},
            **({338: [2]} if count in (2, 4) else {}),
            **extra,
        }
        tags = {tag: value for tag, value in tags.items() if value is not None}
        length = len(directory(tags | {273: [0] * len(strips)}, len(content), order, is_big, False))
        starts = np.cumsum([len(content) + length, *map(len, strips[:-1])]).tolist()
        is_last = i == len(pages) - 1
        data = b"".join(strips)
        end = len(content) + length + len(data) + len(data) % 2
        written = directory(tags | {273: starts}, len(content), order, is_big, is_last)
        if not is_last:  # the next directory lies behind the pixels
            word = order + ("Q" if is_big else "I")
            at = struct.calcsize(order + ("Q" if is_big else "H")) + (len(tags) + 1) * (20 if is_big else 12)
            written = written[:at] + struct.pack(word, end) + written[at + struct.calcsize(word) :]
        content = (content + written + data).ljust(end, b"\0")
    return content
