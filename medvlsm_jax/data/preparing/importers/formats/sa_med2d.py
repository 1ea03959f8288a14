"""SA-Med2D-20M: slices of many datasets, a mask file for each object, and two json files that say which are whose."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import leads_out, read_json
from medvlsm_jax.data.preparing.importers.classes import choose_classes, with_modality
from medvlsm_jax.data.preparing.importers.formats.class_masks import Named, read_objects
from medvlsm_jax.data.preparing.importers.item import Found, Options, Source
from medvlsm_jax.data.preparing.importers.layout import folders_of, lonely, wrong_folder
from medvlsm_jax.errors import UserError

MASKS, CLASSES = "SAMed2D_v1.json", "SAMed2D_v1_class_mapping_id.json"
PLACES = (".", "..")  # of the images, from the json files: beside them, or where these were put into a folder
MODALITIES = {
    "ct": "CT",
    "mr": "MRI",
    "pet": "PET",
    "x": "X-ray",
    "ultrasound": "ultrasound",
    "endoscopy": "endoscopy",
    "dermoscopy": "dermoscopy",
    "fundus": "fundus photography",
}


class Name(NamedTuple):
    """What a file is called: MODALITY--DATASET--CASE--SLICE.png, of a mask with --CLASS_INSTANCE behind."""

    modality: str
    dataset: str
    case: str
    slice: str
    object: str = ""


def find(raw: Path, card: Card, options: Options) -> Found:
    """The objects of each image: one for each class of its dataset, or with `per_object` for each mask."""
    folder = next((folder for folder in folders_of(raw, card) if (folder / MASKS).is_file()), None)
    if folder is None:
        raise wrong_folder(raw, card)
    masks, mapping = read_masks(folder / MASKS), read_classes(folder / CLASSES)
    base = next((base for place in PLACES if (base := folder / place) and (base / "images").is_dir()), None)
    if base is None:
        raise wrong_folder(raw, card)
    classes, card = choose_classes(card, dict.fromkeys(name for names in mapping.values() for name in names.values()))
    sources, modalities, missing = list[Source](), set[str](), list[str]()
    for image, files in masks.items():
        name = parse_name(image, folder / MASKS)
        named = [
            Named(base / image, Path(image).name, base / file, classes[label], group=f"{name.dataset} {name.case}")
            for file in files
            if (label := class_of(parse_name(file, folder / MASKS), mapping, folder / CLASSES)) in classes
        ]
        if not named:
            continue
        missing += [file for file in (image, *files) if not (base / file).is_file()]
        modalities.add(MODALITIES.get(name.modality.partition("_")[0], name.modality))
        read = functools.partial(read_objects, tuple(named), card.mask, per_object=options.per_object)
        sources.append(Source(Path(image).name, read))
    if missing:
        raise lonely(f"{folder / MASKS} names files that are not in {base}", missing)
    return Found(sources, with_modality(card, modalities))


def parse_name(file: str, path: Path) -> Name:
    """The parts of a file's name; raises UserError for another, which `path` has."""
    parts = Path(file).stem.split("--")
    if len(parts) not in (4, 5) or leads_out(file):
        raise UserError(f"{path} names {file!r}, which is not MODALITY--DATASET--CASE--SLICE.png: download it anew")
    return Name(*parts)


def class_of(name: Name, mapping: Mapping[str, Mapping[int, str]], path: Path) -> str:
    """The class of a mask; raises UserError when `path` names none of its number."""
    number = name.object.partition("_")[0]
    found = mapping.get(name.dataset, {}).get(int(number) if number.isdecimal() else -1)
    if found is None:
        raise UserError(f"{path} has no class {number or '(none)'} of the dataset {name.dataset}: download it anew")
    return found


def read_masks(path: Path) -> dict[str, list[str]]:
    """Image -> its masks, as paths below the download; raises UserError for any other content."""
    content = read_json(path)
    good = isinstance(content, dict) and all(
        isinstance(files, list) and all(isinstance(file, str) for file in files) for files in content.values()
    )
    if not good:
        raise UserError(f"{path} is no table of images and lists of masks: download it anew")
    return content


def read_classes(path: Path) -> dict[str, dict[int, str]]:
    """Dataset -> number -> class; raises UserError for any other content than dataset -> class -> number."""
    content = read_json(path)
    try:
        return {dataset: {int(number): name for name, number in names.items()} for dataset, names in content.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is no table of datasets, classes and their numbers ({error}): download it anew"
        ) from error
