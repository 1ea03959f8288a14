"""Kills a short training run at random moments, continues it each time, and compares it with an unbroken one.

    python tools/check_continuation.py --kills=20          (SIGKILL: a power cut, the kernel out of memory)
    python tools/check_continuation.py --signal=TERM       (SIGTERM: a preemption, which is answered by a checkpoint)

Exit status: 0 when both runs end with the same bits, 1 with what differs, 2 an error.
"""

import collections
import contextlib
import dataclasses
import enum
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs.quickstart import get_config
from medvlsm_jax.checkpoints.checkpoints import CHECKPOINTS, Checkpoints
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.pipeline import steps_per_epoch
from medvlsm_jax.data.synthetic import SAMPLE, write_sample
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel import sharding
from medvlsm_jax.parallel.interruption import EXIT_AGAIN
from medvlsm_jax.training.start import find_source, start_state

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 20  # eight steps an epoch, enough for two checkpoints within it and one after its validation
SPARE_EPOCHS = 3  # besides one for each kill: a kill that misses its moment comes up to an epoch later
# A learning rate that falls, moving averages and a checkpoint every few steps: there is more to continue.
OVERRIDES = "batch_size=4,log_every_steps=1,checkpoint_every_steps=3,ema=0.9,plateau.patience=1,num_epochs="
CLOCKED = {f"train/{name}" for name in ("images_per_second", "input_wait", "mfu", "device_memory_gib")}
POLL = 0.002  # seconds between looks at a run
PATIENCE = 600.0  # seconds that a run has to reach its moment, or its end
END_PATIENCE = 60.0  # seconds that it has to end after a signal


class Phase(enum.StrEnum):
    """What a run is doing, as its files tell."""

    STARTING = "starting"  # up to the first step of this life
    TRAINING = "between steps"
    WRITING = "writing a checkpoint"
    VALIDATING = "inside a validation"
    VALIDATED = "right after a validation"


# Moments are drawn from these in turn. A third falls into the writing of a checkpoint, where most could go wrong.
CYCLE = (Phase.WRITING, Phase.STARTING, Phase.VALIDATED, Phase.WRITING, Phase.TRAINING, Phase.VALIDATING)
# Seconds within which a moment comes after its phase began; that of the start is measured.
LENGTHS = {Phase.TRAINING: 0.3, Phase.WRITING: 0.1, Phase.VALIDATING: 0.05, Phase.VALIDATED: 0.05}


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: in this phase, not before the step, at this share (0 to 1) of the phase's length."""

    phase: Phase
    step: int
    share: float


def choose_moments(kills: int, epoch_steps: int, seed: int) -> list[Moment]:
    """A moment for each life of the run, one in each epoch, so that the run cannot end before the last."""
    rng = random.Random(seed)
    phases = [CYCLE[i % len(CYCLE)] for i in range(kills)]
    rng.shuffle(phases)
    return [Moment(phase, epoch_steps * i + rng.randrange(epoch_steps), rng.random()) for i, phase in enumerate(phases)]


# --- Runs ------------------------------------------------------------------------------------------------------------


class Training:
    """A short run of the training program, in processes of its own."""

    def __init__(self, folder: Path, kills: int, overrides: str = "", environment: Mapping[str, str] | None = None):
        """Draws the data.

        Args:
            folder: receives them, and what the program keeps for later runs.
            kills: that the run has to be long enough for.
            overrides: fields of configs/quickstart.py to change.
            environment: variables of the program besides those of this one.
        """
        self.folder = folder.absolute()
        self.overrides = f"{OVERRIDES}{kills + SPARE_EPOCHS},{overrides}"
        write_sample(self.folder / "data", num_images=NUM_IMAGES, size=64)
        num_records = len(load_records(self.folder / "data", SAMPLE, "train"))
        config: Any = get_config(self.overrides)
        self.epoch_steps = steps_per_epoch(num_records, config.batch_size)
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            **(environment or {}),
        }

    def flags(self, workdir: Path) -> list[str]:
        """Flags of the program."""
        fields = {"data_dir": self.folder / "data", "compilation_cache": self.folder / "compiled"}
        config = [f"--config=configs/quickstart.py:{self.overrides}", f"--workdir={workdir}"]
        return config + [f"--config.{name}={value}" for name, value in fields.items()]

    def start(self, workdir: Path) -> subprocess.Popen[bytes]:
        """Starts or continues the run in a workdir; what it says goes into WORKDIR.txt."""
        command = [sys.executable, "-m", "medvlsm_jax.train", *self.flags(workdir)]
        with workdir.with_suffix(".txt").open("ab") as output:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT)


class Life:
    """The run in a workdir from one start to its end."""

    def __init__(self, training: Training, workdir: Path):
        self.training, self.workdir = training, workdir
        self.log = workdir / "metrics.jsonl"
        self.old_log = self.inode()
        self.started = time.monotonic()
        self.process = training.start(workdir)

        self.start_seconds = math.inf  # that this start took, once it is known
        self.first: tuple[int, str] | None = None  # the newest line of earlier lives

    def inode(self) -> int:
        """Which file the log is: a run that continues writes it anew, before its first step."""
        return self.log.stat().st_ino if self.log.exists() else 0

    def newest(self) -> tuple[int, str]:
        """Step and name of the newest whole line in the log; 0 before the first."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
            lines = file.read().split(b"\n")[1:-1] or [b'{"step": 0, "name": ""}']
        line = json.loads(lines[-1])
        return line["step"], line["name"]

    def look(self) -> tuple[Phase, int]:
        """The phase, and the step that was logged last."""
        if self.inode() == self.old_log:
            return Phase.STARTING, 0
        step, name = line = self.newest()
        if self.first is None:
            self.first, self.start_seconds = line, time.monotonic() - self.started
        if line != self.first and name.startswith("val/"):
            return Phase.VALIDATED, step
        if line != self.first and step % self.training.epoch_steps == 0:
            return Phase.VALIDATING, step
        is_writing = any((self.workdir / CHECKPOINTS).glob("*.orbax-checkpoint-tmp*"))
        return (Phase.WRITING if is_writing else Phase.TRAINING), step

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Returns when it is so; raises UserError when the run has ended before, or takes too long."""
        while not is_so():
            if self.process.poll() is not None or time.monotonic() > self.started + PATIENCE:
                end = f"ended with status {self.process.poll()}" if self.process.poll() is not None else "hangs"
                raise UserError(f"the run in {self.workdir} {end} before its moment: see {self.workdir}.txt")
            time.sleep(POLL)

    def wait_for(self, moment: Moment, start_seconds: float) -> Phase:
        """Stops the process at the moment, or an epoch later if it was missed; returns what phase it is in."""
        if moment.phase is Phase.STARTING:
            end = self.started + moment.share * start_seconds
            self.wait_until(lambda: time.monotonic() > end or self.look()[0] is not Phase.STARTING)
            self.process.send_signal(signal.SIGSTOP)
            return self.look()[0]
        delay = moment.share * LENGTHS[moment.phase]
        while True:
            self.wait_until(lambda: self.is_at(moment))
            time.sleep(delay)
            self.process.send_signal(signal.SIGSTOP)  # what is seen now is what is killed
            if self.is_at(moment):
                return self.look()[0]
            self.process.send_signal(signal.SIGCONT)
            delay /= 2

    def is_at(self, moment: Moment) -> bool:
        """Whether it has come as far and is in the moment's phase; anywhere beyond the next epoch will do."""
        phase, step = self.look()
        is_late = step >= moment.step + self.training.epoch_steps
        return is_late or (phase is moment.phase and step >= moment.step)

    def end(self, number: signal.Signals) -> int | None:
        """Sends the signal to the stopped process and returns its exit status; None when it does not end."""
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_PATIENCE)
        return self.process.returncode


@contextlib.contextmanager
def living(training: Training, workdir: Path) -> Iterator[Life]:
    """A life that is over at the end of the block, whatever happens."""
    life = Life(training, workdir)
    try:
        yield life
    finally:
        life.process.kill()
        life.process.wait()


def run_unbroken(training: Training, workdir: Path) -> float:
    """Runs to the end; returns the seconds that the start took. Raises UserError when the run fails."""
    with living(training, workdir) as life:
        life.wait_until(lambda: life.look()[0] is not Phase.STARTING)
        if status := life.process.wait(PATIENCE):
            raise UserError(f"the run in {workdir} ended with status {status}: see {workdir}.txt")
    return life.start_seconds


def run_broken(
    training: Training, workdir: Path, moments: list[Moment], number: signal.Signals, start_seconds: float
) -> tuple[collections.Counter[str], list[str]]:
    """Runs to the end, killed at the moments; returns how many fell into what phase, and what was wrong meanwhile.

    Args:
        training: what is run.
        workdir: of the run.
        moments: one for each life but the last.
        number: the signal.
        start_seconds: how long a start takes at most.
    """
    phases, wrong = collections.Counter[str](), list[str]()
    for i, moment in enumerate(tqdm(moments, unit="kill", disable=None)):
        log = read_bytes(workdir / "metrics.jsonl")
        with living(training, workdir) as life:
            phase = life.wait_for(moment, start_seconds)
            status = life.end(number)
        start_seconds = min(start_seconds, life.start_seconds)  # what is compiled already is not compiled again
        phases[f"{phase}, before it listens" if status == -signal.SIGTERM else phase] += 1
        if number is not signal.SIGKILL:
            wrong += [f"life {i + 1}, {phase}: {reason}" for reason in check_end(life, status, phase, log)]
    run_unbroken(training, workdir)
    return phases, wrong


def check_end(life: Life, status: int | None, phase: Phase, log: bytes) -> Iterator[str]:
    """What is wrong with how a life ended that was asked to save: its status, or that it repeated what `log` held."""
    # While it imports its modules, a program has not had a chance to listen.
    if status != EXIT_AGAIN and not (phase is Phase.STARTING and status == -signal.SIGTERM):
        yield f"it ended with status {status} and not {EXIT_AGAIN}"
    if not read_bytes(life.log).startswith(log):
        yield "it took steps again that an earlier life had logged"


def read_bytes(path: Path) -> bytes:
    """The content of a file; nothing where there is none."""
    return path.read_bytes() if path.exists() else b""


# --- Comparing -------------------------------------------------------------------------------------------------------


def differences(workdir: Path, other: Path) -> list[str]:
    """What differs between two runs in the newest checkpoint, bit for bit, in the best one and in metrics.jsonl.

    Of what a clock or the memory's size decides, values may differ, and so may the length of the log in bytes.
    """
    ours, theirs = read_run(workdir), read_run(other)
    found = [
        f"{name}: {ours[name]!r} and {theirs[name]!r}" for name in ("best", "progress") if ours[name] != theirs[name]
    ]
    leaves = zip(*(jax.tree_util.tree_leaves_with_path(run["state"]) for run in (ours, theirs)), strict=True)
    for (path, one), (_, two) in leaves:
        if np.asarray(one).tobytes() != np.asarray(two).tobytes():
            found.append(f"{jax.tree_util.keystr(path)}: the arrays are not the same")
    logs = [read_log(folder / "metrics.jsonl") for folder in (workdir, other)]
    if len(logs[0]) != len(logs[1]):
        found.append(f"metrics.jsonl: {len(logs[0])} lines and {len(logs[1])}")
    if unequal := [lines for lines in zip(*logs, strict=False) if lines[0] != lines[1]]:
        found.append(f"metrics.jsonl: {len(unequal)} lines differ, first {unequal[0][0]} and {unequal[0][1]}")
    return found


def read_run(workdir: Path) -> dict[str, Any]:
    """State, progress and best step of a run, read as the training reads them when it continues."""
    config: Any = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    with Checkpoints(workdir) as checkpoints:
        source = find_source(config, workdir, checkpoints.latest())
        state, progress = start_state(config, source, sharding.make_mesh(), checkpoints)
        return {"state": state, "progress": progress.to_json() | {"log": None}, "best": checkpoints.best()}


def read_log(path: Path) -> list[tuple[int, str, float | None]]:
    """Step, name and value of each line; no value for what a clock or the memory's size decides."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(row["step"], row["name"], None if row["name"] in CLOCKED else row["value"]) for row in rows]


# --- Program ---------------------------------------------------------------------------------------------------------


def check(folder: Path, kills: int, seed: int, number: signal.Signals, overrides: str) -> list[str]:
    """Runs both below an empty folder; returns what differs."""
    training = Training(folder, kills, overrides)
    print(f"1/3 an unbroken run of {(kills + SPARE_EPOCHS) * training.epoch_steps} steps ...")
    start_seconds = run_unbroken(training, folder / "unbroken")
    print(f"2/3 the same with {kills} x {number.name} ...")
    moments = choose_moments(kills, training.epoch_steps, seed)
    phases, wrong = run_broken(training, folder / "broken", moments, number, start_seconds)
    print("\n".join(f"  {count:3d} {phase}" for phase, count in sorted(phases.items())))
    print("3/3 comparing ...")
    return wrong + differences(folder / "broken", folder / "unbroken")


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    folder = Path(args.folder or tempfile.mkdtemp(prefix="check_continuation-")).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--folder={folder} is not empty: choose another")
    number = signal.Signals[f"SIG{args.signal}"]
    if found := check(folder, args.kills, args.seed, number, args.overrides):
        print("\n".join(found), f"\nthe runs differ: they are in {folder}", sep="", file=sys.stderr)
        sys.exit(1)
    if not args.folder:
        shutil.rmtree(folder)
    print(
        f"{args.kills} x {number.name}: the same parameters, optimizer state, progress and metrics.jsonl, bit for bit"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "How often the run is killed.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Another one chooses other moments.")
    flags.DEFINE_enum("signal", "KILL", ["KILL", "TERM"], "KILL: at once; TERM: it may save, and must lose nothing.")
    flags.DEFINE_string("folder", "", "Where the runs are kept; empty: a temporary folder, which stays if they differ.")
    flags.DEFINE_string("overrides", "", "Fields of configs/quickstart.py to change: data.num_workers=1")
    run_program(main)
