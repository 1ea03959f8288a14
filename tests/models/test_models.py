"""Networks by name: presets, overrides, and errors that name the choices."""

import jax
import numpy as np
import pytest
from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS, create_model, network_of, override, preset, preset_of
from medvlsm_jax.models.clipseg import CLIPSegConfig
from medvlsm_jax.models.network import TextConfig, check_pixels, check_tokens
from medvlsm_jax.models.parameters import split_model

SMALL = {
    "text": {"vocab_size": 16, "width": 8, "depth": 1, "heads": 2, "mlp_width": 8},
    "vision": {"grid": 2, "width": 8, "depth": 1, "heads": 2, "mlp_width": 8},
    "extract_layers": (0,),
    "conditional_layer": 0,
    "reduce_dim": 8,
    "decoder_mlp_width": 8,
}


def test_a_seed_gives_the_same_parameters_and_another_seed_others():
    create = jax.jit(lambda key: split_model(create_model("clipseg_tiny", rngs=nnx.Rngs(key), **SMALL))[1])
    first, again, other = (create(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first["vision.patch_embedding.kernel"] != other["vision.patch_embedding.kernel"])


def test_overrides_replace_fields_and_fields_of_groups():
    model = nnx.eval_shape(lambda: create_model("clipseg_tiny", rngs=nnx.Rngs(0), image_size=16, **SMALL))
    assert model.config.image_size == 16
    assert (model.config.vision.depth, model.config.vision.patch_size) == (
        1,
        PRESETS["clipseg_tiny"][1].vision.patch_size,
    )
    assert preset("clipseg_tiny")[1].vision.depth == 5


def test_lists_from_json_become_tuples():
    assert override(CLIPSegConfig(), {"extract_layers": [1, 2]}).extract_layers == (1, 2)


def test_an_unknown_model_is_an_error_that_lists_the_presets():
    with pytest.raises(UserError, match=r"unknown model 'segformer': choose one of .*clipseg, .*clipseg_tiny"):
        create_model("segformer", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("overrides", [{"depht": 6}, {"vision": {"depht": 6}}])
def test_an_unknown_option_is_an_error_that_lists_the_options(overrides):
    with pytest.raises(UserError, match=r"unknown model option depht: choose from .*"):
        create_model("clipseg_tiny", rngs=nnx.Rngs(0), **overrides)


def test_taps_beyond_the_tower_are_refused():
    with pytest.raises(ValueError, match=r"extract_layers \(0, 7\) reach beyond the 5 vision blocks"):
        nnx.eval_shape(lambda: create_model("clipseg_tiny", rngs=nnx.Rngs(0), extract_layers=(0, 7)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_tells_its_network(name):
    network, config = preset(name)
    assert network_of(config) == network


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_told_from_its_sizes(name):
    network, config = preset(name)
    asked = override(config, {"dtype": "bfloat16", "image_size": 64, "tokenizer": "elsewhere"})
    found = preset_of(asked)
    assert preset(found) == (network, config)  # biomedclipseg_d differs from biomedclipseg in its weights alone
    assert preset_of(override(PRESETS["clipseg_tiny"][1], {"reduce_dim": 24})) == "clipseg"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), r"are of shape \(1, 3, 8, 8\), but should be \(B, H, W, 3\)"),
        (np.zeros((8, 8, 3), np.float32), r"are of shape \(8, 8, 3\), but should be \(B, H, W, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"are uint8, but should be normalised floats \(B, H, W, 3\)"),
    ],
)
def test_pixels_that_a_network_does_not_expect_are_named(pixels, message):
    with pytest.raises(ValueError, match=message):
        check_pixels(pixels)


def test_tokens_that_a_network_does_not_expect_are_named():
    pixels = np.zeros((2, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match=r"input_ids are of shape \(1, 4\), but should be \(B, T\), with B = 2"):
        check_tokens(np.zeros((1, 4), np.int32), pixels, TextConfig(context_length=4))
    with pytest.raises(ValueError, match="input_ids have 5 tokens, but this network reads 4 at most"):
        check_tokens(np.zeros((2, 5), np.int32), pixels, TextConfig(context_length=4))
