"""Every check of a training run, called from one place before any work."""

import json
from pathlib import Path

import ml_collections
from jax.sharding import Mesh

from medvlsm_jax.checkpoints.checkpoints import CHECKPOINTS
from medvlsm_jax.config import check_numbers, model_overrides
from medvlsm_jax.folders import check_fields, check_others
from medvlsm_jax.logs.writers import split_names
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models import preset
from medvlsm_jax.models.attention import check_device_has
from medvlsm_jax.models.layers import check_remat
from medvlsm_jax.parallel.sharding import check_batch_size
from medvlsm_jax.training.monitor import traced_steps
from medvlsm_jax.training.progress import schedule_factor
from medvlsm_jax.training.run import Sets, read_sets

WORKDIR_FILES = ("config.json", "model.json", "tokenizer", "arrays", CHECKPOINTS, "frozen", "metrics.jsonl")
WORKDIR_FILES += ("metrics.csv", "tensorboard")
WORKDIR_FIELDS = {"data_dir", "dataset", "model", "num_epochs"}  # of its config.json


def check_run(config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh) -> Sets:
    """Checks fields, model and devices, and then, which takes longer, every image, mask and record.

    What only a checkpoint can tell (its network, its sizes, its classes) `start.find_source` checks, before an array is
    read.

    Returns:
        The records, which had to be read to be checked.

    Raises:
        UserError: something does not fit; nothing has been written but the list of broken files in WORKDIR/findings.
    """
    check_workdir(workdir)
    check_fields(config)
    check_numbers(config)
    schedule_factor(config.schedule, 0, 1, 0)
    find_loss(config.loss)
    split_names(config.writers)
    traced_steps(config.profile)
    preset(config.model)
    model_overrides(config)
    check_remat(config.remat)
    check_device_has(config.attention)
    check_batch_size(config.batch_size, mesh, config.accumulation)
    return read_sets(config, workdir)


def check_workdir(workdir: Path) -> None:
    """Raises a UserError when a folder holds what a training writes, but is no workdir."""
    try:
        is_workdir = set(json.loads((workdir / "config.json").read_text("utf-8"))) >= WORKDIR_FIELDS
    except (OSError, ValueError, TypeError):
        is_workdir = False
    if not is_workdir and not any(path.name.isdecimal() for path in (workdir / CHECKPOINTS).glob("*")):
        check_others("--workdir", workdir, WORKDIR_FILES, "training")
