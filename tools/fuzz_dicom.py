"""DICOM for tools/fuzz_readers.py: small files in several transfer syntaxes, and mutations that know their elements."""

import io
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from drawn_dicom import (
    baseline_jpeg,
    draw_compressed,
    draw_dataset,
    draw_enhanced,
    draw_jpeg,
    jpeg_of_blocks,
    lossless_jpeg,
)
from fuzzing import Reader

from medvlsm_jax.data.scans.dicom import open_series
from medvlsm_jax.data.scans.scan import View
from medvlsm_jax.errors import UserError

RLE, JPEG, JPEG_EXTENDED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
HEADER = 132  # preamble and magic bytes
LONG = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OL", b"OV")
SHORTS = (0, 1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 64, 127, 128, 255, 256, 4096, 32767, 32768, 65535)
TEXTS = (
    b"", b"0", b"1", b"-1", b"2", b"1000000", b"99999999999", b"1e400", b"nan", b"inf", b"0\\0", b"1\\0\\0",
    b"40\\80",
    b"MONOCHROME1", b"MONOCHROME2", b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"YBR_RCT", b"PALETTE COLOR", b"INVERSE",
    b"LINEAR_EXACT", b"SIGMOID", b"\\\\\\", b"\xff\xfe", b"1.2.840.10008.5.1.4.1.1.66.4",
)  # fmt: skip
LENGTHS = (0, 1, 2, 7, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


class Element(NamedTuple):
    """Where an element stands in a file of explicit syntax: itself, its value and its end."""

    start: int
    vr: bytes
    value: int
    stop: int


def read_slices(path: Path) -> Any:
    """What a program would read."""
    failures = list[str]()
    series = open_series([path], View(), failures)
    if failures:
        raise UserError(failures[0])
    return [scan.read(i) for scan in series for i in range(len(scan))]


def elements_of(data: bytes) -> list[Element]:
    """Those of a sound file, sequences in one piece."""
    elements, at = [], HEADER
    while at + 8 <= len(data):
        vr, length = data[at + 4 : at + 6], int.from_bytes(data[at + 6 : at + 8], "little")
        value = at + (12 if vr in LONG else 8)
        if vr in LONG:
            length = int.from_bytes(data[at + 8 : at + 12], "little")
        stop = len(data) if length == 0xFFFFFFFF else value + length
        elements.append(Element(at, vr, value, stop))
        at = stop
    return elements


def mutate_elements(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three elements behind the header with another value, taken out, doubled, or of another length."""
    for _ in range(rng.integers(1, 4)):
        elements = [element for element in elements_of(data) if data[element.start : element.start + 2] != b"\x02\0"]
        element = elements[int(rng.integers(0, len(elements)))]
        if rng.random() < 0.3:
            element = elements[-1]  # the pixels
        value = data[element.value : element.stop]
        match rng.integers(0, 10):
            case 0:
                data = data[: element.start] + data[element.stop :]
            case 1:
                data = data[: element.stop] + data[element.start :]
            case 2:
                length = int(rng.choice(LENGTHS))
                code = struct.pack("<L", length) if element.vr in LONG else struct.pack("<H", length & 0xFFFF)
                data = data[: element.value - len(code)] + code + data[element.value :]
            case 3 | 4 if element.vr in LONG:
                data = data[: element.value] + flip_bytes(value, rng) + data[element.stop :]
            case _ if element.vr not in LONG:
                value = other_value(element.vr, value, rng)
                code = struct.pack("<H", len(value))
                data = data[: element.value - 2] + code + value + data[element.stop :]
            case _:
                data = data[: element.value] + mutate_fragments(value, rng) + data[element.stop :]
    return data


def other_value(vr: bytes, value: bytes, rng: np.random.Generator) -> bytes:
    """A value of the same kind, or one of another length."""
    if vr in (b"US", b"SS"):
        words = rng.choice(SHORTS, max(1, len(value) // 2)).astype("<u2")
        return words.tobytes()
    text = TEXTS[int(rng.integers(0, len(TEXTS)))]
    return text + b" " * (len(text) % 2)


def flip_bytes(value: bytes, rng: np.random.Generator) -> bytes:
    """The same length with some bytes changed."""
    content = bytearray(value)
    for _ in range(rng.integers(1, 9)):
        if content:
            content[int(rng.integers(0, len(content)))] = int(rng.integers(0, 256))
    return bytes(content)


def mutate_fragments(value: bytes, rng: np.random.Generator) -> bytes:
    """Fragments of compressed frames: their lengths and delimiters, or what is in the first kilobyte of one."""
    starts = [at for at in range(0, len(value) - 8) if value[at : at + 4] == b"\xfe\xff\x00\xe0"]
    if not starts:
        return flip_bytes(value, rng)[: int(rng.integers(0, len(value) + 1))]
    at = starts[int(rng.integers(0, len(starts)))]
    match rng.integers(0, 4):
        case 0:
            return value[: at + 4] + struct.pack("<L", int(rng.choice(LENGTHS))) + value[at + 8 :]
        case 1:
            return value[:at] + value[at + 8 :]
        case 2:
            return value[: int(rng.integers(at, len(value)))] + b"\xfe\xff\xdd\xe0\0\0\0\0"
        case _:
            return value[: at + 8] + flip_bytes(value[at + 8 : at + 1032], rng) + value[at + 1032 :]


def has_header(data: bytes) -> bool:
    """Whether the magic bytes and the transfer syntax are whole."""
    return data[128:132] == b"DICM" and b"\x02\x00\x10\x00UI" in data[:400]


def draw_files() -> dict[str, bytes]:
    """A file of each kind: an uncompressed CT slice, compressed ones, frames with functional groups, a palette."""
    rng = np.random.default_rng(0)
    slices = np.add.outer(np.arange(5) * 9, np.add.outer(np.arange(40) ** 2, np.arange(48) * 7)) + rng.integers(
        0, 90, 48
    )
    slices = slices.astype(np.int16)
    place = {
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.7, 0.8],
        "WindowCenter": [400, 40],
        "WindowWidth": [800, 80],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelPaddingValue": 0,
    }
    colours = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
    blocks = rng.integers(0, 4096, (5, 6))
    tiles = np.kron(blocks, np.ones((8, 8))).astype(np.uint16)
    return {
        "dicom": written(draw_dataset(slices[0], **place)),
        "dicom_frames": written(draw_enhanced(slices, [2, 0, 1, 4, 3])),
        "dicom_palette": written(
            draw_dataset(colours[..., 0], PhotometricInterpretation="PALETTE COLOR", **palette(rng))
        ),
        "dicom_rle": written(draw_compressed(slices[0], RLE, **place)),
        "dicom_jpeg_ls": written(draw_compressed(slices[0], JPEG_LS, **place)),
        "dicom_jpeg_2000": written(draw_compressed(slices[:3], JPEG_2000, NumberOfFrames=3)),
        "dicom_jpeg": written(
            draw_jpeg(baseline_jpeg(colours), colours, JPEG, PhotometricInterpretation="YBR_FULL_422")
        ),
        "dicom_jpeg_12_bits": written(draw_jpeg(jpeg_of_blocks(blocks), tiles, JPEG_EXTENDED, BitsStored=12)),
        "dicom_jpeg_lossless": written(draw_jpeg(lossless_jpeg(slices[0], 16), slices[0], JPEG_LOSSLESS, **place)),
    }


def palette(rng: np.random.Generator) -> dict[str, Any]:
    """Tables of 256 colours."""
    tables: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = rng.integers(0, 1 << 16, 256).astype("<u2").tobytes()
    return tables


def written(dataset: Any) -> bytes:
    """A file of a data set."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


DICOM = tuple(
    Reader(name, ".dcm", data, read_slices, mutate_elements, has_header) for name, data in draw_files().items()
)
