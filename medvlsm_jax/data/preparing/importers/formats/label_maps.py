"""Label maps: a file for each image whose values, or colours, are classes."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Num
from PIL import Image

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.files import read_lines
from medvlsm_jax.data.images import first_channel, picture, to_rgb
from medvlsm_jax.data.preparing.importers.classes import choose_classes, is_background, mask_name
from medvlsm_jax.data.preparing.importers.folders import IMAGES, MASKS
from medvlsm_jax.data.preparing.importers.item import Found, Item, Mask, Options, Source, as_found, image_name
from medvlsm_jax.data.preparing.importers.layout import wrong_folder
from medvlsm_jax.data.preparing.importers.pairs import Part, find_pairs, find_parts
from medvlsm_jax.data.preparing.own_splits import group_in
from medvlsm_jax.errors import UserError

FOLDERS = (*MASKS, "labels", "annotations", "segmentation", "segmentations", "label_maps", "SegmentationClass".lower())
FILES = ("labels.txt", "classes.txt", "labelmap.txt", "class_names.txt")
COLOUR_STEP = 256  # between red, green and blue in the number of a colour


class Regions(NamedTuple):
    """What the values of label maps, or the numbers of their colours, mean.

    Attributes:
        classes: class -> its values; classes may have values in common.
        known: all values that have a meaning, if only that of no object.
        is_coloured: whether they are numbers of colours.
    """

    classes: Mapping[str, tuple[int, ...]]
    known: Collection[int]
    is_coloured: bool = False


def find(raw: Path, card: Card, options: Options) -> Found:
    """The classes of each image, as far as it has them."""
    parts = find_parts(raw, card, IMAGES, FOLDERS)
    names = dict(card.labels) or read_label_file(raw, parts, card)
    classes, card = choose_classes(card, filter(None, names.values()))
    values: dict[str, list[int]] = {word: [] for word in classes.values()}
    for key, name in names.items():
        if name in classes:
            values[classes[name]].append(number_of(key))
    regions = Regions(
        {word: tuple(found) for word, found in values.items()},
        set(map(number_of, names)) | {0},
        is_coloured=any(key.startswith("#") for key in names),
    )
    pairs = find_pairs(parts)
    if not pairs:
        raise wrong_folder(raw, card)
    sources = []
    for pair in pairs:
        name = image_name(pair.image, pair.name)
        place = {"split": pair.split, "group": group_in(card.group, pair.place)}
        read_image = functools.partial(as_found, pair.image)
        sources.append(Source(name, functools.partial(read_objects, pair.mask, regions, name, read_image, **place)))
    return Found(sources, card)


def read_objects(
    path: Path,
    regions: Regions,
    name: str,
    read_image: Callable[[], Path | np.ndarray],
    split: str = "",
    group: str = "",
) -> Iterator[Item]:
    """The objects of an image: one for each class that its label map has."""
    values = read_values(path, is_coloured=regions.is_coloured)
    for word, mask in class_masks(values, regions, path).items():
        yield Item(
            name,
            mask_name(word, name),
            split=split,
            group=group or name,
            target=word,
            read_image=read_image,
            read_mask=functools.partial(np.asarray, mask),
        )


def class_masks(values: Integer[np.ndarray, "h w"], regions: Regions, path: Path) -> dict[str, Mask]:
    """Class -> where a label map has one of its values, of those that it has.

    Raises:
        UserError: the map has a value without a meaning.
    """
    present = find_present(values)
    if unknown := [value for value in present if value not in regions.known]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{path} has the label {unknown[0]}{more}, which has no name: add it to labels in the card, "
            f'{{{unknown[0]} = "CLASS"}}, or {{{unknown[0]} = ""}} where it is no object'
        )
    found = {word: [value for value in wanted if value in present] for word, wanted in regions.classes.items()}
    return {word: np.isin(values, wanted) for word, wanted in found.items() if wanted}


def find_present(values: Integer[np.ndarray, "h w"]) -> list[int]:
    """The values of a label map, each once."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    return np.unique(values).tolist()


def read_values(path: Path, *, is_coloured: bool = False) -> Integer[np.ndarray, "h w"]:
    """The values of a label map as they are, of a palette its indices; or the numbers of its colours.

    Raises:
        UserError: it cannot be read, is lossy, or in colours where values are expected.
    """
    decoded = decode(path)
    if decoded.is_lossy:
        raise UserError(f"{path} is in a lossy format, which changes labels: give the label maps as PNG or TIFF")
    pixels = decoded.pixels
    if is_coloured:
        colours = np.asarray(to_rgb(picture(decoded))).astype(np.int32)
        return (colours[..., 0] * COLOUR_STEP + colours[..., 1]) * COLOUR_STEP + colours[..., 2]
    if isinstance(pixels, Image.Image) and pixels.mode in ("P", "PA"):
        return np.asarray(pixels.getchannel("P") if pixels.mode == "PA" else pixels)
    if isinstance(pixels, Image.Image) and pixels.mode in ("RGB", "RGBA"):
        colours = np.asarray(pixels)[..., :3]
        if (colours != colours[..., :1]).any():
            raise UserError(f'{path} is in colours: name them in the card, labels = {{"#ff0000" = "CLASS"}}')
        return colours[..., 0]
    return whole_numbers(np.asarray(first_channel(decoded)), path)


def whole_numbers(values: Num[np.ndarray, "h w"], path: Path) -> Integer[np.ndarray, "h w"]:
    """Values that are labels, stored as whole numbers or not; raises UserError for others."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if not (whole == values).all():
        raise UserError(f"{path} has values that are no whole numbers, which no label is")
    return whole


# --- Names -----------------------------------------------------------------------------------------------------------


def number_of(key: str) -> int:
    """The number of a label that a card or a file names: a value, or a colour `#ff0000`."""
    return int(key[1:], 16) if key.startswith("#") else int(key)


def read_label_file(raw: Path, parts: Sequence[Part], card: Card) -> dict[str, str]:
    """Value or colour -> class, of a file that lies with the images.

    Raises:
        UserError: there is none, or it names no classes.
    """
    around = [folder for part in parts if part.images for folder in part.images.parents]
    folders = [folder for folder in dict.fromkeys(around) if folder.is_relative_to(raw)]
    path = find_label_file(raw, *folders)
    if path is None:
        raise UserError(
            f"what the values of the label maps in {parts[0].masks} are, is not known: write them in the card "
            f'{card.name}, labels = {{1 = "CLASS"}}, or in {raw / FILES[0]}, a line "1 CLASS" each'
        )
    return parse_labels(read_lines(path), path)


def find_label_file(*folders: Path) -> Path | None:
    """The file that names labels, in the first folder that has one."""
    return next((path for folder in folders for name in FILES if (path := folder / name).is_file()), None)


def parse_labels(lines: list[str], path: Path) -> dict[str, str]:
    """Value or colour -> class.

    Lines are `1 liver`, `1: liver`, `liver:255,0,0::` (of CVAT) or `liver`. The last kind counts from 0 where the first
    line is the background, and else from 1.
    """
    kept = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, str] = {}
    first = 0 if kept and is_background(kept[0]) else 1
    for i, line in enumerate(kept, start=first):
        key, name = parse_label(line, i)
        if key in found:
            raise UserError(f"{path} names the label {key} twice: leave one line of it")
        found[key] = "" if is_background(name) else name
    if not any(found.values()):
        raise UserError(f"{path} names no classes: write a line for each")
    if first and not any(line[0].isdigit() or ":" in line for line in kept):
        print(f"{path} names no background: its first line is label 1")
    return found


def parse_label(line: str, number: int) -> tuple[str, str]:
    """The label and the class of a line, of which `number` is the label where it names none."""
    name, _, rest = line.partition(":")
    numbers = rest.partition(":")[0].split(",")
    if len(numbers) == 3 and all(text.strip().isdecimal() and int(text) < COLOUR_STEP for text in numbers):
        return "#" + bytes(map(int, numbers)).hex(), name.strip()
    key, _, word = line.replace(":", " ", 1).replace(",", " ", 1).replace("\t", " ", 1).partition(" ")
    if key.isdecimal() and word.strip():
        return str(int(key)), word.strip()
    return str(number), line
