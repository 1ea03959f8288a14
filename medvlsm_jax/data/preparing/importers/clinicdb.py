"""CVC-ClinicDB: numbered frames of 29 video sequences, as TIFF or, in a mirror, as TIFF and PNG."""

import dataclasses
from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_csv
from medvlsm_jax.data.groups import SEQUENCE, known_sequence
from medvlsm_jax.data.preparing.importers.folders import IMAGES, MASKS, pair_folders
from medvlsm_jax.data.preparing.importers.item import Item
from medvlsm_jax.data.preparing.importers.layout import find_inside, find_parent, folders_of

FRAME, SEQUENCE_ID = "frame_id", "sequence_id"  # columns of the mirror's metadata.csv


def find_items(raw: Path, card: Card) -> list[Item]:
    """The polyps, grouped by the sequence of their frame."""
    folders = folders_of(raw, card)
    png = [folder for folder in folders if folder.name.lower() == "png"]  # preferred to the TIFF beside it
    parent = find_parent(png[0] if png else raw, card, IMAGES, MASKS)
    items = pair_folders(find_inside(parent, IMAGES), find_inside(parent, MASKS), card)
    sequences = read_sequences(folders)
    stems = {item.image: Path(item.image).stem for item in items}
    groups = {image: sequences.get(stem) or known_sequence(stem) for image, stem in stems.items()}
    if unknown := [name for name, group in groups.items() if not group]:
        print(f"{len(unknown)} frames ({unknown[0]}, …) are in no known sequence: each is a group of its own")
    return [dataclasses.replace(item, group=groups[item.image] or item.image) for item in items]


def read_sequences(folders: list[Path]) -> dict[str, str]:
    """Frame -> group out of metadata.csv, empty where there is none with the two columns."""
    path = next((path for folder in folders if (path := folder / "metadata.csv").is_file()), None)
    if path is None:
        return {}
    rows = read_csv(path)
    return {row[FRAME]: f"{SEQUENCE}{row[SEQUENCE_ID]}" for row in rows if row.get(FRAME) and row.get(SEQUENCE_ID)}
