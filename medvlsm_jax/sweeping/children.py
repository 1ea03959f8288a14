"""Runs in processes of their own, a few at a time: what kills one of them leaves the others alone."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from medvlsm_jax.command_line import EXIT_CTRL_C
from medvlsm_jax.parallel.interruption import EXIT_AGAIN
from medvlsm_jax.sweeping.devices import Share, pin
from medvlsm_jax.sweeping.runs import DONE, LOG, read_run

POLL = 0.1  # seconds between looks at the processes
STOPPED, FAILED = "stopped", "failed"
TAIL = 10  # lines of the log of a run that has failed


@dataclasses.dataclass(eq=False)
class Child:
    """A process that works on a run."""

    folder: Path
    process: subprocess.Popen[bytes]
    lock: IO[str]
    share: Share
    started: float  # time.monotonic()
    log_start: int  # bytes in the log before this attempt
    is_asked: bool = False  # to stop

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def ask_to_stop(self) -> None:
        """Sends SIGTERM, once: a training saves and ends."""
        if not self.is_asked:
            self.is_asked = True
            self.process.terminate()

    def status(self) -> str:
        """How it has ended: done, stopped (the same command goes on) or failed."""
        if read_run(self.folder).get("status") == DONE:
            return DONE
        return STOPPED if self.is_asked or self.process.returncode in (EXIT_AGAIN, EXIT_CTRL_C) else FAILED

    def reason(self) -> str:
        """Why it has failed, and the last lines that it said."""
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        with (self.folder / LOG).open("rb") as log:
            log.seek(self.log_start)
            lines = log.read().decode("utf-8", "replace").splitlines()[-TAIL:]
        return "\n    ".join([f"{how}, see {self.folder / LOG}", *lines])


class Children:
    """The processes at work; they are asked to stop when the block ends, or this program dies."""

    def __init__(self, command: Callable[[Path], Sequence[str]], shares: Sequence[Share]):
        """None at first.

        Args:
            command: what works on the run in a folder.
            shares: of the machine's devices, one for each run at a time.
        """
        self.command = command
        self.free = list(shares)
        self.running: list[Child] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_to_stop()

    def start(self, folder: Path, lock: IO[str]) -> Child:
        """Starts work on a run whose lock this program has; `free` must not be empty."""
        share = self.free.pop(0)
        with (folder / LOG).open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                self.command(folder),
                # A run is on this machine alone, whatever launcher started the sweep.
                env=os.environ | {"JAX_NUM_PROCESSES": "1"} | dict(share.environment),
                stdin=subprocess.PIPE,  # closed when this program dies, which `end_with_parent` sees
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],  # so that the run stays locked if this program dies first
                start_new_session=True,  # Ctrl-C comes to this program alone, which passes it on
            )
        pin(process.pid, share.cores)
        child = Child(folder, process, lock, share, time.monotonic(), log_start)
        self.running.append(child)
        return child

    def ended(self) -> list[Child]:
        """Those that have ended since the last call; their locks are still held until `release`."""
        found = [child for child in self.running if child.process.poll() is not None]
        self.running = [child for child in self.running if child not in found]
        for child in found:
            # What it started itself, such as readers of a training that crashed.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
        return found

    def release(self, child: Child) -> None:
        """Gives lock and devices of a child that has ended to others."""
        assert child.process.stdin is not None
        child.process.stdin.close()
        child.lock.close()
        self.free.append(child.share)

    def ask_to_stop(self) -> None:
        """Asks all of them."""
        for child in self.running:
            child.ask_to_stop()


def end_with_parent() -> None:
    """In a child: SIGTERM to itself as soon as its sweep is gone, even by SIGKILL."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
