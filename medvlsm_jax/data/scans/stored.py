"""A volume as the reader of a format hands it over."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float

from medvlsm_jax.data.scans.orientation import FARTHEST
from medvlsm_jax.data.scans.voxels import Voxels
from medvlsm_jax.errors import UserError

HeaderT = TypeVar("HeaderT", covariant=True)


@dataclasses.dataclass(frozen=True)
class Stored(Generic[HeaderT]):
    """A volume in the order and the type of its file.

    Attributes:
        files: that it is made of, the header first.
        voxels: where its numbers are.
        header: of its format, as far as a mask needs it.
        affine: from indices to mm in RAS+; None where the file does not say it, or says nonsense.
        sides: mm from a voxel to the next along the three axes; None where they are not known.
        scale: slope and intercept that make values of numbers; None where the numbers are the values.
    """

    files: tuple[Path, ...]
    voxels: Voxels
    header: HeaderT
    affine: Float[np.ndarray, "4 4"] | None = None
    sides: tuple[float, float, float] | None = None
    scale: tuple[float, float] | None = None


def three_axes(path: Path, sides: Sequence[int], part: int | None = None) -> tuple[int, int, int]:
    """The first three of a volume's axes, with 1 for those that it lacks.

    Args:
        path: of the file.
        sides: voxels along each axis.
        part: which of the time points or channels is wanted, of those along a fourth axis; None where there is one.

    Raises:
        UserError: an axis has no voxels, or a fourth one has several, or not so many.
    """
    text = " x ".join(map(str, sides))
    if not sides or min(sides) < 1:
        raise UserError(f"{path} has axes of {text} voxels, but each needs at least one: restore it")
    if part is not None and part >= math.prod(sides[3:]):
        raise UserError(f"{path} has {math.prod(sides[3:])} channels, so that there is no channel {part}")
    if part is None and math.prod(sides[3:]) > 1:
        raise UserError(
            f"{path} has {len(sides)} axes, {text}, but volumes have three: save each time point or channel as a file "
            "of its own, as nibabel.four_to_three does"
        )
    first, second, third = (*sides[:3], 1, 1)[:3]
    return first, second, third


def sides_of(affine: Float[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Mm from a voxel to the next along the three axes."""
    first, second, third = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return first, second, third


def known_sides(sides: Sequence[float]) -> tuple[float, float, float] | None:
    """The first three of some lengths in mm, with 1 for those that are missing; None where one is no length."""
    first, second, third = (float(side) for side in (*sides[:3], 1.0, 1.0)[:3])
    return (first, second, third) if all(1 / FARTHEST < side < FARTHEST for side in (first, second, third)) else None
