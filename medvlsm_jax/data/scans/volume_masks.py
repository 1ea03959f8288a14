"""Masks of volumes: they lie where the volume lies, in its own order of voxels."""

from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from medvlsm_jax.data.scans.nifti import NiftiHeader, nifti_header
from medvlsm_jax.data.scans.volumes import Volume

ENDING = ".nii.gz"


def mask_names(volume: Volume, stem: str) -> tuple[str, ...]:
    """The files that `write_mask` writes: NIfTI, and beside it the volume's own format where that is another one.

    NIfTI-1 holds positions in 32 bits, so that those of other formats cannot be kept exactly; their own can.
    """
    header = volume.stored.header
    own = () if isinstance(header, NiftiHeader) else (stem + header.ending,)
    return (stem + ENDING, *own)


def write_mask(folder: Path, stem: str, volume: Volume, masks: UInt8[ndarray, "n h w"]) -> None:
    """Writes the masks of a volume's slices as the files of `mask_names`.

    Args:
        folder: where they are written.
        stem: of their names.
        volume: that was segmented.
        masks: of 0 and 1, slices as the volume shows them.
    """
    voxels = volume.to_stored(masks)
    nifti_of(volume).write(folder / (stem + ENDING), voxels)
    if not isinstance(header := volume.stored.header, NiftiHeader):
        header.write(folder / (stem + header.ending), voxels)


def write_probability(folder: Path, stem: str, volume: Volume, probabilities: UInt8[ndarray, "n h w"]) -> None:
    """Writes bytes, 255 for a probability of 1, as NIfTI `stem.nii.gz`, whose slope makes 0 to 1 of them."""
    nifti_of(volume).write(folder / (stem + ENDING), volume.to_stored(probabilities), slope=1 / 255)


def nifti_of(volume: Volume) -> NiftiHeader:
    """The header of a volume's masks."""
    stored = volume.stored
    if isinstance(stored.header, NiftiHeader):
        return stored.header
    return nifti_header(stored.header.sides, stored.affine, stored.sides)
