"""What users bring themselves: words of their own in a csv, general descriptions in a json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_csv, read_json
from medvlsm_jax.data.language.grammars import ALIASES, ATTRIBUTES, GENERAL
from medvlsm_jax.data.schema import RecordLine
from medvlsm_jax.errors import UserError

Descriptions = Mapping[str, Sequence[str]] | Sequence[str]  # of each class, or of any
Overrides = Mapping[str, Mapping[str, str]]  # name of a mask or an image -> attribute -> word


def read_overrides(path: Path) -> dict[str, dict[str, str]]:
    """Words from a csv: name of a mask or an image -> attribute -> word.

    The csv has a column mask or image, and a column for each attribute that it gives; an empty cell gives none.

    Raises:
        UserError: the file cannot be read, has no lines or another column, or names a file twice.
    """
    overrides: dict[str, dict[str, str]] = {}
    lines = read_csv(path)
    if not lines:
        raise UserError(f"{path} has no lines of words below its first one")
    for line in lines:
        keys = [column for column in ("mask", "image") if column in line]
        words = {ALIASES.get(column, column): word for column, word in line.items() if column not in keys}
        if len(keys) != 1:
            raise UserError(f"{path} needs a column mask or a column image, and not both")
        if unknown := [name for name in words if name not in ATTRIBUTES or name == GENERAL]:
            known = ", ".join(name for name in ATTRIBUTES if name != GENERAL)
            raise UserError(f"{path}: the column {unknown[0]!r} is no attribute; there are {known}")
        name = line[keys[0]]
        if name in overrides:
            raise UserError(f"{path} has {name} twice: leave one line of it")
        overrides[name] = {attribute: word for attribute, word in words.items() if word}
    return overrides


def check_overrides(overrides: Overrides, rows: Sequence[RecordLine], folder: Path, card: Card) -> None:
    """Raises a UserError when an override is of no mask and no image, or names a class that the card does not know."""
    names = {name for row in rows for name in (row.image, row.mask)}
    if unknown := [name for name in overrides if name not in names]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"--attributes names {unknown[0]}{more}, which is no image or mask of a record in {folder}")
    for name, words in overrides.items():
        if card.targets and (word := words.get("class", card.targets[0])) not in card.targets:
            raise UserError(
                f"--attributes: {name} is of the class {word!r}, which is none of the targets of the card {card.name} "
                f"({', '.join(card.targets)}): add it to them, or write one of them"
            )


def read_descriptions_file(path: Path) -> Descriptions:
    """General descriptions from a json file: a list of sentences, or an object with such a list for each class.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    if not path.is_file():
        raise UserError(f"--descriptions={path} does not exist")
    found = read_json(path)
    lists = list(found.values()) if isinstance(found, dict) else [found]
    for texts in lists:
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f'--descriptions={path} must hold a list of sentences, or {{"CLASS": [sentences, …], …}}')
    return found
