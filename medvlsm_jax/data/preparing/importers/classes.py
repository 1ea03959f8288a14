"""The classes that the files of a download name, and those of its card."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from medvlsm_jax.data.cards import OBJECT, Card
from medvlsm_jax.data.language.class_names import readable_class
from medvlsm_jax.errors import UserError
from medvlsm_jax.text import listed

SHOWN = 5  # classes in a message
BACKGROUND = ("background", "_background_", "__background__", "bg", "unlabeled", "unlabelled", "__ignore__", "ignore")


def is_background(name: str) -> bool:
    """Whether a class is that of all that is no object."""
    return name.strip().lower() in BACKGROUND


def choose_classes(card: Card, names: Iterable[str]) -> tuple[Mapping[str, str], Card]:
    """The classes that objects get.

    Args:
        card: its targets are the classes that are wanted, in their spelling; without targets all are.
        names: of classes, as the files have them.

    Returns:
        Name in the files -> class, of those that are wanted; and the card, with its targets.

    Raises:
        UserError: no class of the files is wanted, or two would be written to one folder.
    """
    found = {name: readable_class(name) for name in names if not is_background(name)}
    if bad := [name for name, word in found.items() if not word or not word.isprintable()]:
        raise UserError(f"the download has a class with the name {bad[0]!r:.100}: give it one in letters")
    if card.targets:
        targets = {form: target for target in card.targets for form in forms_of(target)}
        wanted = {name: targets[form] for name in found for form in forms_of(name) if form in targets}
        if found and not wanted:
            raise UserError(
                f"card {card.name}: its targets are {listed(card.targets, SHOWN)}, but the classes of the download are "
                f"{listed(found.values(), SHOWN)}: name those that are wanted"
            )
        if others := [word for name, word in found.items() if name not in wanted]:
            print(f"{len(others)} classes that the card's targets do not name are left out: {listed(others, SHOWN)}")
        found = wanted
    check_folders(found.values())
    return found, dataclasses.replace(card, targets=card.targets or tuple(dict.fromkeys(found.values())))


def with_modality(card: Card, modalities: Collection[str]) -> Card:
    """The card with the modality that the files name, where it names none and they one."""
    is_named = card.modality != Card(card.name).modality or len(modalities) != 1
    if is_named:
        return card
    modality = next(iter(modalities))
    return dataclasses.replace(card, modality=modality, grammar="" if card.grammar == OBJECT else card.grammar)


def forms_of(name: str) -> tuple[str, str]:
    """How a class may be written otherwise: in words, sides in front, or in the order that it has; both in small."""
    return readable_class(name).casefold(), " ".join(re.split(r"[_+.\s-]+", name.strip())).casefold()


def check_folders(classes: Iterable[str]) -> None:
    """Raises a UserError when the masks of two classes would lie in one folder."""
    folders: dict[str, str] = {}
    for word in classes:
        if (other := folders.setdefault(class_folder(word), word)) != word:
            raise UserError(f"the classes {other!r} and {word!r} are hardly told apart: rename one of them")


def class_folder(word: str) -> str:
    """The folder of a class's masks: a name that any file system takes."""
    return re.sub(r"[^\w-]+", "_", word.casefold()).strip("_") or "class"


def mask_name(word: str, image: str, number: int = 0) -> str:
    """The mask of an image's object of a class, below the dataset's masks; `number` tells several apart."""
    stem = PurePosixPath(image).with_suffix("").as_posix()
    return f"{class_folder(word)}/{stem}{f'_{number}' if number else ''}.png"
