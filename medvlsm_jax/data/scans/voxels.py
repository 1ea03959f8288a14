"""Numbers behind a header: mapped from a file, or unpacked; never more memory than the file has content for."""

import dataclasses
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped, UInt8

from medvlsm_jax.errors import UserError

CHUNK = 1 << 20
MAX_UNPACKED = 4 << 30  # bytes of a packed file's voxels, which lie in memory; those of other files stay on the disk
MAX_RATIO = 1032  # deflate makes a byte of at most so many: what zlib's technical details call its limit
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
GZIP = b"\x1f\x8b"


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, unpacked where gzip packed it; fewer where it has no more.

    Raises:
        UserError: it cannot be read, or unpacked.
    """
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] != GZIP:
                return file.read(count)
            found = b""
            for chunk in unpacked(file, path):
                found += chunk
                if len(found) >= count:
                    break
            return found[:count]
    except OSError as error:
        raise unreadable(path, error) from error


def printable(line: bytes) -> str:
    """A line of a header, with question marks for what an error could not show; its end is kept, a tab is a space."""
    text = line.decode("latin-1").replace("\t", " ")
    return "".join(sign if sign.isprintable() or sign in "\r\n" else "?" for sign in text)


def is_packed(path: Path) -> bool:
    """Whether a file is packed by gzip; raises UserError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2) == GZIP
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """What is said of a file that the system refuses."""
    return UserError(f"{path} cannot be read ({error.strerror or error}): restore or remove it")


def unpacked(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """What deflate packed from where a file stands to its end, in pieces; checksums are compared at the end.

    Raises:
        UserError: it is broken, or cut off.
    """
    stream, data = zlib.decompressobj(ZLIB_OR_GZIP), b""
    try:
        while True:
            data = data or file.read(CHUNK)
            if chunk := stream.decompress(data, CHUNK):
                yield chunk
            if stream.eof:
                data = stream.unused_data
                if len(data) < len(GZIP):
                    data += file.read(CHUNK)
                if not data.startswith(GZIP):  # gzip may have several parts; behind them there may be padding
                    return
                stream = zlib.decompressobj(ZLIB_OR_GZIP)
            elif data or chunk:
                data = stream.unconsumed_tail
            else:
                raise UserError(f"{path} is cut off: copy it anew")
    except zlib.error as error:
        raise UserError(f"{path} cannot be unpacked ({error}): copy it anew") from error


@dataclasses.dataclass(frozen=True)
class Voxels:
    """Where a file has the numbers of a volume, the first axis as the fastest.

    Attributes:
        path: of the file.
        shape: voxels along i, j and k, as a header has it.
        dtype: with the file's byte order.
        channels: numbers of a voxel, which lie together.
        start: of the first number, in bytes; of a packed file, in what is unpacked.
        packed_from: where in the file begins what zlib or gzip packed; None where it is not packed.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    channels: int = 1
    start: int = 0
    packed_from: int | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.channels * self.dtype.itemsize

    def check(self) -> None:
        """Raises a UserError when the file cannot hold as much, or what it unpacks to is above 4 GiB."""
        stop = self.start + self.size
        try:
            length = self.path.stat().st_size
        except OSError as error:
            raise unreadable(self.path, error) from error
        if self.packed_from is not None and stop > MAX_UNPACKED:
            raise UserError(
                f"{self.path} would unpack to {stop / 2**30:.1f} GiB, but {MAX_UNPACKED >> 30} GiB are the most that "
                "is unpacked in memory: unpack it on the disk, from where it is read slice by slice"
            )
        room = length if self.packed_from is None else MAX_RATIO * length
        if stop > room:
            raise too_short(self.path, self.size, room - self.start)

    def load(self) -> Shaped[np.ndarray, "i j k ..."]:
        """The numbers in the type in which they are stored, those of a voxel along a last axis if there are several.

        What is not packed is mapped and takes no memory until it is looked at. What is packed takes its own bytes, as
        they come: a header alone makes nothing of it, whatever it claims.

        Raises:
            UserError: as `check`, or the file cannot be read or unpacked, or is cut off.
        """
        self.check()
        shape = (self.channels, *self.shape)
        try:
            if self.packed_from is None:
                numbers = np.memmap(self.path, self.dtype, "r", self.start, shape, "F")
            else:
                with self.path.open("rb") as file:
                    file.seek(self.packed_from)
                    found = fill(unpacked(file, self.path), self.path, self.start, self.size)
                numbers = found.view(self.dtype).reshape(shape, order="F")
        except OSError as error:
            raise unreadable(self.path, error) from error
        except MemoryError as error:
            raise UserError(
                f"{self.path} needs {self.size / 2**30:.1f} GiB of memory: unpack it on the disk"
            ) from error
        return numbers[0] if self.channels == 1 else np.moveaxis(numbers, 0, -1)


def fill(chunks: Iterator[bytes], path: Path, start: int, size: int) -> UInt8[np.ndarray, "size"]:
    """Some bytes of a stream; the system gives memory for those alone that came."""
    found, position = np.empty(size, np.uint8), -start
    for chunk in chunks:
        at = max(position, 0)
        part = np.frombuffer(chunk, np.uint8)[max(-position, 0) :][: max(size - at, 0)]
        found[at : at + part.size] = part
        position += len(chunk)
        if position >= size + CHUNK:  # the end is looked for, since a checksum stands there, but not for long
            break
    if position < size:
        raise too_short(path, size, max(position, 0))
    return found


def too_short(path: Path, size: int, found: int) -> UserError:
    """What is said of a file whose header promises more than it has."""
    return UserError(
        f"{path} is cut off, or its header is wrong: voxels of {size} bytes are announced, there is room for "
        f"{max(found, 0)}: copy it anew"
    )


def data_file(header: Path, name: str) -> Path:
    """The file of a header's voxels, which lies beside it under a plain name.

    Raises:
        UserError: the header names a place elsewhere, several files, or a file that is not there.
    """
    if not name or not name.isprintable() or any(sign in name for sign in "/\\:%*?") or name.strip(". ") == "":
        raise UserError(f"{header} has its voxels in {name!r}: only a single file beside it, by its name, is read")
    path = header.with_name(name)
    try:
        is_there = path.is_file()
    except OSError:  # the name is too long
        is_there = False
    if not is_there:
        raise UserError(f"{header} has its voxels in {name:.80}, which is not beside it: put it there")
    return path
