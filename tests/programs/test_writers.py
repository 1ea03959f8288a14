"""metrics.jsonl over several starts, and writers that fail."""

import json
from pathlib import Path

import numpy as np
import pytest

from medvlsm_jax.writers import JsonlWriter, Writers


def write(path: Path, first_step: int, rows: dict[int, float]) -> None:
    writer = JsonlWriter(path, first_step)
    for step, value in rows.items():
        writer.scalars(step, {"loss": value})
    writer.close()


def read(path: Path) -> dict[int, float]:
    return {row["step"]: row["value"] for row in map(json.loads, path.read_text().splitlines())}


def test_a_continued_run_replaces_the_lines_beyond_its_first_step(tmp_path):
    write(tmp_path / "metrics.jsonl", 0, {1: 0.5, 2: 0.4, 3: 0.3})
    write(tmp_path / "metrics.jsonl", 2, {3: 0.25, 4: 0.2})
    assert read(tmp_path / "metrics.jsonl") == {1: 0.5, 2: 0.4, 3: 0.25, 4: 0.2}


@pytest.mark.parametrize("broken", ['{"step": 2, "na', "null", '{"step": "two"}', "[2]", ""])
def test_a_line_that_a_killed_run_left_broken_is_dropped(tmp_path, broken):
    write(tmp_path / "metrics.jsonl", 0, {1: 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(broken)
    write(tmp_path / "metrics.jsonl", 2, {3: 0.25})
    assert read(tmp_path / "metrics.jsonl") == {1: 0.5, 3: 0.25}


class Recorder:
    """Remembers, or fails in one method."""

    def __init__(self, failing: str = ""):
        self.failing, self.calls = failing, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise OSError("no space left")

    def scalars(self, step, values) -> None:
        self._call("scalars")

    def picture(self, step, name, image) -> None:
        self._call("picture")

    def close(self) -> None:
        self._call("close")


@pytest.mark.parametrize("failing", ["scalars", "picture", "close"])
def test_a_writer_that_fails_is_reported_once_and_the_others_go_on(capsys, failing):
    broken, sound = Recorder(failing), Recorder()
    writers = Writers([broken, sound])
    for step in range(2):
        writers.scalars(step, {"loss": 1.0})
        writers.picture(step, "overlay", np.zeros((2, 2, 3), np.uint8))
    writers.close()
    assert sound.calls == ["scalars", "picture", "scalars", "picture", "close"]
    assert broken.calls.count(failing) == 1
    assert capsys.readouterr().err == "warning: Recorder failed and is left out: no space left\n"
