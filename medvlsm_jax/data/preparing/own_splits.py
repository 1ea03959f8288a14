"""The splits and patients that a user has: names of folders, a csv of image, split and group, a pattern of a card."""

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.files import read_csv, shown
from medvlsm_jax.data.preparing.splits import SHARES, assign_splits
from medvlsm_jax.data.schema import RecordLine
from medvlsm_jax.errors import UserError

FILE = "splits.csv"  # in a download
COLUMNS = ("image", "split", "group")
# What people call the splits, as folders and in a csv.
NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "holdout", "hold_out"), "test"),
}


def split_named(name: str) -> str:
    """The split that a word means, in any case; empty where it is none."""
    return NAMES.get(name.strip().casefold().replace("-", "_").replace(" ", "_"), "")


def split_of(folders: PurePath) -> str:
    """The split that the folders of a path name; empty where they name none.

    Raises:
        UserError: they name two.
    """
    found = dict.fromkeys(filter(None, map(split_named, folders.parts)))
    if len(found) > 1:
        raise UserError(f"the folder {folders} names the splits {' and '.join(found)}: rename one of its parts")
    return next(iter(found), "")


def group_in(pattern: str, text: str) -> str:
    """What the capture of a card's pattern finds in a path; empty where it finds nothing, or there is no pattern."""
    match = re.search(pattern, text) if pattern else None
    return (match[1] or "") if match else ""


# --- A csv -----------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """What a csv says of an image; empty where it says nothing."""

    split: str
    group: str


class OwnSplits(NamedTuple):
    """What a csv says of its images.

    Attributes:
        path: of the csv.
        places: the image's name, as the csv has it -> what it says.
        has_splits: whether it has a column of them.
    """

    path: Path
    places: Mapping[str, Place]
    has_splits: bool

    @property
    def digest(self) -> str:
        """Of its content."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def find_own_splits(given: Path | None, raw: Path) -> OwnSplits | None:
    """The csv that a user gives, else splits.csv of the download, if there is one."""
    if given is not None:
        return read_own_splits(given)
    path = raw / FILE
    return read_own_splits(path) if path.is_file() else None


def read_own_splits(path: Path) -> OwnSplits:
    """A csv with a column image, and split or group or both.

    Raises:
        UserError: it cannot be read, has other columns or a word that is no split, or says two things of an image.
    """
    lines = read_csv(path)
    columns = tuple(lines[0]) if lines else ()
    if "image" not in columns or not {"split", "group"} & set(columns) or set(columns) - set(COLUMNS):
        found = f"has the columns {', '.join(map(shown, columns))}" if columns else "has no lines"
        raise UserError(f"{path} {found}: a csv of splits has image, and split or group or both")
    places: dict[str, Place] = {}
    for i, line in enumerate(lines, start=2):
        word = line.get("split", "")
        if word and not split_named(word):
            raise UserError(f"{path}, line {i}: {word!r} is no split: write {', '.join(SPLITS)}, or nothing")
        place = Place(split_named(word), line.get("group", ""))
        if places.setdefault(line["image"], place) != place:
            raise UserError(f"{path}, line {i}: it has {shown(line['image'])} twice, and says two things of it")
    return OwnSplits(path, places, "split" in columns)


def apply_own_splits(rows: Sequence[RecordLine], own: OwnSplits) -> list[RecordLine]:
    """The records with the splits and groups of a csv. Where it has splits, images that it does not name are left out.

    Raises:
        UserError: the csv names an image that is none of theirs, or one that may be several of them.
    """
    images = match_images(own, dict.fromkeys(row.image for row in rows))
    kept = []
    for row in rows:
        split, group = images.get(row.image, Place("", ""))
        if row.image in images or not own.has_splits:
            kept.append(dataclasses.replace(row, split=split or row.split, group=group or row.group))
    if left := len({row.image for row in rows}) - len({row.image for row in kept}):
        print(f"{left} images are not in {own.path}: they are in no split")
    return kept


def match_images(own: OwnSplits, images: Iterable[str]) -> dict[str, Place]:
    """Image of the dataset -> what the csv says of it, who may write folders in front, and leave out the ending."""
    known = set(images)
    by_end: dict[str, list[str]] = defaultdict(list)
    for image in sorted(known):
        path = PurePosixPath(image)
        for end in {path.name, path.stem, path.with_suffix("").as_posix()}:
            by_end[end].append(image)
    found: dict[str, Place] = {}
    for name, place in own.places.items():
        path = PurePosixPath(name.replace("\\", "/"))
        ends = (path.as_posix(), path.parent.joinpath(path.stem).as_posix(), path.name, path.stem)
        matching = [name] if name in known else next((by_end[end] for end in ends if end in by_end), [])
        if len(matching) != 1:
            what = f"may be {matching[0]} or {matching[1]}" if matching else "is none of the dataset"
            raise UserError(f"{own.path}: the image {shown(name)} {what}: write the names below the folder of images")
        if found.setdefault(matching[0], place) != place:
            raise UserError(f"{own.path} says two things of the image {shown(matching[0])}: leave one line of it")
    return found


# --- What is left to be drawn ----------------------------------------------------------------------------------------


def group_by_card(rows: Sequence[RecordLine], card: Card) -> list[RecordLine]:
    """The records with the groups that a card's pattern finds in the names of their images, where none are known.

    Raises:
        UserError: the pattern finds nothing in any of them.
    """
    if not card.group:
        return list(rows)
    grouped = [
        dataclasses.replace(row, group=group_in(card.group, row.image) or row.group)
        if row.group in ("", row.image)
        else row
        for row in rows
    ]
    alone = dict.fromkeys(row.image for row in grouped if row.group in ("", row.image))
    if len(alone) == len({row.image for row in rows}):
        raise UserError(f"card {card.name}: group = {card.group!r} is in the name of no image, as {next(iter(alone))}")
    if alone:
        more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
        print(f"{next(iter(alone))}{more} are of no group of the card's pattern: each is a group of its own")
    return grouped


def complete_splits(rows: Sequence[RecordLine], card: Card, seed: int) -> list[RecordLine]:
    """The records of a user's splits, with what they lack for a training: a validation part of the training images.

    Training images alone are no division: they are dealt out as those without splits are. A test part that is missing
    stays so, for nobody is to be tested on what was given for training.
    """
    counts = Counter(row.split for row in rows)
    if set(counts) == {"train"}:
        print("all images are in a folder of the training: validation and test images are drawn from them")
        return [dataclasses.replace(row, split="") for row in rows]
    if counts[""] or not counts["train"] or counts["val"]:
        return list(rows)
    elsewhere = {key for row in rows if row.split != "train" for key in (row.group, row.digest) if key}
    inner = [row for row in rows if row.split == "train" and not {row.group, row.digest} & elsewhere]
    shares = {split: (card.counts or SHARES).get(split) or SHARES[split] for split in ("train", "val")}
    drawn = assign_splits([row.group for row in inner], shares, seed, images=[row.digest for row in inner])
    moved = {row.image for row in inner if drawn[row.group] == "val"}
    print(f"there are no validation images: {len(moved)} of the training images become them")
    return [dataclasses.replace(row, split="val") if row.image in moved else row for row in rows]
