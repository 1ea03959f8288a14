"""What a compiled program sends between chips, and the cycles that the compiler expects, read from its HLO text.

`Compiled.as_text()` is one block of lines for each computation; a computation is run as often as it is called, and the
body of a loop as often as the loop turns. XLA's operations: openxla.org/xla/operation_semantics.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16}  # the other types end in their number of bits: f32, s8, f8e4m3fn has 8

COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAME = re.compile(r" *(?:ROOT )?%([\w.\-]+) = ")
COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
DONE = re.compile(rf" (?:{'|'.join(KINDS)})-done\(%([\w.\-]+)\)")  # waits for what was started
ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
CONDITION = re.compile(r"condition=%([\w.\-]+)")
BODY = re.compile(r"body=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
KERNEL = re.compile(r"%([\w.\-]+) = .* custom-call\(.*\"tpu_custom_call\"")
COSTS = re.compile(r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"(\d+)","bytes_accessed":"(\d+)"')
CHAIN = re.compile(r'chain_id="\d+"')
SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between chips.

    Attributes:
        kind: one of KINDS.
        shape: what is gathered, reduced or sent, whole: `bf16[512,2048]`, joined by + where several go together.
        bytes: of that.
        chips: how many exchange it with each other.
        times: how often in a run of the program.
        source: the operation that it comes from, as jax names it; empty where the compiler does not say.
    """

    kind: str
    shape: str
    bytes: float
    chips: int
    times: int
    source: str = ""

    @property
    def sent_bytes(self) -> float:
        """What each chip sends, all times together, by the optimal (ring) algorithms.

        Of V bytes among n chips: V (n - 1) / n for a gather, a reduce-scatter and an all-to-all, twice that for an
        all-reduce, which is the two after each other, and V for a permutation.
        """
        share = (self.chips - 1) / self.chips
        factors = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return factors.get(self.kind, share) * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A hand-written kernel, of whose cycles the compiler knows nothing: what it says of itself, for one run.

    Attributes:
        name: of the kernel.
        flops: operations of its matrix products, padded to the lanes of the chip.
        exponentials: as their name says.
        bytes: that it reads and writes.
    """

    name: str
    flops: float
    exponentials: float
    bytes: float


def kernel_of(line: str) -> Kernel | None:
    """The hand-written kernel that a line runs; raises ValueError for one that says nothing of what it costs."""
    match = KERNEL.search(line)
    if match is None:
        return None
    costs = COSTS.search(line)
    if costs is None:
        raise ValueError(f"the kernel {match[1]} says nothing of what it costs")
    return Kernel(match[1].rpartition(".")[0], *(float(number) for number in costs.groups()))


def cycles_of(line: str) -> int:
    """The cycles that a TPU's compiler expects an operation to take, without exchanges and kernels; else 0."""
    match = CYCLES.search(line)
    return int(match[1]) if match else 0


def read_collectives(text: str, num_chips: int) -> dict[str, Collective]:
    """The collectives of a program over `num_chips`, each once, by the name that its pieces share (`exchange_of`).

    Of pieces in loops, the fewest runs are those of the whole.
    """
    found: dict[str, Collective] = {}
    for name, line, times in lines_that_run(text):
        if match := COLLECTIVE.search(line):
            # The compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else match[2]
            collective = parse_collective(line, kind, match, times, num_chips)
            key = exchange_of(line)
            assert key is not None
            found[key] = min(collective, found.get(key, collective), key=lambda one: one.times)
    return found


def exchange_of(line: str) -> str | None:
    """What the pieces of one exchange have in common; None where a line is no piece of any.

    An exchange is one line, or a `-start` and a `-done` that names it, or is spread by a TPU's compiler over several
    fusions that run beside it: these share a `chain_id`. Channels tell nothing apart, for some share number 1.
    """
    if match := DONE.search(line):
        return match[1]
    if COLLECTIVE.search(line) is None:
        return None
    chain, name = CHAIN.search(line), NAME.match(line)
    assert name is not None
    return chain[0] if chain else name[1]


def parse_collective(line: str, kind: str, match: re.Match[str], times: int, num_chips: int) -> Collective:
    """One line as a Collective."""
    chips = group_size(line, num_chips)
    arrays = [(array[0], array_bytes(array[1], array[2])) for array in ARRAY.finditer(match[1])]
    if match[3] and kind in ("all-gather", "collective-permute"):  # started: operands come before the results
        arrays = [array for array in arrays if not array[0].startswith("u32[]")]
        arrays = arrays[len(arrays) // 2 :]
    whole = sum(size for _, size in arrays) * (chips if match[2] == "reduce-scatter" else 1)
    source = SOURCE.search(line)
    return Collective(kind, "+".join(shape for shape, _ in arrays), whole, chips, times, source[1] if source else "")


def lines_that_run(text: str) -> Iterator[tuple[str, str, int]]:
    """Each line of a program that is run: the computation that it stands in, the line, and how often."""
    computations, entry = split_computations(text)
    times = count_runs(computations, entry)
    for name, lines in computations.items():
        if times[name]:
            yield from ((name, line, times[name]) for line in lines)


def split_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the one that is the program."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def count_runs(computations: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """How often each computation runs when the entry runs once; a loop of unknown length counts once."""
    callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            for other in called_by(line):
                callers[other].append((name, trip_count(line, computations) if " while(" in line else 1))
    runs = {entry: 1}

    def count(name: str) -> int:
        if name not in runs:
            runs[name] = sum(count(caller) * times for caller, times in callers[name])
        return runs[name]

    return {name: count(name) for name in computations}


def called_by(line: str) -> list[str]:
    """The names of the computations that a line calls."""
    branches = [branch.strip(" %") for found in BRANCHES.findall(line) for branch in found.split(",")]
    return CALLED.findall(line) + branches


def trip_count(loop: str, computations: Mapping[str, Sequence[str]]) -> int:
    """How often a loop turns: what the compiler notes, else the bound of its counter over the counter's step, else 1.

    Loops of `lax.scan`, and those into which the compiler spreads an exchange over a matrix product, count from 0.
    """
    if noted := TRIPS.search(loop):
        return int(noted[1])
    condition, body = (
        computations.get(name[1], ()) if name else () for name in (CONDITION.search(loop), BODY.search(loop))
    )
    compared = re.search(r"ROOT .* compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", "\n".join(condition))
    if not compared:
        return 1
    bound, position = constant(condition, compared[2]), tuple_index(condition, compared[1])
    after = re.search(r"ROOT .* tuple\((.*?)\)(?:,|$)", body[-1]) if body else None
    if not (bound and after and position is not None):
        return 1
    result = re.findall(r"%([\w.\-]+)", after[1])[position]
    added = re.search(rf"%{re.escape(result)} = .* add\(%([\w.\-]+), %([\w.\-]+)\)", "\n".join(body))
    step = added and (constant(body, added[2]) or constant(body, added[1]))
    return math.ceil(bound / step) if step else 1


def constant(lines: Sequence[str], name: str) -> int | None:
    """The value of an integer constant; None where `name` is something else."""
    match = re.search(rf"%{re.escape(name)} = [su]\d+\[\]\S* constant\((\d+)\)", "\n".join(lines))
    return int(match[1]) if match else None


def tuple_index(lines: Sequence[str], name: str) -> int | None:
    """Which element of a tuple `name` is; None where it is something else."""
    match = re.search(rf"%{re.escape(name)} = .* get-tuple-element\(.*\), index=(\d+)", "\n".join(lines))
    return int(match[1]) if match else None


def group_size(line: str, num_chips: int) -> int:
    """How many chips take part in a collective together, in any of the ways in which HLO writes groups."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):  # [groups, size]<=[order]
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):  # mesh['a'=2,'b'=8] {'b'}
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    return num_chips


def array_bytes(dtype: str, dimensions: str) -> float:
    """Bytes of `bf16[64,3,3]`, given as `bf16` and `64,3,3`."""
    bits = BITS.get(dtype) or int(dtype[1:])
    return math.prod(int(size) for size in dimensions.split(",") if size) * bits / 8
