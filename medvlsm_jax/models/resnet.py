"""Residual networks (He et al. 2016, arXiv 1512.03385): torchvision's (v1.5, stride in the 3x3) and CLIP's variant.

CLIP's (Radford et al. 2021, arXiv 2103.00020) has three convolutions in its stem, average pools in place of strides,
and average pooling in place of max pooling.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medvlsm_jax.models.layers import ConvNorm, rematerialized

EXPANSION = 4  # a stage's output channels over its inner width


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a bottleneck ResNet; the defaults are ResNet-50's."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)  # blocks of each stage
    width: int = 64  # inner width of the first stage; doubles from stage to stage

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Output channels of the four stages, at strides 4, 8, 16 and 32."""
        first = EXPANSION * self.width
        return first, 2 * first, 4 * first, 8 * first


def average_pool(x: Float[Array, "b h w d"], size: int = 2) -> Float[Array, "b h2 w2 d"]:
    """Means of size x size squares that do not overlap; a rest at the edge is dropped."""
    return nnx.avg_pool(x, (size, size), strides=(size, size))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions around a residual; `is_pooled` averages where torchvision strides."""

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        stride: int,
        dilation: int = 1,
        is_pooled: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        d_out = EXPANSION * width
        conv_stride = 1 if is_pooled else stride
        self.pool = stride if is_pooled else 1
        self.conv1 = ConvNorm(d_in, width, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(width, width, 3, stride=conv_stride, dilation=dilation, dtype=dtype, rngs=rngs)
        self.conv3 = ConvNorm(width, d_out, has_relu=False, dtype=dtype, rngs=rngs)
        has_shortcut = stride != 1 or d_in != d_out
        self.shortcut = (
            ConvNorm(d_in, d_out, stride=conv_stride, has_relu=False, dtype=dtype, rngs=rngs) if has_shortcut else None
        )

    def __call__(self, x: Float[Array, "b h w d_in"]) -> Float[Array, "b h2 w2 d_out"]:
        def pooled(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 d"]:
            return average_pool(x, self.pool) if self.pool > 1 else x

        residual = x if self.shortcut is None else self.shortcut(pooled(x))
        return jax.nn.relu(self.conv3(pooled(self.conv2(self.conv1(x)))) + residual)


def make_stages(
    config: ResNetConfig,
    d_in: int,
    *,
    is_pooled: bool = False,
    output_stride: int = 32,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> list[list[Bottleneck]]:
    """The four stages; an output stride of 16 or 8 dilates the last stages in place of striding."""
    stages, stride_so_far, dilation = [], 4, 1
    for i, depth in enumerate(config.layers):
        stride = 1 if i == 0 else 2
        if stride_so_far * stride > output_stride:
            stride, dilation = 1, 2 * dilation
        stride_so_far *= stride
        blocks = []
        for j in range(depth):
            width = config.width * 2**i
            first = stride if j == 0 else 1
            block = Bottleneck(
                d_in, width, stride=first, dilation=dilation, is_pooled=is_pooled, dtype=dtype, rngs=rngs
            )
            blocks.append(block)
            d_in = EXPANSION * width
        stages.append(blocks)
    return stages


def run_stages(
    stages: Iterable[Iterable[Bottleneck]], x: Float[Array, "b h w d"], remat: str
) -> list[Float[Array, "b h2 w2 d2"]]:
    """The output of every stage."""
    run = rematerialized(lambda block, x: block(x), remat)
    outputs = []
    for blocks in stages:
        for block in blocks:
            x = run(block, x)
        outputs.append(x)
    return outputs


class ResNet(nnx.Module):
    """Torchvision's ResNet without its classifier."""

    def __init__(
        self,
        config: ResNetConfig,
        *,
        output_stride: int = 32,
        remat: str = "none",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.stem = ConvNorm(3, config.width, 7, stride=2, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            nnx.List(blocks)
            for blocks in make_stages(config, config.width, output_stride=output_stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, pixel_values: Float[Array, "b height width 3"]) -> list[Float[Array, "b h w d"]]:
        """Features of the stem (stride 2, before its max pooling) and of the four stages."""
        stem = self.stem(pixel_values)
        pooled = nnx.max_pool(stem, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]
        return [stem, *run_stages(self.stages, pooled, self.remat)]


class CLIPResNet(nnx.Module):
    """CLIP's ResNet up to its last stage; what pools or maps its output is the caller's."""

    def __init__(self, config: ResNetConfig, *, remat: str = "none", dtype: jnp.dtype, rngs: nnx.Rngs):
        self.remat = remat
        half = config.width // 2
        self.stem = nnx.List(
            [
                ConvNorm(3, half, 3, stride=2, dtype=dtype, rngs=rngs),
                ConvNorm(half, half, 3, dtype=dtype, rngs=rngs),
                ConvNorm(half, config.width, 3, dtype=dtype, rngs=rngs),
            ]
        )
        self.stages = nnx.List(
            nnx.List(blocks) for blocks in make_stages(config, config.width, is_pooled=True, dtype=dtype, rngs=rngs)
        )

    def __call__(self, pixel_values: Float[Array, "b height width 3"]) -> list[Float[Array, "b h w d"]]:
        """Features of the four stages, at strides 4, 8, 16 and 32."""
        x = pixel_values
        for conv in self.stem:
            x = conv(x)
        return run_stages(self.stages, average_pool(x), self.remat)
