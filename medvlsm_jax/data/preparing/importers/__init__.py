"""Raw downloads: how each dataset's is laid out, and how to read it."""

from collections.abc import Callable
from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers import bkai, busi, camus, chexlocalize, clinicdb, dfu, folders, isic
from medvlsm_jax.data.preparing.importers.item import Item
from medvlsm_jax.errors import UserError

FindItems = Callable[[Path, Card], list[Item]]

IMPORTERS: dict[str, FindItems] = {
    "folders": folders.find_items,
    "bkai": bkai.find_items,
    "busi": busi.find_items,
    "camus": camus.find_items,
    "chexlocalize": chexlocalize.find_items,
    "clinicdb": clinicdb.find_items,
    "dfu": dfu.find_items,
    "isic": isic.find_items,
}
PER_CLASS: dict[str, FindItems] = {"bkai": bkai.find_class_items}


def find_items(raw: Path, card: Card, *, per_class: bool = False) -> list[Item]:
    """The objects of a raw download, by image and mask name.

    Args:
        raw: the unpacked download, or the folder that holds it.
        card: names the importer.
        per_class: an object for each class of an image rather than one for all.

    Raises:
        UserError: the folder is not this download, a file lacks its partner, or two would get the same name.
    """
    importers = PER_CLASS if per_class else IMPORTERS
    if card.importer not in importers:
        if per_class:
            raise UserError(f"--per_class: the masks of {card.name} have no classes to part; bkai_polyp's do")
        raise UserError(f"card {card.name}: unknown importer {card.importer!r}; there are {', '.join(IMPORTERS)}")
    items = sorted(importers[card.importer](raw, card), key=lambda item: (item.image, item.mask))
    check_names(items)
    return items


def check_names(items: list[Item]) -> None:
    """Raises a UserError when two objects share a mask, or two raw images a name."""
    masks: set[str] = set()
    images: dict[str, object] = {}
    for item in items:
        source = (getattr(item.read_image, "args", None), item.group)
        if item.mask in masks or images.setdefault(item.image, source) != source:
            raise UserError(f"the download has {item.image} twice, in different folders: leave one of them out")
        masks.add(item.mask)
