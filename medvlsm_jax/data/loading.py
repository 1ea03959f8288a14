"""The records of a split, from its annotation file or from an ArrayRecord store."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from medvlsm_jax.data.annotations import Record, parse_record
from medvlsm_jax.data.cards import Card, find_folder, split_members
from medvlsm_jax.data.files import read_json
from medvlsm_jax.errors import UserError


def load_records(data_dir: str | Path, dataset: str, split: str, *, is_required: bool = True) -> list[Record]:
    """All records of a split, in file order; those of a pool one dataset after another.

    Args:
        data_dir: holds the folders of the datasets, or their ArrayRecord stores.
        dataset: what `cards.named_card` understands: a name, a card file, a pool, several joined by `+`.
        split: train, val or test.
        is_required: otherwise a split without a file or without records is an empty list.

    Raises:
        UserError: the dataset, the split or a field of a record is missing, a path leaves the dataset's folder, or the
            json is broken. That files exist and can be read is checked by `integrity`.
    """
    cards = split_members(dataset, split)
    if is_required and not cards:
        raise UserError(f"the pool {dataset!r} has no dataset for the split {split!r}: name some in its card")
    return [record for card in cards for record in load_split(data_dir, card, split, is_required=is_required)]


def load_split(data_dir: str | Path, card: Card, split: str, *, is_required: bool = True) -> list[Record]:
    """The records of a split of one dataset, as `load_records` has them."""
    if not (Path(data_dir) / card.name / "anns").is_dir():
        from medvlsm_jax.data.arrayrecord import find_store, load_store

        if store := find_store(data_dir, card):
            return load_store(store, card, split, is_required=is_required)
    root = find_folder(data_dir, card)
    path = root / "anns" / f"{split}.json"
    card = split_card(root, card, split)
    entries = read_json(path) if is_required or path.exists() else []
    if not isinstance(entries, list):
        raise UserError(f"{path} holds no list of records: check that the annotations were written whole")
    if is_required and not entries:
        raise UserError(f"{path} has no records: {card.name} has nothing for the split {split!r}")
    return [parse_record(entry, card, root, f"{path}, record {i}") for i, entry in enumerate(entries)]


def read_groups(data_dir: str | Path, cards: Iterable[Card], split: str) -> dict[tuple[str, str], str]:
    """Dataset and group -> the first image's name, of the patients and sequences that a split's annotations name.

    Nothing else of the records is looked at, and no image: it is about what other splits have.
    """
    found: dict[tuple[str, str], str] = {}
    for card in cards:
        path = annotation_file(data_dir, card, split)
        entries = read_json(path) if path.exists() else []
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("group"), str) and entry["group"]:
                found.setdefault((card.name, entry["group"]), str(entry.get("img_name")))
    return found


def annotation_file(data_dir: str | Path, card: Card, split: str) -> Path:
    """Where the annotations of a split are, in the dataset's folder or in its store."""
    if not (Path(data_dir) / card.name / "anns").is_dir():
        from medvlsm_jax.data.arrayrecord import find_store

        if store := find_store(data_dir, card):
            return store / "anns" / f"{split}.json"
    return find_folder(data_dir, card) / "anns" / f"{split}.json"


def split_card(root: Path, card: Card, split: str) -> Card:
    """The card for one split: the original's own CAMUS folder keeps its test patients in a subfolder of their own."""
    is_apart = card.subfolder == "train" and split == "test" and (root / "images" / "test").is_dir()
    return dataclasses.replace(card, subfolder="test") if is_apart else card
