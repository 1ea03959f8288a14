"""Image-only networks on a ResNet, number for number as segmentation_models_pytorch 0.6.0 builds them by default.

U-Net (Ronneberger et al. 2015, arXiv 1505.04597), U-Net++ (Zhou et al. 2018, arXiv 1807.10165) and DeepLabV3+ (Chen et
al. 2018, arXiv 1802.02611). A sentence may be given, and is ignored.
"""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medvlsm_jax.models.layers import AnyArray, Conv, ConvNorm, Dropout, Rngs, resize
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.resnet import ResNet, ResNetConfig

LOW_LEVEL = 48  # channels that DeepLabV3+ keeps of the first stage's features
Features = list[Float[Array, "b _ _ _"]]


@dataclasses.dataclass(frozen=True)
class CNNConfig(NetworkConfig):
    """What the image-only networks share."""

    encoder: ResNetConfig = dataclasses.field(default_factory=ResNetConfig)


@dataclasses.dataclass(frozen=True)
class UNetConfig(CNNConfig):
    """What a U-Net is; `decoder_channels` are the widths of its blocks, the deepest first."""

    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)


@dataclasses.dataclass(frozen=True)
class UNetPlusPlusConfig(CNNConfig):
    """What a U-Net++ is; `decoder_channels` are the widths of row 0's blocks, the other rows keep the encoder's."""

    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)


@dataclasses.dataclass(frozen=True)
class DeepLabV3PlusConfig(CNNConfig):
    """What a DeepLabV3+ is."""

    decoder_channels: int = 256
    atrous_rates: tuple[int, int, int] = (12, 24, 36)
    output_stride: int = 16  # of the encoder's last features, 8 or 16: its last stages are dilated in place of strided
    aspp_dropout: float = 0.5


def upsample(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 d"]:
    """Twice the size; every pixel becomes four."""
    b, h, w, d = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, d)).reshape(b, 2 * h, 2 * w, d)


class DecoderBlock(nnx.Module):
    """Doubles the size, joins features of that size from elsewhere, and convolves twice."""

    def __init__(self, d_in: int, d_skip: int, d_out: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(d_in + d_skip, d_out, 3, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(d_out, d_out, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d_in"], *skips: Float[Array, "b h2 w2 _"]) -> Float[Array, "b h2 w2 d"]:
        return self.conv2(self.conv1(jnp.concatenate([upsample(x), *skips], axis=-1)))


class Decoder(nnx.Module):
    """From the encoder's features to those that the logits are made of."""

    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        raise NotImplementedError

    def hidden_states(self, features: Features, *, rngs: Rngs = None) -> dict[str, Float[Array, "b _ _ _"]]:
        """The output of every part, the last one last, for features at strides 2, 4, 8 and so on."""
        raise NotImplementedError

    def __call__(self, features: Features, *, rngs: Rngs = None) -> Float[Array, "b h w d"]:
        *_, last = self.hidden_states(features, rngs=rngs).values()
        return last


class UNetDecoder(Decoder):
    """Five blocks, each with the encoder's features of its size, but the last."""

    def __init__(self, config: UNetConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        deepest, *skips = reversed((config.encoder.width, *config.encoder.channels))
        d_in = (deepest, *config.decoder_channels)
        self.blocks = nnx.List(
            DecoderBlock(d_in[i], d_skip, config.decoder_channels[i], dtype=dtype, rngs=rngs)
            for i, d_skip in enumerate((*skips, 0))
        )

    def hidden_states(self, features: Features, *, rngs: Rngs = None) -> dict[str, Float[Array, "b _ _ _"]]:
        x, *skips = reversed(features)
        states = {}
        for i, block in enumerate(self.blocks):
            x = states[f"{i}"] = block(x, *skips[i : i + 1])
        return states


class UNetPlusPlusDecoder(Decoder):
    """Blocks x_i_j: row i starts at the encoder's level i, the deepest being 0, and x_i_j has the size of level j + 1.

    A block joins what the rows between and the encoder have of its size. The last one, x_0_4, has the image's size and
    nothing to join.
    """

    def __init__(self, config: UNetPlusPlusConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        levels = tuple(reversed((config.encoder.width, *config.encoder.channels)))
        blocks = {}
        for i, j in self.order():
            skip = levels[j + 1]
            d_in = config.decoder_channels[j - 1] if i == 0 < j else levels[j]
            d_out = config.decoder_channels[j] if i == 0 else skip
            blocks[f"x_{i}_{j}"] = DecoderBlock(d_in, (j + 1 - i) * skip, d_out, dtype=dtype, rngs=rngs)
        *_, d_in, d_out = config.decoder_channels
        blocks["x_0_4"] = DecoderBlock(d_in, 0, d_out, dtype=dtype, rngs=rngs)
        self.blocks = nnx.Dict(blocks)

    @staticmethod
    def order() -> list[tuple[int, int]]:
        """The blocks with something to join, each after all that it reads."""
        return [(i, j) for j in range(4) for i in reversed(range(j + 1))]

    def hidden_states(self, features: Features, *, rngs: Rngs = None) -> dict[str, Float[Array, "b _ _ _"]]:
        levels = features[::-1]
        rows = dict(enumerate(levels))  # the newest of every row
        states = {}
        for i, j in self.order():
            joined = [rows[k] for k in range(i + 1, j + 1)]
            rows[i] = states[f"x_{i}_{j}"] = self.blocks[f"x_{i}_{j}"](rows[i], *joined, levels[j + 1])
        return states | {"x_0_4": self.blocks["x_0_4"](rows[0])}


class DepthwiseConv(nnx.Module):
    """A 3x3 convolution of every channel alone, as a float32 sum of nine shifted products.

    XLA's grouped convolution and its gradients take several to hundreds of times as long on CPU.
    """

    def __init__(self, width: int, *, dilation: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (3, 3, 1, width)))
        self.dilation = dilation
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        _, h, w, _ = x.shape
        x = x.astype(jnp.float32)
        total = jnp.zeros_like(x)
        for i, j in itertools.product(range(3), range(3)):
            down, right = (i - 1) * self.dilation, (j - 1) * self.dilation
            if abs(down) < h and abs(right) < w:  # else the kernel's point lies outside the image everywhere
                window = jax.lax.pad(x, 0.0, ((0, 0, 0), (-down, down, 0), (-right, right, 0), (0, 0, 0)))
                total += window * self.kernel[i, j, 0]
        return total.astype(self.dtype)


class SeparableConvNorm(nnx.Module):
    """A 3x3 convolution of every channel alone, then a 1x1 convolution, BatchNorm and ReLU."""

    def __init__(self, d_in: int, d_out: int, *, dilation: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.depthwise = DepthwiseConv(d_in, dilation=dilation, dtype=dtype, rngs=rngs)
        self.pointwise = ConvNorm(d_in, d_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d_in"]) -> Float[Array, "b h w d_out"]:
        return self.pointwise(self.depthwise(x))


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: views of different reach, projected to one."""

    def __init__(self, d_in: int, config: DeepLabV3PlusConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.decoder_channels
        self.local = ConvNorm(d_in, width, dtype=dtype, rngs=rngs)
        self.atrous = nnx.List(
            SeparableConvNorm(d_in, width, dilation=rate, dtype=dtype, rngs=rngs) for rate in config.atrous_rates
        )
        self.pooled = ConvNorm(d_in, width, dtype=dtype, rngs=rngs)
        self.project = ConvNorm((2 + len(config.atrous_rates)) * width, width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(config.aspp_dropout)

    def __call__(self, x: Float[Array, "b h w d_in"], *, rngs: Rngs = None) -> Float[Array, "b h w d"]:
        local = self.local(x)
        pooled = jnp.broadcast_to(self.pooled(x.mean((1, 2), keepdims=True)), local.shape)
        views = [local, *(view(x) for view in self.atrous), pooled]
        return self.dropout(self.project(jnp.concatenate(views, axis=-1)), rngs=rngs)


class DeepLabV3PlusDecoder(Decoder):
    """The pyramid over the encoder's last features, refined by those at stride 4."""

    def __init__(self, config: DeepLabV3PlusConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        low, *_, high = config.encoder.channels
        width = config.decoder_channels
        self.aspp = ASPP(high, config, dtype=dtype, rngs=rngs)
        self.refine = SeparableConvNorm(width, width, dtype=dtype, rngs=rngs)
        self.low_level = ConvNorm(low, LOW_LEVEL, dtype=dtype, rngs=rngs)
        self.fuse = SeparableConvNorm(LOW_LEVEL + width, width, dtype=dtype, rngs=rngs)

    def hidden_states(self, features: Features, *, rngs: Rngs = None) -> dict[str, Float[Array, "b _ _ _"]]:
        aspp = self.aspp(features[-1], rngs=rngs)
        refined = self.refine(aspp)
        low = self.low_level(features[1])
        high = resize(refined, (low.shape[1], low.shape[2]), "bilinear", align_corners=True)
        fused = self.fuse(jnp.concatenate([high, low], axis=-1))
        return {"aspp": aspp, "refine": refined, "low_level": low, "fuse": fused}


def last_width(config: UNetConfig | UNetPlusPlusConfig) -> int:
    """The width at the image's size; raises ValueError when there is not one for each of the five doublings."""
    if len(config.decoder_channels) != 5:
        raise ValueError(
            f"decoder_channels {config.decoder_channels} are not 5 widths, one for each doubling of the size"
        )
    return config.decoder_channels[-1]


class CNN(Network):
    """An image in, one logit a pixel and class out: a ResNet, a decoder of its features, and a convolution."""

    encoder: ClassVar[tuple[str, ...]] = ("resnet",)

    def __init__(
        self,
        config: CNNConfig,
        decoder: type[Decoder],
        width: int,
        *,
        head_kernel: int,
        output_stride: int = 32,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, rngs=rngs)
        dtype = jnp.dtype(config.dtype)
        self.output_stride = output_stride
        self.resnet = ResNet(config.encoder, output_stride=output_stride, remat=config.remat, dtype=dtype, rngs=rngs)
        self.decoder = decoder(config, dtype=dtype, rngs=rngs)
        classes = max(1, len(config.classes))
        self.head = Conv(width, classes, head_kernel, use_bias=True, dtype=dtype, rngs=rngs)

    def encode_image(self, pixel_values: Float[AnyArray, "b height width 3"]) -> Features:
        """Features at strides 2, 4, 8 and so on; raises ValueError when a side is not a multiple of the last one."""
        _, height, width, _ = pixel_values.shape
        if height % self.output_stride or width % self.output_stride:
            raise ValueError(f"image size {height}x{width} is not a multiple of {self.output_stride}")
        return self.resnet(jnp.asarray(pixel_values))

    def decode(
        self, image: Features, text: None, size: tuple[int, int], *, rngs: Rngs = None
    ) -> Float[Array, "b height width classes"]:
        """Float32 logits."""
        logits = self.head(self.decoder(image, rngs=rngs)).astype(jnp.float32)
        return logits if logits.shape[1:3] == size else resize(logits, size, "bilinear", align_corners=True)


class UNet(CNN):
    """U-Net."""

    config_class: ClassVar[type[NetworkConfig]] = UNetConfig

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        super().__init__(config, UNetDecoder, last_width(config), head_kernel=3, rngs=rngs)


class UNetPlusPlus(CNN):
    """U-Net++."""

    config_class: ClassVar[type[NetworkConfig]] = UNetPlusPlusConfig

    def __init__(self, config: UNetPlusPlusConfig, *, rngs: nnx.Rngs):
        super().__init__(config, UNetPlusPlusDecoder, last_width(config), head_kernel=3, rngs=rngs)


class DeepLabV3Plus(CNN):
    """DeepLabV3+."""

    config_class: ClassVar[type[NetworkConfig]] = DeepLabV3PlusConfig

    def __init__(self, config: DeepLabV3PlusConfig, *, rngs: nnx.Rngs):
        stride = config.output_stride
        if stride not in (8, 16):
            raise ValueError(f"output_stride {stride} is neither 8 nor 16")
        decoder, width = DeepLabV3PlusDecoder, config.decoder_channels
        super().__init__(config, decoder, width, head_kernel=1, output_stride=stride, rngs=rngs)


# The tiny ones train from random weights on a laptop.
TINY: dict[str, Any] = {"encoder": ResNetConfig(layers=(1, 1, 1, 1), width=16), "image_size": 64}
UNET_PRESETS = {"unet": UNetConfig(), "unet_tiny": UNetConfig(decoder_channels=(64, 32, 16, 16, 8), **TINY)}
UNETPLUSPLUS_PRESETS = {
    "unetplusplus": UNetPlusPlusConfig(),
    "unetplusplus_tiny": UNetPlusPlusConfig(decoder_channels=(64, 32, 16, 16, 8), **TINY),
}
DEEPLABV3PLUS_PRESETS = {
    "deeplabv3plus": DeepLabV3PlusConfig(),
    "deeplabv3plus_tiny": DeepLabV3PlusConfig(decoder_channels=32, atrous_rates=(1, 2, 3), **TINY),
}
