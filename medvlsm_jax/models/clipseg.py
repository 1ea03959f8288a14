"""CLIPSeg (Lüddecke & Ecker, CVPR 2022, arXiv 2112.10003), number for number as Hugging Face computes it."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models.clip import CLIPText, CLIPTextConfig
from medvlsm_jax.models.layers import AnyArray, Block, Conv, Linear, PatchTransposedConv, Rngs
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class CLIPSegConfig(NetworkConfig):
    """What a CLIPSeg is; the defaults are those of CIDAS/clipseg-rd64-refined."""

    text: CLIPTextConfig = dataclasses.field(default_factory=CLIPTextConfig)
    vision: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    projection_dim: int = 512
    extract_layers: tuple[int, ...] = (3, 6, 9)  # blocks whose outputs feed the decoder, counted from 0
    reduce_dim: int = 64
    decoder_heads: int = 4
    decoder_mlp_width: int = 2048
    decoder_epsilon: float = 1e-5  # of the decoder's normalisations
    conditional_layer: int = 0  # the decoder layer that the text modulates
    complex_upsampling: bool = True  # two transposed convolutions after a convolution, or a single one
    zero_prompt: bool = False  # replace the text embedding by zeros: an image-only ablation
    image_size: int = 352
    tokenizer: str = "CIDAS/clipseg-rd64-refined"


PRESETS: dict[str, CLIPSegConfig] = {
    "clipseg": CLIPSegConfig(),
    # The authors' first two, whose head is a single transposed convolution.
    "clipseg_rd64": CLIPSegConfig(complex_upsampling=False, tokenizer="CIDAS/clipseg-rd64"),
    "clipseg_rd16": CLIPSegConfig(reduce_dim=16, complex_upsampling=False, tokenizer="CIDAS/clipseg-rd16"),
    # Trains from scratch on a laptop in minutes; its tokenizer is the built-in one, its vocabulary has room to grow.
    "clipseg_tiny": CLIPSegConfig(
        text=CLIPTextConfig(
            vocab_size=1024, context_length=64, width=64, depth=2, heads=2, mlp_width=128, eos_token_id=3
        ),
        vision=ViTConfig(patch_size=8, grid=12, width=128, depth=5, heads=4, mlp_width=512),
        projection_dim=64,
        extract_layers=(0, 2, 4),
        reduce_dim=64,
        decoder_mlp_width=128,
        conditional_layer=2,  # the last: from random weights the text is then listened to several times sooner
        image_size=96,
        tokenizer="builtin",
    ),
}


class Upsampling(nnx.Module):
    """From decoder tokens on the patch grid to one logit a pixel."""

    def __init__(self, config: CLIPSegConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, patch = config.reduce_dim, config.vision.patch_size
        self.is_complex = config.complex_upsampling
        if not self.is_complex:
            self.single = PatchTransposedConv(width, 1, patch, dtype=dtype, rngs=rngs)
            return
        # 4 and 4 for the published patch of 16; for another one the product is still the patch, so that logits and
        # image agree in size (Hugging Face's would not).
        stride = patch // 4
        self.conv = Conv(width, width, 3, use_bias=True, dtype=dtype, rngs=rngs)
        self.first = PatchTransposedConv(width, width // 2, stride, dtype=dtype, rngs=rngs)
        self.second = PatchTransposedConv(width // 2, 1, patch // stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b rows columns d"]) -> Float[Array, "b height width 1"]:
        if not self.is_complex:
            return self.single(x)
        return self.second(jax.nn.relu(self.first(jax.nn.relu(self.conv(x)))))


class CLIPSegDecoder(nnx.Module):
    """Three small transformer layers over the reduced taps; the text modulates one of them by FiLM."""

    def __init__(self, config: CLIPSegConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.reduce_dim
        self.conditional_layer = config.conditional_layer
        self.film_mul = Linear(config.projection_dim, width, dtype=dtype, rngs=rngs)
        self.film_add = Linear(config.projection_dim, width, dtype=dtype, rngs=rngs)
        self.reduces = nnx.List(
            Linear(config.vision.width, width, dtype=dtype, rngs=rngs) for _ in config.extract_layers
        )
        self.layers = nnx.List(
            Block(
                width,
                config.decoder_heads,
                config.decoder_mlp_width,
                activation="relu",
                norm_first=False,
                epsilon=config.decoder_epsilon,
                attention=config.attention,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in config.extract_layers
        )
        self.upsampling = Upsampling(config, dtype=dtype, rngs=rngs)

    def hidden_states(
        self, activations: list[Float[Array, "b tokens d"]], text_embedding: Float[Array, "b projection"]
    ) -> list[Float[Array, "b tokens r"]]:
        """The output of every decoder layer; the deepest tap comes first."""
        states = []
        x = jnp.zeros((), activations[0].dtype)
        for i, activation in enumerate(reversed(activations)):
            x = self.reduces[i](activation) + x
            if i == self.conditional_layer:
                x = self.film_mul(text_embedding)[:, None] * x + self.film_add(text_embedding)[:, None]
            x = self.layers[i](x)
            states.append(x)
        return states

    def __call__(
        self,
        activations: list[Float[Array, "b tokens d"]],
        text_embedding: Float[Array, "b projection"],
        grid: tuple[int, int],
    ) -> Float[Array, "b height width 1"]:
        x = self.hidden_states(activations, text_embedding)[-1][:, 1:]
        return self.upsampling(x.reshape(x.shape[0], *grid, x.shape[-1]))


class CLIPSeg(Network):
    """An image and a sentence in, one logit a pixel out."""

    config_class: ClassVar[type[NetworkConfig]] = CLIPSegConfig
    encoder: ClassVar[tuple[str, ...]] = ("text", "vision", "logit_scale")
    text_tower: ClassVar[Callable[..., Any]] = CLIPText  # from tokens and their mask to the text embedding

    def __init__(self, config: CLIPSegConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        if min(config.extract_layers) < 0 or max(config.extract_layers) >= config.vision.depth:
            raise ValueError(
                f"extract_layers {config.extract_layers} reach beyond the {config.vision.depth} vision blocks"
            )
        if not 0 <= config.conditional_layer < len(config.extract_layers):
            layers = len(config.extract_layers)
            raise ValueError(f"conditional_layer {config.conditional_layer} is none of the {layers} decoder layers")
        self.config: CLIPSegConfig = config
        dtype = jnp.dtype(config.dtype)
        self.text = self.text_tower(
            config.text, config.projection_dim, remat=config.remat, attention=config.attention, dtype=dtype, rngs=rngs
        )
        self.vision = ViT(
            config.vision, config.projection_dim, remat=config.remat, attention=config.attention, dtype=dtype, rngs=rngs
        )
        self.logit_scale = nnx.Param(jnp.array(2.6592))  # CLIP's temperature, ln(1 / 0.07): kept, never read
        self.decoder = CLIPSegDecoder(config, dtype=dtype, rngs=rngs)

    def unused(self, path: tuple[str | int, ...]) -> bool:
        """The towers' ends, which only pretraining reads, blocks above the last tap, and text that is not read."""
        if path[:2] == ("vision", "blocks"):
            return int(path[2]) > max(self.config.extract_layers)
        if path[0] == "text" and self.config.zero_prompt:
            return True
        return path[0] == "logit_scale" or path[:2] in {("vision", "post_norm"), ("vision", "projection")}

    @property
    def reads_sentence(self) -> bool:
        """Always, unless its embedding is replaced by zeros."""
        return not self.config.zero_prompt

    def encode_image(self, pixel_values: Float[AnyArray, "b height width 3"]) -> list[Float[Array, "b tokens d"]]:
        """The tapped outputs of the vision tower, shallowest first; blocks above the last tap are not run.

        Raises ValueError when a side of the image is not a multiple of the patch.
        """
        states = self.vision.hidden_states(pixel_values, max(self.config.extract_layers) + 1)
        return [states[i + 1] for i in self.config.extract_layers]

    def encode_text(
        self,
        input_ids: Int[AnyArray, "b t"],
        attention_mask: Int[AnyArray, "b t"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b projection"]:
        """The sentence as the decoder reads it; tokens have a beginning and an end."""
        return self.text(input_ids, attention_mask, rngs=rngs)

    def decode(
        self,
        image: list[Float[Array, "b tokens d"]],
        text: Float[AnyArray, "b projection"] | None,
        size: tuple[int, int],
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b height width 1"]:
        """Float32 logits of the mask that the sentence names; there is no dropout in the decoder."""
        if text is None:
            text = jnp.zeros((image[0].shape[0], self.config.projection_dim), self.config.dtype)
        patch = self.config.vision.patch_size
        return self.decoder(image, jnp.asarray(text), (size[0] // patch, size[1] // patch)).astype(jnp.float32)

    def __call__(
        self,
        pixel_values: Float[AnyArray, "b height width 3"],
        input_ids: Int[AnyArray, "b t"] | None = None,
        attention_mask: Int[AnyArray, "b t"] | None = None,
        *,
        rngs: Rngs = None,
        text_embedding: Float[AnyArray, "b projection"] | None = None,
    ) -> Float[Array, "b height width 1"]:
        """As every network; `text_embedding` is an embedding in place of the sentence."""
        if text_embedding is None or not self.reads_sentence:
            return super().__call__(pixel_values, input_ids, attention_mask, rngs=rngs)
        height, width = pixel_values.shape[1:3]
        return self.decode(self.encode_image(pixel_values), text_embedding, (height, width), rngs=rngs)
