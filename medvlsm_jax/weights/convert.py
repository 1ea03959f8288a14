"""Between PyTorch's state dicts and our models, with every mismatch reported at once."""

import re
import warnings
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import abstract_model, initial_arrays, network_of, override, preset
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.parameters import check_finite, dotted
from medvlsm_jax.weights.names import check_names, fit_names
from medvlsm_jax.weights.tables import TABLES, Leaf, StateDict, Table

DECODER = "decoder."  # CLIPSeg's, wherever it is used
COUNTER = "num_batches_tracked"  # beside every BatchNorm's statistics in PyTorch; nothing reads it
TorchLeaf = tuple[str, Leaf]  # PyTorch's name of one of our arrays, and its layout


def torch_leaf(table: Table, path: Iterable[Any]) -> TorchLeaf:
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
    """PyTorch's array, or our part of it, in our axis order, contiguous."""
    if leaf.part:
        index, parts = leaf.part
        array = np.split(array, parts)[index]
    array = array.reshape(array.shape[leaf.leading :])
    return np.asarray(array if leaf.axes is None else array.transpose(leaf.axes), order="C")


def to_torch_layout(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Our array in PyTorch's axis order, contiguous; still a part where PyTorch joins several."""
    array = np.asarray(array if leaf.axes is None else array.transpose(np.argsort(leaf.axes)), order="C")
    return array.reshape((1,) * leaf.leading + array.shape)


def torch_shape(ours: tuple[int, ...], leaf: Leaf) -> tuple[int, ...]:
    """The shape of PyTorch's array, all its parts together."""
    shape = (1,) * leaf.leading + (ours if leaf.axes is None else tuple(ours[i] for i in np.argsort(leaf.axes)))
    return (shape[0] * leaf.part[1], *shape[1:]) if leaf.part else shape


def is_encoder_alone(name: str, state_dict: StateDict) -> bool:
    """Whether a checkpoint holds a network's pretrained encoder and nothing else, so that the rest starts random."""
    network, _ = preset(name)
    head, fitted = TABLES[network].head, fit_names(state_dict, network)
    return bool(head) and not any(
        f".{part}" in f".{key}" for part in head for key in (*fitted.arrays, *fitted.left_out)
    )


def from_torch(name: str, state_dict: StateDict, *, seed: int = 0, **overrides: Any) -> Network:
    """A network with the weights of a PyTorch checkpoint, in evaluation mode.

    A checkpoint of the pretrained encoder alone (BiomedCLIP, CLIP's RN50, an ImageNet ResNet-50) is enough for the
    networks that are built on one: all the rest is random then.

    Args:
        name: a preset: `clipseg`, `cris`, …
        state_dict: numpy arrays under PyTorch's names and in its layouts; float16 and bfloat16 become float32.
        seed: of what starts random.
        **overrides: config fields; sizes that are not given are read from the arrays.

    Raises:
        UserError: names are missing, unexpected or of another shape (all of them are listed, or the first of many), or
            an array holds values that are not finite.
    """
    network, config = preset(name)
    table = TABLES[network]
    fitted = fit_names(state_dict, network)
    arrays = fitted.arrays
    config = override(override(config, table.sizes(arrays, config)), overrides)
    try:
        abstract = abstract_model(config)
    except ValueError as error:
        raise UserError(f"this is no {network} checkpoint that fits its options: {error}") from error
    expected = {path: torch_leaf(table, path) for path, _ in nnx.to_flat_state(nnx.state(abstract))}
    fresh = table.head if is_encoder_alone(name, state_dict) else ()
    shapes = {
        expected[path][0]: torch_shape(leaf.shape, expected[path][1])
        for path, leaf in nnx.to_flat_state(nnx.state(abstract))
        if not (fresh and expected[path][0].startswith(fresh))
    }
    check_names(network, shapes, arrays)
    if report := fitted.report():
        warnings.warn(f"the checkpoint of a {network} {report}", stacklevel=2)
    check_finite({theirs: arrays[theirs] for theirs in shapes}, "the checkpoint")
    names = {dotted(path) for path, (theirs, _) in expected.items() if theirs not in shapes}
    random = initial_arrays(config, seed, names=names) if names else {}
    graphdef, state = nnx.split(abstract)
    loaded = []
    for path, leaf in nnx.to_flat_state(state):
        theirs, layout = expected[path]
        ours = random[dotted(path)] if theirs not in shapes else to_our_layout(arrays[theirs], layout)
        loaded.append((path, leaf.replace(jnp.asarray(ours, leaf.dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def with_decoder(state_dict: StateDict, decoder_state_dict: StateDict) -> dict[str, np.ndarray]:
    """A checkpoint of encoders, with the decoder of a CLIPSeg checkpoint: BiomedCLIPSeg-D's start.

    Raises:
        UserError: the second checkpoint has no decoder.
    """
    decoder = {
        name: array
        for name, array in fit_names(decoder_state_dict, "clipseg").arrays.items()
        if name.startswith(DECODER)
    }
    if not decoder:
        raise UserError("the checkpoint of the decoder holds no decoder.*: give CLIPSeg's")
    encoders = fit_names(state_dict, "biomedclipseg").arrays
    return {name: array for name, array in encoders.items() if not name.startswith(DECODER)} | decoder


def to_torch(model: Network) -> dict[str, np.ndarray]:
    """The model's weights under PyTorch's names and in its layouts: what `from_torch` read, bit for bit.

    The counters beside BatchNorm's statistics are 0: a checkpoint of ours does not keep them.
    """
    table = TABLES[network_of(model.config)]
    state_dict: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name, layout = torch_leaf(table, path)
        array = to_torch_layout(np.asarray(leaf[...]), layout)
        if layout.part:
            parts.setdefault(name, {})[layout.part[0]] = array
        else:
            state_dict[name] = array
        if layout.torch_name == "running_var":
            state_dict[name.replace(layout.torch_name, COUNTER)] = np.zeros((), np.int64)
    return state_dict | {name: np.concatenate([pieces[i] for i in sorted(pieces)]) for name, pieces in parts.items()}
