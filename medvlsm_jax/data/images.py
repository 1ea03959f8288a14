"""Images and masks on the host: Pillow decodes and resizes, as in the original."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")


def open_image(path: File) -> Image.Image:
    """A decoded image; raises UserError when it is missing, truncated, no image, or absurdly large."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be decoded as an image ({error}): restore or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; 16-bit and float images are stretched from their own minimum and maximum to 0..255."""
    if image.mode not in DEEP_MODES:
        # By way of RGBA, for Pillow warns of a palette with transparency.
        return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def resize_image(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """RGB stretched to a square with Pillow's bilinear filter, which averages when it shrinks."""
    return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def read_mask(path: File) -> UInt8[np.ndarray, "h w"]:
    """The first channel of a mask as 0 or 1; grey values of a JPEG's edges are thresholded at 127.

    Raises:
        UserError: the file cannot be decoded, or its values are 0 and 1 where 0 and 255 are expected.
    """
    image = open_image(path)
    if image.mode in ("1", "P", "CMYK", "YCbCr", "LA", "PA"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    values = np.asarray(image)
    values = values if values.ndim == 2 else values[..., 0]
    if values.max() == 1:
        raise UserError(f"{path} holds the values 0 and 1, but masks are 0 and 255: multiply it by 255")
    return (values > 127).astype(np.uint8)


def resize_mask(mask: UInt8[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "size size"]:
    """A 0/1 mask stretched to a square with the nearest filter."""
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def load_pair(image_path: File, mask_path: File, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) and its 0/1 mask (size, size, 1), both uint8.

    Raises:
        UserError: a file cannot be read, or image and mask differ in size.
    """
    image, mask = open_image(image_path), read_mask(mask_path)
    if image.size != mask.shape[::-1]:
        raise UserError(
            f"{mask_path} is {mask.shape[1]}x{mask.shape[0]} but its image {image_path} is "
            f"{image.width}x{image.height}: they must agree"
        )
    return resize_image(image, size), resize_mask(mask, size)[..., None]
