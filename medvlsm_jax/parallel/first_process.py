"""What the first of joined processes does for all of them: they go on together, or end together."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from medvlsm_jax import lease
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.sharding import from_first_process

Result = TypeVar("Result")


def on_first_process(where: str, action: Callable[[], Result]) -> Result:
    """What an action of the first process returns, on all of them; it has to be json.

    Args:
        where: the flag and the folder to which the action may write: `--output=DIR`.
        action: is called there alone.

    Raises:
        UserError: on all processes, when the action cannot write, or raises one.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except OSError as its_error:
            error = cannot_write(where, its_error)
        except UserError as its_error:
            error = its_error
    if jax.process_count() == 1 and error is None:
        return result  # pyright: ignore[reportReturnType]
    result, trouble = from_first_process([result, error and str(error)])
    if trouble:
        raise error or UserError(trouble)
    return result


def cannot_write(where: str, error: OSError) -> UserError:
    """What to tell of a full disk, or of a folder that is somebody else's."""
    reason = error.strerror or type(error).__name__
    return UserError(
        f"{where} cannot be written ({reason}): choose another folder, or make room and give the same command"
    )


def shared_name() -> str:
    """A name that the first process draws for all of them."""
    return str(from_first_process(secrets.token_hex(8)))


def everywhere(is_so: bool) -> bool:
    """Whether something is so on all processes."""
    if jax.process_count() == 1:
        return is_so
    return bool(np.all(multihost_utils.process_allgather(np.array(is_so))))


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if jax.process_index() == 0:
        print(line)


@contextlib.contextmanager
def holding(flag: str, folder: Path) -> Iterator[None]:
    """`lease.holding` by the first process for all of them; each learns when the folder is refused."""
    with contextlib.ExitStack() as stack:
        on_first_process(f"{flag}={folder}", lambda: stack.enter_context(lease.holding(flag, folder)))
        yield
