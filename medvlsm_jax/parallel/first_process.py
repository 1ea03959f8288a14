"""What the first of joined processes does for all of them: they go on together, or end together."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

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


@contextlib.contextmanager
def holding(flag: str, folder: Path) -> Iterator[None]:
    """`lease.holding` by the first process for all of them; each learns when the folder is refused."""
    with contextlib.ExitStack() as stack:
        on_first_process(f"{flag}={folder}", lambda: stack.enter_context(lease.holding(flag, folder)))
        yield
