"""One run of a sweep, from its config to its scores, and the program that starts them."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import sweep as program

from configs import sweeps
from configs.sweeps import get_sweep
from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.sweeping.runs import evaluation_config, is_done, perform, write_run

ROOT = Path(__file__).parents[2]


# --- One run ----------------------------------------------------------------------------------------------------------


def small_run(arg: str) -> Any:
    """A run of the preset that this process alone knows, with the config of the fixture `run`."""
    fields = "models=small,batch_size=16,num_epochs=2,loss=dice_bce,learning_rate=3e-3,log_every_steps=1,num_overlays=2"
    (config,) = get_sweep(f"{arg},datasets=sample,{fields}")
    return config


@pytest.fixture
def small_file(monkeypatch):
    monkeypatch.setattr(sweeps, "config_file", lambda _: "clipseg")


@pytest.mark.usefixtures("small_file")
def test_a_run_is_trained_scored_and_then_done(sample, run_copy):
    config = small_run(f"grid,data_dir={sample},evaluation.prompts=p0+p6")
    write_run(run_copy, config, "started")
    (run_copy / "config.json").unlink()  # the training, which finds that it has ended, writes it anew
    assert not is_done(run_copy, config)
    perform(run_copy)
    assert is_done(run_copy, config)
    assert set(json.loads((run_copy / "config.json").read_text())) == set(base_config())
    metrics = json.loads((run_copy / "evaluation" / "metrics.json").read_text())
    assert {name: list(prompts) for name, prompts in metrics.items()} == {"sample": ["p0", "p6"]}


@pytest.mark.usefixtures("small_file")
def test_a_zero_shot_run_scores_its_checkpoint_alone(sample, run, tmp_path):
    config = small_run(f"zero_shot,data_dir={sample},init={run},prompts=p6")
    write_run(tmp_path, config, "started")
    perform(tmp_path)
    assert is_done(tmp_path, config)
    assert list(json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["sample"]) == ["p6"]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.usefixtures("small_file")
def test_what_fails_is_not_done(tmp_path):
    config = small_run(f"grid,data_dir={tmp_path}/none")
    write_run(tmp_path, config, "started")
    with pytest.raises(UserError, match="data_dir"):
        perform(tmp_path)
    assert not is_done(tmp_path, config)


@pytest.mark.usefixtures("small_file")
@pytest.mark.parametrize(
    ("field", "message"),
    [("prompts=P6", "no prompt 'P6'"), ("datasets=sample+samples", "'samples' is not a dataset")],
)
def test_what_cannot_be_scored_is_not_trained(sample, tmp_path, monkeypatch, field, message):
    trained: list[Path] = []
    monkeypatch.setattr("medvlsm_jax.sweeping.runs.train", lambda config, workdir: trained.append(workdir))
    config = small_run(f"grid,data_dir={sample},evaluation.{field}")
    write_run(tmp_path, config, "started")
    with pytest.raises(UserError, match=message):
        perform(tmp_path)
    assert trained == []


def test_an_evaluation_reads_what_the_training_read_in_its_own_precision():
    (config,) = get_sweep("grid,data_dir=D,image_size=64,batch_size=4,dtype=bfloat16,mesh.fsdp=2,data.num_workers=3")
    evaluation: Any = evaluation_config(config)
    assert (evaluation.data_dir, evaluation.image_size, evaluation.batch_size) == ("D", 64, 4)
    assert (evaluation.mesh.fsdp, evaluation.data.num_workers) == (2, 3)
    assert (evaluation.dtype, evaluation.data.cache) == ("float32", "none")


def test_another_config_under_a_finished_name_is_an_error_that_names_the_fields(tmp_path):
    (config,) = get_sweep("grid,batch_size=4,data_dir=old")
    write_run(tmp_path, config, "done")
    (moved,) = get_sweep("grid,batch_size=4,data_dir=new,mesh.fsdp=2")
    assert is_done(tmp_path, moved)
    (changed,) = get_sweep("grid,batch_size=8,data_dir=new,plateau.factor=0.5")
    with pytest.raises(UserError, match=r"batch_size was 4 and is 8, plateau.factor was 0.1 and is 0.5. Give") as error:
        is_done(tmp_path, changed)
    assert "data_dir" not in str(error.value)
    write_run(tmp_path, config, "started")
    assert not is_done(tmp_path, changed)


# --- The program ------------------------------------------------------------------------------------------------------


def run_program(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/sweep.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"index": 2, "count": 2}, "--index=2: with --count=2 it is 0 to 1"),
        ({"trials": 3, "report": True}, "--trials does nothing with --report: leave that out"),
        ({"trials": 3, "index": 1, "count": 4}, "--trials does nothing with --index, --count"),
        ({"output": __file__}, "is a file: give a folder"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message):
    args = {"index": 0, "count": 1, "trials": 0, "report": False, "output": None}
    program.check_flags(types.SimpleNamespace(**args))
    with pytest.raises(UserError, match=message):
        program.check_flags(types.SimpleNamespace(**args | flags))


def test_a_real_run_that_fails_says_why_and_the_sweep_ends_with_1(tmp_path):
    sweep = f"--sweep=configs/sweeps.py:grid,models=unet_tiny,seeds=1+2+3,data_dir={tmp_path}/none"
    ended = run_program(sweep, f"--output={tmp_path}/runs", "--index=1", "--count=3")
    assert ended.returncode == 1
    assert "unet_tiny-p0-seed2: failed after" in ended.stdout
    assert f"    error: data_dir {tmp_path}/none does not exist" in ended.stdout
    assert "1 failed;" in ended.stdout
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["unet_tiny-p0-seed2"]
    assert "data_dir" in (tmp_path / "runs" / "unet_tiny-p0-seed2" / "log.txt").read_text()
