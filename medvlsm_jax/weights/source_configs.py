"""What the files beside weights say of their network: it holds in ours, or is refused.

Weights alone do not tell activations, epsilons, heads or taps. Hugging Face's folders have a config.json and what
prepares their images, open_clip's an open_clip_config.json, segmentation_models_pytorch's a config.json of its own.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import override, preset
from medvlsm_jax.models.layers import ACTIVATIONS
from medvlsm_jax.weights.names import fit_names
from medvlsm_jax.weights.sources import read_json
from medvlsm_jax.weights.tables import TABLES, StateDict

Overrides = dict[str, Any]  # of a network's config, nested as it is

CONFIG, OPEN_CLIP = "config.json", "open_clip_config.json"
# Of the decoder that BiomedCLIPSeg-D takes from a CLIPSeg.
OF_DECODER = ("decoder_heads", "decoder_epsilon", "conditional_layer")


@dataclasses.dataclass(frozen=True)
class Fields:
    """A table of a config file.

    Attributes:
        path: of the file, for messages.
        content: the table.
        inside: where in the file it lies, `text_config.`.
    """

    path: Path
    content: Mapping[str, Any]
    inside: str = ""

    def table(self, name: str) -> "Fields":
        """A table in it, empty where there is none."""
        content = self.content.get(name)
        if content is None:
            content = {}
        if not isinstance(content, dict):
            raise self.refuse(name, "a table")
        return Fields(self.path, content, f"{self.inside}{name}.")

    def value(self, name: str, default: Any, kind: type | None = None) -> Any:
        """A field, of the type of its default (a whole number is a float, too); raises UserError when it is another."""
        value, kind = self.content.get(name, default), kind or type(default)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and isinstance(value, list) and all(type(x) in (int, float) for x in value):
            value = tuple(value)
        if type(value) is not kind:
            raise self.refuse(name, f"one such as {default!r}")
        return value

    def positive(self, name: str, default: Any) -> Any:
        """The same of a field that must be a positive number."""
        value = self.value(name, default)
        if not 0 < value < float("inf"):
            raise self.refuse(name, "a positive number")
        return value

    def require(self, name: str, *supported: Any, default: Any) -> Any:
        """A field that must be one of a few values; raises UserError when it is not."""
        value = self.content.get(name, default)
        if not any(value == known and type(value) is type(known) for known in supported):
            raise self.refuse(name, " or ".join(repr(known) for known in supported))
        return value

    def refuse(self, name: str, supported: str) -> UserError:
        """The line that names a field, its value and what could be there."""
        value = str(self.content.get(name))
        return UserError(
            f"{self.path}: {self.inside}{name} is {value if len(value) < 80 else value[:80] + '…'}, and supported is "
            f"{supported}: the network would not be the one that was trained"
        )


def source_overrides(model: str, folder: Path, state_dict: StateDict) -> Overrides:
    """What the files beside weights say of a preset's config.

    Args:
        model: the preset.
        folder: where the weights lie.
        state_dict: the weights.

    Raises:
        UserError: a file says what is not supported, or other sizes than the weights have.
    """
    network, config = preset(model)
    read = {"clipseg": clipseg_overrides, "biomedclipseg": biomedclip_overrides, "cris": clip_overrides}
    overrides = read.get(network, smp_overrides)(folder)
    arrays = fit_names(state_dict, network).arrays
    check_sizes(folder, TABLES[network].sizes(arrays, config), overrides)
    return overrides


def describe_overrides(model: str, overrides: Overrides, state_dict: StateDict) -> str:
    """What they change in the network that preset and weights alone would give; empty where nothing."""
    network, config = preset(model)
    config = override(config, TABLES[network].sizes(fit_names(state_dict, network).arrays, config))
    changes = differences(dataclasses.asdict(config), dataclasses.asdict(override(config, overrides)))
    return "the config beside the weights says " + ", ".join(changes) if changes else ""


def differences(before: Overrides, after: Overrides, inside: str = "") -> list[str]:
    """`NAME=VALUE` of what is another."""
    changes = []
    for name, value in after.items():
        if isinstance(value, dict):
            changes += differences(before[name], value, f"{inside}{name}.")
        elif value != before[name]:
            changes.append(f"{inside}{name}={value}")
    return changes


def decoder_overrides(folder: Path) -> Overrides:
    """What the files beside a CLIPSeg say of its decoder alone."""
    overrides = clipseg_overrides(folder)
    return {name: overrides[name] for name in OF_DECODER if name in overrides}


def check_sizes(folder: Path, sizes: Overrides, overrides: Overrides, inside: str = "") -> None:
    """Raises UserError when a config file gives another size than the weights have."""
    for name, value in overrides.items():
        size = sizes.get(name, value)
        if isinstance(value, dict):
            check_sizes(folder, size, value, f"{inside}{name}.")
        elif name not in ("heads", "eos_token_id", "context_length", "decoder_heads", "classes") and size != value:
            raise UserError(
                f"the config beside the weights in {folder} asks for {inside}{name}={value}, and the weights have "
                f"{size}: they do not belong together"
            )


def clipseg_config(folder: Path) -> Mapping[str, Any] | None:
    """Hugging Face's config of a CLIPSeg that lies in a folder; None where there is none."""
    path = folder / CONFIG
    content = read_json(path) if path.is_file() else {}
    return content if content.get("model_type") == "clipseg" else None


def clipseg_overrides(folder: Path) -> Overrides:
    """Of Hugging Face's CLIPSegConfig, whose defaults hold for what a file leaves out (transformers 5)."""
    content = clipseg_config(folder)
    overrides = pixel_overrides(folder)
    if content is None:
        return overrides
    fields = Fields(folder / CONFIG, content)
    text, vision = (tower(fields, name) for name in ("text_config", "vision_config"))
    vision.require("num_channels", 3, default=3)
    patch = vision.positive("patch_size", 32)
    return overrides | {
        "text": {
            **transformer(text, width=512, mlp_width=2048, depth=12, heads=8),
            "vocab_size": text.value("vocab_size", 49408),
            "context_length": text.value("max_position_embeddings", 77),
            "eos_token_id": end_token(text),
        },
        "vision": {
            **transformer(vision, width=768, mlp_width=3072, depth=12, heads=12),
            "patch_size": patch,
            "grid": vision.value("image_size", 224) // patch,
        },
        "projection_dim": fields.value("projection_dim", 512),
        "extract_layers": fields.value("extract_layers", (3, 6, 9)),
        "reduce_dim": fields.value("reduce_dim", 64),
        "conditional_layer": fields.value("conditional_layer", 0),
        "decoder_heads": fields.positive("decoder_num_attention_heads", 4),
        "decoder_mlp_width": fields.value("decoder_intermediate_size", 2048),
        "decoder_epsilon": vision.positive(
            "layer_norm_eps", 1e-5
        ),  # the decoder's blocks are the vision tower's, with ReLU whatever is asked for
        "complex_upsampling": fields.value("use_complex_transposed_convolution", False),
    }


def tower(fields: Fields, name: str) -> Fields:
    """The table of a tower; old files have a second one, which counts where it is."""
    return fields.table(f"{name}_dict" if fields.content.get(f"{name}_dict") else name)


def transformer(fields: Fields, *, width: int, mlp_width: int, depth: int, heads: int) -> Overrides:
    """What both towers have; the arguments are Hugging Face's defaults."""
    return {
        "width": fields.value("hidden_size", width),
        "mlp_width": fields.value("intermediate_size", mlp_width),
        "depth": fields.value("num_hidden_layers", depth),
        "heads": fields.positive("num_attention_heads", heads),
        "activation": fields.require("hidden_act", *ACTIVATIONS, default="quick_gelu"),
        "epsilon": fields.positive("layer_norm_eps", 1e-5),
    }


def end_token(text: Fields) -> int:
    """The id of the end token. Files of before 2023 say 2, and Hugging Face takes the largest id of a sentence then."""
    end = text.value("eos_token_id", 49407)
    return text.value("vocab_size", 49408) - 1 if end == 2 else end


def pixel_overrides(folder: Path) -> Overrides:
    """Size and normalisation of images, of Hugging Face's image processors."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        fields = Fields(path, read_json(path) if path.is_file() else {})
        if name == "processor_config.json":
            fields = fields.table("image_processor")
        if "image_mean" in fields.content:
            break
    else:
        return {}
    fields.require("do_normalize", True, default=True)
    fields.require("do_rescale", True, default=True)
    if abs(fields.value("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise fields.refuse("rescale_factor", "1/255")
    mean, std = fields.value("image_mean", (0.5,) * 3, tuple), fields.value("image_std", (0.5,) * 3, tuple)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise fields.refuse("image_std", "three positive numbers, as image_mean has three")
    size = fields.content.get("size", 352)
    sides = {size} if type(size) is int else set(size.values()) if isinstance(size, dict) else set()
    if len(sides) != 1 or not all(type(side) is int and side > 0 for side in sides):
        raise fields.refuse("size", "a square, such as 352")
    return {"image_size": sides.pop(), "pixel_mean": mean, "pixel_std": std}


def open_clip_fields(folder: Path) -> Fields | None:
    """What open_clip says of a model that lies in a folder; None where there is nothing."""
    path = folder / OPEN_CLIP
    content = read_json(path) if path.is_file() else {}
    return Fields(path, content) if "model_cfg" in content else None


def open_clip_pixels(fields: Fields) -> Overrides:
    """The normalisation of images; how they are cropped and resized is the paper's, not CLIP's."""
    preprocess = fields.table("preprocess_cfg")
    names = {"mean": "pixel_mean", "std": "pixel_std"}
    return {ours: preprocess.value(name, (), tuple) for name, ours in names.items() if name in preprocess.content}


def biomedclip_overrides(folder: Path) -> Overrides:
    """Of open_clip's config of a BiomedCLIP: timm's vision transformer and a BERT."""
    fields = open_clip_fields(folder)
    if fields is None:
        return {}
    model = fields.table("model_cfg")
    text, vision = model.table("text_cfg"), model.table("vision_cfg")
    text.require("hf_pooler_type", "cls_last_hidden_state_pooler", default=None)
    text.require("hf_proj_type", "mlp", default=None)
    text_name, vision_name = text.value("hf_model_name", ""), vision.value("timm_model_name", "")
    if "bert" not in text_name.lower() or "roberta" in text_name.lower():
        raise text.refuse("hf_model_name", "a BERT, such as PubMedBERT")
    if not re.fullmatch(r"vit_(tiny|small|base|large)_patch\d+_\d+", vision_name.partition(".")[0]):
        raise vision.refuse("timm_model_name", "a plain vision transformer, such as vit_base_patch16_224")
    return open_clip_pixels(fields) | {
        "projection_dim": model.value("embed_dim", 512),
        "image_size": vision.positive("image_size", 224),
        "text": {"context_length": text.positive("context_length", 77)},
    }


def clip_overrides(folder: Path) -> Overrides:
    """Of open_clip's config of the CLIP that a CRIS starts from."""
    fields = open_clip_fields(folder)
    if fields is None:
        return {}
    model = fields.table("model_cfg")
    text = model.table("text_cfg")
    activation = "quick_gelu" if model.value("quick_gelu", False) else "gelu"
    heads = {"heads": text.positive("heads", 8)} if "heads" in text.content else {}
    return open_clip_pixels(fields) | {"text": {"activation": activation, **heads}}


def smp_overrides(folder: Path) -> Overrides:
    """Of segmentation_models_pytorch's config of a network, as its `save_pretrained` writes it."""
    path = folder / CONFIG
    content = read_json(path) if path.is_file() else {}
    if "encoder_name" not in content:
        return {}
    fields = Fields(path, content)
    fields.require("activation", None, "sigmoid", default=None)  # of the logits, which ours leave to the metrics
    fields.require("decoder_interpolation", "nearest", default="nearest")
    fields.require("decoder_attention_type", None, default=None)
    fields.require("in_channels", 3, default=3)
    overrides: Overrides = {}
    if "encoder_output_stride" in content:
        fields.require("upsampling", 4, default=4)
        overrides["output_stride"] = fields.require("encoder_output_stride", 8, 16, default=16)
        overrides["atrous_rates"] = fields.value("decoder_atrous_rates", (12, 24, 36))
    return overrides
