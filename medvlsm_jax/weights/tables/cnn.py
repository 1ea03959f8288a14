"""The image-only networks as segmentation_models_pytorch names them; a bare ResNet as torchvision and timm do."""

import re
from typing import Any

from medvlsm_jax.weights.tables.rows import CONV, Row, StateDict, Table, conv_norm, count_layers, size, stage_rows

ENCODER = "encoder."
BARE_RESNET = re.compile(r"(conv1|bn1|layer[1-4])\.")
HEAD = "segmentation_head.0"


def block_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """A decoder block of a U-Net or U-Net++."""
    return [
        row
        for conv in ("conv1", "conv2")
        for row in conv_norm(f"{torch_prefix}.{conv}.0", f"{torch_prefix}.{conv}.1", f"{our_prefix}.{conv}")
    ]


def separable_rows(torch_convs: str, torch_norm: str, ours: str) -> list[Row]:
    """A depthwise and a pointwise convolution with one BatchNorm."""
    pointwise = conv_norm(f"{torch_convs}.1", torch_norm, f"{ours}.pointwise")
    return [(f"{torch_convs}.0", f"{ours}.depthwise", CONV), *pointwise]


SHARED: list[Row] = [
    *conv_norm("encoder.conv1", "encoder.bn1", "resnet.stem"),
    *(row for i in range(4) for row in stage_rows(f"encoder.layer{i + 1}", f"resnet.stages.{i}")),
    (HEAD, "head", CONV),
]
ASPP = "decoder.aspp.0"
PYRAMID: list[Row] = [
    *conv_norm(f"{ASPP}.convs.0.0", f"{ASPP}.convs.0.1", "decoder.aspp.local"),
    *(
        row
        for i in range(3)
        for row in separable_rows(f"{ASPP}.convs.{i + 1}.0", f"{ASPP}.convs.{i + 1}.1", f"decoder.aspp.atrous.{i}")
    ),
    *conv_norm(f"{ASPP}.convs.4.1", f"{ASPP}.convs.4.2", "decoder.aspp.pooled"),
    *conv_norm(f"{ASPP}.project.0", f"{ASPP}.project.1", "decoder.aspp.project"),
    *separable_rows("decoder.aspp.1", "decoder.aspp.2", "decoder.refine"),
    *conv_norm("decoder.block1.0", "decoder.block1.1", "decoder.low_level"),
    *separable_rows("decoder.block2.0", "decoder.block2.1", "decoder.fuse"),
]


def with_encoder(name: str) -> str:
    """The name of a bare ResNet's array inside a network."""
    return ENCODER + name if BARE_RESNET.match(name) else name


def shared_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """The encoder's sizes and the number of classes; their names cannot be read, so they are numbered."""
    depths = (count_layers(state_dict, f"{ENCODER}layer{i + 1}.") for i in range(4))
    default = max(1, len(preset.classes))
    classes = size(state_dict, f"{HEAD}.weight", 0, default)
    numbered = tuple(f"class_{i}" for i in range(classes)) if classes > 1 else ()
    return {
        "encoder": {
            "layers": tuple(depth or preset.encoder.layers[i] for i, depth in enumerate(depths)),
            "width": size(state_dict, f"{ENCODER}conv1.weight", 0, preset.encoder.width),
        },
        "classes": preset.classes if classes == default else numbered,
    }


def unet_sizes(state_dict: StateDict, preset: Any, block: str = "{}") -> dict[str, Any]:
    """Overrides of the preset that fit a U-Net's checkpoint."""
    widths = tuple(
        size(state_dict, f"decoder.blocks.{block.format(i)}.conv1.0.weight", 0, width)
        for i, width in enumerate(preset.decoder_channels)
    )
    return {**shared_sizes(state_dict, preset), "decoder_channels": widths}


def unetplusplus_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of the preset that fit a U-Net++'s checkpoint."""
    return unet_sizes(state_dict, preset, "x_0_{}")


def deeplabv3plus_sizes(state_dict: StateDict, preset: Any) -> dict[str, Any]:
    """Overrides of the preset that fit a DeepLabV3+'s checkpoint; rates and strides cannot be read."""
    width = size(state_dict, f"{HEAD}.weight", 1, preset.decoder_channels)
    return {**shared_sizes(state_dict, preset), "decoder_channels": width}


COMMON: dict[str, Any] = {
    "rename": with_encoder,
    "head": ("decoder.", "segmentation_head."),
    "ignored": ("num_batches_tracked", "fc.weight", "fc.bias"),
}
UNET = Table([*SHARED, *block_rows("decoder.blocks.*", "decoder.blocks.*")], unet_sizes, **COMMON)
UNETPLUSPLUS = Table(
    [*SHARED, *block_rows("decoder.blocks.x_*_*", "decoder.blocks.x_*_*")], unetplusplus_sizes, **COMMON
)
DEEPLABV3PLUS = Table([*SHARED, *PYRAMID], deeplabv3plus_sizes, **COMMON)
