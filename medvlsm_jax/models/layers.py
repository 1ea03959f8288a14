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

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.attention import attend
from medvlsm_jax.models.normalization import BatchNorm, LayerNorm

AnyArray = Array | np.ndarray  # what users may pass: it becomes a jax.Array at the door
Activation = Literal["gelu", "quick_gelu", "relu"]
Method = Literal["bilinear", "bicubic"]
Rngs = nnx.Rngs | None  # of dropout

# What a rematerialised block keeps for its gradient besides its input; the rest is computed a second time.
KEPT: dict[str, Callable[..., Any]] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # of dense layers, not attention scores
    "full": jax.checkpoint_policies.nothing_saveable,
}
REMAT_POLICIES = ("none", *KEPT)


def check_remat(policy: str) -> None:
    """Raises a UserError when there is no such policy."""
    if policy not in REMAT_POLICIES:
        raise UserError(f"config.remat={policy!r}: choose {', '.join(REMAT_POLICIES)}")


embedding_init = nnx.initializers.normal(0.02)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """X * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


def rematerialized(run: Callable[..., Array], policy: str) -> Callable[..., Array]:
    """Trades time for memory in the gradient of a block; its values and its gradient stay the same.

    Memory is saved on accelerators alone: XLA's CPU backend orders the operations without regard to it.

    Args:
        run: of a block, its input, and the random numbers if it draws any. What it changes (running statistics, the
            count of random numbers) it must be given: they cannot come from outside, as options and masks can.
        policy: one of REMAT_POLICIES; "none" leaves `run` as it is.
    """
    return run if policy == "none" else nnx.remat(run, policy=KEPT[policy])


class Linear(nnx.Linear):
    """A dense layer over the last axis, computed as one two-axis matrix product."""

    def __call__(self, inputs: Float[Array, "*axes d_in"], out_sharding: Any = None) -> Float[Array, "*axes d_out"]:
        flat = inputs.reshape(-1, inputs.shape[-1])
        if self.dtype == jnp.bfloat16:
            flat = dense(flat.astype(self.dtype), self.kernel[...], None if self.bias is None else self.bias[...])
        else:
            flat = super().__call__(flat, out_sharding)
        return flat.reshape(*inputs.shape[:-1], self.out_features)


@jax.custom_vjp
def dense(
    x: Float[Array, "rows d_in"], kernel: Float[Array, "d_in d_out"], bias: Float[Array, " d_out"] | None
) -> Float[Array, "rows d_out"]:
    """A product in the type of `x` whose float32 parameters get float32 gradients.

    The gradients of kernel and bias are sums over rows, which lie on many chips. Left to itself, jax rounds each chip's
    sum to bfloat16 before they are added up; here they are added up in float32, as the parts of a batch are
    (`config.accumulation`), at twice the bytes on the wire.
    """
    y = x @ kernel.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)


def dense_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, Array, bool]]:
    """The product, and what its gradient needs."""
    return dense(x, kernel, bias), (x, kernel, bias is None)


def dense_backward(kept: tuple[Array, Array, bool], gradient: Array) -> tuple[Array, Array, Array | None]:
    """The gradients of input, kernel and bias."""
    x, kernel, has_no_bias = kept
    of_kernel = jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype)
    of_bias = None if has_no_bias else gradient.astype(kernel.dtype).sum(0)
    return gradient @ kernel.astype(gradient.dtype).T, of_kernel, of_bias


dense.defvjp(dense_forward, dense_backward)


class Dropout(nnx.Dropout):
    """Drops activations in training mode, where the caller gives it random numbers; the model keeps none."""

    def __init__(self, rate: float):
        super().__init__(rate, deterministic=True)

    def __call__(self, inputs: Float[Array, "..."], *, rngs: Any = None, **_: Any) -> Float[Array, "..."]:
        return inputs if rngs is None else super().__call__(inputs, rngs=rngs)

    def draw(self, shape: tuple[int, ...], rngs: Rngs) -> Bool[Array, "..."] | None:
        """True where it would keep an activation of an array of that shape; None where it drops nothing."""
        if rngs is None or self.deterministic or self.rate == 0:
            return None
        return jax.random.bernoulli(rngs.dropout(), 1 - self.rate, shape)


class Attention(nnx.Module):
    """Multi-head attention with separate query, key and value projections; dropout acts on the attention weights."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        out_width: int | None = None,
        dropout: float = 0.0,
        attention: str = "auto",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.implementation = attention
        self.query = Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width if out_width is None else out_width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        query: Float[Array, "b t d"],
        key: Float[Array, "b s d"] | None = None,
        value: Float[Array, "b s d"] | None = None,
        *,
        mask: Bool[Array, "b 1 #t s"] | None = None,
        is_causal: bool = False,
        rngs: Rngs = None,
    ) -> Float[Array, "b t d_out"]:
        """Keys are the queries and values the keys unless they are given; `mask` is true where a key may be read."""
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.heads, -1)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        kept = self.dropout.draw((q.shape[0], self.heads, q.shape[1], k.shape[1]), rngs)
        how = {"kept": kept, "dropout": self.dropout.rate, "implementation": self.implementation}
        attended = attend(q, k, v, mask=mask, is_causal=is_causal, **how)
        return self.out(attended.reshape(query.shape))


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
        dropout: float = 0.0,
        attention: str = "auto",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.attention = Attention(width, heads, dropout=dropout, attention=attention, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(width, epsilon, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, mlp_width, activation, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(width, epsilon, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.norm_first = norm_first

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "b 1 #t t"] | None = None,
        *,
        is_causal: bool = False,
        rngs: Rngs = None,
    ) -> Float[Array, "b t d"]:
        def attend(x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
            return self.dropout(self.attention(x, mask=mask, is_causal=is_causal, rngs=rngs), rngs=rngs)

        def feed_forward(x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
            return self.dropout(self.mlp(x), rngs=rngs)

        if self.norm_first:
            x = x + attend(self.attention_norm(x))
            return x + feed_forward(self.mlp_norm(x))
        x = self.attention_norm(x + attend(x))
        return self.mlp_norm(x + feed_forward(x))


class Conv(nnx.Conv):
    """A convolution with PyTorch's symmetric padding, which keeps the size at stride 1; 1x1 is a matrix product."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            d_in,
            d_out,
            (kernel_size, kernel_size),
            strides=stride,
            padding=dilation * (kernel_size // 2),
            kernel_dilation=dilation,
            use_bias=use_bias,
            kernel_init=nnx.initializers.he_normal(),
            dtype=dtype,
            rngs=rngs,
        )
        self.is_pointwise = kernel_size == stride == 1

    def __call__(self, inputs: Float[Array, "b h w d_in"], out_sharding: Any = None) -> Float[Array, "b h2 w2 d_out"]:
        if not self.is_pointwise:
            return super().__call__(inputs, out_sharding)
        dtype = self.dtype or inputs.dtype
        if dtype == jnp.bfloat16:
            flat = inputs.astype(dtype).reshape(-1, inputs.shape[-1])
            flat = dense(flat, self.kernel[0, 0], None if self.bias is None else self.bias[...])
            return flat.reshape(*inputs.shape[:-1], self.out_features)
        flat = inputs.astype(dtype).reshape(-1, inputs.shape[-1]) @ self.kernel[0, 0].astype(dtype)
        if self.bias is not None:
            flat += self.bias.astype(dtype)
        return flat.reshape(*inputs.shape[:-1], self.out_features)


class ConvNorm(nnx.Module):
    """A convolution without bias, BatchNorm and, unless it is switched off, ReLU."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        has_relu: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(d_in, d_out, kernel_size, stride=stride, dilation=dilation, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(d_out, dtype=dtype)
        self.has_relu = has_relu

    def __call__(self, x: Float[Array, "b h w d_in"]) -> Float[Array, "b h2 w2 d_out"]:
        x = self.norm(self.conv(x))
        return jax.nn.relu(x) if self.has_relu else x


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
        patches = image.astype(self.dtype).reshape(batch, rows, patch, columns, patch * channels)
        patches = patches.swapaxes(2, 3).reshape(batch * rows * columns, -1)
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
    """Resizes as `torch.nn.functional.interpolate(..., antialias=False)` does, in the dtype of `x`.

    Accelerators would round a float32 product to fewer bits: here it is exact, for positions and logits pass through.
    """
    rows = interpolation_matrix(x.shape[1], size[0], method, align_corners).astype(x.dtype)
    columns = interpolation_matrix(x.shape[2], size[1], method, align_corners).astype(x.dtype)
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns, precision="highest")


def normalize_pixels(
    image: UInt8[AnyArray, "b h w 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Array, "b h w 3"]:
    """uint8 (B, H, W, 3) in 0..255 to float32 with per-channel mean and standard deviation given in 0..1."""
    return (jnp.asarray(image).astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)
