"""Sequential JPEG of 12 bits in grey, which Pillow does not read (ITU-T T.81, F)."""

import numpy as np
from jaxtyping import Float, Int, Num, UInt16

from medvlsm_jax.data.scans.jpeg_codes import CHUNK, Bits, Codes, Jpeg, differences

SEQUENTIAL = 0xC1
DIRECT_BITS = np.array([*range(16), *[-100] * 240])  # that belong to a category; what is above 15 is none
ALTERNATING_BITS = np.arange(256) & 15
ZEROS = 15  # the run that stands alone, for 16 zeros
# Where each coefficient of a block stands, as the tables have them (T.81, figure A.6).
ZIGZAG = np.array(sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8, i % 8)[(i // 8 + i % 8) % 2 == 0])))
_k, _x = np.arange(8)[:, None], np.arange(8)
COSINES = np.cos((2 * _x + 1) * _k * np.pi / 16) * np.where(_k, 0.5, 0.5 / np.sqrt(2))  # (T.81, A.3.3)


def decode_sequential(jpeg: Jpeg) -> UInt16[np.ndarray, "h w 1"]:
    """The values of a grey JPEG.

    Raises:
        ValueError: it is broken, ends early, or is of another process than the sequential one.
    """
    height, width, channels, precision = jpeg.header
    if jpeg.marker != SEQUENTIAL or channels != 1 or not 8 <= precision <= 12:
        raise ValueError("of JPEG with more than 8 bits only the sequential process in grey is read")
    down, across = -(-height // 8), -(-width // 8)
    component, total = jpeg.components[0], down * across
    per_interval = jpeg.interval or total
    if len(jpeg.intervals) != -(-total // per_interval):
        raise ValueError("a JPEG has restarts that make no sense")
    direct, alternating = jpeg.codes[0, component.direct], jpeg.codes[1, component.alternating]
    blocks = np.concatenate(
        [
            read_blocks(Bits(interval), direct, alternating, min(per_interval, total - i * per_interval))
            for i, interval in enumerate(jpeg.intervals)
        ]
    )
    values = to_pixels(blocks * jpeg.quantization[component.quantization]) + (1 << (precision - 1))
    picture = values.reshape(down, across, 8, 8).swapaxes(1, 2).reshape(8 * down, 8 * across)[:height, :width, None]
    return np.clip(np.rint(picture), 0, (1 << precision) - 1).astype(np.uint16)


def read_blocks(bits: Bits, direct: Codes, alternating: Codes, count: int) -> Int[np.ndarray, "count 64"]:
    """The coefficients of an interval, in zigzag order; raises ValueError when it ends early."""
    places, indices = find_coefficients(bits, direct, alternating, count)
    ahead, at = bits.peek(np.array(places)), np.array(indices)
    starts, is_first = ahead >> 16, at % 64 == 0
    lengths = np.where(is_first, direct.lengths[starts], alternating.lengths[starts])
    categories = np.where(is_first, direct.symbols[starts], alternating.symbols[starts] & 15)
    blocks = np.zeros(64 * count, np.int64)
    blocks[at] = differences(ahead, lengths, categories)
    blocks = blocks.reshape(count, 64)
    blocks[:, 0] = np.cumsum(blocks[:, 0])
    return blocks


def find_coefficients(bits: Bits, direct: Codes, alternating: Codes, count: int) -> tuple[list[int], list[int]]:
    """Where the code of each coefficient begins that is not 0, and the first of each block; and which it is of all."""
    places, indices = list[int](), list[int]()
    place, index = 0, 0
    symbols = alternating.symbols.tolist()
    while index < 64 * count and place < bits.size:
        start = place // (8 * CHUNK) * 8 * CHUNK
        starts = bits.starts(start)
        stop = min(start + 8 * CHUNK, bits.size)
        firsts, others = bits.steps(starts, direct, DIRECT_BITS), bits.steps(starts, alternating, ALTERNATING_BITS)
        while place < stop and index < 64 * count:
            at, left = place - start, 64 - index % 64
            run, size = (0, 1) if left == 64 else divmod(symbols[starts[at]], 16)
            step = firsts[at] if left == 64 else others[at]
            is_end = run == size == 0
            if not step or (size == 0 and 0 < run < ZEROS) or (run >= left and not is_end):
                raise ValueError("a JPEG holds what is no code")
            if size:
                places.append(place)
                indices.append(index + run)
            place += step
            index += left if is_end else run + 1
    if index < 64 * count or place > bits.size:
        raise ValueError("a JPEG ends early")
    return places, indices


def to_pixels(coefficients: Num[np.ndarray, "n 64"]) -> Float[np.ndarray, "n 8 8"]:
    """The inverse cosine transform of blocks in zigzag order."""
    blocks = np.zeros(coefficients.shape)
    blocks[:, ZIGZAG] = coefficients
    return COSINES.T @ blocks.reshape(-1, 8, 8) @ COSINES
