"""How many pictures a file shows, one after another."""

import os

from PIL import Image

from medvlsm_jax.data.decoding.tiff_pages import TiffPage, page_offsets, stacked_slices
from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

ONE_PICTURE = ("MPO", "PSD")  # what else they hold are previews, gain maps, or the layers of the picture
MIN_FRAME = 8  # bytes that a frame takes at least
TRAILER, TAIL = b";", 64  # with which a GIF ends, or nearly ends


def find_pages(path: File, image: Image.Image) -> list[File]:
    """The pages of an open file; of one that has a single picture, itself.

    Thumbnails and smaller copies in a TIFF are no pages.

    Raises:
        UserError: it is a stack that ImageJ wrote without pages.
    """
    if image.format != "TIFF":
        return [path]
    if not getattr(image, "is_animated", False):
        if (slices := stacked_slices(image.tag_v2)) > 1:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"{path} is a stack of {slices} slices that ImageJ wrote without pages: save it with pages")
        return [path]
    with path.open("rb") as file:
        offsets = page_offsets(file)
    if offsets == [image.tag_v2.offset]:  # pyright: ignore[reportAttributeAccessIssue]
        return [path]
    return [TiffPage(path, offset, i) for i, offset in enumerate(offsets, start=1)]


def count_frames(path: File, image: Image.Image) -> int:
    """The frames of an open file that moves; 1 of others, and where further pictures belong to the first.

    Raises:
        UserError: it claims more of them than it can hold, or is a GIF that is cut off, which Pillow says nothing of.
    """
    if image.format in ("TIFF", *ONE_PICTURE) or not getattr(image, "is_animated", False):
        return 1
    count = int(image.n_frames)  # pyright: ignore[reportAttributeAccessIssue]
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read()
    if count * MIN_FRAME > size:
        raise UserError(f"{path} claims {count} frames, but is too small for them: restore or remove it")
    if image.format == "GIF" and TRAILER not in tail:
        raise UserError(f"{path} is cut off: of its frames {count} are left; restore or remove it")
    return count
