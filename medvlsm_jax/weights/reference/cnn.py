"""segmentation_models_pytorch's U-Net, U-Net++ and DeepLabV3+ on our weights."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.cnn import CNN, DeepLabV3PlusConfig, UNetConfig, UNetPlusPlusConfig
from medvlsm_jax.models.resnet import ResNetConfig
from medvlsm_jax.weights.convert import to_torch
from medvlsm_jax.weights.reference.pytorch import Outputs, nhwc, record_layers, require_torch


def require_smp() -> Any:
    """The segmentation_models_pytorch module; raises UserError when it is not installed."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise UserError(
            "this compares with an implementation that is not installed: pip install segmentation-models-pytorch"
        ) from error
    return segmentation_models_pytorch


def build(model: CNN) -> Any:
    """The PyTorch network with the weights of our model, in evaluation mode."""
    torch, smp = require_torch(), require_smp()
    config: Any = model.config
    options: dict[str, Any] = {
        "encoder_name": encoder_name(config.encoder),
        "encoder_weights": None,
        "decoder_channels": config.decoder_channels,
        "classes": max(1, len(config.classes)),
    }
    if isinstance(config, DeepLabV3PlusConfig):
        options |= {
            "encoder_output_stride": config.output_stride,
            "decoder_atrous_rates": config.atrous_rates,
            "decoder_aspp_dropout": config.aspp_dropout,
        }
    networks = {UNetConfig: smp.Unet, UNetPlusPlusConfig: smp.UnetPlusPlus, DeepLabV3PlusConfig: smp.DeepLabV3Plus}
    reference = networks[type(config)](**options)
    state_dict = {name: torch.from_numpy(array.copy()) for name, array in to_torch(model).items()}
    reference.load_state_dict(state_dict, strict=True)
    return reference.eval()


def encoder_name(config: ResNetConfig) -> str:
    """The name of a ResNet; one of other sizes than ResNet-50's is registered first."""
    if config == ResNetConfig():
        return "resnet50"
    from segmentation_models_pytorch.encoders import encoders
    from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
    from torch import nn
    from torchvision.models.resnet import Bottleneck

    width = config.width

    class ResNetOfWidth(ResNetEncoder):
        def __init__(self, **options: Any):
            super().__init__(**options, block=Bottleneck, layers=config.layers)
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            for i, depth in enumerate(config.layers):
                setattr(self, f"layer{i + 1}", self._make_layer(Bottleneck, width * 2**i, depth, stride=min(2, i + 1)))

    name = f"resnet-{config.layers}-{width}"
    params = {"out_channels": [3, width, *config.channels]}
    encoders[name] = {"encoder": ResNetOfWidth, "pretrained_settings": {}, "params": params}
    return name


def logits(reference: Any, pixel_values: Any, input_ids: Any = None, attention_mask: Any = None) -> Any:
    """Logits (B, classes, H, W) of a tensor; a sentence is ignored."""
    return reference(pixel_values)


def their_layers(reference: Any) -> dict[str, Any]:
    """Our names of the modules that are compared."""
    encoder, decoder = reference.encoder, reference.decoder
    layers = {"resnet.0": encoder.relu} | {f"resnet.{i}": getattr(encoder, f"layer{i}") for i in range(1, 5)}
    if hasattr(decoder, "aspp"):
        parts = {"aspp": decoder.aspp[0], "refine": decoder.aspp, "low_level": decoder.block1, "fuse": decoder.block2}
    else:
        parts = dict(decoder.blocks.named_children())
    return layers | {f"decoder.{name}": module for name, module in parts.items()}


def their_outputs(
    reference: Any,
    pixel_values: np.ndarray,
    input_ids: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
) -> Outputs:
    """Every part's activations in PyTorch; `pixel_values` are (B, H, W, 3)."""
    pixels = require_torch().from_numpy(pixel_values.transpose(0, 3, 1, 2).copy())
    with record_layers(their_layers(reference)) as outputs:
        result = reference(pixels)
    return outputs | {"logits": nhwc(result)}


def our_outputs(
    model: CNN,
    pixel_values: np.ndarray,
    input_ids: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
) -> Outputs:
    """The same parts' activations in JAX."""
    return {name: np.asarray(value) for name, value in hidden_states(model, jnp.asarray(pixel_values)).items()}


@nnx.jit
def hidden_states(model: CNN, pixel_values: Float[Array, "b height width 3"]) -> dict[str, Float[Array, "b _ _ _"]]:
    """Every part's activations by name."""
    features = model.resnet(pixel_values)
    outputs = {f"resnet.{i}": feature for i, feature in enumerate(features)}
    outputs |= {f"decoder.{name}": state for name, state in model.decoder.hidden_states(features).items()}
    return outputs | {"logits": model(pixel_values)}
