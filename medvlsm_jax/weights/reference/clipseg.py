"""Hugging Face's CLIPSeg on our weights."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.clipseg import CLIPSeg, CLIPSegConfig
from medvlsm_jax.weights.convert import to_torch
from medvlsm_jax.weights.reference.pytorch import Outputs, nhwc, record_layers, require_torch, tensors


def build(model: CLIPSeg, source_config: Mapping[str, Any] | None = None) -> Any:
    """Hugging Face's CLIPSegForImageSegmentation with the weights of our model, in evaluation mode.

    Its config is the one that lay beside the weights where that is given, else ours in Hugging Face's words.
    """
    torch = require_torch()
    from transformers import CLIPSegConfig as Theirs
    from transformers import CLIPSegForImageSegmentation

    config = huggingface_config(model.config) if source_config is None else Theirs.from_dict(dict(source_config))
    with torch.device("meta"):
        reference: Any = CLIPSegForImageSegmentation(config)
        fit_upsampling(reference.decoder, model.config)
    state_dict = {name: torch.from_numpy(array.copy()) for name, array in to_torch(model).items()}
    reference.load_state_dict(state_dict, strict=True, assign=True)
    for module in reference.modules():  # buffers that checkpoints do not hold
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return reference.eval()


def fit_upsampling(decoder: Any, config: CLIPSegConfig) -> None:
    """Gives Hugging Face's decoder logits of the image's size where the patch is not 16."""
    patch = config.vision.patch_size
    if config.complex_upsampling and patch != 16:
        stride = patch // (patch // 4)
        layer = require_torch().nn.ConvTranspose2d(config.reduce_dim // 2, 1, stride, stride)
        decoder.transposed_convolution[4] = layer


def huggingface_config(config: CLIPSegConfig) -> Any:
    """Our config in Hugging Face's words."""
    from transformers import CLIPSegConfig as Theirs

    text, vision = config.text, config.vision
    return Theirs(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "bos_token_id": 0,
            "eos_token_id": text.eos_token_id,
            "hidden_act": text.activation,
            "layer_norm_eps": text.epsilon,
        },
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.grid * vision.patch_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.epsilon,
        },
        projection_dim=config.projection_dim,
        reduce_dim=config.reduce_dim,
        extract_layers=list(config.extract_layers),
        conditional_layer=config.conditional_layer,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_mlp_width,
        use_complex_transposed_convolution=config.complex_upsampling,
    )


def check_huggingface(config: CLIPSegConfig) -> None:
    """Raises a UserError when Hugging Face's CLIPSeg cannot be what ours is."""
    reason = ""
    if config.complex_upsampling and config.vision.patch_size != 16:
        reason = f"upsamples by (patch / 4)², which is not its patch of {config.vision.patch_size}"
    elif config.decoder_epsilon != config.vision.epsilon:
        reason = f"has one epsilon for vision tower ({config.vision.epsilon}) and decoder ({config.decoder_epsilon})"
    if reason:
        raise UserError(
            f"Hugging Face's CLIPSeg {reason}, and could not load this model: give --output=FILE.safetensors for its "
            "weights alone"
        )


def huggingface_pixels(config: CLIPSegConfig) -> dict[str, Any]:
    """How images are prepared, in the words of Hugging Face's image processors."""
    return {
        "processor_class": "CLIPSegProcessor",
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 2,  # Pillow's BILINEAR
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
    }


def logits(reference: Any, pixel_values: Any, input_ids: Any, attention_mask: Any) -> Any:
    """Logits (B, 1, H, W) of tensors, without the no_grad that Hugging Face puts around both towers."""
    taps = [i + 1 for i in reference.extract_layers]
    states = reference.clip.vision_model(pixel_values, output_hidden_states=True).hidden_states
    text = reference.clip.get_text_features(input_ids, attention_mask=attention_mask).pooler_output
    return reference.decoder([states[i] for i in taps], text).logits.reshape(-1, 1, *pixel_values.shape[2:])


def their_outputs(
    reference: Any, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray
) -> Outputs:
    """Every layer's activations in PyTorch; `pixel_values` are (B, H, W, 3)."""
    layers = {
        f"{tower}.{i}": layer
        for tower, module in (
            ("text", reference.clip.text_model.encoder),
            ("vision", reference.clip.vision_model.encoder),
            ("decoder", reference.decoder),
        )
        for i, layer in enumerate(module.layers)
    }
    with record_layers(layers) as outputs:
        pixels, ids, mask = tensors(pixel_values, input_ids, attention_mask)
        result = reference(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    outputs["text_embedding"] = result.conditional_embeddings.numpy()
    outputs["logits"] = nhwc(result.logits.reshape(-1, 1, *pixel_values.shape[1:3]))
    return outputs


def our_outputs(model: CLIPSeg, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray) -> Outputs:
    """The same layers' activations in JAX."""
    states = hidden_states(model, *(jnp.asarray(x) for x in (pixel_values, input_ids, attention_mask)))
    return {name: np.asarray(value) for name, value in states.items()}


@nnx.jit
def hidden_states(
    model: CLIPSeg,
    pixel_values: Float[Array, "b height width 3"],
    input_ids: Int[Array, "b t"],
    attention_mask: Int[Array, "b t"],
) -> dict[str, Float[Array, "b ..."]]:
    """The same layers' activations in JAX; vision blocks above the last tap are not run, so they are not there."""
    taps = model.config.extract_layers
    text_states = model.text.hidden_states(input_ids, attention_mask)
    vision_states = model.vision.hidden_states(pixel_values, max(taps) + 1)
    embedding = model.encode_text(input_ids, attention_mask)
    decoder_states = model.decoder.hidden_states([vision_states[i + 1] for i in taps], embedding)
    outputs = {f"text.{i}": state for i, state in enumerate(text_states[1:])}
    outputs |= {f"vision.{i}": state for i, state in enumerate(vision_states[1:])}
    outputs |= {f"decoder.{i}": state for i, state in enumerate(decoder_states)}
    outputs |= {"text_embedding": embedding, "logits": model(pixel_values, input_ids, attention_mask)}
    return outputs
