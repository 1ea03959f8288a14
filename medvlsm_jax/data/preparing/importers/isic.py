"""ISIC 2016, part 1: a training and a test set, each a folder of images and a folder of masks."""

from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.folders import pair_folders
from medvlsm_jax.data.preparing.importers.item import Item
from medvlsm_jax.data.preparing.importers.layout import find_inside, folders_of, wrong_folder

IMAGES, MASKS = "isbi2016_isic_part1_{}_data", "isbi2016_isic_part1_{}_groundtruth"


def find_items(raw: Path, card: Card) -> list[Item]:
    """The lesions; the test set stays one, the training set is divided."""
    return find_part(raw, card, "training", "") + find_part(raw, card, "test", "test")


def find_part(raw: Path, card: Card, part: str, split: str) -> list[Item]:
    """The lesions of one of the two sets."""
    folders = folders_of(raw, card)
    images, masks = (first_inside(folders, form.format(part)) for form in (IMAGES, MASKS))
    if images is None or masks is None:
        raise wrong_folder(raw, card)
    return pair_folders(images, masks, card, split=split)


def first_inside(folders: list[Path], name: str) -> Path | None:
    """The folder of a name in the first of `folders` that has one."""
    return next((found for folder in folders if (found := find_inside(folder, [name]))), None)
