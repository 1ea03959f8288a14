"""What a run says about itself: whether its numbers are finite, and how well it uses its devices."""

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from medvlsm_jax.checkpoints.checkpoints import CHECKPOINTS
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.chips import find_chip
from medvlsm_jax.text import listed

MAX_NAMES = 16  # of files in a message
UNDER_WAY = 3  # steps that a host may be ahead of what it knows to be finite


class FiniteGuard:
    """Stops a run whose loss, gradient or parameters are not finite, before a checkpoint of it is written.

    Of each step one flag is read, when UNDER_WAY others have followed it, so that neither host nor device waits.
    """

    def __init__(self, workdir: Path, files: Callable[[int], list[str]], newest: Callable[[], int | None]):
        """Takes what names the files of the batch that led to a step, and the newest checkpoint."""
        self.workdir = workdir
        self.files = files
        self.newest = newest
        self.watched: deque[tuple[int, jax.Array, Mapping[str, Any]]] = deque()

    def watch(self, step: int, is_finite: jax.Array, values: Mapping[str, Any]) -> None:
        """Remembers a step, and checks one that lies UNDER_WAY steps back."""
        self.watched.append((step, is_finite, values))
        if len(self.watched) > UNDER_WAY:
            self._check(*self.watched.popleft())

    def check(self) -> None:
        """Waits for all steps that are watched; raises UserError for the first that is not finite."""
        while self.watched:
            self._check(*self.watched.popleft())

    def _check(self, step: int, is_finite: jax.Array, values: Mapping[str, Any]) -> None:
        if jax.device_get(is_finite):
            return
        numbers = {name: float(jax.device_get(value)) for name, value in values.items()}
        bad = {name: number for name, number in numbers.items() if not math.isfinite(number)}
        names = self.files(step)
        newest = self.newest()
        good = "there is no checkpoint yet"
        if newest is not None:
            good = f"the last good checkpoint is {self.workdir / CHECKPOINTS / str(newest)}"
        raise UserError(
            f"training diverged at step {step}: {bad}, with the images {listed(names, MAX_NAMES)}; "
            f"{good}. Lower config.learning_rate or use config.dtype=float32"
        )


class Meter:
    """Speed since the last report: images/s, the share of waiting for input, utilisation, memory.

    Attributes:
        images: in a step, of all devices together.
        flops: of a step, of all devices together.
    """

    def __init__(self, images: int, flops: float):
        self.images = images
        self.flops = flops
        self.chip = find_chip(jax.devices()[0].device_kind)
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured: what comes between, a validation, is no training."""
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """The figures of the steps since the last report, shares from 0 to 1; starts anew.

        `mfu` is model FLOPs utilisation: of the chips' bfloat16 peak, without what is recomputed; where the peak is
        known. `device_memory_gib` is the largest use so far on this process's first device, where it keeps count.
        """
        seconds = time.perf_counter() - self.start
        values = {"images_per_second": self.steps * self.images / seconds, "input_wait": self.waited / seconds}
        if self.chip is not None:
            values["mfu"] = self.steps * self.flops / seconds / (self.chip.flops * jax.device_count())
        if stats := jax.local_devices()[0].memory_stats():
            values["device_memory_gib"] = stats["peak_bytes_in_use"] / 2**30
        self.restart()
        return values


class Profiler:
    """Traces the steps that `config.profile` names, for TensorBoard's or Perfetto's viewer, into WORKDIR/profile."""

    def __init__(self, steps: str, workdir: Path):
        """Takes what `traced_steps` takes."""
        self.start, self.stop = traced_steps(steps)
        self.folder = workdir / "profile"
        self.is_tracing = False

    def before(self, step: int) -> None:
        """Starts when this step is about to be taken."""
        if step == self.start:
            jax.profiler.start_trace(self.folder)
            self.is_tracing = True

    def after(self, step: int, values: Mapping[str, jax.Array]) -> None:
        """Ends when so many steps are taken."""
        if self.is_tracing and step >= self.stop:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Writes what was traced, of a run that ends early too."""
        if self.is_tracing:
            jax.profiler.stop_trace()
            self.is_tracing = False


def traced_steps(steps: str) -> tuple[int, int]:
    """First and last of "START:STOP", both -1 of nothing; raises UserError for what is neither."""
    match = re.fullmatch(r"(\d+):(\d+)", steps)
    if steps and (match is None or int(match[1]) >= int(match[2])):
        raise UserError(f"config.profile={steps}: give START:STOP, two steps such as 100:105")
    return (int(match[1]), int(match[2])) if match else (-1, -1)
