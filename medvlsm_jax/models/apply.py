"""A network on what the input pipeline makes: from uint8 images and tokens to logits, or to its encoders' outputs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models import abstract_model, input_shapes
from medvlsm_jax.models.layers import normalize_pixels
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import Arrays, merge_model, split_model

NOT_FINITE = "not finite: the weights are not, or what they make of it is too large for the type of the computation"


def encode(model: Network, kind: str, *inputs: jax.Array) -> Any:
    """What the decoder reads of uint8 images or of tokens and their mask."""
    if kind == "text":
        return model.encode_text(*inputs)
    return model.encode_image(normalize_pixels(inputs[0], model.config.pixel_mean, model.config.pixel_std))


def encoder_outputs(config: NetworkConfig) -> dict[str, Any]:
    """Shapes of what is made of one `image` and, unless no sentence is read, one `text`, in the model's nesting.

    The first axis of each is 1.
    """
    model = abstract_model(config)
    graphdef, params, stats = split_model(model)

    def run(arrays: Arrays, inputs: dict[str, list[jax.Array]]) -> dict[str, Any]:
        model = merge_model(graphdef, arrays)
        return {kind: encode(model, kind, *values) for kind, values in inputs.items()}

    return jax.eval_shape(run, {**params, **stats}, encoder_inputs(model))


def encoder_inputs(model: Network) -> dict[str, list[jax.ShapeDtypeStruct]]:
    """Shapes of what is encoded for one record, by kind: pixels, and tokens and their mask if they are read."""
    pixels, *tokens = input_shapes(model.config)
    inputs = {"image": [jax.ShapeDtypeStruct(pixels.shape, jnp.uint8)]}
    return inputs | ({"text": tokens} if model.reads_sentence else {})


Batch = dict[str, Any]  # name -> array, or several
Values = dict[str, jax.Array]


def forward(model: Network, batch: Batch, rngs: nnx.Rngs | None = None) -> Float[Array, "b height width 1"]:
    """Logits for a batch of uint8 images and tokens; of several classes, those of the record's own.

    Where the batch holds what frozen encoders made of them (`scoring/frozen_encoder.py`), the decoder alone is run.
    """
    config = model.config
    if "image_features" in batch:
        height, width = batch["mask"].shape[1:3]
        logits = model.decode(batch["image_features"], batch.get("text_features"), (height, width), rngs=rngs)
    else:
        pixel_values = normalize_pixels(batch["image"], config.pixel_mean, config.pixel_std)
        logits = model(pixel_values, batch.get("input_ids"), batch.get("attention_mask"), rngs=rngs)
    return own_class(logits, batch.get("class_index"))


def own_class(
    logits: Float[Array, "b height width classes"], class_index: Int[Array, " b"] | None
) -> Float[Array, "b height width 1"]:
    """Of several classes the logits of the one that each record asks for."""
    if class_index is None:
        return logits
    return jnp.take_along_axis(logits, class_index[:, None, None, None], axis=-1)
