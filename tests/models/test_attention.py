"""Attention: what each implementation gives against float32, and which one a call gets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.attention import attend, check_attention, choose
from medvlsm_jax.models.pallas_attention import MOST_TOKENS, pallas_attention


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


def ours(name: str, mask, is_causal: bool):
    if name == "pallas":
        return lambda query, key, value: pallas_attention(query, key, value, mask, is_causal)
    return functools.partial(attend, mask=mask, is_causal=is_causal, implementation=name)


@pytest.mark.parametrize("name", ["xla", "pallas"])
@pytest.mark.parametrize(("masked", "is_causal"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("tokens", [129, 197])
def test_in_bfloat16_errors_are_those_of_jaxs_own(name, tokens, masked, is_causal):
    """Of output and gradients against float32 on the same rounded inputs, by mean and by largest difference."""
    arrays, mask = inputs(4, tokens, tokens, 4, 64, masked=masked)
    rounded = [array.astype(jnp.bfloat16) for array in arrays]
    exact = values_and_gradients(jaxs(mask, is_causal), *(array.astype(jnp.float32) for array in rounded))

    def errors(run) -> np.ndarray:
        found = values_and_gradients(run, *rounded)
        differences = [np.abs(np.float32(a) - b) for a, b in zip(found, exact, strict=True)]
        return np.array([[x.mean(), x.max() / np.abs(b).max()] for x, b in zip(differences, exact, strict=True)])

    theirs = errors(jaxs(mask, is_causal))
    with pltpu.force_tpu_interpret_mode():
        found = errors(ours(name, mask, is_causal))
    assert np.isfinite(found).all()
    # Plain XLA keeps exponentials of two bytes for its gradient: one rounding more there, up to 1.23 times the error.
    assert (found[:, 0] <= (1.25 if name == "xla" else 1.2) * theirs[:, 0]).all()
    assert (found[:, 1] < 2**-7).all()  # a single difference, which is rounded one way or the other


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


def test_a_kernel_of_several_devices_needs_to_know_the_mesh(mesh_of):
    assert choose("pallas", shape(485), shape(485)) == "xla"
    with jax.sharding.use_abstract_mesh(mesh_of(8).abstract_mesh):
        assert choose("pallas", shape(485), shape(485)) == "pallas"


def test_in_float32_it_is_jaxs_bit_for_bit():
    arrays, mask = inputs(2, 129, 129, 2, 32, masked=True)
    for found, expected in zip(
        values_and_gradients(ours("auto", mask, True), *arrays),
        values_and_gradients(jaxs(mask, True), *arrays),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


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
        check_attention("flash")
    with pytest.raises(UserError, match=r"config\.attention=cudnn needs a gpu, but jax runs on cpu: choose auto"):
        check_attention("cudnn")
    check_attention("auto")
