"""The one exception meant for the person at the terminal."""


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a wrong flag.

    The message is one line that says what is wrong, in which file or flag, and what to do.
    """
