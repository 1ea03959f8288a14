"""The train states of a workdir: the latest and the best checkpoints, written whole or not at all."""

import dataclasses
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from medvlsm_jax.checkpoints.arrays import ARRAYS, CONTEXT, check_fit, ocp
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.parameters import Arrays

OPTIMIZER = "optimizer"
EMA = "ema"
FROZEN = "frozen"
CHECKPOINTS = "checkpoints"
UNREADABLE = "unreadable"  # receives checkpoints that could not be read
REPLACED = "replaced"  # receives a checkpoint while another of its step is written
PATIENCE = 10.0  # seconds that the threads of orbax get to end when a write has failed
SCORE = "dice"  # by which the best checkpoint is chosen


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds besides the frozen parameters.

    Attributes:
        arrays: trained parameters and running statistics.
        opt_state: of the optimizer.
        ema: moving averages of the trained parameters; empty without them.
        progress: what continues besides arrays, as json values.
        config: of the run, as json values.
    """

    arrays: Arrays
    opt_state: Any
    ema: Arrays
    progress: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    def items(self) -> dict[str, Any]:
        """What orbax writes, by folder."""
        return {ARRAYS: self.arrays, OPTIMIZER: self.opt_state} | ({EMA: self.ema} if self.ema else {})


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_no_orbax_traceback(record: LogRecord) -> bool:
    """False for what orbax logs of an error that it raises again in the program, which makes one line of it."""
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)


def is_orbax(thread: threading.Thread | None) -> bool:
    """Whether a thread is one of orbax's."""
    return type(thread).__module__.startswith("orbax")


def wait_for_orbax() -> None:
    """Waits for what orbax still does about a write that has failed, and has it do so in silence.

    Writes that are under way find their event loops closed, of which C++ tells by way of `sys.excepthook`.
    """
    show_error, sys.excepthook = sys.excepthook, lambda *_: None
    end = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end and any(map(is_orbax, threading.enumerate())):
            time.sleep(0.1)  # some start others
    finally:
        sys.excepthook = show_error


class Checkpoints:
    """The checkpoints of a workdir: the latest two, and the best by validation Dice; written in the background."""

    def __init__(self, workdir: str | Path, *, is_writer: bool = False):
        self.workdir = Path(workdir).absolute()
        self.folder = self.workdir / CHECKPOINTS
        self.is_writer = is_writer
        self.has_failed = False  # to write
        if is_writer:
            self._bring_back()
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda m: m[SCORE], n=1, keep_checkpoints_without_metrics=False)
        # BestN alone would evict the newest checkpoint (orbax#526); the one before it is there should it be unreadable.
        self.checkpointer = ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            cleanup_tmp_directories=is_writer,  # a reader must not take away what a running training writes
            context=CONTEXT,
        )

    def __enter__(self) -> "Checkpoints":
        self.show_thread_error, threading.excepthook = threading.excepthook, self.hide_orbax_error
        logging.get_absl_logger().addFilter(is_no_orbax_traceback)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            with self.reporting_failure():
                self.checkpointer.close()
        except UserError:
            if error is None:  # else the run ends for another reason, which is the one to tell
                raise
        finally:
            if self.has_failed:
                wait_for_orbax()
            else:
                threading.excepthook = self.show_thread_error
                logging.get_absl_logger().removeFilter(is_no_orbax_traceback)

    def hide_orbax_error(self, args: threading.ExceptHookArgs) -> None:
        """Orbax's writing threads print pages of what is raised again, and made one line of, in the program."""
        if not is_orbax(args.thread):
            self.show_thread_error(args)

    def steps(self) -> list[int]:
        """The steps that were saved, the newest first."""
        return sorted((checkpoint.step for checkpoint in self.checkpointer.checkpoints), reverse=True)

    def latest(self) -> int | None:
        """The newest step that was saved."""
        return max(self.steps(), default=None)

    def best(self) -> int:
        """The step with the best validation Dice, else the newest; raises UserError when there is none."""
        scored = [(c.metrics[SCORE], c.step) for c in self.checkpointer.checkpoints if c.metrics]
        newest = self.latest()
        if newest is None:
            raise UserError(f"{self.folder} holds no finished checkpoint: the training run ended before its first one")
        return max(scored)[1] if scored else newest

    # --- Writing -----------------------------------------------------------------------------------------------------

    def check_room(self, saved: Saved, frozen: Arrays) -> None:
        """Raises a UserError when the disk has not even room for one checkpoint."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((saved.items(), frozen)))
        self.workdir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.workdir).free
        if needed > free:
            raise UserError(
                f"--workdir={self.workdir}: a checkpoint takes up to {needed / 2**30:.2f} GiB, but only "
                f"{free / 2**30:.2f} GiB are free there: make room, or choose another folder"
            )

    def save_frozen(self, frozen: Arrays) -> None:
        """Writes what never changes, before the first checkpoint; nothing where nothing is frozen."""
        if frozen:
            with self.reporting_failure(), CONTEXT:
                ocp.save(self.workdir / FROZEN, frozen, overwrite=True)

    def save(self, step: int, saved: Saved, score: float | None) -> None:
        """Starts to write a checkpoint, whole or not at all; an older one of that step is replaced when it is whole.

        Raises:
            UserError: the one before could not be written (the disk is full).
        """
        with self.reporting_failure():
            if step in self.steps():
                self._keep_replaced(step)
            self.checkpointer.save_checkpointables_async(
                step,
                saved.items(),
                metrics=None if score is None else {SCORE: score},
                custom_metadata={"progress": saved.progress, "config": saved.config},
                overwrite=True,
            )

    def wait(self) -> None:
        """Returns when what was started is on disk; raises UserError when it could not be written."""
        with self.reporting_failure():
            self.checkpointer.wait()
        self._bring_back()

    def _keep_replaced(self, step: int) -> None:
        """Moves a checkpoint away that is about to be replaced: orbax would delete it before it writes."""
        self.checkpointer.wait()
        if jax.process_index() == 0:
            (self.workdir / REPLACED).mkdir(exist_ok=True)
            os.replace(self.folder / str(step), self.workdir / REPLACED / str(step))
        multihost_utils.sync_global_devices("the checkpoint to be replaced is moved")
        self.checkpointer.reload()

    def _bring_back(self) -> None:
        """Puts a checkpoint back whose replacement was not finished, and removes one whose was."""
        if jax.process_index() == 0 and (self.workdir / REPLACED).is_dir():
            for old in (self.workdir / REPLACED).iterdir():
                if not (self.folder / old.name).exists():
                    os.replace(old, self.folder / old.name)
            shutil.rmtree(self.workdir / REPLACED)
        multihost_utils.sync_global_devices("checkpoints are where they belong")

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """Makes one line of what went wrong with a write."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.has_failed = True
            newest = self.latest()
            last = "there is none before it" if newest is None else f"the last good one is {self.folder / str(newest)}"
            reason = (
                "no space is left"
                if "space left" in str(error)
                else (str(error) or type(error).__name__).splitlines()[0][:200]
            )
            raise UserError(
                f"a checkpoint could not be written to {self.folder} ({reason}); {last}. Make room and give the same "
                "command"
            ) from error

    # --- Reading -----------------------------------------------------------------------------------------------------

    def load_newest(self, abstract: Callable[[dict[str, Any]], Saved], frozen: Arrays) -> tuple[int, Saved, Arrays]:
        """The newest checkpoint that can be read: its step, its content and what is frozen.

        Args:
            abstract: from the config that the checkpoint was written with to the shapes and shardings of its content; a
                UserError that it raises is the answer.
            frozen: shapes and shardings.

        Raises:
            UserError: none can be read, or they are of another model.
        """
        unreadable: list[int] = []
        for step in self.steps():
            try:
                saved = self._load(step, abstract)
            except (UserError, RuntimeError, MemoryError):  # the devices' errors are runtime errors: it is not the disk
                raise
            except Exception as error:
                unreadable.append(step)
                print(f"warning: {self.folder / str(step)} cannot be read ({type(error).__name__})", file=sys.stderr)
                if jax.process_count() > 1:  # the others may have read their parts, and wait for this one
                    raise UserError(
                        f"{self.folder / str(step)} cannot be read: move it away and give the same command, which "
                        "takes the one before it"
                    ) from error
                continue
            self._set_aside(unreadable)
            return step, saved, self._load_frozen(frozen)
        raise UserError(
            f"no checkpoint in {self.folder} can be read: restore them from a copy or choose another --workdir"
        )

    def load_arrays(self, step: int, abstract: Arrays) -> Arrays:
        """The arrays of the model at a step, moving averages for what has one, with the shardings of `abstract`."""
        stored = self.checkpointer.checkpointables_metadata(step).metadata
        names = [set(stored.get(item) or ()) for item in (ARRAYS, EMA)]
        wanted = {
            item: {name: leaf for name, leaf in abstract.items() if name in inside}
            for item, inside in zip((ARRAYS, EMA), names, strict=True)
            if inside
        }
        for item, tree in wanted.items():
            check_fit(self.folder / str(step), stored[item], tree)
        rest = self._load_frozen({name: leaf for name, leaf in abstract.items() if name not in names[0]})
        loaded = self.checkpointer.load_checkpointables(step, wanted)
        return {**rest, **loaded[ARRAYS], **loaded.get(EMA, {})}

    def _set_aside(self, steps: list[int]) -> None:
        """Moves checkpoints that cannot be read away from where the newest one is looked for."""
        if not steps or not self.is_writer:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self.workdir / UNREADABLE / str(step)
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.folder / str(step), aside)
                print(f"warning: it is kept in {aside}; the one before it is taken", file=sys.stderr)
        multihost_utils.sync_global_devices("unreadable checkpoints are set aside")
        self.checkpointer.reload()

    def _load(self, step: int, abstract: Callable[[dict[str, Any]], Saved]) -> Saved:
        with quiet():  # of what is broken, orbax would print long warnings
            stored = self.checkpointer.checkpointables_metadata(step)
        content = dict(stored.custom_metadata or {})
        if "plateau" in content:
            raise UserError(f"{self.folder / str(step)} was written by an older version: continue it with that one")
        if not {"config", "progress"} <= content.keys() or not stored.metadata:
            raise ValueError("a checkpoint without a description")
        wanted = abstract(content["config"])
        for name, tree in wanted.items().items():
            if stored.metadata.get(name) is None:
                raise ValueError(f"a checkpoint without {name}")
            check_fit(self.folder / str(step), stored.metadata.get(name), tree)
        loaded = self.checkpointer.load_checkpointables(step, wanted.items())
        return Saved(loaded[ARRAYS], loaded[OPTIMIZER], loaded.get(EMA, {}), **content)

    def _load_frozen(self, abstract: Arrays) -> Arrays:
        if not abstract:
            return {}
        folder = self.workdir / FROZEN
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: the checkpoints beside it need it; restore it or start anew")
        check_fit(folder, ocp.metadata(folder).metadata, abstract)
        return ocp.load(folder, abstract)
