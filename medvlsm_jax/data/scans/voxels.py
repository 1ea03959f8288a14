"""Numbers behind a header: mapped from a file, or unpacked; never more memory than the file has content for."""

import math
import zlib
from collections.abc import Iterator, Sequence
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


def read_voxels(
    path: Path, shape: Sequence[int], dtype: np.dtype, channels: int, start: int, packed_from: int | None
) -> Shaped[np.ndarray, "i j k ..."]:
    """An array whose first axis is the fastest in a file, in the type in which it is stored.

    What is not packed is mapped and takes no memory until it is looked at. What is packed takes its own bytes, as they
    come: a header alone makes nothing of it, whatever it claims.

    Args:
        path: of the file.
        shape: as its header has it.
        dtype: with the file's byte order.
        channels: numbers of a voxel, which lie together; above 1, they become a last axis.
        start: of the first number, in bytes; of a packed file, in what is unpacked.
        packed_from: where in the file begins what zlib or gzip packed; None where it is not packed.

    Raises:
        UserError: the file cannot be read or holds less, or what it unpacks to is above 4 GiB.
    """
    values = read_array(path, (channels, *shape), dtype, start, packed_from)
    return values[0] if channels == 1 else np.moveaxis(values, 0, -1)


def read_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, start: int, packed_from: int | None
) -> Shaped[np.ndarray, "..."]:
    """The same, with the numbers of a voxel as its first axis."""
    size = math.prod(shape) * dtype.itemsize
    try:
        length = path.stat().st_size
        if packed_from is None:
            if start + size > length:
                raise too_short(path, size, length - start)
            return np.memmap(path, dtype, "r", start, shape, "F")
        if start + size > MAX_UNPACKED:
            raise UserError(
                f"{path} would unpack to {(start + size) / 2**30:.1f} GiB, but {MAX_UNPACKED >> 30} GiB are the most "
                "that is unpacked in memory: unpack it on the disk, from where it is read slice by slice"
            )
        if start + size > MAX_RATIO * length:
            raise too_short(path, size, MAX_RATIO * length)
        with path.open("rb") as file:
            file.seek(packed_from)
            return fill(unpacked(file, path), path, start, size).view(dtype).reshape(shape, order="F")
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError as error:
        raise UserError(f"{path} needs {size / 2**30:.1f} GiB of memory: unpack it on the disk") from error


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
    if not path.is_file():
        raise UserError(f"{header} has its voxels in {name}, which is not beside it: put it there")
    return path
