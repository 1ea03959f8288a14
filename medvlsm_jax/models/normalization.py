"""Normalisation of layers and of batches, with PyTorch's numerics and statistics in float32."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.LayerNorm):
    """Normalisation of each token over its last axis (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, width: int, epsilon: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*axes d"], **_: Any) -> Float[Array, "*axes d"]:
        assert self.scale is not None
        assert self.bias is not None
        return normalize(x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: Float[Array, "*axes d"], scale: Float[Array, " d"], bias: Float[Array, " d"], epsilon: float
) -> Float[Array, "*axes d"]:
    """The normalised input in its type, by the variance about the mean, which takes a second look at the input.

    Its gradient keeps the input in its own type, where jax would keep float32 arrays of its size, and gives scale and
    bias float32 gradients (see `layers.dense`).
    """
    return normalize_forward(x, scale, bias, epsilon)[0]


def normalize_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    """The normalised input, and what its gradient needs."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    return ((wide - mean) * (inverse * scale) + bias).astype(x.dtype), (x, mean, inverse, scale)


def normalize_backward(_: float, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    """The gradients of input, scale and bias: that of the input is orthogonal to 1 and to the normalised input."""
    x, mean, inverse, scale = kept
    rows = tuple(range(x.ndim - 1))
    gradient = gradient.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    along = scaled.mean(-1, keepdims=True) + normal * (scaled * normal).mean(-1, keepdims=True)
    return (inverse * (scaled - along)).astype(x.dtype), (gradient * normal).sum(rows), gradient.sum(rows)


normalize.defvjp(normalize_forward, normalize_backward)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's defaults and rules.

    In training mode the statistics are those of the global batch, whatever mesh it is split over, and the running ones
    move towards them: by `momentum` 0.1, and with the unbiased variance, as PyTorch has it (flax takes the biased one).
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, epsilon: float = 1e-5, momentum: float = 0.1):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.epsilon = epsilon
        self.momentum = momentum
        self.dtype = dtype
        self.use_running_average = True  # what nnx's train() and eval() set

    def __call__(self, x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
        wide = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            axes = tuple(range(x.ndim - 1))
            mean = wide.mean(axes)
            var = jnp.square(wide - mean).mean(axes)
            count = x.size // x.shape[-1]
            kept = 1 - self.momentum
            self.mean[...] = kept * self.mean[...] + self.momentum * jax.lax.stop_gradient(mean)
            unbiased = jax.lax.stop_gradient(var) * (count / max(1, count - 1))
            self.var[...] = kept * self.var[...] + self.momentum * unbiased
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        return ((wide - mean) * factor + self.bias[...]).astype(self.dtype)
