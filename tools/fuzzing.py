"""A reader with its files, and the mutation that knows no format; `fuzz_readers.py` gives the ones to the others."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader and the files that it is given.

    Attributes:
        name: for the command line.
        ending: of its files.
        whole: a sound file.
        read: reads one; raises UserError for what is none.
        behind_header: a mutation that leaves the header sound.
        has_header: whether a file has a sound one.
    """

    name: str
    ending: str
    whole: bytes
    read: Callable[[Path], Any]
    behind_header: Mutation
    has_header: Callable[[bytes], bool]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four places changed: bits, bytes, spans taken out, doubled or put elsewhere, the end cut off."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(0, len(content) + 1)), int(rng.integers(1, 17))
        span = bytes(content[at : at + length])
        match rng.integers(0, 7):
            case 0 if span:
                content[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                content[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
            case 2:
                content[at : at + length] = bytes(rng.choice([0, 255, 127, 128], length).astype(np.uint8))
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = span * int(rng.integers(1, 100))
            case 5:
                to = int(rng.integers(0, len(content) + 1))
                content[to : to + length] = span
            case 6 if rng.random() < 0.2:
                del content[at:]
    return bytes(content)
