"""Attention: what each implementation gives against float32, and which one a call gets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from medvlsm_jax import create_model
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.attention import attend, check_device_has, choose
from medvlsm_jax.models.layers import Dropout
from medvlsm_jax.models.pallas_attention import MOST_TOKENS, pallas_attention
from tests.closeness import assert_close


def inputs(batch: int, queries: int, keys: int, heads: int, width: int, *, masked: bool):
    """Query, key, value, the gradient of the output, and a mask that leaves the second sentence a third of its keys."""
    rng = np.random.default_rng(queries)
    lengths = (queries, keys, keys, queries)
    arrays = [jnp.asarray(rng.standard_normal((batch, n, heads, width)), jnp.float32) for n in lengths]
    mask = np.ones((batch, 1, 1, keys), bool)
    mask[-1, ..., 1 + keys // 3 :] = False
    return arrays, jnp.asarray(mask) if masked else None


def values_and_gradients(run, query, key, value, gradient):
    """The output and the gradients of query, key and value, jitted."""

    @jax.jit
    def both(query, key, value):
        out, pull = jax.vjp(run, query, key, value)
        return out, *pull(gradient.astype(out.dtype))

    return both(query, key, value)


def jaxs(mask, is_causal: bool):
    return functools.partial(jax.nn.dot_product_attention, mask=mask, is_causal=is_causal)


def ours(name: str, mask, is_causal: bool, **dropout):
    if name == "pallas":
        return lambda query, key, value: pallas_attention(query, key, value, mask, is_causal, **dropout)
    return functools.partial(attend, mask=mask, is_causal=is_causal, implementation=name, **dropout)


def by_definition(query, key, value, mask, kept, rate: float):
    """Weights are rounded to the type of the inputs before they are dropped, as BERT has it."""
    scores = jnp.einsum("bthc,bshc->bhts", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)).astype(query.dtype)
    return jnp.einsum("bhts,bshc->bthc", jnp.where(kept, weights / (1 - rate), 0).astype(query.dtype), value)


@pytest.mark.parametrize("name", ["xla", "pallas"])
@pytest.mark.parametrize(("masked", "is_causal"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("tokens", "sharpness"), [(129, 1), (197, 2)])
def test_in_bfloat16_errors_are_those_of_jaxs_own(name, tokens, sharpness, masked, is_causal):
    """Of output and gradients against float32 on the same rounded inputs, by mean and by largest difference.

    Scores of deviation 1, and of 4: a query looks at few keys then, as in trained networks.
    """
    (query, key, *others), mask = inputs(4, tokens, tokens, 4, 64, masked=masked)
    rounded = [array.astype(jnp.bfloat16) for array in (sharpness * query, sharpness * key, *others)]
    exact = values_and_gradients(jaxs(mask, is_causal), *(array.astype(jnp.float32) for array in rounded))

    def errors(run) -> np.ndarray:
        found = values_and_gradients(run, *rounded)
        differences = [np.abs(np.float32(a) - b) for a, b in zip(found, exact, strict=True)]
        return np.array([[x.mean(), x.max() / np.abs(b).max()] for x, b in zip(differences, exact, strict=True)])

    theirs = errors(jaxs(mask, is_causal))
    with pltpu.force_tpu_interpret_mode():
        found = errors(ours(name, mask, is_causal))
    assert np.isfinite(found).all()
    # Plain XLA keeps exponentials of two bytes: where jax rounds gradients twice, it does so three times, which is the
    # square root of 3/2 of the error.
    assert (found[:, 0] <= (1.23 if name == "xla" else 1.2) * theirs[:, 0]).all(), found[:, 0] / theirs[:, 0]
    assert (found[:, 1] < 2**-7).all()  # a single difference, which is rounded one way or the other


@pytest.mark.parametrize("name", ["xla", "pallas"])
def test_weights_that_are_dropped_count_for_nothing(name):
    """Output and gradients in float32, and the errors of bfloat16 beside those of the definition."""
    arrays, mask = inputs(4, 131, 129, 4, 32, masked=True)
    kept = jax.random.bernoulli(jax.random.key(0), 0.8, (4, 4, 131, 129))
    rounded = [array.astype(jnp.bfloat16) for array in arrays]
    wide = [array.astype(jnp.float32) for array in rounded]
    run, definition = (
        ours(name, mask, False, kept=kept, dropout=0.2),
        functools.partial(by_definition, mask=mask, kept=kept, rate=0.2),
    )
    exact = values_and_gradients(definition, *wide)
    theirs = values_and_gradients(definition, *rounded)
    with pltpu.force_tpu_interpret_mode():
        found = values_and_gradients(run, *rounded)
        precise = values_and_gradients(run, *wide)
    for array, other, in_bfloat16, expected in zip(precise, theirs, found, exact, strict=True):
        assert_close(array, expected, 2e-6)
        errors = [np.abs(np.float32(x) - expected).mean() for x in (in_bfloat16, other)]
        assert errors[0] <= 1.2 * errors[1]


def test_a_network_drops_weights_as_its_own_layer_would():
    """Of the random numbers that nnx.Dropout draws."""
    dropout = Dropout(0.3)
    dropout.deterministic = False
    drawn = dropout(jnp.ones((2, 3, 5, 7)), rngs=nnx.Rngs(4))
    np.testing.assert_array_equal(dropout.draw((2, 3, 5, 7), nnx.Rngs(4)), drawn != 0)
    assert dropout.draw((2, 3, 5, 7), None) is None
    dropout.deterministic = True
    assert dropout.draw((2, 3, 5, 7), nnx.Rngs(4)) is None


# --- Which one a call gets --------------------------------------------------------------------------------------------


def shape(tokens: int, heads: int = 12, width: int = 64, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, tokens, heads, width), dtype)


BY_KEY, WHOLE = (jax.ShapeDtypeStruct(shape, jnp.bool_) for shape in ((2, 1, 1, 256), (2, 1, 256, 256)))


@pytest.mark.parametrize(
    ("platform", "query", "mask", "chosen"),
    [
        ("cpu", shape(485), None, "xla"),
        ("tpu", shape(485), None, "pallas"),
        ("tpu", shape(256), BY_KEY, "pallas"),
        ("tpu", shape(256), WHOLE, "xla"),
        ("tpu", shape(485, heads=4, width=16), None, "pallas"),  # CLIPSeg's decoder
        ("tpu", shape(485, heads=6, width=24), None, "xla"),
        ("tpu", shape(485, dtype=jnp.float32), None, "xla"),
        ("tpu", shape(77), None, "xla"),
        ("tpu", shape(MOST_TOKENS + 1), None, "xla"),
        ("gpu", shape(485), None, "cudnn"),
        ("gpu", shape(256), BY_KEY, "cudnn"),
        ("gpu", shape(485), BY_KEY, "xla"),  # odd, with a mask
        ("gpu", shape(576), None, "xla"),  # 64 modulo 128
        ("gpu", shape(485, dtype=jnp.float32), None, "xla"),
    ],
)
def test_a_call_gets_its_platforms_kernel_where_that_can_serve(monkeypatch, mesh_of, platform, query, mask, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with jax.sharding.use_abstract_mesh(mesh_of(8).abstract_mesh):
        assert choose("auto", query, query, mask) == chosen
        assert choose("xla", query, query, mask) == "xla"
        dropping = choose("auto", query, query, mask, has_dropout=True)
        assert dropping == ("xla" if chosen == "cudnn" else chosen)  # cuDNN draws what it drops itself


def test_a_kernel_of_several_devices_needs_to_know_the_mesh(mesh_of):
    assert choose("pallas", shape(485), shape(485)) == "xla"
    with jax.sharding.use_abstract_mesh(mesh_of(8).abstract_mesh):
        assert choose("pallas", shape(485), shape(485)) == "pallas"


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_in_float32_its_output_is_jaxs_bit_for_bit(masked, is_causal):
    """And its gradient within 1e-6 of the largest value."""
    arrays, mask = inputs(2, 129, 131, 2, 32, masked=masked)
    found, *gradients = values_and_gradients(ours("auto", mask, is_causal), *arrays)
    expected, *theirs = values_and_gradients(jaxs(mask, is_causal), *arrays)
    alone = jax.jit(ours("auto", mask, is_causal))(*arrays[:3])  # without a gradient
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(alone, expected)
    for ours_, theirs_ in zip(gradients, theirs, strict=True):
        assert_close(ours_, theirs_, 1e-6)


def test_each_device_works_on_its_rows(mesh_of):
    """Nothing of the inputs is gathered."""
    mesh = mesh_of(4, 2)
    arrays, mask = inputs(8, 129, 129, 2, 64, masked=True)
    by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    query, key, value, gradient = (jax.device_put(x.astype(jnp.bfloat16), by_rows) for x in arrays)

    @jax.jit
    def both(query, key, value, mask, gradient):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            run = functools.partial(attend, mask=mask, implementation="pallas")
            out, pull = jax.vjp(run, query, key, value)
            return out, *pull(gradient)

    with pltpu.force_tpu_interpret_mode():
        mask = jax.device_put(mask, by_rows)
        assert "all-gather" not in both.lower(query, key, value, mask, gradient).compile().as_text()
        found = both(query, key, value, mask, gradient)
        one = [jnp.asarray(np.asarray(x)) for x in (mask, query, key, value, gradient)]
        alone = values_and_gradients(ours("pallas", one[0], False), *one[1:])
    for array, expected in zip(found, alone, strict=True):
        assert array.sharding.is_equivalent_to(by_rows, array.ndim)
        np.testing.assert_array_equal(np.float32(array), np.float32(expected))


def test_another_implementation_and_one_of_another_platform_are_refused():
    with pytest.raises(UserError, match=r"config\.attention='flash': choose auto, xla, pallas, cudnn"):
        create_model("clipseg_tiny", rngs=nnx.Rngs(0), attention="flash")
    with pytest.raises(UserError, match=r"config\.attention=cudnn needs a gpu, but jax runs on cpu: choose auto"):
        check_device_has("cudnn")
    check_device_has("auto")
