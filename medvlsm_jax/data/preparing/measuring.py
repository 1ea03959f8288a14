"""What an image and a mask show, in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.images import check_sizes, picture, to_binary, to_rgb
from medvlsm_jax.data.language.attributes import has_colour, measure
from medvlsm_jax.data.language.grammars import named_grammar

GREY = "grey"  # a word of grey images, which no sentence tells
# Words of modalities that are in colours, though one image may happen to be grey.
COLOURED = ("endoscopy", "colonoscopy", "dermoscopy", "photograph", "photography", "fundus", "histopathology")

Box = tuple[int, int, int, int]  # left, top, and right and bottom just outside of it, in pixels


class Measured(NamedTuple):
    """Words and box of an object; an empty mask has no box."""

    words: dict[str, str]
    box: Box | None


def measure_object(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], *, true_thirds: bool = False
) -> Measured:
    """The words of one object, and of a grey image GREY, and the box around its mask.

    `true_thirds` is as for `attributes.measure`.
    """
    words = measure(image, mask, true_thirds=true_thirds) | ({} if has_colour(image) else {GREY: "yes"})
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Measured(words, None)
    return Measured(words, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def measure_files(pair: tuple[Path, Path], true_thirds: bool) -> Measured:
    """The same from an image and a mask file."""
    image_path, mask_path = pair
    image, mask = decode(image_path), decode(mask_path)
    check_sizes(image_path, image, mask_path, mask)
    pixels = np.asarray(to_rgb(picture(image)))
    return measure_object(pixels, to_binary(mask_path, mask) > 0, true_thirds=true_thirds)


def told_words(words: Mapping[str, str], card: Card, *, is_published: bool = False) -> dict[str, str]:
    """The words that make sense for a record: grey images have no color to tell.

    They do have one where the modality is in colours all the same, or where published words, to which those measured
    are compared, may have it.
    """
    is_grey = GREY in words and not any(word in COLOURED for word in card.modality.lower().split())
    has_none = is_grey and not is_published and "color" in named_grammar(card.grammar).attributes
    return {name: word for name, word in words.items() if name != GREY and not (has_none and name == "color")}
