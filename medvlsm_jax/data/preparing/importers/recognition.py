"""Which format a download is in, by the look of it."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.preparing.importers.classes import SHOWN
from medvlsm_jax.data.preparing.importers.folders import IMAGES, MASKS
from medvlsm_jax.data.preparing.importers.formats import class_masks, coco, label_maps, labelme, nnunet, sa_med2d, yolo
from medvlsm_jax.data.preparing.importers.layout import (
    find_inside,
    folders_of,
    is_junk,
    list_images,
    sorted_folders,
    wrong_folder,
)
from medvlsm_jax.data.preparing.importers.looking import json_files, json_keys
from medvlsm_jax.data.preparing.importers.pairs import Part, divide_part
from medvlsm_jax.data.preparing.own_splits import split_named
from medvlsm_jax.text import listed

LOOKED_AT = 16  # masks whose values are looked at

Sign = tuple[str, str]  # a format, and by what it is known


def recognize(raw: Path, card: Card) -> Sign:
    """The format of a download, and the sign by which it is known.

    Raises:
        UserError: it is in none that is known.
    """
    folders = folders_of(raw, card)
    finders = (signs_of_files(folders), signs_of_json(raw), signs_of_tables(raw, card), signs_of_masks(folders, card))
    found = next(itertools.chain(*finders), None)
    if found is None:
        raise wrong_folder(raw, card)
    return found


def signs_of_files(folders: list[Path]) -> Iterator[Sign]:
    """Formats that have files or folders of names of their own."""
    for folder in folders:
        if (folder / sa_med2d.MASKS).is_file():
            yield "sa_med2d", f"{folder / sa_med2d.MASKS}"
        if nnunet.is_dataset(folder):
            yield "decathlon" if nnunet.has_parts(folder) else "nnunet", f"{folder / nnunet.DATASET}"
        for part in ("train", "test"):
            if find_inside(folder, [part]) and find_inside(folder, [f"{part}_mask"]):
                yield "biomedparse", f"{folder / part} beside {part}_mask"


def signs_of_json(raw: Path) -> Iterator[Sign]:
    """Formats of json files; one with a yaml file."""
    if path := yolo.find_data_file(raw):
        yield "yolo", f"{path}"
    for path in json_files(raw):
        keys = json_keys(path)
        if set(coco.KEYS) <= keys:
            yield "coco", f"{', '.join(coco.KEYS)} in {path}"
        if set(labelme.KEYS) <= keys:
            yield "labelme", f"{', '.join(labelme.KEYS)} in {path}"


def signs_of_tables(raw: Path, card: Card) -> Iterator[Sign]:
    """A csv of masks and classes."""
    if path := class_masks.find_table(raw, card):
        yield "class_masks", f"columns image, mask and class in {path}"


def signs_of_masks(folders: list[Path], card: Card) -> Iterator[Sign]:
    """Folders of images and of masks: one mask an image, one for each class, or label maps."""
    for folder in folders:
        images, masks = find_inside(folder, IMAGES), find_inside(folder, label_maps.FOLDERS)
        if images is None or masks is None:
            continue
        if card.labels:
            yield "label_maps", f"the card's labels, for {masks}"
        if (path := label_maps.find_label_file(folder, folder.parent)) and (values := label_values(masks)):
            yield "label_maps", f"{path}, and the values {listed(values, SHOWN)} in {masks}"
        if masks.name.lower() in MASKS:
            name, (images, masks, *_) = masks.name, divide_part(Part(images, masks))[0]
            if images is None or masks is None:
                continue
            inner = class_folders(masks, images)
            if inner and not any(is_picture(path) for path in masks.iterdir()):
                yield "class_masks", f"the folders of {masks}"
            elif not inner and class_masks.names_classes(list_images(images), list_images(masks)):
                yield "class_masks", f"the names IMAGE_CLASS of {masks}"
            yield "folders", f"{images} beside {name}"


def class_folders(masks: Path, images: Path) -> list[str]:
    """The names of folders of masks, but for those of splits and those that the images are in as well."""
    theirs, others = ([Path(path).name for path in sorted_folders(folder)] for folder in (masks, images))
    return [name for name in theirs if name not in others and not split_named(name)]


def is_picture(path: Path) -> bool:
    """Whether a file looks like an image."""
    return path.is_file() and not is_junk(path.name)


def label_values(masks: Path) -> list[int]:
    """Values of some label maps, or numbers of colours, in so far as they are no binary masks."""
    found: set[int] = set()
    for path in itertools.islice(list_images(masks).values(), LOOKED_AT):
        pixels = decode(path).pixels
        is_coloured = isinstance(pixels, Image.Image) and pixels.mode in ("RGB", "RGBA")
        found |= set(np.unique(label_maps.read_values(path, is_coloured=is_coloured)).tolist())
    return sorted(found) if len(found) > 2 or found - {0, 255, 0xFFFFFF} else []
