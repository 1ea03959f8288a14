"""A model as flat dictionaries, and back."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvlsm_jax.models.parameters import count, dotted, merge_model, split_model, undotted


class Small(nnx.Module):
    """Parameters, a list of layers, and running statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List(nnx.Linear(3, 3, rngs=rngs) for _ in range(12))
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


@pytest.mark.parametrize(
    ("path", "name"), [(("text", "blocks", 10, "mlp"), "text.blocks.10.mlp"), (("scale",), "scale")]
)
def test_dotted_names_read_both_ways(path, name):
    assert dotted(path) == name
    assert undotted(name) == path


def test_a_split_model_merges_to_the_same_function():
    model = Small(nnx.Rngs(0))
    graphdef, params, stats = split_model(model)
    assert set(stats) == {"norm.mean", "norm.var"}
    assert {"layers.11.kernel", "layers.2.bias", "norm.scale"} <= set(params)
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(merge_model(graphdef, {**params, **stats})(x), model(x))


def test_merged_arrays_are_the_ones_given():
    graphdef, params, stats = split_model(Small(nnx.Rngs(0)))
    params["layers.10.bias"] = jnp.full(3, 5.0)
    np.testing.assert_array_equal(merge_model(graphdef, {**params, **stats}).layers[10].bias[...], np.full(3, 5.0))


def test_count_adds_the_sizes():
    assert count(split_model(Small(nnx.Rngs(0)))[1]) == 12 * 12 + 6
