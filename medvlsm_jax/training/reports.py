"""What a training run says: the lines at its start, and where its numbers go."""

import contextlib
import shutil
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh

from medvlsm_jax.config import as_json
from medvlsm_jax.logs.writers import Writers, make_writers
from medvlsm_jax.training.start import Source


def open_writers(
    config: ml_collections.ConfigDict, source: Source, workdir: Path, first_step: int, positions: dict[str, int]
) -> Writers:
    """The writers of a run; one that continues another workdir's starts with its log."""
    is_first_process = jax.process_index() == 0
    if source.kind == "resume" and is_first_process:
        for name in positions:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(Path(config.resume) / name, workdir / name)
    return make_writers(
        config.writers,
        workdir,
        first_step,
        positions=positions,
        project=config.project,
        config=as_json(config),
        is_first_process=is_first_process,
    )


def describe(
    config: ml_collections.ConfigDict,
    source: Source,
    mesh: Mesh,
    num_records: tuple[int, int],
    steps: tuple[int, int],
) -> str:
    """What is about to run, in a few lines."""
    origin = {
        "checkpoint": f"continues at step {steps[0]}",
        "resume": f"continues {source.folder} at step {steps[0]}",
        "init": f"from {source.folder}",
        "random": "from random weights",
    }
    return (
        f"{config.model} {origin[source.kind]}, {source.config.dtype} on {mesh.size} {jax.devices()[0].platform} "
        f"devices {dict(mesh.shape)}\n"
        f"{config.dataset}, prompt {config.prompt}: {num_records[0]} training, {num_records[1]} validation records at "
        f"{source.config.image_size} px, {steps[1]} steps of {config.batch_size}\n"
        "compiling the first step ..."
    )
