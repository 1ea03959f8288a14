"""Where numbers and pictures go. A writer that fails, hangs or is slow is reported once and never stops a run."""

import csv
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

from medvlsm_jax import atomic
from medvlsm_jax.errors import UserError
from medvlsm_jax.logs.trackers import MlflowWriter, WandbWriter

NAMES = ("csv", "tensorboard", "wandb", "mlflow")  # of config.writers; metrics.jsonl is always written
PATIENCE = 30.0  # seconds that a run waits at its end for writers that are still busy
QUEUE_SIZE = 256  # calls that wait for a slow writer; with overlays of 352 px some 100 MB


@runtime_checkable
class Writer(Protocol):
    """Takes scalars and pictures of a step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        ...

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        """An RGB picture."""
        ...

    def close(self) -> None:
        """Nothing comes after this."""
        ...


# --- Files ------------------------------------------------------------------------------------------------------------


class LineWriter:
    """A text file of one line a value, whole after each call, with its length in bytes as `position`.

    It starts by dropping lines beyond `first_step`, and what lies beyond an earlier `position`: a validation that came
    after the checkpoint of its step is repeated.
    """

    header = ""

    def __init__(self, path: Path, first_step: int, position: int | None = None):
        text = path.read_bytes()[:position].decode("utf-8", errors="replace") if path.exists() else ""
        kept = [line for line in text.splitlines(keepends=True) if self.is_before(line, first_step)]
        atomic.write_text(path, self.header + "".join(kept))
        self.name = path.name
        self.file = path.open("a", encoding="utf-8")
        self.position = self.file.tell()

    def is_before(self, line: str, step: int) -> bool:
        """Whether a line is whole and of a step up to `step`: what a continued run keeps."""
        try:
            return line.endswith("\n") and self.step_of(line) <= step
        except (ValueError, KeyError, TypeError):
            return False

    def step_of(self, line: str) -> int:
        """The step of a line; any error when it is broken."""
        raise NotImplementedError

    def write_line(self, step: int, name: str, value: float) -> None:
        """Writes one value."""
        raise NotImplementedError

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.write_line(step, name, float(value))
        self.file.flush()
        self.position = self.file.tell()

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        pass

    def close(self) -> None:
        self.file.close()


class JsonlWriter(LineWriter):
    """metrics.jsonl: objects with step, name and value; NaN and infinity, which json does not have, are null."""

    def step_of(self, line: str) -> int:
        return json.loads(line)["step"]

    def write_line(self, step: int, name: str, value: float) -> None:
        row = {"step": step, "name": name, "value": value if math.isfinite(value) else None}
        self.file.write(json.dumps(row) + "\n")


class CsvWriter(LineWriter):
    """metrics.csv: columns step, name and value."""

    header = "step,name,value\n"

    def step_of(self, line: str) -> int:
        return int(line.partition(",")[0])

    def write_line(self, step: int, name: str, value: float) -> None:
        csv.writer(self.file, lineterminator="\n").writerow((step, name, value))


class TensorBoardWriter:
    """Event files for TensorBoard, which then hides what was written there beyond `first_step`."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


# --- All of them ------------------------------------------------------------------------------------------------------


class BackgroundWriter:
    """A writer that is made and called in a thread of its own, so that nobody waits for it.

    Its errors are raised by the call after them. When it is too slow, calls are dropped.
    """

    def __init__(self, kind: Callable[..., Writer], *args: Any, patience: float = PATIENCE, size: int = QUEUE_SIZE):
        self.name = kind.__name__
        self.patience, self.size = patience, size  # seconds to wait at the end; calls that may wait
        self.calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.error: Exception | None = None
        self.has_dropped = False
        self.deadline = math.inf
        self.thread = threading.Thread(target=self._work, args=(kind, *args), name=self.name, daemon=True)
        self.thread.start()

    def _work(self, kind: Callable[..., Writer], *args: Any) -> None:
        try:
            writer = kind(*args)
            while call := self.calls.get():
                getattr(writer, call[0])(*call[1:])
            writer.close()
        except Exception as error:
            self.error = error

    def _call(self, *call: Any) -> None:
        if self.error:
            raise self.error
        if self.calls.qsize() < self.size:
            self.calls.put(call)
        elif not self.has_dropped:
            self.has_dropped = True
            warn(f"{self.name} is too slow: some numbers and pictures are missing there")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call("scalars", step, dict(values))

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        self._call("picture", step, name, image)

    def finish(self) -> None:
        """Asks for the end without waiting for it."""
        self.deadline = time.monotonic() + self.patience
        self.calls.put(None)

    def close(self) -> None:
        if self.deadline == math.inf:
            self.finish()
        self.thread.join(max(0.0, self.deadline - time.monotonic()))
        if self.thread.is_alive():
            raise TimeoutError(f"it is still busy {self.patience:g} s after the end of the run")
        if self.error:
            raise self.error


class Writers:
    """All writers of a run; the first failure of one is reported and the writer dropped."""

    def __init__(self, writers: list[Writer]):
        self.writers = writers

    def _each(self, method: str, *args: Any) -> None:
        for writer in list(self.writers):
            try:
                getattr(writer, method)(*args)
            except Exception as error:
                self.writers.remove(writer)
                warn_left_out(getattr(writer, "name", type(writer).__name__), error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        self._each("scalars", step, values)

    def picture(self, step: int, name: str, image: UInt8[ndarray, "h w 3"]) -> None:
        """An RGB picture."""
        self._each("picture", step, name, image)

    def positions(self) -> dict[str, int]:
        """Bytes in each log file by its name, for a checkpoint."""
        return {writer.name: writer.position for writer in self.writers if isinstance(writer, LineWriter)}

    def close(self) -> None:
        """Nothing comes after this; those in the background end side by side."""
        for writer in self.writers:
            if isinstance(writer, BackgroundWriter):
                writer.finish()
        self._each("close")


def make_writers(
    names: str,
    workdir: Path,
    first_step: int,
    *,
    positions: Mapping[str, int] | None = None,
    project: str,
    config: Mapping[str, Any],
    is_first_process: bool,
) -> Writers:
    """The writers of a run, which are open on the first process alone.

    Args:
        names: of those besides metrics.jsonl, joined by `+`; empty for none.
        workdir: receives their files.
        first_step: where the run starts or continues, in steps; what files hold beyond it is dropped.
        positions: `Writers.positions` at the checkpoint that is continued.
        project: of W&B, and the experiment of MLflow.
        config: fields and groups of fields, for W&B and MLflow.
        is_first_process: whether this is the process that writes.

    Raises:
        UserError: a name is not known.
    """
    chosen = split_names(names)
    if not is_first_process:
        return Writers([])
    at = (positions or {}).get
    makers: dict[str, Callable[[], Writer]] = {
        "jsonl": lambda: JsonlWriter(workdir / "metrics.jsonl", first_step, at("metrics.jsonl")),
        "csv": lambda: CsvWriter(workdir / "metrics.csv", first_step, at("metrics.csv")),
        "tensorboard": lambda: BackgroundWriter(TensorBoardWriter, workdir / "tensorboard", first_step),
        "wandb": lambda: BackgroundWriter(WandbWriter, workdir, project, config, PATIENCE),
        "mlflow": lambda: BackgroundWriter(MlflowWriter, workdir, project, config),
    }
    writers: list[Writer] = []
    for name in ("jsonl", *chosen):
        try:
            writers.append(makers[name]())
        except Exception as error:
            warn_left_out(name, error)
    return Writers(writers)


def split_names(names: str) -> list[str]:
    """The names in `config.writers`, each once; raises UserError when one is not known."""
    chosen = list(dict.fromkeys(filter(None, names.split("+"))))
    if unknown := [name for name in chosen if name not in NAMES]:
        raise UserError(f"config.writers={names}: unknown writer {unknown[0]!r}; join some of {', '.join(NAMES)} by +")
    return chosen


def warn_left_out(name: str, error: Exception) -> None:
    """Says in one line that a writer failed."""
    warn(f"{name} failed and is left out: {' '.join(str(error).split()) or type(error).__name__}")


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


# --- Console ----------------------------------------------------------------------------------------------------------
