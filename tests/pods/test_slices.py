"""Steps with shapes in place of arrays, and the slices that they are compiled for."""

import sys

import jax
import numpy as np
import pytest
from small_network import SMALL

from medvlsm_jax import models
from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.chips import V5E, V5P
from medvlsm_jax.pods.slices import Slice, abstract_run, bytes_per_chip, find_slice, slice_mesh


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "small", ("clipseg", SMALL))
    config = base_config()
    config.update({"model": "small", "batch_size": 16, "data_dir": "nowhere", "init": "no/checkpoint"})
    config.freeze_encoder = False
    return config


def test_steps_are_lowered_from_the_config_alone(config, mesh_of):
    run = abstract_run(config, mesh_of(2, 4))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((run.state, run.batch)))
    assert "bf16" in run.lower_train().as_text()  # auto is what a TPU would take
    assert run.lower_eval().compile() is not None


def test_the_batch_has_the_shapes_of_a_real_one(config, mesh_of, batches):
    shapes = abstract_run(config, mesh_of(1)).batch
    real = {name: (rows.shape[1:], rows.dtype) for name, rows in batches[0].items()}
    assert {name: (shape.shape[1:], shape.dtype) for name, shape in shapes.items()} == real
    assert {shape.shape[0] for shape in shapes.values()} == {16}


def test_a_chip_holds_its_share_of_the_state(config, mesh_of):
    whole = bytes_per_chip(abstract_run(config, mesh_of(1)).state)
    assert bytes_per_chip(abstract_run(config, mesh_of(8)).state) == whole
    assert bytes_per_chip(abstract_run(config, mesh_of(2, 4)).state) == pytest.approx(whole / 4, rel=0.01)


def test_what_pretrained_weights_would_freeze_is_frozen(config, mesh_of):
    assert "text.token_embedding" in abstract_run(config, mesh_of(1)).state.trained
    config.freeze_encoder = None
    state = abstract_run(config, mesh_of(1)).state
    assert {name.split(".")[0] for name in state.trained} == {"decoder"}


def test_averages_are_part_of_the_state(config, mesh_of):
    config.ema = 0.999
    state = abstract_run(config, mesh_of(1)).state
    assert set(state.ema) == set(state.trained)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:4x", "v3:2x2", "gpu:8", "v5e:4", "v5e:2x2x2x2"])
def test_an_unknown_slice_is_refused_with_examples(name):
    with pytest.raises(UserError, match=rf"--topology={name} is no TPU slice .* v5e:16x16"):
        find_slice(name)


def test_without_the_compiler_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match="pip install libtpu"):
        find_slice("v5e:2x8")


def test_a_slice_that_the_compiler_refuses_is_refused():
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    with pytest.raises(UserError, match=r"--topology=v5e:2x3: the TPU's compiler refuses it \(.*\): try v5e:2x2"):
        find_slice("v5e:2x3")


@pytest.mark.parametrize(
    ("name", "chips", "chip"), [("v5e:2x2", 4, V5E), ("v5e:16x16", 256, V5E), ("v5p:2x2x1", 4, V5P)]
)
def test_slices_have_their_chips(name, chips, chip):
    pytest.importorskip("libtpu", reason="needs the TPU's compiler")
    assert (len(find_slice(name).devices), find_slice(name).chip) == (chips, chip)


@pytest.mark.parametrize(
    ("chip", "shape", "chips", "share"),
    [
        (V5E, (16, 16), 256, 1.0),  # all links, closed to rings
        (V5E, (16, 16), 16, 0.5),  # one of two axes
        (V5E, (4, 4), 16, 0.5),  # open ends
        (V5E, (4, 4), 4, 0.25),
        (V5P, (4, 4, 4), 64, 1.0),
        (V5P, (2, 2, 1), 4, 0.5),
    ],
)
def test_bandwidth_is_that_of_the_links_in_use(chip, shape, chips, share):
    devices = tuple(range(int(np.prod(shape))))
    assert Slice("a slice", shape, chip, devices).bandwidth(chips) == share * chip.interconnect


@pytest.mark.parametrize(("data", "fsdp", "shape"), [(-1, 1, (8, 1)), (2, -1, (2, 4)), (-1, 8, (1, 8)), (4, 2, (4, 2))])
def test_the_mesh_covers_the_slice(config, data, fsdp, shape):
    config.mesh.update({"data": data, "fsdp": fsdp})
    assert slice_mesh(Slice("eight", (2, 4), V5E, tuple(jax.devices())), config).devices.shape == shape


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 3), (-1, -1), (4, 4), (0, 8)])
def test_a_mesh_that_does_not_cover_the_slice_is_refused(config, data, fsdp):
    config.mesh.update({"data": data, "fsdp": fsdp})
    with pytest.raises(UserError, match=rf"mesh\.data={data} x mesh\.fsdp={fsdp} does not cover"):
        slice_mesh(Slice("eight", (2, 4), V5E, tuple(jax.devices())), config)


def test_nothing_left_to_train_is_refused(config, mesh_of):
    config.update({"freeze_encoder": True, "freeze_decoder": True})
    with pytest.raises(UserError, match="nothing is left to train"):
        abstract_run(config, mesh_of(1))
