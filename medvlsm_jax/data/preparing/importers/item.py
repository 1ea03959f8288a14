"""What an importer finds in a raw download: objects with the ways to read their image and their mask."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.decoding.errors import naming
from medvlsm_jax.data.decoding.orientation import upright_size
from medvlsm_jax.data.files import File, leads_out
from medvlsm_jax.data.schema import RecordLine
from medvlsm_jax.errors import UserError

JPEG = (".jpg", ".jpeg")
KEPT = (".png", *JPEG)  # formats that are copied; others become PNG

Mask = Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item(RecordLine):
    """One object to segment. Where it travels to another process, its functions are partials of module-level ones.

    Attributes:
        read_image: gives the raw file, or its pixels (uint8) where no image file holds them.
        read_mask: gives the mask, which is written as PNG.
        keep_empty: otherwise an object with an empty mask is left out.
        read_extent: gives height and width of the image in mm, where the download has them.
    """

    read_image: Callable[[], Path | np.ndarray]
    read_mask: Callable[[], Mask]
    keep_empty: bool = True
    read_extent: Callable[[], tuple[float, float]] | None = None

    def __post_init__(self):
        for name in (self.image, self.mask):
            if leads_out(name):
                raise UserError(
                    f"the download has a name in it that makes {name!r}, which would be written outside of the "
                    "dataset's folder: rename it, or download it anew"
                )


@dataclasses.dataclass(frozen=True)
class Source:
    """What one process reads in one go: an image with its objects, or a volume with its slices.

    Attributes:
        name: of the image, or of the volume; no two sources of a download have one.
        read: gives the objects, those of an image one after another. It travels to other processes, they do not.
        size: how many images it is made of.
    """

    name: str
    read: Callable[[], Iterable[Item]]
    size: int = 1


class Found(NamedTuple):
    """What a download holds.

    Attributes:
        sources: its images or volumes.
        card: as it was given, with what the files say of classes and modality where it does not.
    """

    sources: list[Source]
    card: Card


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may want of a download.

    Attributes:
        per_class: an object for each class of an image rather than one for all (BKAI).
        per_object: an object for each annotation rather than one for each class.
        channels: of nnU-Net's images: one, or three that are shown as red, green and blue.
        empty_slices: of a volume, how many slices without an object are kept, evenly spread; None for all.
        fold: of nnU-Net's splits_final.json, whose validation cases become the split val; None draws splits.
    """

    per_class: bool = False
    per_object: bool = False
    channels: tuple[int, ...] = (0,)
    empty_slices: int | None = 0
    fold: int | None = None


def sources_of(items: Sequence[Item]) -> list[Source]:
    """The sources of objects that are known before anything is read, sorted by image."""
    several = itertools.groupby(items, key=lambda item: item.image)
    return [Source(image, functools.partial(tuple, tuple(objects))) for image, objects in several]


def image_name(path: Path, stem: str = "") -> str:
    """The name under which an image is written: its own, or `stem`, with the suffix of the format it will have."""
    suffix = path.suffix.lower()
    return (stem or path.stem) + (suffix if suffix in KEPT else ".png")


def written_name(name: str) -> str:
    """The name under which an image is written that lies in folders of the download: `train/a.png` for train/a.tif."""
    path = PurePosixPath(name)
    return path.with_name(image_name(Path(path.name))).as_posix()


def as_found(path: Path) -> Path:
    """The raw file itself, to be copied."""
    return path


def image_size(path: File) -> tuple[int, int]:
    """Width and height as it is to be looked at, without decoding the pixels; of a PNG only where it has EXIF ahead."""
    with naming(path), path.open("rb") as file, Image.open(file) as image:
        return upright_size(image)
