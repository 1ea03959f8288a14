"""Weights & Biases and MLflow, played by stand-ins: what they are given, and that a continued run is one run there."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medvlsm_jax.logs.writers import make_writers

CONFIG = {"model": "clipseg", "mesh": {"data": -1, "fsdp": 1}}
PICTURE = np.full((2, 3, 3), 7, np.uint8)


def train(names: str, workdir: Path, step: int) -> None:
    """One step of a run."""
    workdir.mkdir(exist_ok=True)
    writers = make_writers(names, workdir, step - 1, project="tests", config=CONFIG, is_first_process=True)
    writers.scalars(step, {"train/loss": 0.5})
    writers.picture(step, "val/0", PICTURE)
    writers.close()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_its_extra_and_the_run_goes_on(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    train(name, tmp_path, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f'pip install "medvlsm-jax[{name}]"')
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["value"] == 0.5


# --- Weights & Biases -------------------------------------------------------------------------------------------------


class FakeWandb:
    """What of the package `wandb` is used."""

    def __init__(self):
        self.mode, self.has_credentials = "online", True
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.num_finished = 0

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        return self.has_credentials

    def init(self, **options: Any) -> "FakeWandb":
        self.inits.append(options)
        return self

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def Image(self, image: np.ndarray) -> tuple[str, np.ndarray]:
        return ("image", image)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.num_finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_the_config_numbers_and_pictures(tmp_path, wandb):
    train("wandb", tmp_path / "run", 1)
    (options,) = wandb.inits
    assert (options["project"], options["name"], options["config"]) == ("tests", "run", CONFIG)
    assert options["settings"]["finish_timeout"] > 0
    assert wandb.logged == [(1, {"train/loss": 0.5}), (1, {"val/0": ("image", PICTURE)})]
    assert wandb.num_finished == 1


def test_a_continued_run_is_one_run_of_wandb_and_another_workdir_is_another(tmp_path, wandb):
    train("wandb", tmp_path / "run", 1)
    train("wandb", tmp_path / "run", 2)
    train("wandb", tmp_path / "other", 1)
    first, second, other = (options["id"] for options in wandb.inits)
    assert first == second != other
    assert {options["resume"] for options in wandb.inits} == {"allow"}
    assert (tmp_path / "run" / "wandb_run.txt").read_text() == f"{first}\n"


@pytest.mark.parametrize(("mode", "num_inits"), [("online", 0), ("offline", 1)])
def test_wandb_is_left_out_without_credentials_where_it_needs_them(tmp_path, wandb, capsys, mode, num_inits):
    wandb.mode, wandb.has_credentials = mode, False
    train("wandb", tmp_path, 1)
    assert len(wandb.inits) == num_inits
    assert ("there are no credentials: run `wandb login`" in capsys.readouterr().err) == (mode == "online")


# --- MLflow -----------------------------------------------------------------------------------------------------------


class FakeMlflow:
    """What of the package `mlflow` is used, module and client in one, with a server that keeps the runs."""

    def __init__(self):
        self.entities = SimpleNamespace(Param=lambda *fields: fields, Metric=lambda *fields: fields)
        self.experiments: list[str] = []
        self.runs: dict[str, SimpleNamespace] = {}

    def MlflowClient(self) -> "FakeMlflow":
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=f"id of {name}") if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return f"id of {name}"

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        assert experiment_id == "id of tests"
        run_id = f"run {len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(name=run_name, params={}, metrics=[], images=[], states=[])
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        if run_id not in self.runs:
            raise ValueError(f"{run_id} not found")
        self.runs[run_id].states.append(status)

    def log_batch(self, run_id: str, metrics: tuple | list = (), params: tuple | list = ()) -> None:
        self.runs[run_id].metrics += [(step, name, value) for name, value, _, step in metrics]
        self.runs[run_id].params |= dict(params)

    def log_image(self, run_id: str, image: np.ndarray, *, key: str, step: int) -> None:
        self.runs[run_id].images.append((step, key, image))

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id].states.append("FINISHED")


@pytest.fixture
def mlflow(monkeypatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_a_continued_run_is_one_run_of_mlflow_with_parameters_numbers_and_pictures(tmp_path, mlflow):
    train("mlflow", tmp_path / "run", 1)
    train("mlflow", tmp_path / "run", 2)
    (run,) = mlflow.runs.values()
    assert (mlflow.experiments, run.name) == (["tests"], "run")
    assert run.params == {"model": "clipseg", "mesh.data": "-1", "mesh.fsdp": "1"}
    assert run.metrics == [(1, "train/loss", 0.5), (2, "train/loss", 0.5)]
    assert run.images == [(1, "val/0", PICTURE), (2, "val/0", PICTURE)]
    assert run.states == ["RUNNING", "FINISHED"] * 2


def test_another_workdir_is_another_run_of_the_same_experiment(tmp_path, mlflow):
    train("mlflow", tmp_path / "run", 1)
    train("mlflow", tmp_path / "other", 1)
    assert [run.name for run in mlflow.runs.values()] == ["run", "other"]
    assert mlflow.experiments == ["tests"]


def test_a_run_that_the_server_does_not_know_is_left_out_and_the_file_is_named(tmp_path, mlflow, capsys):
    (tmp_path / "mlflow_run.txt").write_text("gone\n")
    train("mlflow", tmp_path, 1)
    assert not mlflow.runs
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the run that {tmp_path / 'mlflow_run.txt'} names (gone not found): without that file a new one" in line
