"""What a run writes, that it continues exactly, how it ends, and where it starts from."""

import json
import math
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from check_continuation import read_log

from medvlsm_jax.checkpoints.arrays import abstract_arrays
from medvlsm_jax.checkpoints.checkpoints import Checkpoints, Saved
from medvlsm_jax.checkpoints.model_folder import load, load_pretrained, save_model
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.logs import writers
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.parallel.sharding import make_mesh
from medvlsm_jax.train import train
from medvlsm_jax.training.freezing import split_trained
from medvlsm_jax.training.step import adamw

STEPS = 8  # of the two epochs of `config`


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def series(workdir: Path, name: str) -> dict[int, float]:
    return {row["step"]: row["value"] for row in metrics(workdir) if row["name"] == name}


def read_newest(workdir: Path) -> tuple[dict, list, dict]:
    """Arrays, optimizer state and progress, but for the length of the log, of a run's newest checkpoint."""
    model = load_pretrained(workdir).model()
    _, params, stats = split_model(model)
    trained, frozen = split_trained(model, params, freeze_encoder=False, freeze_decoder=False)
    opt_state = jax.eval_shape(adamw(weight_decay=0.0, max_grad_norm=1.0).init, trained)
    mesh = make_mesh(-1, 1)

    def abstract(_: dict) -> Saved:
        return Saved(abstract_arrays({**trained, **stats}, mesh), abstract_arrays(opt_state, mesh), {})

    with Checkpoints(workdir) as checkpoints:
        _, saved, frozen = checkpoints.load_newest(abstract, abstract_arrays(frozen, mesh))
    return {**saved.arrays, **frozen}, saved.opt_state, saved.progress | {"log": None}


def assert_same_run(workdir: Path, other: Path, **progress: object) -> None:
    """Bit for bit: arrays, optimizer state, progress but for what is given, and every line of metrics.jsonl."""
    ours, theirs = read_newest(workdir), read_newest(other)
    jax.tree.map(np.testing.assert_array_equal, ours[:2], theirs[:2])
    assert ours[2] == theirs[2] | progress
    assert read_log(workdir / "metrics.jsonl") == read_log(other / "metrics.jsonl")


# --- What a run writes ------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_config_model_tokenizer_checkpoints_and_metrics(run, config):
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "model.json", "tokenizer", "checkpoints", "metrics.jsonl", "tensorboard", "frozen"}
    assert json.loads((run / "config.json").read_text())["learning_rate"] == config.learning_rate
    assert json.loads((run / "model.json").read_text())["network"] == "clipseg"
    assert str(STEPS) in {path.name for path in (run / "checkpoints").iterdir()}


def test_metrics_hold_training_at_every_step_and_validation_after_every_epoch(run, config):
    assert all(row.keys() == {"step", "name", "value"} and math.isfinite(row["value"]) for row in metrics(run))
    for name in ("train/loss", "train/learning_rate", "train/grad_norm"):
        assert list(series(run, name)) == list(range(1, STEPS + 1))
    for name in ("val/dice", "val/iou", "val/loss"):
        assert list(series(run, name)) == [STEPS // 2, STEPS]
    assert series(run, "train/learning_rate")[1] == config.learning_rate
    assert all(0 <= value <= 1 for value in series(run, "val/dice").values())
    assert series(run, "val/loss")[STEPS] < series(run, "val/loss")[STEPS // 2]  # of the same records, in any order


def test_tensorboard_holds_the_numbers_and_overlays(run):
    (events,) = (run / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"train/loss", b"val/dice", b"val/0", b"val/1"):
        assert tag in content
    assert b"val/2" not in content  # config.num_overlays
    assert content.count(b"\x89PNG") == 2 * 2


# --- How it continues -------------------------------------------------------------------------------------------------


def test_a_run_stopped_by_sigterm_within_an_epoch_continues_exactly(run, config, tmp_path, monkeypatch):
    step = 7
    write = writers.JsonlWriter.scalars

    def stop(self, at: int, values: dict) -> None:
        write(self, at, values)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    config.writers = ""
    with monkeypatch.context() as patch:
        patch.setattr(writers.JsonlWriter, "scalars", stop)
        with pytest.raises(SystemExit) as stopped:
            train(config, tmp_path)
    assert stopped.value.code == 75
    assert metrics(tmp_path)[-1]["step"] == step
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == step
    assert train(config, tmp_path) == {"step": STEPS, "val_dice": max(series(run, "val/dice").values())}
    assert_same_run(tmp_path, run)
    assert not (tmp_path / "tensorboard").exists()


def test_a_finished_run_that_is_started_again_does_nothing(run, run_copy, config, monkeypatch):
    monkeypatch.setattr("medvlsm_jax.train.make_train_step", lambda *_, **__: pytest.fail)  # as the step, it would fail
    assert train(config, run_copy) == {"step": STEPS, "val_dice": max(series(run, "val/dice").values())}
    assert (run_copy / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


# --- Where it starts from ---------------------------------------------------------------------------------------------


@pytest.fixture
def pretrained(run, tmp_path) -> Path:
    """A model folder like one that tools/convert_weights.py writes."""
    save_model(tmp_path / "pretrained", load(run), load_tokenizer("builtin", 32))
    return tmp_path / "pretrained"


def test_a_frozen_encoder_stays_as_it_is_and_whether_its_outputs_are_kept_changes_nothing(config, pretrained, tmp_path):
    config.init, config.prompt = str(pretrained), "random"
    config.features.cache = "none"
    train(config, tmp_path / "run")
    config.features.cache = "memory"
    train(config, tmp_path / "cached")
    for name in ("train/loss", "val/loss", "val/dice"):
        assert series(tmp_path / "cached", name) == pytest.approx(series(tmp_path / "run", name), rel=1e-6), name
    before, after = load_pretrained(pretrained).arrays, load_pretrained(tmp_path / "run").arrays
    for name, array in after.items():
        if name.startswith("decoder."):
            assert 0 < np.abs(array - before[name]).max() < STEPS * 1.1 * config.learning_rate, name
        else:
            np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_run_is_continued_in_another_workdir_with_its_log(run, config, tmp_path):
    config.max_steps = 5
    train(config, tmp_path / "old")
    before = read_log(tmp_path / "old" / "metrics.jsonl")
    config.resume, config.max_steps = str(tmp_path / "old"), 0
    train(config, tmp_path / "new")
    assert read_log(tmp_path / "new" / "metrics.jsonl")[: len(before)] == before
    assert read_log(tmp_path / "old" / "metrics.jsonl") == before
    # The best score is that of the checkpoints in the new workdir.
    assert_same_run(tmp_path / "new", run, best_score=series(run, "val/dice")[STEPS])


def test_a_run_on_eight_devices_continued_on_two_is_that_of_one(config, use_devices, tmp_path):
    config.learning_rate = 1e-5  # Adam blows up gradients that are rounding errors
    use_devices(1)
    train(config, tmp_path / "one")
    use_devices(8)
    config.mesh.fsdp, config.max_steps = 4, 5
    train(config, tmp_path / "moved")
    use_devices(2)
    config.mesh.fsdp, config.max_steps = 1, 0
    train(config, tmp_path / "moved")
    for name in ("train/loss", "val/loss", "val/dice"):
        assert series(tmp_path / "moved", name) == pytest.approx(series(tmp_path / "one", name), abs=1e-5), name


def test_an_average_of_the_parameters_is_validated_and_loaded(run, config, tmp_path):
    config.ema = 0.5
    train(config, tmp_path)
    trained, loaded = read_newest(run)[0], load_pretrained(tmp_path).arrays  # of the same training, without averages
    assert series(tmp_path, "train/loss") == series(run, "train/loss")
    assert series(tmp_path, "val/loss") != series(run, "val/loss")
    moved = [name for name, array in loaded.items() if not np.array_equal(array, trained[name])]
    assert moved
    for name in moved:
        # The best checkpoint may be that of the first epoch; Adam's steps are hardly larger than the learning rate.
        np.testing.assert_allclose(loaded[name], trained[name], atol=1.1 * STEPS * config.learning_rate, err_msg=name)


def test_a_config_that_changes_what_a_step_reads_is_refused_and_others_are_told(run, run_copy, config, capsys):
    config.num_epochs, config.seed, config.batch_size = 3, 7, 8
    with pytest.raises(UserError, match=r"another config: .*seed was 42 and is 7.*\. Give the old values"):
        train(config, run_copy)
    config.seed, config.batch_size, config.max_grad_norm = 42, 16, 0.25
    train(config, run_copy)
    assert "continues with a changed config: max_grad_norm 0.5 -> 0.25" in capsys.readouterr().out
    assert list(series(run_copy, "train/loss")) == list(range(1, 13))
    assert metrics(run_copy)[: len(metrics(run))] == metrics(run)


def test_the_workdirs_own_checkpoint_comes_before_init(config, pretrained, run_copy):
    config.init = str(pretrained)
    config.freeze_encoder = False
    newest = read_newest(run_copy)
    assert train(config, run_copy)["step"] == STEPS
    jax.tree.map(np.testing.assert_array_equal, read_newest(run_copy)[:2], newest[:2])


def test_a_run_cannot_go_on_with_other_parameters_frozen(config, run_copy):
    before = (run_copy / "config.json").read_text()
    config.num_epochs, config.freeze_encoder = 3, True
    with pytest.raises(UserError, match=rf"{run_copy} holds a run of another config: freeze_encoder was None and is"):
        train(config, run_copy)
    assert (run_copy / "config.json").read_text() == before


# --- Real images ------------------------------------------------------------------------------------------------------


def test_real_images_are_trained_on_and_their_masks_have_their_own_sizes(shared, config, tmp_path):
    from PIL import Image

    from medvlsm_jax.evaluate import default_config, evaluate

    config.data_dir, config.dataset, config.prompt = str(shared / "realdata"), "kvasir_polyp", "random"
    config.max_steps = 2
    assert train(config, tmp_path / "run")["step"] == 2
    options = default_config()
    options.data_dir = config.data_dir
    summary = evaluate(options, tmp_path / "run", ["kvasir_polyp"], ["p6"], tmp_path / "test", save_masks=True)
    records = json.loads((shared / "realdata" / "kvasir_polyp" / "anns" / "test.json").read_text())
    assert summary["kvasir_polyp"]["p6"]["n"] == len(records)
    for record in records:
        stem = Path(record["mask_name"]).stem
        with (
            Image.open(shared / "realdata" / "kvasir_polyp" / "images" / record["img_name"]) as image,
            Image.open(tmp_path / "test" / "masks" / "kvasir_polyp" / "p6" / f"{stem}_mask.png") as mask,
        ):
            assert mask.size == image.size
