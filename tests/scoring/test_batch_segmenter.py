"""An image that is encoded once gives what the whole model gives; variants are averaged; meshes do not matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from medvlsm_jax.checkpoints.arrays import abstract_arrays
from medvlsm_jax.evaluation.metrics import OVERLAP
from medvlsm_jax.losses import LOSSES
from medvlsm_jax.models.layers import normalize_pixels
from medvlsm_jax.models.parameters import merge_model
from medvlsm_jax.parallel.sharding import put_batch, tree_shardings
from medvlsm_jax.scoring.batch_segmenter import OWN, abstract_batch, make_batch_segmenter


@pytest.fixture
def model(network):
    return merge_model(network.graphdef, jax.tree.map(jnp.asarray, {**network.params, **network.stats}))


@pytest.fixture
def probabilities(network, mesh_of, batches, exact_matmul):
    """The probabilities of a batch of images under conditions, on so many devices."""

    def run(variants, mirrored, devices: int = 2) -> dict[str, np.ndarray]:
        mesh = mesh_of(devices)
        batch = {name: batches[0][name] for name in ("image", "mask", "index", "valid")} | {"variants": variants}
        arrays = {**network.params, **network.stats}
        arrays = jax.device_put(arrays, tree_shardings(arrays, mesh))
        segmenter = make_batch_segmenter(network.config, mesh)
        found = segmenter.answers(arrays, put_batch(batch, mesh), mirrored)
        return {name: np.asarray(values["probability"]) for name, values in found}

    return run


def variant(batch, weight: float | np.ndarray = 1.0) -> dict[str, np.ndarray]:
    weights = np.full(8, weight, np.float32) if np.isscalar(weight) else weight
    return {"weight": weights, "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def by_hand(model, image, batch) -> np.ndarray:
    pixels = normalize_pixels(image, model.config.pixel_mean, model.config.pixel_std)
    return np.asarray(jax.nn.sigmoid(model(pixels, batch["input_ids"], batch["attention_mask"])))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_conditions_are_what_the_whole_model_gives(probabilities, model, batches, devices):
    variants = {"own": [variant(batches[0])], "other": [variant(batches[1])]}
    found = probabilities(variants, {"own": [False], "other": [False]}, devices)
    assert set(found) == {"own", "other"}
    for name, batch in zip(("own", "other"), batches, strict=False):
        assert_close(found[name], by_hand(model, batches[0]["image"], batch))


def test_variants_are_averaged_by_their_weights(probabilities, model, batches):
    weights = np.array([0, 0.25, 0.5, 1, 1, 0.75, 0.5, 0.5], np.float32)
    variants = {"both": [variant(batches[0], weights), variant(batches[1], 1 - weights)]}
    parts = [by_hand(model, batches[0]["image"], batch) for batch in batches[:2]]
    shares = weights[:, None, None, None]
    found = probabilities(variants, {"both": [False, False]})["both"]
    assert_close(found, shares * parts[0] + (1 - shares) * parts[1])


def test_a_mirrored_variant_looks_at_the_mirror_image_and_is_turned_back(probabilities, model, batches):
    variants = {"flips": [variant(batches[0], 0.5), variant(batches[1], 0.5)]}
    image = batches[0]["image"]
    turned = by_hand(model, image[:, :, ::-1], batches[1])[:, :, ::-1]
    found = probabilities(variants, {"flips": [False, True]})["flips"]
    assert_close(found, (by_hand(model, image, batches[0]) + turned) / 2)
    assert not np.allclose(turned, turned[:, :, ::-1], atol=1e-3)


def test_without_variants_the_own_sentences_are_asked_in_one_program(network, mesh_of, batches, probabilities):
    mesh = mesh_of(2)
    arrays = jax.device_put(network.params, tree_shardings(network.params, mesh))
    batch = put_batch(batches[0], mesh)
    loss = dataclasses.replace(LOSSES["dice_bce"], skips_empty=True)
    segmenter = make_batch_segmenter(network.config, mesh, loss)
    with jax.default_matmul_precision("highest"):
        ((name, values),) = segmenter.answers(arrays, batch, {})
    expected = probabilities({"own": [variant(batches[0])]}, {"own": [False]})["own"]
    assert name == OWN
    np.testing.assert_allclose(values["probability"], expected, atol=1e-6)
    np.testing.assert_array_equal(values["index"], batches[0]["index"])
    assert values.keys() == {"probability", "index", "valid", "finite", *OVERLAP, "loss", "weight"}
    assert values["loss"].is_fully_replicated
    assert not values["probability"].is_fully_replicated


def test_what_is_compiled_ahead_takes_its_shapes_alone(network, mesh_of, batches):
    mesh = mesh_of(2)
    shapes = abstract_arrays(network.params, mesh)
    segmenter = make_batch_segmenter(network.config, mesh).compile(shapes, abstract_batch(network.config, 8, mesh))
    arrays = jax.device_put(network.params, tree_shardings(network.params, mesh))
    ((_, values),) = segmenter.answers(arrays, put_batch(batches[0], mesh), {})
    assert values["dice"].shape == (8,)
    half = {name: rows[:4] for name, rows in batches[0].items()}
    with pytest.raises(TypeError, match="compiled"):
        list(segmenter.answers(arrays, put_batch(half, mesh), {}))
