"""CRIS's checkpoints and CLIP's RN50 to models and back."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_identical
from originals import FOLDER
from seeded_weights import seeded_state_dict

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS, preset
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.weights import from_torch, to_torch
from medvlsm_jax.weights.convert import is_encoder_alone
from medvlsm_jax.weights.tables.cris import cris_sizes

HEADS = {"text": {"heads": 4}, "decoder_heads": 4}
NECK = {"fpn_channels": (32, 64, 128), "decoder_mlp_width": 128}  # what CLIP's checkpoint cannot tell
CONNECT = "backbone.visual.attnpool.connect."


@pytest.fixture(scope="module")
def seeded() -> dict[str, np.ndarray]:
    return seeded_state_dict(FOLDER / "cris_tiny")


@pytest.fixture
def state_dict(seeded) -> dict[str, np.ndarray]:
    """The tiny stand-in checkpoint, of which tests may replace arrays."""
    return dict(seeded)


@pytest.fixture
def rn50(state_dict) -> dict[str, np.ndarray]:
    """The encoders as OpenAI's archive holds them: float16, without `backbone.`, with three scalars."""
    encoder = {
        name.removeprefix("backbone."): array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in state_dict.items()
        if name.startswith("backbone.") and not name.startswith(CONNECT)
    }
    scalars = {"input_resolution": 64, "context_length": 77, "vocab_size": 1000}
    return encoder | {name: np.asarray(value) for name, value in scalars.items()}


@pytest.mark.parametrize("wrapper", ["", "module.", "net.", "module.net."])
def test_what_goes_in_comes_out_bit_for_bit(state_dict, wrapper):
    wrapped = {wrapper + name: array for name, array in state_dict.items()}
    assert_identical(to_torch(from_torch("cris", wrapped, **HEADS)), state_dict)


def test_sizes_are_read_from_the_arrays(parity, state_dict):
    expected = json.loads((parity / "cris_tiny" / "meta.json").read_text())
    config = from_torch("cris", state_dict, **HEADS).config
    assert (config.text.vocab_size, config.text.context_length, config.text.eos_token_id) == (1000, 77, 999)
    assert (config.text.width, config.text.depth, config.text.mlp_width) == (64, 2, 256)
    assert (list(config.vision.layers), config.vision.width) == ([1, 1, 1, 1], 16)
    assert (config.grid, config.projection_dim) == (2, 64)
    assert list(config.fpn_channels) == expected["fpn_out"]
    assert (config.decoder_depth, config.decoder_mlp_width) == (expected["num_layers"], expected["dim_ffn"])


def test_the_published_names_give_the_presets_sizes(parity):
    spec = json.loads((parity / "cris" / "spec.json").read_text())
    config = PRESETS["cris"][1]
    sizes = cris_sizes({name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in spec.items()}, config)
    for name, value in sizes.items():
        if isinstance(value, dict):
            assert value.items() <= vars(getattr(config, name)).items()
        else:
            assert value == getattr(config, name)
    assert (config.text.pad_token_id, config.threshold, config.image_size) == (0, 0.35, 416)


def test_clips_rn50_alone_is_a_start(state_dict, rn50):
    """The rest is random, as the seed has it; the residual beside the attention pool too."""
    assert is_encoder_alone("cris", rn50)
    first, other = (from_torch("cris", rn50, seed=seed, **HEADS, **NECK) for seed in (0, 1))
    ours = to_torch(first)
    assert set(ours) == set(state_dict)
    read = {f"backbone.{name}": array for name, array in rn50.items()}
    for name in set(ours) & set(read):
        np.testing.assert_array_equal(ours[name], read[name].astype(ours[name].dtype), err_msg=name)
    differs = to_torch(other)
    for name in ("neck.aggr.0.weight", "decoder.layers.2.ffn.4.weight", "proj.txt.weight", CONNECT + "0.weight"):
        assert np.any(ours[name] != differs[name])
    assert {array.dtype for array in split_model(first)[1].values()} == {jnp.dtype("float32")}


def test_a_finetuned_checkpoint_is_no_encoder_alone(state_dict, rn50):
    assert not is_encoder_alone("cris", state_dict)
    with pytest.raises(UserError, match=r"not a checkpoint of cris, \d+ names differ: missing \d+ \(decoder\."):
        from_torch("cris", rn50 | {"proj.vis.4.bias": state_dict["proj.vis.4.bias"]}, **HEADS, **NECK)


def test_clips_rn50_must_be_whole(rn50):
    del rn50["visual.layer3.0.bn2.running_var"]
    with pytest.raises(UserError, match=r"1 names differ:\s+missing backbone.visual.layer3.0.bn2.running_var \(64,\)"):
        from_torch("cris", rn50, **HEADS, **NECK)


def test_one_error_lists_every_name_that_differs(state_dict):
    del state_dict["backbone.logit_scale"], state_dict["neck.norm_layer.0.running_mean"]
    state_dict |= {"neck.extra.weight": np.zeros((2, 3), np.float32), "epoch": np.zeros((), np.float32)}
    state_dict["proj.txt.bias"] = np.zeros(288, np.float32)
    state_dict["decoder.layers.1.self_attn.in_proj_weight"] = np.zeros((64, 192), np.float32)
    with pytest.raises(UserError, match="not a checkpoint of cris, 6 names differ") as error:
        from_torch("cris", state_dict, **HEADS)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(lines) == [
        "misshaped decoder.layers.1.self_attn.in_proj_weight: (64, 192) where (192, 64) is expected",
        "misshaped proj.txt.bias: (288,) where (289,) is expected",
        "missing backbone.logit_scale ()",
        "missing neck.norm_layer.0.running_mean (128,)",
        "unexpected epoch ()",
        "unexpected neck.extra.weight (2, 3)",
    ]


def test_clip_of_another_width_is_a_users_error(rn50):
    with pytest.raises(UserError, match=r"fpn_channels\[1\] is 512: the decoder wants the text encoder's width, 64"):
        from_torch("cris", rn50, **HEADS)


@pytest.mark.parametrize("content", [{}, {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}])
def test_another_networks_checkpoint_is_refused(content):
    with pytest.raises(UserError, match=r"^not a checkpoint of cris, \d+ names differ: missing \d+ \("):
        from_torch("cris_tiny", content)


def test_the_tiny_preset_fits_the_builtin_tokenizer():
    config = preset("cris_tiny")[1]
    assert config.text is not None
    assert (config.tokenizer, config.text.vocab_size, config.text.context_length) == ("builtin", 1024, 64)
    assert (config.text.eos_token_id, config.text.pad_token_id) == (3, 0)
