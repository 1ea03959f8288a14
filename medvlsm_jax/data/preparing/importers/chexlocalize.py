"""CheXlocalize: polygons of each finding in json, on chest X-rays of CheXpert, whose labels are in csv files."""

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_csv
from medvlsm_jax.data.preparing.importers.item import Item, Mask, as_found, image_size
from medvlsm_jax.data.preparing.importers.layout import is_junk, lonely, wrong_folder
from medvlsm_jax.data.preparing.importers.shapes import draw_polygons
from medvlsm_jax.errors import UserError

# A path of an image (patient1/study1/view1_frontal.jpg), or its name in one piece (patient1_study1_view1_frontal.jpg).
IMAGE = re.compile(r"(patient\d+)[/_](study\d+)[/_](view\d+_(?:frontal|lateral))\.(?:jpg|jpeg|png)$", re.IGNORECASE)
ANNOTATIONS = re.compile(r"gt_annotations_(val|test)\.json")
LABELS = ("val_labels.csv", "test_labels.csv", "valid.csv", "val.csv", "test.csv")
SIZE = "img_size"
NO_LABELS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "Study", "No Finding")  # columns that are no finding

Polygons = tuple[tuple[tuple[float, float], ...], ...]  # corners (x, y) in shares of the image's width and height


def find_items(raw: Path, card: Card) -> list[Item]:
    """An object for every finding that has polygons on an image."""
    images, annotations, labels = find_files(raw)
    if not annotations or not images:
        raise wrong_folder(raw, card)
    found = {key: value for path in annotations for key, value in read_annotations(path).items()}
    if missing := sorted(set(found) - set(images)):
        raise lonely(f"{raw} has polygons but no image for", missing)
    positive = {key: names for path in labels for key, names in read_labels(path).items()}
    return [item for key in sorted(found) for item in image_items(key, images[key], found[key], positive.get(key))]


def find_files(raw: Path) -> tuple[dict[str, Path], list[Path], list[Path]]:
    """Images by their key in the json files, the json files, and the csv files of labels.

    CheXpert's own training images, which have no polygons, are not looked at.
    """
    images: dict[str, Path] = {}
    annotations, labels = [], []
    for folder, inner, names in os.walk(raw):
        inner[:] = sorted(name for name in inner if name.lower() != "train" and not is_junk(name))
        for path in (Path(folder, name) for name in sorted(names) if not is_junk(name)):
            if match := IMAGE.search(path.as_posix()):
                images.setdefault("_".join(match.groups()), path)
            elif ANNOTATIONS.fullmatch(path.name):
                annotations.append(path)
            elif path.name in LABELS:
                labels.append(path)
    return images, annotations, labels


def read_annotations(path: Path) -> dict[str, dict[str, Any]]:
    """Image -> its size (height, width) and the polygons of its findings; raises UserError for any other content."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        for key, value in content.items():
            height, width = value[SIZE]
            value[SIZE] = (float(height), float(width))
            if not IMAGE.search(f"{key}.jpg"):
                raise ValueError(f"{key} is no image of CheXpert")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not as downloaded ({error!r}): download it anew") from error
    return content


def read_labels(path: Path) -> dict[str, list[str]]:
    """Image -> names of its positive labels, in the order of the columns."""
    matches = [(IMAGE.search(row.get("Path", "")), row) for row in read_csv(path)]
    return {"_".join(match.groups()): positive_labels(row) for match, row in matches if match}


def positive_labels(row: Mapping[str, str]) -> list[str]:
    """The columns of a line that are 1 (CheXpert writes 1.0)."""
    return [name for name, value in row.items() if name not in NO_LABELS and value in ("1", "1.0")]


def image_items(key: str, path: Path, values: Mapping[str, Any], labels: list[str] | None) -> list[Item]:
    """The findings of an image; without labels, those with polygons are the positive ones."""
    height, width = values[SIZE]
    findings = [name for name, polygons in values.items() if name != SIZE and polygons]
    attributes = {
        "view": key.rpartition("_")[2].lower(),
        "pathology": ", ".join(findings if labels is None else labels),
    }
    items = []
    for name in findings:
        try:
            shares = tuple(tuple((x / width, y / height) for x, y in polygon) for polygon in values[name])
        except (TypeError, ValueError) as error:
            raise UserError(f"{key}: the polygons of {name} are not lists of x, y ({error})") from error
        mask = f"{key}_{name.lower().replace(' ', '_')}.png"
        items.append(
            Item(
                f"{key}{path.suffix.lower()}",
                mask,
                group=key.partition("_")[0],
                target=name.lower(),
                attributes=attributes,
                read_image=functools.partial(as_found, path),
                read_mask=functools.partial(draw_shares, path, shares),
            )
        )
    return items


def draw_shares(image: Path, polygons: Polygons) -> Mask:
    """The union of polygons at the size that the image has, outlines included, as the dataset's authors draw them."""
    width, height = image_size(image)
    return draw_polygons((width, height), [[(x * width, y * height) for x, y in polygon] for polygon in polygons])
