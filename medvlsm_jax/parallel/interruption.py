"""Signals that ask a run to end: heard at once, answered when nothing would be lost."""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.command_line import EXIT_CTRL_C
from medvlsm_jax.parallel.sharding import batch_sharding, replicated

# What clouds and schedulers send before they take a machine away: SLURM's --signal=USR1@120, and SIGTERM.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_AGAIN = 75  # EX_TEMPFAIL of BSD's sysexits.h: run the same command again
PATIENCE = 5.0  # seconds that a program which is starting up gets to end by itself


class Interruption:
    """Whether a signal came, in this process or in another one of the run.

    Until `training_begins`, and in an evaluation, there is nothing to save, so a signal ends the program at once: by an
    exception, or, while XLA compiles and Python does not get to run, by a thread.
    """

    def __init__(self):
        self.received: list[int] = []
        self.is_training = False
        self.asked: jax.Array | None = None

    def training_begins(self) -> None:
        """From here on a signal is remembered, for `is_heard`; Ctrl-C after another one ends the program at once."""
        self.is_training = True

    def handle(self, number: int, _: object) -> None:
        """What Python does about a signal."""
        is_repeated = number == signal.SIGINT and bool(self.received)
        self.received.append(number)
        if is_repeated or not self.is_training:
            raise SystemExit(exit_status(number))

    def is_heard(self, mesh: Mesh) -> bool:
        """Whether to stop. All processes ask at the same moments and get the same answer, if need be one question late.

        That a step later suffices keeps the devices from waiting for the hosts.
        """
        if jax.process_count() == 1:
            return bool(self.received)
        answer, self.asked = self.asked, any_process(mesh, bool(self.received))
        return answer is not None and bool(answer)

    @property
    def exit_status(self) -> int:
        """Of the program, when it has saved."""
        return exit_status(self.received[0] if self.received else signal.SIGTERM)


def exit_status(number: int) -> int:
    """130 after Ctrl-C, else the one that asks a scheduler to run the program again."""
    return EXIT_CTRL_C if number == signal.SIGINT else EXIT_AGAIN


def leave(status: int) -> NoReturn:
    """Ends the program at once: at its end Python would wait for all that XLA's threads still compile."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends the program by `leave` when a signal has ended the block."""
    try:
        yield
    except SystemExit as stopped:
        if not jax.distributed.is_initialized():  # else jax ends the processes together
            leave(int(stopped.code or 0))
        raise


def any_process(mesh: Mesh, flag: bool) -> jax.Array:
    """Whether the flag of any process is set; the answer is on its way."""
    own = np.full(len(mesh.local_devices), flag)
    return jitted_any(mesh)(jax.make_array_from_process_local_data(batch_sharding(mesh), own))


@functools.cache
def jitted_any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Compiled once."""
    return jax.jit(jnp.any, out_shardings=replicated(mesh))


@contextlib.contextmanager
def catch_signals() -> Iterator[Interruption]:
    """Listens to SIGNALS; outside of the main thread somebody else does."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    old = {number: signal.signal(number, interruption.handle) for number in SIGNALS}
    heard, told = socket.socketpair()
    told.setblocking(False)
    old_fd = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=leave_if_busy, args=(interruption, heard), daemon=True).start()
    try:
        yield interruption
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        told.close()


def leave_if_busy(interruption: Interruption, heard: socket.socket) -> None:
    """Ends the program some seconds after a signal that Python does not get to see, where nothing is to be saved."""
    finished = threading.Event()
    with heard:
        while received := heard.recv(1):
            number = received[0]
            if number in SIGNALS and not interruption.is_training:
                finished.wait(PATIENCE)
                if not interruption.received or jax.distributed.is_initialized():  # at exit jax waits for the others
                    print("stopped: give the same command again", file=sys.stderr, flush=True)
                    os._exit(exit_status(number))
