"""The order in which a program runs, and what a chip waits for in it.

A TPU's compiler writes operations in the order of its schedule. An exchange lasts from the operation that carries its
first piece to the one that carries its last: both are the same where it is not asynchronous. What is computed between
hides it.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from medvlsm_jax.pods.hlo import BODY, Collective, called_by, exchange_of, split_computations, trip_count


class Operation(NamedTuple):
    """One of a schedule, with all that it calls: seconds of computing, and the exchanges that it carries a piece of."""

    seconds: float
    exchanges: frozenset[str] = frozenset()


def waiting_seconds(
    operations: list[Operation], collectives: Mapping[str, Collective], seconds_of: Callable[[Collective], float]
) -> float:
    """How long a chip only waits for exchanges: an exchange's last piece waits for its end.

    The links carry one after another, in the order in which they start. Computing is not slowed down by them.

    Args:
        operations: in order.
        collectives: the exchanges by name (`read_collectives`).
        seconds_of: how long one takes, all its times together.
    """
    counts = collections.Counter(name for one in operations for name in one.exchanges)
    pieces = {name: max(1, count // collectives[name].times) for name, count in counts.items()}
    carried: collections.Counter[str] = collections.Counter()
    ends: dict[str, float] = {}
    now = free = 0.0  # free: when the links are
    for operation in operations:
        for name in sorted(operation.exchanges):
            if carried[name] % pieces[name] == 0:
                free = ends[name] = max(now, free) + seconds_of(collectives[name]) / collectives[name].times
            carried[name] += 1
        last = [name for name in operation.exchanges if carried[name] % pieces[name] == 0]
        now = max([now + operation.seconds, *(ends[name] for name in last)])
    return now - sum(operation.seconds for operation in operations)


def read_schedule(text: str, seconds_of: Callable[[str], float]) -> list[Operation]:
    """The operations of a program in order, loops turn by turn; `seconds_of` a line is what it computes itself."""
    computations, entry = split_computations(text)

    @functools.cache
    def called(name: str) -> Operation:
        lines = [operation(line) for line in computations.get(name, ())]
        exchanges = frozenset[str]().union(*(line.exchanges for line in lines))
        return Operation(sum(line.seconds for line in lines), exchanges)

    def operation(line: str) -> Operation:
        turns = trip_count(line, computations) if " while(" in line else 1
        inner = [called(name) for name in called_by(line)]
        own = exchange_of(line)
        exchanges = frozenset(() if own is None else (own,)).union(*(one.exchanges for one in inner))
        return Operation(seconds_of(line) + turns * sum(one.seconds for one in inner), exchanges)

    def in_turn(name: str) -> Iterator[Operation]:
        for line in computations[name]:
            if " while(" in line and (body := BODY.search(line)):
                for _ in range(trip_count(line, computations)):
                    yield from in_turn(body[1])
            else:
                yield operation(line)

    return [one for one in in_turn(entry) if one.seconds or one.exchanges]
