"""The name tables: complete, one-to-one, and read both ways."""

import json

import numpy as np
import pytest

from medvlsm_jax.models import PRESETS
from medvlsm_jax.weights.convert import torch_leaf
from medvlsm_jax.weights.tables import TABLES
from medvlsm_jax.weights.tables.clipseg import clipseg_sizes
from medvlsm_jax.weights.tables.rows import count_layers


@pytest.mark.parametrize("network", sorted({network for network, _ in PRESETS.values()}))
def test_every_network_has_a_table(network):
    assert TABLES[network].rows


def test_layer_numbers_carry_over():
    name, leaf = torch_leaf(TABLES["clipseg"], ("vision", "blocks", 11, "mlp", "expand", "kernel"))
    assert name == "clip.vision_model.encoder.layers.11.mlp.fc1.weight"
    assert leaf.axes == (1, 0)


@pytest.mark.parametrize("path", [("vision", "blocks", 1, "mlp", "kernel"), ("decoder", "film", "bias"), ("text",)])
def test_a_parameter_outside_the_table_is_a_programmers_error(path):
    with pytest.raises(KeyError, match="no row of the name table covers"):
        torch_leaf(TABLES["clipseg"], path)


def test_layers_are_counted_by_their_highest_number():
    names = ["a.layers.0.x", "a.layers.10.x", "a.layers.9.y", "b.layers.30.x", "a.layers.norm"]
    names = dict.fromkeys(names, np.zeros(()))
    assert count_layers(names, "a.layers.") == 11
    assert count_layers(names, "c.") == 0


def test_the_published_names_give_the_presets_sizes(parity):
    spec = json.loads((parity / "clipseg" / "spec.json").read_text())
    config = PRESETS["clipseg"][1]
    sizes = clipseg_sizes({name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in spec.items()}, config)
    for name, value in sizes.items():
        if isinstance(value, dict):
            assert value.items() <= vars(getattr(config, name)).items()
        else:
            assert value == getattr(config, name)
