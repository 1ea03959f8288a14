"""BUSI: a folder for each kind, several masks for some images, and none to see on the normal ones."""

import functools
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.item import Item, Mask, as_found, image_name, image_size
from medvlsm_jax.data.preparing.importers.layout import find_inside, find_parent, list_images, lonely, wrong_folder
from medvlsm_jax.data.preparing.importers.masks import read_binary
from medvlsm_jax.errors import UserError

KINDS = ("benign", "malignant", "normal")
MASK = re.compile(r"(.+)_mask(_\d+)?")  # of a stem; the first group is the image's stem
NUMBER = re.compile(r"\((\d+)\)")  # "malignant (102)" becomes 102_malignant


def find_items(raw: Path, card: Card) -> list[Item]:
    """The tumours of every image as one object; the mask of a normal image is empty."""
    parent = find_parent(raw, card, *([kind] for kind in KINDS))
    items = [item for kind in KINDS for item in find_kind(find_inside(parent, [kind]) or parent, kind, card)]
    if not items:
        raise wrong_folder(parent, card)
    return items


def find_kind(folder: Path, kind: str, card: Card) -> list[Item]:
    """The objects of one kind's folder."""
    images, masks = split_masks(folder)
    if extra := sorted(set(masks) - set(images)):
        raise lonely(f"{folder} has no image for masks of", extra)
    if missing := [stem for stem in images if stem not in masks and kind != "normal"]:
        raise lonely(f"{folder} has no mask for", missing)
    items = []
    for stem, path in images.items():
        number = NUMBER.search(stem)
        name = f"{number[1]}_{kind}" if number else stem
        merged = functools.partial(merge_masks, path, tuple(masks[stem]))
        written = image_name(path, name)
        found = functools.partial(as_found, path)
        items.append(
            Item(
                written,
                f"{name}.png",
                group=written,
                target=card.targets[0],
                attributes={"tumor_type": kind},
                read_image=found,
                read_mask=merged,
            )
        )
    return items


def split_masks(folder: Path) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """The images of a folder by stem, and the masks by the stem of their image."""
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = defaultdict(list)
    for stem, path in list_images(folder).items():
        if match := MASK.fullmatch(stem):
            masks[match[1]].append(path)
        else:
            images[stem] = path
    return images, masks


def merge_masks(image: Path, masks: tuple[Path, ...]) -> Mask:
    """The union of the masks of an image; raises UserError when one is of another size."""
    width, height = image_size(image)
    union = np.zeros((height, width), bool)
    for path in masks:
        mask = read_binary(path)
        if mask.shape != union.shape:
            raise UserError(f"{path} is {mask.shape[1]}x{mask.shape[0]} but {image} is {width}x{height}: remove one")
        union |= mask
    return union
