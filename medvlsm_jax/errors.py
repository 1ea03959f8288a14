"""The one exception meant for the person at the terminal, and how a program reports it."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a wrong flag.

    The message is one line that says what is wrong, in which file or flag, and what to do.
    """


def run_program(main: Callable[[list[str]], None]) -> None:
    """Runs an absl `main`; a UserError, of reading the flags too, becomes one line on stderr and exit status 2."""

    def quiet(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # absl's INFO is the libraries' talk; --verbosity=0 brings it back
        main(argv)

    try:
        app.run(quiet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
