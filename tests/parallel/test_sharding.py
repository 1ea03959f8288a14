"""The mesh's rules, which axis is split, and that no device holds more than its share."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_network import SMALL

from medvlsm_jax import models
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.parallel.sharding import (
    batch_sharding,
    check_batch_size,
    local_rows,
    make_mesh,
    parameter_sharding,
    put_batch,
    tree_shardings,
)
from medvlsm_jax.training.freezing import split_trained
from medvlsm_jax.training.step import adamw, new_state


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (2, -1, (2, 4)), (1, -1, (1, 8)), (4, 2, (4, 2)), (-1, 8, (1, 8))],
)
def test_minus_one_takes_the_devices_that_the_other_axis_leaves(data, fsdp, shape):
    mesh = make_mesh(data, fsdp)
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "fsdp"), shape)
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 3), (4, 1), (3, -1), (16, 1), (-1, -1), (0, -1), (-1, 0), (-2, -4)])
def test_a_mesh_that_does_not_cover_the_devices_is_refused(data, fsdp):
    with pytest.raises(UserError, match=rf"mesh.data={data} x mesh.fsdp={fsdp} does not cover 8 devices"):
        make_mesh(data, fsdp)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 64), P(None, "fsdp")),
        ((64, 16), P("fsdp", None)),
        ((12, 100, 8), P(None, None, "fsdp")),  # the largest axes are not divisible
        ((3, 3, 16, 32), P(None, None, None, "fsdp")),
        ((8, 8), P("fsdp", None)),
        ((17, 5), P()),
        ((), P()),
        ((0, 4), P()),
    ],
)
def test_the_largest_divisible_axis_is_split(shape, spec):
    assert parameter_sharding(shape, make_mesh(-1, 8)).spec == spec


def test_nothing_is_split_without_fsdp():
    assert parameter_sharding((64, 64), make_mesh(-1, 1)).is_fully_replicated


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_every_device_holds_its_own_rows_of_a_batch(fsdp):
    mesh = make_mesh(-1, fsdp)
    rows = put_batch({"x": np.arange(16)}, mesh)["x"]
    assert rows.sharding == batch_sharding(mesh)
    assert sorted(tuple(np.asarray(shard.data)) for shard in rows.addressable_shards) == [
        (2 * i, 2 * i + 1) for i in range(8)
    ]


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_rows_come_back_to_the_host_in_their_order(fsdp):
    rows = np.arange(32).reshape(16, 2)
    np.testing.assert_array_equal(local_rows(put_batch({"x": rows}, make_mesh(-1, fsdp))["x"]), rows)


def test_with_fsdp_8_a_device_holds_an_eighth_of_parameters_and_optimizer_state(network):
    mesh = make_mesh(-1, 8)
    params = jax.device_put(network.params, tree_shardings(network.params, mesh))
    state = new_state(params, {}, {}, adamw(weight_decay=0.0, max_grad_norm=1.0), mesh)
    leaves = jax.tree.leaves((state.trained, state.opt_state))
    divisible = [leaf for leaf in leaves if any(size % 8 == 0 for size in leaf.shape)]
    for leaf in divisible:
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 8}
    # ... and those are all but a few scalars.
    assert sum(leaf.size for leaf in divisible) > 0.999 * sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("batch_size", [0, -8, 7, 12])
def test_a_batch_that_devices_cannot_share_is_refused_with_its_flag(batch_size):
    with pytest.raises(UserError, match=rf"config\.batch_size={batch_size} is not a multiple of the 8 devices"):
        check_batch_size(batch_size, make_mesh())


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 2), (48, 4), (32, 0), (32, -1)])
def test_a_batch_that_cannot_be_cut_into_parts_is_refused_with_both_flags(batch_size, accumulation):
    message = rf"config\.batch_size={batch_size} .* 8 devices x config\.accumulation={accumulation}"
    with pytest.raises(UserError, match=message):
        check_batch_size(batch_size, make_mesh(), accumulation)


def test_a_batch_that_devices_and_parts_divide_is_accepted():
    assert check_batch_size(64, make_mesh(), 4) is None


@pytest.mark.parametrize("name", ["clipseg", "biomedclipseg", "cris", "unet", "unetplusplus", "deeplabv3plus"])
def test_with_fsdp_8_a_device_holds_an_eighth_of_the_state_and_little_that_is_replicated(mesh_of, name):
    model = models.abstract_model(models.PRESETS[name][1])
    _, params, _ = split_model(model)
    trained, _ = split_trained(model, params, freeze_encoder=False, freeze_decoder=False)
    state = jax.tree.leaves((params, jax.eval_shape(adamw(weight_decay=0.0, max_grad_norm=1.0).init, trained)))
    shardings = tree_shardings(state, mesh_of(1, 8))

    def held(leaf, sharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    pairs = list(zip(state, shardings, strict=True))
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in state)
    declared = sum(held(leaf, sharding) for leaf, sharding in pairs if sharding.is_fully_replicated)
    assert sum(held(leaf, sharding) for leaf, sharding in pairs) <= whole / 8 + declared
    assert declared < 1e-3 * whole


def test_initial_arrays_are_made_in_their_shards(mesh_of):
    mesh = mesh_of(1, 8)
    arrays = models.initial_arrays(SMALL, 0, shardings=lambda shapes: tree_shardings(shapes, mesh))
    for name, array in arrays.items():
        assert array.sharding.is_equivalent_to(tree_shardings(array, mesh), array.ndim), name
        assert len({shard.data.shape for shard in array.addressable_shards}) == 1
    kernel = arrays["vision.blocks.0.mlp.expand.kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
