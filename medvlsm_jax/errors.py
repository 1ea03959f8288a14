"""The one exception meant for the person at the terminal."""

from pathlib import Path


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a wrong flag.

    The message is one line that says what is wrong, in which file or flag, and what to do.
    """


def check_folder(flag: str, path: Path) -> None:
    """Raises a UserError, naming the flag, when a folder that is to be written to is a file."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag}={path} is a file: give a folder")
