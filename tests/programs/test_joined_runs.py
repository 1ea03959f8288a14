"""Several processes are one: the losses and metrics, and checkpoints that go from one number of them to another."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import joined_runs
import pytest
from processes import run_processes

from medvlsm_jax import models
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.train import train

SCRIPT = Path(joined_runs.__file__)
MODELS = ("small", "small_cris")


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    for name, preset in joined_runs.PRESETS.items():
        monkeypatch.setitem(models.PRESETS, name, preset)


def numbers(workdir: Path) -> dict[tuple[int, str], float]:
    """Losses and metrics by step and name; every one was written once."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {(row["step"], row["name"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return {key: value for key, value in found.items() if key[1] == "train/loss" or key[1].startswith("val/")}


def assert_close(workdir: Path, other: Path) -> None:
    ours, theirs = numbers(workdir), numbers(other)
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], abs=1e-5), key


@pytest.fixture
def here(sample, tmp_path, use_devices) -> Callable[..., Path]:
    """Trains in this process, on four devices."""
    use_devices(4)

    def run(name: str, model: str, max_steps: int = 0) -> Path:
        train(joined_runs.make_config(model, str(sample), max_steps), tmp_path / name)
        return tmp_path / name

    return run


def join(count: int, tmp_path: Path, sample: Path, *runs: str) -> Counter[str]:
    """Trains in joined processes, on four devices together; returns how much all of them gave to frozen encoders."""
    paths = os.pathsep.join(str(path) for path in (SCRIPT.parent, SCRIPT.parents[1]))
    env = {"PYTHONPATH": paths}
    finished = run_processes(count, 4 // count, SCRIPT, str(tmp_path), str(sample), *runs, env=env, timeout=900)
    for process in finished:
        assert process.returncode == 0, process.stderr[-3000:]
    results = [[line for line in process.stdout.splitlines() if line.startswith('{"')] for process in finished]
    assert all(result == results[0] for result in results)
    assert all("epoch" not in process.stdout for process in finished[1:])  # the first process alone speaks
    encoded = [json.loads(process.stdout.rpartition("encoded ")[2]) for process in finished]
    return Counter({kind: sum(counts[kind] for counts in encoded) for kind in encoded[0]})


def test_two_processes_are_one_and_checkpoints_pass_between_them(here, tmp_path, sample):
    """A frozen encoder whose outputs are kept in the second epoch, and batch-normalised layers that are trained."""
    whole = {model: here(model, model) for model in MODELS}
    here("back", "small_cris", 2)
    encoded = join(2, tmp_path, sample, "there:small:6", "back:small_cris:0")
    records = [record for split in ("train", "val") for record in load_records(sample, "sample", split)]
    images = {record.image for record in records}
    assert len(images) <= encoded["image"] <= len(images) + 1  # each once; one may have records in both processes
    assert_close(tmp_path / "back", whole["small_cris"])  # begun by one process, ended by two
    assert_close(here("there", "small"), whole["small"])  # and the other way round
