"""The lines of an evaluation whose processes compute together: one of them writes, and all end when it cannot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medvlsm_jax.data.groups import GROUPS
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation import file_names
from medvlsm_jax.evaluation.cases import CaseLog, Cases, columns
from medvlsm_jax.parallel.first_process import Result, cannot_write, on_first_process
from medvlsm_jax.parallel.interruption import any_process

OTHER = "another process of this evaluation cannot go on: see what it says"
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
        self.where, self.mesh = f"--output={output}", mesh
        self.log: CaseLog | None = None
        self.error: UserError | None = None
        self.asked: jax.Array | None = None

        def start() -> dict[str, int]:
            self.log = CaseLog(output, columns(GROUPS), settings, file_names.RESULTS)
            return self.log.go_on(lines, bytes_each)

        self.first_steps = on_first_process(self.where, start)

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
                self.error = cannot_write(self.where, error)
        if jax.process_count() == 1:
            raise_together(self.error, self.mesh)
            return
        before, self.asked = self.asked, any_process(self.mesh, self.error is not None)
        if before is not None and bool(before):
            raise self.error or UserError(OTHER)

    def on_cases(self, action: Callable[[Cases], Result]) -> Result:
        """What an action of the first process makes of all lines, on all processes; raises as `on_first_process`."""
        raise_together(self.error, self.mesh)
        return on_first_process(self.where, lambda: action(self.written().read()))

    def written(self) -> CaseLog:
        """The log itself, on the process that has it."""
        assert self.log is not None
        return self.log


def raise_together(error: UserError | None, mesh: Mesh) -> None:
    """Raises an error of this process, and on the others that there is one; all of them have to ask."""
    is_any = error is not None if jax.process_count() == 1 else bool(any_process(mesh, error is not None))
    if is_any:
        raise error or UserError(OTHER)
