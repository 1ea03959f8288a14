"""The original's annotation files, brought to the files of a prepared dataset."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.files import read_json
from medvlsm_jax.data.preparing.importers import camus
from medvlsm_jax.data.schema import RecordLine, from_entry, to_entry
from medvlsm_jax.errors import UserError

Entry = Mapping[str, Any]
Index = Mapping[tuple[str, str], RecordLine]  # by the image's stem and the mask's name without suffix


def match_published(annotations: Path, card: Card, rows: Sequence[RecordLine]) -> list[RecordLine]:
    """The rows that published records are about, with split and record, in the order of the files.

    Args:
        annotations: holds `<dataset>/{train,val,test}.json`, or these files.
        card: of the dataset.
        rows: what was found in the download.

    Raises:
        UserError: there are no annotation files, one is broken, or a record has no file.
    """
    files = find_published(annotations, card)
    index = {key_of(row.image, row.mask): row for row in rows}
    matched = [row for split, path in files.items() for row in match_split(path, split, card, index)]
    left = len(set(index) - {key_of(row.image, row.mask) for row in matched})
    if left:
        absent = [f"{split}.json" for split in SPLITS if split not in files]
        reason = f" ({' and '.join(absent)} not in {annotations})" if absent else ""
        print(f"{left} of {len(rows)} masks have no published record{reason}: they are in no split")
    return matched


def match_split(path: Path, split: str, card: Card, index: Index) -> list[RecordLine]:
    """The rows of one annotation file."""
    find: Callable[[Entry, str, Index], RecordLine | None] = (
        camus.find_published if card.importer == "camus" else find_row
    )
    entries = read_entries(path)
    found = [find(entry, split, index) for entry in entries]
    if missing := [entry["mask_name"] for entry, row in zip(entries, found, strict=True) if row is None]:
        raise UserError(
            f"{path}: {len(missing)} of {len(entries)} records have no file in the download, the first {missing[0]}: "
            "complete the download, or leave out --annotations for splits and prompts of its own"
        )
    pairs = [(row, entry) for row, entry in zip(found, entries, strict=True) if row is not None]
    return [with_entry(row, split, entry, f"{path}, a record of {entry['img_name']}") for row, entry in pairs]


def with_entry(row: RecordLine, split: str, entry: Entry, where: str) -> RecordLine:
    """A row with its published record, and the patient that this names.

    The size of its pixels is taken over, too, where the download does not tell it.
    """
    known = from_entry(entry, where)
    group, spacing = known.group or row.group, row.spacing or known.spacing
    return dataclasses.replace(row, split=split, entry=entry, group=group, spacing=spacing)


def find_row(entry: Entry, split: str, index: Index) -> RecordLine | None:
    """The row that has the names of a record, suffixes apart; `split` plays no part."""
    return index.get(key_of(entry["img_name"], entry["mask_name"]))


def key_of(image: str, mask: str) -> tuple[str, str]:
    """What a published record and our files have in common; suffixes may differ."""
    return Path(image).stem, str(Path(mask).with_suffix(""))


def find_published(annotations: Path, card: Card) -> dict[str, Path]:
    """Split -> annotation file, of those that are there."""
    places = [annotations / card.name / "anns", annotations / card.name, annotations / "anns", annotations]
    for place in places:
        files = {split: path for split in SPLITS if (path := place / f"{split}.json").is_file()}
        if files:
            return files
    raise UserError(
        f"--annotations={annotations} has neither {card.name}/train.json, val.json, test.json nor these files"
    )


def read_entries(path: Path) -> list[Entry]:
    """The records of an annotation file, each with its names and prompts."""
    entries = read_json(path)
    needed = ("img_name", "mask_name", "prompts")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and set(needed) <= set(e) for e in entries):
        raise UserError(f"{path} is no list of records with {', '.join(needed)}")
    return entries


def write_published(folder: Path, rows: Sequence[RecordLine]) -> None:
    """Writes anns/{train,val,test}.json of the records, whole but for the names, which become those of our files.

    What the download knows of patients and pixels is added.
    """
    (folder / "anns").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        found = [row for row in rows if row.split == split]
        ours = [to_entry(dataclasses.replace(row, attributes={}, box=None)) for row in found]
        entries = [{**row.entry, **known} for row, known in zip(found, ours, strict=True) if row.entry is not None]
        if entries:
            atomic.write_text(folder / "anns" / f"{split}.json", json.dumps(entries, indent=1) + "\n")
