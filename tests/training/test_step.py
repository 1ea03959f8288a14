"""The compiled steps: the same numbers on any mesh and with any accumulation, and nothing frozen moves."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax import models
from medvlsm_jax.losses import LOSSES
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.parallel.sharding import put_batch, tree_shardings
from medvlsm_jax.scoring.batch_segmenter import make_batch_segmenter
from medvlsm_jax.training.freezing import set_training_mode, split_trained
from medvlsm_jax.training.step import adamw, cut, make_train_step, new_state

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
        options = (network.graphdef, optimizer, LOSSES["dice_bce"], mesh, state)
        step = make_train_step(*options, accumulation=accumulation)
        metrics = []
        with jax.default_matmul_precision("highest"):
            for batch in batches:
                state, values = step(state, put_batch(batch, mesh), jnp.float32(RATE))
                metrics.append({name: float(value) for name, value in values.items()})
        compilations = step.step._cache_size()
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


def test_the_old_state_is_donated_but_for_what_is_frozen(run):
    first = run(2).first
    assert all(array.is_deleted() for array in jax.tree.leaves(first._replace(frozen={})))
    assert first.frozen
    assert not any(array.is_deleted() for array in first.frozen.values())


def test_the_state_keeps_its_shardings(run, mesh_of):
    state = run(2, 4).last
    assert state.frozen
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
        segmenter = make_batch_segmenter(network.config, mesh, LOSSES["dice_bce"])
        arrays = jax.device_put(network.params, tree_shardings(network.params, mesh))
        with jax.default_matmul_precision("highest"):
            ((_, found),) = segmenter.answers(arrays, put_batch(batches[0], mesh), {})
            return {name: np.asarray(value) for name, value in found.items()}

    return values


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (2, 4)], ids=["1 device", "8 devices", "fsdp=4"])
def test_the_mesh_does_not_change_an_evaluation(evaluate, data, fsdp):
    result, other = evaluate(data, fsdp), evaluate(2)
    assert result.keys() == other.keys()
    for name, values in result.items():
        assert_close(values, other[name], name=name)


def test_an_evaluation_returns_one_value_an_image_and_the_probabilities(evaluate, batches):
    values = evaluate(2)
    assert {name: value.shape for name, value in values.items() if value.ndim == 1} == dict.fromkeys(
        ("dice", "iou", "precision", "recall", "loss", "weight", "index", "valid", "finite"), (8,)
    )
    assert values["probability"].shape == (8, 32, 32, 1)
    predicted, truth = values["probability"] > 0.5, batches[0]["mask"] > 0
    both, total = (predicted & truth).sum((1, 2, 3)), predicted.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    assert_close(values["dice"], 2 * both / total, 1e-6)


# --- Batch statistics, dropout and several classes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_cnn(mesh_of, batches):
    """Two steps of a small DeepLabV3+, which has BatchNorm and dropout, with two classes."""
    sizes = {"encoder": {"layers": (1, 1, 1, 1), "width": 8}, "decoder_channels": 16, "image_size": 32}
    config = models.override(models.PRESETS["deeplabv3plus_tiny"][1], sizes | {"classes": ("circle", "square")})
    arrays = {name: np.array(array) for name, array in models.initial_arrays(config, 0).items()}
    classes = np.arange(8, dtype=np.int32) % 2

    @functools.cache
    def take_steps(data: int, fsdp: int = 1, accumulation: int = 1, seed: int = 0) -> SimpleNamespace:
        mesh, model = mesh_of(data, fsdp), models.abstract_model(config)
        _, params, stats = split_model(model)
        placed = jax.device_put(arrays, tree_shardings(arrays, mesh))
        set_training_mode(model, freeze_encoder=False, freeze_decoder=False)
        optimizer = adamw(weight_decay=0.0, max_grad_norm=0.5)
        state = new_state(
            {name: placed[name] for name in params}, {}, {name: placed[name] for name in stats}, optimizer, mesh
        )
        options = {"accumulation": accumulation, "seed": seed}
        step = make_train_step(nnx.graphdef(model), optimizer, LOSSES["dice_nonempty"], mesh, state, **options)
        losses = []
        with jax.default_matmul_precision("highest"):
            for batch in batches[:2]:
                batch = {"image": batch["image"], "mask": batch["mask"], "class_index": classes}
                state, values = step(state, put_batch(batch, mesh), jnp.float32(RATE))
                losses.append(float(values["loss"]))
        return SimpleNamespace(losses=losses, stats={name: np.asarray(x) for name, x in state.stats.items()})

    return take_steps


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (2, 4)], ids=["1 device", "8 devices", "fsdp=4"])
def test_the_mesh_does_not_change_statistics_of_the_batch_and_what_is_dropped(run_cnn, data, fsdp):
    result, other = run_cnn(data, fsdp), run_cnn(2)
    np.testing.assert_allclose(result.losses, other.losses, atol=1e-3)
    for name, array in result.stats.items():
        np.testing.assert_allclose(array, other.stats[name], rtol=2e-3, atol=2e-3, err_msg=name)


def test_running_statistics_follow_the_batches(run_cnn):
    stats = run_cnn(2).stats
    assert all(np.abs(x).max() > 0 for name, x in stats.items() if name.endswith("mean"))
    assert all(np.abs(x - 1).max() > 0 for name, x in stats.items() if name.endswith("var"))


def test_what_is_dropped_follows_the_seed(run_cnn):
    assert run_cnn(2, seed=1).losses[0] != run_cnn(2).losses[0]


@pytest.mark.parametrize("name", ["dice", "dice_nonempty"])
def test_images_that_a_loss_leaves_out_change_nothing(network, mesh_of, batches, name):
    """With empty masks for half of a batch, the loss is that of the other half, or not."""
    mesh, loss = mesh_of(2), LOSSES[name]
    half = {key: np.concatenate([x[:4], x[:4]]) for key, x in batches[0].items()}
    emptied = half | {"mask": half["mask"] * (np.arange(8) < 4)[:, None, None, None].astype(np.uint8)}
    values = []
    for batch in (half, emptied):
        trained, frozen = split_trained(network.model, network.params, freeze_encoder=True, freeze_decoder=False)
        placed = [jax.device_put(part, tree_shardings(part, mesh)) for part in (trained, frozen)]
        state = new_state(*placed, {}, optax.identity(), mesh)
        step = make_train_step(network.graphdef, optax.identity(), loss, mesh, state)
        values.append({key: float(x) for key, x in step(state, put_batch(batch, mesh), jnp.float32(0))[1].items()})
    assert (values[0] == pytest.approx(values[1], rel=1e-4)) == (name == "dice_nonempty")


# --- Updates ----------------------------------------------------------------------------------------------------------


def test_updates_are_pytorchs_adamw_after_clipping_the_global_norm():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 7), "bias": (7,), "scale": (3, 2, 2)}
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in params.items()}
    reference = torch.optim.AdamW(theirs.values(), weight_decay=0.1)
    optimizer = adamw(weight_decay=0.1, max_grad_norm=0.5)
    ours, state = params, optimizer.init(params)

    for step in range(12):
        rate = 0.05 / (1 + step)
        size = 10.0 ** (step % 4 - 3)  # norms from 0.01, left alone, to 10, clipped
        grads = {name: np.float32(size) * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        updates, state = optimizer.update(grads, state, ours)
        ours = jax.tree.map(lambda p, u, rate=rate: p - rate * u, ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        for name, parameter in theirs.items():
            assert_close(ours[name], parameter.detach().numpy(), 2e-5)


def test_weight_decay_shrinks_a_parameter_without_a_gradient():
    optimizer = adamw(weight_decay=0.1, max_grad_norm=1.0)
    params = {"x": jnp.array([2.0, -4.0])}
    updates, _ = optimizer.update({"x": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["x"], [0.2, -0.4], rtol=1e-6)
