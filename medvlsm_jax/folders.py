"""The one door of all folders that flags and fields name."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_collections

from medvlsm_jax.errors import UserError

FIELDS = ("data_dir", "init", "resume", "tokenizer", "data.cache", "features.cache")  # of configs; or words, or ids
BUCKET = re.compile(r"[a-z][a-z0-9+.-]+:/")  # gs://bucket/folder, and what pathlib makes of it


def local_folder(flag: str, path: str | Path) -> Path:
    """A path on this machine, with its ~ expanded.

    Args:
        flag: that names it.
        path: as it was given.

    Raises:
        UserError: it is empty, which would be the current folder, or lies in a bucket.
    """
    if not str(path):
        raise UserError(f"{flag}= is empty: give a folder, or . for the current one")
    if BUCKET.match(str(path)):
        raise UserError(f"{flag}={path} is in a bucket, which is not supported: give a folder of this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{flag}={path}: {error}") from error


def output_folder(flag: str, path: str | Path) -> Path:
    """A `local_folder` that is to be written to; raises a UserError when it is a file, too."""
    folder = local_folder(flag, path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag}={path} is a file: give a folder")
    return folder


def output_file(flag: str, path: str | Path) -> Path:
    """The path of a file that is to be written on this machine; raises a UserError, before any work, if none can be."""
    file = local_folder(flag, path)
    if file.is_dir():
        raise UserError(f"{flag}={path} is a folder: give a file")
    return file


def check_fields(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError when a field of a config names a folder that `local_folder` refuses; some may be empty."""
    for name in FIELDS:
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, ml_collections.ConfigDict) else None
        if value or name == "data_dir":
            local_folder(f"config.{name}", value)


def check_others(flag: str, folder: Path, names: Iterable[str], writer: str) -> None:
    """Raises a UserError when a folder holds what a program is about to replace, and has not written.

    Args:
        flag: that names the folder.
        folder: in which nothing says that the program has written to it.
        names: of the files and folders that it writes; folders count when there is something in them.
        writer: what the program is called.
    """
    for path in (folder / name for name in names):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UserError(
                f"{flag}={folder} holds {path.name}, which no {writer} has written there: choose another folder, or "
                "move it away"
            )
