"""nnU-Net's raw data, and the decathlon's: dataset.json, imagesTr, labelsTr; volumes become slices, 2-D images stay.

The newer form of dataset.json has channel_names and file_ending, the older one, which is the decathlon's, modality and
a list of the training files. Of nnU-Net each channel of a case is a file (`_0000`), of the decathlon all are one.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_json
from medvlsm_jax.data.images import open_image, to_rgb
from medvlsm_jax.data.preparing.importers.classes import choose_classes, is_background, mask_name, with_modality
from medvlsm_jax.data.preparing.importers.formats.label_maps import Regions, class_masks, read_objects, whole_numbers
from medvlsm_jax.data.preparing.importers.item import Found, Item, Mask, Options, Source, as_found, image_name
from medvlsm_jax.data.preparing.importers.layout import folders_of, is_junk, lonely, wrong_folder
from medvlsm_jax.data.scans.nifti import read_nifti
from medvlsm_jax.data.scans.scan import View, Window
from medvlsm_jax.data.scans.volumes import READERS, Volume, is_volume, open_volume
from medvlsm_jax.data.scans.windows import parse_window
from medvlsm_jax.errors import UserError

DATASET, FOLDS = "dataset.json", "splits_final.json"
PARTS = {"Tr": "", "Ts": "test"}  # of the folders' names -> split; the training cases are divided
NIFTI = (".nii", ".nii.gz")  # whose files may have several channels
CHANNEL = re.compile(r"(.+)_(\d{4})")  # of an image's stem
CT, CT_WINDOW = "ct", "soft_tissue"  # the name of its channels, in lower case, and what is shown of it


class Case(NamedTuple):
    """A patient's images and labels.

    Attributes:
        name: of the case.
        images: a file for each channel, or one with all.
        labels: the label map, of as many dimensions.
        split: of the case; empty where it is drawn.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path
    split: str


class Shown(NamedTuple):
    """How a case is shown.

    Attributes:
        channels: one, or three that are red, green and blue.
        windows: of each; None stretches between percentiles.
        are_parts: whether one file has all channels.
    """

    channels: tuple[int, ...]
    windows: tuple[Window | None, ...]
    are_parts: bool


def find(raw: Path, card: Card, options: Options, *, are_parts: bool = False) -> Found:
    """The slices of each case with an object for each class, or its 2-D images.

    Args:
        raw: the folder of a dataset, or one that holds it.
        card: its targets choose among the classes, its window is that of the images.
        options: channels, empty slices and the fold.
        are_parts: whether one file has all channels of a case, as in the decathlon.
    """
    folder = find_folder(raw)
    if folder is None:
        raise wrong_folder(raw, card)
    content = read_dataset(folder / DATASET)
    values = read_labels(content, folder / DATASET)
    classes, card = choose_classes(card, values)
    regions = Regions(
        {word: values[name] for name, word in classes.items()},
        {value for several in values.values() for value in several} | {0},
    )
    channels = read_channels(content, folder / DATASET)
    shown = Shown(options.channels, find_windows(channels, options.channels, card), are_parts)
    cases = find_cases(folder, content, options.fold, shown)
    if not cases:
        raise wrong_folder(folder, card)
    sources = [find_source(case, regions, shown, options.empty_slices) for case in cases]
    return Found(sources, with_modality(card, {channels[channel] for channel in options.channels}))


def find_decathlon(raw: Path, card: Card, options: Options) -> Found:
    """The same of the decathlon, whose files have all channels of a case."""
    return find(raw, card, options, are_parts=True)


def find_source(case: Case, regions: Regions, shown: Shown, empty_slices: int | None) -> Source:
    """A case; of a volume the header is read, to count its slices."""
    if not is_volume(case.labels):
        name = image_name(case.images[0], case.name)
        read_image = functools.partial(read_picture, case.images)
        return Source(name, functools.partial(read_objects, case.labels, regions, name, read_image, case.split))
    read = functools.partial(read_slices, case, regions, shown, empty_slices)
    return Source(case.name, read, size=len(open_volume(case.labels, View())))


def read_picture(paths: Sequence[Path]) -> Path | np.ndarray:
    """A 2-D image as it is, or three channels as red, green and blue."""
    if len(paths) == 1:
        return as_found(paths[0])
    return np.asarray(merged([to_rgb(open_image(path)) for path in paths]))


def merged(pictures: Sequence[Image.Image]) -> Image.Image:
    """Grey pictures of one, or of three channels, in one."""
    greys = [picture.convert("L") for picture in pictures]
    return greys[0] if len(greys) == 1 else Image.merge("RGB", greys)


# --- Slices ----------------------------------------------------------------------------------------------------------


def read_slices(case: Case, regions: Regions, shown: Shown, empty_slices: int | None) -> Iterator[Item]:
    """The slices of a case that have an object, and some without, for which every class has an empty mask."""
    labels = open_volume(case.labels, View())
    images = open_channels(case, shown)
    check_alike(labels, images)
    masks_of = functools.partial(slice_masks, labels, regions)
    kept = spread([i for i in range(len(labels)) if not masks_of(i)], empty_slices)
    for i in range(len(labels)):
        masks = masks_of(i)
        if i in kept:
            masks = dict.fromkeys(regions.classes, np.zeros(labels.values(i).shape, bool))
        name = f"{case.name}_{i:04d}.png"
        for word, mask in masks.items():
            yield Item(
                name,
                mask_name(word, name),
                split=case.split,
                group=case.name,
                target=word,
                read_image=functools.partial(read_slice, images, i),
                read_mask=functools.partial(np.asarray, mask),
                read_extent=functools.partial(extent_of, images[0].spacing, *mask.shape) if images[0].spacing else None,
            )


def slice_masks(labels: Volume, regions: Regions, index: int) -> dict[str, Mask]:
    """Class -> where a slice has it, of those that it has."""
    return class_masks(whole_numbers(labels.values(index), labels.path), regions, labels.path)


def open_channels(case: Case, shown: Shown) -> list[Volume]:
    """The channels that are shown, opened; raises UserError for a format whose files have one channel alone."""
    views = [View(window) for window in shown.windows]
    if not shown.are_parts:
        return [open_volume(path, view) for path, view in zip(case.images, views, strict=True)]
    path = case.images[0]
    if not path.name.lower().endswith(NIFTI):
        return [open_volume(path, views[0])]
    return [Volume(path, read_nifti(path, part), view) for part, view in zip(shown.channels, views, strict=True)]


def check_alike(labels: Volume, images: Sequence[Volume]) -> None:
    """Raises a UserError unless labels and images have the same voxels in the same order."""
    for image in images:
        if image.stored.voxels.shape != labels.stored.voxels.shape or image.orientation != labels.orientation:
            raise UserError(
                f"{labels.path} has {'x'.join(map(str, labels.stored.voxels.shape))} voxels, {image.path} "
                f"{'x'.join(map(str, image.stored.voxels.shape))}, or they lie in another order: they must agree"
            )


def spread(indices: Sequence[int], count: int | None) -> set[int]:
    """So many of some slices, evenly spread; all for None."""
    if count is None or count >= len(indices):
        return set(indices)
    return {indices[len(indices) * i // count] for i in range(count)}


def read_slice(images: Sequence[Volume], index: int) -> np.ndarray:
    """A slice of one channel in grey, or of three as red, green and blue."""
    return np.asarray(merged([image.read(index) for image in images]))


def extent_of(spacing: tuple[float, float], height: int, width: int) -> tuple[float, float]:
    """Height and width in mm of a slice of so many pixels."""
    return spacing[0] * height, spacing[1] * width


# --- dataset.json ----------------------------------------------------------------------------------------------------


def find_folder(raw: Path) -> Path | None:
    """The nearest folder with dataset.json and imagesTr."""
    if not raw.is_dir():
        return None
    folders = folders_of(raw, Card(""))
    return next(filter(is_dataset, folders), None)


def is_dataset(folder: Path) -> bool:
    """Whether a folder is laid out so."""
    return (folder / DATASET).is_file() and (folder / "imagesTr").is_dir()


def has_parts(folder: Path) -> bool:
    """Whether the images of a folder are named as the decathlon's are, without a channel behind."""
    images = [path for path in sorted((folder / "imagesTr").iterdir()) if not is_junk(path.name)]
    return bool(images) and not any(CHANNEL.fullmatch(stem_of(path)) for path in images)


def stem_of(path: Path) -> str:
    """The name of a file without its ending, which may be .nii.gz."""
    ending = next((ending for ending in READERS if path.name.lower().endswith(ending)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def read_dataset(path: Path) -> Mapping[str, Any]:
    """The content of dataset.json; raises UserError for what is none."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise UserError(f"{path} is no dataset.json of nnU-Net: it has no table of labels")
    return content


def read_labels(content: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Class -> its values, of either form: {"liver": 1, "tumour": [2, 3]} or {"1": "liver"}.

    Raises:
        UserError: it is of neither form, or has no classes.
    """
    found: dict[str, tuple[int, ...]] = {}
    for key, value in content["labels"].items():
        name, numbers = (value, [key]) if isinstance(value, str) and str(key).isdecimal() else (key, value)
        numbers = numbers if isinstance(numbers, list) else [numbers]
        try:
            found[name] = tuple(int(number) for number in numbers)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: the label {key!r} is {value!r:.100}, which is no number and no class") from error
    if not any(not is_background(name) for name in found):
        raise UserError(f"{path} names no classes")
    return found


def read_channels(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Number -> name of the channels; raises UserError where they are not named."""
    named: Any = content.get("channel_names") or content.get("modality")
    try:
        return {int(number): str(name) for number, name in named.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} names no channels: it needs channel_names, or modality") from error


def find_windows(channels: Mapping[int, str], wanted: Sequence[int], card: Card) -> tuple[Window | None, ...]:
    """What is shown of each channel: the card's window, of CT soft tissue, of others what their values ask for.

    Raises:
        UserError: a channel is not there.
    """
    if missing := [channel for channel in wanted if channel not in channels]:
        named = ", ".join(f"{number} ({name})" for number, name in channels.items())
        raise UserError(f"--channels={','.join(map(str, wanted))}: there is no channel {missing[0]}, but {named}")
    if card.window:
        return (parse_window(card.window),) * len(wanted)
    windows = tuple(parse_window(CT_WINDOW) if channels[i].lower() == CT else None for i in wanted)
    if any(windows):
        print(f'CT is shown in the window {CT_WINDOW}: another is chosen in the card, window = "40:80"')
    return windows


# --- Cases -----------------------------------------------------------------------------------------------------------


def find_cases(folder: Path, content: Mapping[str, Any], fold: int | None, shown: Shown) -> list[Case]:
    """The cases that have labels.

    Raises:
        UserError: one lacks an image, or is in no split of the fold.
    """
    splits = read_fold(folder, fold)
    cases, missing = list[Case](), list[str]()
    for part, split in PARTS.items():
        labels, images = folder / f"labels{part}", files_in(folder / f"images{part}")
        for name, path in sorted(files_in(labels).items()):
            wanted = [name] if shown.are_parts else [f"{name}_{channel:04d}" for channel in shown.channels]
            found = tuple(images[stem] for stem in wanted if stem in images)
            if len(found) < len(wanted):
                missing.append(next(stem for stem in wanted if stem not in images))
            elif split:
                cases.append(Case(name, found, path, split))
            elif splits and name not in splits:
                raise UserError(f"--fold={fold}: the case {name} is neither in train nor in val of {FOLDS}")
            else:
                cases.append(Case(name, found, path, splits.get(name, "")))
    if missing:
        raise lonely(f"{folder} has labels, but no image for", missing)
    return cases


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names without endings; none where there is no folder."""
    if not folder.is_dir():
        return {}
    return {stem_of(path): path for path in sorted(folder.iterdir()) if path.is_file() and not is_junk(path.name)}


def read_fold(folder: Path, fold: int | None) -> dict[str, str]:
    """Case -> split, of a fold of splits_final.json; empty for None.

    Raises:
        UserError: there is no such file or fold.
    """
    if fold is None:
        return {}
    path = folder / FOLDS
    if not path.is_file():
        raise UserError(f"--fold={fold}: {path} is missing: copy it from nnUNet_preprocessed")
    folds = read_json(path)
    try:
        return {name: split for split in ("train", "val") for name in folds[fold][split]}
    except (IndexError, KeyError, TypeError) as error:
        raise UserError(f"--fold={fold}: {path} has no such fold with train and val") from error
