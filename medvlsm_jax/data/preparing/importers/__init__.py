"""Raw downloads: how each dataset's is laid out, and each format; and how to read it."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers import bkai, busi, camus, chexlocalize, clinicdb, dfu, folders, isic
from medvlsm_jax.data.preparing.importers.formats import (
    biomedparse,
    class_masks,
    coco,
    label_maps,
    labelme,
    nnunet,
    sa_med2d,
    yolo,
)
from medvlsm_jax.data.preparing.importers.item import Found, Item, Options, Source, sources_of
from medvlsm_jax.data.preparing.importers.recognition import recognize
from medvlsm_jax.errors import UserError

FindItems = Callable[[Path, Card], list[Item]]
Find = Callable[[Path, Card, Options], Found]

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
FORMATS: dict[str, Find] = {
    "class_masks": class_masks.find,
    "label_maps": label_maps.find,
    "coco": coco.find,
    "labelme": labelme.find,
    "yolo": yolo.find,
    "nnunet": nnunet.find,
    "decathlon": nnunet.find_decathlon,
    "sa_med2d": sa_med2d.find,
    "biomedparse": biomedparse.find,
}


def choose_importer(raw: Path, card: Card, wanted: str = "") -> str:
    """What reads a download: the one that is wanted, or the card's; else it is looked what the download is, and said.

    Raises:
        UserError: there is no such importer, or the download is in no format that is known.
    """
    name = wanted or card.importer
    if not name:
        name, sign = recognize(raw, card)
        print(f"{raw} is read as {name}, by {sign} (--format reads it as another)")
    if name not in IMPORTERS and name not in FORMATS:
        known = ", ".join((*IMPORTERS, *FORMATS))
        raise UserError(f"card {card.name}: unknown importer {name!r}; there are {known}")
    return name


def find_sources(raw: Path, card: Card, importer: str, options: Options) -> Found:
    """What a raw download holds, by name.

    Args:
        raw: the unpacked download, or the folder that holds it.
        card: of the dataset.
        importer: a key of IMPORTERS or FORMATS.
        options: what a user may want of it.

    Raises:
        UserError: the folder is not this download, a file lacks its partner, or two would get the same name.
    """
    if importer in FORMATS and not options.per_class:
        sources, card = FORMATS[importer](raw, card, options)
        sources.sort(key=lambda source: source.name)
    else:
        items = find_items(raw, card, importer=importer, per_class=options.per_class)
        sources = sources_of(items)
    check_sources(sources)
    return Found(sources, card)


def check_sources(sources: Sequence[Source]) -> None:
    """Raises a UserError when the files of two images would get one name."""
    seen: dict[str, str] = {}
    for source in sources:
        if (other := seen.setdefault(str(PurePosixPath(source.name).with_suffix("")), source.name)) != source.name:
            raise UserError(
                f"the download has {other} and {source.name}: rename one of them, for masks are named alike"
            )


def find_items(raw: Path, card: Card, *, importer: str = "", per_class: bool = False) -> list[Item]:
    """The objects of a raw download, by image and mask name.

    Args:
        raw: the unpacked download, or the folder that holds it.
        card: of the dataset.
        importer: a key of IMPORTERS; by default the card's.
        per_class: an object for each class of an image rather than one for all.

    Raises:
        UserError: the folder is not this download, a file lacks its partner, or two would get the same name.
    """
    importers, importer = PER_CLASS if per_class else IMPORTERS, importer or card.importer
    if importer not in importers:
        raise UserError(f"--per_class: the masks of {card.name} have no classes to part; bkai_polyp's do")
    items = sorted(importers[importer](raw, card), key=lambda item: (item.image, item.mask))
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
