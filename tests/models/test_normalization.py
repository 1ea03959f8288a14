"""Normalisation of layers; that of batches is held against PyTorch's in test_resnet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvlsm_jax.models.normalization import LayerNorm
from tests.closeness import assert_close

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def layer(dtype: jnp.dtype) -> LayerNorm:
    """With a scale and a bias that are not 1 and 0."""
    rng = np.random.default_rng(0)
    made = LayerNorm(48, 1e-5, dtype=dtype, rngs=nnx.Rngs(0))
    made.scale[...] = jnp.asarray(rng.normal(1, 0.3, 48), jnp.float32)
    made.bias[...] = jnp.asarray(rng.normal(0, 0.3, 48), jnp.float32)
    return made


def flaxs(ours: LayerNorm) -> nnx.LayerNorm:
    theirs = nnx.LayerNorm(48, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    theirs.scale[...], theirs.bias[...] = ours.scale[...], ours.bias[...]
    return theirs


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x, gradient = rng.normal(0.5, 2, (2, 4, 33, 48)).astype(np.float32)
    return x, gradient


def output_and_gradients(module: nnx.Module, x, gradient) -> list[jax.Array]:
    graphdef, state = nnx.split(module)

    @jax.jit
    def both(state, x):
        out, pull = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        return out, pull(gradient.astype(out.dtype))

    return jax.tree.leaves(both(state, x))


def test_in_float32_it_is_flaxs():
    """The output bit for bit."""
    x, gradient = map(jnp.asarray, inputs())
    found, expected = (output_and_gradients(module, x, gradient) for module in (layer(FLOAT32), flaxs(layer(FLOAT32))))
    np.testing.assert_array_equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert_close(ours, theirs, 1e-6)


def test_in_bfloat16_its_gradient_is_no_further_from_float32s_than_flaxs():
    x, gradient = (jnp.asarray(array, jnp.bfloat16) for array in inputs())
    exact = output_and_gradients(flaxs(layer(FLOAT32)), x.astype(jnp.float32), gradient)
    theirs = flaxs(layer(BFLOAT16))
    theirs.dtype = BFLOAT16

    def errors(module: nnx.Module) -> np.ndarray:
        found = output_and_gradients(module, x, gradient)
        return np.array([np.abs(np.float32(a) - np.float32(b)).mean() for a, b in zip(found, exact, strict=True)])

    assert (errors(layer(BFLOAT16)) <= 1.01 * errors(theirs)).all()


def test_gradients_of_parameters_are_summed_in_float32():
    """In bfloat16 a sum over many tokens would stand still."""
    x = jnp.ones((1, 4096, 48), jnp.bfloat16)
    _, of_bias, of_scale, _ = output_and_gradients(layer(BFLOAT16), x, jnp.ones((1, 4096, 48)))
    assert of_bias.dtype == of_scale.dtype == jnp.float32
    np.testing.assert_array_equal(of_bias, 4096)


def test_it_is_exact_far_from_zero():
    torch = pytest.importorskip("torch")
    x = inputs()[0] + 1000  # where a one-pass variance loses all digits
    ours = layer(FLOAT32)
    weights = [torch.from_numpy(np.array(each[...])) for each in (ours.scale, ours.bias)]
    theirs = torch.nn.functional.layer_norm(torch.from_numpy(x), (48,), *weights, eps=1e-5)
    assert_close(ours(jnp.asarray(x)), theirs, 1e-3)
