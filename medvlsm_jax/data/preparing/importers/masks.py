"""Mask files of one object: which of their pixels it has, by the card's rule or by what they look like."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from medvlsm_jax.data.decoding.decode import Decoded, decode
from medvlsm_jax.data.images import DEEP_MODES, picture, to_rgb
from medvlsm_jax.data.preparing.importers.item import Mask
from medvlsm_jax.errors import UserError
from medvlsm_jax.text import listed

BRIGHT = 127  # what is above is the object
FAINT = 32  # up to it, values of a lossy file are noise around 0
CHROMA = 64  # between the brightest and the darkest channel of what is a colour, not a grey
MAX_COLOURS = 256  # a mask with more has none that are labels
SHOWN = 5  # values in a message
LABELS = 'labels = {1 = "CLASS"}'


def read_binary(path: Path, rule: str = "") -> Mask:
    """The object of a mask file.

    Args:
        path: of the file.
        rule: one of `cards.MASKS`. Without one it is what is above 127 in the brightest channel (JPEG has grey edges),
            or 1 where there is nothing but 0 and 1.

    Raises:
        UserError: without a rule, for a file that would so become empty, or lose a part: one with other values, several
            colours, or an object in its alpha channel. It names the field of the card that says what is meant.
    """
    decoded = decode(path)
    if rule == "alpha":
        return opacity(path, decoded) > BRIGHT
    values = brightness(decoded)
    if rule == "nonzero":
        return values > 0
    bright = values > (0 if values.max() == 1 and not decoded.is_lossy else BRIGHT)
    if not rule:
        check_values(path, decoded, values)
        check_colours(path, decoded)
        check_opacity(path, decoded, bright)
    return ~bright if rule == "inverted" else bright


def brightness(decoded: Decoded) -> UInt8[np.ndarray, "h w"]:
    """The brightest of a pixel's colours; deep values are stretched to 0..255."""
    image = picture(decoded)
    return np.asarray(image) if image.mode == "L" else np.asarray(to_rgb(image)).max(-1)


def opacity(path: Path, decoded: Decoded) -> UInt8[np.ndarray, "h w"]:
    """The alpha channel; raises UserError when there is none."""
    image = with_alpha(decoded)
    if image is None:
        raise UserError(f'{path} has no alpha channel, but the card says mask = "alpha": take it out, or the file')
    return np.asarray(image.getchannel("A"))


def with_alpha(decoded: Decoded) -> Image.Image | None:
    """The picture with an alpha channel, if it has one."""
    image = picture(decoded)
    if "transparency" in image.info:
        return image.convert("RGBA")
    return image if "A" in image.getbands() else None


# --- What would be lost ----------------------------------------------------------------------------------------------


def check_values(path: Path, decoded: Decoded, values: UInt8[np.ndarray, "h w"]) -> None:
    """Raises a UserError for a mask of values that are no bright ones, or of several deep ones."""
    if decoded.mode in DEEP_MODES:
        found = np.unique(np.asarray(decoded.pixels))
        if len(found) > 2:
            raise other_values(path, f"holds {listed(found.tolist(), SHOWN, 'values')}, of more than 8 bits")
    elif (1 if not decoded.is_lossy else FAINT) < values.max() <= BRIGHT:
        raise other_values(
            path, f"holds {listed(np.unique(values).tolist(), SHOWN, 'values')}, but none above {BRIGHT}"
        )


def check_colours(path: Path, decoded: Decoded) -> None:
    """Raises a UserError for a mask of several colours."""
    image = picture(decoded)
    if decoded.is_lossy or image.mode in ("1", "L", "LA", *DEEP_MODES):
        return
    found = [colour for _, colour in to_rgb(image).getcolors(MAX_COLOURS) or []]
    colours = sorted(colour for colour in found if max(colour) - min(colour) > CHROMA)  # pyright: ignore[reportArgumentType]
    if len(colours) > 1:
        named = ", ".join("#" + bytes(colour).hex() for colour in colours[:SHOWN])  # pyright: ignore[reportArgumentType]
        raise other_values(path, f"is in several colours, {named}", 'labels = {"#ff0000" = "CLASS"}')


def check_opacity(path: Path, decoded: Decoded, bright: Mask) -> None:
    """Raises a UserError for a mask whose alpha channel shows another object than its colours."""
    image = with_alpha(decoded)
    opaque = None if image is None else np.asarray(image.getchannel("A")) > BRIGHT
    if opaque is None or opaque.all() or not opaque.any() or np.array_equal(opaque, bright):
        return
    if bright.all() or not bright.any():
        raise UserError(
            f'{path} has its object in its alpha channel, not in its colours: write mask = "alpha" in the card'
        )
    raise UserError(
        f"{path} shows one object in its alpha channel and another in its colours: write in the card which is meant, "
        'mask = "alpha" or mask = "bright"'
    )


def other_values(path: Path, found: str, labels: str = LABELS) -> UserError:
    """What is said of a mask of several classes, or of another brightness."""
    return UserError(
        f'{path} {found}: write in the card what they are, {labels}, or mask = "nonzero" where all are the object'
    )
