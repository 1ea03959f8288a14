"""Every check of a training run, called from one place before any work."""

from pathlib import Path

import ml_collections
from jax.sharding import Mesh

from medvlsm_jax.config import check_numbers, model_overrides
from medvlsm_jax.logs.writers import split_names
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models import preset
from medvlsm_jax.models.attention import check_device_has
from medvlsm_jax.models.layers import check_remat
from medvlsm_jax.parallel.sharding import check_batch_size
from medvlsm_jax.training.monitor import traced_steps
from medvlsm_jax.training.progress import schedule_factor
from medvlsm_jax.training.run import Sets, read_sets


def check_run(config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh) -> Sets:
    """Checks fields, model and devices, and then, which takes longer, every image, mask and record.

    What only a checkpoint can tell (its network, its sizes, its classes) `start.find_source` checks, before an array is
    read.

    Returns:
        The records, which had to be read to be checked.

    Raises:
        UserError: something does not fit; nothing has been written but the list of broken files in WORKDIR/findings.
    """
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
