"""What all networks have in common: the face that training, evaluation and prediction see."""

import dataclasses
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models.layers import AnyArray, Rngs

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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
    image_size: int = 256
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    threshold: float = 0.5  # of the probability, for a binary mask
    tokenizer: str = ""  # a hub id or "builtin"


class Network(nnx.Module):
    """An image, and for most networks a sentence, in; one logit a pixel and class out.

    A network is in evaluation mode when it is made: BatchNorm uses its running statistics, dropout is off. `train()`
    and `eval()` switch; statistics are updated in place in training mode.
    """

    config_class: ClassVar[type[NetworkConfig]]
    encoder: ClassVar[tuple[str, ...]] = ()  # the children that `freeze_encoder` means; the others are decoder

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        self.config = config

    def unused(self, path: tuple[str | int, ...]) -> bool:
        """Whether a parameter of a checkpoint has no influence on the logits: training leaves it alone."""
        return False

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
            input_ids: the tokens of a sentence; image-only networks ignore them.
            attention_mask: 1 for tokens, 0 for padding.
            rngs: of dropout, in training mode; without them nothing is dropped.
        """
        raise NotImplementedError
