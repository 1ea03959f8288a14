"""The records of a dataset's folder before they have prompts: files, splits, classes and what no mask can tell."""

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.data.annotations import parse_record
from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.files import read_csv, read_json
from medvlsm_jax.data.integrity import is_colondb_copy
from medvlsm_jax.data.language.attributes import MEASURED
from medvlsm_jax.data.language.grammars import attributes_of
from medvlsm_jax.data.preparing.importers.pairs import Part, find_pairs
from medvlsm_jax.data.preparing.own_splits import complete_splits, group_in
from medvlsm_jax.data.preparing.splits import assign_splits
from medvlsm_jax.data.schema import COLUMNS, RecordLine, from_entry, read_cells
from medvlsm_jax.errors import UserError

BACKUP = "anns.published"  # what was in anns/ before this program first wrote there
SEED = 42  # of the splits of a folder that has none


def find_rows(folder: Path, card: Card, annotated: Sequence[RecordLine]) -> list[RecordLine]:
    """The records of a dataset with what no mask can tell: of its records.csv, else of its annotations, else paired."""
    if (folder / "records.csv").is_file():
        return read_rows(folder / "records.csv")
    if not annotated:
        return pair_files(folder, card)
    return [dataclasses.replace(row, attributes=unmeasured(row)) for row in annotated]


def unmeasured(row: RecordLine) -> dict[str, str]:
    """The words of an annotated record that no mask can tell; its class is the card's, which may have changed."""
    words = {name: word for name, word in row.attributes.items() if name not in MEASURED}
    return words | ({"class": row.target} if row.target else {})


def read_rows(path: Path) -> list[RecordLine]:
    """The lines of records.csv that are in a split."""
    lines = read_csv(path)
    if lines and (missing := [column for column in COLUMNS if column not in lines[0]]):
        raise UserError(f"{path} has no column {missing[0]!r}: tools/prepare_data.py writes it")
    rows = [read_cells(line, f"{path}, line {i}") for i, line in enumerate(lines, start=2)]
    return [row for row in rows if row.split in SPLITS]


def read_annotated(folder: Path, card: Card) -> list[RecordLine]:
    """The records of a folder's annotations with all their words: those that it came with, else those made here.

    Those published for CVC-300 do not count, for they are about the images of ColonDB.
    """
    anns, backup = folder / "anns", folder / BACKUP
    rows = []
    for split in SPLITS:
        path = (backup if backup.is_dir() and is_ours(anns) else anns) / f"{split}.json"
        entries = read_entries(path)
        if card.name == "cvc300_polyp" and is_colondb_copy(entries):
            continue
        for i, entry in enumerate(entries):
            where = f"{path}, record {i}"
            record = parse_record(entry, card, folder, where)
            line, words = from_entry(entry, where), attributes_of(record)
            rows.append(dataclasses.replace(line, split=split, target=record.target, attributes=words, entry=entry))
    return rows


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The records of an annotation file; none where there is no file."""
    entries = read_json(path) if path.exists() else []
    if not isinstance(entries, list):
        raise UserError(f"{path} holds no list of records: check that the annotations were written whole")
    return entries


def pair_files(folder: Path, card: Card) -> list[RecordLine]:
    """A record for each image and the mask of its name, in the splits of their folders.

    Without such folders they are drawn by the groups that the card's pattern finds, else by image, copies together.
    """
    images, masks = (folder / kind / card.subfolder for kind in ("images", "masks"))
    pairs = find_pairs([Part(images, masks)])
    if not pairs:
        raise UserError(f"{images} holds no images: check --data_dir and --dataset")
    target = card.targets[0] if len(card.targets) == 1 else ""
    rows = [
        RecordLine(
            name := pair.image.relative_to(images).as_posix(),
            pair.mask.relative_to(masks).as_posix(),
            pair.split,
            group_in(card.group, name) or pair.name,
            target,
            attributes={"class": target} if target else {},
            digest=hashlib.sha256(pair.image.read_bytes()).hexdigest(),
        )
        for pair in sorted(pairs)
    ]
    rows = complete_splits(rows, card, SEED)
    fixed = [row.split for row in rows]
    splits = assign_splits(
        [row.group for row in rows], card.counts, SEED, images=[row.digest for row in rows], fixed=fixed
    )
    return [
        dataclasses.replace(row, split=row.split or splits[row.group], group=group_in(card.group, row.image), digest="")
        for row in rows
    ]


def is_ours(anns: Path) -> bool:
    """Whether this program wrote the annotations in a folder, or nobody."""
    return all(has_words(entry) for split in SPLITS for entry in read_entries(anns / f"{split}.json"))


def has_words(entry: Any) -> bool:
    """Whether a record of an annotation file has its attributes, as only this program writes them."""
    return isinstance(entry, dict) and "attributes" in entry


def back_up(folder: Path) -> None:
    """Moves annotations of other origin out of the way.

    Raises:
        UserError: their place is taken by others.
    """
    if is_ours(folder / "anns"):
        return
    if (folder / BACKUP).exists():
        raise UserError(
            f"{folder / 'anns'} is not of this program, and {folder / BACKUP} is there already: move one of them away"
        )
    with atomic.replacing(folder / BACKUP) as temporary:
        shutil.copytree(folder / "anns", temporary)
    print(f"the annotations found in {folder / 'anns'} are kept in {folder / BACKUP}")
