"""Between PyTorch's state dicts and our models, with every mismatch reported at once."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import Model, abstract_model, network_of, override, preset
from medvlsm_jax.models.parameters import dotted
from medvlsm_jax.weights.tables import TABLES, Leaf, Table


def torch_leaf(table: Table, path: Iterable[Any]) -> tuple[str, Leaf]:
    """PyTorch's name of one of our parameters, and its layout."""
    ours = dotted(path)
    for torch_prefix, our_prefix, leaves in table.rows:
        for leaf in leaves:
            pattern = re.escape(".".join(filter(None, (our_prefix, leaf.our_name)))).replace(r"\*", r"(\d+)")
            if match := re.fullmatch(pattern, ours):
                name = ".".join(filter(None, (torch_prefix, leaf.torch_name)))
                for number in match.groups():
                    name = name.replace("*", number, 1)
                return name, leaf
    raise KeyError(f"no row of the name table covers our parameter {ours}")


def to_our_layout(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """PyTorch's array in our axis order, contiguous."""
    return np.asarray(array if leaf.axes is None else array.transpose(leaf.axes), order="C")


def to_torch_layout(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Our array in PyTorch's axis order, contiguous."""
    return np.asarray(array if leaf.axes is None else array.transpose(np.argsort(leaf.axes)), order="C")


def clean_names(state_dict: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Strips wrappers that all names share (`module.`, `net.`) and drops buffers that carry no learned value."""
    names = {name: array for name, array in state_dict.items() if not name.endswith(table.ignored)}
    for wrapper in table.wrappers:
        if names and all(name.startswith(wrapper) for name in names):
            names = {name.removeprefix(wrapper): array for name, array in names.items()}
    return names


def from_torch(name: str, state_dict: Mapping[str, np.ndarray], **overrides: Any) -> Model:
    """A network with the weights of a PyTorch checkpoint.

    Args:
        name: a preset: `clipseg`.
        state_dict: numpy arrays under PyTorch's names and in its layouts; float16 and bfloat16 become float32.
        **overrides: config fields; sizes that are not given are read from the arrays.

    Raises:
        UserError: names are missing, unexpected or of another shape: all of them are listed.
    """
    network, config = preset(name)
    table = TABLES[network]
    arrays = clean_names(state_dict, table)
    config = override(override(config, table.sizes(arrays, config)), overrides)
    try:
        model = abstract_model(config)
    except ValueError as error:
        raise UserError(f"this is no {network} checkpoint that fits its options: {error}") from error
    graphdef, state = nnx.split(model)
    expected = {path: torch_leaf(table, path) for path, _ in nnx.to_flat_state(state)}
    check_names(network, {expected[path]: leaf.shape for path, leaf in nnx.to_flat_state(state)}, arrays)
    loaded = [
        (path, leaf.replace(jax.numpy.asarray(to_our_layout(arrays[expected[path][0]], expected[path][1]), leaf.dtype)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def check_names(
    network: str, expected: Mapping[tuple[str, Leaf], tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises a UserError that lists every missing, unexpected and misshaped name."""
    shapes = {}
    for (name, leaf), ours in expected.items():
        shapes[name] = ours if leaf.axes is None else tuple(ours[i] for i in np.argsort(leaf.axes))
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in arrays]
    problems += [f"unexpected {name} {array.shape}" for name, array in arrays.items() if name not in shapes]
    problems += [
        f"misshaped {name}: {arrays[name].shape} where {shape} is expected"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if problems:
        raise UserError(f"not a checkpoint of {network}, {len(problems)} names differ:\n  " + "\n  ".join(problems))


def to_torch(model: Model) -> dict[str, np.ndarray]:
    """The model's weights under PyTorch's names and in its layouts: what `from_torch` read, bit for bit."""
    table = TABLES[network_of(model.config)]
    state_dict = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name, layout = torch_leaf(table, path)
        state_dict[name] = to_torch_layout(np.asarray(leaf[...]), layout)
    return state_dict
