"""The networks by name.

A new network is a file in this folder, a line here (its class and its presets) and a table in `weights/tables`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import biomedclipseg, clipseg, cnn, cris
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import Arrays, split_model
from medvlsm_jax.models.randomness import initial_rngs

# Network -> its class and its presets.
FAMILY: dict[str, tuple[type[Network], Mapping[str, NetworkConfig]]] = {
    "clipseg": (clipseg.CLIPSeg, clipseg.PRESETS),
    "biomedclipseg": (biomedclipseg.BiomedCLIPSeg, biomedclipseg.PRESETS),
    "cris": (cris.CRIS, cris.PRESETS),
    "unet": (cnn.UNet, cnn.UNET_PRESETS),
    "unetplusplus": (cnn.UNetPlusPlus, cnn.UNETPLUSPLUS_PRESETS),
    "deeplabv3plus": (cnn.DeepLabV3Plus, cnn.DEEPLABV3PLUS_PRESETS),
}
NETWORKS: dict[str, type[Network]] = {network: made_by for network, (made_by, _) in FAMILY.items()}
# Preset -> network and config.
PRESETS: dict[str, tuple[str, NetworkConfig]] = {
    name: (network, config) for network, (_, presets) in FAMILY.items() for name, config in presets.items()
}


def preset(name: str) -> tuple[str, NetworkConfig]:
    """The network (`clipseg`) and the config of a preset (`clipseg`, `clipseg_tiny`); raises UserError if unknown."""
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def network_of(config: NetworkConfig) -> str:
    """The network that a config describes."""
    return next(name for name, network in NETWORKS.items() if network.config_class is type(config))


def abstract_model(config: NetworkConfig) -> Network:
    """The model that a config describes, with shapes in place of arrays; nothing is initialised."""
    return nnx.merge(*split_abstract(config))


@functools.lru_cache(maxsize=16)
def split_abstract(config: NetworkConfig) -> tuple[nnx.GraphDef, Any]:
    """Tracing a network's initial values takes seconds, so it is done once for a config."""
    return nnx.split(nnx.eval_shape(lambda: NETWORKS[network_of(config)](config, rngs=initial_rngs(jax.random.key(0)))))


def preset_of(config: NetworkConfig) -> str:
    """The preset that a config has the sizes of; else its network."""
    names = ("classes", "dtype", "remat", "attention", "image_size", "threshold", "tokenizer")
    others = {name: getattr(config, name) for name in names}
    for name, (_, found) in PRESETS.items():
        if type(found) is type(config) and override(found, others) == config:
            return name
    return network_of(config)


def input_shapes(config: NetworkConfig) -> list[jax.ShapeDtypeStruct]:
    """Shapes of what a network is called with for one image: pixels, and where it reads tokens and their mask."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return [pixels] + (
        [] if config.text is None else [jax.ShapeDtypeStruct((1, config.text.context_length), jnp.int32)] * 2
    )


def check_image_size(config: NetworkConfig) -> None:
    """Raises a UserError when a network cannot work at its config's image size."""
    try:
        nnx.eval_shape(lambda model, *inputs: model(*inputs), abstract_model(config), *input_shapes(config))
    except ValueError as error:
        raise UserError(
            f"config.image_size={config.image_size} does not suit a {network_of(config)}: {error}"
        ) from error


def initial_arrays(
    config: NetworkConfig,
    seed: int,
    *,
    names: Container[str] | None = None,
    shardings: Callable[[Arrays], Any] | None = None,
) -> Arrays:
    """Random parameters and fresh statistics under dotted names.

    Args:
        config: of the network.
        seed: the arrays are a function of it and the config.
        names: those wanted; all when not given.
        shardings: where arrays of these shapes are to be made.
    """

    def build(key_data: jax.Array) -> Arrays:
        rngs = initial_rngs(jax.random.wrap_key_data(key_data))
        _, params, stats = split_model(NETWORKS[network_of(config)](config, rngs=rngs))
        return {name: array for name, array in {**params, **stats}.items() if names is None or name in names}

    # An argument, so that a kept compilation serves every seed; on the host, so that it suits any mesh.
    key_data = np.asarray(jax.random.key_data(jax.random.key(seed)))
    placed = None if shardings is None else shardings(jax.eval_shape(build, key_data))
    # Hundreds of random draws, each run once: on CPU, optimising them takes three times as long as it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(build, out_shardings=placed, compiler_options=options)(key_data)


def override(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of a config dataclass with some fields replaced; a dict for a nested config replaces fields inside it.

    Raises:
        UserError: a field does not exist, or a number is none, or makes no sense.
    """
    names = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(overrides) - names):
        raise UserError(f"unknown model option {', '.join(unknown)}: choose from {', '.join(sorted(names))}")
    values = {}
    for name, value in overrides.items():
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            value = override(current, value)
        elif isinstance(current, tuple):
            value = tuple(value)
        elif isinstance(current, (int, float)) and not isinstance(current, bool):
            check_number(name, value)
        values[name] = value
    return dataclasses.replace(config, **values)


def check_number(name: str, value: Any) -> None:
    """Raises UserError when a field's value is no finite number, or a probability not between 0 and 1."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    is_probability = name == "threshold" or name.endswith("dropout")
    if not is_number or value < 0 or (is_probability and value > 1):
        raise UserError(f"model option {name}={value!r}: give a number from 0 {'to 1' if is_probability else 'on'}")


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> Network:
    """A randomly initialised network.

    Args:
        name: a preset: `clipseg` (rd64-refined's sizes) or `clipseg_tiny` (trains on a laptop).
        rngs: the source of the initial values, `nnx.Rngs(seed)`.
        **overrides: fields of the preset's config to replace: `image_size=224`, `vision=dict(depth=6)`.

    Raises:
        UserError: the preset or a field is unknown.
    """
    network, config = preset(name)
    return NETWORKS[network](override(config, overrides), rngs=rngs)
