"""Whether splits are apart: images and patients that lie in two of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import SPLITS, split_members
from medvlsm_jax.data.findings import ERROR, WARNING, Finding
from medvlsm_jax.data.groups import SEQUENCE
from medvlsm_jax.data.loading import read_groups

LEAKED = "is in the split {} and in {} as well: drop one of the records, or what is measured is what was seen"
SHARED = "is of {}, who is in the split {} as well ({}): move one of the records, or what is measured is what was seen"

Groups = Mapping[str, Mapping[tuple[str, str], str]]  # split -> dataset and group -> one of its images


def find_leaked(splits: Mapping[str, Sequence[Record]]) -> Iterator[Finding]:
    """Images that are in several splits."""
    first: dict[str, str] = {}
    for split, records in splits.items():
        for i, record in enumerate(records):
            if (other := first.setdefault(str(record.image), split)) != split:
                yield Finding(WARNING, record.dataset, str(record.image), LEAKED.format(split, other), (i,))


def later_splits(split: str) -> tuple[str, ...]:
    """The splits that come after one, on which is measured what was trained on it."""
    return SPLITS[SPLITS.index(split) + 1 :]


def groups_of_later_splits(data_dir: str | Path, dataset: str, split: str) -> Groups:
    """The patients and sequences that `later_splits` of the datasets of a split have; no image is read."""
    cards = split_members(dataset, split)
    return {later: read_groups(data_dir, cards, later) for later in later_splits(split)}


def named_groups(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """Dataset and group -> the first of its images, of records whose annotation file names a group."""
    found: dict[tuple[str, str], str] = {}
    for record in records:
        if record.group:
            found.setdefault((record.dataset, record.group), record.image.name)
    return found


def find_shared_groups(records: Sequence[Record], split: str, others: Groups) -> Iterator[Finding]:
    """Records whose patient a split that comes after theirs has, too: what is trained on is not to be measured on.

    The last split that a patient is in is the one to be measured on, so it is the records before it that are wrong.
    Frames of a sequence, which published splits part, are a warning.
    """
    later = later_splits(split)
    for i, record in enumerate(records):
        key = (record.dataset, record.group)
        for other in later if record.group else ():
            if image := others.get(other, {}).get(key):
                level = WARNING if record.group.startswith(SEQUENCE) else ERROR
                yield Finding(level, record.dataset, str(record.image), SHARED.format(record.group, other, image), (i,))
