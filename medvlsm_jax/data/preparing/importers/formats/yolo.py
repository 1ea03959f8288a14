"""YOLO for segmentation: data.yaml, images in `images/`, and a text file of polygons for each in `labels/`."""

import functools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_lines
from medvlsm_jax.data.preparing.importers.classes import choose_classes
from medvlsm_jax.data.preparing.importers.item import (
    Found,
    Item,
    Options,
    Source,
    as_found,
    image_size,
    written_name,
)
from medvlsm_jax.data.preparing.importers.layout import SUFFIXES, is_junk, walk, wrong_folder
from medvlsm_jax.data.preparing.importers.shapes import Point, check_points, draw_polygons, items_of
from medvlsm_jax.errors import UserError

PARTS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # of data.yaml -> split
IMAGES, LABELS = "images", "labels"
DIGITS = 3  # of a pixel: shares have so few that 2.0 comes out as 1.999999


def find(raw: Path, card: Card, options: Options) -> Found:
    """The objects of each image: one for each class, or with `per_object` for each polygon."""
    path = find_data_file(raw)
    if path is None:
        raise wrong_folder(raw, card)
    content = read_data_file(path)
    names = class_names(content, path)
    chosen, card = choose_classes(card, names.values())
    classes = {number: chosen.get(name, "") for number, name in names.items()}
    parts = {part: find_images(content[part], content, path, raw) for part in PARTS if content.get(part)}
    if not any(parts.values()):
        raise UserError(f"{path} names no images that are there: train, val or test is a folder, or a list of files")
    places = [image for images in parts.values() for image in images]
    stems = defaultdict[str, int](int)
    for image in places:
        stems[image.name] += 1
    sources = []
    for part, images in parts.items():
        for image in images:
            name = image.name if stems[image.name] == 1 else f"{PARTS[part]}/{image.name}"
            name, split = written_name(name), PARTS[part] if len(parts) > 1 else ""
            read = functools.partial(read_objects, image, name, split, classes, per_object=options.per_object)
            sources.append(Source(name, read))
    return Found(sources, card)


def read_objects(image: Path, name: str, split: str, classes: Mapping[int, str], *, per_object: bool) -> Iterator[Item]:
    """The objects of an image; none without a text file."""
    path = labels_of(image)
    regions: dict[tuple[str, int], list[list[Point]]] = defaultdict(list)
    if path.is_file():
        size = image_size(image)
        for number, polygon in read_polygons(path, size):
            if number not in classes:
                raise UserError(f"{path} has the class {number}, but data.yaml names {len(classes)} classes")
            if word := classes[number]:
                count = sum(found == word for found, _ in regions) + 1
                regions[word, count * per_object].append(polygon)
        read_image = functools.partial(as_found, image)
        yield from items_of(name, split, regions, read_image, functools.partial(draw_polygons, size))


def read_polygons(path: Path, size: tuple[int, int]) -> Iterator[tuple[int, list[Point]]]:
    """The class and the corners, in pixels of an image of (width, height), of each line `CLASS X Y X Y …` of shares.

    Raises:
        UserError: a line is of another form, or a box.
    """
    for i, line in enumerate(read_lines(path), start=1):
        if not (cells := line.split()):
            continue
        where = f"{path}, line {i}"
        try:
            number, values = int(cells[0]), list(map(float, cells[1:]))
        except ValueError as error:
            raise UserError(f"{where}: a line is a class and numbers ({error})") from error
        if len(values) == 4:
            raise UserError(f"{where} is a box: these are labels to detect objects, not to segment them")
        if len(values) < 6 or len(values) % 2:
            raise UserError(f"{where}: a polygon has at least three corners X Y, not {len(values)} numbers")
        pixels = [round(share * size[i % 2], DIGITS) for i, share in enumerate(values)]
        points = list(zip(pixels[::2], pixels[1::2], strict=True))
        check_points(size, points, where)
        yield number, points


# --- data.yaml -------------------------------------------------------------------------------------------------------


def find_data_file(raw: Path) -> Path | None:
    """The yaml file that names classes and images, the nearest."""
    for folder in walk(raw):
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            if not is_junk(path.name) and "names" in path.read_text("utf-8-sig", errors="replace"):
                return path
    return None


def read_data_file(path: Path) -> Mapping[str, Any]:
    """The content of data.yaml; raises UserError when it is broken."""
    try:
        content = yaml.safe_load("\n".join(read_lines(path)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no fields names, train, val")
    return content


def class_names(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Number -> class; raises UserError when data.yaml has neither a list nor a table of them."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    good = isinstance(names, dict) and all(type(key) is int and isinstance(name, str) for key, name in names.items())
    if not good or not names:
        raise UserError(f"{path}: names must be a list of classes, or a table of numbers and classes")
    return names


def find_images(value: Any, content: Mapping[str, Any], path: Path, raw: Path) -> list[Path]:
    """The images of a part: those of a folder, of a text file that lists them, or of several of these.

    Raises:
        UserError: there is no such folder or file in the download.
    """
    if isinstance(value, list):
        return [image for part in value for image in find_images(part, content, path, raw)]
    place = find_place(str(value), str(content.get("path") or ""), path.parent, raw)
    if place is None:
        raise UserError(f"{path} names images in {value!r}, which is not in {raw}: complete the download")
    if place.is_dir():
        found = sorted(found for found in place.rglob("*") if found.suffix.lower() in SUFFIXES)
        return [found for found in found if not any(map(is_junk, found.relative_to(place).parts))]
    listed = [find_place(line.strip(), "", place.parent, raw) for line in read_lines(place) if line.strip()]
    if None in listed:
        raise UserError(f"{place} lists images that are not in {raw}: complete the download")
    return [image for image in listed if image is not None]


def find_place(name: str, root: str, folder: Path, raw: Path) -> Path | None:
    """What data.yaml means by a path, which is looked for below its own folder and below the download.

    Of a path that leads out of it, as `../train/images` of Roboflow does and those of other machines, the last parts
    are looked for.
    """
    parts = [
        part for part in Path(root.replace("\\", "/"), name.replace("\\", "/")).parts if part not in ("/", "..", ".")
    ]
    for start in range(len(parts)):
        for base in (folder, raw):
            found = base.joinpath(*parts[start:])
            if os.path.exists(found) and found.resolve().is_relative_to(raw.resolve()):  # False for names that are none
                return found
    return None


def labels_of(image: Path) -> Path:
    """The text file of an image: in `labels/` where the image is in `images/`, or else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == IMAGES:
            return Path(*parts[:i], LABELS, *parts[i + 1 :])
    return Path(*parts)
