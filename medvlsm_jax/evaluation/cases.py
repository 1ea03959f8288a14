"""One line for every image and condition: written while an evaluation runs, read by whatever makes tables of it."""

import bisect
import contextlib
import csv
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medvlsm_jax import atomic
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.file_names import CASES, EVALUATION, PICTURE_FILES
from medvlsm_jax.evaluation.metrics import ORIGINAL, OVERLAP
from medvlsm_jax.folders import check_others

KEYS = ("dataset", "prompt", "image", "mask", "record")
METRICS = (*OVERLAP, *ORIGINAL)  # at the model's resolution, and at the image's own
LAST = ("unit", "one_empty", "cluster", "sentence")
UNFINISHED, SETTINGS, COUNTS = "unfinished.csv", "unfinished.json", "unfinished.counts"


def columns(groups: Sequence[str]) -> list[str]:
    """Of cases.csv, whose records are told apart by `groups` (class, sex, …)."""
    return [*KEYS, *groups, *METRICS, *LAST]


@dataclasses.dataclass(frozen=True)
class Cases:
    """The content of cases.csv by columns.

    Attributes:
        texts: of each line.
        numbers: those metrics that were computed.
    """

    texts: dict[str, list[str]]
    numbers: dict[str, Float[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.texts["dataset"])

    @property
    def groups(self) -> list[str]:
        """Columns that tell records apart."""
        return [name for name in self.texts if name not in (*KEYS, *LAST)]

    def select(self, rows: Sequence[int]) -> "Cases":
        """Some of the lines."""
        texts = {name: [values[i] for i in rows] for name, values in self.texts.items()}
        return Cases(texts, {name: values[list(rows)] for name, values in self.numbers.items()})

    def by(self, *names: str) -> dict[tuple[str, ...], list[int]]:
        """Numbers of the lines with the same values in some columns, in the order of their first lines."""
        found: dict[tuple[str, ...], list[int]] = {}
        for i, key in enumerate(zip(*(self.texts[name] for name in names), strict=True)):
            found.setdefault(key, []).append(i)
        return found


def read_cases(path: Path) -> Cases:
    """Reads cases.csv; raises UserError when it is missing or not one of this version."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            names = next(reader)
            lines = [[sys.intern(text) for text in line] for line in reader]
        by_column = {name: [line[i] for line in lines] for i, name in enumerate(names)}
        texts = {name: values for name, values in by_column.items() if name not in METRICS}
        numbers = {name: by_column[name] for name in METRICS if any(by_column[name])}
        return Cases(texts, {name: np.array(values, np.float64) for name, values in numbers.items()})
    except (OSError, StopIteration, LookupError, ValueError) as error:
        raise UserError(f"{path} is no cases.csv of this version ({error!r}): evaluate again") from error


class CaseLog:
    """The lines of an evaluation that is under way, on the process that writes them.

    They are appended batch by batch, whole batches alone count, and numbers are those that are written: whether an
    evaluation was interrupted cannot be seen in its tables.
    """

    def __init__(self, folder: Path, names: Sequence[str], settings: Mapping[str, Any], results: Sequence[str] = ()):
        """Goes on with the lines in `folder` if they are of the same settings; else starts anew.

        Args:
            folder: of the evaluation.
            names: of the columns.
            settings: all that the numbers depend on; it has to be json.
            results: files and folders of an older evaluation that are then removed, so that none is taken for one of
                this; in their order, the one that says that they are whole first.

        Raises:
            UserError: there are such files, and nothing says that they are an evaluation's.
        """
        self.folder, self.names = folder, names
        folder.mkdir(parents=True, exist_ok=True)
        if not self._is_of(settings):
            if not self._is_evaluation():
                check_others("--output", folder, (*results, UNFINISHED, COUNTS), "evaluation")
            # At every moment something says that the folder is an evaluation's.
            (folder / UNFINISHED).unlink(missing_ok=True)
            atomic.write_text(folder / SETTINGS, json.dumps(settings) + "\n")
            for path in (folder / name for name in (*results, COUNTS)):
                remove_pictures(path) if path.is_dir() else path.unlink(missing_ok=True)
            atomic.write_text(folder / UNFINISHED, self._to_csv([names]))

    def _is_evaluation(self) -> bool:
        """Whether an evaluation has written to the folder."""
        try:
            return (self.folder / SETTINGS).exists() or "checkpoint" in json.loads(
                (self.folder / EVALUATION).read_text("utf-8")
            )
        except (OSError, ValueError, TypeError):
            return False

    def _is_of(self, settings: Mapping[str, Any]) -> bool:
        try:
            found = json.loads((self.folder / SETTINGS).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return found == json.loads(json.dumps(settings)) and (self.folder / UNFINISHED).exists()

    def go_on(self, lines: Mapping[str, Sequence[int]], bytes_each: int = 0) -> dict[str, int]:
        """The batch of each dataset from which on it has to be evaluated; what there is of that one is dropped.

        Args:
            lines: how many lines of a dataset come before each of its batches, and behind the last one.
            bytes_each: what the counts of a line take.
        """
        end = (self.folder / UNFINISHED).read_bytes().count(b"\n") - 1
        steps, start = {}, 0
        for dataset, before in lines.items():
            steps[dataset] = max(0, bisect.bisect_right(before, end - start) - 1)
            if steps[dataset] < len(before) - 1:
                end = min(end, start + before[steps[dataset]])
            start += before[-1]
        self._cut(end, bytes_each)
        return steps

    def _cut(self, lines: int, bytes_each: int) -> None:
        """Drops what lies beyond so many lines, of whose counts each takes so many bytes."""
        text = (self.folder / UNFINISHED).read_bytes()
        kept = b"".join(line + b"\n" for line in text.split(b"\n")[: lines + 1])
        with (self.folder / UNFINISHED).open("r+b") as file:
            file.truncate(len(kept))
        if bytes_each:
            with (self.folder / COUNTS).open("ab") as file:
                file.truncate(lines * bytes_each)

    def append(self, rows: Iterable[Mapping[str, Any]], counts: Sequence[np.ndarray] = ()) -> None:
        """Adds lines, and what is counted for each; counts first, for the lines tell how far they go."""
        if counts:
            with (self.folder / COUNTS).open("ab") as file:
                file.write(b"".join(np.ascontiguousarray(array).tobytes() for array in counts))
        with (self.folder / UNFINISHED).open("a", encoding="utf-8") as file:
            file.write(self._to_csv([[cell(row.get(name, "")) for name in self.names] for row in rows]))

    def _to_csv(self, rows: Iterable[Sequence[str]]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def read(self) -> Cases:
        """All lines so far."""
        return read_cases(self.folder / UNFINISHED)

    def finish(self) -> None:
        """Makes cases.csv of the lines."""
        os.replace(self.folder / UNFINISHED, self.folder / CASES)
        (self.folder / COUNTS).unlink(missing_ok=True)

    def forget_settings(self) -> None:
        """Removes what says that an evaluation is under way, when another file says what it was."""
        (self.folder / SETTINGS).unlink(missing_ok=True)


def remove_pictures(folder: Path) -> None:
    """Removes what an evaluation has drawn below a folder, and folders in which nothing else is."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in filter(PICTURE_FILES.fullmatch, names):
            os.unlink(os.path.join(path, name))
        with contextlib.suppress(OSError):  # it holds something else
            os.rmdir(path)


def cell(value: Any) -> str:
    """A value as cases.csv has it: six decimals, and text in one line, so that a line is a case."""
    return f"{value:.6f}" if isinstance(value, float) else " ".join(str(value).splitlines())
