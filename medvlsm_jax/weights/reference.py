"""The PyTorch implementations that our networks are held against; needs torch. Used by parity checks and benchmarks."""

from typing import Any

import numpy as np

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.clipseg import CLIPSeg, CLIPSegConfig
from medvlsm_jax.weights.convert import to_torch

Outputs = dict[str, np.ndarray]  # layer -> activations


def require_torch() -> Any:
    """The torch module; raises UserError when it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "this compares with PyTorch, which is not installed: pip install 'medvlsm-jax[torch]'"
        ) from error
    return torch


def huggingface_clipseg(model: CLIPSeg) -> Any:
    """Hugging Face's CLIPSegForImageSegmentation with the weights of our model, in evaluation mode."""
    torch = require_torch()
    from transformers import CLIPSegForImageSegmentation

    patch, width = model.config.vision.patch_size, model.config.reduce_dim
    with torch.device("meta"):
        reference: Any = CLIPSegForImageSegmentation(huggingface_config(model.config))
        if model.config.complex_upsampling and patch != 16:  # Hugging Face's logits are not of the image's size there
            stride = patch // (patch // 4)
            reference.decoder.transposed_convolution[4] = torch.nn.ConvTranspose2d(width // 2, 1, stride, stride)
    state_dict = {name: torch.from_numpy(array.copy()) for name, array in to_torch(model).items()}
    reference.load_state_dict(state_dict, strict=True, assign=True)
    for module in reference.modules():  # buffers that checkpoints do not hold
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return reference.eval()


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
        },
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.grid * vision.patch_size,
            "patch_size": vision.patch_size,
        },
        projection_dim=config.projection_dim,
        reduce_dim=config.reduce_dim,
        extract_layers=list(config.extract_layers),
        conditional_layer=config.conditional_layer,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_mlp_width,
        use_complex_transposed_convolution=config.complex_upsampling,
    )


def huggingface_outputs(
    reference: Any, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray
) -> Outputs:
    """Every layer's activations in PyTorch; `pixel_values` are (B, H, W, 3)."""
    torch = require_torch()
    outputs: Outputs = {}

    def record(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            outputs[name] = (output[0] if isinstance(output, tuple) else output).detach().numpy()

        return hook

    towers = {"text": reference.clip.text_model.encoder, "vision": reference.clip.vision_model.encoder}
    towers["decoder"] = reference.decoder
    handles = [
        layer.register_forward_hook(record(f"{tower}.{i}"))
        for tower, module in towers.items()
        for i, layer in enumerate(module.layers)
    ]
    with torch.no_grad():
        result = reference(
            pixel_values=torch.from_numpy(pixel_values.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            attention_mask=torch.from_numpy(attention_mask.astype(np.int64)),
        )
    for handle in handles:
        handle.remove()
    outputs["text_embedding"] = result.conditional_embeddings.numpy()
    outputs["logits"] = result.logits.reshape(*pixel_values.shape[:3], 1).numpy()
    return outputs


def clipseg_outputs(
    model: CLIPSeg, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray
) -> Outputs:
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
    return {name: np.asarray(value) for name, value in outputs.items()}
