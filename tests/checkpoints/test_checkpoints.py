"""Model folders and the checkpoints of a run: whole or absent, bit for bit, on any mesh."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medvlsm_jax.checkpoints import checkpoints as module
from medvlsm_jax.checkpoints.arrays import abstract_arrays
from medvlsm_jax.checkpoints.checkpoints import Checkpoints, Saved
from medvlsm_jax.checkpoints.model_folder import load, load_pretrained, read_description, save_model, write_description
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import clipseg
from medvlsm_jax.models.parameters import merge_model, split_model
from medvlsm_jax.parallel.sharding import tree_shardings
from medvlsm_jax.training.step import adamw

# --- Model folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(network) -> clipseg.CLIPSeg:
    return merge_model(network.graphdef, jax.tree.map(jnp.asarray, network.params))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A model folder with a tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    save_model(path, model, load_tokenizer("builtin", model.config.text.context_length))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_comes_back_bit_for_bit_with_its_config(folder, network):
    loaded = load(folder)
    _, params, _ = split_model(loaded)
    assert loaded.config == network.config
    assert params.keys() == network.params.keys()
    for name, array in params.items():
        np.testing.assert_array_equal(array, network.params[name], err_msg=name)


def test_a_model_that_was_trained_with_another_machines_attention_takes_this_ones(folder, network, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    write_description(copy, dataclasses.replace(network.config, attention="cudnn"), None)
    assert load(copy, dtype="bfloat16").config.attention == "auto"


def test_a_model_brings_its_tokenizer(folder):
    pretrained = load_pretrained(folder)
    assert Path(pretrained.tokenizer).parent == folder
    for ours, theirs in zip(
        load_tokenizer(pretrained.tokenizer, 32)("one small polyp"),
        load_tokenizer("builtin", 32)("one small polyp"),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_without_a_tokenizer_names_its_presets(model, tmp_path):
    save_model(tmp_path / "model", model)
    assert load_pretrained(tmp_path / "model").tokenizer == model.config.tokenizer


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (1, 8), (2, 4)])
def test_a_model_is_read_onto_any_mesh(folder, network, mesh_of, data, fsdp):
    mesh = mesh_of(data, fsdp)
    for name, array in load_pretrained(folder, mesh).arrays.items():
        np.testing.assert_array_equal(array, network.params[name], err_msg=name)
        assert array.sharding == tree_shardings(array, mesh)


def test_an_override_that_leaves_the_arrays_alone_is_taken(folder):
    assert load(folder, image_size=64, zero_prompt=True).config.image_size == 64


def test_an_unknown_override_is_refused(folder):
    with pytest.raises(UserError, match="unknown model option colour"):
        load(folder, colour="red")


def test_saving_again_replaces_a_model_folder(model, tmp_path):
    save_model(tmp_path / "model", model, load_tokenizer("builtin", 32))
    save_model(tmp_path / "model", model)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["arrays", "model.json"]


def test_saving_into_an_empty_folder_is_fine(model, tmp_path):
    save_model(tmp_path, model)
    assert (tmp_path / "model.json").is_file()


def test_a_folder_that_is_something_else_is_refused_and_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=f"{tmp_path} exists and is no model folder: choose another --output"):
        save_model(tmp_path, model)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_workdir_is_never_replaced_by_a_model_folder(model, tmp_path):
    write_description(tmp_path, model.config, None)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is no model folder"):
        save_model(tmp_path, model)
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_an_interrupted_save_leaves_what_was_there(model, folder, tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    before = contents(folder)
    monkeypatch.setattr(module.ocp, "save", fail)
    for target in (tmp_path / "new", folder):
        with pytest.raises(type(error)):
            save_model(target, model)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == []
    assert list(folder.parent.iterdir()) == [folder]


def test_a_description_comes_back(network, tmp_path):
    write_description(tmp_path, network.config, None)
    assert read_description(tmp_path) == ("clipseg", network.config)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=f"checkpoint folder {tmp_path / 'nowhere'} does not exist"):
        load(tmp_path / "nowhere")


def test_a_folder_without_a_description_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path} is no checkpoint: .*model.json is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"clipseg"', "{}", '{"network": "segnet", "config": {}}', '{"network": "clipseg"}'],
)
def test_a_description_of_no_known_network_is_refused(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json describes no model of this version"):
        load(tmp_path)


def test_a_description_with_an_unknown_field_names_it(network, tmp_path):
    write_description(tmp_path, network.config, None)
    content = json.loads((tmp_path / "model.json").read_text())
    content["config"]["depth"] = 3
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="unknown model option depth"):
        load(tmp_path)


def test_a_run_that_ended_before_its_first_checkpoint_says_so(network, tmp_path):
    write_description(tmp_path, network.config, None)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        load(tmp_path)


# --- Checkpoints of a run ---------------------------------------------------------------------------------------------


def saved(arrays, opt_state=None, ema=None, progress=None) -> Saved:
    moment = {"moment": np.zeros(3, np.float32)}  # stands for an optimizer state
    return Saved(arrays, moment if opt_state is None else opt_state, ema or {}, progress or {}, {"seed": 1})


def save_steps(workdir: Path, scores: dict[int, float | None]) -> None:
    """A checkpoint a step, whose array holds the step."""
    with Checkpoints(workdir, is_writer=True) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, saved({"x": jnp.full(3, step, jnp.float32)}, progress={"step": step}), score)


def load_newest(checkpoints: Checkpoints, mesh, like: Saved, frozen=None) -> tuple[int, Saved, dict]:
    def abstract(config: dict) -> Saved:
        assert config == {"seed": 1}
        return Saved(*(abstract_arrays(tree, mesh) for tree in (like.arrays, like.opt_state, like.ema)))

    return checkpoints.load_newest(abstract, abstract_arrays(frozen or {}, mesh))


def kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_checkpoint_of_replicated_arrays_compiles_nothing(mesh_of, tmp_path):
    """Training stands still meanwhile: orbax would compile a program for each shape of a slice and each device."""
    everywhere = NamedSharding(mesh_of(8), PartitionSpec())
    arrays = {f"x{n}": jax.device_put(np.zeros((8 * n, n), np.float32), everywhere) for n in range(41, 44)}
    events: list[str] = []

    def listen(event: str, *_: object, **__: object) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with Checkpoints(tmp_path, is_writer=True) as checkpoints:
            checkpoints.save_frozen(arrays)
            checkpoints.save(1, saved(arrays), None)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert events
    assert not [event for event in events if "compile" in event]


@pytest.mark.parametrize(
    ("scores", "steps", "best"),
    [
        ({1: 0.1, 2: 0.5, 3: 0.2, 4: 0.3}, [2, 3, 4], 2),
        ({1: 0.1, 2: 0.5, 3: 0.7}, [2, 3], 3),
        ({1: 0.1, 2: 0.5, 3: None, 4: None}, [2, 3, 4], 2),
        ({1: None, 2: None, 3: None}, [2, 3], 3),
        ({1: 0.0, 2: None, 3: None}, [1, 2, 3], 1),
    ],
)
def test_the_best_and_the_latest_two_checkpoints_are_kept(tmp_path, scores, steps, best):
    save_steps(tmp_path, scores)
    assert kept(tmp_path) == steps
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (steps[-1], best)


def test_a_checkpoint_comes_back_with_all_that_continues(tmp_path, mesh_of):
    progress = {"best": 1 / 3, "rates": [1e-7, 2e300], "name": "p6", "none": None}
    arrays = {"x": jnp.arange(3.0) / 7, "y": jnp.int32(5)}
    opt_state = adamw(weight_decay=0.0, max_grad_norm=1.0).init(arrays)
    whole = saved(arrays, opt_state, {"x": jnp.arange(3.0)}, progress)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, whole, None)
        checkpoints.wait()
        step, loaded, frozen = load_newest(checkpoints, mesh_of(2), whole)
    assert (step, frozen) == (7, {})
    assert jax.tree.structure(loaded.items()) == jax.tree.structure(whole.items())
    jax.tree.map(np.testing.assert_array_equal, loaded.items(), whole.items())
    assert (loaded.progress, loaded.config) == (progress, {"seed": 1})


def test_what_was_saved_on_one_device_is_restored_on_fsdp_8(tmp_path, mesh_of):
    arrays = {"x": jnp.arange(64.0).reshape(8, 8)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved(jax.device_put(arrays, tree_shardings(arrays, mesh_of(1)))), None)
        checkpoints.wait()
        loaded = checkpoints.load_arrays(1, abstract_arrays(arrays, mesh_of(1, 8)))["x"]
    np.testing.assert_array_equal(loaded, arrays["x"])
    assert {shard.data.shape for shard in loaded.addressable_shards} == {(1, 8)}


def test_what_is_frozen_is_written_once_and_an_average_stands_for_its_parameter(tmp_path, mesh_of):
    frozen, trained, average = {"f": jnp.arange(4.0)}, {"x": jnp.ones(3), "y": jnp.zeros(2)}, {"x": jnp.full(3, 0.5)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen(frozen)
        checkpoints.save(1, saved(trained, ema=average), None)
        checkpoints.wait()
        loaded = checkpoints.load_arrays(1, abstract_arrays({**frozen, **trained}, mesh_of(2)))
        assert load_newest(checkpoints, mesh_of(2), saved(trained, ema=average), frozen)[2].keys() == {"f"}
    jax.tree.map(np.testing.assert_array_equal, loaded, {**frozen, **trained, **average})
    shutil.rmtree(tmp_path / "frozen")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="frozen is missing: the checkpoints"):
        checkpoints.load_arrays(1, abstract_arrays({**frozen, **trained}, mesh_of(2)))


def test_a_checkpoint_is_of_its_step_though_its_buffers_are_donated_meanwhile(tmp_path, mesh_of):
    mesh = mesh_of(8)
    arrays = {"x": jnp.arange(1_000_000.0)}
    state = jax.device_put(arrays, tree_shardings(arrays, mesh))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved(state), None)
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        loaded = checkpoints.load_arrays(1, abstract_arrays(arrays, mesh))["x"]
    np.testing.assert_array_equal(loaded, np.arange(1_000_000.0))


def test_a_step_that_is_saved_twice_holds_what_came_last(tmp_path, mesh_of):
    with Checkpoints(tmp_path) as checkpoints:
        for value in (1.0, 2.0):
            array = {"x": jnp.full(3, value)}
            checkpoints.save(4, saved(array, progress={"value": value}), None)
            checkpoints.wait()
        assert float(checkpoints.load_arrays(4, abstract_arrays(array, mesh_of(1)))["x"][0]) == 2.0


def test_a_checkpoint_is_there_until_the_one_that_replaces_it_is_whole(tmp_path, mesh_of, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    like = saved({"x": jnp.full(3, 2.0)})
    save_steps(tmp_path, {4: None})
    with Checkpoints(tmp_path, is_writer=True) as checkpoints:
        monkeypatch.setattr(checkpoints.checkpointer, "save_checkpointables_async", die)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(4, like, 0.5)
    assert kept(tmp_path) == []
    with Checkpoints(tmp_path, is_writer=True) as checkpoints:
        assert checkpoints.latest() == 4
        np.testing.assert_array_equal(load_newest(checkpoints, mesh_of(1), like)[1].arrays["x"], np.full(3, 4.0))
        checkpoints.save(4, like, 0.5)
        checkpoints.wait()
        np.testing.assert_array_equal(load_newest(checkpoints, mesh_of(1), like)[1].arrays["x"], np.full(3, 2.0))
    assert not (tmp_path / "replaced").exists()


def test_what_a_killed_run_left_half_written_is_ignored(tmp_path):
    save_steps(tmp_path, {1: 0.5})
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"  # orbax renames it when it is whole
    (half / "arrays").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (1, 1)
    save_steps(tmp_path, {2: math.pi / 4})
    assert kept(tmp_path) == [1, 2]


def test_a_workdir_without_checkpoints_has_no_latest(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest() is None


# --- Disks that fail --------------------------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [Path.unlink, empty, halve])
@pytest.mark.parametrize("which", ["largest", "_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"])
def test_when_the_newest_checkpoint_cannot_be_read_the_one_before_it_is_taken(tmp_path, mesh_of, capsys, which, harm):
    save_steps(tmp_path, {1: None, 2: None})
    newest = tmp_path / "checkpoints" / "2"
    files = sorted((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for path in files[-1:] if which == "largest" else [path for path in files if path.name == which]:
        harm(path)
    like = saved({"x": jnp.ones(3)})
    with Checkpoints(tmp_path, is_writer=True) as checkpoints:
        try:
            step, loaded, _ = load_newest(checkpoints, mesh_of(1), like)
        except BaseException as error:
            raise AssertionError(repr(error)[:300]) from None
        if step == 2:  # what was harmed is a copy or can be done without
            np.testing.assert_array_equal(loaded.arrays["x"], np.full(3, 2.0))
            return
        assert (step, loaded.progress) == (1, {"step": 1})
        np.testing.assert_array_equal(loaded.arrays["x"], np.ones(3))
        assert checkpoints.latest() == 1
        checkpoints.save(2, like, None)
    assert kept(tmp_path) == [1, 2]
    assert (tmp_path / "unreadable" / "2").is_dir()
    assert f"warning: {newest} cannot be read" in capsys.readouterr().err
