"""A checkpoint's names as a network's table has them: what trainers put around them stripped, copies told apart."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights.reading.tensors import printable
from medvlsm_jax.weights.tables import TABLES, StateDict

# Put into names anywhere by torch.compile, FSDP and activation checkpointing.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Of a network that is an average of another one, in the part of a name that stands before the network's own.
AVERAGED = re.compile(r"(^|[._])(ema|teacher|averaged|avg|swa|shadow|momentum|target)([._]|$)")
NUMBER = re.compile(r"\d+")
MAX_PARTS = 12  # of a network's own names, between dots; the longest has 8
MAX_COPIES = 20  # of a network in one state dict
MAX_LISTED = 12  # mismatches that are listed one by one


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A state dict whose names were looked up in a table.

    Attributes:
        arrays: under the names of the table's rows.
        prefix: what stood before all of them, `net.`.
        known: how many of them the table has.
        left_out: names without that prefix.
        copies: prefixes of other copies of the network, which are left out as well.
    """

    arrays: dict[str, np.ndarray]
    prefix: str
    known: int
    left_out: tuple[str, ...]
    copies: tuple[str, ...]

    def report(self) -> str:
        """The line that says what is left out; empty where nothing is."""
        parts = []
        if self.copies:
            parts.append(f"takes the copy under {self.prefix or 'no prefix'}, and leaves out {', '.join(self.copies)}")
        if self.left_out:
            parts.append(f"leaves out {some(self.left_out)}, which lie outside {self.prefix}")
        return "; ".join(parts)


@functools.cache
def known_names(network: str) -> frozenset[str]:
    """PyTorch's names of a network's parameters, layer numbers left out."""
    names = (
        ".".join(filter(None, (prefix, leaf.torch_name)))
        for prefix, _, leaves in TABLES[network].rows
        for leaf in leaves
    )
    return frozenset(NUMBER.sub("*", name) for name in names)


def is_known(network: str, name: str) -> bool:
    """Whether a network has an array of this name, whatever its layer's number."""
    return NUMBER.sub("*", TABLES[network].rename(name)) in known_names(network)


def fit_names(state_dict: StateDict, network: str) -> Fitted:
    """The arrays under the names of a network's table.

    Whatever stands before the network's own names, in any nesting (`module.`, `model.net.`), is found by looking for
    the prefix under which most names are known. Of several copies a plain one is taken rather than an average.
    """
    table = TABLES[network]
    names = {}
    for name in state_dict:
        if not name.endswith(table.ignored):
            names[".".join(part for part in name.split(".") if part not in WRAPPERS)] = name
    prefixes = count_prefixes(names, network)
    if not prefixes:
        return Fitted({table.rename(short): state_dict[name] for short, name in names.items()}, "", 0, (), ())
    most = max(prefixes.values())
    candidates = [prefix for prefix, count in prefixes.items() if count >= 0.9 * most]
    prefix = min(candidates, key=lambda prefix: (bool(AVERAGED.search(prefix)), -prefixes[prefix], len(prefix)))
    copies = tuple(other for other in candidates[:MAX_COPIES] if is_copy(other, prefix, names, network))
    inside = [name for name in names if name.startswith(prefix) and not (copies and name.startswith(copies))]
    arrays = {table.rename(name[len(prefix) :]): state_dict[names[name]] for name in inside}
    outside = (name for name in names if not name.startswith((prefix, *copies)))
    return Fitted(arrays, prefix, prefixes[prefix], tuple(outside), copies)


def count_prefixes(names: Iterable[str], network: str) -> Counter[str]:
    """How many names are known when a prefix is taken away, for all prefixes that leave known ones."""
    prefixes: Counter[str] = Counter()
    for name in names:
        start = len(name)
        for _ in range(MAX_PARTS):
            start = name.rfind(".", 0, max(0, start - 1)) + 1
            if is_known(network, name[start:]):
                prefixes[name[:start]] += 1
            if not start:
                break
    return prefixes


def is_copy(other: str, prefix: str, names: Iterable[str], network: str) -> bool:
    """Whether the names under another prefix are those of the network a second time."""
    if other == prefix or prefix.startswith(other):
        return False
    under = [name for name in names if name.startswith(other)]
    return not any(name.startswith(prefix) and is_known(network, name[len(prefix) :]) for name in under)


def check_names(network: str, shapes: dict[str, tuple[int, ...]], arrays: StateDict) -> None:
    """Raises a UserError that lists what is missing, unexpected and misshaped: all of it, or the sums of much."""
    missing = [name for name in shapes if name not in arrays]
    unexpected = [name for name in arrays if name not in shapes]
    misshaped = [name for name, shape in shapes.items() if name in arrays and arrays[name].shape != shape]
    count = len(missing) + len(unexpected) + len(misshaped)
    if not count:
        return
    if count > MAX_LISTED:
        parts = [f"missing {some(missing)}", f"unexpected {some(unexpected)}", f"misshaped {some(misshaped)}"]
        found = "; ".join(part for part, names in zip(parts, (missing, unexpected, misshaped), strict=True) if names)
        raise UserError(f"not a checkpoint of {network}, {count} names differ: {found}{guess(network, arrays)}")
    problems = [f"missing {name} {shapes[name]}" for name in missing]
    problems += [f"unexpected {printable(name)} {arrays[name].shape}" for name in unexpected]
    problems += [f"misshaped {name}: {arrays[name].shape} where {shapes[name]} is expected" for name in misshaped]
    raise UserError(f"not a checkpoint of {network}, {count} names differ:\n  " + "\n  ".join(problems))


def some(names: Iterable[str]) -> str:
    """How many names there are, and the first three."""
    names = [printable(name) for name in names]
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def guess(network: str, arrays: StateDict) -> str:
    """Which network's checkpoint it looks like, if it does."""
    known = {other: fit_names(arrays, other).known for other in TABLES if other != network}
    best = max(known, key=lambda other: known[other])
    own = fit_names(arrays, network).known
    return f". It looks like a {best}'s" if known[best] > max(own, len(arrays) / 2) else ""
