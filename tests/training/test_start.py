"""Where a run starts from, and what it remembers."""

import dataclasses
import json
import math

import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax import models
from medvlsm_jax.checkpoints.checkpoints import Checkpoints
from medvlsm_jax.checkpoints.model_folder import write_description
from medvlsm_jax.config import as_json, base_config, model_overrides, resolve_dtype
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.reading import order
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.parallel.sharding import tree_shardings
from medvlsm_jax.training.progress import new_progress
from medvlsm_jax.training.start import Source, check_unchanged, find_source, start_state


@pytest.fixture
def config(network, monkeypatch):
    """A config whose model is the small network."""
    monkeypatch.setitem(models.PRESETS, "small", ("clipseg", network.config))
    config = base_config()
    config.model = "small"
    return config


# --- Source -----------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_random_weights_unless_told_otherwise(config, network, tmp_path):
    assert find_source(config, tmp_path, None) == Source("random", None, network.config, "builtin")


def test_a_converted_checkpoint_comes_before_random_weights(config, network, tmp_path):
    write_description(tmp_path / "init", network.config, None)
    config.init = str(tmp_path / "init")
    assert find_source(config, tmp_path, None) == Source("init", tmp_path / "init", network.config, "builtin")


def test_the_runs_own_checkpoint_comes_first(config, network, tmp_path):
    write_description(tmp_path, network.config, None)
    config.init = str(tmp_path / "init")
    assert find_source(config, tmp_path, 3) == Source("checkpoint", tmp_path, network.config, "builtin")


def test_the_tokenizer_is_the_asked_one_then_the_folders(config, network, tmp_path):
    write_description(tmp_path, network.config, load_tokenizer("builtin", 32))
    assert find_source(config, tmp_path, 3).tokenizer == str(tmp_path / "tokenizer")
    config.tokenizer = "some/tokenizer"
    assert find_source(config, tmp_path, 3).tokenizer == "some/tokenizer"


def test_the_sizes_are_the_folders_and_not_the_presets(config, tmp_path):
    found = models.override(models.preset("small")[1], {"reduce_dim": 24})
    write_description(tmp_path, found, None)
    assert find_source(config, tmp_path, 3).config == found


def test_an_init_of_another_network_is_refused(config, network, monkeypatch, tmp_path):
    write_description(tmp_path, network.config, None)
    monkeypatch.setitem(models.PRESETS, "unet", ("unet", network.config))
    config.model, config.init = "unet", str(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} holds a clipseg, but config.model is 'unet'"):
        find_source(config, tmp_path / "workdir", None)


def test_an_init_that_does_not_exist_is_named(config, tmp_path):
    config.init = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{tmp_path / 'nowhere'} is no checkpoint"):
        find_source(config, tmp_path, None)


def test_an_unknown_preset_lists_the_known_ones(config, tmp_path):
    config.model = "clipsag"
    with pytest.raises(UserError, match=r"unknown model 'clipsag': choose one of biomedclipseg, .*clipseg_tiny"):
        find_source(config, tmp_path, None)


def test_any_field_of_the_model_can_be_set(config, tmp_path):
    config.model_options = '{"extract_layers": [1], "text": {"pad_token_id": 7}}'
    found = find_source(config, tmp_path, None).config
    assert (found.extract_layers, found.text.pad_token_id) == ((1,), 7)
    assert found.text.width == 16
    for broken in ("{", "[1]", "extract_layers=[1]"):
        config.model_options = broken
        with pytest.raises(UserError, match=r"config\.model_options=.* is no json object"):
            model_overrides(config)


def test_the_config_sets_the_models_size_dtype_and_ablation(config):
    config.image_size, config.dtype, config.zero_prompt = 64, "bfloat16", True
    assert model_overrides(config) == {
        "image_size": 64,
        "dtype": "bfloat16",
        "zero_prompt": True,
        "remat": "none",
        "attention": "auto",
    }


def test_auto_is_float32_on_cpu():
    assert resolve_dtype("auto") == "float32"


def test_an_unknown_dtype_names_the_field():
    with pytest.raises(UserError, match=r"config\.dtype='float16': choose float32, bfloat16 or auto"):
        resolve_dtype("float16")


# --- State ------------------------------------------------------------------------------------------------------------


def test_random_weights_are_those_of_create_model_with_that_seed_on_any_mesh(config, mesh_of, tmp_path):
    smallest = {"text": {"depth": 0}, "vision": {"depth": 1}}  # compiling is the cost
    source = find_source(config, tmp_path, None)
    source = dataclasses.replace(source, config=models.override(source.config, smallest))
    made = models.initial_arrays(source.config, 7, shardings=lambda shapes: tree_shardings(shapes, mesh_of(1, 8)))
    _, params, _ = split_model(models.create_model("small", rngs=nnx.Rngs(7), **smallest))
    assert made.keys() == params.keys()
    for name, array in params.items():
        assert_close(made[name], array, name=name)
    kernel = made["vision.blocks.0.mlp.expand.kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}


def test_freezing_everything_is_refused(config, network, mesh_of, tmp_path, monkeypatch):
    source = find_source(config, tmp_path, None)
    monkeypatch.setattr("medvlsm_jax.training.start.initial_arrays", lambda *_, **__: network.params)
    config.freeze_encoder = config.freeze_decoder = True
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"config\.freeze_encoder and config\.freeze_decoder are both set"),
    ):
        start_state(config, source, mesh_of(1), checkpoints)


@pytest.mark.parametrize(
    ("init", "freeze_encoder", "is_frozen"),
    [("", None, False), ("folder", None, True), ("", True, True), ("folder", False, False)],
)
def test_the_encoder_is_frozen_when_it_is_pretrained_unless_the_config_says(
    config, network, mesh_of, tmp_path, monkeypatch, init, freeze_encoder, is_frozen
):
    source = find_source(config, tmp_path, None)
    monkeypatch.setattr("medvlsm_jax.training.start.initial_arrays", lambda *_, **__: network.params)
    config.init, config.freeze_encoder = init, freeze_encoder
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = start_state(config, source, mesh_of(1), checkpoints)
    assert any(name.startswith("text.") for name in state.trained) != is_frozen
    assert any(name.startswith("decoder.") for name in state.trained)


def test_a_run_that_read_the_records_in_another_order_is_not_continued(config, tmp_path):
    saved = {**as_json(config), "order": order.VERSION}
    check_unchanged(config, saved, tmp_path)
    for old in (as_json(config), {**saved, "order": order.VERSION - 1}):  # of before there were versions, and of one
        with pytest.raises(UserError, match=f"{tmp_path} holds a run of another version .* in another order"):
            check_unchanged(config, old, tmp_path)


# --- Progress ---------------------------------------------------------------------------------------------------------


def test_a_new_runs_infinities_survive_json(config):
    progress, restored = new_progress(config), new_progress(config)
    text = json.dumps(progress.to_json(), allow_nan=False)
    restored.restore(json.loads(text))
    assert restored == progress
    assert (restored.plateau.best, restored.early_stopping.best) == (math.inf, -math.inf)


def test_progress_comes_back_as_it_was(config):
    progress, restored = new_progress(config), new_progress(config)
    rng = np.random.default_rng(0)
    progress.log = {"metrics.jsonl": 123}
    for step in range(9):
        progress.update(step, float(rng.uniform()), float(rng.uniform()))
    restored.restore(json.loads(json.dumps(progress.to_json(), allow_nan=False)))
    assert restored == progress
    assert progress.plateau.learning_rate < config.learning_rate


def test_the_best_score_never_falls(config):
    progress = new_progress(config)
    for step, score, best in [(1, 0.0, 0.0), (2, 0.4, 0.4), (3, 0.3, 0.4)]:
        progress.update(step, 1.0, score)
        assert progress.best_score == best
