"""Images and masks on the host: Pillow decodes and resizes, as in the original."""

import functools
import struct
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
NOT_DECODED = ("MPEG", "EPS")  # of a film Pillow reads the size alone, for a drawing it needs another program
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats whose values are not quite those that were written
MIN_SIDE = 8  # in pixels; what is smaller stands for an image that was lost

# What Pillow raises for broken files of sixteen formats.
BROKEN = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error)

# Pillow refuses a header that claims more than 2 * Image.MAX_IMAGE_PIXELS (179 million), before it decodes anything;
# from half of that on it warns of images that it reads all the same. The warning is silenced for the whole process,
# once, for only that is safe with threads; the limit stays Pillow's, so that nobody's guard is weakened.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@functools.cache
def image_endings() -> frozenset[str]:
    """The endings (`.png`, …) of files in formats that Pillow decodes; of others it knows the name, or writes them."""
    endings = Image.registered_extensions()  # which loads all formats, and so comes first
    decoded = {
        name
        for name, (reader, _) in Image.OPEN.items()
        if name not in NOT_DECODED and not (isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile))
    }
    return frozenset(ending for ending, name in endings.items() if name in decoded | {"MPO"})  # a JPEG, to the reader


def open_image(path: File) -> Image.Image:
    """A decoded image; raises UserError when it is missing, truncated, no image, or absurdly large."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large: shrink or remove it ({error})") from error
    except BROKEN as error:
        reason = "in no format that Pillow reads" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{path} cannot be decoded as an image ({reason}): restore or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; 16-bit and float images are stretched from their own minimum and maximum to 0..255."""
    if image.mode not in DEEP_MODES:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of a palette with transparency
        return image if image.mode == "RGB" else image.convert("RGB")
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def resize_image(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """RGB stretched to a square with Pillow's bilinear filter, which averages when it shrinks."""
    return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def first_channel(image: Image.Image) -> Image.Image:
    """The channel of a mask that counts, with its values as they are: mode L, or one of DEEP_MODES."""
    if image.mode in ("L", *DEEP_MODES):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return (image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr", "PA") else image).getchannel(0)


def mask_channel(path: File, image: Image.Image) -> Image.Image:
    """The `first_channel` of a whole mask, before anything is resized: a small object may be missed by that.

    Raises:
        UserError: it is of 0 and 1, of which a threshold at 127 would leave nothing. Of a lossy format that is no
            reason: an empty mask is all 1 in a JPEG of quality 70, and 0 and 1 beside each other in a part of one.
    """
    channel = first_channel(image)
    if image.format not in LOSSY and image.info.get("compression") != "jpeg":
        # Pillow is faster, but finds no extrema in some deep modes.
        largest = channel.getextrema()[1] if channel.mode == "L" else np.asarray(channel).max()
        if largest == 1:
            raise UserError(f"{path} holds the values 0 and 1, but masks are 0 and 255: multiply it by 255")
    return channel


def threshold(channel: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """1 where a mask's channel is above 127, else 0."""
    return (np.asarray(channel) > 127).view(np.uint8)


def read_mask(path: File) -> UInt8[np.ndarray, "h w"]:
    """The first channel of a mask as 0 or 1; grey values of a JPEG's edges are thresholded at 127.

    Raises:
        UserError: the file cannot be decoded, or its values are 0 and 1 where 0 and 255 are expected.
    """
    return threshold(mask_channel(path, open_image(path)))


def load_pair(image_path: File, mask_path: File, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) and its 0/1 mask (size, size, 1), both uint8.

    Raises:
        UserError: a file cannot be read or is tiny, the mask holds 0 and 1, or image and mask differ in size.
    """
    image, mask = open_image(image_path), open_image(mask_path)
    check_side(image_path, image.size)
    check_sizes(image_path, image.size, mask_path, mask.size)
    # The nearest filter only picks pixels: the few that it leaves are thresholded, as all would be.
    picked = mask_channel(mask_path, mask).resize((size, size), Image.Resampling.NEAREST)
    return resize_image(image, size), threshold(picked)[..., None]


def check_side(path: File, size: tuple[int, int]) -> None:
    """Raises a UserError for an image of (width, height) that holds next to nothing."""
    if min(size) < MIN_SIDE:
        raise UserError(
            f"{path} is {size[0]}x{size[1]} pixels, but at least {MIN_SIDE}x{MIN_SIDE} are needed: restore or remove it"
        )


def check_sizes(image_path: File, image_size: tuple[int, int], mask_path: File, mask_size: tuple[int, int]) -> None:
    """Raises a UserError when a mask differs from its image in (width, height)."""
    if image_size != mask_size:
        raise UserError(
            f"{mask_path} is {mask_size[0]}x{mask_size[1]} but its image {image_path} is "
            f"{image_size[0]}x{image_size[1]}: they must agree"
        )
