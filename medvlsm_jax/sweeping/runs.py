"""One run of a sweep: its folder, its state on disk, and what it does.

A run's config is a training config with four more fields: `name` (its folder), `file` (of its network's config),
`is_trained` (false: the checkpoint `init` is scored as it is) and `evaluation`, what is scored afterwards. The folder
is the training's workdir and holds besides

    run.json       `status` (`started`, `done`) and the config; `done` is written last of all
    log.txt        what its process said, attempt after attempt
    evaluation/    as `medvlsm_jax.evaluate` writes it
    lock           held by the process that works on the run
"""

import copy
import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import ml_collections

from medvlsm_jax import atomic
from medvlsm_jax.config import as_json
from medvlsm_jax.data.annotations import select_target
from medvlsm_jax.data.cards import split_members
from medvlsm_jax.data.findings import ERROR
from medvlsm_jax.data.language.prompts import check_prompt
from medvlsm_jax.data.loading import load_split
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.train import train

RUN_FILE = "run.json"
LOG = "log.txt"
EVALUATION = "evaluation"
EXTRA = ("name", "file", "is_trained", "evaluation")  # fields that a training config lacks
# Where things lie and what computes them: a finished run stays the same without.
PLACES = ("data_dir", "compilation_cache", "distributed", "mesh", "features")
PLACES += ("data.num_workers", "data.num_threads", "data.cache")
STARTED, DONE = "started", "done"


def training_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """What `medvlsm_jax.train` gets of a run's config."""
    config = copy.deepcopy(config)
    for name in EXTRA:
        del config[name]
    return config


def evaluation_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """What `medvlsm_jax.evaluate` gets: the training's fields, but its own precision and cache of images."""
    evaluation: Any = default_config()
    cache = evaluation.data.cache
    evaluation.update(
        {name: value for name, value in as_json(config).items() if name in evaluation and name != "dtype"}
    )
    evaluation.data.cache = cache
    return evaluation


def perform(folder: Path) -> None:
    """Trains and scores what a folder's run.json says, or goes on where it was broken off.

    Raises:
        UserError: as of `train` and `evaluate`.
        SystemExit: a signal came during the training, which has saved.
    """
    config: Any = ml_collections.ConfigDict(read_run(folder)["config"])
    options = config.evaluation.to_dict()
    datasets, prompts = (list(filter(None, options.pop(name).split("+"))) for name in ("datasets", "prompts"))
    if datasets:
        check_evaluated(config, datasets, prompts, options["split"])
    if config.is_trained:
        train(training_config(config), folder)
    if datasets:
        checkpoint = folder if config.is_trained else config.init
        evaluate(evaluation_config(config), checkpoint, datasets, prompts, folder / EVALUATION, **options)
    write_run(folder, config, DONE)


def check_evaluated(config: Any, datasets: Sequence[str], prompts: Sequence[str], split: str) -> None:
    """Raises UserError when a dataset, class or prompt type that is to be scored is not there, before the training."""
    found = [
        record
        for card in split_members("+".join(datasets), split)
        for record in load_split(config.data_dir, card, split)
    ]
    records = select_target(found, config.target)
    for prompt in prompts if config.data.on_bad == ERROR else ():
        check_prompt(records, prompt)


# --- State on disk ---------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> dict[str, Any]:
    """The content of run.json; empty before the first start."""
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text("utf-8"))
        if not isinstance(run, dict) or not {"status", "config"} <= run.keys():
            raise UserError(f"{path} is of no run of a sweep: choose another --output, or move it away")
        return run
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no json ({error}): delete it, and the run goes on from its checkpoints") from error


def write_run(folder: Path, config: ml_collections.ConfigDict, status: str) -> None:
    """Writes run.json."""
    atomic.write_text(folder / RUN_FILE, json.dumps({"status": status, "config": as_json(config)}, indent=1) + "\n")


def is_done(folder: Path, config: ml_collections.ConfigDict) -> bool:
    """Whether the run has finished; raises UserError when it has, but with another config."""
    run = read_run(folder)
    if run.get("status") != DONE:
        return False
    if changed := changed_fields(run["config"], as_json(config)):
        listed = ", ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changed.items())
        raise UserError(
            f"{folder} holds a finished run of another config: {listed}. Give the old values, choose another --output, "
            "or delete the folder"
        )
    return True


def changed_fields(
    old: dict[str, Any], new: dict[str, Any], ignored: Sequence[str] = PLACES, group: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Field -> its old and new value, of those that differ; fields that one of them lacks do not count."""
    changed: dict[str, tuple[Any, Any]] = {}
    for name in [name for name in new if name in old and group + name not in ignored]:
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            changed |= changed_fields(old[name], new[name], ignored, f"{group}{name}.")
        elif old[name] != new[name]:
            changed[group + name] = (old[name], new[name])
    return changed


def try_lock(folder: Path) -> IO[str] | None:
    """The run's lock, or None while another program works on the run.

    It is held for as long as this file is open anywhere: in a process that got it, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
