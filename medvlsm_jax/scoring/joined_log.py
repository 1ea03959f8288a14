"""The lines of an evaluation whose processes compute together: one of them writes, and all end when it cannot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.data.groups import GROUPS
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation import file_names
from medvlsm_jax.evaluation.cases import CaseLog, Cases, columns
from medvlsm_jax.parallel.interruption import any_process
from medvlsm_jax.parallel.sharding import from_first_process

OTHER = "another process of this evaluation cannot go on: see what it says"
Result = TypeVar("Result")
Rows = tuple[Sequence[Mapping[str, Any]], Sequence[np.ndarray]]  # lines, and what is counted for each


class JoinedLog:
    """The log of an evaluation, open on the first process.

    Attributes:
        log: None on the other processes.
        first_steps: of each dataset, the batch from which on it has to be scored.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], mesh: Mesh, lines: Mapping[str, Sequence[int]], bytes_each: int
    ):
        """Goes on with what a stopped evaluation of the same settings left, or starts anew.

        Args:
            output: the folder.
            settings: all that the numbers depend on.
            mesh: the devices.
            lines: how many lines of a dataset come before each of its batches, and behind the last one.
            bytes_each: what the counts of a line take.

        Raises:
            UserError: nothing can be written there.
        """
        self.output, self.mesh = output, mesh
        self.log: CaseLog | None = None
        self.error: UserError | None = None
        self.asked: jax.Array | None = None

        def start() -> dict[str, int]:
            self.log = CaseLog(output, columns(GROUPS), settings, file_names.RESULTS)
            return self.log.go_on(lines, bytes_each)

        self.first_steps = on_first_process(output, start)

    def append(self, make_rows: Callable[[], Rows]) -> None:
        """Adds the lines of a batch.

        Nobody waits for the first process here: that it failed is heard with the next batch, or by `read`.

        Args:
            make_rows: makes them, where they are written.

        Raises:
            UserError: the lines of a batch could not be written.
        """
        if self.log is not None and self.error is None:
            try:
                self.log.append(*make_rows())
            except OSError as error:
                self.error = cannot_write(self.output, error)
        if jax.process_count() == 1:
            raise_together(self.error, self.mesh)
            return
        before, self.asked = self.asked, any_process(self.mesh, self.error is not None)
        if before is not None and bool(before):
            raise self.error or UserError(OTHER)

    def on_cases(self, action: Callable[[Cases], Result]) -> Result:
        """What an action of the first process makes of all lines, on all processes; raises as `on_first_process`."""
        raise_together(self.error, self.mesh)
        return on_first_process(self.output, lambda: action(self.written().read()))

    def written(self) -> CaseLog:
        """The log itself, on the process that has it."""
        assert self.log is not None
        return self.log


def on_first_process(output: Path, action: Callable[[], Result]) -> Result:
    """What an action of the first process returns, on all of them; it has to be json.

    Raises:
        UserError: on all processes, when the action cannot write to `output`, or raises one.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except OSError as its_error:
            error = cannot_write(output, its_error)
        except UserError as its_error:
            error = its_error
    if jax.process_count() == 1 and error is None:
        return result  # pyright: ignore[reportReturnType]
    result, trouble = from_first_process([result, error and str(error)])
    if trouble:
        raise error or UserError(trouble)
    return result


def raise_together(error: UserError | None, mesh: Mesh) -> None:
    """Raises an error of this process, and on the others that there is one; all of them have to ask."""
    is_any = error is not None if jax.process_count() == 1 else bool(any_process(mesh, error is not None))
    if is_any:
        raise error or UserError(OTHER)


def cannot_write(output: Path, error: OSError) -> UserError:
    """What to tell of a full disk, or of a folder that is somebody else's."""
    reason = error.strerror or type(error).__name__
    return UserError(
        f"--output={output} cannot be written ({reason}): choose another folder, or make room and give the same command"
    )
