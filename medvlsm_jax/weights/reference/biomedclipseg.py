"""BiomedCLIPSeg composed of Hugging Face's ViT, BERT and CLIPSeg decoder, on our weights.

The original's parts are timm's ViT and open_clip's text tower; these compute the same from the same weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from medvlsm_jax.models.bert import BertConfig
from medvlsm_jax.models.biomedclipseg import BiomedCLIPSeg, BiomedCLIPSegConfig
from medvlsm_jax.models.clipseg import CLIPSegConfig
from medvlsm_jax.models.vit import ViTConfig
from medvlsm_jax.weights.convert import to_torch
from medvlsm_jax.weights.reference.clipseg import fit_upsampling, huggingface_config, our_outputs
from medvlsm_jax.weights.reference.pytorch import Outputs, nhwc, record_layers, require_torch, tensors

__all__ = ["build", "logits", "our_outputs", "their_outputs"]

# Parts of open_clip's and timm's names -> Hugging Face's.
RENAMED = {
    "biomedclip.visual.trunk.cls_token": "vision.embeddings.cls_token",
    "biomedclip.visual.trunk.pos_embed": "vision.embeddings.position_embeddings",
    "biomedclip.visual.trunk.patch_embed.proj.": "vision.embeddings.patch_embeddings.projection.",
    "biomedclip.visual.trunk.blocks.": "vision.layers.",
    "biomedclip.visual.trunk.norm.": "vision.layernorm.",
    "biomedclip.text.transformer.": "text.",
    "biomedclip.text.proj.": "text_projection.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.o_proj.",
    ".attn.": ".attention.",
}
LEFT_OUT = {"biomedclip.logit_scale", "biomedclip.visual.head.proj.weight"}  # no mask depends on them


def build(model: BiomedCLIPSeg) -> Any:
    """A torch.nn.ModuleDict of the parts with the weights of our model, in evaluation mode."""
    torch = require_torch()
    config: Any = model.config
    width, hidden = config.text.width, config.text.projection_width
    reference: Any = torch.nn.ModuleDict(
        {
            "vision": make_vit(config.vision),
            "text": make_bert(config.text),
            "text_projection": torch.nn.Sequential(
                torch.nn.Linear(width, hidden, bias=False),
                torch.nn.GELU(),
                torch.nn.Linear(hidden, config.projection_dim, bias=False),
            ),
            "decoder": make_decoder(config),
        }
    )
    reference.load_state_dict(huggingface_names(to_torch(model)), strict=True)
    reference.taps = [i + 1 for i in config.extract_layers]  # of the hidden states, which the embeddings lead
    return reference.eval()


def transformer_sizes(config: Any) -> dict[str, Any]:
    """The sizes of a tower in Hugging Face's words."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
    }


def make_vit(config: ViTConfig) -> Any:
    """Hugging Face's vision transformer in timm's variant."""
    from transformers import ViTConfig as Theirs
    from transformers import ViTModel

    theirs = Theirs(
        **transformer_sizes(config),
        image_size=config.grid * config.patch_size,
        patch_size=config.patch_size,
        hidden_act=config.activation,
        layer_norm_eps=config.epsilon,
    )
    return ViTModel(theirs, add_pooling_layer=False)


def make_bert(config: BertConfig) -> Any:
    """Hugging Face's BERT."""
    from transformers import BertConfig as Theirs
    from transformers import BertModel

    theirs = Theirs(
        **transformer_sizes(config),
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        pad_token_id=config.pad_token_id,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )
    return BertModel(theirs, add_pooling_layer=config.has_pooler)


def make_decoder(config: BiomedCLIPSegConfig) -> Any:
    """Hugging Face's decoder, upsampling to the image's size at any patch."""
    from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

    # That of a CLIPSeg, whose decoder has the vision tower's epsilon and asks for nothing of the text tower.
    names = (field.name for field in dataclasses.fields(CLIPSegConfig) if field.name not in ("text", "vision"))
    vision = dataclasses.replace(config.vision, epsilon=config.decoder_epsilon)
    theirs = huggingface_config(CLIPSegConfig(vision=vision, **{name: getattr(config, name) for name in names}))
    theirs._attn_implementation = "sdpa"  # what a whole CLIPSeg would choose for its decoder
    decoder: Any = CLIPSegDecoder(theirs)
    fit_upsampling(decoder, config)
    return decoder


def huggingface_names(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Tensors under Hugging Face's names; queries, keys and values, which timm joins, apart."""
    torch = require_torch()
    renamed = {}
    for name, array in state_dict.items():
        if name in LEFT_OUT:
            continue
        for theirs, huggingfaces in RENAMED.items():
            name = name.replace(theirs, huggingfaces)
        tensor = torch.from_numpy(array.copy())
        if ".qkv." in name:
            query, key, value = tensor.chunk(3)
            parts = {"q_proj": query, "k_proj": key, "v_proj": value}
            renamed |= {name.replace("qkv", part): third for part, third in parts.items()}
        else:
            renamed[name] = tensor
    return renamed


def forward(reference: Any, pixel_values: Any, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
    """Both towers' hidden states, the text embedding and logits (B, 1, H, W) of tensors."""
    vision = reference["vision"](pixel_values, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    text = reference["text"](input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
    embedding = reference["text_projection"](text[-1][:, 0])
    masks = reference["decoder"]([vision[i] for i in reference.taps], embedding).logits
    return {
        "vision": vision,
        "text": text,
        "text_embedding": embedding,
        "logits": masks.reshape(-1, 1, *pixel_values.shape[2:]),
    }


def logits(reference: Any, pixel_values: Any, input_ids: Any, attention_mask: Any) -> Any:
    """Logits (B, 1, H, W) of tensors; gradients flow into all parts."""
    return forward(reference, pixel_values, input_ids, attention_mask)["logits"]


def their_outputs(
    reference: Any, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray
) -> Outputs:
    """Every layer's activations in PyTorch; `pixel_values` are (B, H, W, 3)."""
    layers = {f"decoder.{i}": layer for i, layer in enumerate(reference["decoder"].layers)}
    with record_layers(layers) as outputs:
        result = forward(reference, *tensors(pixel_values, input_ids, attention_mask))
    for tower in ("text", "vision"):
        outputs |= {f"{tower}.{i}": state.numpy() for i, state in enumerate(result[tower][1:])}
    return outputs | {"text_embedding": result["text_embedding"].numpy(), "logits": nhwc(result["logits"])}
