"""What float32 means on accelerators, read from the program that jax hands to XLA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvlsm_jax.models import PRESETS, abstract_model, input_shapes, override
from medvlsm_jax.models.layers import Conv, Linear
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


@pytest.mark.parametrize("layer", [Linear, Conv])
def test_gradients_of_parameters_are_summed_in_float32_where_the_layer_computes_in_bfloat16(layer):
    """Rows lie on many chips: what a product hands to their sum is what is added up across them."""
    graphdef, params = nnx.split(layer(8, 4, use_bias=True, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 5, 8)), jnp.bfloat16)

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        return (nnx.merge(graphdef, params)(x).astype(jnp.float32) ** 2).sum()

    text = jax.jit(jax.grad(loss)).lower(params, x).as_text()
    of_kernel = [line for line in text.splitlines() if "dot_general" in line and "8x4x" in line.partition("->")[2]]
    assert of_kernel
    assert all("8x4xf32" in line.partition("->")[2] for line in of_kernel)
    assert not re.search(r"reduce.*tensor<4xbf16>", text)
    graphdef_exact = nnx.split(layer(8, 4, use_bias=True, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)))[0]
    ours = jax.grad(loss)(params, x)
    exact = jax.grad(lambda p: (nnx.merge(graphdef_exact, p)(x.astype(jnp.float32)) ** 2).sum())(params)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=2e-2 * np.abs(other).max())
