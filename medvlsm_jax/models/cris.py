"""CRIS (Wang et al., CVPR 2022, arXiv 2111.15174), number for number as the authors' PyTorch code computes it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from medvlsm_jax.models.clip import CLIPText, CLIPTextConfig
from medvlsm_jax.models.cris_decoder import Decoder, Projector
from medvlsm_jax.models.cris_neck import Features, Neck
from medvlsm_jax.models.layers import AnyArray, Attention, ConvNorm, Rngs, embedding_init, resize
from medvlsm_jax.models.network import CLIP_MEAN, CLIP_STD, Network, NetworkConfig
from medvlsm_jax.models.resnet import CLIPResNet, ResNetConfig

STRIDE = 32  # of the image encoder
HEAD_WIDTH = 64  # of the attention pool


@dataclasses.dataclass(frozen=True)
class CRISConfig(NetworkConfig):
    """What a CRIS is; the defaults are those of the published RN50 network.

    It was pretrained with sentences padded by 0. `text.pad_token_id=49407` pads as the paper's experiments did by
    accident, with CLIP's [EOT]: no padding is masked then.
    """

    text: CLIPTextConfig = dataclasses.field(default_factory=lambda: CLIPTextConfig(pad_token_id=0))
    vision: ResNetConfig = dataclasses.field(default_factory=ResNetConfig)
    grid: int = 7  # the side of the pretrained grid of the attention pool's positions
    projection_dim: int = 1024  # of the sentence's state, and of the image features at stride 32
    fpn_channels: tuple[int, int, int] = (256, 512, 1024)  # of the neck, at strides 8, 16 and 32
    decoder_depth: int = 3
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    dropout: float = 0.1  # in the decoder
    # Replace the sentence's tokens and state by zeros: an image-only ablation of a pretrained network. The gate of a
    # random neck is relu(0) then, which shuts the features at stride 32 off for good.
    zero_prompt: bool = False
    image_size: int = 416
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD
    threshold: float = 0.35
    tokenizer: str = "openai/clip-vit-base-patch32"  # CLIP has one vocabulary

    @property
    def decoder_width(self) -> int:
        """Channels of the map and of the tokens that the decoder reads."""
        return self.fpn_channels[1]


PRESETS: dict[str, CRISConfig] = {
    "cris": CRISConfig(),
    # Trains from scratch on a laptop; its tokenizer is the built-in one, its vocabulary has room to grow.
    "cris_tiny": CRISConfig(
        text=CLIPTextConfig(
            vocab_size=1024,
            context_length=64,
            width=64,
            depth=1,
            heads=4,
            mlp_width=256,
            eos_token_id=3,
            pad_token_id=0,
        ),
        vision=ResNetConfig(layers=(1, 1, 1, 1), width=16),
        grid=3,
        projection_dim=64,
        fpn_channels=(32, 64, 128),
        decoder_depth=2,
        decoder_heads=4,
        decoder_mlp_width=128,
        image_size=96,
        tokenizer="builtin",
    ),
}


class AttentionPool(nnx.Module):
    """CLIP's attention pool, every pixel a query, so that it keeps the map; beside it a projected residual."""

    def __init__(self, width: int, d_out: int, grid: int, *, attention: str = "auto", dtype: jnp.dtype, rngs: nnx.Rngs):
        self.grid = grid
        self.position_embedding = nnx.Param(embedding_init(rngs.params(), (grid**2 + 1, width)))
        self.attention = Attention(
            width, width // HEAD_WIDTH, out_width=d_out, attention=attention, dtype=dtype, rngs=rngs
        )
        self.connect = ConvNorm(width, d_out, has_relu=False, dtype=dtype, rngs=rngs)

    def positions(self, rows: int, columns: int) -> Float[Array, "1 rows columns d"]:
        """The grid's positions, interpolated; the class token's, which comes first, is not used."""
        table = self.position_embedding[1:].reshape(1, self.grid, self.grid, -1)
        return resize(table, (rows, columns), "bicubic")

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d_out"]:
        batch, rows, columns, width = x.shape
        tokens = (x + self.positions(rows, columns).astype(x.dtype)).reshape(batch, rows * columns, width)
        attended = self.attention(tokens)
        return jax.nn.relu(attended.reshape(batch, rows, columns, -1) + self.connect(x))


class CRISVision(nnx.Module):
    """CLIP's ResNet with its attention pool as a map."""

    def __init__(self, config: CRISConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.backbone = CLIPResNet(config.vision, remat=config.remat, dtype=dtype, rngs=rngs)
        width = config.vision.channels[-1]
        self.pool = AttentionPool(
            width, config.projection_dim, config.grid, attention=config.attention, dtype=dtype, rngs=rngs
        )

    def __call__(self, pixel_values: Float[AnyArray, "b height width 3"]) -> Features:
        """Features at strides 8, 16 and 32; raises ValueError when a side of the image is not a multiple of 32."""
        height, width = pixel_values.shape[1:3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"image size {height}x{width} is not a multiple of {STRIDE}")
        _, v3, v4, v5 = self.backbone(jnp.asarray(pixel_values))
        return v3, v4, self.pool(v5)


class CRIS(Network):
    """An image and a sentence in, one logit a pixel out."""

    config_class: ClassVar[type[NetworkConfig]] = CRISConfig
    encoder: ClassVar[tuple[str, ...]] = ("text", "vision", "logit_scale")

    def __init__(self, config: CRISConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        width, d_state = config.decoder_width, config.projection_dim
        if config.text.width != width or width % 4:
            raise ValueError(
                f"fpn_channels[1] is {width}: the decoder wants the text encoder's width, {config.text.width}, and a "
                "multiple of 4"
            )
        self.config: CRISConfig = config
        dtype = jnp.dtype(config.dtype)
        self.text = CLIPText(
            config.text, d_state, remat=config.remat, attention=config.attention, dtype=dtype, rngs=rngs
        )
        self.vision = CRISVision(config, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.array(2.6592))  # CLIP's temperature, ln(1 / 0.07): kept, never read
        d_in = (*config.vision.channels[1:3], d_state)
        self.neck = Neck(d_in, config.fpn_channels, d_state, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            width,
            config.decoder_heads,
            config.decoder_mlp_width,
            config.decoder_depth,
            dropout=config.dropout,
            attention=config.attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.projector = Projector(d_state, width, dtype=dtype, rngs=rngs)

    def unused(self, path: tuple[str | int, ...]) -> bool:
        """The temperature, and without a sentence all of the text encoder."""
        return path[0] == "logit_scale" or (self.config.zero_prompt and path[0] == "text")

    @property
    def reads_sentence(self) -> bool:
        """Always, unless its tokens and its state are replaced by zeros."""
        return not self.config.zero_prompt

    def encode_image(self, pixel_values: Float[AnyArray, "b height width 3"]) -> Features:
        """Features at strides 8, 16 and 32; raises ValueError when a side of the image is not a multiple of 32."""
        return self.vision(pixel_values)

    def encode_text(
        self, input_ids: Int[AnyArray, "b t"], attention_mask: Int[AnyArray, "b t"] | None = None, *, rngs: Rngs = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b projection"], Bool[Array, "b t"]]:
        """The state of every token, the sentence's, and where tokens may be read.

        Args:
            input_ids: tokens with a beginning and an end token, padded with 0.
            attention_mask: ignored. The text encoder is causal, so that no token before the end sees padding, and the
                decoder masks where a token is 0, as the authors' code does: with another padding it reads all of it.
            rngs: ignored: there is no dropout in the text encoder.
        """
        return *self.text.encode(input_ids), jnp.asarray(input_ids) != 0

    def decode(
        self,
        image: Features,
        text: tuple[Float[Array, "b t d"], Float[Array, "b projection"], Bool[Array, "b t"]] | None,
        size: tuple[int, int],
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b height width 1"]:
        """Float32 logits of the mask that the sentence names."""
        if text is None:
            batch, sizes, dtype = image[0].shape[0], self.config.text, self.config.dtype
            tokens = jnp.zeros((batch, sizes.context_length, sizes.width), dtype)
            state, mask = jnp.zeros((batch, self.config.projection_dim), dtype), None
        else:
            tokens, state, readable = text
            mask = readable[:, None, None, :]
        x = self.decoder(self.neck(image, state), tokens, mask, rngs=rngs)
        return resize(self.projector(x, state), size, "bicubic", align_corners=True)
