"""Images and masks on the host: Pillow decodes and resizes, as in the original."""

import functools
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from medvlsm_jax.data.decoding.decode import Decoded, decode
from medvlsm_jax.data.decoding.depth import DEEP_MODES, NOT_DECODED, stretch
from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

LARGEST = 2**31 - 1  # that an image of mode I holds
MIN_SIDE = 8  # in pixels; what is smaller stands for an image that was lost

CONVERTED = {
    "CMYK": "is CMYK: it is converted to RGB",
    "LAB": "is CIELAB: it is converted to RGB",
    "P": "has a palette: its colours are looked up",
    "PA": "has a palette with transparency: its colours are looked up, the transparency is dropped",
    "LA": "has an alpha channel: it is dropped",
    "La": "has an alpha channel: it is dropped",
    "RGBA": "has an alpha channel: it is dropped",
} | dict.fromkeys(
    DEEP_MODES, "is a 16-bit, 32-bit or float image: stretched from its own minimum and maximum to 0..255"
)
DEEP_COLOURS = "has 16 bits a colour: stretched from the minimum and maximum of all its colours together to 0..255"
TURNED = "is turned upright by its EXIF orientation"
TURNED_ALONE = (
    "one of them is turned upright by its EXIF orientation, the other is not; turn the other's pixels likewise, or "
    "take the orientation out of the one"
)
NOT_FINITE = "holds values that are no finite numbers: NaN and minus infinity are black, infinity is white"


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
    """A decoded image, upright, in a mode of Pillow's; 16-bit colour, for which it has none, as `to_rgb` shows it.

    Raises:
        UserError: it is missing, truncated, no image, absurdly large, or of several pages or frames; or its values
            cannot be read at their full depth.
    """
    return picture(decode(path))


def picture(decoded: Decoded) -> Image.Image:
    """A decoded file in a mode of Pillow's."""
    pixels = decoded.pixels
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(stretch(pixels))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; 16-bit and float images are stretched from their own minimum and maximum to 0..255."""
    if image.mode in DEEP_MODES:
        return Image.fromarray(stretch(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a palette with transparency
    return image if image.mode == "RGB" else image.convert("RGB")


def what_was_done(decoded: Decoded) -> tuple[str, ...]:
    """What a person should know of how an image was read, a line each that follows the file's name."""
    lines = [CONVERTED.get(decoded.mode, DEEP_COLOURS if decoded.mode.endswith(";16") else "")]
    lines += [] if decoded.is_finite else [NOT_FINITE]
    lines += [TURNED] if decoded.is_turned else []
    return tuple(line for line in lines if line)


def resize_image(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """RGB stretched to a square with Pillow's bilinear filter, which averages when it shrinks."""
    return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def first_channel(decoded: Decoded) -> Image.Image:
    """The channel of a mask that counts, with its values as they are: mode L, or one of DEEP_MODES."""
    image = decoded.pixels
    if not isinstance(image, Image.Image):
        channel = image.reshape(*image.shape[:2], -1)[..., 0]
        return Image.fromarray(channel if channel.dtype == np.uint16 else np.minimum(channel, LARGEST).astype(np.int32))
    if image.mode in ("L", *DEEP_MODES):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return to_rgb(image).getchannel(0)


def mask_channel(path: File, decoded: Decoded) -> Image.Image:
    """The `first_channel` of a whole mask, before anything is resized: a small object may be missed by that.

    Raises:
        UserError: it is of 0 and 1, of which a threshold at 127 would leave nothing, or holds what is no grey value.
            Of a lossy format 0 and 1 are no reason: an empty mask is all 1 in a JPEG of quality 70, and 0 and 1 beside
            each other in a part of one.
    """
    channel = first_channel(decoded)
    if not decoded.is_finite:
        raise UserError(f"{path} holds NaN or infinity, but masks are 0 and 255: restore or remove it")
    # Pillow is faster, but finds no extrema in some deep modes.
    values = None if channel.mode == "L" else np.asarray(channel)
    low, high = channel.getextrema() if values is None else (values.min(), values.max())
    if low < 0:  # pyright: ignore[reportOperatorIssue]
        raise UserError(f"{path} holds negative values, but masks are 0 and 255: restore or remove it")
    if high == 1 and not decoded.is_lossy:
        raise UserError(f"{path} holds the values 0 and 1, but masks are 0 and 255: multiply it by 255")
    return channel


def to_binary(path: File, decoded: Decoded) -> UInt8[np.ndarray, "h w"]:
    """The `mask_channel` of a mask as 0 or 1."""
    return threshold(mask_channel(path, decoded))


def threshold(channel: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """1 where a mask's channel is above 127, else 0."""
    return (np.asarray(channel) > 127).view(np.uint8)


def read_mask(path: File) -> UInt8[np.ndarray, "h w"]:
    """The first channel of a mask as 0 or 1; grey values of a JPEG's edges are thresholded at 127.

    Raises:
        UserError: the file cannot be decoded, or its values are 0 and 1 where 0 and 255 are expected.
    """
    return to_binary(path, decode(path))


def load_pair(image_path: File, mask_path: File, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) and its 0/1 mask (size, size, 1), both uint8.

    Raises:
        UserError: a file cannot be read or is tiny, the mask holds 0 and 1, or image and mask differ in size.
    """
    image, mask = decode(image_path), decode(mask_path)
    check_side(image_path, image.size)
    check_sizes(image_path, image, mask_path, mask)
    return resize_image(picture(image), size), resize_mask(mask_path, mask, size)


def load_mask(path: File, size: int) -> UInt8[np.ndarray, "size size 1"]:
    """The mask of `load_pair` without its image, for one whose pair was looked at before."""
    return resize_mask(path, decode(path), size)


def resize_mask(path: File, decoded: Decoded, size: int) -> UInt8[np.ndarray, "size size 1"]:
    """A mask stretched to a square with the nearest filter, as 0 or 1."""
    # The filter only picks pixels: the few that it leaves are thresholded, as all would be.
    return threshold(mask_channel(path, decoded).resize((size, size), Image.Resampling.NEAREST))[..., None]


def check_side(path: File, size: tuple[int, int]) -> None:
    """Raises a UserError for an image of (width, height) that holds next to nothing."""
    if min(size) < MIN_SIDE:
        raise UserError(
            f"{path} is {size[0]}x{size[1]} pixels, but at least {MIN_SIDE}x{MIN_SIDE} are needed: restore or remove it"
        )


@runtime_checkable
class Oriented(Protocol):
    """What is known of an image or a mask: `Decoded`, `facts.Facts`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        ...

    @property
    def is_turned(self) -> bool:
        """Whether the EXIF orientation of its file is another than upright."""
        ...


def check_sizes(image_path: File, image: Oriented, mask_path: File, mask: Oriented) -> None:
    """Raises a UserError when a mask differs from its image in size."""
    if image.size != mask.size:
        advice = how_to_agree(image.size, mask.size, image.is_turned != mask.is_turned)
        raise UserError(
            f"{mask_path} is {mask.size[0]}x{mask.size[1]} but its image {image_path} is "
            f"{image.size[0]}x{image.size[1]}: {advice}"
        )


def how_to_agree(size: tuple[int, int], other: tuple[int, int], is_one_turned: bool) -> str:
    """What to do about an image and a mask of these sizes, of which an EXIF orientation may turn one."""
    return TURNED_ALONE if is_one_turned and size == other[::-1] else "they must agree"
