"""Volumes for tools/fuzz_readers.py: small ones in each format, and mutations that know their headers."""

import gzip
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import Reader

from medvlsm_jax.data.scans.scan import View
from medvlsm_jax.data.scans.volumes import open_volume

SHAPE = (12, 10, 9)
NIFTI_HEADER = 352
# Of NIfTI-1: where a field stands, how it is written, how many there are.
FIELDS = (
    (40, "h", 8),  # dim
    (70, "h", 1),  # datatype
    (72, "h", 1),  # bitpix
    (76, "f", 8),  # pixdim
    (108, "f", 1),  # vox_offset
    (112, "f", 2),  # scl_slope, scl_inter
    (123, "B", 1),  # xyzt_units
    (252, "h", 2),  # qform_code, sform_code
    (256, "f", 6),  # quatern_b … qoffset_z
    (280, "f", 12),  # srow_x …
)
NUMBERS = {
    "h": (0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 128, 256, 511, 512, 768, 1024, 1536, 1792, 2304, 32767, -32768),
    "f": (0, 1, -1, 0.5, 352, 351.5, 353, 1e38, -1e38, 1e-45, math.nan, math.inf, -math.inf),
    "B": (0, 1, 2, 3, 255),
}
WORDS = (
    "", "0", "-1", "1", "2", "4", "12", "1e3", "0.5", "nan", "inf", "-inf", "9" * 30, "1099511627776", "0x10", "True",
    "False", "LOCAL", "LIST", "LIST 2", "/etc/passwd", "../../etc/passwd", "..", "slice%03d.raw 1 9 1", "mutant.mha",
    "MET_SHORT", "MET_DOUBLE", "MET_UCHAR", "MET_LONG_LONG_ARRAY", "MET_OTHER", "double", "uchar", "block", "gzip",
    "raw", "hex", "big", "none", "(1,0,0)", "(nan,0,0)", "(0,0,0)", "left-posterior-superior", "scanner-xyz",
    "RGB-color", "\x00", "é",
)  # fmt: skip


def read_slices(path: Path) -> Any:
    """What a program would read, along each axis; a warning of numpy's is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        volumes = [open_volume(path, View(axis=axis)) for axis in range(3)]
        return [[volume.read(i) for i in range(len(volume))] for volume in volumes]


def draw_numbers() -> bytes:
    """The voxels of a small volume of int16."""
    return np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype("<i2").tobytes("F")


def draw_nifti() -> bytes:
    """A NIfTI-1 file."""
    header = bytearray(NIFTI_HEADER)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SHAPE, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 0.7, 0.7, 2.5, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, NIFTI_HEADER, 1, -24)
    struct.pack_into("<hh", header, 252, 1, 1)
    struct.pack_into("<12f", header, 280, -0.7, 0, 0, 10, 0, 0.7, 0, 3, 0, 0, 2.5, -9)
    header[344:348] = b"n+1\0"
    return bytes(header) + draw_numbers()


def draw_metaimage() -> bytes:
    """An `.mha` file, packed."""
    packed = zlib.compress(draw_numbers())
    return (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        f"CompressedDataSize = {len(packed)}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -10 3 9\n"
        "CenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\nElementSpacing = 0.7 0.7 2.5\n"
        "DimSize = 12 10 9\nElementNumberOfChannels = 1\nHeaderSize = 0\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n"
    ).encode() + packed


def draw_nrrd() -> bytes:
    """An `.nrrd` file."""
    return (
        b"NRRD0004\n# drawn\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 12 10 9\n"
        b"space directions: (0.7,0,0) (0,0.7,0) (0,0,2.5)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        b"byte skip: 0\nspace origin: (-10,3,9)\n\n"
    ) + draw_numbers()


def mutate_voxels(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, taken out or cut off, in one of five."""
    content = bytearray(data)
    if rng.random() < 0.2:
        at, length = int(rng.integers(0, len(content) + 1)), int(rng.integers(1, 100))
        match rng.integers(0, 3):
            case 0:
                content[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
            case 1:
                del content[at : at + length]
            case 2:
                del content[at:]
    return bytes(content)


def mutate_nifti(data: bytes, rng: np.random.Generator) -> bytes:
    """A header with other numbers, or other voxels behind it."""
    header = bytearray(data[:NIFTI_HEADER])
    for _ in range(rng.integers(0, 4)):
        at, kind, count = FIELDS[int(rng.integers(0, len(FIELDS)))]
        at += struct.calcsize(kind) * int(rng.integers(0, count))
        struct.pack_into(f"<{kind}", header, at, NUMBERS[kind][int(rng.integers(0, len(NUMBERS[kind])))])
    return bytes(header) + mutate_voxels(data[NIFTI_HEADER:], rng)


def mutate_packed_nifti(data: bytes, rng: np.random.Generator) -> bytes:
    """The same within gzip; of some the packed bytes are changed instead."""
    if rng.random() < 0.2:
        return data[:400] + mutate_voxels(data[400:], rng)
    return gzip.compress(mutate_nifti(gzip.decompress(data), rng), 1, mtime=0)


def mutate_lines(head: bytes, sign: str, rng: np.random.Generator) -> bytes:
    """Lines with other values, or words in them; taken out, doubled, exchanged."""
    lines = head.decode().splitlines(keepends=True)
    for _ in range(rng.integers(1, 4)):
        at, other = (int(i) for i in rng.integers(0, len(lines) - 1, 2))
        key, found, value = lines[at].partition(sign)
        word = WORDS[int(rng.integers(0, len(WORDS)))]
        match rng.integers(0, 8):
            case 0:
                lines[at] = ""
            case 1:
                lines[at] *= 2
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3 | 4 if found:
                lines[at] = f"{key}{sign} {word}\n"
            case _ if found:
                words = value.split() or [""]
                words[int(rng.integers(0, len(words)))] = word
                lines[at] = f"{key}{sign} {' '.join(words)}\n"
    return "".join(lines).encode()


def mutate_metaimage(data: bytes, rng: np.random.Generator) -> bytes:
    """Other lines, or other voxels behind them."""
    stop = data.index(b"LOCAL\n") + len(b"LOCAL\n")
    if rng.random() < 0.2:
        return data[:stop] + mutate_voxels(data[stop:], rng)
    return mutate_lines(data[:stop], "=", rng) + data[stop:]


def mutate_nrrd(data: bytes, rng: np.random.Generator) -> bytes:
    """The same of NRRD."""
    stop = data.index(b"\n\n") + 2
    if rng.random() < 0.2:
        return data[:stop] + mutate_voxels(data[stop:], rng)
    return data[:9] + mutate_lines(data[9:stop], ":", rng) + data[stop:]


def opens_as_nifti(data: bytes) -> bool:
    """Whether there is the first and the last word of a header."""
    return len(data) >= NIFTI_HEADER and data[:4] == b"\x5c\1\0\0" and data[344:348] == b"n+1\0"


def opens_as_packed_nifti(data: bytes) -> bool:
    """The same within gzip."""
    try:
        return opens_as_nifti(zlib.decompressobj(31).decompress(data, NIFTI_HEADER))
    except zlib.error:
        return False


def opens_as_metaimage(data: bytes) -> bool:
    """Whether there is a first and a last line."""
    return data.startswith(b"ObjectType") and b"\nElementDataFile" in data


def opens_as_nrrd(data: bytes) -> bool:
    """Whether there is the magic word and an end of the header."""
    return data.startswith(b"NRRD000") and b"\n\n" in data


VOLUMES = (
    Reader("nifti", ".nii", draw_nifti(), read_slices, mutate_nifti, opens_as_nifti),
    Reader(
        "nifti_gz",
        ".nii.gz",
        gzip.compress(draw_nifti(), mtime=0),
        read_slices,
        mutate_packed_nifti,
        opens_as_packed_nifti,
    ),
    Reader("metaimage", ".mha", draw_metaimage(), read_slices, mutate_metaimage, opens_as_metaimage),
    Reader("nrrd", ".nrrd", draw_nrrd(), read_slices, mutate_nrrd, opens_as_nrrd),
)
