"""Images of one split that look like images of another: shrunk, compressed, brighter, mirrored or upside down."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.facts import Facts, Key
from medvlsm_jax.data.findings import WARNING, Finding
from medvlsm_jax.data.images import open_image
from medvlsm_jax.data.signatures import find_signature, from_text

# Of the cosine between signatures. On 214 images of five real datasets, one against another, images of different scenes
# reach 0.90, neighbouring frames of a video 0.987; copies at JPEG quality 40, a third of the size or with noise 0.998.
ALIKE = 0.98
# The same for finer waves of a larger thumbnail: 0.78 for different scenes, 0.95 for frames, 0.97 for copies.
FINE = {"side": 64, "waves": 24, "coarsest": 8}
FINE_ALIKE = 0.96
TEXT = "looks like {}{} of the split {}: drop one of them, or what is measured is what was seen"

BLOCK = (256, 4096)  # images that are compared in one go
TURNS = {
    "": None,
    " mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    " upside down": Image.Transpose.ROTATE_180,
    " upside down and mirrored": Image.Transpose.FLIP_TOP_BOTTOM,
}

Parts = Sequence[Float[np.ndarray, "_ _"]]  # of signatures, the waves of each kind: even or odd, down and across


class NearCopy(NamedTuple):
    """Two images that look alike, of different splits.

    Attributes:
        first: of the earlier split.
        second: of the later one.
        splits: their splits.
        indices: of the records with the first image.
        how: empty, or how the second has to be turned to look like the first.
    """

    first: Record
    second: Record
    splits: tuple[str, str]
    indices: tuple[int, ...]
    how: str

    @property
    def finding(self) -> Finding:
        """What is said of them."""
        text = TEXT.format(self.second.image, self.how, self.splits[1])
        return Finding(WARNING, self.first.dataset, str(self.first.image), text, self.indices)


def find_near_copies(splits: Mapping[str, Sequence[Record]], facts: Mapping[Key, Facts]) -> list[NearCopy]:
    """The pairs of images of two splits that look alike; what is one file in both is not among them.

    All are compared with all, by products of matrices: that finds each pair, in less than a minute on a core for 80,000
    training images and 10,000 in each of the others.
    """
    known = {split: images_of(records, facts) for split, records in splits.items()}
    signatures = {split: parts_of([facts[name, False].signature for name in found]) for split, found in known.items()}
    copies = []
    for one, other in itertools.combinations(splits, 2):
        names = [list(known[split]) for split in (one, other)]
        for i, j in tqdm(find_alike(signatures[one], signatures[other]), desc="comparing", disable=None, delay=1):
            indices, others = known[one][names[0][i]], known[other][names[1][j]]
            first, second = splits[one][indices[0]], splits[other][others[0]]
            if names[0][i] != names[1][j] and (how := is_same(first, second)) is not None:
                copies.append(NearCopy(first, second, (one, other), tuple(indices), how))
    return copies


def images_of(records: Sequence[Record], facts: Mapping[Key, Facts]) -> dict[str, list[int]]:
    """Image -> the indices of its records, of images that show something."""
    found: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if facts[str(record.image), False].signature:
            found.setdefault(str(record.image), []).append(i)
    return found


def parts_of(texts: Sequence[str]) -> Parts:
    """Signatures, the waves of each kind apart."""
    if not texts:
        return [np.zeros((0, 1), np.float32)] * 4
    stacked = np.stack([from_text(text) for text in texts])
    return [stacked[:, down::2, across::2].reshape(len(texts), -1) for down in (0, 1) for across in (0, 1)]


def find_alike(ones: Parts, others: Parts) -> Iterator[tuple[int, int]]:
    """The places of signatures that are alike, one of them turned in whichever way suits best."""
    for i in range(0, len(ones[0]), BLOCK[0]):
        for j in range(0, len(others[0]), BLOCK[1]):
            a, b, c, d = (p[i : i + BLOCK[0]] @ q[j : j + BLOCK[1]].T for p, q in zip(ones, others, strict=True))
            # Mirroring turns the sign of waves with an odd number across, b and d; upside down of c and d.
            best = np.maximum(a + c + np.abs(b + d), a - c + np.abs(b - d))
            for row, column in np.argwhere(best >= ALIKE):
                yield i + int(row), j + int(column)


def is_same(first: Record, second: Record) -> str | None:
    """How the second image has to be turned to look like the first in its finer waves, too; None if it never does."""
    one, other = open_image(first.image), open_image(second.image)
    wanted = find_signature(one, **FINE)
    found = {
        how: float((wanted * find_signature(other if turn is None else other.transpose(turn), **FINE)).sum())
        for how, turn in TURNS.items()
    }
    how = max(found, key=found.__getitem__)
    return how if found[how] >= FINE_ALIKE else None
