"""Which record stands in which row of which batch: a pure function of (seed, step, row), whoever reads it.

The records of a set form a line, which is cut into as many streams of equal length as the batch size and the number of
records allow. A row of a batch always belongs to the same stream, and so a record is always read by the same process,
whatever the number of processes that divides that of the streams: what a process has kept of a record it finds again.

A pass is the whole line: every record comes once in it, shuffled within its stream, anew each time. Where the streams
do not divide the records, a cut falls on a record, which then belongs to the stream before it in some passes and to the
one behind it in the others, as often as the place of the cut says: so no record is drawn more often than another.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from jaxtyping import Int


def num_streams(batch_size: int, num_records: int) -> int:
    """The largest divisor of the batch size that leaves every stream a record."""
    return next(count for count in range(min(batch_size, num_records), 0, -1) if batch_size % count == 0)


VERSION = 2  # raise it when the same seed gives another order: runs that were begun before are then not continued


@dataclass(frozen=True)
class Line:
    """Records in the order in which they are cut into streams, each an endless sequence of shuffled passes.

    Attributes:
        indices: of the records.
        streams: how many; at most as many as there are records.
        seed: of the shuffling.
    """

    indices: Int[np.ndarray, " n"]
    streams: int
    seed: tuple[int, ...]
    shuffled: dict[tuple[int, int], tuple[int, np.ndarray]] = field(default_factory=dict)  # of the last two passes

    def before(self, stream: int, passes: int) -> int:
        """How many records the streams before this one draw in so many passes: their part, rounded down."""
        return passes * stream * len(self.indices) // self.streams

    def drawn(self, stream: int, passes: int) -> int:
        """How many records a stream draws in so many passes: less than one from its part of them."""
        return self.before(stream + 1, passes) - self.before(stream, passes)

    def draw(self, stream: int, position: int) -> tuple[int, int]:
        """What a stream draws after so many records: the index of a record, and the number of the pass."""
        number = position * self.streams // len(self.indices)
        while self.drawn(stream, number) > position:
            number -= 1
        while self.drawn(stream, number + 1) <= position:
            number += 1
        return int(self.shuffle(stream, number)[position - self.drawn(stream, number)]), number

    def shuffle(self, stream: int, number: int) -> Int[np.ndarray, " drawn"]:
        """The records of a stream in one pass, in the order in which they are drawn."""
        slot = stream, number % 2
        found, records = self.shuffled.get(slot, (-1, self.indices))
        if found != number:
            first = self.before(stream, number + 1) - self.before(stream, number)
            own = self.indices[first : first + self.drawn(stream, number + 1) - self.drawn(stream, number)]
            records = np.random.default_rng((*self.seed, stream, number)).permutation(own)
            self.shuffled[slot] = number, records
        return records


@dataclass(frozen=True)
class Order:
    """The records of all rows of all batches.

    Attributes:
        batch_size: of all processes together.
        lines: one of all records; or one of each dataset, where they have shares of the draws.
        mix: position in a mixture -> (which line, how much of it comes before); None for a single line.
    """

    batch_size: int
    lines: list[Line]
    mix: Any = None

    @property
    def streams(self) -> int:
        """How many there are; each reads the same rows of every batch."""
        return self.lines[0].streams

    def draw(self, step: int, row: int) -> tuple[int, int]:
        """What stands in a row of the batch of a step: the index of a record, and the number of its pass."""
        rows = self.batch_size // self.streams  # of each stream
        stream, position = row // rows, step * rows + row % rows
        if self.mix is None:
            return self.lines[0].draw(stream, position)
        # Each stream begins one place later in the mixture than the one before it: so a batch is mixed evenly, too.
        line, count = self.mix[stream + position]
        return self.lines[line].draw(stream, count - self.skipped[stream][line])

    def part(self, rows: range) -> float:
        """The part of the records that these rows of all batches read."""
        each = self.batch_size // self.streams
        return len({row // each for row in rows}) / self.streams

    @functools.cached_property
    def skipped(self) -> list[list[int]]:
        """For each stream, what it leaves out of each line's part of the mixture."""
        counts = [[0] * len(self.lines)]
        for position in range(self.streams - 1):
            counts.append(counts[-1].copy())
            counts[-1][self.mix[position][0]] += 1
        return counts


def training_order(
    datasets: Sequence[str],
    images: Sequence[str],
    batch_size: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> Order:
    """The order of a training.

    Args:
        datasets: of each record.
        images: of each record, what its image is called in its dataset.
        batch_size: of all processes together.
        seed: of the shuffling. Which records a stream has does not depend on it: what is kept of another run, or in the
            shards of a store, lies where this one looks for it.
        weights: share of each dataset among the draws (`pools.mixing_weights`); none: every record once a pass.
    """
    names, files = np.asarray(datasets), np.asarray(images)
    members = {name: deal(np.flatnonzero(names == name), files) for name in dict.fromkeys(datasets)}
    if not weights:
        streams = num_streams(batch_size, len(names))
        return Order(batch_size, [Line(interleave(list(members.values())), streams, (seed,))])
    streams = num_streams(batch_size, min(map(len, members.values())))
    lines = [Line(members[name], streams, (seed, i)) for i, name in enumerate(weights)]
    counts = [grain.MapDataset.range(sys.maxsize).map(functools.partial(of_line, i)) for i in range(len(lines))]
    return Order(batch_size, lines, grain.MapDataset.mix(counts, list(weights.values())))


def of_line(line: int, count: int) -> tuple[int, int]:
    """An element of a mixture."""
    return line, count


def deal(members: Int[np.ndarray, " n"], images: np.ndarray) -> Int[np.ndarray, " n"]:
    """The records of a dataset, mixed; those of an image stay together, for one process to read it."""
    _, first, image = np.unique(images[members], return_index=True, return_inverse=True)
    # Numbered as they come, for their names may lead with another folder elsewhere.
    place = np.random.default_rng(0).permutation(len(first))[np.argsort(np.argsort(first))]
    return members[np.argsort(place[image], kind="stable")]


def interleave(parts: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " n"]:
    """All parts as one line, of which every stretch has its share of each, in the order of each."""
    places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
    return np.concatenate(parts)[np.argsort(places, kind="stable")]
