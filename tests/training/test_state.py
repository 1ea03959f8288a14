"""The compiled steps: the same numbers on any mesh and with any accumulation, and nothing frozen moves."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlsm_jax.training.losses import dice_bce
from medvlsm_jax.training.optimizer import adamw, split_trained
from medvlsm_jax.training.sharding import put_batch, tree_shardings
from medvlsm_jax.training.state import cut, make_eval_step, make_train_step, new_state

RATE = 1e-3


@pytest.fixture(scope="module")
def run(network, mesh_of, batches):
    """A function of (data, fsdp, accumulation) that takes three steps; a result is kept for the tests that share it."""

    @functools.cache
    def take_steps(data: int, fsdp: int = 1, accumulation: int = 1) -> SimpleNamespace:
        mesh = mesh_of(data, fsdp)
        trained, frozen = split_trained(network.model, network.params, freeze_encoder=False, freeze_decoder=False)
        optimizer = adamw(weight_decay=1e-3, max_grad_norm=0.5)
        placed = [jax.device_put(part, tree_shardings(part, mesh)) for part in (trained, frozen)]
        first = state = new_state(*placed, {}, optimizer, mesh)
        options = (network.graphdef, network.config, optimizer, dice_bce, mesh, state)
        step = make_train_step(*options, accumulation=accumulation)
        metrics = []
        with jax.default_matmul_precision("highest"):
            for batch in batches:
                state, values = step(state, put_batch(batch, mesh), jnp.float32(RATE))
                metrics.append({name: float(value) for name, value in values.items()})
        compilations = step._cache_size()
        return SimpleNamespace(first=first, last=state, metrics=metrics, compilations=compilations)

    return take_steps


def losses(result: SimpleNamespace) -> list[float]:
    return [values["loss"] for values in result.metrics]


def test_training_lowers_the_loss_and_counts_its_steps(run):
    result = run(2)
    assert losses(result)[-1] < losses(result)[0]
    assert all(0 < values["grad_norm"] < np.inf for values in result.metrics)
    assert int(result.last.step) == 3


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (2, 4)], ids=["1 device", "8 devices", "fsdp=4"])
def test_the_mesh_does_not_change_the_numbers(run, data, fsdp):
    result, other = run(data, fsdp), run(2)
    np.testing.assert_allclose(losses(result), losses(other), atol=1e-4)
    for name, array in result.last.arrays().items():
        # Where a gradient is near 0, Adam's update may differ by up to its largest size.
        np.testing.assert_allclose(array, other.last.arrays()[name], atol=3 * 2.1 * RATE, err_msg=name)
        close = np.isclose(array, other.last.arrays()[name], atol=1e-4)
        assert close.mean() > 0.95, name


def test_a_batch_in_four_parts_gives_the_same_loss_and_gradient_as_at_once(run):
    # Two devices work through parts of two rows.
    whole, parts = run(2), run(2, accumulation=4)
    np.testing.assert_allclose(losses(parts), losses(whole), atol=1e-5)
    norms = [[values["grad_norm"] for values in result.metrics] for result in (parts, whole)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-3)
    assert parts.metrics[0] == pytest.approx(whole.metrics[0], abs=1e-5)


def test_accumulation_leaves_every_row_on_its_device(mesh_of):
    mesh = mesh_of(8)
    x = put_batch({"x": np.arange(32)}, mesh)
    parts = jax.jit(lambda batch: cut(batch, 4))(x)["x"]
    assert sorted(np.asarray(parts).ravel()) == list(range(32))
    before = {shard.device: set(np.asarray(shard.data)) for shard in x["x"].addressable_shards}
    after = {shard.device: set(np.asarray(shard.data).ravel()) for shard in parts.addressable_shards}
    assert after == before


def test_frozen_parameters_stay_as_they_are_and_all_others_move(run, network):
    result = run(2)
    for name, array in result.last.frozen.items():
        np.testing.assert_array_equal(array, network.params[name], err_msg=name)
    unmoved = [name for name, array in result.last.trained.items() if np.array_equal(array, network.params[name])]
    assert unmoved == []


def test_a_step_compiles_once(run):
    assert [run(2).compilations, run(2, 4).compilations, run(2, accumulation=4).compilations] == [1, 1, 1]


def test_the_old_state_is_donated(run):
    assert all(array.is_deleted() for array in jax.tree.leaves(run(2).first))


def test_the_state_keeps_its_shardings(run, mesh_of):
    state = run(2, 4).last
    expected = tree_shardings(state, mesh_of(2, 4))
    kept = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, expected)
    assert all(jax.tree.leaves(kept))
    kernel = state.trained["vision.blocks.0.mlp.expand.kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}


@pytest.fixture(scope="module")
def evaluate(network, mesh_of, batches):
    """The values of each image on a mesh."""

    @functools.cache
    def values(data: int, fsdp: int = 1) -> dict[str, np.ndarray]:
        mesh = mesh_of(data, fsdp)
        step = make_eval_step(network.graphdef, network.config, mesh, dice_bce, probabilities=True)
        arrays = jax.device_put(network.params, tree_shardings(network.params, mesh))
        with jax.default_matmul_precision("highest"):
            return {name: np.asarray(value) for name, value in step(arrays, put_batch(batches[0], mesh)).items()}

    return values


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (2, 4)], ids=["1 device", "8 devices", "fsdp=4"])
def test_the_mesh_does_not_change_an_evaluation(evaluate, data, fsdp):
    result, other = evaluate(data, fsdp), evaluate(2)
    assert result.keys() == other.keys()
    for name, values in result.items():
        np.testing.assert_allclose(values, other[name], atol=1e-6, err_msg=name)


def test_an_evaluation_returns_one_value_an_image_and_the_probabilities(evaluate, batches):
    values = evaluate(2)
    assert {name: value.shape for name, value in values.items() if value.ndim == 1} == dict.fromkeys(
        ("dice", "iou", "loss", "index", "valid"), (8,)
    )
    assert values["probability"].shape == (8, 32, 32, 1)
    predicted, truth = values["probability"] > 0.5, batches[0]["mask"] > 0
    both, total = (predicted & truth).sum((1, 2, 3)), predicted.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    np.testing.assert_allclose(values["dice"], 2 * both / total, rtol=1e-6)
