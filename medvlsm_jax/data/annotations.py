"""Annotation files of the original: one json list per split, one record per object."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import File, find_named, leads_out, shown
from medvlsm_jax.data.schema import from_entry
from medvlsm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One object to segment: an image, its mask and the sentences that name it.

    Attributes:
        card: of its dataset.
        image: the image file.
        mask: the mask file.
        prompts: prompt type (p0, p1, …) -> a sentence or several phrasings.
        target: the class of the object, where the dataset's card names its classes.
        attributes: attribute -> word, where the annotation file has them (`grammars.attributes_of` finds them anyway).
        name: the mask's path below its dataset's masks; other records may have the same mask.
        spacing: mm of a pixel of the image file, down and across, where the annotation file has it.
        group: the patient or the sequence, where the annotation file names it.
        key: tells it from all other records of its dataset in an evaluation; predictions are named after it.
    """

    card: Card
    image: File
    mask: File
    prompts: Mapping[str, str | tuple[str, ...]]
    target: str = ""
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""
    spacing: tuple[float, float] | None = None
    group: str = ""
    key: str = ""

    @property
    def dataset(self) -> str:
        """The name of its dataset."""
        return self.card.name


def parse_record(entry: Any, card: Card, root: Path, where: str) -> Record:
    """One json object as a record of the dataset in `root`; `where` names it in errors."""
    line = from_entry(entry, where)
    folders = (root / "images" / card.subfolder, root / "masks" / card.subfolder)
    for folder, name in zip(folders, (line.image, line.mask), strict=True):
        if leads_out(name) or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{where}: {shown(name)} leads out of {folder}")
    named = line.attributes.get("class", "")
    target = named if named in card.targets else find_target(card, line.prompts)
    image, mask = find_named(folders[0], line.image), find_named(folders[1], line.mask)
    return Record(card, image, mask, line.prompts, target, line.attributes, line.mask, line.spacing, line.group)


def find_target(card: Card, prompts: Mapping[str, str | tuple[str, ...]]) -> str:
    """The class of a record: the dataset's only one, or the one that its sentence p1 starts with; else empty."""
    if len(card.targets) == 1:
        return card.targets[0]
    phrasings = prompts.get("p1") or ""
    sentence = phrasings if isinstance(phrasings, str) else phrasings[0]
    return next((target for target in card.targets if sentence.lower().startswith(target)), "")


def select_target(records: list[Record], target: str, *, is_required: bool = True) -> list[Record]:
    """The records of one class, or all for an empty `target`; raises UserError when none of them is of that class."""
    selected = [record for record in records if target in ("", record.target)]
    if is_required and not selected:
        named = ", ".join(targets_of(records)) or "none"
        raise UserError(f"config.target={target!r}: no record is of that class; there are {named}")
    return selected


def targets_of(records: Sequence[Record]) -> tuple[str, ...]:
    """The classes that records are about; where they name several, all those of their datasets.

    A class that the training split lacks may still be asked for in another split.
    """
    named = dict.fromkeys(record.target for record in records if record.target)
    if len(named) > 1:
        targets = dict.fromkeys(record.card.targets for record in records)
        named = dict.fromkeys(target for several in targets for target in several) | named
    return tuple(named)


def check_classes(records: list[Record], classes: tuple[str, ...]) -> None:
    """Raises a UserError when a record's class is none of a network's outputs; no `classes` mean one for all."""
    for record in records if classes else ():
        if record.target not in classes:
            raise UserError(
                f"{record.dataset}: {record.image.name} asks for {record.target or 'no class'!r}, but the network has "
                f"outputs for {', '.join(classes)} alone"
            )


def check_files(records: list[Record]) -> None:
    """Raises a UserError that names the first missing images or masks, before any work starts."""
    missing = [path for record in records for path in (record.image, record.mask) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{missing[0]}{more} is missing, but an annotation file names it: restore it or drop its record"
        )
