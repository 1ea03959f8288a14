"""BKAI-IGH NeoPolyp: masks in two colours, red for neoplastic and green for non-neoplastic polyps."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.images import open_image, to_rgb
from medvlsm_jax.data.preparing.importers.folders import ReadMask, pair_folders
from medvlsm_jax.data.preparing.importers.item import Item, Mask
from medvlsm_jax.data.preparing.importers.layout import find_inside, find_parent

IMAGES, MASKS = ("train",), ("train_gt",)  # the test images have no masks
CLASSES = {"neoplastic": 0, "non-neoplastic": 1}  # word -> channel of its colour


def find_items(raw: Path, card: Card, read: ReadMask | None = None) -> list[Item]:
    """The polyps of an image as one object, of either class."""
    parent = find_parent(raw, card, IMAGES, MASKS)
    return pair_folders(find_inside(parent, IMAGES), find_inside(parent, MASKS), card, read=read or read_polyps)


def find_class_items(raw: Path, card: Card) -> list[Item]:
    """An object for each class of polyps that an image has."""
    return [
        dataclasses.replace(item, mask=f"{Path(item.mask).stem}_{word}.png", target=f"{word} polyp", keep_empty=False)
        for word in CLASSES
        for item in find_items(raw, card, functools.partial(read_class, word))
    ]


def read_polyps(path: Path) -> Mask:
    """Where the red or the green of a mask file is bright."""
    return np.asarray(to_rgb(open_image(path)))[..., :2].max(-1) > 127


def read_class(word: str, path: Path) -> Mask:
    """Where the colour of a class is bright and the brighter of the two; JPEG mixes them at the edges."""
    colors = np.asarray(to_rgb(open_image(path)))[..., :2]
    return (colors.max(-1) > 127) & (colors.argmax(-1) == CLASSES[word])
