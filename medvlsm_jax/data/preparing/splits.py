"""Training, validation and test parts that share no patient, no sequence and no image."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medvlsm_jax.data.cards import SPLITS
from medvlsm_jax.data.groups import SEQUENCE
from medvlsm_jax.data.schema import RecordLine

SHARES = {"train": 80, "val": 10, "test": 10}  # where a card has no counts


def assign_splits(
    groups: Sequence[str],
    counts: Mapping[str, int],
    seed: int,
    *,
    images: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> dict[str, str]:
    """A split for every group, the same for any order of the records.

    Records are dealt out group by group, in a seeded order, to the split that lacks the largest part of its share.
    Groups of one record thus give the exact counts if these add up to the number of records.

    Args:
        groups: patient, sequence or image of each record.
        counts: wanted shares of the splits; 80, 10 and 10 % if empty.
        seed: of the order.
        images: digest of each record's image; groups that have one in common stay together.
        fixed: split of each record that the download itself fixes, else empty. Such a split takes no other group.
    """
    joined = join_groups(groups, images)
    sizes = Counter(joined[group] for group in groups)
    splits = {joined[group]: split for group, split in zip(groups, fixed, strict=bool(fixed)) if split}
    shares = {s: n for s, n in (counts or SHARES).items() if n > 0 and s not in set(splits.values())} or SHARES
    free = sorted(set(sizes) - set(splits))
    lacking = {split: sum(sizes[key] for key in free) * share / sum(shares.values()) for split, share in shares.items()}
    wanted = dict(lacking)
    for i in np.random.default_rng(seed).permutation(len(free)):
        split = max(lacking, key=lambda name: lacking[name] / wanted[name])
        splits[free[i]] = split
        lacking[split] -= sizes[free[i]]
    return {group: splits[joined[group]] for group in dict.fromkeys(groups)}


def join_groups(groups: Sequence[str], images: Sequence[str]) -> dict[str, str]:
    """Group -> the first, by name, of the groups that it is tied to by identical images."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    first: dict[str, str] = {}
    for group, image in zip(groups, images, strict=bool(images)):
        one, other = sorted((root(group), root(first.setdefault(image, group))))
        parent[other] = one
    return {group: root(group) for group in parent}


@dataclasses.dataclass(frozen=True)
class Leak:
    """What lies in several splits.

    Attributes:
        what: a patient or a sequence, or "one image".
        images: split -> names of its images.
    """

    what: str
    images: Mapping[str, tuple[str, ...]]

    @property
    def is_sequence(self) -> bool:
        """Whether these are different frames of one video."""
        return self.what.startswith(SEQUENCE)

    def __str__(self) -> str:
        """One line for a person."""
        places = " and ".join(f"{split} ({names[0]})" for split, names in self.images.items())
        return f"{self.what} is in {places}"


def find_leaks(rows: Iterable[RecordLine]) -> list[Leak]:
    """Identical images, patients and sequences that lie in more than one split, images first."""
    images: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.split:
            images[row.digest or row.image][row.split].append(row.image)
            groups[row.group][row.split].append(row.image)
    leaks = [leak_of("one image", places) for places in images.values() if len(places) > 1]
    for group, places in groups.items():
        if len(places) > 1 and len({name for names in places.values() for name in names}) > 1:
            leaks.append(leak_of(group, places))
    return leaks


def leak_of(what: str, places: Mapping[str, list[str]]) -> Leak:
    """A leak with the names of each split once, splits in their usual order."""
    return Leak(what, {split: tuple(dict.fromkeys(places[split])) for split in SPLITS if split in places})


def drop_leaks(rows: Sequence[RecordLine], leaks: Iterable[Leak]) -> list[RecordLine]:
    """The rows without the training copies of what validation or test has, and the validation copies of test's."""
    dropped = {
        (split, name) for leak in leaks for split in list(leak.images)[:-1] for name in leak.images[split]
    }  # the last split that a leak names is the one to be measured on
    return [row for row in rows if (row.split, row.image) not in dropped]
