"""Values as a file has them, where Pillow gives others.

Pillow has no mode for colour of more than 8 bits: it keeps the high byte of each value. Such a file is decoded twice
here, once for each byte. What cannot be had whole in this way is refused.
"""

import re
import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8, UInt16
from PIL import Image
from PIL.ExifTags import Base as Tag

from medvlsm_jax.data.decoding.orientation import upright
from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

NOT_DECODED = {
    "EPS": "a PostScript file, which takes another program to draw",  # and Pillow starts it
    "FITS": "a FITS file, whose planes and scale are not read",
    "MPEG": "a film, of which the size alone is read",
}
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
DEEP_COLOUR = re.compile(r"(LA|RGB|RGBX|RGBA|RGBa|CMYK);16([BLN])")  # how 16-bit colour lies in a file, to Pillow
MIN_IS_WHITE, APART, UNSIGNED, SIGNED = 0, 2, 1, 2  # of PhotometricInterpretation, PlanarConfiguration, SampleFormat
CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000 (ISO 15444-1, A.4.1 and A.5.1)
AV1 = b"av1C\x81"  # AV1's configuration in an AVIF (AV1 in ISOBMFF, 2.3.3)
MAX_BYTES = 512 << 20  # of values that are not 8 bits, which are held several times while they are read
BLOCK = 1 << 20  # values that are stretched at once


def check_depth(path: File, image: Image.Image) -> None:
    """Raises a UserError for an open file that holds more than Pillow, or this module, reads of it."""
    if image.format in NOT_DECODED:
        raise UserError(f"{path} is {NOT_DECODED[image.format]}: save it as PNG, TIFF or NIfTI")
    size = (
        image.width * image.height * (6 if DEEP_COLOUR.fullmatch(raw_mode(image)) else 4 * (image.mode in ("I", "F")))
    )
    if size > MAX_BYTES:
        raise UserError(
            f"{path} is too large: its deep values take {size >> 20} MiB of at most {MAX_BYTES >> 20}; shrink it"
        )
    if (bits := cut_bits(path, image)) > 8:
        raise UserError(
            f"{path} has {bits} bits a value, of which 8 would be read: save it as a PNG or chunky TIFF of 16 bits"
        )


def cut_bits(path: File, image: Image.Image) -> int:
    """How many bits the values of an open file have, where Pillow keeps 8 of them and the others are out of reach."""
    tags = tags_of(image)
    match image.format:
        case "TIFF" if tags.get(Tag.PlanarConfiguration) == APART and len(bits := tags.get(Tag.BitsPerSample, ())) > 1:
            return max(bits)
        case "PPM" if DEEP_COLOUR.fullmatch(raw_mode(image)) is None and image.mode != "I":
            arguments = image.tile[0].args if image.tile else ""  # pyright: ignore[reportAttributeAccessIssue]
            return int(arguments[1]).bit_length() if isinstance(arguments, tuple) else 8
        case "SGI":
            return 8 * read(path, 4)[3]
        case "JPEG2000" if image.mode != "I;16":
            content = read(path)
            start = content.index(CODESTREAM) + 42  # of a depth, a step across and one down for each component
            depths = content[start : start + 3 * int.from_bytes(content[start - 2 : start])][::3]
            return max((depth & 0x7F) + 1 for depth in depths)
        case "AVIF" if (start := (content := read(path, 1 << 16)).find(AV1)) >= 0:
            flags = content[start + len(AV1) + 1]
            return 12 if flags & 0x20 else 10 if flags & 0x40 else 8
    return 8


def read(path: File, size: int = -1) -> bytes:
    """The first bytes of a file, or all."""
    with path.open("rb") as file:
        return file.read(size)


def tags_of(image: Image.Image) -> Any:
    """The tags of an open TIFF by number; of another file there are none."""
    return getattr(image, "tag_v2", {})


def raw_mode(image: Image.Image) -> str:
    """Pillow's name of how values lie in an open file; empty where it does not say."""
    tiles = getattr(image, "tile", ())
    if not tiles:
        return ""
    codec, _, _, arguments = tiles[0]
    if isinstance(arguments, str):
        return arguments
    if codec == "ppm" and arguments[0] == "RGB" and arguments[1] > 255:
        return "RGB;16B"  # which Pillow has scaled to 8 bits
    return next((x for x in arguments or () if isinstance(x, str)), "")


# --- 16-bit colour ----------------------------------------------------------------------------------------------------


def deep_colour(path: File, layout: re.Match[str], orientation: int = 1) -> UInt16[np.ndarray, "h w *c"]:
    """Red, green and blue (h, w, 3) of a file, or its one grey channel (h, w), without the transparency.

    Args:
        path: of a file whose `raw_mode` is DEEP_COLOUR.
        layout: how that pattern matches: the kinds of values, and the order of their bytes, big, little or native.
        orientation: by which they are turned.
    """
    kind, order = layout.groups()
    if kind == "LA":  # two values of two bytes: to Pillow four of one
        high, low = np.moveaxis(samples(path, "RGBA", orientation)[..., :2], -1, 0)
        return high.astype(np.uint16) << 8 | low
    raw = "RGBA" if kind == "RGBa" else kind  # in which Pillow divides by the opacity
    first, second = (samples(path, f"{raw};16{which}", orientation) for which in "BL")
    is_big = order == "B" or (order == "N" and sys.byteorder == "big")
    values = (first if is_big else second).astype(np.uint16) << 8
    values |= second if is_big else first
    return values if kind in ("RGB", "RGBX") else to_colours(values, kind)


def samples(path: File, raw: str, orientation: int) -> UInt8[np.ndarray, "h w c"]:
    """A file decoded as if its values lay in it in another way."""
    with path.open("rb") as file, Image.open(file) as image:
        tiles: Any = image.tile  # pyright: ignore[reportAttributeAccessIssue]
        for i, tile in enumerate(tiles):
            if tile.codec_name == "ppm":
                tiles[i] = tile._replace(codec_name="raw", args=(raw, 0, 1))
            else:
                tiles[i] = tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        image.load()
        return np.asarray(upright(image, orientation))


def to_colours(values: UInt16[np.ndarray, "h w 4"], kind: str) -> UInt16[np.ndarray, "h w 3"]:
    """Red, green and blue of colours with a fourth value: transparency, or of CMYK black."""
    colours, fourth = values[..., :3], values[..., 3:]
    if kind == "CMYK":  # as Pillow converts 8 bits
        return ((65535 - colours.astype(np.float32)) * ((65535 - fourth.astype(np.float32)) / 65535)).astype(np.uint16)
    if kind == "RGBa":  # colours that were multiplied with their opacity
        return np.minimum(colours * (65535 / np.maximum(fourth, 1).astype(np.float32)), 65535).astype(np.uint16)
    return colours


# --- Other values -----------------------------------------------------------------------------------------------------


def tagged_values(image: Image.Image, photometric: int | None, samples: int) -> Image.Image | Num[np.ndarray, "h w"]:
    """The values of a decoded TIFF, where its tags say other ones than Pillow.

    Pillow inverts 8 bits whose white is 0, and no others; it takes 8 and 32 bits for unsigned and signed ones.

    Args:
        image: decoded.
        photometric: its tag PhotometricInterpretation, of which decoding leaves nothing.
        samples: its tag SampleFormat.
    """
    if image.mode == "L" and samples == SIGNED:
        return Image.fromarray(np.asarray(image).view(np.int8).astype(np.int32))
    if image.mode not in DEEP_MODES:
        return image
    values = np.asarray(image)
    if image.mode == "I" and samples == UNSIGNED and values.min() < 0:
        return values.view(np.uint32)
    if photometric == MIN_IS_WHITE:
        return Image.fromarray(-values if image.mode == "F" else 65535 - values)
    return image


def stretch(values: Num[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """Values from their own minimum and maximum, of all colours together, to 0..255; black where they are all equal.

    Of values that are no numbers, infinity is white, and NaN and minus infinity are black.
    """
    is_float = values.dtype.kind == "f"
    low, high = finite_range(values) if is_float else (float(values.min()), float(values.max()))
    scale = 255.0 / (high - low) if high > low else 0.0
    result = np.empty(values.shape, np.uint8)
    rows = max(1, BLOCK // max(1, values[0].size))  # in blocks, for in float64 a large image takes gigabytes
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float64)
        scaled = (np.clip(block, low, high) if is_float else block) - low
        scaled *= scale
        if is_float:
            scaled[np.isnan(block)], scaled[block == np.inf] = 0.0, 255.0
        result[start : start + rows] = np.rint(scaled, out=scaled)
    return result


def finite_range(values: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """The smallest and the largest number; 0 and 0 where there is none."""
    are_finite = np.isfinite(values)
    if not are_finite.any():
        return 0.0, 0.0
    low, high = np.min(values, where=are_finite, initial=np.inf), np.max(values, where=are_finite, initial=-np.inf)
    return float(low), float(high)
