"""A model as plain data: its graph, and flat dictionaries of arrays under dotted names.

The optimizer, the shardings and the checkpoints work on these dictionaries: a name says what an array is.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medvlsm_jax.errors import UserError

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


def check_finite(arrays: Arrays, of: str) -> None:
    """Raises a UserError that names the first array with NaN or infinity in it.

    Each process looks at its own parts of arrays that lie on several devices, at each part once.
    """
    for name, array in arrays.items():
        for part in local_parts(array):
            if not is_finite(part):
                count = part.size - np.count_nonzero(np.isfinite(part))
                raise UserError(
                    f"{of} cannot be used: its {name} holds {count} values that are not finite (NaN or infinity), so "
                    "every mask would be wrong; take a checkpoint of before that"
                )


def is_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite: then the least and the largest are not."""
    if not jnp.issubdtype(array.dtype, np.inexact) or not array.size:
        return True
    with np.errstate(invalid="ignore"):
        return math.isfinite(array.min()) and math.isfinite(array.max())


def local_parts(array: Any) -> list[np.ndarray]:
    """The parts of an array that lie on this process's devices, each once."""
    if not isinstance(array, jax.Array):
        return [np.asarray(array)]
    return [np.asarray(data) for data in {str(part.index): part.data for part in array.addressable_shards}.values()]
