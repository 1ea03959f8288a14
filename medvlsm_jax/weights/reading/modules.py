"""Whole modules, as `torch.save(model)` pickles them, to what their `state_dict` would give."""

from collections.abc import Iterator
from typing import Any

from medvlsm_jax.weights.reading.pickles import Inert
from medvlsm_jax.weights.reading.rebuilding import numpy_tensor
from medvlsm_jax.weights.reading.tensors import AnyTensor, Damaged, Tensor, Unreadable

MAX_DEPTH = 50
MAX_NAMES = 500_000  # of a file; modules that hold each other twice have more than one can count

Entries = dict[str | int, Any]


class Names:
    """Counts the names that are looked at in a file."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, count: int) -> None:
        """Raises Damaged when there are too many."""
        self.count += count
        if self.count > MAX_NAMES:
            raise Damaged(f"it holds more than {MAX_NAMES} names, or modules that have no end")


def as_tensor(value: Any) -> AnyTensor | None:
    """A tensor, or a numpy array as one; None for anything else."""
    value = numpy_tensor(value)
    return value if isinstance(value, Tensor | Unreadable) else None


def attributes(value: Any) -> Entries | None:
    """The attributes of a pickled module; None for anything else."""
    if not isinstance(value, Inert):
        return None
    # An object with slots has two dictionaries; a torch.fx.GraphModule is given its own as an argument.
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    for found in (state, *(value.args or ())[:1]):
        if isinstance(found, dict) and isinstance(found.get("_modules"), dict) and "_parameters" in found:
            return found
    return None


def module_state(module: Any, names: Names) -> dict[str, AnyTensor] | None:
    """Parameters and persistent buffers of a pickled module by name; None for anything else.

    Raises:
        Damaged: the module holds itself, or more than can be named.
    """
    return None if attributes(module) is None else dict(walk(module, names))


def walk(root: Any, names: Names) -> Iterator[tuple[str, AnyTensor]]:
    """Names and tensors of a module and of those in it."""
    waiting = [(root, "", 0)]
    while waiting:
        module, prefix, depth = waiting.pop()
        found = attributes(module)
        if found is None:
            continue
        names.add(1 + sum(len(group) for group in found.values() if isinstance(group, dict | list)))
        if depth > MAX_DEPTH:
            raise Damaged("it holds modules that have no end")
        for name, tensor in own_tensors(found):
            yield prefix + name, tensor
        waiting += reversed([(child, f"{prefix}{name}.", depth + 1) for name, child in found["_modules"].items()])


def own_tensors(found: Entries) -> Iterator[tuple[str, AnyTensor]]:
    """A module's own parameters, and the buffers that its checkpoints hold."""
    left_out = found.get("_non_persistent_buffers_set")
    left_out = {name for name in left_out if isinstance(name, str)} if isinstance(left_out, list) else set()
    for group, unwanted in (("_parameters", set()), ("_buffers", left_out)):
        entries = found.get(group)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            tensor = as_tensor(value)
            if isinstance(name, str) and name not in unwanted and tensor is not None:
                yield name, tensor
