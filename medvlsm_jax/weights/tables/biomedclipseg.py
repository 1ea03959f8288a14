"""BiomedCLIPSeg as the paper's code names it: open_clip's BiomedCLIP under `biomedclip.`, and CLIPSeg's decoder."""

from typing import Any

from medvlsm_jax.weights.tables.clipseg import DECODER, decoder_sizes
from medvlsm_jax.weights.tables.rows import (
    ARRAY,
    CONV,
    EMBEDDING,
    LINEAR,
    NORM,
    Leaf,
    Row,
    StateDict,
    Table,
    count_heads,
    count_layers,
    joined_attention,
    size,
)

PREFIX = "biomedclip."
TRUNK = f"{PREFIX}visual.trunk"
BERT = f"{PREFIX}text.transformer"
PROJECTION = f"{PREFIX}text.proj"
IMAGE_PROJECTION = f"{PREFIX}visual.head.proj"


def timm_rows() -> list[Row]:
    """A vision transformer as timm names it, and open_clip's projection on it."""
    block, ours = f"{TRUNK}.blocks.*", "vision.blocks.*"
    return [
        (TRUNK, "vision", (Leaf("cls_token", "class_embedding", leading=2),)),
        (TRUNK, "vision", (Leaf("pos_embed", "position_embedding", leading=1),)),
        (f"{TRUNK}.patch_embed.proj", "vision.patch_embedding", CONV),
        (f"{block}.norm1", f"{ours}.attention_norm", NORM),
        *joined_attention(f"{block}.attn", f"{ours}.attention", "qkv.weight", "qkv.bias"),
        (f"{block}.attn.proj", f"{ours}.attention.out", LINEAR),
        (f"{block}.norm2", f"{ours}.mlp_norm", NORM),
        (f"{block}.mlp.fc1", f"{ours}.mlp.expand", LINEAR),
        (f"{block}.mlp.fc2", f"{ours}.mlp.contract", LINEAR),
        (f"{TRUNK}.norm", "vision.post_norm", NORM),
        (IMAGE_PROJECTION, "vision.projection", LINEAR),
    ]


def bert_rows() -> list[Row]:
    """A BERT as Hugging Face names it, and open_clip's projection on it."""
    block, ours = f"{BERT}.encoder.layer.*", "text.blocks.*"
    return [
        (f"{BERT}.embeddings.word_embeddings", "text.token_embedding", EMBEDDING),
        (f"{BERT}.embeddings.position_embeddings", "text.position_embedding", EMBEDDING),
        (f"{BERT}.embeddings.token_type_embeddings", "text.token_type_embedding", EMBEDDING),
        (f"{BERT}.embeddings.LayerNorm", "text.embedding_norm", NORM),
        (f"{block}.attention.self.query", f"{ours}.attention.query", LINEAR),
        (f"{block}.attention.self.key", f"{ours}.attention.key", LINEAR),
        (f"{block}.attention.self.value", f"{ours}.attention.value", LINEAR),
        (f"{block}.attention.output.dense", f"{ours}.attention.out", LINEAR),
        (f"{block}.attention.output.LayerNorm", f"{ours}.attention_norm", NORM),
        (f"{block}.intermediate.dense", f"{ours}.mlp.expand", LINEAR),
        (f"{block}.output.dense", f"{ours}.mlp.contract", LINEAR),
        (f"{block}.output.LayerNorm", f"{ours}.mlp_norm", NORM),
        (f"{BERT}.pooler.dense", "text.pooler", LINEAR),
        (f"{PROJECTION}.0", "text.projection.0", LINEAR),
        (f"{PROJECTION}.2", "text.projection.1", LINEAR),
    ]


ROWS: list[Row] = [(f"{PREFIX}logit_scale", "logit_scale", ARRAY), *timm_rows(), *bert_rows(), *DECODER]


def bert_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of a text config that fit the arrays."""
    words = f"{BERT}.embeddings.word_embeddings.weight"
    width = size(state_dict, words, 1, preset.width)
    positions = size(state_dict, f"{BERT}.embeddings.position_embeddings.weight", 0, preset.max_positions)
    return {
        "vocab_size": size(state_dict, words, 0, preset.vocab_size),
        "context_length": min(preset.context_length, positions),
        "max_positions": positions,
        "width": width,
        "depth": count_layers(state_dict, f"{BERT}.encoder.layer.") or preset.depth,
        "heads": count_heads(width, preset),
        "mlp_width": size(state_dict, f"{BERT}.encoder.layer.0.intermediate.dense.weight", 0, preset.mlp_width),
        "projection_width": size(state_dict, f"{PROJECTION}.0.weight", 0, preset.projection_width),
        "has_pooler": any(name.startswith(f"{BERT}.pooler.") for name in state_dict),
    }


def timm_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of a vision config that fit the arrays."""
    width = size(state_dict, f"{TRUNK}.cls_token", 2, preset.width)
    positions = size(state_dict, f"{TRUNK}.pos_embed", 1, preset.grid**2 + 1)
    return {
        "patch_size": size(state_dict, f"{TRUNK}.patch_embed.proj.weight", 2, preset.patch_size),
        "grid": round((positions - 1) ** 0.5),
        "width": width,
        "depth": count_layers(state_dict, f"{TRUNK}.blocks.") or preset.depth,
        "heads": count_heads(width, preset),
        "mlp_width": size(state_dict, f"{TRUNK}.blocks.0.mlp.fc1.weight", 0, preset.mlp_width),
    }


def biomedclipseg_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of the preset that fit a checkpoint; what its arrays do not tell stays as in the preset."""
    return {
        "text": bert_sizes(state_dict, preset.text),
        "vision": timm_sizes(state_dict, preset.vision),
        "projection_dim": size(state_dict, f"{IMAGE_PROJECTION}.weight", 0, preset.projection_dim),
        **decoder_sizes(state_dict, preset),
    }


def with_prefix(name: str) -> str:
    """BiomedCLIP's own file holds its names without the prefix."""
    return PREFIX + name if name.startswith(("visual.", "text.")) or name == "logit_scale" else name


TABLE = Table(ROWS, biomedclipseg_sizes, rename=with_prefix, head=("decoder.",))
