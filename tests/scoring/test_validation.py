"""Validation is the evaluation's scorer with one condition and a loss; it is compiled before the training begins."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_scores import DrawnSegmenter
from small_network import SMALL

from medvlsm_jax.config import base_config
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.entries import Entries
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.evaluation.metrics import overlap_metrics
from medvlsm_jax.evaluation.pictures import overlay
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models import initial_arrays
from medvlsm_jax.models.apply import forward
from medvlsm_jax.models.parameters import merge_model
from medvlsm_jax.parallel.sharding import tree_shardings
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder
from medvlsm_jax.scoring.scorer import Scorer
from medvlsm_jax.scoring.validation import Interrupted, Validation, open_validation


@pytest.fixture
def loader(sample) -> Loader:
    """Eleven records, each with its own sentence."""
    records = load_records(sample, "sample", "train")[:11]
    return Loader(records, load_tokenizer("builtin", SMALL.text.context_length), "p6", image_size=SMALL.image_size)


@pytest.fixture
def config():
    config = base_config()
    config.update({"batch_size": 4, "loss": "dice_bce", "num_overlays": 3})
    return config


def drawn(loader, mesh, batch_size: int = 4, num_overlays: int = 3, is_interrupted=lambda: False) -> Validation:
    return Validation(Scorer(DrawnSegmenter(mesh), mesh, batch_size), loader, num_overlays, is_interrupted)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (2, 4), (8, 8), (8, 16)])
def test_batches_and_devices_do_not_change_a_validation(loader, mesh_of, devices, batch_size):
    results, pictures = drawn(loader, mesh_of(devices), batch_size)({})
    expected, drawings = drawn(loader, mesh_of(1), 11)({})
    assert results == expected
    np.testing.assert_array_equal(pictures, drawings)


def test_the_loss_is_the_mean_over_the_images_that_it_counts(loader, mesh_of):
    # Of drawn scores, every second image counts.
    ((batch),) = Scorer(DrawnSegmenter(mesh_of(1)), mesh_of(1), 11).score({}, loader)
    expected = batch.scores[""]["loss"][::2].mean()
    assert drawn(loader, mesh_of(2))({})[0]["val/loss"] == pytest.approx(expected, abs=1e-9)


def test_a_pool_has_the_dice_of_each_dataset_too(loader, mesh_of):
    cards = [dataclasses.replace(loader.records[0].card, name=name) for name in "ab"]
    records = [dataclasses.replace(record, card=cards[i % 2]) for i, record in enumerate(loader.records)]
    results = drawn(dataclasses.replace(loader, records=records), mesh_of(2))({})[0]
    assert results.keys() == {"val/dice", "val/iou", "val/loss", "val/a/dice", "val/b/dice"}
    assert results["val/dice"] == pytest.approx((6 * results["val/a/dice"] + 5 * results["val/b/dice"]) / 11)
    assert results["val/a/dice"] != results["val/b/dice"]
    assert drawn(loader, mesh_of(2))({})[0].keys() == {"val/dice", "val/iou", "val/loss"}


def test_a_signal_ends_it_after_the_next_batch(loader, mesh_of):
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        drawn(loader, mesh_of(2), is_interrupted=lambda: next(asked))({})
    assert not list(asked)


@pytest.mark.parametrize("num_overlays", [0, 3, 6, 99])
def test_there_are_as_many_pictures_as_asked_for(loader, mesh_of, num_overlays):
    pictures = drawn(loader, mesh_of(2), num_overlays=num_overlays)({})[1]
    assert len(pictures) == min(num_overlays, len(loader.records))


# --- Of a network -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make(config, loader, mesh_of, tmp_path):
    """The validation of a network on so many devices, with kept outputs of frozen encoders or without, and arrays."""

    def open_it(devices: int, is_cached: bool = False):
        mesh = mesh_of(devices)
        arrays = initial_arrays(SMALL, 0, shardings=lambda shapes: tree_shardings(shapes, mesh))
        encoder = FrozenEncoder(SMALL, arrays, mesh, Entries(tmp_path), 4) if is_cached else None
        own = dataclasses.replace(loader, features=encoder.cache) if encoder else loader
        return open_validation(config, SMALL, mesh, own, encoder, arrays, lambda: False), arrays

    return open_it


@pytest.mark.parametrize("is_cached", [False, True])
def test_it_is_what_the_model_gives_of_all_records_at_once(make, network, loader, config, exact_matmul, is_cached):
    validation, arrays = make(2, is_cached)
    whole = loader([(i, 0, True) for i in range(11)])
    batch = {name: jnp.asarray(x) for name, x in whole.items()}
    on_one = jax.tree.map(jnp.asarray, jax.device_get(arrays))
    logits = jax.jit(lambda arrays, batch: forward(merge_model(network.graphdef, arrays), batch))(on_one, batch)
    probability, target = jax.nn.sigmoid(logits), batch["mask"].astype(jnp.float32)
    expected = overlap_metrics(probability, target, SMALL.threshold)
    loss, target = find_loss(config.loss)(logits, target), np.asarray(target)
    for _ in range(2):  # the second time from what was kept
        results, pictures = validation(arrays)
        for name in ("dice", "iou"):
            assert results[f"val/{name}"] == pytest.approx(np.mean(np.asarray(expected[name], np.float64)), abs=1e-6)
        assert results["val/loss"] == pytest.approx(np.mean(np.asarray(loss, np.float64)), abs=1e-6)
        for i, picture in enumerate(pictures):
            is_predicted, is_true = np.asarray(probability)[i, ..., 0] > SMALL.threshold, target[i, ..., 0] > 0
            np.testing.assert_array_equal(picture, overlay(whole["image"][i], is_predicted, is_true))


@pytest.mark.parametrize("is_cached", [False, True])
def test_it_never_compiles_once_it_is_open(make, caplog, is_cached):
    validation, arrays = make(2, is_cached)
    jax.clear_caches()  # so that whatever is still to be compiled shows
    with caplog.at_level(logging.WARNING, "jax"), jax.log_compiles():
        validation(arrays)
    assert not [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]


def test_a_small_set_is_not_padded_to_a_large_batch(make, config):
    config.batch_size = 512
    validation, arrays = make(2)
    assert validation.scorer.batch_size == 12
    assert len(validation(arrays)[1]) == 3


def test_without_records_there_is_none(config, loader, mesh_of):
    empty = dataclasses.replace(loader, records=[])
    assert open_validation(config, SMALL, mesh_of(2), empty, None, {}, lambda: False) is None
