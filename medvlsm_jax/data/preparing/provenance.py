"""SOURCE.json: from what, and how, a folder was prepared; by it a folder is known again, and continued."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.item import Options
from medvlsm_jax.errors import UserError
from medvlsm_jax.lease import FILE as LEASE

SOURCE = "SOURCE.json"
NOTE = "Prepared by medvlsm_jax.data.importers from a raw download."  # in folders of any age: it stays as it is
CARD_FIELDS = ("mask", "labels", "window")  # by which files are read
ALWAYS = ("per_class", "max_side")  # stand in it even as they are by default

Values = Mapping[str, Any]


def as_json(values: Values) -> dict[str, Any]:
    """Values as they are read back from json."""
    return json.loads(json.dumps(values))


def card_fields(card: Card) -> dict[str, Any]:
    """What a card says of how files are read."""
    return as_json({name: getattr(card, name) for name in CARD_FIELDS})


DEFAULTS: dict[str, Any] = as_json(dataclasses.asdict(Options())) | card_fields(Card("")) | {"group": "", "splits": ""}


def check_apart(raw: Path, folder: Path) -> None:
    """Raises a UserError when the dataset's folder would lie in the download or be it."""
    raw, folder = raw.resolve(), folder.resolve()
    if folder.is_relative_to(raw):
        raise UserError(f"--data_dir would put {folder} into the download {raw}: choose a folder outside of it")


def files_made(card: Card, importer: str, options: Options, max_side: int) -> dict[str, Any]:
    """What decides which files are written, and how."""
    known = {"note": NOTE, "dataset": card.name, "importer": importer}
    return known | as_json(dataclasses.asdict(options)) | card_fields(card) | {"max_side": max_side}


def claim(folder: Path, files: Values, dividing: Values) -> dict[str, int]:
    """Marks a new folder as ours; of a complete one, returns the records of its splits.

    What an unfinished run wrote by another reading of the masks, before the card was mended, is removed.

    Raises:
        UserError: the folder is of other origin or was prepared with other options.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): choose another --data_dir") from error
    if all(path.name == LEASE for path in folder.iterdir()):
        write_source(folder, files)
    found = DEFAULTS | read_source(folder)
    if found.get("note") != NOTE:
        raise UserError(f"{folder} was not made by this program: move it away or choose another --data_dir")
    if "records" not in found and any(found[name] != files[name] for name in CARD_FIELDS):
        print(f"what an unfinished run wrote to {folder} by another card is written anew")
        for name in ("images", "masks"):
            shutil.rmtree(folder / name, ignore_errors=True)
        found |= {name: files[name] for name in CARD_FIELDS}
        write_source(folder, found)
    wanted = {**files, **dividing} if "records" in found else files
    if other := [f"{key}={found.get(key)}" for key, value in wanted.items() if found.get(key) != value]:
        raise UserError(
            f"{folder} was prepared with {', '.join(other)}: give the same options, or remove it or choose another "
            "--data_dir"
        )
    return found.get("records", {})


def read_source(folder: Path) -> dict[str, Any]:
    """What SOURCE.json says; empty where there is none."""
    try:
        found = json.loads((folder / SOURCE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_source(folder: Path, values: Values) -> None:
    """Writes SOURCE.json, of options those that are not as by default."""
    kept = {key: value for key, value in values.items() if key in ALWAYS or value != DEFAULTS.get(key, "not one")}
    atomic.write_text(folder / SOURCE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
