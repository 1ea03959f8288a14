"""What a training run says: the lines at its start, numbers at its steps, and where they go."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medvlsm_jax.checkpoints.checkpoints import Checkpoints
from medvlsm_jax.config import as_json
from medvlsm_jax.logs.console import Progress
from medvlsm_jax.logs.writers import Writers, make_writers
from medvlsm_jax.models.summary import training_flops
from medvlsm_jax.training.freezing import freezing
from medvlsm_jax.training.inputs import Inputs
from medvlsm_jax.training.monitor import FiniteGuard, Meter, Profiler
from medvlsm_jax.training.run import Run


class Report:
    """What is told of a run while it trains."""

    def __init__(
        self, writers: Writers, bar: Progress, guard: FiniteGuard, meter: Meter, profiler: Profiler, log_every: int
    ):
        """Takes those who tell it, and the number of steps between lines."""
        self.writers = writers
        self.bar = bar
        self.guard = guard
        self.meter = meter
        self.profiler = profiler
        self.log_every = log_every

    def check(self) -> None:
        """Raises UserError when a step was not finite; waits for all that were taken."""
        self.guard.check()

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Counts the time inside as waiting for input."""
        return self.meter.waiting()

    def before(self, step: int) -> None:
        """A step is about to be taken."""
        self.profiler.before(step)

    def after(self, step: int, values: Mapping[str, Any], *, ends_epoch: bool) -> None:
        """A step was taken; its values are read where they are logged."""
        self.meter.steps += 1
        self.guard.watch(step, values["is_finite"], values)
        self.bar.advance()
        self.profiler.after(step, values)
        if step % self.log_every == 0 or ends_epoch:
            self.guard.check()
            on_host = jax.device_get(dict(values))
            logged = {name: float(on_host[name]) for name in values if name != "is_finite"} | self.meter.report()
            numbers = {f"train/{name}": value for name, value in logged.items()}
            self.writers.scalars(step, numbers)
            self.bar.show(step, numbers)

    def validated(self, step: int, head: str, results: Mapping[str, float], pictures: Sequence[np.ndarray]) -> None:
        """A validation came to these results."""
        self.writers.scalars(step, results)
        for i, picture in enumerate(pictures):
            self.writers.picture(step, f"val/{i}", picture)
        self.bar.line(head, results)

    def positions(self) -> dict[str, int]:
        """Bytes in each log file, for a checkpoint."""
        return self.writers.positions()

    def restart(self) -> None:
        """What came between two steps does not count as training."""
        self.meter.restart()


@contextlib.contextmanager
def open_report(
    run: Run, inputs: Inputs, checkpoints: Checkpoints, first_step: int, positions: dict[str, int]
) -> Iterator[Report]:
    """The report of a run; `positions` are the lengths of its logs up to the checkpoint that it continues."""
    config = run.config
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(contextlib.closing(open_writers(run, first_step, positions)))
        is_shown = jax.process_index() == 0
        bar = Progress(run.total_steps, first_step, config.batch_size, is_shown=is_shown)
        stack.enter_context(contextlib.closing(bar))
        guard = FiniteGuard(run.workdir, inputs.files, checkpoints.latest)
        flops = training_flops(run.source.config, **freezing(config), is_cached=inputs.encoder is not None)
        meter = Meter(config.batch_size, flops * config.batch_size)
        profiler = stack.enter_context(contextlib.closing(Profiler(config.profile, run.workdir)))
        yield Report(writers, bar, guard, meter, profiler, config.log_every_steps)


def open_writers(run: Run, first_step: int, positions: dict[str, int]) -> Writers:
    """The writers of a run; one that continues another workdir's starts with its log."""
    is_first_process = jax.process_index() == 0
    if run.source.kind == "resume" and is_first_process:
        for name in positions:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(Path(run.config.resume) / name, run.workdir / name)
    return make_writers(
        run.config.writers,
        run.workdir,
        first_step,
        positions=positions,
        project=run.config.project,
        config=as_json(run.config),
        is_first_process=is_first_process,
    )


def first_lines(run: Run, first_step: int) -> str:
    """What is about to run, in a few lines."""
    config, source, sets = run.config, run.source, run.sets
    origin = {
        "checkpoint": f"continues at step {first_step}",
        "resume": f"continues {source.folder} at step {first_step}",
        "init": f"from {source.folder}",
        "random": "from random weights",
    }
    return (
        f"{config.model} {origin[source.kind]}, {source.config.dtype} on {run.mesh.size} {jax.devices()[0].platform} "
        f"devices {dict(run.mesh.shape)}\n"
        f"{config.dataset}, prompt {config.prompt}: {len(sets.train)} training, {len(sets.val)} validation records at "
        f"{source.config.image_size} px, {run.total_steps} steps of {config.batch_size}\n"
        + warm_up_warning(config.warmup_steps, run.total_steps)
        + "compiling the first step ..."
    )


def warm_up_warning(warmup_steps: int, total_steps: int) -> str:
    """A line for a warm-up that lasts longer than the run."""
    if warmup_steps < total_steps:
        return ""
    return f"warning: a warm-up of {warmup_steps} steps: the learning rate does not reach that of the config\n"
