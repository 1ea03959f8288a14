"""The images and masks of a dataset, written by several processes; each file is whole or not there."""

import functools
import hashlib
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from medvlsm_jax import atomic
from medvlsm_jax.data.decoding.decode import Decoded, decode
from medvlsm_jax.data.images import how_to_agree, picture, to_rgb
from medvlsm_jax.data.preparing.importers.item import KEPT, Item
from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import map_in_processes

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that PNG keeps as they are
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
QUALITY = 95  # of a JPEG that is shrunk


def write_files(
    items: Sequence[Item], folder: Path, subfolder: str, *, max_side: int = 0, workers: int | None = None
) -> tuple[dict[str, str], set[str]]:
    """Writes the images and masks that are not there yet.

    Args:
        items: sorted by image.
        folder: of the dataset; gets images/ and masks/.
        subfolder: below these.
        max_side: larger images are shrunk to it, in pixels, with their masks; 0 leaves them as found.
        workers: processes; by default one for each core, or one alone where there is little to do.

    Returns:
        The digest of each image's pixels, and the masks that are there (an empty one may be left out).

    Raises:
        UserError: a file cannot be read, or a mask is of another size than its image.
    """
    images = [tuple(several) for _, several in groupby(items, key=lambda item: item.image)]
    write = functools.partial(write_image, folder=folder, subfolder=subfolder, max_side=max_side)
    written = map_in_processes(write, images, workers=workers, desc="writing", unit="image")
    digests = {several[0].image: digest for several, (digest, _) in zip(images, written, strict=True)}
    return digests, {mask for _, masks in written for mask in masks}


def write_image(items: tuple[Item, ...], folder: Path, subfolder: str, max_side: int) -> tuple[str, list[str]]:
    """Writes one image and its masks; returns the digest of its pixels and the masks that are there."""
    source = items[0].read_image()
    decoded = decode(source) if isinstance(source, Path) else Decoded(Image.fromarray(source))
    image = picture(decoded)
    path = folder / "images" / subfolder / items[0].image
    if not path.exists():
        size = shrunk_size(image.size, max_side)
        if isinstance(source, Path) and size == image.size and source.suffix.lower() in KEPT:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(path) as temporary:
                shutil.copyfile(source, temporary)
        else:
            save(path, resized(image, size))
    written = [item.mask for item in items if write_mask(item, folder / "masks" / subfolder, decoded, max_side)]
    return pixel_digest(image), written


def write_mask(item: Item, folder: Path, image: Decoded, max_side: int) -> bool:
    """Writes the mask of an image, of 0 and 255; returns whether there is one, for an empty one may be left out."""
    path = folder / item.mask
    if path.exists():
        return True
    mask = item.read_mask()
    (height, width), size = mask.shape, image.size
    if (width, height) != size:
        raise UserError(
            f"the mask {item.mask} is {width}x{height} in the download but its image {item.image} is "
            f"{size[0]}x{size[1]}: {how_to_agree(size, (width, height), image.is_turned)}"
        )
    if not mask.any() and not item.keep_empty:
        return False
    pixels = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    save(path, pixels.resize(shrunk_size(size, max_side), Image.Resampling.NEAREST))
    return True


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


def pixel_digest(image: Image.Image) -> str:
    """The same for images of the same pixels, whatever their format."""
    pixels = to_rgb(image)
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()


def save(path: Path, image: Image.Image) -> None:
    """Writes an image in the format of the path's suffix."""
    kind = FORMATS[path.suffix]
    options = {"quality": QUALITY} if kind == "JPEG" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        image.save(temporary, kind, **options)
