"""Frozen encoders run apart give what the whole network gives, and run once for each image and each sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx
from small_network import SMALL

from medvlsm_jax import models
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.entries import BOOK, Entries
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.losses import LOSSES
from medvlsm_jax.models import initial_arrays
from medvlsm_jax.models.apply import encoder_outputs
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.parallel.sharding import put_batch, tree_shardings
from medvlsm_jax.scoring.batch_segmenter import abstract_batch, make_batch_segmenter
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder, num_bytes
from medvlsm_jax.training.freezing import set_training_mode, split_trained
from medvlsm_jax.training.step import make_train_step, new_state

SIZES = {
    "cris_tiny": {"vision": {"layers": (1, 1, 1, 1), "width": 8}, "image_size": 32},
    "biomedclipseg_tiny": {"image_size": 32, "vision": {"depth": 5, "width": 32, "heads": 2, "mlp_width": 32}},
    "unet_tiny": {"encoder": {"layers": (1, 1, 1, 1), "width": 8}, "image_size": 32},
}
FREEZING = {"freeze_encoder": True, "freeze_decoder": False}
ROWS = [(index, 0, True) for index in (0, 5, 2, 0, 7, 9, 1, 3)]


def config_of(name: str):
    if name == "small":
        return SMALL
    return models.override(models.PRESETS[name][1], SIZES[name])


def make_loader(sample, config, **fields) -> Loader:
    records = load_records(sample, "sample", "train")[:12]
    tokenizer = None if config.text is None else load_tokenizer("builtin", config.text.context_length)
    return Loader(records, tokenizer, "p6", config.image_size, **fields)


@pytest.mark.parametrize("name", ["small", "biomedclipseg_tiny", "cris_tiny", "unet_tiny"])
def test_a_step_on_the_encoders_outputs_is_the_step_on_their_inputs(sample, tmp_path, mesh_of, name):
    config, mesh = config_of(name), mesh_of(2)
    arrays = initial_arrays(config, 0, shardings=lambda shapes: tree_shardings(shapes, mesh))
    encoder = FrozenEncoder(config, arrays, mesh, Entries(tmp_path), len(ROWS))
    model = models.abstract_model(config)
    set_training_mode(model, **FREEZING)
    _, params, stats = split_model(model)
    trained, frozen = split_trained(model, {name: arrays[name] for name in params}, **FREEZING)
    loader = make_loader(sample, config)
    plain = loader(ROWS)
    graphdef, loss, seen = nnx.graphdef(model), LOSSES["dice_bce"], []

    def first_state():
        copies, copied_stats = jax.tree.map(jnp.copy, (trained, {name: arrays[name] for name in stats}))
        return new_state(copies, frozen, copied_stats, optax.identity(), mesh)

    step = make_train_step(graphdef, optax.identity(), loss, mesh, first_state())
    segmenter = make_batch_segmenter(config, mesh, loss)
    for _ in range(2):  # the second batch is read from the cache alone
        completed = encoder.complete(dataclasses.replace(loader, features=encoder.cache)(ROWS))
        for batch in (plain, completed):
            with jax.default_matmul_precision("highest"):
                values = step(first_state(), put_batch(batch, mesh), 0.0)[1]
                ((_, scores),) = segmenter.answers(arrays, put_batch(batch, mesh), {})
            seen.append([*(float(value) for value in values.values()), *np.asarray(scores["loss"])])
    for other in seen[1:]:
        for ours, theirs in zip(other, seen[0], strict=True):
            assert_close(ours, theirs)
    shapes = abstract_batch(config, len(ROWS), mesh, encoder.outputs)
    placed = put_batch(completed, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), placed) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


@pytest.fixture
def encoder(tmp_path, mesh_of) -> FrozenEncoder:
    """Counts what it encodes, on two devices."""
    mesh = mesh_of(2)
    arrays = initial_arrays(SMALL, 0, shardings=lambda shapes: tree_shardings(shapes, mesh))
    encoder = FrozenEncoder(SMALL, arrays, mesh, Entries(tmp_path), len(ROWS))
    encoder.counts = {"image": 0, "text": 0}

    def counting(kind: str):
        run = encoder.steps[kind]

        def step(arrays, *inputs):
            encoder.counts[kind] += len({row.tobytes() for row in np.asarray(inputs[0])})
            return run(arrays, *inputs)

        return step

    encoder.steps = {kind: counting(kind) for kind in ("image", "text")}
    return encoder


def test_each_image_and_each_sentence_is_encoded_once(sample, encoder):
    loader = make_loader(sample, SMALL, features=encoder.cache)
    records = [loader.records[index] for index, _, _ in ROWS]
    sentences = {loader.sentence(index) for index, _, _ in ROWS}
    images = {record.image for record in records}
    for _ in range(3):
        encoder.complete(loader(ROWS))
        assert encoder.counts == {"image": len(images), "text": len(sentences)}
    encoder.complete(loader([*ROWS[:7], (11, 0, True)]))
    assert encoder.counts["image"] <= len(images) + 1


def test_without_room_everything_is_encoded_anew_and_nothing_is_wrong(sample, encoder):
    loader = make_loader(sample, SMALL, features=encoder.cache)
    stored = encoder.complete(loader(ROWS))
    encoder.cache.entries.limit = 0
    for path in encoder.cache.entries.folder.iterdir():
        path.unlink()
    for _ in range(2):
        made = encoder.complete(loader(ROWS))
        jax.tree.map(np.testing.assert_array_equal, made["image_features"], stored["image_features"])
    assert {path.name for path in encoder.cache.entries.folder.iterdir()} == {BOOK}


def test_the_key_changes_with_the_weights_and_the_settings(encoder, tmp_path, mesh_of):
    def key(config, seed: int, data: int, fsdp: int = 1) -> str:
        mesh = mesh_of(data, fsdp)
        arrays = initial_arrays(config, seed, shardings=lambda shapes: tree_shardings(shapes, mesh))
        return FrozenEncoder(config, arrays, mesh, Entries(tmp_path), 8).cache.key

    assert key(SMALL, 0, 2, 4) == encoder.cache.key  # whatever the mesh
    assert key(SMALL, 1, 1) != encoder.cache.key
    assert key(models.override(SMALL, {"extract_layers": (1,)}), 0, 1) != encoder.cache.key


def test_the_room_that_is_needed_is_that_of_the_outputs():
    outputs = encoder_outputs(SMALL)
    assert {kind: [x.shape for x in jax.tree.leaves(tree)] for kind, tree in outputs.items()} == {
        "image": [(1, 17, 32)],
        "text": [(1, 16)],
    }
    assert num_bytes(outputs, 10, 30) == 4 * (10 * 17 * 32 + 30 * 16)
