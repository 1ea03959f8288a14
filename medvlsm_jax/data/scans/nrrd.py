"""NRRD, `.nrrd` and `.nhdr`: lines `field: value`, an empty one, then the voxels, or in a file that a line names.

The lines are read here for the reasons that `metaimage.py` gives.
"""

import dataclasses
import gzip
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from medvlsm_jax.data.scans.orientation import is_sound
from medvlsm_jax.data.scans.stored import Stored, known_sides, sides_of, three_axes
from medvlsm_jax.data.scans.voxels import Voxels, data_file, first_bytes, printable
from medvlsm_jax.errors import UserError

MAX_HEADER = 1 << 20  # bytes; of diffusion, a line for each direction
MAGIC = re.compile(rb"NRRD000[1-5]")
TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
PACKED = {"raw": False, "gzip": True, "gz": True}
# Of the spaces that say how the patient lies: what makes RAS+ of them.
SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
}
COLOURS = ("rgb-color", "rgba-color", "3-color", "4-color", "vector", "3-vector", "4-vector", "list", "none")
GEOMETRY = ("space", "space dimension", "space origin")
AXES = ("space directions", "spacings", "kinds")  # a word for each axis
WORD = re.compile(r"\([^)]*\)|\S+")
ALIASES = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}


@dataclasses.dataclass(frozen=True)
class NrrdHeader:
    """What a mask needs of a header.

    Attributes:
        sides: voxels along each axis, but for that of colours.
        geometry: the fields that say where they lie, as they are written.
    """

    sides: tuple[int, ...]
    geometry: Mapping[str, str]
    ending: str = ".nrrd"

    def write(self, path: Path, voxels: UInt8[np.ndarray, "i j k"]) -> None:
        """Writes `.nrrd` with this geometry to the letter, packed; voxels in the file's order, or a view of them."""
        lines = {
            "type": "uchar",
            "dimension": len(self.sides),
            **self.geometry,
            "sizes": " ".join(map(str, self.sides)),
            "encoding": "gzip",
        }
        with path.open("wb") as file:
            file.write(
                "".join(["NRRD0005\n", *(f"{key}: {value}\n" for key, value in lines.items()), "\n"]).encode("latin-1")
            )
            with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
                for k in range(voxels.shape[2]):
                    packed.write(voxels[:, :, k].tobytes("F"))


def read_nrrd(path: Path) -> Stored[NrrdHeader]:
    """A volume from `.nrrd`, or from `.nhdr` and the file that it names.

    Raises:
        UserError: it cannot be read, its voxels are in several files or elsewhere than beside it, or there are several
            time points.
    """
    fields, length = read_header(path)
    sizes = whole_numbers(path, fields, "sizes")
    if whole_numbers(path, fields, "dimension") != [len(sizes)]:
        raise UserError(f"{path} has dimension {fields['dimension']} but sizes {fields['sizes']}: restore it")
    channels = num_channels(path, fields, sizes)
    sides, skipped = (sizes[1:], 1) if channels else (sizes, 0)
    shape, dtype, is_packed = three_axes(path, sides), voxel_type(path, fields), encoding(path, fields)
    data = data_file(path, fields["data file"]) if "data file" in fields else path
    begin, skip = (0 if "data file" in fields else length), whole_numbers(path, fields, "byte skip", "0")[0]
    if skip < -1 or whole_numbers(path, fields, "line skip", "0") != [0] or (skip == -1 and is_packed):
        raise UserError(f"{path} skips lines or bytes in a way that is not read: save it anew without")
    if skip == -1:
        begin, skip = data.stat().st_size - math.prod(shape) * (channels or 1) * dtype.itemsize, 0
    start, packed_from = (skip, begin) if is_packed else (begin + skip, None)
    axes = {key: WORD.findall(fields[key])[skipped:] for key in AXES if key in fields}
    lengths, affine = read_geometry(path, fields, axes, min(len(sides), 3))
    geometry = {key: fields[key] for key in GEOMETRY if key in fields}
    return Stored(
        files=(path,) if data == path else (path, data),
        voxels=Voxels(data, shape, dtype, channels or 1, start, packed_from),
        header=NrrdHeader(tuple(sides), geometry | {key: " ".join(words) for key, words in axes.items()}),
        affine=affine,
        sides=lengths,
    )


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields, their names in small letters, and where they end, in bytes.

    Raises:
        UserError: there is no header, a line is none, or says again what another one says.
    """
    magic, *rest = first_bytes(path, MAX_HEADER).splitlines(keepends=True) or [b""]
    fields, length = {}, len(magic)
    if not MAGIC.fullmatch(magic.strip()):
        raise UserError(f"{path} is no NRRD file: restore or remove it")
    for row in rest:
        length, line = length + len(row), printable(row)
        if not line.strip():
            return fields, length
        key, sign, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        key = ALIASES.get(key.strip().lower(), key.strip().lower())
        if not sign or key in fields:
            raise UserError(
                f"{path} has a line '{line.strip():.40}' in its header, which is none or a second: restore it"
            )
        fields[key] = value.strip()
    if "data file" not in fields:
        raise UserError(f"{path} has a header without an end: restore it")
    return fields, length


def whole_numbers(path: Path, fields: Mapping[str, str], key: str, default: str = "") -> list[int]:
    """The whole numbers of a field; raises UserError for what are none."""
    words = fields.get(key, default).split()
    if not words or not all(re.fullmatch(r"[+-]?[0-9]{1,15}", word) for word in words):
        raise UserError(f"{path} needs whole numbers as {key} in its header, not '{' '.join(words):.40}': restore it")
    return [int(word) for word in words]


def num_channels(path: Path, fields: Mapping[str, str], sizes: list[int]) -> int:
    """Numbers of a voxel, which are the first axis; 0 where that is one of the volume's own.

    Raises:
        UserError: there are neither 1, 3 nor 4.
    """
    directions = WORD.findall(fields.get("space directions", ""))
    kinds = fields.get("kinds", "").lower().split()
    is_first = directions[0].lower() == "none" if directions else bool(kinds) and kinds[0] in COLOURS
    if is_first and sizes[0] not in (1, 3, 4):
        raise UserError(f"{path} has {sizes[0]} numbers a voxel, but grey or RGB is read: save one of them alone")
    return sizes[0] if is_first else 0


def voxel_type(path: Path, fields: Mapping[str, str]) -> np.dtype:
    """The type of voxels; raises UserError for one that is none."""
    kind = fields.get("type", "").lower()
    found = [name for name, kinds in TYPES.items() if kind in kinds]
    order = ORDERS.get(fields.get("endian", "").lower())
    if not found or (order is None and found[0][1] != "1"):
        raise UserError(
            f"{path} has voxels of type '{kind:.40}' and no byte order that is known: save it as whole numbers or float"
        )
    return np.dtype(found[0]).newbyteorder(order or "=")


def encoding(path: Path, fields: Mapping[str, str]) -> bool:
    """Whether the voxels are packed; raises UserError for a packing that is not read."""
    name = fields.get("encoding", "").lower()
    if name not in PACKED:
        raise UserError(f"{path} has its voxels in encoding '{name:.40}': save it as {' or '.join(PACKED)}")
    return PACKED[name]


@np.errstate(all="ignore")  # what comes of nonsense is not sound
def read_geometry(
    path: Path, fields: Mapping[str, str], axes: Mapping[str, list[str]], count: int
) -> tuple[tuple[float, float, float] | None, Float[np.ndarray, "4 4"] | None]:
    """Mm between voxels along three axes, and the affine in RAS+; None where they are not known."""
    try:
        if "space directions" not in axes:
            return known_sides([abs(float(word)) for word in axes.get("spacings", [])[:count]]), None
        columns = [vector(word) for word in axes["space directions"][:count]]
        origin = vector(fields["space origin"]) if "space origin" in fields else np.zeros(3)
    except ValueError as error:
        raise UserError(f"{path} has a geometry in its header that are no numbers ({error}): restore it") from error
    if len(columns) == 2:
        across = np.cross(columns[0], columns[1])
        columns.append(across / (np.linalg.norm(across) or 1.0))
    if len(columns) != 3:
        raise UserError(f"{path} has {len(columns)} space directions for {count} axes: restore it")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.stack(columns, axis=1), origin
    signs = SPACES.get(fields.get("space", "").lower())
    if signs is None or not is_sound(affine):
        return known_sides(sides_of(affine)), None
    affine = np.diag([*signs, 1.0]) @ affine
    return sides_of(affine), affine


def vector(text: str) -> Float[np.ndarray, "3"]:
    """Three numbers in brackets; raises ValueError for what are none."""
    words = text.strip().removeprefix("(").removesuffix(")").split(",")
    numbers = np.array([float(word) for word in words])
    if numbers.size != 3:
        raise ValueError(f"'{text:.40}'")
    return numbers
