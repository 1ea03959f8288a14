"""Experiment trackers as writers: Weights & Biases and MLflow, whose run is continued with the training run.

Both are optional packages that are imported when they are asked for. A file in the workdir keeps the run's id.
"""

import importlib
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from medvlsm_jax import atomic
from medvlsm_jax.errors import UserError


class WandbWriter:
    """A run of Weights & Biases, continued by the id in wandb_run.txt; WANDB_… variables say where and how.

    Its steps only rise: those that a continued run repeats are ignored there. `patience` is how many seconds the end of
    the run, and of the program, waits for an upload; what is missing stays in `workdir/wandb` for `wandb sync`.

    Raises:
        UserError: wandb is not installed, or has no credentials.
    """

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any], patience: float):
        wandb = import_extra("wandb")
        is_online = wandb.setup().settings.mode == "online"
        if is_online and not wandb.login(prompt=False, verify=False):  # a prompt would fight with the progress bar
            raise UserError("there are no credentials: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")
        path = workdir / "wandb_run.txt"
        if not path.exists():
            atomic.write_text(path, secrets.token_hex(8) + "\n")
        self.image = wandb.Image
        self.run = wandb.init(
            project=project,
            name=workdir.resolve().name,
            id=path.read_text("utf-8").strip(),
            resume="allow",
            dir=str(workdir),
            config=dict(config),
            reinit="create_new",  # not the run of an earlier workdir in this process
            settings=wandb.Settings(console="off", finish_timeout=patience),  # nothing we print passes through wandb
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        self.run.log({name: self.image(image)}, step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowWriter:
    """A run of MLflow, continued by the id in mlflow_run.txt; MLFLOW_… variables say where and how.

    A step that a continued run repeats is kept twice in its history. Parameters are those of the first start.

    Raises:
        UserError: mlflow is not installed, or the run cannot be continued.
    """

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        mlflow = import_extra("mlflow")
        self.entities, self.client = mlflow.entities, mlflow.MlflowClient()
        path = workdir / "mlflow_run.txt"
        if not path.exists():
            atomic.write_text(path, self.create(project, workdir.resolve().name, config) + "\n")
        self.run_id = path.read_text("utf-8").strip()
        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except Exception as error:
            message = f"cannot continue the run that {path} names ({error}): without that file a new one is started"
            raise UserError(message) from error

    def create(self, project: str, name: str, config: Mapping[str, Any]) -> str:
        """Starts a run in the experiment `project`, which is made where it does not exist; the run's id."""
        experiment = self.client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(project)
        run_id = self.client.create_run(experiment_id, run_name=name).info.run_id
        params = [self.entities.Param(key, str(value)) for key, value in flatten(config).items()]
        self.client.log_batch(run_id, params=params)
        return run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        self.client.log_image(self.run_id, image, key=name, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def import_extra(name: str) -> Any:
    """The module of an optional dependency; raises UserError where that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'{error}: pip install "medvlsm-jax[{name}]"') from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Groups of a config as fields with dots: `mesh.fsdp`."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        is_group = isinstance(value, Mapping)
        fields |= flatten(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return fields
