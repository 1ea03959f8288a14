"""MetaImage, `.mha` and `.mhd`: lines `Key = Value`, then the voxels, or the name of their file.

The lines are read here and not by SimpleITK, which follows a header to any file of the machine, and of some broken ones
never comes back.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from medvlsm_jax.data.scans.orientation import is_sound
from medvlsm_jax.data.scans.stored import Stored, known_sides, three_axes
from medvlsm_jax.data.scans.voxels import Voxels, data_file, first_bytes, printable
from medvlsm_jax.errors import UserError

MAX_HEADER = 1 << 20  # bytes
MAX_AXES = 10
LINE = re.compile(r"(?P<key>[^=:\r\n]+?)[ \t]*[=:][ \t]*(?P<value>[^\r\n]*?)[ \t]*\r?\n")
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Names of one thing -> the one that is used here.
ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
GEOMETRY = ("TransformMatrix", "Offset", "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing", "ElementSize")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class MetaImageHeader:
    """What a mask needs of a header.

    Attributes:
        sides: voxels along each axis.
        geometry: the lines that say where they lie, as they are written.
    """

    sides: tuple[int, ...]
    geometry: Mapping[str, str]
    ending: str = ".mha"

    def write(self, path: Path, voxels: UInt8[np.ndarray, "i j k"]) -> None:
        """Writes `.mha` with this geometry to the letter, packed; voxels in the file's order, or a view of them."""
        stream = zlib.compressobj(6)
        packed = [stream.compress(voxels[:, :, k].tobytes("F")) for k in range(voxels.shape[2])] + [stream.flush()]
        lines = {
            "ObjectType": "Image",
            "NDims": len(self.sides),
            "BinaryData": "True",
            "BinaryDataByteOrderMSB": "False",
            "CompressedData": "True",
            "CompressedDataSize": sum(map(len, packed)),
            **self.geometry,
            "DimSize": " ".join(map(str, self.sides)),
            "ElementType": "MET_UCHAR",
            "ElementDataFile": "LOCAL",
        }
        with path.open("wb") as file:
            file.write("".join(f"{key} = {value}\n" for key, value in lines.items()).encode("latin-1"))
            file.writelines(packed)


def read_metaimage(path: Path) -> Stored[MetaImageHeader]:
    """A volume from `.mha`, or from `.mhd` and the file that it names.

    Raises:
        UserError: it cannot be read, its voxels are in several files or elsewhere than beside it, or there are several
            time points.
    """
    lines, length = read_lines(path)
    sides = whole_numbers(path, lines, "DimSize")
    if whole_numbers(path, lines, "NDims") != [len(sides)] or len(sides) > MAX_AXES:
        raise UserError(f"{path} has NDims = {lines['NDims']} but DimSize = {lines['DimSize']}: restore it")
    shape, dtype, channels = three_axes(path, sides), voxel_type(path, lines), num_channels(path, lines)
    is_local = lines["ElementDataFile"].upper() == "LOCAL"
    data = path if is_local else data_file(path, lines["ElementDataFile"])
    is_packed = is_true(lines.get("CompressedData", ""))
    start = voxels_start(path, lines, length if is_local else 0)
    if start < 0:
        start = data.stat().st_size - math.prod(shape) * channels * dtype.itemsize
    lengths, affine = read_geometry(path, lines, len(sides))
    return Stored(
        files=(path,) if is_local else (path, data),
        voxels=Voxels(data, shape, dtype, channels, 0 if is_packed else start, start if is_packed else None),
        header=MetaImageHeader(tuple(sides), {key: lines[key] for key in GEOMETRY if key in lines}),
        affine=affine,
        sides=lengths,
    )


def read_lines(path: Path) -> tuple[dict[str, str], int]:
    """What the header says, names of one thing made one, and where it ends, in bytes.

    Raises:
        UserError: there is no header, a line is none, or says again what another one says.
    """
    lines, length = {}, 0
    for line in first_bytes(path, MAX_HEADER).splitlines(keepends=True):
        length += len(line)
        found = LINE.fullmatch(printable(line))
        if found is None:
            break
        key = ALIASES.get(found["key"], found["key"])
        if key in lines and key != "Comment":
            raise UserError(f"{path} says {key} twice in its header: restore it")
        lines[key] = found["value"]
        if key == "ElementDataFile":
            return lines, length
    raise UserError(
        f"{path} is no MetaImage: it needs lines 'Key = Value', the last of them ElementDataFile; restore it"
    )


def numbers(path: Path, lines: Mapping[str, str], key: str, default: Sequence[float]) -> list[float]:
    """The numbers of a line; raises UserError for what are none."""
    if key not in lines:
        return [float(number) for number in default]
    try:
        return [float(word) for word in lines[key].split()]
    except ValueError as error:
        raise UserError(
            f"{path} has {key} = {lines[key]:.40} in its header, but numbers are expected: restore it"
        ) from error


def whole_numbers(path: Path, lines: Mapping[str, str], key: str, default: Sequence[float] = ()) -> list[int]:
    """The whole numbers of a line; raises UserError for what are none, or where there are none."""
    found = numbers(path, lines, key, default)
    if not found or not all(number.is_integer() and abs(number) < 2**53 for number in found):
        raise UserError(f"{path} needs whole numbers as {key} in its header, not '{lines.get(key, '')}': restore it")
    return [int(number) for number in found]


def is_true(value: str) -> bool:
    """Whether a value says yes, as its first letter."""
    return value[:1].upper() in ("T", "Y", "1")


def voxel_type(path: Path, lines: Mapping[str, str]) -> np.dtype:
    """The type of voxels; raises UserError for one that is none, or for numbers that are written as text."""
    kind = lines.get("ElementType", "")
    name = TYPES.get(kind.removesuffix("_ARRAY"))
    if name is None:
        raise UserError(f"{path} has voxels of type '{kind:.40}': save it as one of {', '.join(TYPES)}")
    if not is_true(lines.get("BinaryData", "True")):
        raise UserError(f"{path} has its voxels as text (BinaryData = False): save it as binary data")
    return np.dtype(name).newbyteorder(">" if is_true(lines.get("BinaryDataByteOrderMSB", "")) else "<")


def num_channels(path: Path, lines: Mapping[str, str]) -> int:
    """1 of grey, 3 or 4 of colours; raises UserError for others."""
    channels = whole_numbers(path, lines, "ElementNumberOfChannels", [1])
    if channels not in ([1], [3], [4]):
        raise UserError(f"{path} has {channels[0]} numbers a voxel, but grey or RGB is read: save one of them alone")
    return channels[0]


def voxels_start(path: Path, lines: Mapping[str, str], length: int) -> int:
    """Where the voxels' file has them, in bytes; -1 says that they are its end."""
    start = whole_numbers(path, lines, "HeaderSize", [0])[0]
    if start < -1:
        raise UserError(f"{path} has HeaderSize = {start}: restore it")
    return start or length


@np.errstate(all="ignore")  # what comes of nonsense is not sound
def read_geometry(
    path: Path, lines: Mapping[str, str], count: int
) -> tuple[tuple[float, float, float] | None, Float[np.ndarray, "4 4"] | None]:
    """Mm between voxels along three axes, and the affine in RAS+; None where they are wrong.

    A row of TransformMatrix is the direction of an axis, in LPS; what is not written is an axis of its own, of 1 mm.
    """
    spacing = numbers(path, lines, "ElementSpacing", numbers(path, lines, "ElementSize", [1.0] * count))
    matrix = numbers(path, lines, "TransformMatrix", np.eye(count).ravel().tolist())
    offset = numbers(path, lines, "Offset", [0.0] * count)
    if (len(spacing), len(matrix), len(offset)) != (count, count**2, count):
        raise UserError(f"{path} has NDims = {count}, but not as many numbers of its geometry: restore it")
    used = min(count, 3)
    affine = np.eye(4)
    directions = np.reshape(matrix, (count, count))[:used, :used].T
    affine[:used, :used], affine[:used, 3] = directions * spacing[:used], offset[:used]
    affine = LPS_TO_RAS @ affine
    return known_sides(np.abs(spacing[:used]).tolist()), affine if is_sound(affine) else None
