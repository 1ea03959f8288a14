"""What the package needs of an image file: a path on disk has it, and so has an entry of an ArrayRecord."""

import csv
import functools
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import IO, Any, Literal, Protocol, runtime_checkable

from medvlsm_jax.errors import UserError


@runtime_checkable
class File(Protocol):
    """`pathlib.Path`, or `arrayrecord.StoredFile`; its text is how messages name it."""

    @property
    def name(self) -> str: ...

    @property
    def stem(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The content, as it was found."""
        ...

    def is_file(self) -> bool: ...

    def stat(self) -> os.stat_result:
        """Time and size, which change when the content does."""
        ...


def shown(name: str) -> str:
    """A name that a file gives, as a message has it in its line."""
    return name if name.isprintable() else repr(name)


def leads_out(name: str) -> bool:
    """Whether a name that a file gives may lie outside of the folder in which it is looked for, or written."""
    return name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or "\0" in name


def find_named(folder: Path, name: str) -> Path:
    """The file that a name means: itself, or one whose name is of the same letters.

    What an annotation file has as one letter (é), macOS and some archives have as two characters, e and an accent.
    """
    path = folder / name
    if not name.isascii() and not path.exists():
        for form in ("NFC", "NFD"):
            if (other := folder / unicodedata.normalize(form, name)).exists():
                return other
    return path


def read_json(path: Path) -> Any:
    """The content of a json file, with a byte order mark or without; raises UserError when it is missing or broken."""
    try:
        text = path.read_text("utf-8-sig")
        return json.loads(text, parse_constant=functools.partial(refuse_constant, text))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: the split has no annotation file") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, no json, numbers of a thousand digits, bottomless
        raise UserError(f"{path} is not valid json: {error}") from error


JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')


def refuse_constant(text: str, name: str) -> None:
    """Raises ValueError for NaN or infinity, which Python writes into json though it has none, with the place."""
    places = (match.start() for match in JSON_TOKEN.finditer(text) if match[0] == name)
    place = next(places, 0)
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    raise ValueError(f"{name} is no number: line {line} column {column} (char {place})")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a csv file by column, without spaces around the cells; raises UserError when it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a csv file: {error}") from error
    for i, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise UserError(f"{path}, line {i}: it has not as many cells as the first line")
    return [{column.strip(): cell.strip() for column, cell in line.items()} for line in lines]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; raises UserError when it cannot be read."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from error
