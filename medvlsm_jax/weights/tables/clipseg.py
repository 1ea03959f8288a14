"""CLIPSeg as Hugging Face's `CLIPSegForImageSegmentation` names it."""

from typing import Any

from medvlsm_jax.weights.tables.rows import (
    ARRAY,
    CONV,
    EMBEDDING,
    LINEAR,
    NORM,
    TRANSPOSED_CONV,
    Row,
    StateDict,
    Table,
    count_heads,
    count_layers,
    size,
)


def block_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """A transformer block as Hugging Face's CLIP names it."""
    names = [
        ("self_attn.q_proj", "attention.query", LINEAR),
        ("self_attn.k_proj", "attention.key", LINEAR),
        ("self_attn.v_proj", "attention.value", LINEAR),
        ("self_attn.out_proj", "attention.out", LINEAR),
        ("layer_norm1", "attention_norm", NORM),
        ("mlp.fc1", "mlp.expand", LINEAR),
        ("mlp.fc2", "mlp.contract", LINEAR),
        ("layer_norm2", "mlp_norm", NORM),
    ]
    return [(f"{torch_prefix}.{theirs}", f"{our_prefix}.{ours}", kind) for theirs, ours, kind in names]


DECODER: list[Row] = [
    ("decoder.film_mul", "decoder.film_mul", LINEAR),
    ("decoder.film_add", "decoder.film_add", LINEAR),
    ("decoder.reduces.*", "decoder.reduces.*", LINEAR),
    *block_rows("decoder.layers.*", "decoder.layers.*"),
    ("decoder.transposed_convolution.0", "decoder.upsampling.conv", CONV),
    ("decoder.transposed_convolution.2", "decoder.upsampling.first", TRANSPOSED_CONV),
    ("decoder.transposed_convolution.4", "decoder.upsampling.second", TRANSPOSED_CONV),
    ("decoder.transposed_convolution", "decoder.upsampling.single", TRANSPOSED_CONV),
]

ROWS: list[Row] = [
    ("clip.logit_scale", "logit_scale", ARRAY),
    ("clip.text_model.embeddings.token_embedding", "text.token_embedding", EMBEDDING),
    ("clip.text_model.embeddings.position_embedding", "text.position_embedding", EMBEDDING),
    *block_rows("clip.text_model.encoder.layers.*", "text.blocks.*"),
    ("clip.text_model.final_layer_norm", "text.final_norm", NORM),
    ("clip.text_projection", "text.projection", LINEAR),
    ("clip.vision_model.embeddings.class_embedding", "vision.class_embedding", ARRAY),
    ("clip.vision_model.embeddings.patch_embedding", "vision.patch_embedding", CONV),
    ("clip.vision_model.embeddings.position_embedding", "vision.position_embedding", EMBEDDING),
    ("clip.vision_model.pre_layrnorm", "vision.pre_norm", NORM),
    *block_rows("clip.vision_model.encoder.layers.*", "vision.blocks.*"),
    ("clip.vision_model.post_layernorm", "vision.post_norm", NORM),
    ("clip.visual_projection", "vision.projection", LINEAR),
    *DECODER,
]


def decoder_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """The decoder's part of a CLIPSeg's or BiomedCLIPSeg's sizes."""
    return {
        "reduce_dim": size(state_dict, "decoder.film_mul.weight", 0, preset.reduce_dim),
        "decoder_mlp_width": size(state_dict, "decoder.layers.0.mlp.fc1.weight", 0, preset.decoder_mlp_width),
        "complex_upsampling": "decoder.transposed_convolution.weight" not in state_dict,
    }


def clipseg_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of the preset that fit a CLIPSeg checkpoint; what its arrays do not tell stays as in the preset."""
    text, vision = "clip.text_model.", "clip.vision_model."
    vocab_size = size(state_dict, text + "embeddings.token_embedding.weight", 0, preset.text.vocab_size)
    text_width = size(state_dict, text + "embeddings.token_embedding.weight", 1, preset.text.width)
    vision_width = size(state_dict, vision + "embeddings.class_embedding", 0, preset.vision.width)
    grid = preset.vision.grid
    positions = size(state_dict, vision + "embeddings.position_embedding.weight", 0, grid**2 + 1)
    tokens = size(state_dict, text + "embeddings.position_embedding.weight", 0, preset.text.context_length)
    return {
        "text": {
            "vocab_size": vocab_size,
            # CLIP's end token is the last of its vocabulary.
            "eos_token_id": preset.text.eos_token_id if vocab_size == preset.text.vocab_size else vocab_size - 1,
            "context_length": tokens,
            "width": text_width,
            "depth": count_layers(state_dict, text + "encoder.layers.") or preset.text.depth,
            "heads": count_heads(text_width, preset.text),
            "mlp_width": size(state_dict, text + "encoder.layers.0.mlp.fc1.weight", 0, preset.text.mlp_width),
        },
        "vision": {
            "patch_size": size(state_dict, vision + "embeddings.patch_embedding.weight", 2, preset.vision.patch_size),
            "grid": round((positions - 1) ** 0.5),
            "width": vision_width,
            "depth": count_layers(state_dict, vision + "encoder.layers.") or preset.vision.depth,
            "heads": count_heads(vision_width, preset.vision),
            "mlp_width": size(state_dict, vision + "encoder.layers.0.mlp.fc1.weight", 0, preset.vision.mlp_width),
        },
        "projection_dim": size(state_dict, "clip.text_projection.weight", 0, preset.projection_dim),
        **decoder_sizes(state_dict, preset),
    }


TABLE = Table(ROWS, clipseg_sizes)
