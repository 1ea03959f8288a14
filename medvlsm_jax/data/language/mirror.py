"""Sentences about a mirrored image: left and right change places."""

import re
from collections.abc import Sequence

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.language.grammars import attributes_of

SIDES = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "right": "left", "Right": "Left", "RIGHT": "LEFT"}


def mirrored(sentence: str, keep: Sequence[str] = ()) -> str:
    """The sentence with "left" and "right" exchanged, as whole words and in their case.

    Args:
        sentence: any text.
        keep: names in which they are anatomy and no place in the image, as "left ventricular cavity"; any case.
    """
    kept = sorted(filter(None, keep), key=len, reverse=True)  # the longest of several that begin alike
    words = "|".join(re.escape(name) for name in (*kept, "left", "right"))
    return re.sub(
        rf"(?<!\w)({words})(?!\w)", lambda match: SIDES.get(match[0], match[0]), sentence, flags=re.IGNORECASE
    )


def mirrored_sentence(record: Record, sentence: str) -> str:
    """A sentence about a record for its mirrored image; the names of its dataset's classes and its own stay."""
    return mirrored(sentence, (*record.card.targets, attributes_of(record).get("class", "")))
