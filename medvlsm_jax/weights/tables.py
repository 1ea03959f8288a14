"""How PyTorch checkpoints name the parameters of each network: one table per network, read both ways.

A row is (PyTorch's prefix, our prefix, kind of layer); `*` stands for a layer number, the same one on both sides.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a layer: its names on both sides and the axis order that takes PyTorch's layout to ours."""

    torch_name: str
    our_name: str
    axes: tuple[int, ...] | None = None  # None: the same layout


BIAS = Leaf("bias", "bias")
LINEAR = (Leaf("weight", "kernel", (1, 0)), BIAS)
CONV = (Leaf("weight", "kernel", (2, 3, 1, 0)), BIAS)
TRANSPOSED_CONV = (Leaf("weight", "kernel", (0, 2, 3, 1)), BIAS)
NORM = (Leaf("weight", "scale"), BIAS)
EMBEDDING = (Leaf("weight", ""),)
ARRAY = (Leaf("", ""),)

Row = tuple[str, str, tuple[Leaf, ...]]


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


CLIPSEG_DECODER: list[Row] = [
    ("decoder.film_mul", "decoder.film_mul", LINEAR),
    ("decoder.film_add", "decoder.film_add", LINEAR),
    ("decoder.reduces.*", "decoder.reduces.*", LINEAR),
    *block_rows("decoder.layers.*", "decoder.layers.*"),
    ("decoder.transposed_convolution.0", "decoder.upsampling.conv", CONV),
    ("decoder.transposed_convolution.2", "decoder.upsampling.first", TRANSPOSED_CONV),
    ("decoder.transposed_convolution.4", "decoder.upsampling.second", TRANSPOSED_CONV),
    ("decoder.transposed_convolution", "decoder.upsampling.single", TRANSPOSED_CONV),
]

CLIPSEG: list[Row] = [
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
    *CLIPSEG_DECODER,
]


def clipseg_sizes(state_dict: Mapping[str, np.ndarray], preset: Any) -> dict[str, Any]:
    """Overrides of the preset that fit a CLIPSeg checkpoint; what its arrays do not tell stays as in the preset.

    The number of attention heads is not in a checkpoint: CLIP's rule of 64 channels a head is applied where the width
    is not the preset's.
    """
    text, vision = "clip.text_model.", "clip.vision_model."

    def size(name: str, axis: int, default: int) -> int:
        array = state_dict.get(name)
        return int(array.shape[axis]) if array is not None and array.ndim > axis else default

    def depth(prefix: str, default: int) -> int:
        return count_layers(state_dict, prefix) or default

    def heads(width: int, default: Any) -> int:
        return default.heads if width == default.width else max(1, width // 64)

    vocab_size = size(text + "embeddings.token_embedding.weight", 0, preset.text.vocab_size)
    text_width = size(text + "embeddings.token_embedding.weight", 1, preset.text.width)
    vision_width = size(vision + "embeddings.class_embedding", 0, preset.vision.width)
    positions = size(vision + "embeddings.position_embedding.weight", 0, preset.vision.grid**2 + 1)
    return {
        "text": {
            "vocab_size": vocab_size,
            # CLIP's end token is the last of its vocabulary.
            "eos_token_id": preset.text.eos_token_id if vocab_size == preset.text.vocab_size else vocab_size - 1,
            "context_length": size(text + "embeddings.position_embedding.weight", 0, preset.text.context_length),
            "width": text_width,
            "depth": depth(text + "encoder.layers.", preset.text.depth),
            "heads": heads(text_width, preset.text),
            "mlp_width": size(text + "encoder.layers.0.mlp.fc1.weight", 0, preset.text.mlp_width),
        },
        "vision": {
            "patch_size": size(vision + "embeddings.patch_embedding.weight", 2, preset.vision.patch_size),
            "grid": round((positions - 1) ** 0.5),
            "width": vision_width,
            "depth": depth(vision + "encoder.layers.", preset.vision.depth),
            "heads": heads(vision_width, preset.vision),
            "mlp_width": size(vision + "encoder.layers.0.mlp.fc1.weight", 0, preset.vision.mlp_width),
        },
        "projection_dim": size("clip.text_projection.weight", 0, preset.projection_dim),
        "reduce_dim": size("decoder.film_mul.weight", 0, preset.reduce_dim),
        "decoder_mlp_width": size("decoder.layers.0.mlp.fc1.weight", 0, preset.decoder_mlp_width),
        "complex_upsampling": "decoder.transposed_convolution.weight" not in state_dict,
    }


def count_layers(state_dict: Mapping[str, np.ndarray], prefix: str) -> int:
    """One more than the highest layer number that follows `prefix` in a name."""
    numbers = (name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


@dataclasses.dataclass(frozen=True)
class Table:
    """The names of a network, how to read its sizes, and what its checkpoints hold that is no parameter."""

    rows: list[Row]
    sizes: Callable[[Mapping[str, np.ndarray], Any], dict[str, Any]]
    wrappers: tuple[str, ...] = ("module.", "net.", "clipseg.")  # prefixes put around all names, outermost first
    ignored: tuple[str, ...] = (".position_ids",)  # endings of buffers that carry no learned value


TABLES: dict[str, Table] = {"clipseg": Table(CLIPSEG, clipseg_sizes)}
