"""What becomes of the runs of a sweep, here pretended: skipped, failed, waited for, killed or asked to stop."""

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretended_runs import Pretence

from configs.sweeps import get_sweep
from medvlsm_jax.errors import UserError
from medvlsm_jax.sweeping.children import end_with_parent
from medvlsm_jax.sweeping.devices import Share
from medvlsm_jax.sweeping.runs import is_done, read_run, try_lock, write_run
from medvlsm_jax.sweeping.sweep import Outcome, Outcomes, outcome_table

ROOT = Path(__file__).parents[2]


def when(is_so: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Does something as soon as something is so."""

    def wait() -> None:
        end = time.monotonic() + 300
        while not is_so() and time.monotonic() < end:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def statuses(outcomes: Outcomes) -> dict[str, str]:
    return {name.removeprefix("clipseg-"): outcome.status for name, outcome in outcomes.items()}


def test_finished_runs_are_skipped_failed_ones_tried_again_and_the_rest_go_on(tmp_path, capsys):
    pretence = Pretence(tmp_path)
    outcomes = pretence.run("grid,prompts=p0+p1+p2+p3")
    assert statuses(outcomes) == {"p0": "done", "p1": "failed", "p2": "failed", "p3": "done"}
    assert pretence.lines("clipseg-p0") == ["0", "1", "2"]
    told = capsys.readouterr().out
    assert f"clipseg-p1: failed after 0 s, exit status 2, see {tmp_path}/clipseg-p1/log.txt\n    no such file\n" in told
    assert "clipseg-p2: failed after 0 s, killed by SIGSEGV" in told

    outcomes = pretence.run("grid,prompts=p0+p1+p2+p3+p4")
    assert statuses(outcomes) == {"p0": "skipped", "p1": "failed", "p2": "failed", "p3": "skipped", "p4": "done"}
    assert pretence.lines("clipseg-p0") == ["0", "1", "2"]
    assert pretence.lines("clipseg-p1") == ["0", "1"]
    assert pretence.lines("clipseg-p1", "log.txt") == ["no such file"] * 2
    assert "1 done, 2 skipped, 2 failed;" in outcome_table(outcomes)


def test_nothing_starts_where_one_run_has_finished_with_another_config(tmp_path):
    pretence = Pretence(tmp_path)
    pretence.run("grid,prompts=p3")
    with pytest.raises(
        UserError, match="clipseg-p3 holds a finished run of another config: num_epochs was 1000 and is 9"
    ):
        pretence.run("grid,prompts=p0+p3,num_epochs=9")
    assert not (tmp_path / "clipseg-p0").exists()


def test_as_many_runs_as_there_are_shares_work_at_a_time(tmp_path, monkeypatch):
    looks: list[Path] = []

    def look(folder: Path, config: Any) -> bool:
        looks.append(folder)
        return is_done(folder, config)

    monkeypatch.setattr("medvlsm_jax.sweeping.sweep.is_done", look)
    cores = sorted(os.sched_getaffinity(0))
    shares = (Share(cores=frozenset(cores[:1])), Share({"CUDA_VISIBLE_DEVICES": "7"}))
    pretence = Pretence(tmp_path, steps=4, seconds=0.1, shares=shares)
    start = time.monotonic()
    outcomes = pretence.run("grid,seeds=1+2+3+4")
    seconds = [outcome.seconds for outcome in outcomes.values()]
    assert set(statuses(outcomes).values()) == {"done"}
    assert 0.8 * sum(seconds) / 2 < time.monotonic() - start < 0.8 * sum(seconds)
    logs = {pretence.lines(name, "log.txt")[0] for name in outcomes}
    assert logs == {f"{cores[:1]} 1 None", f"{cores} 1 7"}
    assert len(looks) <= 3 * 4  # runs that wait for a share are left alone


def test_a_signal_lets_the_runs_at_work_save_and_the_same_sweep_goes_on(tmp_path):
    pretence = Pretence(tmp_path, steps=20, seconds=0.05)
    signals: list[int] = []
    files = [tmp_path / f"clipseg-seed{seed}" / "steps.txt" for seed in (1, 2)]
    thread = when(
        lambda: all(file.exists() and file.stat().st_size for file in files), lambda: signals.append(signal.SIGTERM)
    )
    outcomes = pretence.run("grid,seeds=1+2+3", signals)
    assert statuses(outcomes) == {"seed1": "stopped", "seed2": "stopped", "seed3": "waiting"}
    assert pretence.lines("clipseg-seed1", "log.txt") == ["saved"]
    assert "2 stopped, 1 waiting;" in outcome_table(outcomes)
    thread.join()

    assert set(statuses(Pretence(tmp_path, steps=20, seconds=0.001).run("grid,seeds=1+2+3")).values()) == {"done"}
    for seed in (1, 2, 3):
        assert pretence.lines(f"clipseg-seed{seed}") == [str(step) for step in range(20)]


def test_a_run_that_another_program_works_on_is_waited_for(tmp_path):
    pretence = Pretence(tmp_path)
    lock = try_lock(tmp_path / "clipseg-seed1")
    assert lock is not None
    assert try_lock(tmp_path / "clipseg-seed1") is None
    other = tmp_path / "clipseg-seed2"
    thread = when(lambda: read_run(other).get("status") == "done", lock.close)
    start = time.monotonic()
    outcomes = pretence.run("grid,seeds=1+2")
    thread.join()
    assert statuses(outcomes) == {"seed1": "done", "seed2": "done"}
    assert time.monotonic() - start < 20  # the other run did not wait


def test_a_run_that_another_program_finishes_meanwhile_is_skipped(tmp_path):
    (config,) = get_sweep("grid,seeds=1")
    lock = try_lock(tmp_path / config.name)
    assert lock is not None

    def finish() -> None:
        write_run(tmp_path / config.name, config, "done")
        lock.close()

    timer = threading.Timer(0.3, finish)
    timer.start()
    assert statuses(Pretence(tmp_path).run("grid,seeds=1")) == {"seed1": "skipped"}
    timer.join()


# Sweeps in processes of their own, killed one after another; the runs that they leave behind work on.
KILLED = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from pretended_runs import Pretence
pretence = Pretence(Path({output!r}), steps=12, seconds=0.03)
for delay in {delays}:
    if (sweep := os.fork()) == 0:
        pretence.run("grid,seeds=1+2+3+4+5")
        os._exit(0)
    time.sleep(delay)
    os.kill(sweep, signal.SIGKILL)
    os.waitpid(sweep, 0)
pretence.run("grid,seeds=1+2+3+4+5")
"""


def test_a_sweep_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    Pretence(tmp_path / "whole", steps=12, seconds=0).run("grid,seeds=1+2+3+4+5")
    folders = {"root": str(ROOT), "tests": str(ROOT / "tests")}
    script = KILLED.format(**folders, output=str(tmp_path / "killed"), delays=[0.02, 0.1, 0.17, 0.25, 0.3])
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)

    whole, killed = (Pretence(tmp_path / name) for name in ("whole", "killed"))
    tables = [outcome_table(pretence.run("grid,seeds=1+2+3+4+5")) for pretence in (whole, killed)]
    assert tables[0] == tables[1]
    assert "5 skipped" in tables[0]
    for seed in range(1, 6):
        name = f"clipseg-seed{seed}"
        assert killed.lines(name) == whole.lines(name) == [str(step) for step in range(12)]
        assert read_run(killed.output / name) == read_run(whole.output / name)


def test_a_child_stops_when_its_sweep_is_gone():
    script = f"import os, signal, threading, time\n{inspect.getsource(end_with_parent)}end_with_parent()\n"
    command = [sys.executable, "-S", "-c", f"{script}print('ready', flush=True)\ntime.sleep(600)"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(300) == -signal.SIGTERM


def test_outcomes_are_a_line_for_each_run_and_a_count():
    text = outcome_table({"a": Outcome("done", 61.2), "b": Outcome("skipped"), "c": Outcome("failed", 2.0)})
    assert text.splitlines()[2:] == [
        "a       done       61",
        "b    skipped        -",
        "c     failed        2",
        "",
        "1 done, 1 skipped, 1 failed; 63 s of work",
    ]
