"""A file to its picture."""

import dataclasses

import numpy as np
from jaxtyping import Num
from PIL import Image
from PIL.ExifTags import Base as Tag

from medvlsm_jax.data.decoding.depth import (
    DEEP_COLOUR,
    check_depth,
    deep_colour,
    raw_mode,
    tagged_values,
    tags_of,
)
from medvlsm_jax.data.decoding.errors import naming
from medvlsm_jax.data.decoding.orientation import orientation_of, upright
from medvlsm_jax.data.decoding.pages import count_frames, find_pages
from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

VERSION = 2  # raise it when the same file gives other pixels: what is made of files is kept under it
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats whose values are not quite those that were written
LOSSY_TIFFS = ("jpeg", "tiff_jpeg", "webp")  # compressions


Pixels = Image.Image | Num[np.ndarray, "h w *c"]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The picture of a file.

    Attributes:
        pixels: upright; an array (h, w) or (h, w, 3) where Pillow has no mode for the values.
        mode: Pillow's; of 16-bit colour with `;16` behind it.
        is_turned: whether the file's EXIF orientation is another than upright.
        is_lossy: whether the format changes values.
        is_finite: whether no value is NaN or infinity.
    """

    pixels: Pixels
    mode: str = ""
    is_turned: bool = False
    is_lossy: bool = False
    is_finite: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        return self.pixels.shape[1], self.pixels.shape[0]


def decode(path: File, *, is_page: bool = False) -> Decoded:
    """The picture of a file; with `is_page` the first of several pages.

    Raises:
        UserError: the file is missing, broken, no image or absurdly large; it has several pages or frames, or values
            that Pillow does not give at their full depth, or none that is a number.
    """
    with naming(path), path.open("rb") as file, Image.open(file) as image:
        if not is_page and (page := only_page(path, image)) is not path:
            return decode(page, is_page=True)
        check_depth(path, image)
        pixels, mode, orientation = (read_tiff if image.format == "TIFF" else read_other)(path, image)
        is_lossy = image.format in LOSSY or image.info.get("compression") in LOSSY_TIFFS
        return Decoded(pixels, mode, orientation != 1, is_lossy, mode != "F" or all_finite(path, pixels))


def all_finite(path: File, pixels: Pixels) -> bool:
    """Whether no value is NaN or infinity; raises a UserError where none is a number."""
    are_finite = np.isfinite(np.asarray(pixels))
    if not are_finite.any():
        raise UserError(f"{path} holds NaN and infinity alone: restore or remove it")
    return bool(are_finite.all())


def read_tiff(path: File, image: Image.Image) -> tuple[Pixels, str, int]:
    """Pixels, mode and orientation of an open TIFF, which Pillow turns while it loads it."""
    orientation, tags = orientation_of(image), tags_of(image)
    if match := DEEP_COLOUR.fullmatch(raw_mode(image)):
        return deep_colour(path, match), f"{match[1]};16", orientation
    photometric, samples = tags.get(Tag.PhotometricInterpretation), tags.get(Tag.SampleFormat, (1,))
    image.load()
    pixels = tagged_values(image, photometric, samples[0])
    return pixels, pixels.mode if isinstance(pixels, Image.Image) else image.mode, orientation


def read_other(path: File, image: Image.Image) -> tuple[Pixels, str, int]:
    """Pixels, mode and orientation of an open file of any other format."""
    if match := DEEP_COLOUR.fullmatch(raw_mode(image)):
        orientation = orientation_of(image)
        return deep_colour(path, match, orientation), f"{match[1]};16", orientation
    image.load()
    orientation = orientation_of(image)
    return upright(image, orientation), image.mode, orientation


def only_page(path: File, image: Image.Image) -> File:
    """The one page of an open file, mostly the file itself; raises a UserError where it has several, or frames."""
    pages, frames = find_pages(path, image), count_frames(path, image)
    if len(pages) > 1 or frames > 1:
        found = f"{len(pages)} pages" if len(pages) > 1 else f"{frames} frames"
        raise UserError(f"{path} has {found}, but one picture is expected: split it into files of their own")
    return pages[0]
