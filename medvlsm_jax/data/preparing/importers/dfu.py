"""DFUC 2022: the training release; that of the challenge's validation and test sets has no masks."""

from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers import folders
from medvlsm_jax.data.preparing.importers.item import Item

IMAGES = ("dfuc2022_train_images", "images")
MASKS = ("dfuc2022_train_masks", "masks")


def find_items(raw: Path, card: Card) -> list[Item]:
    """The ulcers of every image as one object."""
    return folders.find_items(raw, card, IMAGES, MASKS)
