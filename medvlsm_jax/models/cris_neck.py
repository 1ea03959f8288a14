"""CRIS's neck: three image features and the sentence's state, fused at stride 16."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medvlsm_jax.models.layers import ConvNorm, Linear, resize
from medvlsm_jax.models.normalization import BatchNorm
from medvlsm_jax.models.resnet import average_pool

Features = tuple[Float[Array, "b h3 w3 d3"], Float[Array, "b h4 w4 d4"], Float[Array, "b h5 w5 d5"]]


def upsample(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 d"]:
    """Twice the size, bilinear."""
    return resize(x, (2 * x.shape[1], 2 * x.shape[2]), "bilinear")


def add_coordinates(x: Float[Array, "b h w d"]) -> Float[Array, "b h w d+2"]:
    """Two more channels: x and y from -1 to 1 (CoordConv, Liu et al. 2018, arXiv 1807.03247)."""
    batch, height, width, _ = x.shape
    columns, rows = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    coordinates = jnp.asarray(np.stack([columns, rows], axis=-1), x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(coordinates, (batch, height, width, 2))], axis=-1)


class Neck(nnx.Module):
    """A feature pyramid whose deepest level the sentence gates; 3, 4, 5 are the levels at strides 8, 16, 32."""

    def __init__(
        self,
        d_in: tuple[int, int, int],
        d_out: tuple[int, int, int],
        state_dim: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def conv(d_in: int, d_out: int, kernel_size: int) -> ConvNorm:
            return ConvNorm(d_in, d_out, kernel_size, dtype=dtype, rngs=rngs)

        (in3, in4, in5), (d3, d4, d5) = d_in, d_out
        self.state = Linear(state_dim, d5, use_bias=False, dtype=dtype, rngs=rngs)
        self.state_norm = BatchNorm(d5, dtype=dtype)
        self.reduce5 = conv(in5, d5, 1)
        self.reduce4 = conv(in4, d4, 3)
        self.reduce3 = conv(in3, d3, 3)
        self.fuse5_norm = BatchNorm(d5, dtype=dtype)
        self.fuse4 = conv(d5 + d4, d4, 1)
        self.fuse3 = conv(d4 + d3, d4, 1)
        self.project5 = conv(d5, d4, 3)
        self.project4 = conv(d4, d4, 3)
        self.project3 = conv(d4, d4, 3)
        self.aggregate = conv(3 * d4, d4, 1)
        self.coord_conv = conv(d4 + 2, d4, 3)
        self.conv = conv(d4, d4, 3)

    def __call__(self, features: Features, state: Float[Array, "b state"]) -> Float[Array, "b h4 w4 d"]:
        """`features` are at strides 8, 16 and 32; the result is at 16."""
        v3, v4, v5 = features
        gate = jax.nn.relu(self.state_norm(self.state(state)))[:, None, None]
        f5 = jax.nn.relu(self.fuse5_norm(self.reduce5(v5) * gate))
        f4 = self.fuse4(jnp.concatenate([self.reduce4(v4), upsample(f5)], axis=-1))
        f3 = self.fuse3(jnp.concatenate([average_pool(self.reduce3(v3)), f4], axis=-1))
        levels = [self.project3(f3), self.project4(f4), upsample(self.project5(f5))]
        x = self.aggregate(jnp.concatenate(levels, axis=-1))
        return self.conv(self.coord_conv(add_coordinates(x)))
