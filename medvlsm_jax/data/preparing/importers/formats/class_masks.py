"""A mask file for each class of an image: `IMAGE_CLASS.png`, `CLASS/IMAGE.png`, or named by a csv."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.files import read_csv
from medvlsm_jax.data.language.class_names import readable_class
from medvlsm_jax.data.preparing.importers.classes import choose_classes, mask_name
from medvlsm_jax.data.preparing.importers.files_below import FilesBelow
from medvlsm_jax.data.preparing.importers.folders import IMAGES, MASKS
from medvlsm_jax.data.preparing.importers.item import (
    Found,
    Item,
    Mask,
    Options,
    Source,
    as_found,
    image_name,
    image_size,
    written_name,
)
from medvlsm_jax.data.preparing.importers.layout import (
    SUFFIXES,
    folders_of,
    list_images,
    lonely,
    sorted_folders,
    wrong_folder,
)
from medvlsm_jax.data.preparing.importers.masks import read_binary
from medvlsm_jax.data.preparing.importers.pairs import MASK_STEMS, Part, find_parts
from medvlsm_jax.data.preparing.own_splits import group_in
from medvlsm_jax.data.schema import read_spacing
from medvlsm_jax.errors import UserError

SEPARATORS = "_- ."  # between an image's stem and a class
CLASS_COLUMNS = ("class", "target", "label")


class Named(NamedTuple):
    """A mask and what its name, or a csv, says of it."""

    image: Path
    name: str
    mask: Path
    label: str
    split: str = ""
    group: str = ""
    spacing: str = ""
    given: tuple[str, ...] = ()


def find(raw: Path, card: Card, options: Options) -> Found:
    """The objects of each image: one for each class."""
    table = find_table(raw, card)
    named = read_table(table, raw) if table else find_named(raw, card)
    if not named:
        raise wrong_folder(raw, card)
    classes, card = choose_classes(card, dict.fromkeys(one.label for one in named))
    images: dict[str, list[Named]] = defaultdict(list)
    for one in named:
        if one.label in classes:
            images[one.name].append(one._replace(label=classes[one.label]))
    read = functools.partial(read_objects, rule=card.mask, per_object=options.per_object)
    return Found([Source(name, functools.partial(read, tuple(several))) for name, several in images.items()], card)


def read_objects(named: Sequence[Named], rule: str = "", *, per_object: bool = False) -> Iterator[Item]:
    """The objects of an image; several masks of a class are one object, or with `per_object` each is one."""
    regions: dict[tuple[str, int], list[Named]] = defaultdict(list)
    for one in named:
        count = sum(word == one.label for word, _ in regions) + 1
        regions[one.label, count * per_object].append(one)
    for (word, number), several in regions.items():
        first, given = several[0], dict.fromkeys(text for one in several for text in one.given)
        yield Item(
            first.name,
            mask_name(word, first.name, number),
            split=first.split,
            group=first.group or first.name,
            target=word,
            given=tuple(given),
            read_image=functools.partial(as_found, first.image),
            read_mask=functools.partial(merge, [one.mask for one in several], rule),
            keep_empty=False,
            read_extent=functools.partial(extent_of, first.image, first.spacing) if first.spacing else None,
        )


def extent_of(image: Path, spacing: str) -> tuple[float, float]:
    """Height and width of an image in mm, of whose pixels a cell gives the size."""
    (down, across), (width, height) = read_spacing(spacing) or (0.0, 0.0), image_size(image)
    return down * height, across * width


def merge(masks: Sequence[Path], rule: str) -> Mask:
    """The union of masks; raises UserError when two are of different sizes."""
    union = read_binary(masks[0], rule)
    for path in masks[1:]:
        other = read_binary(path, rule)
        if other.shape != union.shape:
            raise UserError(f"{path} and {masks[0]} are masks of one image, but of different sizes: remove one")
        union = np.logical_or(union, other)
    return union


# --- By name ---------------------------------------------------------------------------------------------------------


def find_named(raw: Path, card: Card) -> list[Named]:
    """The masks of a folder, or of one of each split, each with the image and the class that its name tells.

    Raises:
        UserError: a mask is of no image, or its name tells no class.
    """
    found = [(part, *one) for part in find_parts(raw, card, IMAGES, MASKS) for one in name_masks(part)]
    stems = Counter(image.stem.casefold() for image in {image for _, image, _, _ in found})
    named = []
    for part, image, mask, label in found:
        place = PurePosixPath(part.label, image.name)
        name = image.stem if stems[image.stem.casefold()] == 1 else place.with_suffix("").as_posix()
        group = group_in(card.group, str(place))
        named.append(Named(image, image_name(image, name), mask, label, part.split, group))
    return named


def name_masks(part: Part) -> Iterator[tuple[Path, Path, str]]:
    """Image, mask and class of each mask of a part."""
    found, masks = list_images(part.images or Path()), part.masks or Path()
    by_lower = {stem.lower(): stem for stem in found}
    folders = [Path(folder) for folder in sorted_folders(masks)]
    if folders:
        pairs = {path: (stem, folder.name) for folder in folders for stem, path in list_images(folder).items()}
    else:
        pairs = {path: parse_stem(stem, by_lower) for stem, path in list_images(masks).items()}
    looked_for = "(looked for IMAGE_CLASS and CLASS/IMAGE)"
    if extra := [path.name for path, (stem, _) in pairs.items() if stem.lower() not in by_lower]:
        raise lonely(f"{part.images} has no image for masks of {masks} {looked_for}", extra)
    if extra := [path.name for path, (_, label) in pairs.items() if not label]:
        raise lonely(f"{masks} has masks whose names tell no class {looked_for}", extra)
    for path, (stem, label) in pairs.items():
        yield found[by_lower[stem.lower()]], path, label


def parse_stem(stem: str, images: Mapping[str, str]) -> tuple[str, str]:
    """The image and the class of a mask's stem; the image with the longest name that it begins with, else itself."""
    for stop in range(len(stem), 0, -1):
        if stem[:stop].lower() in images and (stop == len(stem) or stem[stop] in SEPARATORS):
            return stem[:stop], stem[stop + 1 :].strip(SEPARATORS)
    return stem, ""


def names_classes(images: Mapping[str, Path], masks: Mapping[str, Path]) -> bool:
    """Whether the masks of some images have classes in their names, which are more than `IMAGE_mask`."""
    by_lower = {stem.lower(): stem for stem in images}
    plain = {form.format("").strip("_") for form in MASK_STEMS}
    parsed = [parse_stem(stem, by_lower) for stem in masks]
    return bool(parsed) and all(
        stem.lower() in by_lower and readable_class(label) not in plain for stem, label in parsed
    )


# --- By a csv --------------------------------------------------------------------------------------------------------


def find_table(raw: Path, card: Card) -> Path | None:
    """The csv with columns image, mask and class, the nearest."""
    for folder in folders_of(raw, card):
        for path in sorted(folder.glob("*.csv")):
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                columns = {column.strip().strip('"').lower() for column in file.readline().split(",")}
            if {"image", "mask"} <= columns and columns & set(CLASS_COLUMNS):
                return path
    return None


def read_table(path: Path, raw: Path) -> list[Named]:
    """The masks of a csv with columns image, mask, class, and where there are split, group and spacing.

    Raises:
        UserError: a file is not there, or a cell is empty or of another form.
    """
    files, named = FilesBelow(raw, SUFFIXES), []
    for i, line in enumerate(read_csv(path), start=2):
        cells, where = {column.lower(): cell for column, cell in line.items()}, f"{path}, line {i}"
        label = next((cells[column] for column in CLASS_COLUMNS if cells.get(column)), "")
        image, mask = (find_file(cells.get(kind, ""), kind, files, where) for kind in ("image", "mask"))
        if not label:
            raise UserError(f"{where}: the class is missing")
        if (split := cells.get("split", "")) not in ("", *SPLITS):
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        spacing = cells.get("spacing", "")
        try:
            read_spacing(spacing)
        except (ValueError, UserError) as error:
            raise UserError(f"{where}: spacing {spacing!r} is not of the form 0.31x0.15, mm down and across") from error
        name = written_name(files.name_of(image))
        named.append(Named(image, name, mask, label, split, cells.get("group", ""), spacing))
    return named


def find_file(name: str, kind: str, files: FilesBelow, where: str) -> Path:
    """The file that a cell names; raises UserError when it is not in the download."""
    found = files.find(name, IMAGES if kind == "image" else MASKS)
    if found is None:
        raise UserError(f"{where}: the {kind} {name!r} is not in {files.folder}: complete the download")
    return found
