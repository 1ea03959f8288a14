"""A model as plain data: its graph, and flat dictionaries of arrays under dotted names.

The optimizer, the shardings and the checkpoints work on these dictionaries: a name says what an array is.
"""

import math
from collections.abc import Iterable
from typing import Any

from flax import nnx

Arrays = dict[str, Any]  # dotted name -> jax.Array, or anything that stands for one (its shape, its sharding)


def dotted(path: Iterable[Any]) -> str:
    """`("text", "blocks", 0, "mlp")` as `text.blocks.0.mlp`."""
    return ".".join(map(str, path))


def undotted(name: str) -> tuple[str | int, ...]:
    """The inverse of `dotted`."""
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def flatten(state: Any) -> Arrays:
    """The arrays (or shapes) of an nnx state under dotted names."""
    return {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """The model's graph, its parameters, and its other variables (running statistics)."""
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    return graphdef, flatten(params), flatten(stats)


def merge_model(graphdef: nnx.GraphDef, arrays: Arrays) -> Any:
    """The model again, over parameters and statistics together."""
    return nnx.merge(graphdef, nnx.from_flat_state([(undotted(name), array) for name, array in arrays.items()]))


def count(arrays: Arrays) -> int:
    """How many numbers the arrays hold together."""
    return sum(math.prod(array.shape) for array in arrays.values())
