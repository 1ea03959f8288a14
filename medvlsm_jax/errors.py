"""The one exception meant for the person at the terminal, and how a program reports it."""

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

PATIENCE = 30.0  # seconds


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a wrong flag.

    The message is one line that says what is wrong, in which file or flag, and what to do.
    """


def check_folder(flag: str, path: Path) -> None:
    """Raises a UserError, naming the flag, when a folder that is to be written to is a file."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag}={path} is a file: give a folder")


def run_program(main: Callable[[list[str]], None]) -> None:
    """Runs an absl `main`; a UserError, of reading the flags too, becomes one line on stderr and exit status 2."""

    def quiet(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # absl's INFO is the libraries' talk; --verbosity=0 brings it back
        main(argv)

    # Tracing a network makes millions of objects that stay; to look through all of them at every 700 new ones, which is
    # Python's default, took a tenth of a program's start.
    gc.set_threshold(max(10_000, gc.get_threshold()[0]), 10, 10)
    try:
        app.run(quiet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # At exit jax waits for the other processes of a run, for minutes if they wait for this one.
        timer = threading.Timer(PATIENCE, os._exit, [2])
        timer.daemon = True
        timer.start()
        sys.exit(2)
