"""Files of datasets for tools/fuzz_readers.py: json, csv, yaml and text, and mutations that know what is in them."""

import atexit
import base64
import contextlib
import copy
import io
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzzing import Reader
from PIL import Image
from pycocotools import mask as coco_mask

from medvlsm_jax.data.annotations import parse_record
from medvlsm_jax.data.cards import Card, read_card
from medvlsm_jax.data.files import read_json, read_lines
from medvlsm_jax.data.preparing.importers.classes import choose_classes
from medvlsm_jax.data.preparing.importers.files_below import FilesBelow
from medvlsm_jax.data.preparing.importers.formats import biomedparse, class_masks, coco, labelme, nnunet, sa_med2d, yolo
from medvlsm_jax.data.preparing.importers.formats.label_maps import parse_labels
from medvlsm_jax.data.preparing.importers.item import Item, Options
from medvlsm_jax.data.preparing.own_splits import apply_own_splits, read_own_splits
from medvlsm_jax.data.preparing.records_csv import read_rows
from medvlsm_jax.data.schema import RecordLine

SIZE = (24, 20)  # width, height
CARD = Card("drawn", targets=("liver", "left lung"))
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-images-"))  # the images that the files are about
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 7, 1 << 40, 1 << 70, 0.5, -0.5, 1e308, math.nan, math.inf, -math.inf, "", " ", "0", "1",
    "liver", "/etc/passwd", "../../a.png", "a.png", "C:\\a.png", "\0", "é", "\n", "=" * 5000, [], [[]], [0], [1, 2, 3],
    [math.nan] * 6, [1e9] * 6, {}, {"size": [20, 24], "counts": [480]}, {"size": [20, 24], "counts": "0"}, {"a": 1},
)  # fmt: skip


def draw_mask() -> np.ndarray:
    """A rectangle (h, w)."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[4:12, 6:18] = 1
    return mask


def png(values: np.ndarray) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def draw_folder() -> None:
    """The images and masks that the files name."""
    for name in ("images/a.png", "images/b.png", "imagesTr/c_0000.png", "images/ct_00--d--c--x_1.png"):
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_bytes(png(np.zeros((*SIZE[::-1], 3), np.uint8)))
    for name in ("masks/a.png", "masks/b_liver.png", "labelsTr/c.png", "masks/ct_00--d--c--x_1--0001_000.png"):
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_bytes(png(draw_mask() * np.uint8(255)))


draw_folder()


def look(items: Iterable[Item]) -> None:
    """Reads the masks of objects."""
    for item in items:
        item.read_mask()


# --- Readers ---------------------------------------------------------------------------------------------------------


def read_coco(path: Path) -> None:
    """The regions of a COCO file."""
    content = coco.read_annotations(path)
    classes, _ = choose_classes(Card("drawn"), coco.category_names(content).values())
    images = FilesBelow(FOLDER / "images", [".png"])
    for source in coco.find_images(path, content, classes, images, "", Counter(), Options(per_object=True)):
        look(source.read())


def read_labelme(path: Path) -> None:
    """The shapes of a LabelMe file."""
    image, shapes = labelme.scan(path)
    classes, _ = choose_classes(Card("drawn"), [label for label, _ in shapes])
    found = FilesBelow(FOLDER / "images", [".png"]).find(image)
    look(labelme.read_objects(path, found, name="a.png", classes=classes, options=Options(), split=""))


def read_dataset(path: Path) -> None:
    """What dataset.json says of images that are there."""
    content = nnunet.read_dataset(path)
    choose_classes(Card("drawn"), nnunet.read_labels(content, path))
    windows = nnunet.find_windows(nnunet.read_channels(content, path), (0,), Card("drawn", window="lung"))
    nnunet.find_cases(FOLDER, content, None, nnunet.Shown((0,), windows, are_parts=False))


def read_sa_med2d(path: Path) -> None:
    """The masks of SA-Med2D-20M's images."""
    for image, files in sa_med2d.read_masks(path).items():
        for file in (image, *files):
            sa_med2d.parse_name(file, path)


def read_yolo(path: Path) -> None:
    """The classes and images of a data.yaml."""
    content = yolo.read_data_file(path)
    yolo.class_names(content, path)
    for part in yolo.PARTS:
        if content.get(part):
            yolo.find_images(content[part], content, path, FOLDER)


def read_annotations(path: Path) -> None:
    """The records of an annotation file."""
    entries = read_json(path)
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        parse_record(entry, CARD, FOLDER, f"{path}, record {i}")


# --- Whole files -----------------------------------------------------------------------------------------------------


def draw_coco() -> bytes:
    """Polygons, and run lengths in both forms."""
    runs: Any = coco_mask.encode(np.asfortranarray(draw_mask()))
    packed = {"size": runs["size"], "counts": runs["counts"].decode()}
    shapes = (
        [[2, 2, 12, 2, 12, 9], [14, 14, 20, 14, 20, 18, 14, 18]],
        packed,
        {"size": [20, 24], "counts": [40, 9, 431]},
    )
    annotations = [
        {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "iscrowd": 0, "segmentation": shape}
        for i, shape in enumerate(shapes)
    ]
    images = [{"id": i, "file_name": f"{name}.png", "width": 24, "height": 20} for i, name in enumerate("ab")]
    categories = [{"id": 1, "name": "liver"}, {"id": 2, "name": "left_lung"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def draw_labelme() -> bytes:
    """A shape of each type, and the image within."""
    mask = base64.b64encode(png(draw_mask()[4:12, 6:18] * np.uint8(255))).decode()
    kinds = {
        "polygon": [[1, 1], [9, 2], [5, 12]],
        "rectangle": [[3, 3], [12, 9]],
        "circle": [[9, 9], [12, 9]],
        "mask": [[6, 4], [17, 11]],
        "point": [[3, 3]],
    }
    shapes = [
        {"label": "liver", "points": points, "group_id": None, "shape_type": kind, "flags": {}, "mask": mask}
        for kind, points in kinds.items()
    ]
    data = base64.b64encode(png(np.zeros((20, 24, 3), np.uint8))).decode()
    values = {"shapes": shapes, "imagePath": "lost.png", "imageData": data, "imageHeight": 20, "imageWidth": 24}
    return json.dumps(values).encode()


DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": [1, 2], "tumour": 2},
    "file_ending": ".png",
}
SLICE = "ct_00--d--c--x_1"
SA_MED2D = {f"images/{SLICE}.png": [f"masks/{SLICE}--0001_000.png", f"masks/{SLICE}--0002_000.png"]}
CLASS_IDS = {"d": {"liver": "0001", "left_lung": "0002"}, "e": {"polyp": 0}}
SENTENCES = [{"sent": "liver in abdomen CT", "sent_id": 0}]
BIOMEDPARSE = {"annotations": [{"mask_file": "b_liver.png", "sentences": SENTENCES}]}
DATA_YAML = {"path": "/home/me/data", "train": "../images", "val": ["images"], "names": {0: "liver", 1: "left lung"}}
RECORD = {
    "img_name": "a.png",
    "mask_name": "a.png",
    "group": "p1",
    "spacing": [0.5, 0.5],
    "bbox": [1, 2, 3, 4],
    "attributes": {"class": "liver"},
    "prompts": {"p0": "", "p1": "liver", "p7": ["one", "two"]},
}
TABLE = b"""image,mask,class,split,group,spacing
a.png,masks/a.png,liver,train,p1,0.5x0.5
images/b.png,b_liver.png,lung,,,
"""
LINES = b"""image,mask,split,group,target,spacing,age
a.png,liver/a.png,train,p1,liver,0.5x0.5,old
b.png,b.png,val,p2,liver,,
"""
POLYGONS = b"""0 0.1 0.1 0.5 0.1 0.5 0.5
1 0.2 0.2 0.9 0.2 0.9 0.9 0.2 0.9
"""
LABELS = b"""background
1 liver
left lung:255,0,0::
spleen
"""
CARD_FILE = b"""name = "mine"
targets = ["liver"]
labels = {1 = "liver", "#00ff00" = ""}
mask = "alpha"
group = "patient([0-9]+)_"
[counts]
train = 8
"""


# --- Mutations -------------------------------------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """All places in a tree of tables and lists: a container and a key of it."""
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in keys for place in ((value, key), *places(inner))]


def mutate_tree(tree: Any, rng: np.random.Generator) -> Any:
    """One to three values replaced, taken out or put elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.integers(1, 4)):
        found = places(tree)
        if not found:
            return tree
        (container, key), (other, name) = (found[int(i)] for i in rng.integers(0, len(found), 2))
        match rng.integers(0, 8):
            case 0:
                del container[key]
            case 1:
                container[key] = copy.deepcopy(other[name])
            case 2 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case 3 if isinstance(container, dict):
                container[str(HOSTILE[int(rng.integers(0, len(HOSTILE)))])] = container[key]
            case _:
                container[key] = copy.deepcopy(HOSTILE[int(rng.integers(0, len(HOSTILE)))])
    return tree


def mutate_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Another tree, with a byte order mark at times, and at times bottomless."""
    text = json.dumps(mutate_tree(json.loads(data), rng))
    if rng.random() < 0.02:
        text = text.replace("null", "[" * 100000, 1)
    return (b"\xef\xbb\xbf" if rng.random() < 0.1 else b"") + text.encode()


def mutate_yaml(data: bytes, rng: np.random.Generator) -> bytes:
    """Another tree, in yaml."""
    return yaml.safe_dump(mutate_tree(yaml.safe_load(data), rng)).encode()


def mutate_words(data: bytes, rng: np.random.Generator) -> bytes:
    """Lines taken out, doubled, exchanged, or with other words."""
    lines = data.decode().splitlines()
    for _ in range(rng.integers(1, 4)):
        if not lines:
            break
        at, other = (int(i) for i in rng.integers(0, len(lines), 2))
        word = str(HOSTILE[int(rng.integers(0, len(HOSTILE)))])
        separator = "," if "," in lines[at] else " "
        cells = lines[at].split(separator)
        cells[int(rng.integers(0, len(cells)))] = word
        match rng.integers(0, 8):
            case 0:
                del lines[at]
            case 1:
                lines.append(lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                lines[at] = separator.join(cells)
    return "\n".join(lines).encode() + b"\n"


def opens_as_json(data: bytes) -> bool:
    """Whether it is json."""
    try:
        json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def opens_as_text(data: bytes) -> bool:
    """Whether it is text."""
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


JSON = {
    "coco": (draw_coco(), read_coco),
    "labelme": (draw_labelme(), read_labelme),
    "nnunet": (json.dumps(DATASET).encode(), read_dataset),
    "sa_med2d": (json.dumps(SA_MED2D).encode(), read_sa_med2d),
    "sa_med2d_classes": (json.dumps(CLASS_IDS).encode(), sa_med2d.read_classes),
    "biomedparse": (json.dumps(BIOMEDPARSE).encode(), biomedparse.read_sentences),
    "annotations": (json.dumps([RECORD] * 2).encode(), read_annotations),
}
SPLITS = b"image,split,group\na.png,train,patient 1\nimages/b.png,Validation,\nc,,p2\n"


def read_splits(path: Path) -> None:
    """A csv of splits, applied to the images that it names."""
    rows = [RecordLine(f"{name}.png", f"{name}.png", group=f"{name}.png") for name in "abc"]
    with contextlib.redirect_stdout(io.StringIO()):  # which says what images it leaves out
        apply_own_splits(rows, read_own_splits(path))


TEXTS = {
    "class_masks": (".csv", TABLE, lambda path: class_masks.read_table(path, FOLDER)),
    "records": (".csv", LINES, read_rows),
    "splits": (".csv", SPLITS, read_splits),
    "yolo": (".txt", POLYGONS, lambda path: list(yolo.read_polygons(path, SIZE))),
    "labels": (".txt", LABELS, lambda path: parse_labels(read_lines(path), path)),
    "card": (".toml", CARD_FILE, read_card),
}
DATASETS = (
    *(Reader(name, ".json", whole, read, mutate_json, opens_as_json) for name, (whole, read) in JSON.items()),
    *(Reader(name, end, whole, read, mutate_words, opens_as_text) for name, (end, whole, read) in TEXTS.items()),
    Reader("data_yaml", ".yaml", yaml.safe_dump(DATA_YAML).encode(), read_yolo, mutate_yaml, opens_as_text),
)
