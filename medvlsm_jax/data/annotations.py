"""Annotation files of the original: one json list per split, one record per object."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlsm_jax.data.cards import SPLITS, find_card
from medvlsm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One object to segment: an image, its mask and the sentences that name it."""

    dataset: str
    image: Path
    mask: Path
    prompts: Mapping[str, str | tuple[str, ...]]  # prompt type (p0, p1, …) -> a sentence or several phrasings


def load_records(data_dir: str | Path, dataset: str, split: str, *, is_required: bool = True) -> list[Record]:
    """All records of a split, in file order; empty if the split is not required and has no file or no records.

    Raises:
        UserError: the dataset, the split or a field of a record is missing, a path leaves the dataset's folder, or the
            json is broken. That files exist is checked by `check_files`.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    card = find_card(data_dir, dataset)
    root = Path(data_dir) / dataset
    path = root / "anns" / f"{split}.json"
    entries = read_json(path) if is_required or path.exists() else []
    if not isinstance(entries, list) or (is_required and not entries):
        raise UserError(f"{path} holds no list of records: check that the annotations were written whole")
    folders = (root / "images" / card.subfolder, root / "masks" / card.subfolder)
    return [parse_record(entry, dataset, folders, f"{path}, record {i}") for i, entry in enumerate(entries)]


def read_json(path: Path) -> Any:
    """The content of a json file; raises UserError when it is missing, not UTF-8 or not json."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: the split has no annotation file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid json: {error}") from error


def parse_record(entry: Any, dataset: str, folders: tuple[Path, Path], where: str) -> Record:
    """One json object as a record; `where` names it in errors."""
    try:
        image, mask, prompts = entry["img_name"], entry["mask_name"], entry["prompts"]
        prompts = {key: value if isinstance(value, str) else tuple(value) for key, value in prompts.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: needs img_name, mask_name and prompts ({error})") from error
    for folder, name in zip(folders, (image, mask), strict=True):
        if not isinstance(name, str):
            raise UserError(f"{where}: {name!r} is no file name")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{where}: {name} leads out of {folder}")
    return Record(dataset, folders[0] / image, folders[1] / mask, prompts)


def check_files(records: list[Record]) -> None:
    """Raises a UserError that names the first missing images or masks, before any work starts."""
    missing = [path for record in records for path in (record.image, record.mask) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{missing[0]}{more} is missing, but an annotation file names it: restore it or drop its record"
        )
