"""NIfTI-1 and NIfTI-2, read and written: one file or a pair, packed or not. nibabel knows their headers."""

import dataclasses
import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from medvlsm_jax.data.scans.orientation import is_sound
from medvlsm_jax.data.scans.stored import Stored, known_sides, sides_of, three_axes
from medvlsm_jax.data.scans.voxels import Voxels, first_bytes, is_packed
from medvlsm_jax.errors import UserError

SIZE_1, SIZE_2 = 348, 540  # of a header, which is its first number, too
MAGIC = {SIZE_1: (b"n+1", b"ni1"), SIZE_2: (b"n+2", b"ni2")}  # of one file, of the first of a pair
ORDERS: tuple[tuple[Literal["little", "big"], str], ...] = (("little", "<"), ("big", ">"))
MAX_SIDE_1 = 32767  # voxels along an axis, in NIfTI-1
# Of `datatype`: numbers, bytes of a colour (RGB24, RGBA32), and what is refused.
NUMBERS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOURS = {128: 3, 2304: 4}
REFUSED = {1: "single bits", 32: "complex numbers", 1536: "128-bit numbers", 1792: "complex numbers"}
REFUSED[2048] = "complex numbers"
UNITS = {
    1: 1000.0,
    3: 0.001,
}  # mm of what `xyzt_units` names, metres and micrometres; else mm, as other readers have it
CODES = range(1, 6)  # of a transform that is given
TEXTS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
PAIRS = ((".hdr", ".img"), (".hdr.gz", ".img.gz"))


def import_nibabel() -> ModuleType:
    """The library that knows the headers; raises UserError when it is not installed."""
    try:
        import nibabel
    except ImportError as error:
        raise UserError("volumes need nibabel: pip install 'medvlsm-jax[medical]'") from error
    return nibabel


@dataclasses.dataclass(frozen=True)
class NiftiHeader:
    """A header.

    Attributes:
        fields: nibabel's Nifti1Header or Nifti2Header.
    """

    fields: Any

    def write(self, path: Path, voxels: UInt8[np.ndarray, "i j k"], slope: float = 1.0) -> None:
        """Writes `.nii.gz` under this header: axes, codes, units and affines stay as they are, bit for bit.

        Extensions and texts stay behind, for they may hold what a patient is called. Equal content makes equal files.

        Args:
            path: of the file.
            voxels: in the order of the header; a view will do, they are written plane by plane.
            slope: makes values of the bytes.
        """
        fields = self.fields.copy()
        fields["magic"] = MAGIC[int(fields["sizeof_hdr"])][0]
        fields["vox_offset"] = int(fields["sizeof_hdr"]) + 4
        fields["datatype"], fields["bitpix"] = 2, 8
        fields["scl_slope"], fields["scl_inter"] = slope, 0
        for name in ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
            fields[name] = 0
        for name in TEXTS:
            if name in fields:  # NIfTI-2 lacks two of them
                fields[name] = b""
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
            file.write(fields.binaryblock + bytes(4))  # which say that no extension follows
            for k in range(voxels.shape[2]):
                file.write(voxels[:, :, k].tobytes("F"))


def nifti_header(
    sides: Sequence[int], affine: Float[np.ndarray, "4 4"] | None, lengths: Sequence[float] | None
) -> NiftiHeader:
    """The header of a volume of another format, in NIfTI-1 where that can count its voxels, else in NIfTI-2.

    NIfTI-1 holds 32-bit numbers, so that positions differ from those of other formats in the seventh digit.

    Args:
        sides: voxels along each axis.
        affine: from indices to mm in RAS+.
        lengths: mm from a voxel to the next along the first three axes.
    """
    nibabel = import_nibabel()
    fields = nibabel.Nifti1Header() if max(sides) <= MAX_SIDE_1 else nibabel.Nifti2Header()
    fields.set_data_shape(tuple(sides))
    fields.set_xyzt_units("mm")
    if lengths is not None:
        fields["pixdim"][1:4] = lengths
    if affine is not None:
        fields.set_qform(affine, "scanner")
        fields.set_sform(affine, "scanner")
    return NiftiHeader(fields)


def read_nifti(path: Path, part: int | None = None) -> Stored[NiftiHeader]:
    """A volume from `.nii` or one of `.hdr` and `.img`, packed by gzip or not; of several, the one that is asked for.

    Raises:
        UserError: it cannot be read, or has what cannot be shown: several time points, complex numbers, ANALYZE.
    """
    path, data = pair_of(path)
    fields = read_fields(path)
    is_pair = fields["magic"].item() == MAGIC[int(fields["sizeof_hdr"])][1]
    if is_pair and data == path:
        raise UserError(f"{path} is the first of two files by its header: give it the ending .hdr, beside its .img")
    data = data if is_pair else path
    sides = stored_sides(path, fields)
    shape = three_axes(path, sides, part)
    kind = int(fields["datatype"])
    channels = COLOURS.get(kind, 1)
    if kind not in NUMBERS and kind not in COLOURS:
        raise UserError(f"{path} has voxels of {REFUSED.get(kind, f'an unknown type, {kind}')}: save it as numbers")
    dtype = np.dtype(NUMBERS.get(kind, "u1")).newbyteorder(fields.endianness)
    size = math.prod(shape) * channels * dtype.itemsize
    start = voxel_offset(path, fields, is_pair) + (part or 0) * size
    packed_from = 0 if is_packed(data) else None
    affine = best_affine(fields)
    pixdim = np.abs(fields["pixdim"][1 : len(sides) + 1].astype(np.float64))
    lengths = known_sides((pixdim * unit(fields)).tolist())
    return Stored(
        files=(path, data) if is_pair else (path,),
        voxels=Voxels(data, shape, dtype, channels, start, packed_from),
        header=NiftiHeader(fields),
        affine=affine,
        sides=lengths if affine is None else sides_of(affine),
        scale=None if channels > 1 else scale_of(path, fields),
    )


def pair_of(path: Path) -> tuple[Path, Path]:
    """The files of a header and of its voxels, by their names; twice the same but for `.hdr` and `.img`."""
    for header, data in PAIRS:
        for ending in (header, data):
            if path.name.lower().endswith(ending):
                stem, is_upper = path.name[: -len(ending)], path.name[-len(ending) :].isupper()
                names = (stem + (name.upper() if is_upper else name) for name in (header, data))
                first, second = (path.with_name(name) for name in names)
                return first, second
    return path, path


def read_fields(path: Path) -> Any:
    """The header, in nibabel's form, nothing of it checked or mended; raises UserError where there is none."""
    nibabel = import_nibabel()
    block = first_bytes(path, SIZE_2)
    for size, header in ((SIZE_1, nibabel.Nifti1Header), (SIZE_2, nibabel.Nifti2Header)):
        for order, sign in ORDERS:
            if int.from_bytes(block[:4], order) == size and len(block) >= size:
                fields = header(block[:size], sign, check=False)
                if fields["magic"].item() in MAGIC[size]:
                    return fields
                if size == SIZE_1:
                    raise UserError(f"{path} is ANALYZE, which does not say where left is: save it as NIfTI")
    raise UserError(f"{path} is no NIfTI file: restore or remove it")


def stored_sides(path: Path, fields: Any) -> list[int]:
    """Voxels along each axis; raises UserError for a number of axes that is none."""
    count, *sides = (int(side) for side in fields["dim"])
    if not 1 <= count <= 7:
        raise UserError(f"{path} has {count} axes by its header, which is wrong: restore it")
    return sides[:count]


def voxel_offset(path: Path, fields: Any, is_pair: bool) -> int:
    """Where the voxels begin, in bytes; raises UserError for what cannot be."""
    offset, least = float(fields["vox_offset"]), 0 if is_pair else int(fields["sizeof_hdr"]) + 4
    if not least <= offset < 2**62:
        raise UserError(f"{path} has its voxels from byte {offset:g} on by its header, which is wrong: restore it")
    return int(offset)


def unit(fields: Any) -> float:
    """Mm of the unit of lengths."""
    return UNITS.get(int(fields["xyzt_units"]) & 7, 1.0)


def best_affine(fields: Any) -> Float[np.ndarray, "4 4"] | None:
    """The sform where it is given and sound, else the qform, in mm; None where neither is."""
    nibabel = import_nibabel()
    fields = fields.copy()
    fields["pixdim"][0] = -1 if fields["pixdim"][0] < 0 else 1  # qfac: what is not negative counts as 1
    for code, read in (("sform_code", fields.get_sform), ("qform_code", fields.get_qform)):
        if int(fields[code]) not in CODES:
            continue
        try:
            with np.errstate(all="ignore"):
                affine = np.diag([*[unit(fields)] * 3, 1.0]) @ np.asarray(read(), np.float64)
        except (nibabel.spatialimages.HeaderDataError, ValueError):  # negative lengths, a quaternion that is none
            continue
        if is_sound(affine):
            return affine
    return None


def scale_of(path: Path, fields: Any) -> tuple[float, float] | None:
    """Slope and intercept; a slope of 0, or that is no number, says that there are none, as the format has it.

    Raises:
        UserError: the intercept of a slope is no number.
    """
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return None
    if not math.isfinite(intercept):
        raise UserError(f"{path} has scl_inter {intercept} in its header, which makes no values: restore it")
    return None if (slope, intercept) == (1, 0) else (slope, intercept)
