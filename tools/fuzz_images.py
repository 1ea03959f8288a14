"""Mutants of images: every second has chunks with right checksums, segments of the right length, a table of tags."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from drawn_images import chunk, png, tiff
from fuzzing import Mutation, Reader, flip
from PIL import Image

from medvlsm_jax.data.decoding.tiff_pages import page_offsets
from medvlsm_jax.data.images import open_image, read_mask, to_rgb
from medvlsm_jax.data.scans.pages import open_pages
from medvlsm_jax.errors import UserError

# Numbers that ask for much, or for nothing.
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 60_000, 65_535, 10**9, 2**31 - 1, 2**31, 2**32 - 1)
BOMB = zlib.compress(bytes(64 << 20))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # the orientation


def some(rng: np.random.Generator, choices: tuple) -> int:
    """One of them."""
    return choices[int(rng.integers(0, len(choices)))]


# --- PNG --------------------------------------------------------------------------------------------------------------

HOSTILE_CHUNKS = (
    chunk(b"zTXt", b"bomb\0\0" + BOMB),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    chunk(b"iCCP", b"bomb\0\0" + BOMB),
    chunk(b"acTL", struct.pack(">II", 10**9, 0)),
    chunk(b"acTL", struct.pack(">II", 3, 0)),
    chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 9, 5, 5, 1, 0, 2, 1)),
    chunk(b"tRNS", b"\0\1\0\2\0\3"),
    chunk(b"PLTE", bytes(range(9))),
    chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\3\0\1\0\0\0\6\0\0\0" * 9),
    chunk(b"IDAT", b""),
    chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 16, 2, 0, 0, 1)),
)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def mutate_png(data: bytes, rng: np.random.Generator) -> bytes:
    """Chunks taken out, doubled, exchanged, put in or changed, with right checksums."""
    chunks = [chunk(*part) for part in chunks_of(data)]
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(chunks)))
        match rng.integers(0, 6):
            case 0 if at:
                chunks[at] = b""
            case 1:
                chunks[at] *= int(rng.integers(2, 50))
            case 2:
                chunks.insert(at, some(rng, HOSTILE_CHUNKS))
            case 3 if chunks[at]:
                kind, content = chunks_of(data[:8] + chunks[at])[0]
                chunks[at] = chunk(kind, flip(content, rng)) if content else chunks[at]
            case 4:
                width, height, *others = struct.unpack(">IIBBBBB", chunks_of(data)[0][1])
                others[int(rng.integers(0, 5))] = some(rng, (0, 1, 2, 3, 4, 6, 8, 16))
                size = (width, height) if rng.random() < 0.7 else (some(rng, NUMBERS), height)
                chunks[0] = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, *others))
            case 5:
                other = int(rng.integers(0, len(chunks)))
                chunks[at], chunks[other] = chunks[other], chunks[at]
    return data[:8] + b"".join(chunks)


def opens_as_png(data: bytes) -> bool:
    """Whether the signature is there and the first chunk has the right checksum."""
    length = int.from_bytes(data[8:12], "big")
    return data[:4] == b"\x89PNG" and data[8 : 20 + length] == chunk(data[12:16], data[16 : 16 + length])


# --- JPEG -------------------------------------------------------------------------------------------------------------


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG, with its length."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


HOSTILE_SEGMENTS = (
    segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\3\0\1\0\0\0\6\0\0\0" * 99),
    segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\xff\xff\xff\xff\0\0\0\x08\0\0\0\x08"),
    segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="8"/>'),
    segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\xff\xff\xff\xff"),
    segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(99)),
    segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\xff\xff\xff\xff"),
    segment(0xEE, b"Adobe\0d\0\0\0\0\2"),
    segment(0xDD, b"\0\1"),
    segment(0xC0, b"\x0c\xff\xff\xff\xff\3\1\x22\0\2\x11\1\3\x11\1"),
    segment(0xC0, b"\x08\xff\xff\xff\xff\3\1\x22\0\2\x11\1\3\x11\1"),
    segment(0xDB, bytes(65)),
)


def segments_of(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Marker and content of the segments ahead of the pixels, and what follows; raises ValueError for other files."""
    found, at = [], 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
        if found[-1][0] == 0xDA:
            return found, data[at:]
    raise ValueError("no pixels follow")


def mutate_jpeg(data: bytes, rng: np.random.Generator) -> bytes:
    """Segments taken out, doubled, exchanged, put in or changed, with right lengths; or other pixels."""
    parts, pixels = segments_of(data)
    segments = [segment(*part) for part in parts]
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(segments) - 1))
        match rng.integers(0, 5):
            case 0:
                segments.insert(at, some(rng, HOSTILE_SEGMENTS))
            case 1:
                segments[at] *= int(rng.integers(2, 50))
            case 2 if segments[at]:
                segments[at] = segment(segments[at][1], flip(segments[at][4:], rng)[:60_000])
            case 3 if len(segments) > 4:
                del segments[at]
            case 4:
                pixels = flip(pixels, rng)
    return data[:2] + b"".join(segments) + pixels


def opens_as_jpeg(data: bytes) -> bool:
    """Whether its segments lead to its pixels."""
    try:
        return bool(segments_of(data))
    except ValueError:
        return False


# --- TIFF -------------------------------------------------------------------------------------------------------------


TAGS = (254, 258, 259, 262, 270, 274, 277, 284, 317, 338, 339)  # that say how values lie


def mutate_tiff(data: bytes, rng: np.random.Generator) -> bytes:
    """Tags with other numbers, types, counts and values; directories that lead elsewhere."""
    content = bytearray(data)
    offsets = page_offsets(io.BytesIO(data))
    for _ in range(rng.integers(1, 5)):
        at = some(rng, tuple(offsets))
        count = struct.unpack_from("<H", content, at)[0]
        entry = at + 2 + 12 * int(rng.integers(0, max(1, count)))
        if entry + 12 > len(content):
            continue
        match rng.integers(0, 6):
            case 0:
                struct.pack_into("<H", content, entry, some(rng, TAGS))
            case 1:
                struct.pack_into("<H", content, entry + 2, int(rng.integers(0, 20)))
            case 2:
                struct.pack_into("<I", content, entry + 4, some(rng, NUMBERS))
            case 3:
                struct.pack_into("<I", content, entry + 8, some(rng, (*NUMBERS, len(data), *offsets)))
            case 4:
                end = at + 2 + 12 * count
                if end + 4 <= len(content) and rng.random() < 0.5:
                    struct.pack_into("<I", content, end, some(rng, (0, 8, len(data), *offsets)))
            case 5:
                start = int(rng.integers(8, len(content)))
                content[start : start + 64] = flip(bytes(content[start : start + 64]), rng)[:64].ljust(64, b"\0")
    return bytes(content)


def opens_as_tiff(data: bytes) -> bool:
    """Whether its header leads to a directory."""
    start = int.from_bytes(data[4:8], "little")
    return data[:4] == b"II*\0" and 8 <= start <= len(data) - 6


# --- GIF --------------------------------------------------------------------------------------------------------------


def mutate_gif(data: bytes, rng: np.random.Generator) -> bytes:
    """Frames with other places, sizes, disposals and pixels, taken out or doubled; another screen."""
    start = data.index(b"\x21\xf9\x04")
    frames = [b"\x21\xf9\x04" + part for part in data[start:-1].split(b"\x21\xf9\x04")[1:]]
    head = bytearray(data[:start])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(frames)))
        frame = bytearray(frames[at])
        match rng.integers(0, 6):
            case 0:
                struct.pack_into("<H", frame, 9 + 2 * int(rng.integers(0, 4)), some(rng, (0, 1, 9, 40, 60_000, 65_535)))
                frames[at] = bytes(frame)
            case 1:
                frame[3] = int(rng.integers(0, 256))
                frames[at] = bytes(frame)
            case 2:
                frames[at] = bytes(frame[:17]) + flip(bytes(frame[17:]), rng)
            case 3 if len(frames[at]) < 4 * len(data):  # so that no mutant takes long only because it is long
                frames[at] *= int(rng.integers(2, 20))
            case 4 if rng.random() < 0.3:
                struct.pack_into("<HH", head, 6, some(rng, (1, 40, 60_000)), some(rng, (1, 40, 60_000)))
            case 5:
                frames[at] = b"\x21\xff\x0bXMP DataXMP" + b"\x03abc\0" + frames[at]
    return bytes(head) + b"".join(frames) + data[-1:]


def opens_as_gif(data: bytes) -> bool:
    """Whether it says that it is one, and how large."""
    return data[:4] == b"GIF8" and len(data) > 13


# --- Others -----------------------------------------------------------------------------------------------------------


def behind(length: int) -> Mutation:
    """Changes what lies behind the first bytes."""
    return lambda data, rng: data[:length] + flip(data[length:], rng)


def begins_as(data: bytes, length: int) -> Callable[[bytes], bool]:
    """Whether the first bytes are those of the whole file."""
    return lambda other: other[:length] == data[:length]


def read_all(path: Path) -> None:
    """A file as an image, as a mask, and page by page; raises a UserError of them all when none can be read."""
    ways = (lambda: to_rgb(open_image(path)), lambda: read_mask(path), lambda: read_pages(path))
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Pillow, about metadata
        for read in ways:
            try:
                read()
            except UserError as error:
                lines.append(str(error))
    if len(lines) == len(ways) or not all(line.isprintable() for line in lines):
        raise UserError("; ".join(lines))


def read_pages(path: Path) -> None:
    """Every page of a file, up to the first that cannot be read."""
    scan = open_pages(path)
    for i in range(len(scan)):
        scan.read(i)


def saved(kind: str, count: int = 1, **options) -> bytes:
    """An image or several, by Pillow."""
    rng, stream = np.random.default_rng(0), io.BytesIO()
    images = [Image.fromarray(rng.integers(0, 256, (24, 40, 3)).astype(np.uint8)) for _ in range(count)]
    more = {"save_all": True, "append_images": images[1:]} if count > 1 else {}
    images[0].save(stream, kind, **more, **options)
    return stream.getvalue()


def other(name: str, data: bytes, length: int) -> Reader:
    """A reader of a format whose header is its first bytes."""
    return Reader(name, f".{name}", data, read_all, behind(length), begins_as(data, length))


PIXELS = np.random.default_rng(0).integers(0, 65536, (24, 40, 3)).astype(np.uint16)
DEEP_PNG = png(PIXELS, before=chunk(b"eXIf", EXIF.tobytes()[6:]) + chunk(b"tEXt", b"Comment\0drawn"))
PAGES = ((PIXELS >> 8).astype(np.uint8), (PIXELS[..., 0], {262: 0}), (PIXELS[:6, :10, 0], {254: 1}), PIXELS)
IMAGES = (
    Reader("png", ".png", DEEP_PNG, read_all, mutate_png, opens_as_png),
    Reader("apng", ".png", saved("PNG", 4), read_all, mutate_png, opens_as_png),
    Reader("jpeg", ".jpg", saved("JPEG", exif=EXIF), read_all, mutate_jpeg, opens_as_jpeg),
    Reader("mpo", ".jpg", saved("MPO", 2, exif=EXIF), read_all, mutate_jpeg, opens_as_jpeg),
    Reader("tiff", ".tif", tiff(*PAGES), read_all, mutate_tiff, opens_as_tiff),
    Reader("tiff_deflate", ".tif", tiff(*PAGES, compression=8), read_all, mutate_tiff, opens_as_tiff),
    Reader("gif", ".gif", saved("GIF", 4), read_all, mutate_gif, opens_as_gif),
    other("webp", saved("WEBP", 3, exif=EXIF), 30),
    other("bmp", saved("BMP"), 34),
    other("ppm", b"P6 40 24 4095\n" + (PIXELS >> 4).astype(">u2").tobytes(), 14),
    other("jp2", saved("JPEG2000"), 48),
)
