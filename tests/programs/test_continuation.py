"""A run that is killed, or asked to end, anywhere: it goes on as if nothing had been."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import check_continuation
import pytest
from check_continuation import Moment, Phase, check_end, choose_moments, differences
from processes import child_environment
from small_network import SMALL

from medvlsm_jax import models
from medvlsm_jax.parallel import interruption

SMALLEST = models.override(SMALL, {"text": {"depth": 0}, "vision": {"depth": 1}})  # each start compiles or reads it


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> check_continuation.Training:
    overrides = f"batch_size=8,writers=,model_options={json.dumps(dataclasses.asdict(SMALLEST))}"
    return check_continuation.Training(tmp_path_factory.mktemp("continuation"), 2, overrides, child_environment())


@pytest.fixture(scope="module")
def unbroken(training) -> tuple[Path, float]:
    """The workdir of a run and the seconds that its start took; tests leave it as it is."""
    workdir = training.folder / "unbroken"
    return workdir, check_continuation.run_unbroken(training, workdir)


def start(training, workdir: Path, patch: str) -> subprocess.Popen[str]:
    """The training program with something in it replaced."""
    script = f"{patch}\nimport runpy\nrunpy.run_module('medvlsm_jax.train', run_name='__main__')"
    command = [sys.executable, "-c", script, *training.flags(workdir)]
    return subprocess.Popen(
        command, cwd=check_continuation.ROOT, env=training.environment, stdout=subprocess.PIPE, text=True
    )


# --- Real runs --------------------------------------------------------------------------------------------------------


ASK_IN_VALIDATION = """
import os, signal
from medvlsm_jax.evaluation import pictures

def overlay(image, *_):  # of the first images of a validation
    os.kill(os.getpid(), signal.SIGTERM)
    return image

pictures.overlay = overlay
"""


def test_a_run_asked_to_end_in_a_validation_and_killed_in_a_checkpoint_ends_with_the_same_bits(training, unbroken):
    workdir, steps = training.folder / "broken", training.epoch_steps
    with start(training, workdir, ASK_IN_VALIDATION) as process:
        process.communicate()
    assert process.returncode == 75
    log = check_continuation.read_log(workdir / "metrics.jsonl")
    assert {step for step, _, _ in log} == set(range(1, steps + 1))
    assert not [name for _, name, _ in log if name.startswith("val/")]
    assert (workdir / "checkpoints" / str(steps)).is_dir()

    moments = [Moment(Phase.WRITING, steps + 1, 0.2)]
    phases, wrong = check_continuation.run_broken(training, workdir, moments, signal.SIGKILL, unbroken[1])
    assert phases == {Phase.WRITING: 1}
    assert wrong == differences(workdir, unbroken[0]) == []


COMPILE_FOR_MINUTES = """
import jax, numpy as np
from medvlsm_jax.training import step

class Step:
    def compile(self, *_):  # what XLA works out while it compiles takes it minutes
        image = np.random.default_rng(0).random((2000, 2000), np.float32)
        lowered = jax.jit(lambda: jax.lax.reduce_window(image, 0.0, jax.lax.add, (200, 200), (1, 1), "SAME")).lower()
        print("compiling now", flush=True)
        lowered.compile()

step.make_train_step = lambda *_, **__: Step()
"""


def test_sigterm_while_xla_compiles_ends_the_program_without_waiting_for_it(training, tmp_path):
    with start(training, tmp_path / "run", COMPILE_FOR_MINUTES) as process:
        assert process.stdout is not None
        assert any("compiling now" in line for line in process.stdout)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(interruption.PATIENCE + 100) == 75  # not the minutes of the compiler
        finally:
            process.kill()


# --- How they are judged ----------------------------------------------------------------------------------------------


def test_moments_are_one_an_epoch_and_a_third_of_them_in_checkpoints():
    moments = choose_moments(30, 8, seed=1)
    assert [moment.step // 8 for moment in moments] == list(range(30))
    assert sum(moment.phase is Phase.WRITING for moment in moments) == 10
    assert {moment.phase for moment in moments} == set(Phase)
    assert moments == choose_moments(30, 8, seed=1)
    assert moments != choose_moments(30, 8, seed=2)


def test_lines_that_are_lost_repeated_or_changed_are_told(unbroken, tmp_path):
    run = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, lines[-1]]):
        log.write_text("".join(changed))
        assert differences(run, unbroken[0]) == [f"metrics.jsonl: {len(changed)} lines and {len(lines)}"]
    log.write_text("".join(lines).replace('"train/loss"', '"train/lost"', 1))
    (found,) = differences(run, unbroken[0])
    assert found.startswith("metrics.jsonl: 1 lines differ, first (1, 'train/lost'")


def test_arrays_and_progress_that_differ_are_told(unbroken, tmp_path):
    run = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir())
    shutil.rmtree(run / "checkpoints" / str(newest))
    found = "\n".join(differences(run, unbroken[0]))
    for part in ("progress: ", ".step", ".trained['decoder.", ".opt_state", ".ema['decoder."):
        assert part in found
    assert ".frozen" not in found


def test_a_life_that_was_asked_to_end_has_to_say_so_and_to_repeat_nothing(tmp_path):
    life = SimpleNamespace(log=tmp_path / "metrics.jsonl")
    life.log.write_text("1\n2\n")
    assert list(check_end(life, 75, Phase.TRAINING, b"1\n")) == []
    assert list(check_end(life, 75, Phase.TRAINING, b"2\n")) == ["it took steps again that an earlier life had logged"]
    assert list(check_end(life, 0, Phase.TRAINING, b"1\n")) == ["it ended with status 0 and not 75"]
    assert list(check_end(life, None, Phase.STARTING, b"")) == ["it ended with status None and not 75"]
    assert list(check_end(life, -signal.SIGTERM, Phase.STARTING, b"")) == []
