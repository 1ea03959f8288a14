"""Downloads with a folder of images and a folder of masks: Kvasir, the PraNet collections, ETIS, DFU, a user's own."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.item import Item, Mask, as_found, image_name
from medvlsm_jax.data.preparing.importers.layout import wrong_folder
from medvlsm_jax.data.preparing.importers.masks import read_binary
from medvlsm_jax.data.preparing.importers.pairs import Pair, Part, find_pairs, find_parts
from medvlsm_jax.data.preparing.own_splits import group_in

IMAGES = ("images", "image", "imgs", "original", "etis-laribpolypdb")
MASKS = ("masks", "mask", "ground truth", "groundtruth", "gt")

ReadMask = Callable[[Path], Mask]


def find_items(raw: Path, card: Card, images: Sequence[str] = IMAGES, masks: Sequence[str] = MASKS) -> list[Item]:
    """The objects of a folder of images beside a folder of masks with the same stems, or of such two for each split."""
    items = items_of(find_pairs(find_parts(raw, card, images, masks)), card)
    if not items:
        raise wrong_folder(raw, card)
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
    return items_of(find_pairs([Part(images, masks, split)]), card, read)


def items_of(pairs: Sequence[Pair], card: Card, read: ReadMask | None = None) -> list[Item]:
    """The objects of pairs, in the groups that the card's pattern finds in their paths."""
    read = read or functools.partial(read_binary, rule=card.mask)
    target = card.targets[0] if len(card.targets) == 1 else ""
    return [
        Item(
            name := image_name(pair.image, pair.name),
            f"{pair.mask_name}.png",
            split=pair.split,
            group=group_in(card.group, pair.place) or name,
            target=target,
            read_image=functools.partial(as_found, pair.image),
            read_mask=functools.partial(read, pair.mask),
        )
        for pair in pairs
    ]
