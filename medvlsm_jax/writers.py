"""Where numbers and pictures go. A writer that fails is reported once and never stops a run."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from medvlsm_jax import atomic


@runtime_checkable
class Writer(Protocol):
    """Takes scalars and pictures of a step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A uint8 RGB picture (H, W, 3)."""
        ...

    def close(self) -> None:
        """Nothing comes after this."""
        ...


class JsonlWriter:
    """metrics.jsonl: one object a line with step, name and value; starts by dropping lines beyond `first_step`."""

    def __init__(self, path: Path, first_step: int):
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if is_before(line, first_step)]
        atomic.write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.file.write(json.dumps({"step": step, "name": name, "value": float(value)}) + "\n")
        self.file.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        pass

    def close(self) -> None:
        self.file.close()


def is_before(line: str, step: int) -> bool:
    """Whether a line of metrics.jsonl is whole and of a step up to `step`: what a continued run keeps."""
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class TensorBoardWriter:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


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
                print(f"warning: {type(writer).__name__} failed and is left out: {error}", file=sys.stderr)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        self._each("scalars", step, values)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A uint8 RGB picture (H, W, 3)."""
        self._each("picture", step, name, image)

    def close(self) -> None:
        """Nothing comes after this."""
        self._each("close")


class Progress:
    """A bar with images/s and remaining time on a terminal; plain lines elsewhere, on the first process alone."""

    def __init__(self, total_steps: int, first_step: int, batch_size: int, *, is_shown: bool = True):
        on_terminal = sys.stderr.isatty()
        self.batch_size = batch_size
        self.bar = tqdm(
            total=total_steps * batch_size,
            initial=first_step * batch_size,
            unit="img",
            smoothing=0.1,
            disable=not (is_shown and on_terminal),
        )
        self.prints_lines = is_shown and not on_terminal
        self.left, self.steps = total_steps - first_step, 0
        self.start = time.monotonic()

    def advance(self) -> None:
        """One step further."""
        self.bar.update(self.batch_size)
        self.left -= 1
        self.steps += 1
        if self.steps == 1:
            self.start = time.monotonic()  # the first step compiles and says nothing about speed

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """The latest numbers of training."""
        text = ", ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items())
        self.bar.set_postfix_str(text)
        if self.prints_lines:
            seconds = (time.monotonic() - self.start) / max(self.steps - 1, 1)
            speed = f"{self.batch_size / seconds:.1f} images/s, " if self.steps > 1 else ""
            print(f"step {step}: {text}, {speed}{self.left * seconds / 60:.1f} min left", flush=True)

    def line(self, head: str, values: Mapping[str, float]) -> None:
        """The numbers of a validation."""
        text = f"{head}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self.prints_lines:
            print(text, flush=True)
        else:
            self.bar.write(text)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()
