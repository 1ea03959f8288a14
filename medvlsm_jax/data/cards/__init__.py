"""What is known about each dataset: one small TOML file per card, here or in a folder of the user's.

A card of one dataset describes a folder `<data_dir>/<name>/{images,masks,anns/{train,val,test}.json}`. A pool is a card
that names the datasets of each split instead.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.data.files import leads_out
from medvlsm_jax.errors import UserError

SPLITS = ("train", "val", "test")
JOIN = "+"  # between the names of an ad-hoc pool
MASKS = ("bright", "nonzero", "alpha", "inverted")  # what of a mask file is the object, where a card says so
OBJECT = "object"  # a grammar
# Grammars of grey images, by a word of a card's modality; those of MR are names of its sequences as well.
GREY = {
    "ct": ("ct", "cbct", "tomography"),
    "mr": ("mr", "mri", "magnetic", "t1", "t1w", "t1c", "t1ce", "t2", "t2w", "flair", "dwi", "adc", "pd"),
    "xray": ("xray", "ray", "radiograph", "radiography", "mammography", "dxr", "fluoroscopy"),
    "ultrasound": ("ultrasound", "us", "sonography", "echocardiography", "ultrasonography"),
}
LABEL = re.compile(r"\d+|#[0-9a-f]{6}")  # a value of a label map, or a colour


@dataclasses.dataclass(frozen=True)
class Card:
    """A dataset, or a pool of datasets.

    Attributes:
        name: of its folder.
        title: its full name.
        modality: endoscopy, dermoscopy, …
        targets: classes of its masks; of several, a record's sentence p1 starts with its own.
        labels: of label maps, value or colour (`#ff0000`) -> class; an empty one is no object. Without `targets` they
            are these.
        mask: which part of a mask file is the object: `bright` (above 127 in its brightest channel), `nonzero`, `alpha`
            (opaque) or `inverted` (dark); empty for bright ones that are nothing else by the look of it.
        window: which values of CT are shown, CENTER:WIDTH or the name of a preset.
        grammar: how its sentences are made, a key of `grammars.GRAMMARS`; by default what suits the modality.
        importer: reads its raw download, a key of `importers.IMPORTERS` or `FORMATS`; empty to look what it is.
        layout: what the raw download looks like.
        counts: published records per split; generated splits have the same shares.
        subfolder: between `images` or `masks` and the files.
        group: a regular expression whose one capture, in the path of an image, is its patient.
        descriptions: general descriptions of the target (prompt types p7 to p9), "… which is DESCRIPTION".
        members: of a pool, the datasets of each split.
        licence: terms of use.
        citation: of its paper.
        download: where the raw data are.
        note: what else a user should know.
    """

    name: str
    title: str = ""
    modality: str = "unknown"
    targets: tuple[str, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mask: str = ""
    window: str = ""
    grammar: str = ""
    importer: str = ""
    layout: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    subfolder: str = ""
    group: str = ""
    descriptions: tuple[str, ...] = ()
    members: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    download: str = ""
    note: str = ""

    def __post_init__(self):
        if not self.grammar:
            object.__setattr__(self, "grammar", grammar_for(self.modality))


def grammar_for(modality: str) -> str:
    """The grammar that suits a modality: that of a kind of grey images, else the one of objects in colour."""
    words = set(re.split(r"[^a-z0-9]+", modality.lower()))
    found = [grammar for grammar, names in GREY.items() if words & set(names)]
    return found[0] if len(found) == 1 else OBJECT


def read_card(path: str | Path) -> Card:
    """A card from a TOML file.

    Raises:
        UserError: the file is missing or no TOML, or a field is unknown, missing or of another type.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"card {path} cannot be read ({error.strerror}): pass the path of a TOML file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"card {path} is not valid TOML: {error}") from error
    fields = {field.name: field.default for field in dataclasses.fields(Card)}
    if unknown := sorted(set(values) - set(fields)):
        raise UserError(f"card {path}: unknown field {', '.join(unknown)}; the fields are {', '.join(fields)}")
    name = values.get("name")
    if not isinstance(name, str) or not name or Path(name).name != name or JOIN in name:
        raise UserError(f"card {path}: name must be the name of a folder in data_dir, not {name!r}")
    card = Card(**{field: check_field(path, field, value) for field, value in values.items()})
    if card.subfolder and leads_out(card.subfolder):
        raise UserError(f"card {path}: subfolder must be the name of a folder below images, not {card.subfolder!r}")
    check_group(path, card.group)
    if lost := [name for name in card.labels.values() if name and card.targets and name not in card.targets]:
        raise UserError(f"card {path}: labels has {lost[0]!r}, which is none of its targets: add it there")
    targets = card.targets or tuple(dict.fromkeys(filter(None, card.labels.values())))
    return dataclasses.replace(card, targets=targets)


def check_group(path: Path, group: str) -> None:
    """Raises a UserError for a pattern of groups that is none, or captures nothing or several things."""
    try:
        captures = re.compile(group).groups
    except re.error as error:
        raise UserError(f"card {path}: group = {group!r} is no regular expression: {error}") from error
    if group and captures != 1:
        raise UserError(
            f"card {path}: group = {group!r} has {captures} captures in brackets, but one is needed, as in "
            r"'patient(\d+)_'; (?:…) captures nothing"
        )


def check_field(path: Path, field: str, value: Any) -> Any:
    """A field of a card file in the type of `Card`; raises UserError when it is of another."""

    def is_texts(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(item, str) for item in values)

    if field in ("targets", "descriptions"):
        good, expected = is_texts(value), "a list of strings"
    elif field in ("counts", "members"):
        kind = (lambda item: type(item) is int and item >= 0) if field == "counts" else is_texts
        good = isinstance(value, dict) and set(value) <= set(SPLITS) and all(map(kind, value.values()))
        expected = f"a table of {', '.join(SPLITS)} with {'counts' if field == 'counts' else 'lists of datasets'}"
    elif field == "labels":
        good = isinstance(value, dict) and all(map(LABEL.fullmatch, value)) and is_texts(list(value.values()))
        expected = 'a table of values or colours with classes, {1 = "liver", "#00ff00" = "spleen"}'
    elif field == "mask":
        good, expected = value in MASKS, f"one of {', '.join(MASKS)}"
    else:
        good, expected = isinstance(value, str), "a string"
    if not good:
        raise UserError(f"card {path}: {field} must be {expected}, not {value!r}")
    if field == "members":
        return {split: tuple(names) for split, names in value.items()}
    return tuple(value) if isinstance(value, list) else value


def card_file(data_dir: str | Path, dataset: str) -> Path:
    """Where the card of a dataset lies that was made from what its files say."""
    return Path(data_dir) / f"{dataset}.toml"


def write_card(path: Path, card: Card) -> None:
    """Writes a card's name, modality, targets and importer as TOML."""
    values = {"name": card.name, "modality": card.modality, "targets": list(card.targets), "importer": card.importer}
    # Strings and lists of strings are written alike in json and TOML.
    atomic.write_text(path, "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))


FOLDER = Path(__file__).parent
CARDS: dict[str, Card] = {path.stem: read_card(path) for path in sorted(FOLDER.glob("*.toml"))}


def named_card(dataset: str) -> Card:
    """The card that `config.dataset` or `--dataset` names.

    Args:
        dataset: a name the package knows, the path of a card file (`*.toml`), several of them joined by `+` for a pool,
            or any other name: of a folder in the layout that needs no card.
    """
    if JOIN in dataset:
        names = tuple(filter(None, dataset.split(JOIN)))
        return Card(dataset, title="a pool", modality="several", members=dict.fromkeys(SPLITS, names))
    if dataset.endswith(".toml"):
        return read_card(dataset)
    if leads_out(dataset):  # what is written for a dataset is named after it
        raise UserError(
            f"dataset {dataset!r} leads out of data_dir: give the name of a folder in it, or another data_dir"
        )
    return CARDS.get(dataset, Card(dataset))


def split_members(dataset: str, split: str) -> list[Card]:
    """The cards of the single datasets that a dataset or a pool has in a split.

    Raises:
        UserError: there is no such split, a card file cannot be read, or two different cards share a name.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    card = named_card(dataset)
    if not card.members:
        return [card]
    cards: dict[str, Card] = {}  # a dataset that is named twice, or is in two pools, comes once
    for member in card.members.get(split, ()):
        for found in split_members(member, split):
            if cards.setdefault(found.name, found) != found:
                raise UserError(f"{dataset}: two cards have the name {found.name!r}: rename one of them and its folder")
    return list(cards.values())


def find_folder(data_dir: str | Path, card: Card) -> Path:
    """The folder of a dataset in `data_dir`.

    Raises:
        UserError: there is no such folder with annotations.
    """
    root = Path(data_dir)
    if (root / card.name / "anns").is_dir():
        return root / card.name
    if not root.is_dir():
        raise UserError(
            f"data_dir {root} does not exist: pass --config.data_dir=FOLDER (--data_dir of the tools) that holds the "
            "dataset folders"
        )
    found = sorted(path.parent.name for path in root.glob("*/anns"))
    known = "has no folder with annotations"
    if card.name not in CARDS and card == Card(card.name):
        known = "is not a dataset that the package knows"
    raise UserError(
        f"dataset {card.name!r} {known}: {root / card.name / 'anns'} is missing; {root} holds "
        f"{', '.join(found) or 'none'} (tools/prepare_data.py brings a raw download into the layout)"
    )
