"""LabelMe: a json file for each image, with shapes; the image beside it, or within it."""

import base64
import binascii
import dataclasses
import functools
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_json, shown
from medvlsm_jax.data.images import open_image, to_rgb
from medvlsm_jax.data.preparing.importers.classes import choose_classes
from medvlsm_jax.data.preparing.importers.files_below import FilesBelow
from medvlsm_jax.data.preparing.importers.item import Found, Item, Mask, Options, Source, image_size, written_name
from medvlsm_jax.data.preparing.importers.layout import SUFFIXES, wrong_folder
from medvlsm_jax.data.preparing.importers.looking import json_files, json_keys, split_of
from medvlsm_jax.data.preparing.importers.shapes import Point, check_points, draw_polygons, items_of, points_of
from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import map_in_processes

KEYS = ("shapes", "imagePath")
AREAS = ("polygon", "rectangle", "circle", "mask")  # the other types, points and lines, have none

Shape = Mapping[str, Any]
Size = tuple[int, int]  # width, height


class Scanned(NamedTuple):
    """What is to be known of a file before its objects are read.

    Attributes:
        image: the name of its image.
        shapes: how many there are of each label and type.
    """

    image: str
    shapes: Counter[tuple[str, str]]


def find(raw: Path, card: Card, options: Options) -> Found:
    """The objects of each image: one for each class, or with `per_object` for each shape or group of shapes."""
    paths = [path for path in json_files(raw) if set(KEYS) <= json_keys(path)]
    if not paths:
        raise wrong_folder(raw, card)
    scanned = map_in_processes(scan, paths, chunksize=64, desc="reading", unit="file")
    total = sum((one.shapes for one in scanned), Counter[tuple[str, str]]())
    classes, card = choose_classes(card, dict.fromkeys(label for label, kind in total if kind in AREAS))
    if lines := sum(count for (_, kind), count in total.items() if kind not in AREAS):
        print(f"{lines} shapes that are points or lines are left out: they have no area")
    images, sources, splits = FilesBelow(raw, SUFFIXES), list[Source](), {split_of(path, raw) for path in paths}
    for path, (image, shapes) in zip(paths, scanned, strict=True):
        if any(label in classes and kind in AREAS for label, kind in shapes):
            found = images.find(image, (path.parent.name,))
            name = images.name_of(found) if found else f"{path.stem}.png"
            split = split_of(path, raw) if len(splits) > 1 else ""
            read = functools.partial(read_objects, path, found, classes=classes, options=options, split=split)
            sources.append(Source(written_name(name), functools.partial(read, name=written_name(name))))
    return Found(sources, card)


def scan(path: Path) -> Scanned:
    """The labels and types of a file's shapes."""
    content = read_annotation(path)
    return Scanned(content["imagePath"], Counter((shape["label"], shape["shape_type"]) for shape in content["shapes"]))


def read_objects(
    path: Path, image: Path | None, *, name: str, classes: Mapping[str, str], options: Options, split: str
) -> Iterator[Item]:
    """The objects of an image, which lies within the json file where there is no other."""
    content = read_annotation(path)
    source = image or Embedded(path, image_data(content, path))
    size = image_size(source)
    regions: dict[tuple[str, int], list[Shape]] = defaultdict(list)
    numbers: dict[tuple[str, Any], int] = {}
    for i, shape in enumerate(content["shapes"]):
        if (label := shape["label"]) not in classes or shape["shape_type"] not in AREAS:
            continue
        group = shape.get("group_id")
        of_class = sum(found == label for found, _ in numbers)
        number = numbers.setdefault((label, f"shape {i}" if group is None else group), of_class + 1)
        regions[classes[label], number * options.per_object].append(shape | {"where": f"{path}, shape {i}"})

    def read_image() -> Path | np.ndarray:
        return image or np.asarray(to_rgb(open_image(source)))

    yield from items_of(name, split, regions, read_image, functools.partial(draw_shapes, size=size))


# --- Shapes ----------------------------------------------------------------------------------------------------------


def draw_shapes(shapes: Sequence[Shape], size: Size) -> Mask:
    """The union of shapes in an image of (width, height), each drawn by LabelMe's own rule."""
    union = np.zeros(size[::-1], bool)
    for shape in shapes:
        points = points_of(shape["points"], shape["where"])
        check_points(size, points, shape["where"])
        union |= draw_shape(shape, points, size)
    return union


def draw_shape(shape: Shape, points: Sequence[Point], size: Size) -> Mask:
    """One shape; raises UserError when it has not the corners that its type needs."""
    kind, where = shape["shape_type"], shape["where"]
    if kind == "polygon":
        return draw_polygons(size, [points])
    if len(points) != 2:
        raise UserError(f"{where}: a {kind} has 2 points, not {len(points)}")
    (x1, y1), (x2, y2) = points
    if kind == "mask":
        return place_mask(shape.get("mask"), (int(x1), int(y1), int(x2), int(y2)), size, where)
    canvas = Image.new("1", size)
    if kind == "circle":
        radius = math.hypot(x1 - x2, y1 - y2)
        ImageDraw.Draw(canvas).ellipse((x1 - radius, y1 - radius, x1 + radius, y1 + radius), fill=1, outline=1)
    else:
        corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        ImageDraw.Draw(canvas).rectangle(corners, fill=1, outline=1)
    return np.asarray(canvas)


def place_mask(text: Any, box: tuple[int, int, int, int], size: Size, where: str) -> Mask:
    """A picture of a mask, in base64, at its place: left, top, and the last column and row."""
    found = np.asarray(to_rgb(open_image(Embedded(Path(where), unpack(text, where))))).max(-1) > 0
    left, top, right, bottom = box
    whole = np.zeros(size[::-1], bool)
    target = whole[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
    if min(left, top) < 0 or target.shape != found.shape or right >= size[0] or bottom >= size[1]:
        raise UserError(f"{where}: its mask of {found.shape[1]}x{found.shape[0]} pixels does not fit its two points")
    target[:] = found
    return whole


# --- Files -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A picture within a json file, to be decoded as a file is (`files.File`)."""

    path: Path
    data: bytes

    def __str__(self) -> str:
        return f"{self.path} (the picture in it)"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    def open(self, mode: Literal["rb"]) -> io.BytesIO:
        return io.BytesIO(self.data)

    def is_file(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        return self.path.stat()


def image_data(content: Mapping[str, Any], path: Path) -> bytes:
    """The picture in a json file; raises UserError where there is none."""
    if not content.get("imageData"):
        name = shown(content["imagePath"])
        raise UserError(f"{path} is of the image {name}, which is neither in the download nor within it")
    return unpack(content["imageData"], str(path))


def unpack(text: Any, where: str) -> bytes:
    """Bytes in base64; raises UserError for anything else."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"{where}: a picture in it is not in base64 ({error})") from error


def read_annotation(path: Path) -> Mapping[str, Any]:
    """The content of a json file of LabelMe; raises UserError for any other."""
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise UserError(f"{path} is no file of LabelMe: it needs shapes and imagePath")
    for i, shape in enumerate(shapes):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not isinstance(shape.setdefault("shape_type", "polygon") or "polygon", str):
            raise UserError(f"{path}, shape {i}: it needs a label and points")
        shape["shape_type"] = shape["shape_type"] or "polygon"
        if not isinstance(shape.get("group_id"), (int, str, type(None))) or "points" not in shape:
            raise UserError(f"{path}, shape {i}: it needs points, and a group_id that is a number, or none")
    return content
