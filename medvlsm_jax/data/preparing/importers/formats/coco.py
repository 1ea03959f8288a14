"""COCO: json files with images, categories and annotations, which are polygons or run lengths."""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_json
from medvlsm_jax.data.images import how_to_agree
from medvlsm_jax.data.preparing.importers.classes import choose_classes
from medvlsm_jax.data.preparing.importers.files_below import FilesBelow
from medvlsm_jax.data.preparing.importers.item import (
    Found,
    Item,
    Mask,
    Options,
    Source,
    as_found,
    image_size,
    written_name,
)
from medvlsm_jax.data.preparing.importers.layout import SUFFIXES, lonely, wrong_folder
from medvlsm_jax.data.preparing.importers.looking import json_files, json_keys, split_of
from medvlsm_jax.data.preparing.importers.shapes import FARTHEST, items_of
from medvlsm_jax.errors import UserError

KEYS = ("images", "annotations", "categories")
CROWD, BOXES = "are of crowds", "have a box alone"  # why annotations are left out

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A region of an image.

    Attributes:
        word: its class.
        segmentation: as the file has it.
        where: names it in errors.
    """

    word: str
    segmentation: Any
    where: str


def find(raw: Path, card: Card, options: Options) -> Found:
    """The objects of each image: one for each class, or with `per_object` for each annotation."""
    paths = find_annotations(raw)
    if not paths:
        raise wrong_folder(raw, card)
    import_pycocotools()
    contents = {path: read_annotations(path) for path in paths}
    names = dict.fromkeys(name for content in contents.values() for name in category_names(content).values())
    classes, card = choose_classes(card, names)
    images, skipped, sources = FilesBelow(raw, SUFFIXES), Counter[str](), list[Source]()
    for path, content in contents.items():
        split = split_of(path, raw) if len(paths) > 1 else ""
        sources += find_images(path, content, classes, images, split, skipped, options)
    for reason, count in skipped.items():
        print(f"{count} annotations that {reason} are left out")
    if not sources:
        raise UserError(f"{paths[0]} has no annotation with a polygon or a mask: boxes alone are no segmentation")
    return Found(sources, card)


def find_images(
    path: Path,
    content: Mapping[str, Any],
    classes: Mapping[str, str],
    images: FilesBelow,
    split: str,
    skipped: Counter[str],
    options: Options,
) -> list[Source]:
    """The images of one json file that have annotations of the classes; adds to what is skipped."""
    by_image = group_annotations(path, content, classes, skipped)
    sources, missing = list[Source](), list[str]()
    for entry in content["images"]:
        if not (annotations := by_image.pop(entry["id"], None)):
            continue
        found = images.find(entry["file_name"], (path.stem.rpartition("_")[2], path.parent.name))
        if found is None:
            missing.append(entry["file_name"])
            continue
        name = written_name(images.name_of(found))
        size = size_of(entry, f"{path}, image {entry['id']}")
        read = functools.partial(
            read_objects, found, name, split, tuple(annotations), size=size, per_object=options.per_object
        )
        sources.append(Source(name, read))
    if missing:
        raise lonely(f"{path} has annotations of images that are not there", missing)
    if by_image:
        raise UserError(f"{path}: annotations are of the image {next(iter(by_image))!r}, which it does not list")
    return sources


def size_of(entry: Mapping[str, Any], where: str) -> Size | None:
    """Width and height of an image, where the json file has them; raises UserError when they are no numbers."""
    if "width" not in entry or "height" not in entry:
        return None
    width, height = entry["width"], entry["height"]
    if type(width) is not int or type(height) is not int:
        raise UserError(f"{where}: its width and height are {width!r:.100} and {height!r:.100}")
    return width, height


def group_annotations(
    path: Path, content: Mapping[str, Any], classes: Mapping[str, str], skipped: Counter[str]
) -> dict[Any, list[Annotation]]:
    """Image -> its annotations of the classes, without crowds and boxes, which are counted."""
    names = category_names(content)
    found: dict[Any, list[Annotation]] = defaultdict(list)
    for i, entry in enumerate(content["annotations"]):
        where = f"{path}, annotation {entry.get('id', i)!r:.50}"
        category = entry["category_id"]
        if category not in names:
            raise UserError(f"{where}: there is no category {category!r}")
        if names[category] not in classes:
            continue
        if entry.get("iscrowd"):
            skipped[CROWD] += 1
        elif not entry.get("segmentation"):
            skipped[BOXES] += 1
        else:
            found[entry["image_id"]].append(Annotation(classes[names[category]], entry["segmentation"], where))
    return found


def read_objects(
    image: Path, name: str, split: str, annotations: Sequence[Annotation], *, size: Size | None, per_object: bool
) -> Iterator[Item]:
    """The objects of an image.

    Raises:
        UserError: the image is of another size than the json file says, or a region is broken.
    """
    actual = image_size(image)
    if size is not None and size != actual:
        raise UserError(
            f"{image} is {actual[0]}x{actual[1]}, but {annotations[0].where} is of {size[0]}x{size[1]}: "
            f"{how_to_agree(actual, size, size == actual[::-1])}"
        )
    regions: dict[tuple[str, int], list[Annotation]] = defaultdict(list)
    count: Counter[str] = Counter()
    for annotation in annotations:
        count[annotation.word] += per_object
        regions[annotation.word, count[annotation.word]].append(annotation)
    read_image = functools.partial(as_found, image)
    yield from items_of(name, split, regions, read_image, functools.partial(draw_regions, size=actual))


# --- Regions ---------------------------------------------------------------------------------------------------------


def import_pycocotools() -> ModuleType:
    """COCO's own library; raises UserError when it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("COCO files need pycocotools: pip install 'medvlsm-jax[formats]'") from error
    return mask


def draw_regions(annotations: Sequence[Annotation], size: Size) -> Mask:
    """The union of some regions, rasterised by COCO's own rule."""
    library = import_pycocotools()
    width, height = size
    runs = [run for annotation in annotations for run in to_runs(annotation, size, library)]
    if not runs:
        return np.zeros((height, width), bool)
    return library.decode(library.merge(runs)).astype(bool)


def to_runs(annotation: Annotation, size: Size, library: ModuleType) -> list[Any]:
    """The run lengths of a region: polygons, or runs in numbers or packed as a text.

    Raises:
        UserError: it is none of these, or does not fit into its image.
    """
    (width, height), shape, where = size, annotation.segmentation, annotation.where
    if isinstance(shape, dict):
        check_runs(shape, size, where)
        counts = shape["counts"]
        packed = shape if isinstance(counts, (str, bytes)) else library.frPyObjects(shape, height, width)
        if isinstance(counts, str):
            packed = {"size": [height, width], "counts": counts.encode("ascii")}
        return [packed]
    if not isinstance(shape, list):
        raise UserError(f"{where}: its segmentation is neither polygons nor run lengths")
    polygons = [check_polygon(polygon, size, where) for polygon in shape]
    kept = [polygon for polygon in polygons if len(polygon) >= 6]  # of less than three corners nothing is inside
    return library.frPyObjects(kept, height, width) if kept else []


def check_polygon(polygon: Any, size: Size, where: str) -> list[float]:
    """A polygon as x, y, x, y, …; raises UserError for another, or one that lies far outside of its image."""
    is_list = isinstance(polygon, list) and len(polygon) % 2 == 0
    if not is_list or not all(type(value) in (int, float) and math.isfinite(value) for value in polygon):
        raise UserError(f"{where}: a polygon is a list of numbers x, y, x, y, …")
    if any(abs(value) > FARTHEST * size[i % 2] for i, value in enumerate(polygon)):
        raise UserError(f"{where}: a polygon lies outside of the {size[0]}x{size[1]} image")
    return [float(value) for value in polygon]


def check_runs(shape: Mapping[str, Any], size: Size, where: str) -> None:
    """Raises a UserError for run lengths that do not fill an image of (width, height).

    The library trusts them: what is too short becomes noise, and of what is too long a union never comes to an end.
    """
    counts = shape.get("counts")
    if shape.get("size") != [size[1], size[0]]:
        raise UserError(f"{where}: its run lengths are of size {shape.get('size')!r:.100}, not {[size[1], size[0]]}")
    if isinstance(counts, str):
        counts = unpack(counts, where)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise UserError(f"{where}: its run lengths are no whole numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise UserError(f"{where}: its run lengths fill {sum(counts)} pixels of {size[0] * size[1]}")


def unpack(text: str, where: str) -> list[int]:
    """The run lengths of COCO's packed text, as maskApi.c has it: five bits a sign, later ones as differences."""
    if not all("0" <= sign <= "o" for sign in text):
        raise UserError(f"{where}: its run lengths have signs that COCO does not write")
    counts, position = list[int](), 0
    while position < len(text):
        value = shift = 0
        while True:
            if position == len(text) or shift > 30:
                raise UserError(f"{where}: its run lengths are cut off")
            bits = ord(text[position]) - 48
            position += 1
            value |= (bits & 0x1F) << shift
            shift += 5
            if not bits & 0x20:
                break
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


# --- Files -----------------------------------------------------------------------------------------------------------


def find_annotations(raw: Path) -> list[Path]:
    """The json files with annotations of regions; those of key points and captions are others."""
    found = [path for path in json_files(raw) if set(KEYS) <= json_keys(path)]
    return [path for path in found if not re.match(r"(person_keypoints|captions|panoptic|image_info)", path.name)]


def read_annotations(path: Path) -> Mapping[str, Any]:
    """The content of a json file of COCO; raises UserError for any other."""
    content = read_json(path)
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
    for key, fields in needed.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} is no COCO file: it has no list {key!r}")
        for i, entry in enumerate(entries):
            check_entry(entry, fields, f"{path}, {key} {i}")
    return content


def check_entry(entry: Any, fields: Sequence[str], where: str) -> None:
    """Raises a UserError when an image, an annotation or a category lacks a field, or has it in another form."""
    for field in fields:
        value = entry.get(field) if isinstance(entry, dict) else None
        kinds = (str,) if field in ("file_name", "name") else (int, str)
        if not isinstance(value, kinds) or value == "":
            raise UserError(f"{where}: {field} is {value!r:.100}")


def category_names(content: Mapping[str, Any]) -> dict[Any, str]:
    """Number -> name of the categories."""
    return {category["id"]: category["name"] for category in content["categories"]}
