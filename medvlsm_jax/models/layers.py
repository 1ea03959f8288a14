"""Building blocks that all networks share, with PyTorch's numerics where pretrained weights depend on them.

Matrix products run on two-axis operands: XLA's CPU backend is up to twice as slow on the gradients of
(B, T, D) @ (D, F), and on accelerators the reshape is free because only the leading axis is ever sharded.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

AnyArray = Array | np.ndarray  # what users may pass: it becomes a jax.Array at the door
Activation = Literal["gelu", "quick_gelu", "relu"]
Method = Literal["bilinear", "bicubic"]

embedding_init = nnx.initializers.normal(0.02)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """X * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


class Linear(nnx.Linear):
    """A dense layer over the last axis, computed as one two-axis matrix product."""

    def __call__(self, inputs: Float[Array, "*axes d_in"], out_sharding: Any = None) -> Float[Array, "*axes d_out"]:
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return flat.reshape(*inputs.shape[:-1], self.out_features)


def layer_norm(width: int, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's two-pass variance; statistics are taken in float32 whatever `dtype` is."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.query = Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 #t t"] | None = None, *, is_causal: bool = False
    ) -> Float[Array, "b t d"]:
        batch, tokens, width = x.shape
        split = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (layer(x).reshape(split) for layer in (self.query, self.key, self.value))
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal)
        return self.out(attended.reshape(x.shape))


class MLP(nnx.Module):
    """Two dense layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: Activation, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.expand = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.contract(ACTIVATIONS[self.activation](self.expand(x)))


class Block(nnx.Module):
    """A transformer block, its normalisations before attention and MLP (`norm_first`) or after their residuals."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        activation: Activation,
        norm_first: bool = True,
        epsilon: float = 1e-5,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(width, epsilon, dtype, rngs)
        self.mlp = MLP(width, mlp_width, activation, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon, dtype, rngs)
        self.norm_first = norm_first

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 #t t"] | None = None, *, is_causal: bool = False
    ) -> Float[Array, "b t d"]:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask, is_causal=is_causal)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask, is_causal=is_causal))
        return self.mlp_norm(x + self.mlp(x))


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its kernel size, as one matrix product over flattened patches."""

    def __init__(self, patch_size: int, width: int, *, use_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (patch_size, patch_size, 3, width)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width)) if use_bias else None
        self.patch_size = patch_size
        self.dtype = dtype

    def __call__(self, image: Float[Array, "b height width 3"]) -> Float[Array, "b rows columns d"]:
        """Raises ValueError when a side of the image is not a multiple of the patch."""
        batch, height, width, channels = image.shape
        patch = self.patch_size
        if height % patch or width % patch:
            raise ValueError(f"image size {height}x{width} is not a multiple of the patch size {patch}")
        rows, columns = height // patch, width // patch
        patches = image.astype(self.dtype).reshape(batch, rows, patch, columns, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)
        embedded = patches @ self.kernel.astype(self.dtype).reshape(patches.shape[1], -1)
        if self.bias is not None:
            embedded += self.bias.astype(self.dtype)
        return embedded.reshape(batch, rows, columns, -1)


class PatchTransposedConv(nnx.Module):
    """A transposed convolution whose stride is its kernel size: patches do not overlap, so it is one matrix product."""

    def __init__(self, d_in: int, d_out: int, patch_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=0, out_axis=-1)
        self.kernel = nnx.Param(
            init(rngs.params(), (d_in, patch_size * patch_size * d_out)).reshape(d_in, patch_size, patch_size, d_out)
        )
        self.bias = nnx.Param(jnp.zeros(d_out))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b rows columns d_in"]) -> Float[Array, "b height width d_out"]:
        batch, rows, columns, d_in = x.shape
        _, patch, _, d_out = self.kernel.shape
        pixels = x.astype(self.dtype).reshape(-1, d_in) @ self.kernel.astype(self.dtype).reshape(d_in, -1)
        pixels = pixels.reshape(batch, rows, columns, patch, patch, d_out).transpose(0, 1, 3, 2, 4, 5)
        return pixels.reshape(batch, rows * patch, columns * patch, d_out) + self.bias.astype(self.dtype)


def cubic_weights(fraction: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Weights of the four taps around each point (Keys 1981); PyTorch uses a = -0.75, jax.image a = -0.5."""

    def near(x: np.ndarray) -> np.ndarray:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return np.stack([far(1 + fraction), near(fraction), near(1 - fraction), far(2 - fraction)], axis=-1)


@functools.lru_cache(maxsize=256)
def interpolation_matrix(size_in: int, size_out: int, method: Method, align_corners: bool) -> np.ndarray:
    """The (size_out, size_in) matrix of `torch.nn.functional.interpolate` along one axis, without antialiasing."""
    position = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = position * (size_in - 1) / max(size_out - 1, 1)
    else:
        position = (position + 0.5) * size_in / size_out - 0.5
    if method == "bilinear":
        position = np.maximum(position, 0)
        first = np.floor(position).astype(int)
        weights = np.stack([1 - (position - first), position - first], axis=-1)
    else:
        first = np.floor(position).astype(int)
        weights = cubic_weights(position - first)
        first = first - 1
    taps = np.clip(first[:, None] + np.arange(weights.shape[1]), 0, size_in - 1)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], taps), weights)
    return matrix.astype(np.float32)


def resize(
    x: Float[Array, "b h w c"], size: tuple[int, int], method: Method, *, align_corners: bool = False
) -> Float[Array, "b height width c"]:
    """Resizes as `torch.nn.functional.interpolate(..., antialias=False)` does, in the dtype of `x`."""
    rows = interpolation_matrix(x.shape[1], size[0], method, align_corners).astype(x.dtype)
    columns = interpolation_matrix(x.shape[2], size[1], method, align_corners).astype(x.dtype)
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns)


def normalize_pixels(
    image: UInt8[AnyArray, "b h w 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Array, "b h w 3"]:
    """uint8 (B, H, W, 3) in 0..255 to float32 with per-channel mean and standard deviation given in 0..1."""
    return (jnp.asarray(image).astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)
