"""Downloads with a folder of images and a folder of masks: Kvasir, the PraNet collections, ETIS, DFU, a user's own."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.item import Item, Mask, as_found, image_name
from medvlsm_jax.data.preparing.importers.layout import find_inside, find_parent, list_images, lonely, wrong_folder
from medvlsm_jax.data.preparing.importers.masks import read_binary

IMAGES = ("images", "image", "imgs", "original", "etis-laribpolypdb")
MASKS = ("masks", "mask", "ground truth", "groundtruth", "gt")
# A mask's stem for an image's; the last is how the first release of ETIS-LaribPolypDB names them (p12.tif for 12.tif).
MASK_STEMS = ("{}", "{}_mask", "{}_segmentation", "p{}")

ReadMask = Callable[[Path], Mask]


def find_items(raw: Path, card: Card, images: Sequence[str] = IMAGES, masks: Sequence[str] = MASKS) -> list[Item]:
    """The objects of a folder of images beside a folder of masks with the same stems."""
    parent = find_parent(raw, card, images, masks)
    items = pair_folders(find_inside(parent, images), find_inside(parent, masks), card)
    if not items:
        raise wrong_folder(parent, card)
    return items


def pair_folders(
    images: Path | None, masks: Path | None, card: Card, *, split: str = "", read: ReadMask | None = None
) -> list[Item]:
    """An object for every image and its mask.

    Args:
        images: folder of the images; None is an empty one, and so below.
        masks: folder of the masks.
        card: names the class, if it has just one.
        split: that the download fixes for them.
        read: reads a mask file; by default by the card's rule.

    Raises:
        UserError: an image lacks its mask or a mask its image.
    """
    read = read or functools.partial(read_binary, rule=card.mask)
    target = card.targets[0] if len(card.targets) == 1 else ""
    return [
        Item(
            name := image_name(pair.image),
            f"{pair.stem if pair.mask.stem == f'p{pair.stem}' else pair.mask.stem}.png",
            split=split,
            group=name,
            target=target,
            read_image=functools.partial(as_found, pair.image),
            read_mask=functools.partial(read, pair.mask),
        )
        for pair in find_pairs(images, masks)
    ]


class Pair(NamedTuple):
    """An image and its mask."""

    stem: str
    image: Path
    mask: Path


def find_pairs(images: Path | None, masks: Path | None) -> list[Pair]:
    """The images of a folder, each with its mask in another; raises UserError when one lacks its partner."""
    found, spare = (list_images(folder) if folder else {} for folder in (images, masks))
    by_lower = {stem.lower(): stem for stem in spare}
    matched = {stem: match_mask(stem, by_lower) for stem in found}
    if missing := [found[stem].name for stem, mask in matched.items() if mask is None]:
        raise lonely(f"{masks} has no mask for images of {images}", missing)
    if extra := sorted(set(spare) - set(matched.values())):
        raise lonely(f"{images} has no image for masks of {masks}", [spare[stem].name for stem in extra])
    return [Pair(stem, found[stem], spare[mask or ""]) for stem, mask in matched.items()]


def match_mask(stem: str, masks: Mapping[str, str]) -> str | None:
    """The stem of the mask of an image, out of lower-case stem -> stem, if there is one."""
    return next((masks[name] for form in MASK_STEMS if (name := form.format(stem).lower()) in masks), None)
