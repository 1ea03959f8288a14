"""Initial values are drawn by flax's keys, without flax's detour while jax traces."""

import jax
import numpy as np
from flax import nnx

from medvlsm_jax.models.randomness import initial_rngs

KEY = jax.random.key(7)


def drawn(rngs: nnx.Rngs) -> list[np.ndarray]:
    """Key data of three keys, one of them of a stream that has no name of its own."""
    return [np.asarray(jax.random.key_data(key)) for key in (rngs.params(), rngs(), rngs.dropout())]


def test_keys_are_flaxs():
    np.testing.assert_array_equal(drawn(initial_rngs(KEY)), drawn(nnx.Rngs(7)))
    assert len({key.tobytes() for key in drawn(initial_rngs(KEY))}) == 3


def test_no_traced_count_is_asked_for_its_sharding(monkeypatch):
    """Jax would word an error out of all that was traced before: hundreds of times in a network."""
    tracers, asked = [], []
    jax.eval_shape(lambda x: tracers.append(type(x)) or x, 0.0)
    monkeypatch.setattr(tracers[0], "sharding", property(asked.append))
    for make, is_asked in ((initial_rngs, False), (nnx.Rngs, True)):
        jax.eval_shape(lambda make=make: nnx.Linear(2, 2, rngs=make(KEY)).kernel[...])
        assert bool(asked) == is_asked
