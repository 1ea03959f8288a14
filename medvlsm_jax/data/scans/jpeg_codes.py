"""JPEG's segments and its Huffman codes (ITU-T T.81), read of all bits at once."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num, UInt8, UInt16

from medvlsm_jax.data.scans.codestreams import FRAMES, Codestream, read_jpeg_header

QUANTIZATION, HUFFMAN, RESTART, SCAN, END = 0xDB, 0xC4, 0xDD, 0xDA, 0xD9
RESTARTS = range(0xD0, 0xD8)
CHUNK = 1 << 17  # bytes of which all bits are looked at, at a time


class Component(NamedTuple):
    """Of a scan: one channel.

    Attributes:
        sampling: 0x11 for one value a pixel.
        quantization: the number of its table.
        direct: the number of the Huffman table of its first coefficients, or of its differences.
        alternating: the number of that of the others.
    """

    sampling: int
    quantization: int
    direct: int
    alternating: int


class Codes(NamedTuple):
    """A Huffman table, for each of the 65,536 ways in which 16 bits can begin.

    Attributes:
        lengths: of the code, 0 where there is none.
        symbols: that the code stands for.
    """

    lengths: Int[np.ndarray, "65536"]
    symbols: Int[np.ndarray, "65536"]


@dataclasses.dataclass
class Jpeg:
    """A JPEG of one scan.

    Attributes:
        header: its size.
        marker: of its frame, which names the process: 0xC1 is the sequential one, 0xC3 the lossless one.
        quantization: its tables, in zigzag order, by number.
        codes: its Huffman tables, by class (0 direct, 1 alternating) and number.
        interval: units of the scan between two restarts; 0 where there is none.
        components: of the scan.
        selection: the first coefficient of the scan, or of a lossless one the predictor.
        shift: of the values, to the left.
        intervals: the coded bytes between restarts.
    """

    header: Codestream
    marker: int
    quantization: dict[int, Num[np.ndarray, "64"]]
    codes: dict[tuple[int, int], Codes]
    interval: int
    components: list[Component]
    selection: int
    shift: int
    intervals: list[UInt8[np.ndarray, " n"]]


def read_jpeg(data: bytes) -> Jpeg:
    """The tables and the scan of a JPEG.

    Raises:
        ValueError: it is broken, or has its channels in several scans.
    """
    jpeg = Jpeg(read_jpeg_header(data), 0, {}, {}, 0, [], 0, 0, [])
    tables: dict[int, tuple[int, int]] = {}
    for marker, content, stop in segments(data):
        if marker == QUANTIZATION:
            jpeg.quantization |= read_quantization(content)
        elif marker == HUFFMAN:
            jpeg.codes |= read_codes(content)
        elif marker == RESTART:
            jpeg.interval = int.from_bytes(content[:2], "big")
        elif marker in FRAMES:
            jpeg.marker = marker
            tables = {content[at]: (content[at + 1], content[at + 2]) for at in range(6, len(content) - 2, 3)}
        elif marker == SCAN:
            count = content[0]
            if count != len(tables) or count != jpeg.header.channels or len(content) < 2 * count + 4:
                raise ValueError("a JPEG has its channels in several scans")
            for i in range(count):
                name, selector = content[1 + 2 * i], content[2 + 2 * i]
                jpeg.components.append(Component(*tables[name], selector >> 4, selector & 15))
            jpeg.selection, jpeg.shift = content[2 * count + 1], content[2 * count + 3] & 15
            jpeg.intervals = split_intervals(np.frombuffer(data, np.uint8, offset=stop))
            return jpeg
    raise ValueError("a JPEG has no scan")


def segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The markers up to the first scan with what belongs to them, and where that ends; raises ValueError at the end."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, stop = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a byte to fill
            at += 1
        elif stop > len(data) or stop < at + 4:
            break
        else:
            yield marker, data[at + 4 : stop], stop
            at = stop
    raise ValueError("a JPEG ends within its tables")


def split_intervals(coded: UInt8[np.ndarray, " n"]) -> list[UInt8[np.ndarray, " m"]]:
    """Coded bytes between restarts, up to the end, without the zeros that are put behind 0xFF."""
    marks = np.flatnonzero(coded[:-1] == 0xFF)
    following = coded[marks + 1]
    is_restart = np.isin(following, RESTARTS)
    ends = marks[(following != 0) & ~is_restart]
    if not len(ends):
        raise ValueError("a JPEG has no end")
    cuts = [*marks[is_restart & (marks < ends[0])], ends[0]]
    intervals, start = [], 0
    for cut in cuts:
        part = coded[start:cut]
        stuffed = 1 + np.flatnonzero((part[:-1] == 0xFF) & (part[1:] == 0))
        intervals.append(np.delete(part, stuffed))
        start = cut + 2
    return intervals


def read_quantization(content: bytes) -> dict[int, Num[np.ndarray, "64"]]:
    """Tables of one byte or two a value (T.81, B.2.4.1)."""
    tables, at = {}, 0
    while at < len(content):
        width, number = 1 + (content[at] >> 4), content[at] & 15
        table = content[at + 1 : at + 1 + 64 * width]
        if width > 2 or len(table) < 64 * width:
            raise ValueError("a quantization table of a JPEG is broken")
        tables[number] = np.frombuffer(table, ">u1" if width == 1 else ">u2")
        at += 1 + 64 * width
    return tables


def read_codes(content: bytes) -> dict[tuple[int, int], Codes]:
    """Huffman tables (T.81, C.2)."""
    tables, at = {}, 0
    while at + 17 <= len(content):
        counts = content[at + 1 : at + 17]
        symbols = np.frombuffer(content[at + 17 : at + 17 + sum(counts)], np.uint8)
        widths = [1 << (15 - i) for i, count in enumerate(counts) for _ in range(count)]
        if len(symbols) != sum(counts) or sum(widths) > 1 << 16:
            raise ValueError("a Huffman table of a JPEG is broken")
        rest = (1 << 16) - sum(widths)
        lengths = np.repeat(np.arange(1, 17), list(counts))
        codes = Codes(
            np.append(np.repeat(lengths, widths), np.zeros(rest)).astype(np.int64),
            np.append(np.repeat(symbols, widths), np.zeros(rest)).astype(np.int64),
        )
        tables[content[at] >> 4, content[at] & 15] = codes
        at += 17 + sum(counts)
    return tables


# --- Bits ------------------------------------------------------------------------------------------------------------


class Bits:
    """The bits of coded bytes, where codes may begin at each.

    Attributes:
        size: how many there are.
    """

    def __init__(self, coded: UInt8[np.ndarray, " n"]) -> None:
        self.size = 8 * len(coded)
        padded = np.append(coded, np.full(4, 0xFF, np.uint8)).astype(np.uint64)
        words = [padded[i : i + len(coded)] << np.uint64(8 * (4 - i)) for i in range(5)]
        self.words = np.bitwise_or.reduce(words)  # 40 bits from each byte on

    def starts(self, start: int) -> UInt16[np.ndarray, " n"]:
        """The 16 bits from each bit of a chunk on, which begins at `start`."""
        words = (self.words[start // 8 : start // 8 + CHUNK] >> np.uint64(16)).astype(np.uint32)
        starts = np.empty((len(words), 8), np.uint16)
        for i in range(8):
            starts[:, i] = words >> np.uint32(8 - i)
        return starts.ravel()

    def steps(self, starts: UInt16[np.ndarray, " n"], codes: Codes, num_bits: Num[np.ndarray, "256"]) -> bytes:
        """How far it is from each bit to that behind the code and the bits that belong to it; 0 where no code is."""
        steps = np.where(codes.lengths > 0, np.maximum(codes.lengths + num_bits[codes.symbols], 0), 0)
        return steps.astype(np.uint8)[starts].tobytes()

    def peek(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """32 bits from each place on."""
        shifts = (8 - (places & 7)).astype(np.uint64)
        return ((self.words[places >> 3] >> shifts) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def differences(
    bits: Int[np.ndarray, " n"], lengths: Num[np.ndarray, " n"], categories: Num[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Numbers of as many bits as their category says, behind codes of some lengths (T.81, F.1.2.1 and H.1.2.2)."""
    extra = np.where(categories < 16, categories, 0).astype(np.int64)
    values = (bits >> (32 - lengths - extra)) & ((1 << extra) - 1)
    values = np.where(values >> np.maximum(extra - 1, 0) > 0, values, values - (1 << extra) + 1)
    return np.where(categories == 16, 1 << 15, values)
