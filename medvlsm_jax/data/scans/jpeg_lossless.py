"""Lossless JPEG, in which most hospitals have their older CT and radiographs (ITU-T T.81, H).

The libraries that read it print on the terminal, read broken files without a word, and can end the process (GDCM), or
are copyleft (libjpeg). What it takes is little: differences from neighbours, in Huffman codes.
"""

import numpy as np
from jaxtyping import Int, UInt16

from medvlsm_jax.data.scans.jpeg_codes import CHUNK, Bits, Codes, Jpeg, differences

LEFT, ABOVE, DIAGONAL, PLANE, LEFT_SLOPED, ABOVE_SLOPED, MEAN = range(1, 8)  # predictors (T.81, table H.1)
# Bits that belong to a category: 16 is one number, and what is above is none, of which a step becomes 0.
NUM_BITS = np.array([*range(16), 0, *[-100] * 239])


def decode_lossless(jpeg: Jpeg) -> UInt16[np.ndarray, "h w c"]:
    """The values of a lossless JPEG.

    Raises:
        ValueError: it is broken or ends early.
    """
    height, width, channels, precision = jpeg.header
    if any(component.sampling != 0x11 for component in jpeg.components):
        raise ValueError("a lossless JPEG has channels of different sizes")
    if not LEFT <= jpeg.selection <= MEAN or not 2 <= precision <= 16 or jpeg.shift >= precision:
        raise ValueError("a lossless JPEG has a scan that makes no sense")
    rows = jpeg.interval // width or height
    if jpeg.interval % width or len(jpeg.intervals) != -(-height // rows):
        raise ValueError("a lossless JPEG has restarts that make no sense")
    tables = [jpeg.codes[0, component.direct] for component in jpeg.components]
    parts = []
    for i, interval in enumerate(jpeg.intervals):
        count = min(rows, height - i * rows)
        coded = read_differences(Bits(interval), tables, count * width * channels).reshape(count, width, channels)
        first = 1 << (precision - jpeg.shift - 1)
        parts.append(np.stack([predict(coded[..., c], jpeg.selection, first) for c in range(channels)], axis=-1))
    return (np.concatenate(parts) << jpeg.shift).astype(np.uint16)


def read_differences(bits: Bits, tables: list[Codes], count: int) -> Int[np.ndarray, " count"]:
    """The differences of an interval, pixel by pixel, channel by channel; raises ValueError when it ends early."""
    places, place, channels = list[int](), 0, len(tables)
    while len(places) < count and place < bits.size:
        start = place // (8 * CHUNK) * 8 * CHUNK
        starts = bits.starts(start)
        steps = [bits.steps(starts, codes, NUM_BITS) for codes in tables]
        stop = min(start + 8 * CHUNK, bits.size)
        while place < stop and len(places) < count:
            step = steps[len(places) % channels][place - start]
            if not step:
                raise ValueError("a lossless JPEG holds what is no code")
            places.append(place)
            place += step
    if len(places) < count or place > bits.size:
        raise ValueError("a lossless JPEG ends early")
    ahead = bits.peek(np.array(places))
    values = np.empty(count, np.int64)
    for channel, codes in enumerate(tables):
        own = ahead[channel::channels]
        values[channel::channels] = differences(own, codes.lengths[own >> 16], codes.symbols[own >> 16])
    return values


def predict(coded: Int[np.ndarray, "h w"], selection: int, first: int) -> Int[np.ndarray, "h w"]:
    """Values from differences: the first pixel's from `first`, its row's from the left, its column's from above."""
    coded = coded.copy()
    coded[0, 0] += first
    if selection == LEFT:
        coded[:, 0] = np.cumsum(coded[:, 0])
        return np.cumsum(coded, axis=1) & 0xFFFF
    if selection == PLANE:
        return np.cumsum(np.cumsum(coded, axis=0), axis=1) & 0xFFFF
    values = np.empty_like(coded)
    values[0] = np.cumsum(coded[0]) & 0xFFFF
    for i in range(1, len(coded)):
        values[i] = predict_row(coded[i], values[i - 1], selection)
    return values


def predict_row(coded: Int[np.ndarray, " w"], above: Int[np.ndarray, " w"], selection: int) -> Int[np.ndarray, " w"]:
    """A row from its differences and the row above."""
    if selection == ABOVE:
        return (above + coded) & 0xFFFF
    if selection == DIAGONAL:
        return (np.append(above[:1], above[:-1]) + coded) & 0xFFFF
    if selection == LEFT_SLOPED:
        return (np.cumsum(coded + np.append(above[:1], np.diff(above) >> 1))) & 0xFFFF
    left = int(above[0] + coded[0]) & 0xFFFF
    row = [left]
    for difference, up, diagonal in zip(coded[1:].tolist(), above[1:].tolist(), above[:-1].tolist(), strict=True):
        predicted = up + ((left - diagonal) >> 1) if selection == ABOVE_SLOPED else (left + up) >> 1
        left = (predicted + difference) & 0xFFFF
        row.append(left)
    return np.array(row)
