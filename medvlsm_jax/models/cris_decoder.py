"""CRIS's decoder, in which image tokens read the sentence, and its projector, whose last kernel the sentence writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from medvlsm_jax.models.cris_neck import upsample
from medvlsm_jax.models.layers import Attention, Conv, ConvNorm, Dropout, Linear, Rngs
from medvlsm_jax.models.normalization import LayerNorm

KERNEL = 3  # side of the convolution that the sentence writes


@functools.lru_cache(maxsize=16)
def sine_positions(length: int, width: int) -> np.ndarray:
    """(length, width) sines in the even, cosines in the odd channels (Vaswani et al. 2017, arXiv 1706.03762)."""
    frequency = np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
    angle = np.arange(length)[:, None] * frequency
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width).astype(np.float32)


@functools.lru_cache(maxsize=16)
def grid_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """(rows * columns, width): sines of the column in the first half of the channels, of the row in the second."""
    shape = (rows, columns, width // 2)
    x = np.broadcast_to(sine_positions(columns, width // 2), shape)
    y = np.broadcast_to(sine_positions(rows, width // 2)[:, None], shape)
    return np.concatenate([x, y], axis=-1).reshape(rows * columns, width)


class NormalizedMLP(nnx.Module):
    """Two dense layers; ReLU, dropout and LayerNorm between."""

    def __init__(self, width: int, hidden: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.expand = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.norm = LayerNorm(hidden, 1e-5, dtype=dtype, rngs=rngs)
        self.contract = Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], *, rngs: Rngs = None) -> Float[Array, "b t d"]:
        return self.contract(self.norm(self.dropout(jax.nn.relu(self.expand(x)), rngs=rngs)))


class DecoderLayer(nnx.Module):
    """Image tokens attend to each other and to the sentence; LayerNorms stand before and after each attention."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        dropout: float,
        attention: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def norm() -> LayerNorm:
            return LayerNorm(width, 1e-5, dtype=dtype, rngs=rngs)

        self.self_norm, self.self_out_norm = norm(), norm()
        self.self_attention = Attention(width, heads, dropout=dropout, attention=attention, dtype=dtype, rngs=rngs)
        self.cross_norm, self.cross_out_norm = norm(), norm()
        self.cross_attention = Attention(width, heads, dropout=dropout, attention=attention, dtype=dtype, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = NormalizedMLP(width, mlp_width, dropout=dropout, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Float[Array, "t d"],
        tokens: Float[Array, "b s d"],
        token_positions: Float[Array, "s d"],
        mask: Bool[Array, "b 1 1 s"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b t d"]:
        """Positions are added to queries and keys, not to values; `mask` is true where a token may be read."""
        normed = self.self_norm(x)
        attended = self.self_attention(normed + positions, value=normed, rngs=rngs)
        x = x + self.dropout(self.self_out_norm(attended), rngs=rngs)
        query = self.cross_norm(x) + positions
        attended = self.cross_attention(query, tokens + token_positions, tokens, mask=mask, rngs=rngs)
        x = x + self.dropout(self.cross_out_norm(attended), rngs=rngs)
        return x + self.dropout(self.mlp(self.mlp_norm(x), rngs=rngs), rngs=rngs)


class Decoder(nnx.Module):
    """A stack of layers over the pixels of a map and the tokens of a sentence."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        depth: int,
        *,
        dropout: float,
        attention: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            DecoderLayer(width, heads, mlp_width, dropout=dropout, attention=attention, dtype=dtype, rngs=rngs)
            for _ in range(depth)
        )
        self.norm = LayerNorm(width, 1e-5, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b h w d"],
        tokens: Float[Array, "b s d"],
        mask: Bool[Array, "b 1 1 s"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b h w d"]:
        _, rows, columns, width = image.shape
        positions = jnp.asarray(grid_positions(rows, columns, width), image.dtype)
        token_positions = jnp.asarray(sine_positions(tokens.shape[1], width), tokens.dtype)
        x = image.reshape(-1, rows * columns, width)
        for layer in self.layers:
            x = layer(x, positions, tokens, token_positions, mask, rngs=rngs)
        return self.norm(x).reshape(image.shape)


def convolve_each(
    x: Float[Array, "b h w d"], kernel: Float[Array, "b d taps"], bias: Float[Array, " b"]
) -> Float[Array, "b h w 1"]:
    """A square convolution to one channel, with a kernel for each image.

    Products come before shifts: one matrix product an image gives a map for each tap, and it is these maps of one
    channel that are shifted and added. Sums are float32.
    """
    side = round(kernel.shape[-1] ** 0.5)
    height, width = x.shape[1:3]
    taps = jnp.einsum("bhwd,bdk->bhwk", x, kernel, preferred_element_type=jnp.float32)
    padded = jnp.pad(taps, ((0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width, i * side + j, None] for i in range(side) for j in range(side)]
    return sum(shifted, start=bias.astype(jnp.float32)[:, None, None, None])


class Projector(nnx.Module):
    """Four times the size, then a 3x3 convolution to one channel whose kernel and bias are read from the sentence."""

    def __init__(self, state_dim: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(width, width, 3, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(width, width // 2, 3, dtype=dtype, rngs=rngs)
        self.out = Conv(width // 2, width // 2, use_bias=True, dtype=dtype, rngs=rngs)
        fan_in = width // 2 * KERNEL**2  # of the convolution: its outputs start near 1, whatever its size
        init = nnx.initializers.variance_scaling(1 / fan_in, "fan_in", "normal")
        self.kernel = Linear(state_dim, fan_in + 1, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"], state: Float[Array, "b state"]) -> Float[Array, "b h2 w2 1"]:
        x = self.out(self.conv2(upsample(self.conv1(upsample(x)))))
        generated = self.kernel(state)
        return convolve_each(x, generated[:, :-1].reshape(x.shape[0], -1, KERNEL**2), generated[:, -1])
