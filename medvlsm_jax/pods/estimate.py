"""How much memory a compiled step takes, and how long it will about take: an estimate, not a measurement."""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from medvlsm_jax.parallel.chips import Chip
from medvlsm_jax.pods.hlo import Collective, Kernel, cycles_of, kernel_of, read_collectives
from medvlsm_jax.pods.schedule import read_schedule, waiting_seconds
from medvlsm_jax.pods.slices import Slice

# Of the vector units for an exponential of a softmax and what goes with it: scale, mask, maximum, difference, the
# exponential's own, sum and conversion are 16 in a forward kernel; the gradient's make it 34 there.
VECTOR_OPERATIONS = 25
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip: what a step is called with, what it hands back in other places, and what it needs meanwhile.

    `kept` is what lies beside it and the step does not see: the optimizer's state during an evaluation.
    """

    arguments: float
    outputs: float  # without those that take the place of arguments
    temporaries: float
    code: float
    kept: float = 0.0

    @property
    def total(self) -> float:
        """All of them together."""
        return self.arguments + self.outputs + self.temporaries + self.code + self.kept


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A step on a slice; bytes, operations and seconds are those of one chip.

    Attributes:
        memory: what it takes; of a step that the compiler found too large nothing but `total_memory` is known.
        total_memory: in bytes; NaN when the compiler does not say how much is missing.
        limit: bytes that a chip has by its data sheet; the compiler would use a little more (15.75 GiB of a v5e).
        flops: operations, as XLA counts them in the optimised program; rematerialisation is among them.
        bytes_accessed: likewise.
        compute_seconds: all but the collectives.
        collectives: what is exchanged with other chips.
        collective_seconds: how long that takes, were nothing computed meanwhile.
        waiting_seconds: what of it is not hidden behind computing.
    """

    memory: Memory | None
    total_memory: float
    limit: float
    flops: float = 0.0
    bytes_accessed: float = 0.0
    compute_seconds: float = float("nan")
    collectives: tuple[Collective, ...] = ()
    collective_seconds: float = float("nan")
    waiting_seconds: float = float("nan")

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        return self.memory is not None and self.total_memory <= self.limit

    @property
    def seconds(self) -> float:
        """How long a step takes."""
        return self.compute_seconds + self.waiting_seconds


def estimate(lowered: Any, chips: Slice, *, loops: int = 1, kept: float = 0.0) -> Estimate:
    """Compiles a lowered step for a slice and reads what the compiler says of it.

    step = compute + waiting, in seconds, where

        compute  = the compiler's cycles, summed over the operations that it scheduled, over the clock, and the seconds
                   of kernels, of which it knows none (`kernel_seconds`); at least FLOPs over the peak. XLA's own
                   `optimal_seconds` is no sum that means something (it comes out negative), and bytes accessed over
                   the bandwidth counts what never leaves the chip, too.
        exchange = bytes that a chip sends by the ring algorithms (`Collective.sent_bytes`) over the bandwidth of the
                   links that it has for them (`Slice.bandwidth`).
        waiting  = what of the exchange is left when that which is scheduled between its start and its end is computed
                   (`schedule.waiting_seconds`).

    Neither latencies nor the input are in it, and the chip may run below its clock.

    Args:
        lowered: from `jit(...).lower(...)`.
        chips: the slice whose devices its shapes lie on.
        loops: how often the loop that the step consists of turns; XLA's counts have its body once.
        kept: bytes on a chip that the step does not see.
    """
    chip = chips.chip
    try:
        with no_compilation_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Estimate(None, exhausted_bytes(str(error)) + kept, chip.memory)
    stats, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        kept=kept,
    )
    flops = loops * costs["flops"]

    def computing(line: str) -> float:
        kernel = kernel_of(line)
        return cycles_of(line) / chip.clock + (kernel_seconds(kernel, chip) if kernel else 0.0)

    def exchanging(collective: Collective) -> float:
        return collective.sent_bytes / chips.bandwidth(collective.chips)

    schedule, collectives = read_schedule(text, computing), read_collectives(text, len(chips.devices))
    return Estimate(
        memory,
        memory.total,
        chip.memory,
        flops,
        loops * costs["bytes accessed"],
        max(sum(operation.seconds for operation in schedule), flops / chip.flops),
        tuple(collectives.values()),
        sum(exchanging(one) for one in collectives.values()),
        waiting_seconds(schedule, collectives, exchanging),
    )


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Neither reads nor writes compiled programs: one for chips that are not there cannot be loaded again."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # jax looks at the setting once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    """An estimate of one run of a hand-written kernel.

    FLOPs over the peak, and 25 operations for each exponential over those of the vector units, as if neither ran beside
    the other; at least the bytes over the memory's bandwidth.
    """
    vector = VECTOR_OPERATIONS * kernel.exponentials / (chip.vector * chip.clock)
    return max(kernel.flops / chip.flops + vector, kernel.bytes / chip.bandwidth)


def exhausted_bytes(message: str) -> float:
    """What the compiler would have needed, from `required … (18.64G) exceeds available HBM`; NaN if it does not say."""
    match = re.search(r"\(([\d.]+)([KMG])\) exceeds available HBM", message)
    return float(match[1]) * UNITS[match[2]] if match else float("nan")


def sum_by_kind(collectives: tuple[Collective, ...]) -> list[dict[str, Any]]:
    """What is exchanged by kind and number of chips, the largest first: times, whole bytes, bytes that a chip sends."""
    groups: dict[tuple[str, int], list[Collective]] = collections.defaultdict(list)
    for one in collectives:
        groups[one.kind, one.chips].append(one)
    rows = [
        {
            "kind": kind,
            "chips": chips,
            "count": sum(one.times for one in members),
            "bytes": sum(one.bytes * one.times for one in members),
            "sent_bytes": sum(one.sent_bytes for one in members),
        }
        for (kind, chips), members in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["sent_bytes"])
