"""The random numbers of a network's initial values."""

from typing import Any

import jax
from flax import nnx


class Stream(nnx.RngStream):
    """The keys of flax's own stream, which counts in a way that is slow while jax traces.

    `count[...] += 1` compares shardings. A traced array has none, and jax words an error about that, to be caught, out
    of all that was traced before: in a network of CLIPSeg's size more than half of the time that tracing takes.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def initial_rngs(key: jax.Array) -> nnx.Rngs:
    """What `nnx.Rngs(key)` is, quicker where it is called while jax traces."""
    rngs: Any = nnx.Rngs(key)
    rngs.default = Stream(key, tag="default")
    return rngs
