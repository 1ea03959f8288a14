"""What all networks have in common: the face that training, evaluation and prediction see."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models.attention import check_attention
from medvlsm_jax.models.layers import AnyArray, Rngs, check_remat

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PRECISION = "jax_default_matmul_precision"  # of jax.config


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """What a tokenizer has to know of a text encoder."""

    vocab_size: int = 49408
    context_length: int = 77  # tokens of a sentence, padding included
    eos_token_id: int | None = None  # None: any tokenizer's
    pad_token_id: int | None = None  # None: the tokenizer's own


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What every network is described by; each adds its sizes."""

    text: TextConfig | None = None  # None: the network reads no sentence
    classes: tuple[str, ...] = ()  # one output channel for each; empty: a single one, whatever a record asks for
    dtype: str = "float32"  # of the computation; parameters are float32
    remat: str = "none"  # what the encoder's blocks keep for the gradient: one of layers.REMAT_POLICIES
    attention: str = "auto"  # one of attention.IMPLEMENTATIONS
    image_size: int = 256
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    threshold: float = 0.5  # of the probability, for a binary mask
    tokenizer: str = ""  # a hub id or "builtin"


def in_full_precision(run: Callable[..., Any]) -> Callable[..., Any]:
    """Has a network that computes in float32 do so on accelerators, too, its gradient included.

    By default jax multiplies float32 matrices in bfloat16 passes on TPUs and in TF32 on GPUs. Who chooses otherwise, by
    JAX_DEFAULT_MATMUL_PRECISION or `jax.default_matmul_precision`, gets that.
    """

    @functools.wraps(run)
    def exact(self: "Network", *args: Any, **options: Any) -> Any:
        if self.config.dtype != "float32" or getattr(jax.config, PRECISION) is not None:
            return run(self, *args, **options)
        with jax.default_matmul_precision("highest"):
            return run(self, *args, **options)

    return exact


class Network(nnx.Module):
    """An image, and for most networks a sentence, in; one logit a pixel and class out.

    A network is in evaluation mode when it is made: BatchNorm uses its running statistics, dropout is off. `train()`
    and `eval()` switch; statistics are updated in place in training mode.
    """

    config_class: ClassVar[type[NetworkConfig]]
    encoder: ClassVar[tuple[str, ...]] = ()  # the children that `freeze_encoder` means; the others are decoder

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name in ("encode_image", "encode_text", "decode"):
            if name in vars(cls):
                setattr(cls, name, in_full_precision(vars(cls)[name]))

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        check_remat(config.remat)
        check_attention(config.attention)
        self.config = config

    def unused(self, path: tuple[str | int, ...]) -> bool:
        """Whether a parameter of a checkpoint has no influence on the logits: training leaves it alone."""
        return False

    @property
    def reads_sentence(self) -> bool:
        """Whether the logits depend on a sentence."""
        return False

    def encode_image(self, pixel_values: Float[AnyArray, "b height width 3"]) -> Any:
        """What the decoder reads of normalised images: arrays in any nesting, the image their first axis."""
        raise NotImplementedError

    def encode_text(
        self, input_ids: Int[AnyArray, "b t"], attention_mask: Int[AnyArray, "b t"] | None = None, *, rngs: Rngs = None
    ) -> Any:
        """What the decoder reads of sentences, in the same form."""
        raise NotImplementedError

    def decode(
        self, image: Any, text: Any, size: tuple[int, int], *, rngs: Rngs = None
    ) -> Float[Array, "b height width classes"]:
        """Float32 logits at `size`, height and width, from what the encoders made; no `text` stands for zeros."""
        raise NotImplementedError

    def __call__(
        self,
        pixel_values: Float[AnyArray, "b height width 3"],
        input_ids: Int[AnyArray, "b t"] | None = None,
        attention_mask: Int[AnyArray, "b t"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b height width classes"]:
        """Float32 logits.

        Args:
            pixel_values: normalised images.
            input_ids: the tokens of a sentence; image-only networks, and others with `zero_prompt`, ignore them.
            attention_mask: 1 for tokens, 0 for padding.
            rngs: of dropout, in training mode; without them nothing is dropped.

        Raises:
            ValueError: images or tokens are of another shape or type, a sentence is read and none is given, or the
                network cannot work at the images' size.
        """
        check_pixels(pixel_values)
        text = None
        if self.reads_sentence:
            if input_ids is None:
                raise ValueError(f"{type(self).__name__} needs input_ids: it segments what a sentence names")
            check_tokens(input_ids, pixel_values, self.config.text)
            text = self.encode_text(input_ids, attention_mask, rngs=rngs)
        height, width = pixel_values.shape[1:3]
        return self.decode(self.encode_image(pixel_values), text, (height, width), rngs=rngs)


def check_pixels(pixel_values: AnyArray) -> None:
    """Raises ValueError for what is no batch of normalised images."""
    shape, dtype = jnp.shape(pixel_values), jnp.result_type(pixel_values)
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"pixel_values are of shape {shape}, but should be (B, H, W, 3): channels last, with a batch axis"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"pixel_values are {dtype}, but should be normalised floats (B, H, W, 3): "
            "models.layers.normalize_pixels(images, config.pixel_mean, config.pixel_std) makes them of uint8 images"
        )


def check_tokens(input_ids: AnyArray, pixel_values: AnyArray, config: TextConfig | None) -> None:
    """Raises ValueError for what is no row of tokens for each image."""
    shape, images = jnp.shape(input_ids), jnp.shape(pixel_values)[0]
    if len(shape) != 2 or shape[0] != images:
        raise ValueError(f"input_ids are of shape {shape}, but should be (B, T), with B = {images} as of the images")
    if config is not None and shape[1] > config.context_length:
        raise ValueError(f"input_ids have {shape[1]} tokens, but this network reads {config.context_length} at most")
