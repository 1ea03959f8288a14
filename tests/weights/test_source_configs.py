"""What lies beside weights holds in the network: logits are those of the library that wrote it, or it is refused."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS, override
from medvlsm_jax.weights import from_torch, read_checkpoint
from medvlsm_jax.weights.source_configs import (
    clipseg_config,
    clipseg_overrides,
    decoder_overrides,
    describe_overrides,
    differences,
    source_overrides,
)

TOLERANCE = 5e-5  # of the largest logit
SIDE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
TEXT = {**SIDE, "vocab_size": 99, "num_hidden_layers": 1, "max_position_embeddings": 16, "eos_token_id": 98}
VISION = {**SIDE, "num_hidden_layers": 4, "image_size": 32, "patch_size": 16}
TOP = {"projection_dim": 32, "reduce_dim": 16, "decoder_intermediate_size": 32, "extract_layers": [0, 1, 3]}

# Text, vision and the rest of a config: everything that weights do not tell is another than by default.
VARIANTS = {
    "all at once": (
        {"hidden_act": "gelu", "layer_norm_eps": 0.05, "num_attention_heads": 2, "eos_token_id": 7},
        {"hidden_act": "relu", "layer_norm_eps": 0.1, "num_attention_heads": 8},
        {"extract_layers": [3, 0, 1], "conditional_layer": 2, "decoder_num_attention_heads": 8},
    ),
    "refined, and an end token of before 2023": (
        {"eos_token_id": 2},
        {},
        {"use_complex_transposed_convolution": True, "decoder_hidden_act": "gelu", "extract_layers": [1, 2]},
    ),
}


def write(folder, text: dict, vision: dict, top: dict):
    """A folder as Hugging Face writes it, and the network that it was written from."""
    torch = pytest.importorskip("torch", reason="compares with Hugging Face")
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **{**TOP, **top})
    torch.manual_seed(0)
    theirs = CLIPSegForImageSegmentation(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(("text", "vision", "top"), VARIANTS.values(), ids=VARIANTS)
def test_logits_are_those_of_the_library_that_wrote_the_folder(exact_matmul, tmp_path, text, vision, top):
    theirs = write(tmp_path, text, vision, top)
    checkpoint = read_checkpoint(tmp_path)
    ours = from_torch("clipseg", checkpoint.state_dict, **source_overrides("clipseg", tmp_path, checkpoint.state_dict))
    import torch

    pixels = np.random.default_rng(0).normal(size=(2, 3, 48, 48)).astype(np.float32)
    ids = np.array([[97, 5, 7, 98] + [98] * 12, [97, 7, 6, 98] + [98] * 12])
    mask = (np.arange(16) < 4).astype(np.int64)[None].repeat(2, 0)
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask}
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    run = nnx.jit(lambda model, *inputs: model(*inputs))
    logits = np.asarray(run(ours, pixels.transpose(0, 2, 3, 1), ids.astype(np.int32), mask.astype(np.int32)))[..., 0]
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


def test_parity_is_checked_with_the_sources_own_config(exact_matmul, tmp_path):
    """Taps that are read wrong show, though a reference built from our own config would have the same ones."""
    from check_parity import compare

    write(tmp_path, {}, {}, {"extract_layers": [1, 2, 3]})
    checkpoint, config = read_checkpoint(tmp_path), clipseg_config(tmp_path)
    overrides = {**source_overrides("clipseg", tmp_path, checkpoint.state_dict), "image_size": 48}
    right = from_torch("clipseg", checkpoint.state_dict, **overrides)
    assert max(compare(right, 0, config).values()) < TOLERANCE
    wrong = from_torch("clipseg", checkpoint.state_dict, **overrides | {"extract_layers": (0, 2, 3)})
    assert max(compare(wrong, 0, config).values()) > 1e-2


WEIGHTS = {"decoder.film_mul.weight": np.zeros((64, 512), np.float32)}  # all whose size is looked at


def config_of(folder, text: dict, vision: dict, top: dict) -> None:
    sizes = {"text_config": text, "vision_config": {"patch_size": 16, **vision}}
    content = {"model_type": "clipseg", "use_complex_transposed_convolution": True, **sizes, **top}
    (folder / "config.json").write_text(json.dumps(content))


REFUSED = {
    "activation": (
        {"hidden_act": "gelu_new"},
        {},
        {},
        "text_config.hidden_act is gelu_new, and supported is 'gelu' or",
    ),
    "channels": ({}, {"num_channels": 4}, {}, "vision_config.num_channels is 4, and supported is 3"),
    "patch of two sides": ({}, {"patch_size": [16, 8]}, {}, r"vision_config.patch_size is \[16, 8\]"),
    "patch": ({}, {"patch_size": 0}, {}, "vision_config.patch_size is 0"),
    "several end tokens": ({"eos_token_id": [1, 2]}, {}, {}, "text_config.eos_token_id"),
    "taps": ({}, {}, {"extract_layers": "all"}, "extract_layers is all"),
    "no table": ({}, {}, {"vision_config": 3}, "vision_config is 3, and supported is a table"),
    "another size": ({}, {}, {"reduce_dim": 16}, "reduce_dim=16, and the weights have 64: they do not belong"),
}


@pytest.mark.parametrize(("text", "vision", "top", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_its_name(tmp_path, text, vision, top, message):
    config_of(tmp_path, text, vision, top)
    with pytest.raises(UserError, match=message) as error:
        source_overrides("clipseg", tmp_path, WEIGHTS)
    assert str(error.value).isprintable()


def test_what_a_config_changes_is_said(tmp_path):
    config_of(tmp_path, {"hidden_act": "gelu", "eos_token_id": 2}, {}, {"extract_layers": [2, 5, 8]})
    overrides = source_overrides("clipseg", tmp_path, WEIGHTS)
    told = describe_overrides("clipseg", overrides, WEIGHTS)
    assert told == "the config beside the weights says text.activation=gelu, extract_layers=(2, 5, 8)"


@pytest.mark.parametrize("content", ["{}", '{"model_type": "bert"}', '{"encoder_name": "resnet50"}'])
def test_another_models_config_says_nothing_of_a_clipseg(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert source_overrides("clipseg", tmp_path, WEIGHTS) == {}


PIXELS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3], "size": {"height": 224, "width": 224}}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("size", [224, {"height": 224, "width": 224}])
def test_how_images_are_prepared_holds(tmp_path, name, size):
    content = {**PIXELS, "size": size}
    (tmp_path / name).write_text(json.dumps({"image_processor": content} if name.startswith("proc") else content))
    expected = {"image_size": 224, "pixel_mean": (0.4, 0.5, 0.6), "pixel_std": (0.1, 0.2, 0.3)}
    assert source_overrides("clipseg", tmp_path, WEIGHTS) == expected


@pytest.mark.parametrize(
    "change",
    [{"do_normalize": False}, {"rescale_factor": 1.0}, {"image_std": [1, 1]}, {"size": {"height": 1, "width": 2}}],
)
def test_images_that_are_prepared_otherwise_are_refused(tmp_path, change):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS | change))
    with pytest.raises(UserError, match=f"{next(iter(change))} is .*, and supported is"):
        source_overrides("clipseg", tmp_path, WEIGHTS)


BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}


def open_clip_of(folder, model: dict, **changes: dict) -> None:
    model = {
        name: {**value, **changes.get(name, {})} if isinstance(value, dict) else value for name, value in model.items()
    }
    content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def test_biomedclips_own_config_is_the_presets(tmp_path):
    open_clip_of(tmp_path, BIOMEDCLIP)
    changes = describe_overrides("biomedclipseg", source_overrides("biomedclipseg", tmp_path, {}), {})
    assert changes.removeprefix("the config beside the weights says ") == (
        "pixel_mean=(0.4, 0.4, 0.4), pixel_std=(0.2, 0.2, 0.2)"
    )


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("text_cfg", "hf_pooler_type", "mean_pooler"),
        ("text_cfg", "hf_proj_type", "linear"),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
    ],
)
def test_another_open_clip_model_is_refused(tmp_path, table, name, value):
    open_clip_of(tmp_path, BIOMEDCLIP, **{table: {name: value}})
    with pytest.raises(
        UserError, match=rf"open_clip_config\.json: model_cfg\.{table}\.{name} is {value}, and supported"
    ):
        source_overrides("biomedclipseg", tmp_path, {})


@pytest.mark.parametrize(("quick", "activation"), [(True, "quick_gelu"), (False, "gelu")])
def test_open_clips_rn50_has_the_activation_that_it_was_trained_with(tmp_path, quick, activation):
    open_clip_of(tmp_path, {"embed_dim": 1024, "quick_gelu": quick, "text_cfg": {"heads": 8}})
    assert source_overrides("cris", tmp_path, {})["text"] == {"activation": activation, "heads": 8}


def test_a_deeplabs_strides_and_rates_hold(tmp_path):
    content = {
        "encoder_name": "resnet50",
        "encoder_output_stride": 8,
        "decoder_atrous_rates": [6, 12, 18],
        "upsampling": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert source_overrides("deeplabv3plus", tmp_path, {}) == {"output_stride": 8, "atrous_rates": (6, 12, 18)}


def test_a_unet_that_interpolates_otherwise_is_refused(tmp_path):
    content = {"encoder_name": "resnet50", "decoder_interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="decoder_interpolation is bilinear, and supported is 'nearest'"):
        source_overrides("unet", tmp_path, {})


def test_a_decoder_from_a_clipseg_keeps_what_is_said_of_it(tmp_path):
    config_of(tmp_path, {}, {"layer_norm_eps": 0.1}, {"decoder_num_attention_heads": 2, "conditional_layer": 1})
    assert decoder_overrides(tmp_path) == {"decoder_heads": 2, "decoder_epsilon": 0.1, "conditional_layer": 1}


def test_the_presets_of_the_first_two_clipsegs_are_those_of_their_configs(tmp_path):
    """As transformers' conversion of the authors' weights wrote them."""
    for name, reduce_dim in (("clipseg_rd64", 64), ("clipseg_rd16", 16)):
        text, vision = {"eos_token_id": 2}, {"patch_size": 16}
        config_of(tmp_path, text, vision, {"use_complex_transposed_convolution": False, "reduce_dim": reduce_dim})
        changed = differences(
            dataclasses.asdict(PRESETS[name][1]),
            dataclasses.asdict(override(PRESETS[name][1], clipseg_overrides(tmp_path))),
        )
        assert not changed
