"""What float32 means on accelerators, read from the program that jax hands to XLA."""

import re

import jax
import jax.numpy as jnp
import pytest

from medvlsm_jax.models import PRESETS, abstract_model, input_shapes, override
from medvlsm_jax.models.parameters import merge_model, split_model

TINY = sorted(name for name in PRESETS if name.endswith("_tiny"))


def products(name: str, dtype: str) -> list[str]:
    """The matrix products and convolutions of a network's loss and gradient, as text."""
    config = override(PRESETS[name][1], {"dtype": dtype})
    graphdef, params, stats = split_model(abstract_model(config))

    def loss(params: dict, *inputs: jax.Array) -> jax.Array:
        return merge_model(graphdef, {**params, **stats_of})(*inputs).sum()

    stats_of = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in stats.items()}
    text = jax.jit(jax.grad(loss)).lower(params, *input_shapes(config)).as_text()
    return [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", line)]


@pytest.mark.parametrize("name", TINY)
def test_a_network_in_float32_multiplies_in_float32_forwards_and_backwards(name):
    lines = products(name, "float32")
    assert len(lines) > 10
    assert [line for line in lines if line.count("HIGHEST") != 2] == []


def test_a_network_in_bfloat16_takes_the_fast_products():
    assert not any("HIGHEST" in line for line in products("clipseg_tiny", "bfloat16"))


def test_who_chooses_a_precision_gets_it():
    with jax.default_matmul_precision("tensorfloat32"):
        lines = products("clipseg_tiny", "float32")
    assert lines
    assert not any("HIGHEST" in line for line in lines)
