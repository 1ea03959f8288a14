"""The images and masks of a dataset, written by several processes; each file is whole or not there."""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from medvlsm_jax import atomic
from medvlsm_jax.data.decoding.decode import Decoded, decode
from medvlsm_jax.data.images import how_to_agree, open_image, picture, to_rgb
from medvlsm_jax.data.preparing.importers.item import KEPT, Item, Mask, Source
from medvlsm_jax.data.preparing.measuring import measure_object
from medvlsm_jax.data.schema import RecordLine
from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import map_in_processes

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that PNG keeps as they are
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
QUALITY = 95  # of a JPEG that is shrunk


class Written(NamedTuple):
    """A record whose files are there.

    Attributes:
        line: with what the image and the mask tell.
        words: that they show; none where nobody asked for them.
    """

    line: RecordLine
    words: Mapping[str, str]


def write_files(
    sources: Sequence[Source],
    folder: Path,
    subfolder: str,
    *,
    max_side: int = 0,
    workers: int | None = None,
    is_measured: bool = True,
) -> list[Written]:
    """Writes the images and masks that are not there yet, and measures them; each file of a download is decoded once.

    Args:
        sources: what is read in one go.
        folder: of the dataset; gets images/ and masks/.
        subfolder: below these.
        max_side: larger images are shrunk to it, in pixels, with their masks; 0 leaves them as found.
        workers: processes; by default one for each core, or one alone where there is little to do.
        is_measured: whether words are asked for.

    Returns:
        The records in the order of the sources; an object with an empty mask may be left out.

    Raises:
        UserError: a file cannot be read, or a mask is of another size than its image.
    """
    write = functools.partial(
        write_source, folder=folder, subfolder=subfolder, max_side=max_side, is_measured=is_measured
    )
    written = map_in_processes(write, sources, workers=workers, desc="writing", unit="image")
    return [record for several in written for record in several]


def write_source(source: Source, folder: Path, subfolder: str, max_side: int, is_measured: bool) -> list[Written]:
    """Writes the images of a source, one after another, with their masks, which are sorted by name."""
    written = []
    for _, several in groupby(source.read(), key=lambda item: item.image):
        items = tuple(sorted(several, key=lambda item: item.mask))
        written += write_image(items, folder, subfolder, max_side, is_measured)
    return written


def write_image(
    items: tuple[Item, ...], folder: Path, subfolder: str, max_side: int, is_measured: bool
) -> list[Written]:
    """Writes one image and its masks."""
    source = items[0].read_image()
    decoded = decode(source) if isinstance(source, Path) else Decoded(Image.fromarray(source))
    image, path = picture(decoded), folder / "images" / subfolder / items[0].image
    size = shrunk_size(image.size, max_side)
    if not path.exists():
        if isinstance(source, Path) and size == image.size and source.suffix.lower() in KEPT:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(path) as temporary:
                shutil.copyfile(source, temporary)
        else:
            save(path, resized(image, size))
    colours = to_rgb(image)
    digest = pixel_digest(colours)
    pixels = np.asarray(colours if size == image.size else to_rgb(open_image(path)))  # JPEG has changed what is shrunk
    written = []
    for item in items:
        mask = write_mask(item, folder / "masks" / subfolder, decoded, size)
        if mask is not None:
            words, box = measure_object(pixels, mask) if is_measured else ({}, None)
            written.append(Written(line_of(item, digest=digest, spacing=find_spacing(item, size), box=box), words))
    return written


def write_mask(item: Item, folder: Path, image: Decoded, size: tuple[int, int]) -> Mask | None:
    """Writes the mask of an image, of 0 and 255, at a size; returns it, or None of an empty one that is left out."""
    mask = item.read_mask()
    height, width = mask.shape
    if (width, height) != image.size:
        raise UserError(
            f"the mask {item.mask} is {width}x{height} in the download but its image {item.image} is "
            f"{image.size[0]}x{image.size[1]}: {how_to_agree(image.size, (width, height), image.is_turned)}"
        )
    if not item.keep_empty and not mask.any():
        return None
    pixels = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if size != image.size:
        pixels = pixels.resize(size, Image.Resampling.NEAREST)
    if not (path := folder / item.mask).exists():
        save(path, pixels)
    return np.asarray(pixels) > 0


def line_of(item: Item, **known: Any) -> RecordLine:
    """The record of an object, and what is known of its files."""
    return RecordLine(**{field.name: getattr(item, field.name) for field in dataclasses.fields(RecordLine)} | known)


def find_spacing(item: Item, size: tuple[int, int]) -> tuple[float, float] | None:
    """Millimetres of a pixel of an image of a size, down and across, to six digits; None where they are not known."""
    if item.read_extent is None:
        return None
    (down, across), (width, height) = item.read_extent(), size
    return float(f"{down / height:.6g}"), float(f"{across / width:.6g}")


def shrunk_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Width and height with the longer one at most `max_side`, in proportion; 0 changes nothing."""
    if not max_side or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image at a size, in a mode that PNG and JPEG keep."""
    if size != image.size:
        image = image if image.mode in ("L", "RGB") else to_rgb(image)
        return image.resize(size, Image.Resampling.BILINEAR)
    return image if image.mode in PNG_MODES else to_rgb(image)


def pixel_digest(pixels: Image.Image) -> str:
    """The same for RGB images of the same pixels."""
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()


def save(path: Path, image: Image.Image) -> None:
    """Writes an image in the format of the path's suffix."""
    kind = FORMATS[path.suffix]
    options = {"quality": QUALITY} if kind == "JPEG" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        image.save(temporary, kind, **options)
