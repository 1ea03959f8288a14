"""The networks by name.

A new network is a file in this folder, two entries here (its class and its presets) and a table in `weights`.
"""

import dataclasses
from typing import Any

from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import clipseg
from medvlsm_jax.models.clipseg import CLIPSeg, CLIPSegConfig

Model = CLIPSeg
ModelConfig = CLIPSegConfig

# Preset name -> network, its class and its config.
NETWORKS: dict[str, type[Model]] = {"clipseg": CLIPSeg}
PRESETS: dict[str, tuple[str, ModelConfig]] = {name: ("clipseg", config) for name, config in clipseg.PRESETS.items()}


def preset(name: str) -> tuple[str, ModelConfig]:
    """The network (`clipseg`) and the config of a preset (`clipseg`, `clipseg_tiny`); raises UserError if unknown."""
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def network_of(config: ModelConfig) -> str:
    """The network that a config describes."""
    return next(name for name, network in NETWORKS.items() if network.config_class is type(config))


def abstract_model(config: ModelConfig) -> Model:
    """The model that a config describes, with shapes in place of arrays; nothing is initialised."""
    return nnx.eval_shape(lambda: NETWORKS[network_of(config)](config, rngs=nnx.Rngs(0)))


def override(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of a config dataclass with some fields replaced; a dict for a nested config replaces fields inside it.

    Raises:
        UserError: a field does not exist.
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
        values[name] = value
    return dataclasses.replace(config, **values)


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> Model:
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
