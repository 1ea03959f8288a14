"""CRIS as its authors' `CRIS` names it; its encoders are OpenAI's CLIP RN50, behind `backbone.`."""

from typing import Any

from medvlsm_jax.weights.tables.rows import (
    ARRAY,
    BATCH_NORM,
    CONV,
    EMBEDDING,
    LINEAR,
    NORM,
    Row,
    StateDict,
    Table,
    conv_norm,
    count_heads,
    count_layers,
    joined_attention,
    size,
    stage_rows,
)

# What a checkpoint of CLIP alone (RN50.pt) starts with.
CLIP_NAMES = (
    "visual.",
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "positional_embedding",
    "text_projection",
    "logit_scale",
)


def attention_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """A torch.nn.MultiheadAttention."""
    return [
        *joined_attention(torch_prefix, our_prefix, "in_proj_weight", "in_proj_bias"),
        (f"{torch_prefix}.out_proj", f"{our_prefix}.out", LINEAR),
    ]


def text_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """A block of CLIP's text transformer as OpenAI names it."""
    return [
        *attention_rows(f"{torch_prefix}.attn", f"{our_prefix}.attention"),
        (f"{torch_prefix}.ln_1", f"{our_prefix}.attention_norm", NORM),
        (f"{torch_prefix}.mlp.c_fc", f"{our_prefix}.mlp.expand", LINEAR),
        (f"{torch_prefix}.mlp.c_proj", f"{our_prefix}.mlp.contract", LINEAR),
        (f"{torch_prefix}.ln_2", f"{our_prefix}.mlp_norm", NORM),
    ]


def resnet_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """CLIP's ResNet: three convolutions, then the bottlenecks of four stages."""
    rows = []
    for i in range(3):
        rows += conv_norm(f"{torch_prefix}.conv{i + 1}", f"{torch_prefix}.bn{i + 1}", f"{our_prefix}.stem.{i}")
    for i in range(4):
        rows += stage_rows(f"{torch_prefix}.layer{i + 1}", f"{our_prefix}.stages.{i}")
    return rows


def pool_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """The attention pool and its residual."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "c_proj"}
    return [
        (f"{torch_prefix}.positional_embedding", f"{our_prefix}.position_embedding", ARRAY),
        *((f"{torch_prefix}.{theirs}", f"{our_prefix}.attention.{ours}", LINEAR) for ours, theirs in names.items()),
        *conv_norm(f"{torch_prefix}.connect.0", f"{torch_prefix}.connect.1", f"{our_prefix}.connect"),
    ]


def neck_rows() -> list[Row]:
    """The neck."""
    convs = {
        "reduce5": "f1_v_proj",
        "reduce4": "f2_v_proj",
        "reduce3": "f3_v_proj",
        "fuse4": "f2_cat",
        "fuse3": "f3_cat",
        "project5": "f4_proj5",
        "project4": "f4_proj4",
        "project3": "f4_proj3",
        "aggregate": "aggr",
        "coord_conv": "coordconv.0.conv1",
        "conv": "coordconv.1",
    }
    rows: list[Row] = [
        ("neck.txt_proj.0", "neck.state", LINEAR),
        ("neck.txt_proj.1", "neck.state_norm", BATCH_NORM),
        ("neck.norm_layer.0", "neck.fuse5_norm", BATCH_NORM),
    ]
    for ours, theirs in convs.items():
        rows += conv_norm(f"neck.{theirs}.0", f"neck.{theirs}.1", f"neck.{ours}")
    return rows


def decoder_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """A layer of the decoder."""
    names = [
        ("norm1", "self_norm", NORM),
        ("self_attn_norm", "self_out_norm", NORM),
        ("norm2", "cross_norm", NORM),
        ("cross_attn_norm", "cross_out_norm", NORM),
        ("norm3", "mlp_norm", NORM),
        ("ffn.0", "mlp.expand", LINEAR),
        ("ffn.3", "mlp.norm", NORM),
        ("ffn.4", "mlp.contract", LINEAR),
    ]
    return [
        *attention_rows(f"{torch_prefix}.self_attn", f"{our_prefix}.self_attention"),
        *attention_rows(f"{torch_prefix}.multihead_attn", f"{our_prefix}.cross_attention"),
        *((f"{torch_prefix}.{theirs}", f"{our_prefix}.{ours}", kind) for theirs, ours, kind in names),
    ]


ROWS: list[Row] = [
    ("backbone.logit_scale", "logit_scale", ARRAY),
    ("backbone.token_embedding", "text.token_embedding", EMBEDDING),
    ("backbone.positional_embedding", "text.position_embedding", ARRAY),
    *text_rows("backbone.transformer.resblocks.*", "text.blocks.*"),
    ("backbone.ln_final", "text.final_norm", NORM),
    ("backbone.text_projection", "text.projection.kernel", ARRAY),  # (in, out), as ours
    *resnet_rows("backbone.visual", "vision.backbone"),
    *pool_rows("backbone.visual.attnpool", "vision.pool"),
    *neck_rows(),
    *decoder_rows("decoder.layers.*", "decoder.layers.*"),
    ("decoder.norm", "decoder.norm", NORM),
    *conv_norm("proj.vis.1.0", "proj.vis.1.1", "projector.conv1"),
    *conv_norm("proj.vis.3.0", "proj.vis.3.1", "projector.conv2"),
    ("proj.vis.4", "projector.out", CONV),
    ("proj.txt", "projector.kernel", LINEAR),
]


def rename(name: str) -> str:
    """CLIP's names as CRIS has them; all others are CRIS's."""
    return f"backbone.{name}" if name.startswith(CLIP_NAMES) else name


def text_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """The text encoder's part of the sizes."""
    names = "backbone.token_embedding.weight"
    vocab_size, width = size(state_dict, names, 0, preset.vocab_size), size(state_dict, names, 1, preset.width)
    blocks = "backbone.transformer.resblocks."
    return {
        "vocab_size": vocab_size,
        # CLIP's end token is the last of its vocabulary.
        "eos_token_id": preset.eos_token_id if vocab_size == preset.vocab_size else vocab_size - 1,
        "context_length": size(state_dict, "backbone.positional_embedding", 0, preset.context_length),
        "width": width,
        "depth": count_layers(state_dict, blocks) or preset.depth,
        "heads": count_heads(width, preset),
        "mlp_width": size(state_dict, blocks + "0.mlp.c_fc.weight", 0, preset.mlp_width),
    }


def cris_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of the preset that fit a checkpoint of CRIS or CLIP; what its arrays do not tell stays."""
    visual = "backbone.visual."
    layers = (
        count_layers(state_dict, f"{visual}layer{i + 1}.") or count for i, count in enumerate(preset.vision.layers)
    )
    positions = size(state_dict, visual + "attnpool.positional_embedding", 0, preset.grid**2 + 1)
    channels = tuple(
        size(state_dict, f"neck.{name}.0.weight", 0, default)
        for name, default in zip(("f3_v_proj", "f2_v_proj", "f1_v_proj"), preset.fpn_channels, strict=True)
    )
    heads = preset.decoder_heads if channels[1] == preset.decoder_width else max(1, channels[1] // 64)
    return {
        "text": text_sizes(state_dict, preset.text),
        "vision": {
            "layers": tuple(layers),
            "width": size(state_dict, visual + "conv3.weight", 0, preset.vision.width),
        },
        "grid": round((positions - 1) ** 0.5),
        "projection_dim": size(state_dict, "backbone.text_projection", 1, preset.projection_dim),
        "fpn_channels": channels,
        "decoder_depth": count_layers(state_dict, "decoder.layers.") or preset.decoder_depth,
        "decoder_heads": heads,
        "decoder_mlp_width": size(state_dict, "decoder.layers.0.ffn.0.weight", 0, preset.decoder_mlp_width),
    }


TABLE = Table(
    ROWS,
    cris_sizes,
    rename=rename,
    head=("neck.", "decoder.", "proj.", "backbone.visual.attnpool.connect."),
    # Scalars of OpenAI's archives, and the causal mask that open_clip keeps as a buffer.
    ignored=("position_ids", "num_batches_tracked", "input_resolution", "context_length", "vocab_size", "attn_mask"),
)
