"""Masks and classes of a whole dataset that are hardly what was meant."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.facts import Facts, Key
from medvlsm_jax.data.findings import ERROR, WARNING, Finding

MOST = 0.5  # of an image: an object that has more of every image is rather its background
FEW = 3  # images that say nothing of all

ALL_EMPTY = "all {} masks are empty: there is nothing to learn from them; is the object 255, above 127 in grey?"
ALL_FULL = "all {} masks are full, object everywhere: there is nothing to learn from them"
ALL_LARGE = (
    'the object covers more than half of every image: are the masks inverted? (mask = "inverted" in the card, which '
    "tools/prepare_data.py reads)"
)
CLASS_EMPTY = "all {} masks of the class {!r} are empty"
UNKNOWN = "{} of {} records are of the class {!r}, which is none of the card's targets ({}): add it to them"


def find_meaningless(records: Sequence[Record], facts: Mapping[Key, Facts]) -> Iterator[Finding]:
    """Datasets whose masks are all empty or all full, an error; or too large, or empty for a class, a warning."""
    for dataset, indices in by_dataset(records).items():
        shares = {i: fact.share for i in indices if not (fact := facts[str(records[i].mask), True]).error}
        found = suspect_shares(list(shares.values())) if len(shares) >= FEW else None
        if found:
            level, text = found
            yield Finding(level, dataset, "", text, tuple(indices))
        if found is None or found[1] == ALL_LARGE:
            yield from find_empty_classes(records, shares, dataset)


def suspect_shares(shares: Sequence[float]) -> tuple[str, str] | None:
    """Level and text of what the shares of all masks of a dataset tell; None where they tell nothing."""
    if max(shares) == 0:
        return ERROR, ALL_EMPTY.format(len(shares))
    if min(shares) == 1:
        return ERROR, ALL_FULL.format(len(shares))
    if min(share for share in shares if share) > MOST and sum(map(bool, shares)) >= FEW:
        return WARNING, ALL_LARGE
    return None


def find_empty_classes(records: Sequence[Record], shares: Mapping[int, float], dataset: str) -> Iterator[Finding]:
    """Classes of a dataset that no mask has an object of."""
    classes: dict[str, list[int]] = defaultdict(list)
    for i in shares:
        classes[records[i].target].append(i)
    for word, indices in classes.items() if len(classes) > 1 else ():
        if len(indices) >= FEW and not any(shares[i] for i in indices):
            yield Finding(WARNING, dataset, "", CLASS_EMPTY.format(len(indices), word), tuple(indices))


def find_unknown_classes(records: Sequence[Record]) -> Iterator[Finding]:
    """Classes that annotation files name, but not the card of their dataset."""
    for dataset, indices in by_dataset(records).items():
        targets = records[indices[0]].card.targets
        named = {i: records[i].attributes.get("class", "") for i in indices}
        unknown = Counter(word for word in named.values() if word and targets and word not in targets)
        for word, count in unknown.items():
            text = UNKNOWN.format(count, len(indices), word, ", ".join(targets))
            yield Finding(WARNING, dataset, "", text, tuple(i for i in indices if named[i] == word))


def by_dataset(records: Sequence[Record]) -> dict[str, list[int]]:
    """Dataset -> the indices of its records."""
    indices: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        indices.setdefault(record.dataset, []).append(i)
    return indices
