"""A program that tests run as two joined processes, over a mesh whose devices are not in the order of the processes.

python joined_evaluation.py FULL FLAGS ...    an evaluation in FULL, where the first process finds the disk full, and
then `medvlsm_jax.evaluate FLAGS`; of the first, how it ended is said on stderr.
"""

import errno
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.evaluation.cases import CaseLog
from medvlsm_jax.parallel import sharding


def reversed_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """The last process's devices come first."""
    return Mesh(np.array(jax.devices()[::-1]).reshape(data, fsdp), sharding.AXES)


def full_disk(append: Callable[..., None]) -> Callable[..., None]:
    """Fails from the second batch on."""
    calls: list[object] = []

    def fail(log: CaseLog, *rows: Any) -> None:
        calls.append(rows)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(log, *rows)

    return fail


def evaluate_on_a_full_disk(output: Path, data_dir: str, checkpoint: str) -> None:
    """Says how it ended."""
    config, append = default_config(), CaseLog.append
    config.data_dir, config.batch_size = data_dir, 2
    CaseLog.append = full_disk(append)
    try:
        evaluate(config, checkpoint, ["sample"], ["p6"], output, num_pictures=0)
    except UserError as error:
        print(f"ended: {error}", file=sys.stderr)
    CaseLog.append = append


if __name__ == "__main__":
    sharding.make_mesh = reversed_mesh
    full, *flags = sys.argv[1:]
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
    evaluate_on_a_full_disk(Path(full), given["config.data_dir"], given["checkpoint"])
    sys.argv[1:] = flags
    runpy.run_module("medvlsm_jax.evaluate", run_name="__main__", alter_sys=True)
